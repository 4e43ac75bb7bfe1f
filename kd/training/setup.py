"""What a run trains with: its pictures, both models and the teacher's answers, all made before the first step.

Nothing heavy is imported until a run has its device: one that waits for its turn should be small.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kd import limits
from kd.config import NO_TEACHER, DistillConfig
from kd.runs.queue import StopAsked
from kd.runs.run import Run
from kd.runs.store import existing_teacher, run_of_teacher
from kd.training.plan import Trial, fitting_epochs, mean_area, pixel_side, sizes_of, trials_of, views_of

if TYPE_CHECKING:
    import numpy as np
    import torch

    from kd.data.pixels import Pixels
    from kd.data.splits import Splits
    from kd.data.views import Views
    from kd.models.student import Student
    from kd.models.teacher import Teacher
    from kd.training.targets import Targets

PROGRESS_SECONDS = 0.5

PACE_SHARE = 0.02
"""About so much of a run's minutes goes to finding how many epochs fit into them, before they begin."""


class Progress:
    """Turns calls with (done, of) into ``progress`` events, twice a second at most, and obeys ``STOP``."""

    def __init__(self, run: Run) -> None:
        self.run, self.told = run, 0.0

    def phase(self, name: str) -> Callable[[int, int], None]:
        def tell(done: int, of: int) -> None:
            if time.perf_counter() - self.told < PROGRESS_SECONDS:
                return
            self.told = time.perf_counter()
            if self.run.stop_asked():
                raise StopAsked
            self.run.append("progress", phase=name, done=done, of=of)

        return tell


@dataclass
class Work:
    """What a run trains with: all that is known before the first step."""

    config: DistillConfig
    arm: Trial
    device: "torch.device"
    precision: str
    cache: Path
    progress: Progress
    splits: "Splits"
    teacher: "Teacher | None"
    """``None``: the labels alone."""
    student: "Student"
    train: "Pixels"
    validation: "Pixels"
    validation_logits: "np.ndarray | None"
    """The teacher's, ``[N, C]``."""
    views: "Views"
    targets: "Targets | None"
    """``None``: the teacher, if there is one, answers in every step."""


def prepare(run: Run, progress: Progress) -> Work:
    """Pictures, models (their labels checked before a second is spent) and targets; an event for each."""
    from kd.data.duplicates import without_duplicates
    from kd.data.images import typical_size
    from kd.data.splits import load_splits
    from kd.data.views import Views
    from kd.models.device import pick_device, pick_precision
    from kd.models.student import check_input_size, load_student
    from kd.models.teacher import load_teacher
    from kd.system.files import cache_folder
    from kd.training.labels import check_known, labels_from_teacher, with_teacher_labels
    from kd.training.losses import check_classes

    config = run.config()
    device = pick_device(config.device)
    cache = cache_folder(run.path.parent, config.dataset)
    splits = without_duplicates(load_splits(config), config, cache, progress.phase)
    short, long = typical_size(splits.train)
    teacher, said = None, []
    if config.teacher != NO_TEACHER:
        counts = splits.counts("train")
        teacher, said = load_teacher(existing_teacher(config.teacher), splits.classes, config.label_map, counts)
        check_known(splits, teacher, config.baseline == "yes")
        said += seen_before(config, splits)
    if not splits.labelled:
        splits, config = labels_from_teacher(config, splits, teacher)
    healing = config.heal == "yes"
    student = load_student(config.student, splits.classes, config.image_size, short, config.seed, healing)
    limits.check_pictures(sum(splits.sizes().values()), len(splits.classes))
    if teacher:
        if teacher.known is None:
            said += check_classes(config.method, len(splits.classes))
        else:
            said += check_classes(config.method, int(teacher.known.sum()), "The teacher knows")
    side = pixel_side(teacher, student, long)
    with threads(device, student):
        precision = pick_precision(config.precision, device, student.model, student.normalization.size, cache)
        config = with_epochs(run, config, teacher, student, side, device, precision, splits, progress)
    if config.start_size:
        check_input_size(config.student, student, sizes_of(config, student.normalization.size)(0))
    limits.check_steps(config.epochs, len(splits.train), config.batch_size, len(trials_of(config)))

    train, validation = load_both(run, splits, side, cache, progress)
    tell_models(run, config, teacher, student, device, precision, said)
    views = Views(train.fingerprint, len(train.labels), config.crop_area)
    validation_logits = targets = None
    if teacher:
        validation_logits = check_teacher(run, teacher, splits, validation, cache, device, progress)
        targets = load_all_targets(run, config, teacher, train, views, cache, device, progress)
    if not splits.labelled:
        whole = targets or ask_teacher(run, config, 1, teacher, train, views, cache, device, progress)
        train, validation = (
            with_teacher_labels(whole.logits[0], train),
            with_teacher_labels(validation_logits, validation),
        )
    arm = trials_of(config)[0]
    return Work(
        config, arm, device, precision, cache, progress, splits, teacher, student, train, validation, validation_logits, views,
        targets,
    )  # fmt: skip


def seen_before(config: DistillConfig, splits: "Splits") -> list[str]:
    """A warning where the teacher is another run's student, from the same dataset cut in another way."""
    from kd.data.pixels import fingerprint

    made = run_of_teacher(config.teacher)
    if made is None or made.settings()["config"].get("dataset") != config.dataset:
        return []
    theirs = made.last("data") or {}
    ours = {f"{name}_pictures": fingerprint(getattr(splits, name)) for name in ("validation", "test")}
    if all(theirs.get(name, pictures) == pictures for name, pictures in ours.items()):
        return []
    return [
        f"The teacher is the student of run {made.id}, from the same dataset cut in another way: it has learned from some of "
        "the pictures that are validation or test here, and looks better on them than it is. Cut it as that run did "
        "(--split-seed, --test-fraction, --validation-fraction), or make the teacher again."
    ]


def for_trial(work: Work, arm: Trial) -> Work:
    """The same work for another arm: a student with the arm's weights."""
    if arm == work.arm:
        return work
    return dataclasses.replace(work, arm=arm, student=fresh_student(work, arm))


def fresh_student(work: Work, arm: Trial) -> "Student":
    """The run's student with the weights that an arm begins with."""
    from kd.models.student import load_student

    config, side = work.config, work.student.normalization.size[0]
    asked = config.image_size if work.student.pretrained else side  # a pretrained one's processor stays as it is
    return load_student(config.student, work.splits.classes, asked, side, arm.seed, config.heal == "yes")


@contextmanager
def threads(device: "torch.device", student: "Student") -> Iterator[None]:
    """The number of threads that suits the student, while it trains."""
    import torch

    from kd.models.device import pick_threads

    before = torch.get_num_threads()
    torch.set_num_threads(pick_threads(max(student.normalization.size)) if device.type == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def online_seconds(config: DistillConfig, teacher: "Teacher | None", device: "torch.device", precision: str) -> float:
    """Seconds a picture of a teacher that is asked in every step; none of one whose answers are kept."""
    if config.targets != "online" or teacher is None:
        return 0.0
    from kd.models.device import batch_seconds

    return (
        batch_seconds(teacher, teacher.normalization.size, device, precision, config.batch_size, rounds=3)
        / config.batch_size
    )


def with_epochs(
    run: Run,
    config: DistillConfig,
    teacher: "Teacher | None",
    student: "Student",
    side: int,
    device: "torch.device",
    precision: str,
    splits: "Splits",
    progress: Progress,
) -> DistillConfig:
    """``config`` with the epochs that fit into its ``minutes``, if it has any, on pictures of ``side`` pixels; the ``plan``
    event. A resumed run keeps to its plan."""
    if config.minutes is None:
        return config
    plan = run.last("plan")
    if plan is None:
        from kd.training.throughput import measure_throughput

        full = student.normalization.size
        seconds = PACE_SHARE * 60 * config.minutes
        cost = measure_throughput(student, config, side, device, precision, run.path, seconds, progress.phase("pace"))
        asking = online_seconds(config, teacher, device, precision)
        epochs = fitting_epochs(config, full, cost, len(splits.train), len(splits.validation), asking)
        area = mean_area(dataclasses.replace(config, epochs=epochs), full)
        speed = 1 / (area * cost.picture + asking)
        run.append("plan", minutes=config.minutes, images_per_second=round(speed, 1), epochs=epochs)
        plan = run.last("plan")
    return dataclasses.replace(config, epochs=plan["epochs"])


def tell_models(
    run: Run,
    config: DistillConfig,
    teacher: "Teacher | None",
    student: "Student",
    device: "torch.device",
    precision: str,
    warnings: list[str],
) -> None:
    """The ``models`` event: what each costs, what was healed in the student, on what and how it will train."""
    from kd.evaluation.latency import model_cost

    run.append(
        "models",
        teacher=teacher and {"name": config.teacher, **model_cost(teacher.model, teacher.normalization.size)},
        student={"name": config.student, **model_cost(student.model, student.normalization.size)},
        image_size=list(student.normalization.size),
        healed=student.healed,
        warnings=warnings,
        device=str(device),
        precision=precision,
    )


def load_both(run: Run, splits: "Splits", side: int, cache: Path, progress: Progress) -> tuple["Pixels", "Pixels"]:
    """Training and validation pictures, decoded; the ``data`` event."""
    from kd.data.pixels import fingerprint, load_pixels

    started = time.perf_counter()
    train = load_pixels(splits.train, side, cache, progress.phase("train pixels"))
    validation = load_pixels(splits.validation, side, cache, progress.phase("validation pixels"))
    run.append(
        "data",
        **splits.sizes(),
        classes=splits.classes,
        labels=splits.labels,
        validation_pictures=fingerprint(splits.validation),
        test_pictures=fingerprint(splits.test),
        warnings=[*splits.warnings, *train.warnings, *train.unreadable, *validation.unreadable],
        seconds=round(time.perf_counter() - started, 2),
        cache="hit" if train.cached and validation.cached else "miss",
    )
    return train, validation


def check_teacher(
    run: Run,
    teacher: "Teacher",
    splits: "Splits",
    validation: "Pixels",
    cache: Path,
    device: "torch.device",
    progress: Progress,
) -> "np.ndarray":
    """Measure the teacher on the validation pictures before training and say it (``teacher``); return its logits
    ``[N, C]`` on those that can be read."""
    import numpy as np

    from kd.evaluation.metrics import guessing
    from kd.evaluation.scoring import load_scores, quality, score
    from kd.training.labels import check_variety, known_rows

    def ask() -> np.ndarray:
        return score(teacher, teacher.processor, splits.validation, device, progress.phase("teacher check")).logits

    logits = load_scores(f"{teacher.key()}-{validation.fingerprint}", cache, len(validation.labels), ask)
    if not splits.labelled:
        run.append("teacher", warnings=check_variety(logits, splits.classes))
        return logits
    rows = known_rows(teacher, validation.labels)
    labels, right = validation.labels[rows], quality(logits[rows], validation.labels[rows])["accuracy"]
    chance = np.bincount(labels).max() / len(labels)
    warnings = []
    if right <= guessing(labels):
        warnings.append(
            f"The teacher is right on {right:.1%} of the validation pictures, no better than always saying "
            f"the commonest class ({chance:.1%}). Are these its classes, in its order?"
        )
    run.append("teacher", **rounded(quality(logits, validation.labels)), warnings=warnings)
    return logits


def load_all_targets(
    run: Run,
    config: DistillConfig,
    teacher: "Teacher",
    train: "Pixels",
    views: "Views",
    cache: Path,
    device: "torch.device",
    progress: Progress,
) -> "Targets | None":
    """The teacher's answers to every view that will be trained on; the ``targets`` event."""
    teacher.to(device)
    if config.targets == "online":
        run.append("targets", cache="online", seconds=0)
        return None
    return ask_teacher(run, config, views_of(config), teacher, train, views, cache, device, progress)


def ask_teacher(
    run: Run,
    config: DistillConfig,
    count: int,
    teacher: "Teacher",
    train: "Pixels",
    views: "Views",
    cache: Path,
    device: "torch.device",
    progress: Progress,
) -> "Targets":
    """The teacher's answers to the first ``count`` views, kept or computed; the ``targets`` event."""
    from kd.models.device import pick_precision
    from kd.training.targets import load_targets

    precision = pick_precision(config.precision, device, teacher.model, teacher.normalization.size, cache)
    targets = load_targets(teacher, train, views, count, cache, device, precision, progress.phase("targets"))
    run.append("targets", cache=targets.cache, seconds=round(targets.seconds, 2), precision=precision)
    return targets


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in metrics.items()}
