"""ZeroGPU: a Space whose GPU is lent to one request of a visitor at a time, for a while, and is nowhere else."""

import os


def is_zerogpu() -> bool:
    """Tell whether this program runs on such a Space, as the package ``spaces`` tells it."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
