"""What a run trains with: its pictures, both models and the teacher's answers, all made before the first step.

Nothing heavy is imported until a run has its device: one that waits for its turn should be small.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kd import limits
from kd.config import NO_TEACHER, DistillConfig
from kd.runs.process import StopAsked
from kd.runs.run import Run, run_of

if TYPE_CHECKING:
    import numpy as np
    import torch

    from kd.data.splits import Pixels, Splits, Views
    from kd.models.teacher import Student, Teacher
    from kd.training.targets import Targets
    from kd.training.throughput import EpochCost

PROGRESS_SECONDS = 0.5
GROWTH = 16
"""An input that grows does so in steps of so many pixels."""
MANY_EPOCHS = 300
"""With more such an input is, on the average, as large."""
PACE_SHARE = 0.02
"""About so much of a run's minutes goes to finding how many epochs fit into them, before they begin."""


@dataclass(frozen=True)
class Arm:
    """One training of a run: a seed, with the teacher (``distilled``) or without (``baseline``), all else the same. It
    is the ``nth`` ``of`` so many."""

    seed: int
    name: str
    nth: int
    of: int

    def folder(self, run: Run) -> Path:
        """Where the arm's student, its test logits (``test.npy``) and its ``scores.json`` are kept."""
        return run.path / "arms" / f"{self.name}-{self.seed}"


def arms_of(config: DistillConfig) -> list[Arm]:
    """What a run trains, in order. The run's own student is the first arm's, until a later seed's is
    better on validation."""
    names = ("distilled", "baseline") if config.baseline == "yes" else ("distilled",)
    pairs = [(config.seed + trial, name) for trial in range(config.trials) for name in names]
    return [Arm(*pair, nth, len(pairs)) for nth, pair in enumerate(pairs, start=1)]


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
    arm: Arm
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
    from kd.data import duplicates
    from kd.data import splits as data
    from kd.models import teacher as models
    from kd.training.labels import check_known, labelled_by, taught_alone
    from kd.training.losses import check_classes

    config = run.config()
    device = models.pick_device(config.device)
    cache = data.cache_folder(run.path.parent, config.dataset)
    splits = duplicates.one_side(data.load_splits(config), config, cache, progress.phase)
    short, long = data.typical_size(splits.train)
    teacher, said = None, []
    if config.teacher != NO_TEACHER:
        counts = splits.counts("train")
        teacher, said = models.load_teacher(config.teacher, splits.classes, config.label_map, counts)
        check_known(splits, teacher, config.baseline == "yes")
        said += seen_before(config, splits)
    if not splits.labelled:
        splits, config = taught_alone(config, splits, teacher)
    healing = config.heal == "yes"
    student = models.load_student(config.student, splits.classes, config.image_size, short, config.seed, healing)
    limits.check_pictures(sum(splits.sizes().values()), len(splits.classes))
    if teacher:
        if teacher.known is None:
            said += check_classes(config.method, len(splits.classes))
        else:
            said += check_classes(config.method, int(teacher.known.sum()), "The teacher knows")
    side = pixel_side(teacher, student, long)
    with threads(device, student):
        precision = models.pick_precision(config.precision, device, student.model, student.pipeline.size, cache)
        config = with_epochs(run, config, teacher, student, side, device, precision, splits, progress)
    if config.start_size:
        models.check_size(config.student, student, sizes_of(config, student.pipeline.size)(0))
    limits.check_steps(config.epochs, len(splits.train), config.batch_size, len(arms_of(config)))

    train, validation = load_both(run, splits, side, cache, progress)
    tell_models(run, config, teacher, student, device, precision, said)
    views = data.Views(train.fingerprint, len(train.labels), config.crop_area)
    validation_logits = targets = None
    if teacher:
        validation_logits = check_teacher(run, teacher, splits, validation, cache, device, progress)
        targets = load_all_targets(run, config, teacher, train, views, cache, device, progress)
    if not splits.labelled:
        whole = targets or ask_teacher(run, config, 1, teacher, train, views, cache, device, progress)
        train, validation = labelled_by(whole.logits[0], train), labelled_by(validation_logits, validation)
    arm = arms_of(config)[0]
    return Work(
        config, arm, device, precision, cache, progress, splits, teacher, student, train, validation, validation_logits, views,
        targets,
    )  # fmt: skip


def seen_before(config: DistillConfig, splits: "Splits") -> list[str]:
    """A warning where the teacher is another run's student, from the same dataset cut in another way."""
    from kd.data.splits import fingerprint

    made = run_of(config.teacher)
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


def at_arm(work: Work, arm: Arm) -> Work:
    """The same work for another arm: a student with the arm's weights."""
    if arm == work.arm:
        return work
    return dataclasses.replace(work, arm=arm, student=fresh_student(work, arm))


def fresh_student(work: Work, arm: Arm) -> "Student":
    """The run's student with the weights that an arm begins with."""
    from kd.models.teacher import load_student

    config, side = work.config, work.student.pipeline.size[0]
    asked = config.image_size if work.student.pretrained else side  # a pretrained one's processor stays as it is
    return load_student(config.student, work.splits.classes, asked, side, arm.seed, config.heal == "yes")


@contextmanager
def threads(device: "torch.device", student: "Student") -> Iterator[None]:
    """The number of threads that suits the student, while it trains."""
    import torch

    from kd.models.teacher import pick_threads

    before = torch.get_num_threads()
    torch.set_num_threads(pick_threads(max(student.pipeline.size)) if device.type == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pixel_side(teacher: "Teacher | None", student: "Student", longest: int) -> int:
    """The side in pixels at which pictures are kept: a little over the larger of the two inputs, so that crops of three
    quarters of a picture need not be enlarged, and never over the pictures' own."""
    sizes = [model.pipeline.size for model in (teacher, student) if model]
    return min(longest, round(1.15 * max(map(max, sizes))))


def views_of(config: DistillConfig) -> int:
    """How many views of each picture are trained on, in turn. With no answers to keep each epoch has its own; one view is
    the whole picture in any case."""
    return config.epochs if config.targets == "online" and config.views > 1 else min(config.views, config.epochs)


def sizes_of(config: DistillConfig, full: tuple[int, int]) -> Callable[[int], tuple[int, int]]:
    """The epoch, from 0 on -> the student's input: it grows evenly from ``start_size`` in steps of ``GROWTH`` pixels over
    the first two thirds (progressive resizing; Tan and Le 2021, arXiv:2104.00298, section 4). The last is always full."""

    def size(epoch: int) -> tuple[int, int]:
        grown = 1.5 * epoch / config.epochs
        if config.start_size is None or grown >= 1 or epoch == config.epochs - 1:
            return full
        now = (config.start_size + (side - config.start_size) * grown for side in full)
        return tuple(min(side, round(pixels / GROWTH) * GROWTH) for side, pixels in zip(full, now, strict=True))

    return size


def mean_area(config: DistillConfig, full: tuple[int, int]) -> float:
    """The pixels of the student's input, on the average over the epochs, as a share of the ``full`` one's."""
    config = dataclasses.replace(config, epochs=min(config.epochs, MANY_EPOCHS))
    size = sizes_of(config, full)
    return sum(math.prod(size(epoch)) for epoch in range(config.epochs)) / config.epochs / math.prod(full)


def fitting_epochs(
    config: DistillConfig, full: tuple[int, int], cost: "EpochCost", pictures: int, validation: int, asking: float = 0.0
) -> int:
    """The epochs that fit into ``config.minutes``. ``asking``: the seconds a picture of a teacher that is asked in every
    step."""
    area = mean_area(dataclasses.replace(config, epochs=MANY_EPOCHS), full)
    return max(1, round(config.minutes * 60 / cost.seconds(pictures, validation, area, asking)))


def online_seconds(config: DistillConfig, teacher: "Teacher | None", device: "torch.device", precision: str) -> float:
    """Seconds a picture of a teacher that is asked in every step; none of one whose answers are kept."""
    if config.targets != "online" or teacher is None:
        return 0.0
    from kd.models.teacher import batch_seconds

    return (
        batch_seconds(teacher, teacher.pipeline.size, device, precision, config.batch_size, rounds=3)
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
        from kd.training.throughput import measure

        full = student.pipeline.size
        seconds = PACE_SHARE * 60 * config.minutes
        cost = measure(student, config, side, device, precision, run.path, seconds, progress.phase("pace"))
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
    from kd.evaluation.compare import cost

    run.append(
        "models",
        teacher=teacher and {"name": config.teacher, **cost(teacher.model, teacher.pipeline.size)},
        student={"name": config.student, **cost(student.model, student.pipeline.size)},
        image_size=list(student.pipeline.size),
        healed=student.healed,
        warnings=warnings,
        device=str(device),
        precision=precision,
    )


def load_both(run: Run, splits: "Splits", side: int, cache: Path, progress: Progress) -> tuple["Pixels", "Pixels"]:
    """Training and validation pictures, decoded; the ``data`` event."""
    from kd.data.splits import fingerprint, load_pixels

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

    from kd.evaluation.compare import quality, score
    from kd.evaluation.metrics import guessing
    from kd.training.labels import check_variety, taught
    from kd.training.targets import load_scores

    def ask() -> np.ndarray:
        return score(teacher, teacher.processor, splits.validation, device, progress.phase("teacher check")).logits

    logits = load_scores(f"{teacher.key()}-{validation.fingerprint}", cache, len(validation.labels), ask)
    if not splits.labelled:
        run.append("teacher", warnings=check_variety(logits, splits.classes))
        return logits
    rows = taught(teacher, validation.labels)
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
    from kd.models.teacher import pick_precision
    from kd.training.targets import load_targets

    precision = pick_precision(config.precision, device, teacher.model, teacher.pipeline.size, cache)
    targets = load_targets(teacher, train, views, count, cache, device, precision, progress.phase("targets"))
    run.append("targets", cache=targets.cache, seconds=round(targets.seconds, 2), precision=precision)
    return targets


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in metrics.items()}
