"""Say in words what went wrong in a run, and what a person can do about it."""

import errno
import os
import shutil
import traceback
from pathlib import Path

import kd
from kd.errors import UserError
from kd.runs.run import RESERVE_BYTES, Run, RunDeleted
from kd.system import memory

# What the system says of a file that cannot be written -> in words. It is compared as text: safetensors hands no number on.
DISK = {
    errno.ENOSPC: "The disk is full ({place}). Free some space",
    errno.EDQUOT: "Your share of the disk is used up ({place}). Free some space",
    errno.EFBIG: "A file in {place} became larger than this system lets a file be (`ulimit -f`). Raise that limit",
    errno.EROFS: "Nothing can be written to {place}: it is read-only. Make it writable",
}


def failure_message(error: BaseException, run: Run) -> str:
    """Return what went wrong in a run or a sweep, and what to do about it."""
    if not run.path.exists():
        return str(RunDeleted(f"The folder of run {run.id} was deleted while it ran: {run.path}"))
    again, place = (
        f", then {run.resume_command}.",
        (isinstance(error, OSError) and error.filename) or run.path,
    )
    if said := [words for number, words in DISK.items() if os.strerror(number) in str(error)]:
        return said[0].format(place=place) + again
    if shutil.disk_usage(run.path).free < RESERVE_BYTES:  # torch.save says less
        return DISK[errno.ENOSPC].format(place=run.path) + again
    if memory.ran_out(error):
        return f"Out of memory. Choose a smaller batch size, image size or student; or free some memory{again}"
    if "can't start new thread" in str(error):
        return f"The system allows no further thread: memory or processes (`ulimit -u`) are at their limit. Raise it{again}"
    if any(words in str(error) for words in ("PytorchStreamWriter", "iostream error", "unexpected pos")):
        return (
            f"The disk is full, or was when a file in {run.path} was written, or a limit on the size of files is set "
            f"(`ulimit -f`). Mend it{again}"
        )
    if isinstance(error, UserError) or (isinstance(error, ValueError) and is_raised_here(error)):
        return str(error)
    return f"{type(error).__name__}: {error}. This is our mistake, not yours; the traceback is in stderr.txt."


def is_raised_here(error: BaseException) -> bool:
    """Tell whether an error was raised by a line of this package, in words for a user, and not by one of a library."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(kd.__file__).parent in Path(frames[-1].filename).parents
