"""What went wrong in a run, in words."""

import errno
import os

import numpy as np
import pytest
import torch

from kd.config import DistillConfig
from kd.runs.failures import failure_message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "The disk is full"),
        (RuntimeError("Error while serializing: IoError(No space left on device (os error 28))"), "The disk is full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "share of the disk is used up"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG), "/x/pixels.part"), "A file in /x/pixels.part became larger"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "it is read-only"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "The disk is full, or was when a file"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), "Out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "Out of memory"),
        (MemoryError(), "Out of memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "Out of memory"),
        (RuntimeError("could not create a primitive"), "Out of memory"),
        (RuntimeError("can't start new thread"), "allows no further thread"),
        (ValueError("Expected more than 1 value per channel when training"), "our mistake"),
        (RuntimeError("could not create a primitive descriptor for a convolution"), "our mistake"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "Out of memory"),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_said_in_words(run, error, words):
    said = failure_message(error, run)
    assert words in said and (f"resume {run.id}" in said or "our mistake" in said)


def test_a_value_that_this_package_refuses_is_the_user_s_and_one_that_a_library_refuses_is_not(run):
    with pytest.raises(ValueError) as ours:
        DistillConfig(epochs=0)
    with pytest.raises(ValueError) as theirs:
        np.zeros(3).reshape(2, 2)
    assert failure_message(ours.value, run).startswith("epochs is 0; expected")
    assert "our mistake" in failure_message(theirs.value, run)
