"""Start the commands that work while the page answers, in processes of their own with low priority."""

from typing import Any

from kd.config import DistillConfig
from kd.runs.process import training_environment
from kd.system.files import default_runs_folder
from kd.system.processes import Child

# The lowest priority that there is.
LOWEST = 19


def start(command: str, config: DistillConfig, nice: int = LOWEST, **more: Any) -> Child:
    """Start ``python -m kd COMMAND`` on ``config``, in the environment of a run; ``more`` goes into its job."""
    job = {"config": config.to_dict(), "runs_dir": str(default_runs_folder()), **more}
    return Child(command, "--child", job=job, environment=training_environment(config.device), nice=nice)
