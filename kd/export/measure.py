"""Measure exported files: do they answer as the student does in PyTorch, and how fast are they in ONNX Runtime?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image

from kd.data.images import BadPicture, open_images
from kd.evaluation.latency import timed_trials
from kd.export.onnx import cpu_threads, open_session
from kd.models.processor import run_processor

# The least share of the test pictures on which a file has to give the student's answer, by its kind.
LEAST_AGREEMENT = {"fp32": 0.999, "int8": 0.99}
# Sizes of a batch that are tried for the throughput, and the seconds that one may take.
BATCHES, MOST_SECONDS = (1, 8, 32, 128), 2.0
# A timed call is repeated for so many seconds.
SECONDS = 0.25

Progress = Callable[[int, int], None]


def score_files(
    files: dict[str, Path], processor: Any, dataset: Any, answers: dict[str, np.ndarray], progress: Progress
) -> dict[str, dict[str, float]]:
    """Score files on all test pictures that can be read, each as the program that ships it will: a file that takes
    ``pixel_values`` gets what the processor makes of a picture, one that takes a ``picture`` gets its pixels.

    Args:
        files: name -> ONNX file.
        processor: the student's.
        dataset: the test split.
        answers: the student's in PyTorch: ``logits`` ``[M, C]``, ``labels`` and ``indices`` ``[M]``.
        progress: is called with the pictures done, and how many there are.

    Returns:
        name -> ``accuracy``, ``agreement`` with the student's classes, and ``difference``, the greatest of the logits
        (of the probabilities, where a file answers with those).
    """
    sessions = {name: open_session(path) for name, path in files.items()}
    takes = {name: session.get_inputs()[0].name for name, session in sessions.items()}
    found: dict[str, list[np.ndarray]] = {name: [] for name in files}
    part = dataset.select(answers["indices"])
    for index, image in open_images(part):
        if isinstance(image, BadPicture):
            raise image
        inputs = {"picture": np.asarray(image)}
        if "pixel_values" in takes.values():
            inputs["pixel_values"] = run_processor(processor, [image]).numpy()
        for name, session in sessions.items():
            found[name].append(session.run(None, {takes[name]: inputs[takes[name]]})[0].reshape(-1))
        progress(index + 1, len(part))
    return {name: _scores(np.stack(rows), takes[name], answers) for name, rows in found.items()}


def _scores(found: np.ndarray, takes: str, answers: dict[str, np.ndarray]) -> dict[str, float]:
    expected = answers["logits"]
    if takes == "picture":
        expected = torch.from_numpy(np.asarray(expected, np.float32)).softmax(-1).numpy()
    same = found.argmax(-1) == answers["logits"].argmax(-1)
    return {
        "accuracy": round(float((found.argmax(-1) == answers["labels"]).mean()), 5),
        "agreement": round(float(same.mean()), 5),
        "difference": float(f"{np.abs(found - expected).max():.3g}"),
    }


def time_files(
    files: dict[str, Path], inputs: dict[str, np.ndarray], check: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """Time each file in ONNX Runtime for one picture, warm.

    ``inputs`` are each file's. With one thread they take turns, so that a disturbance affects all of them; with all
    threads each is alone, because the threads of an open file wait for work at full speed. ``check`` is called between.

    Returns name -> ``one_thread`` and ``all_threads``, each ``p50``, ``p95`` (ms), ``n``, ``threads``.
    """
    calls = {name: _call(path, inputs[name], 1) for name, path in files.items()}
    one = timed_trials(calls, torch.device("cpu"), seconds=SECONDS)
    del calls
    found = {name: {"one_thread": _summary(times, 1)} for name, times in one.items()}
    threads = cpu_threads()
    for name, path in files.items():
        check()
        if threads > 1:
            call = {name: _call(path, inputs[name], threads)}
            times = timed_trials(call, torch.device("cpu"), seconds=SECONDS / 2)[name]
            found[name]["all_threads"] = _summary(times, threads)
        else:
            found[name]["all_threads"] = found[name]["one_thread"]
    return found


def _call(path: Path, values: np.ndarray, threads: int) -> Callable[[], Any]:
    session = open_session(path, threads)
    feed = {session.get_inputs()[0].name: values}
    return lambda: session.run(None, feed)


def _summary(times: np.ndarray, threads: int) -> dict[str, Any]:
    return {
        "p50": round(float(np.percentile(times, 50)), 4),
        "p95": round(float(np.percentile(times, 95)), 4),
        "n": len(times),
        "threads": threads,
        "device": "cpu",
        "dtype": "float32",
        "runtime": f"ONNX Runtime {onnxruntime.__version__}",
    }


def best_throughput(path: Path, values: np.ndarray, check: Callable[[], None]) -> dict[str, Any]:
    """Return ``images_per_second`` of a file with all threads at the ``batch`` that gives the most.

    ``values`` are one picture's inputs ``[1, 3, H, W]``; ``check`` is called between.
    """
    session, best = open_session(path, cpu_threads()), {"images_per_second": 0.0, "batch": 0}
    for batch in BATCHES:
        check()
        feed = {"pixel_values": np.repeat(values, batch, axis=0)}
        times = timed_trials(
            {"": lambda feed=feed: session.run(None, feed)}, torch.device("cpu"), trials=3, seconds=0.1
        )
        seconds = float(np.percentile(times[""], 50)) / 1000
        if batch / seconds > best["images_per_second"]:
            best = {"images_per_second": round(batch / seconds, 1), "batch": batch}
        if 4 * seconds > MOST_SECONDS:  # the next batch is four times as large
            break
    return best


def first_image(dataset: Any) -> Image.Image:
    """Return the first picture of a dataset that can be read."""
    return next(image for _, image in open_images(dataset) if not isinstance(image, BadPicture))
