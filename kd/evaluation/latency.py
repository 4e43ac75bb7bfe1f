"""Measure a model's costs: latency, parameters, megabytes and FLOPs."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kd.models.processor import run_processor
from kd.system import memory

# Calls before the timed ones, the least number of timed calls, and the least time in seconds that they take together, those
# of a model and those of a processor.
WARM_UP, TRIALS, SECONDS, PROCESSOR_SECONDS = 5, 30, 0.25, 0.1

BUSY_NOTE = "A run was training at the same time, so both models were slower than they are alone."


def model_cost(model: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Return ``parameters``, ``megabytes`` and ``flops`` (``None`` where not counted) of a transformers model for inputs of ``size`` (height, width)."""
    return {
        "parameters": count_parameters(model),
        "megabytes": round(model_megabytes(model), 3),
        "flops": count_flops(model, size),
    }


@torch.inference_mode()
def measure_latency(
    models: dict[str, tuple[Any, Any]], image: Image.Image, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Measure each ``(model, processor)``'s latency for one image, the models taking turns.

    Returns name -> ``latency_ms`` of the forward pass alone and ``preprocess_ms`` of the processor alone.
    """
    forward, preprocess = {}, {}
    for name, (model, processor) in models.items():
        values = run_processor(processor, [image]).to(device)
        model.eval().to(device)
        forward[name] = lambda model=model, values=values: model(pixel_values=values)
        preprocess[name] = lambda processor=processor: run_processor(processor, [image])
    forward = timed_trials(forward, device, SECONDS)
    preprocess = timed_trials(preprocess, torch.device("cpu"), PROCESSOR_SECONDS)
    return {
        name: {
            "latency_ms": latency_summary(forward[name], device),
            "preprocess_ms": round(float(np.percentile(preprocess[name], 50)), 3),
        }
        for name in models
    }


def cost_ratios(teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, float]:
    """Return how many times faster (by median latency) and smaller (in megabytes) the student is than the teacher."""
    return {
        "speedup": _rounded(teacher["latency_ms"]["p50"] / student["latency_ms"]["p50"]),
        "size_ratio": _rounded(teacher["megabytes"] / student["megabytes"]),
    }


def _rounded(ratio: float) -> float:
    """Round a ratio to two digits after the point, a small one to two digits that are not 0: it may be divided by."""
    return round(ratio, 2) if ratio >= 0.1 else float(f"{ratio:.2g}")


def count_parameters(model: nn.Module) -> int:
    """Return the number of a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def model_megabytes(model: nn.Module) -> float:
    """Return the size in MB (10^6 bytes) of the weights in a safetensors file of the model's dtype, without its header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 1e6


@torch.no_grad()
def count_flops(model: Any, size: tuple[int, int]) -> int | None:
    """Count the floating-point operations of a forward pass on one image; a multiply-add counts as two.

    ``torch.utils.flop_counter`` counts matrix products and convolutions, but not inside fused attention, so the model uses
    ``eager`` attention while it is counted. It fails on parameters that are handed from layer to layer (Perceiver's), so
    none is trainable meanwhile. Some models keep a tensor from one call to the next (BEiT), so that inference mode, whose
    tensors cannot be trained with, must not be used on a student. Returns ``None`` where it cannot be counted.
    """
    device = next(model.parameters()).device
    attention, trainable = model.config._attn_implementation, [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    try:
        model.set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter:
            model(pixel_values=torch.zeros(1, 3, *size, device=device))
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if memory.ran_out(error):
            raise
        return None
    finally:
        model.set_attn_implementation(attention)
        for parameter in trainable:
            parameter.requires_grad_(True)
    return counter.get_total_flops()


def timed_trials(
    calls: dict[str, Callable[[], Any]], device: torch.device, seconds: float, trials: int = TRIALS
) -> dict[str, np.ndarray]:
    """Time calls in milliseconds, in turns, so that a disturbance of the machine affects all of them.

    After a warm-up there are at least ``trials`` rounds, and more until each call has run for ``seconds``. A call that is n
    times faster than the slowest is made n times in each round, at most 50. The device is synchronised after each call.
    """

    def trial(call: Callable[[], Any]) -> float:
        started = time.perf_counter()
        call()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return (time.perf_counter() - started) * 1000

    warm = {name: np.median([trial(call) for _ in range(WARM_UP)]) for name, call in calls.items()}
    repeats = {name: int(np.clip(round(max(warm.values()) / own), 1, 50)) for name, own in warm.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    while min(map(len, times.values())) < trials or min(map(sum, times.values())) < seconds * 1000:
        for name, call in calls.items():
            times[name] += [trial(call) for _ in range(repeats[name])]
    return {name: np.array(values) for name, values in times.items()}


def latency_summary(times: np.ndarray, device: torch.device) -> dict[str, Any]:
    """Summarize timings in milliseconds for the report."""
    return {
        "p50": round(float(np.percentile(times, 50)), 3),
        "p95": round(float(np.percentile(times, 95)), 3),
        "n": len(times),
        "batch": 1,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
    }
