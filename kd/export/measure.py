"""Measure exported files: do they answer as the student does in PyTorch, and how fast are they in ONNX Runtime?"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from scipy.special import softmax

from kd.data.images import BadPicture, open_images
from kd.export.onnx import cpu_threads, open_session
from kd.models.processor import run_processor

# The least share of the test pictures on which a file has to give the student's answer, by its kind.
LEAST_AGREEMENT = {"fp32": 0.999, "int8": 0.99}
# Where the first two probabilities are no further apart, pixels or weights that were rounded otherwise can turn the answer.
NEAR_TIE = 0.05
# Sizes of a batch that are tried for the throughput, and the seconds that one may take.
BATCHES, MOST_SECONDS = (1, 8, 32, 128), 2.0
# Each file is timed for so many seconds, in as many blocks: others have their turns between, so that a disturbance of the
# machine affects all. The first calls of a block find the others' weights in the processor's caches and do not count.
SECONDS, BLOCKS, WARM_UP = 0.3, 3, 5

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
        name -> ``accuracy``, ``agreement`` with the student's classes, ``difference``, the greatest of the logits (of the
        probabilities, where a file answers with those), and ``others``, a sentence about the pictures on which it gives
        another class, empty where there are none.
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
    probabilities = softmax(np.asarray(answers["logits"], np.float64), axis=-1)
    expected = probabilities if takes == "picture" else answers["logits"]
    same = found.argmax(-1) == answers["logits"].argmax(-1)
    first, second = np.sort(probabilities, axis=-1)[:, :-3:-1].T
    return {
        "accuracy": round(float((found.argmax(-1) == answers["labels"]).mean()), 5),
        "agreement": round(float(same.mean()), 5),
        "difference": float(f"{np.abs(found - expected).max():.3g}"),
        "others": _words_on((first - second)[~same]),
    }


def _words_on(gaps: np.ndarray) -> str:
    """Say how undecided the student is on pictures on which a file gives another class.

    ``gaps`` ``[D]`` are between its first two probabilities in PyTorch, one for each of these pictures.
    """
    if not len(gaps):
        return ""
    where = "1 picture, where" if len(gaps) == 1 else f"{len(gaps):,} pictures; there"
    advice = (
        "Those are near ties, which pixels or weights that are rounded otherwise can turn."
        if gaps.max() <= NEAR_TIE
        else "Try it on pictures of your own before you use it."
    )
    return (
        f"It gives another class on {where} the student's first two classes in PyTorch are up to {100 * gaps.max():.1f} points "
        f"apart. {advice}"
    )


# The time of a thread alone; the clock on the wall where a system counts that in steps longer than a call.
OWN_TIME = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-5 else time.perf_counter


def time_files(
    files: dict[str, Path], inputs: dict[str, np.ndarray], check: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """Time each file in ONNX Runtime for one picture, warm.

    ``inputs`` are each file's. With one thread they take turns, and it is that thread's own time that counts: on a busy
    machine a call of a millisecond is interrupted far more often than one of a twentieth, and their ratio would flatter the
    student. With all threads only one file is open at a time, because its threads wait for work at full speed, and the
    clock on the wall counts. ``check`` is called between.

    Returns name -> ``one_thread`` and ``all_threads``, each ``p50``, ``p95`` (ms), ``n``, ``threads``.
    """
    one: dict[str, list[float]] = {name: [] for name in files}
    calls = {name: _call(path, inputs[name], 1) for name, path in files.items()}
    for _ in range(BLOCKS):
        for name, call in calls.items():
            check()
            one[name] += _block(call, SECONDS / BLOCKS, OWN_TIME)
    del calls
    found = {name: {"one_thread": _summary(times, 1)} for name, times in one.items()}
    threads = cpu_threads()
    for name, path in files.items():
        check()
        every = _block(_call(path, inputs[name], threads), SECONDS / BLOCKS, time.perf_counter)
        found[name]["all_threads"] = _summary(every, threads)
    return found


def _block(call: Callable[[], Any], seconds: float, clock: Callable[[], float]) -> list[float]:
    """Return the milliseconds of each call of a block of them, by ``clock``, which tells seconds; ten calls or more."""
    for _ in range(WARM_UP):
        call()
    times: list[float] = []
    while len(times) < 10 or sum(times) < seconds * 1000:
        began = clock()
        call()
        times.append((clock() - began) * 1000)
    return times


def _call(path: Path, values: np.ndarray, threads: int) -> Callable[[], Any]:
    session = open_session(path, threads)
    feed = {session.get_inputs()[0].name: values}
    return lambda: session.run(None, feed)


def _summary(times: list[float], threads: int) -> dict[str, Any]:
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
        times = _few_times(lambda feed=feed: session.run(None, feed))
        seconds = float(np.median(times))
        if batch / seconds > best["images_per_second"]:
            best = {"images_per_second": round(batch / seconds, 1), "batch": batch}
        if 4 * seconds > MOST_SECONDS:  # the next batch is four times as large
            break
    return best


def _few_times(call: Callable[[], Any]) -> list[float]:
    """Return the seconds of three calls, after one that does not count; of one, where it takes long."""
    times: list[float] = []
    while len(times) < 4 and sum(times) < MOST_SECONDS:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times[1:] or times


def first_image(dataset: Any) -> Image.Image:
    """Return the first picture of a dataset that can be read."""
    return next(image for _, image in open_images(dataset) if not isinstance(image, BadPicture))
