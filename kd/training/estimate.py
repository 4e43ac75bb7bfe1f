"""Estimate how long a run will take here, by timing a few batches of both models and decoding a few images."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kd.config import NO_TEACHER, DistillConfig
from kd.data.duplicates import without_duplicates
from kd.data.pixels import Framed, decoding_processes, fingerprint, pixels_folder
from kd.data.splits import load_splits
from kd.data.stream_files import kept_splits
from kd.data.streamed import looked_at
from kd.data.views import Frame, Views
from kd.evaluation.scoring import SCORING_BATCH, score, scores_file
from kd.models.device import Compute, batch_seconds, pick_device, pick_precision
from kd.models.processor import read_normalization
from kd.training.plan import fitting_epochs, mean_area, trials_of, views_of
from kd.training.setup import (
    build_student,
    frame_of,
    frame_size,
    load_job_teacher,
    online_seconds,
    open_teacher,
    training_threads,
    trainings_at_once,
    with_classes,
)
from kd.training.streaming import expected_splits, is_kept, open_stream
from kd.training.targets import TargetCache
from kd.training.throughput import EpochCost, measure_throughput

# So many images are decoded to time it, and so many of 224 pixels are in a batch that is timed.
FEW = 8
# Work is timed at least LEAST times, then for SECONDS or until it was timed MOST times.
LEAST, MOST, SECONDS = 3, 25, 0.4
# Timing both models at the end of a run (``kd.evaluation.latency``) takes about as long as this many forward passes of
# the slower one.
LATENCY_TRIALS = 70
# Exporting a student at the end of a run takes so many seconds, besides reading each test image once more and scoring it
# with two files: two models are traced, and five blocks of calls are timed with one thread and with all.
EXPORT_SECONDS = 2.5
# What is said of a stream that was not read yet.
STREAM_UNKNOWN = (
    "How fast the pictures arrive is not known before they are streamed, and is not counted; nor is how many are left out as "
    "duplicates or unreadable."
)


def estimate(config: DistillConfig, cache: Path, began: float | None = None) -> dict[str, Any]:
    """Estimate the seconds of a run of ``config``. It takes a few seconds itself.

    Args:
        config: the settings of the run.
        cache: where pixels and targets are kept; what is there already, or is kept there by this, costs nothing.
        began: ``time.thread_time()`` from before the libraries were imported, where that is to count.

    Returns:
        The seconds by stage in ``stages`` (``start``, ``pictures``, ``teacher``, ``targets``, ``training``, ``test``),
        their sum in ``seconds``; ``epochs`` and ``images_per_second`` of its training. Where something cannot be known
        beforehand, ``unknown`` says in words what.

    Raises:
        UserError: as the run would.
    """
    # thread_time counts this thread's own work, not its waiting for the disk: what was read is in memory when the run begins.
    began = time.thread_time() if began is None else began
    device = pick_device(config.device)
    splits, sizes, unknown = _splits(config, cache, device)
    start = time.thread_time() - began
    if config.streaming != "yes":
        splits = without_duplicates(splits, config, cache)  # kept
        sizes = splits.sizes()
    began = time.thread_time()
    # Of a stream that was not read yet only a sample is here, in which a class of the teacher's may be missing.
    teacher = open_teacher(config, splits, None) if unknown else load_job_teacher(config, splits)
    splits = with_classes(splits, teacher, config)
    student = build_student(config, splits, config.seed, teacher)
    start += time.thread_time() - began
    size = student.normalization.size
    frame = frame_of(teacher, student, frame_size(splits, teacher, student))
    cost = _epoch_cost(config, (teacher, student), frame, (device, cache))
    cost = dataclasses.replace(cost, images=sizes["train"], validation=sizes["validation"])
    if config.minutes is not None:
        config = dataclasses.replace(config, epochs=fitting_epochs(config, size, cost))
    area, trainings = mean_area(config, size), len(trials_of(config))
    scoring = {
        "teacher": _per_image(teacher, teacher.processor, splits.validation, device) if teacher else 0.0,
        "student": _per_image(student.model, student.processor, splits.validation, device),
    }
    stages = {
        "start": start,
        "pictures": sum(_decoding(getattr(splits, of), sizes[of], frame, cache) for of in ("train", "validation")),
        "teacher": _unasked(teacher, splits, sizes, cache) * scoring["teacher"],
        "targets": 0.0
        if teacher is None
        else _targets(config, teacher, (splits.train, sizes["train"]), frame, (device, cache)),
        "training": _training(config, cost, area, trainings_at_once(device, config)),
        "test": sizes["test"] * trainings * scoring["student"]
        + LATENCY_TRIALS * max(scoring.values())
        + (EXPORT_SECONDS + sizes["test"] * scoring["student"] if exports(config) else 0.0),
    }
    return {
        "seconds": float(sum(stages.values())),
        "stages": {name: float(seconds) for name, seconds in stages.items()},
        "epochs": config.epochs,
        "images_per_second": round(cost.images_per_second(area), 1),
        **({"unknown": unknown} if unknown else {}),
    }


def _unasked(teacher: Any | None, splits: Any, sizes: dict[str, int], cache: Path) -> int:
    """Return how many images of validation and test the teacher has not been asked about yet."""
    if teacher is None:
        return 0
    return sum(sizes[of] for of in ("validation", "test") if not _is_scored(teacher, getattr(splits, of), cache))


def _epoch_cost(config: DistillConfig, models: tuple[Any, Any], frame: Frame, where: tuple[Any, Path]) -> EpochCost:
    """Measure what an image of an epoch costs. ``models``: teacher (or ``None``) and student; ``where``: the device, and the
    folder of the caches."""
    (teacher, student), (device, cache) = models, where
    size = student.normalization.size
    with training_threads(device, size, config.threads):
        compute = Compute(device, pick_precision(config.precision, device, student.model, size, cache))
        cost = measure_throughput(student, config, frame.size, compute)
    asking = online_seconds(config, teacher, _teacher_compute(config, teacher, device, cache)) if teacher else 0.0
    return dataclasses.replace(cost, teacher=asking)


def _splits(config: DistillConfig, cache: Path, device: Any) -> tuple[Any, dict[str, int], list[str]]:
    """Return the splits, how many images each has, and in words what cannot be known of them now.

    Of a stream that was read before, all is known; of another there is a sample, and its numbers are expected ones.
    """
    if config.streaming != "yes":
        splits = load_splits(config)
        return splits, splits.sizes(), []
    opened = open_stream(config, device, cache)
    folder = cache / "streams" / opened.key(config)
    if is_kept(folder, cache):
        splits = kept_splits(folder)
        return splits, splits.sizes(), []
    return *expected_splits(opened, config), [STREAM_UNKNOWN]


def exports(config: DistillConfig) -> bool:
    """Return whether a run exports its student at its end, as ``kd.export.after_run`` decides."""
    return config.export != "no" and config.teacher != NO_TEACHER


def _training(config: DistillConfig, cost: EpochCost, area: float, at_once: int) -> float:
    """Return the seconds of all trainings of a run, ``at_once`` of them at a time; of these only those with the teacher have
    to ask it."""
    alone = dataclasses.replace(cost, teacher=0.0).seconds(area)
    rounds = math.ceil(len(trials_of(config)) / at_once)
    asking = math.ceil(config.trials / at_once)
    return config.epochs * (rounds * alone + asking * cost.images * cost.teacher)


def steady(work: Callable[[], object]) -> float:
    """Return the median of the seconds that ``work`` takes. A single timing would be multiplied by thousands of images,
    and with it any moment in which the browser had the core."""
    work()
    times: list[float] = []
    while len(times) < LEAST or (len(times) < MOST and sum(times) < SECONDS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def at_once(size: tuple[int, int]) -> int:
    """Return how many images of this size are timed in a batch: of small ones as many as a run has in one, because
    threads wait for each other in every operation, however few images it is for."""
    return int(np.clip(FEW * 224 * 224 / np.prod(size), FEW, SCORING_BATCH))


def _per_image(model: Any, processor: Any, dataset: Any, device: Any) -> float:
    """Return the seconds of scoring one image: decoding, the processor, the model in float32."""
    few = dataset.select(range(min(at_once(read_normalization(processor).size), len(dataset))))
    return steady(lambda: score(model, processor, few, device)) / len(few)


def _is_scored(teacher: Any, dataset: Any, cache: Path) -> bool:
    """Tell whether the teacher's logits on a split are kept."""
    return scores_file(f"{teacher.key()}-{fingerprint(dataset)}", cache).exists()


def _decoding(dataset: Any, count: int, frame: Frame, cache: Path) -> float:
    """Return the seconds until a split of ``count`` images is decoded; 0 where it is already."""
    if (pixels_folder(fingerprint(dataset), frame, cache) / "pixels.npy").exists():
        return 0.0
    dataset = looked_at(dataset)
    few = Framed(dataset.select(range(min(FEW, len(dataset)))), frame)
    return steady(lambda: [few[index] for index in range(len(few))]) / len(few) * count / max(1, decoding_processes())


def _teacher_compute(config: DistillConfig, teacher: Any, device: Any, cache: Path) -> Compute:
    """Return where and in which precision the teacher is asked for targets."""
    return Compute(device, pick_precision(config.precision, device, teacher.model, teacher.normalization.size, cache))


def _targets(
    config: DistillConfig, teacher: Any, split: tuple[Any, int], frame: Frame, where: tuple[Any, Path]
) -> float:
    """Return the seconds until the teacher has been asked about every view that is not kept yet.

    ``split``: the training images, or a sample, and how many there are. ``where``: the device, and the folder of the caches.
    """
    (train, count), (device, folder) = split, where
    if config.targets == "online":
        return 0.0
    size, compute = teacher.normalization.size, _teacher_compute(config, teacher, device, folder)
    batch = at_once(size)
    seconds = batch_seconds(teacher, size, compute, batch, rounds=3) / batch
    views = Views(fingerprint(train), len(train), config.crop_area)
    kept = TargetCache(teacher, views, folder, compute).place((len(train), 3, *frame.size))
    missing = [view for view in range(views_of(config)) if not (kept / f"view-{view}.npy").exists()]
    shares = config.processes if device.type == "cuda" else 1
    return len(missing) * count * seconds / shares
