"""Commands that work beside the page, in processes of their own, with low priority."""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from typing import Any

from kd.runs.process import KEEP_MEMORY
from kd.runs.queue import device_name, single_gpu_environment
from kd.system.files import default_runs_folder
from kd.system.processes import kd_command, kd_environment

LOWEST = 19


def start(
    command: str, *options: str, settings: dict[str, Any], niceness: int = LOWEST, **streams: Any
) -> subprocess.Popen:
    """Start ``python -m kd COMMAND`` on the ``settings`` (public names; ``None`` is left out) as a run would be started, in
    a process group of its own. ``streams``: what ``Popen`` takes for them; by default nothing is read or kept."""
    return subprocess.Popen(
        [
            *(["nice", "-n", str(niceness)] if shutil.which("nice") else []),
            *kd_command(command, f"--runs-dir={default_runs_folder()}", *options),
            *(f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if value is not None),
        ],
        start_new_session=True,
        env={
            **kd_environment(), **single_gpu_environment(device_name(settings["device"])), **KEEP_MEMORY,
        },
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **streams},
    )  # fmt: skip


def end(process: subprocess.Popen) -> None:
    """Kill it, and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
