"""Choose the device, the precision and the number of threads."""

import copy
import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kd.config import SMALL_SIDE
from kd.errors import UserError
from kd.system.files import write_whole
from kd.system.zerogpu import is_zerogpu

# bf16 is chosen where it makes a batch this many times faster: it has only eight bits of precision, and timings are noisy.
BF16_GAIN = 1.1

# A single measurement decides where one precision is this many times faster than the other.
CLEAR_GAIN = 1.5

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """The device on which a model computes and the precision of its forward pass (``fp32``, ``bf16`` or ``fp16``)."""

    device: torch.device
    precision: str = "fp32"

    def autocast(self) -> Any:
        """Return a context in which a model computes in this precision."""
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32")


def pick_device(asked: str) -> torch.device:
    """Return the device of a setting; ``auto`` is a GPU where there is one, else the CPU.

    Raises ``UserError`` for a device that this machine does not have.
    """
    # KD_DEVICE is set by kd.runs.queue.single_gpu_environment, and by kd.ui.zerogpu where the GPU is lent.
    asked = os.environ.get("KD_DEVICE", "cpu" if is_zerogpu() else asked)
    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        gpus = torch.cuda.device_count()
        found = f"{gpus} CUDA device{'s' * (gpus != 1)}" if gpus else "no GPU, only the CPU"
        raise UserError(f"The device {asked!r} cannot be used; this machine has {found}. Use auto or cpu.") from error
    return torch.device("cuda:0") if asked == "cuda" else device


def pick_precision(asked: str, device: torch.device, model: nn.Module, size: tuple[int, int], cache: Path) -> str:
    """Return the precision of the forward pass of a setting: ``fp32``, ``bf16`` or ``fp16``.

    ``auto`` chooses a half type where the device computes faster in it. A GPU does. A CPU with bfloat16 instructions does
    so only for some layers and image sizes, so a few batches are timed there: training steps of a model with trainable
    parameters, forward passes of a frozen one. The choice is kept in ``cache``, so that a repeated run computes the same.
    """
    if asked == "fp16" and device.type == "cpu":
        raise UserError("fp16 needs a GPU. On the CPU use bf16, fp32 or auto.")
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not _has_bf16():
        return "fp32"
    shapes = [(tuple(p.shape), p.requires_grad) for p in model.parameters()]
    machine = (torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    key = hashlib.blake2b(repr((type(model).__name__, shapes, size, machine)).encode(), digest_size=16).hexdigest()
    file = Path(cache) / "precision" / key
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        seconds = _time_precisions(model, size)
        write_whole(file, "bf16" if seconds["bf16"] * BF16_GAIN < seconds["fp32"] else "fp32")
    return file.read_text()


def _has_bf16() -> bool:
    """Return whether the CPU has instructions for bfloat16."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _time_precisions(model: nn.Module, size: tuple[int, int], rounds: int = 3) -> dict[str, float]:
    """Return the shortest time in seconds of a batch in each precision.

    The precisions take turns, after one round to warm up. The first measured round decides where the difference is clear.
    """
    batch = int(np.clip(4 * 224 * 224 / (size[0] * size[1]), 4, 64))
    timed, best = _batch_timer(model, size, torch.device("cpu"), batch), {"fp32": math.inf, "bf16": math.inf}
    for nth in range(rounds + 1):
        times = {precision: timed(precision) for precision in best}
        if nth:
            best = {precision: min(best[precision], times[precision]) for precision in best}
        if nth and not 1 / CLEAR_GAIN < best["fp32"] / best["bf16"] < CLEAR_GAIN:
            break
    return best


def batch_seconds(model: nn.Module, size: tuple[int, int], compute: Compute, batch: int, rounds: int = 5) -> float:
    """Return the median time in seconds of a batch of images of ``size`` (height, width).

    It is that of a training step without the optimiser, or of the forward pass of a frozen model.
    """
    timed = _batch_timer(model, size, compute.device, batch)
    timed(compute.precision)
    return float(np.median([timed(compute.precision) for _ in range(rounds)]))


def _batch_timer(model: nn.Module, size: tuple[int, int], device: torch.device, batch: int) -> Callable[[str], float]:
    """Return a function that times one batch in a given precision, in seconds.

    It uses a copy of the model, because a step changes gradients and running statistics.
    """
    values = torch.zeros(batch, 3, *size, device=device).contiguous(memory_format=torch.channels_last)
    trainable = any(parameter.requires_grad for parameter in model.parameters())
    duplicate = copy.deepcopy(model).to(device, memory_format=torch.channels_last).train(trainable)

    def seconds(precision: str) -> float:
        started = time.perf_counter()
        with torch.random.fork_rng():  # dropout must not change the random numbers of the run
            with Compute(device, precision).autocast(), torch.set_grad_enabled(trainable):
                logits = duplicate(pixel_values=values).logits
            if trainable:
                logits.sum().backward()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - started

    return seconds


def pick_threads(side: int) -> int:
    """Return the number of CPU threads for training at this input size: all, or one fewer for small inputs.

    Operations on small inputs last microseconds, and all threads wait for the slowest at the end of each. Where another
    process takes a core, for example the browser that shows the page, training slows down out of proportion: on two cores
    from 843 to 32 images/s with two threads, but only from 675 to 639 with one.
    """
    threads = torch.get_num_threads()
    return max(1, threads - 1) if side <= SMALL_SIDE else threads
