"""How long a run will take here, from a short measurement: a few batches of both models, a few pictures decoded."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kd.config import NO_TEACHER, DistillConfig
from kd.data.duplicates import without_duplicates
from kd.data.images import typical_size
from kd.data.pixels import Squeezed, decoding_processes, fingerprint, pixels_folder
from kd.data.splits import load_splits
from kd.data.views import Views
from kd.evaluation.scoring import SCORING_BATCH, score, scores_file
from kd.models.device import batch_seconds, pick_device, pick_precision
from kd.models.processor import read_normalization
from kd.models.student import load_student
from kd.models.teacher import load_teacher
from kd.runs.store import existing_teacher
from kd.training.labels import labels_from_teacher
from kd.training.plan import fitting_epochs, mean_area, pixel_side, trials_of, views_of
from kd.training.setup import online_seconds, threads
from kd.training.targets import targets_folder
from kd.training.throughput import measure_throughput

FEW = 8
"""Pictures that are decoded for their speed, and that are measured at once where they are of 224 pixels."""

LEAST, MOST, SECONDS = 3, 25, 0.4
"""They are measured at least so often and then, up to the second number, for so long."""

LATENCY_TRIALS = 70
"""About so many forward passes of the slower model time both (``kd.evaluation.latency``)."""


def estimate(config: DistillConfig, cache: Path, began: float | None = None) -> dict[str, Any]:
    """Seconds of a run of ``config``: by stage in ``stages`` (``start``, ``pictures``, ``teacher``, ``targets``,
    ``training``, ``test``) and their ``seconds`` in all; ``epochs`` and ``images_per_second`` of its training.

    What is in ``cache`` already, or is kept there by this, costs nothing. ``began`` (``time.thread_time``) is before the
    libraries were imported, where that is to count. Takes a few seconds itself. Raises ``UserError`` as the run would.
    """
    # This thread's own work: while it waits for the disk, or for whoever else has the core, nothing is done that a run
    # would have to do again, for what was read is in memory then.
    began = time.thread_time() if began is None else began
    device = pick_device(config.device)
    splits = load_splits(config)
    start = time.thread_time() - began
    splits = without_duplicates(splits, config, cache)  # kept
    began = time.thread_time()
    short, long = typical_size(splits.train)
    teacher = (
        None
        if config.teacher == NO_TEACHER
        else load_teacher(existing_teacher(config.teacher), splits.classes, config.label_map)[0]
    )
    if not splits.labelled:
        splits, config = labels_from_teacher(config, splits, teacher)
    student = load_student(config.student, splits.classes, config.image_size, short, config.seed)
    start += time.thread_time() - began
    size, side = student.normalization.size, pixel_side(teacher, student, long)
    with threads(device, student):
        precision = pick_precision(config.precision, device, student.model, size, cache)
        cost = measure_throughput(student, config, side, device, precision, cache)
    pictures, validation = len(splits.train), len(splits.validation)
    asking = online_seconds(config, teacher, device, precision)
    if config.minutes is not None:
        epochs = fitting_epochs(config, size, cost, pictures, validation, asking)
        config = dataclasses.replace(config, epochs=epochs)
    area, epochs = mean_area(config, size), config.epochs
    arms, taught = len(trials_of(config)), config.trials
    ruler = {"teacher": 0.0, "student": _per_picture((student.model, student.processor), splits.validation, device)}
    unasked = [part for part in (splits.validation, splits.test) if teacher and not _is_scored(teacher, part, cache)]
    if teacher:
        ruler["teacher"] = _per_picture((teacher, teacher.processor), splits.validation, device)

    stages = {
        "start": start,
        "pictures": sum(_decoding(part, side, cache) for part in (splits.train, splits.validation)),
        "teacher": sum(map(len, unasked)) * ruler["teacher"],
        "targets": _targets(config, splits.train, teacher, side, cache, device, precision),
        "training": epochs * (arms * cost.seconds(pictures, validation, area) + taught * pictures * asking),
        "test": len(splits.test) * arms * ruler["student"] + LATENCY_TRIALS * max(ruler.values()),
    }
    return {
        "seconds": float(sum(stages.values())),
        "stages": {name: float(seconds) for name, seconds in stages.items()},
        "epochs": epochs,
        "images_per_second": round(1 / (area * cost.picture + asking), 1),
    }


def steady(work: Callable[[], object]) -> float:
    """The median of the seconds that ``work`` takes. Each of them stands for thousands of pictures: a moment in which the
    browser had the core would become a minute."""
    work()
    times: list[float] = []
    while len(times) < LEAST or (len(times) < MOST and sum(times) < SECONDS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def at_once(size: tuple[int, int]) -> int:
    """How many pictures of this size are measured in a batch: of small ones as many as a run takes, for threads wait for
    each other in every operation, however few pictures it is for."""
    return int(np.clip(FEW * 224 * 224 / np.prod(size), FEW, SCORING_BATCH))


def _per_picture(model: tuple[Any, Any], dataset: Any, device: Any) -> float:
    """Seconds of the ruler for a picture: decoding, the processor, the model in float32."""
    few = dataset.select(range(min(at_once(read_normalization(model[1]).size), len(dataset))))
    return steady(lambda: score(*model, few, device)) / len(few)


def _is_scored(teacher: Any, dataset: Any, cache: Path) -> bool:
    """Whether the teacher's answers to a split are kept."""
    return scores_file(f"{teacher.key()}-{fingerprint(dataset)}", cache).exists()


def _decoding(dataset: Any, side: int, cache: Path) -> float:
    """Seconds until a split is decoded; none where it is."""
    if (pixels_folder(fingerprint(dataset), side, cache) / "pixels.npy").exists():
        return 0.0
    few = Squeezed(dataset.select(range(min(FEW, len(dataset)))), side)
    return (
        steady(lambda: [few[index] for index in range(len(few))])
        / len(few)
        * len(dataset)
        / max(1, decoding_processes())
    )


def _targets(
    config: DistillConfig, train: Any, teacher: Any, side: int, cache: Path, device: Any, precision: str
) -> float:
    """Seconds until the teacher has answered for every view that is not kept yet."""
    if config.targets == "online" or teacher is None:
        return 0.0
    precision = pick_precision(config.precision, device, teacher.model, teacher.normalization.size, cache)
    batch = at_once(teacher.normalization.size)
    seconds = batch_seconds(teacher, teacher.normalization.size, device, precision, batch, rounds=3) / batch
    views = Views(fingerprint(train), len(train), config.crop_area)
    folder = targets_folder(teacher, views, (len(train), 3, side, side), cache, device, precision)
    missing = [view for view in range(views_of(config)) if not (folder / f"view-{view}.npy").exists()]
    return len(missing) * len(train) * seconds
