"""Memory: what a process takes, what happens where it runs out, and how that is told from other errors."""

import gc
import re
from pathlib import Path

import psutil

# What is said where memory runs out: by CUDA, by torch's CPU allocator, by the system, by C++, by a data loader whose
# process is gone, by cuDNN and cuBLAS, and by oneDNN, which says no more than this.
WORDS = re.compile(
    r" out of memory|can't allocate memory|Cannot allocate memory|bad_alloc|signal: Killed|STATUS_ALLOC_FAILED"
    r"|could not create a (memory object|primitive$)"
)


def ran_out(error: BaseException) -> bool:
    """Return whether an error, or what caused it, is a lack of memory.

    torch has a type of its own for GPUs only; on the CPU it raises ``RuntimeError``.
    """
    chain = [error, *filter(None, [error.__cause__, error.__context__])]
    return any(
        isinstance(link, MemoryError)
        or type(link).__name__ == "OutOfMemoryError"
        or (isinstance(link, RuntimeError | OSError) and WORDS.search(str(link)) is not None)
        for link in chain
    )


def ran_out_on_gpu(error: BaseException) -> bool:
    """Return whether it is a GPU's memory that ran out.

    Then this process can go on with smaller batches. Where its own memory has run out, not even a thread can be relied
    on to start (`threading` may wait for one for ever).
    """
    return type(error).__name__ == "OutOfMemoryError" or "STATUS_ALLOC_FAILED" in str(error)


def more_parts(now: int, size: int) -> int:
    """Return into how many equal parts a batch of ``size`` is cut next, where ``now`` parts were too few.

    It is twice as many, or the next number that divides the batch.
    """
    return next(count for count in range(2 * now, size + 1) if size % count == 0)


def free() -> None:
    """Collect garbage and give the GPU's unused memory back."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def private_megabytes(pid: int | None = None) -> float | None:
    """Return the memory of a process (default: this one) that is not mapped from files, MB; ``None`` where it is gone.

    On Linux resident less shared memory is exactly ``RssAnon`` of ``/proc``. The unique set size would not be: it counts
    pages of files that only this process maps, and leaves out its own pages that a forked child still shares.
    """
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return None
    return (memory.rss - getattr(memory, "shared", 0)) / 1e6  # only Linux counts what is shared


def prefer_to_be_killed() -> None:
    """Let the system kill this process before the page where it must kill one for want of memory (Linux)."""
    try:
        Path("/proc/self/oom_score_adj").write_text("500")  # psutil has nothing for it
    except OSError:
        return  # another system, or it was decided for us


def kills() -> int | None:
    """Return how many processes the system has killed for want of memory; ``None`` where it does not count them.

    They are those of this container, where that is counted, or else those of this machine.
    """
    for counts in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):  # psutil has neither
        try:
            found = re.search(r"^oom_kill (\d+)$", counts.read_text(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found[1])
    return None


def explain_death(kills_before: int | None) -> str:
    """Return what is known of a process that ended without a word; ``kills_before``: ``kills()`` when it began."""
    now = kills()
    if kills_before is None or now is None:
        return "It was killed, as the system does where memory runs out, or the machine went down."
    if now > kills_before:
        return (
            "The system has killed a process for want of memory meanwhile, perhaps this one: a smaller batch size or image "
            "size needs less."
        )
    return "It was killed, or the machine went down; the system has killed nothing for want of memory meanwhile."
