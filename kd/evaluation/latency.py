"""What a model costs: time for one picture, parameters, megabytes, FLOPs."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kd.models.processor import run_processor


def model_cost(model: Any, size: tuple[int, int]) -> dict[str, Any]:
    """``parameters``, ``megabytes`` and ``flops`` of a transformers model at an input size."""
    return {
        "parameters": count_parameters(model),
        "megabytes": round(model_megabytes(model), 3),
        "flops": count_flops(model, size),
    }


@torch.inference_mode()
def measure_latency(
    models: dict[str, tuple[Any, Any]], picture: Image.Image, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Latency for one picture of each ``(model, processor)``, in turns: name -> ``latency_ms``, the forward pass
    alone, and ``preprocess_ms``, the processor alone."""
    forward, preprocess = {}, {}
    for name, (model, processor) in models.items():
        values = run_processor(processor, [picture]).to(device)
        model.eval().to(device)
        forward[name] = lambda model=model, values=values: model(pixel_values=values)
        preprocess[name] = lambda processor=processor: run_processor(processor, [picture])
    forward = timed_trials(forward, device)
    preprocess = timed_trials(preprocess, torch.device("cpu"), seconds=0.1)
    return {
        name: {
            "latency_ms": latency_summary(forward[name], device),
            "preprocess_ms": round(float(np.percentile(preprocess[name], 50)), 3),
        }
        for name in models
    }


BUSY_NOTE = "A run was training meanwhile: both models were slower than they are alone."


def cost_ratios(teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, float]:
    """How many times faster (median latency) and smaller (megabytes) the student is."""
    return {
        "speedup": round(teacher["latency_ms"]["p50"] / student["latency_ms"]["p50"], 2),
        "size_ratio": round(teacher["megabytes"] / student["megabytes"], 2),
    }


WARM_UP = 5

TRIALS = 30

SECONDS = 0.25


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def model_megabytes(model: nn.Module) -> float:
    """Size of the weights as a safetensors file in the model's own dtype, in MB (10^6 bytes), without its header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 1e6


@torch.inference_mode()
def count_flops(model: Any, size: tuple[int, int]) -> int:
    """Floating-point operations of one forward pass on one picture, a multiply-add counted as two.

    Counted by ``torch.utils.flop_counter``, which knows matrix products and convolutions and does not see into fused
    attention: the model attends in the open (``eager``) meanwhile.
    """
    device = next(model.parameters()).device
    attention = model.config._attn_implementation
    model.eval().set_attn_implementation("eager")
    try:
        with FlopCounterMode(display=False) as counter:
            model(pixel_values=torch.zeros(1, 3, *size, device=device))
    finally:
        model.set_attn_implementation(attention)
    return counter.get_total_flops()


def timed_trials(
    calls: dict[str, Callable[[], Any]], device: torch.device, trials: int = TRIALS, seconds: float = SECONDS
) -> dict[str, np.ndarray]:
    """Milliseconds of each call, the calls taking turns so that a noisy moment hits all of them.

    After a warm-up, at least ``trials`` rounds and until each has run for ``seconds``; a call that is faster than the
    slowest has as many more trials in each round (at most 50). The device is synchronised.
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
    """The report's form of a series of milliseconds."""
    return {
        "p50": round(float(np.percentile(times, 50)), 3),
        "p95": round(float(np.percentile(times, 95)), 3),
        "n": len(times),
        "batch": 1,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
    }
