"""Run the command line as a user does."""

import os
import subprocess
import sys

from tests.support.paths import ROOT


def kd(*arguments, check: bool = False, **environment) -> subprocess.CompletedProcess:
    """Run ``python -m kd`` to its end, in at most five minutes."""
    return subprocess.run(
        [sys.executable, "-m", "kd", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=check,
    )


def flags(settings: dict) -> list[str]:
    """Settings as command-line flags."""
    return [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]
