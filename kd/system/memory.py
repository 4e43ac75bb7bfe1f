"""What becomes of a process whose memory runs out, and how that is told from other errors."""

import gc
import re
from pathlib import Path

WORDS = re.compile(
    r" out of memory|can't allocate memory|Cannot allocate memory|bad_alloc|signal: Killed|STATUS_ALLOC_FAILED"
    r"|could not create a (memory object|primitive$)"
)
"""In the messages of CUDA, of torch's CPU allocator, of the system, of C++, of a data loader whose process is gone, of
cuDNN and cuBLAS, and of oneDNN, which says no more than this."""


def ran_out(error: BaseException) -> bool:
    """Whether an error, or what caused it, is one of memory. torch has a type of its own for GPUs only; on the CPU it
    raises ``RuntimeError``."""
    chain = [error, *filter(None, [error.__cause__, error.__context__])]
    return any(
        isinstance(link, MemoryError)
        or type(link).__name__ == "OutOfMemoryError"
        or (isinstance(link, RuntimeError | OSError) and WORDS.search(str(link)) is not None)
        for link in chain
    )


def ran_out_on_gpu(error: BaseException) -> bool:
    """Whether it is a GPU's memory that ran out. Then this process is well, and can go on with less; where its own
    memory has, not even a thread can be relied on to start (`threading` may wait for one for ever)."""
    return type(error).__name__ == "OutOfMemoryError" or "STATUS_ALLOC_FAILED" in str(error)


def more_parts(now: int, size: int) -> int:
    """Into how many equal parts a batch of ``size`` is cut next, where ``now`` were too few: twice as many, or the next
    number that divides it."""
    return next(count for count in range(2 * now, size + 1) if size % count == 0)


def free() -> None:
    """Give back what nothing refers to any more."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def go_first() -> None:
    """Where the system must kill a process for want of memory, it should be this one before the page (Linux)."""
    try:
        Path("/proc/self/oom_score_adj").write_text("500")
    except OSError:
        return  # another system, or it was decided for us


def kills() -> int | None:
    """How many processes the system has killed for want of memory: of this container, where that is counted, or else of
    this machine. ``None`` where it does not say."""
    for counts in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        try:
            found = re.search(r"^oom_kill (\d+)$", counts.read_text(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found[1])
    return None


def epitaph(before: int | None) -> str:
    """What can honestly be said of a process that ended without a word, ``before`` being ``kills()`` at its beginning."""
    now = kills()
    if before is None or now is None:
        return "It was killed, as the system does where memory runs out, or the machine went down."
    if now > before:
        return (
            "The system has killed a process for want of memory meanwhile, perhaps this one: a smaller batch size or image "
            "size needs less."
        )
    return "It was killed, or the machine went down; the system has killed nothing for want of memory meanwhile."
