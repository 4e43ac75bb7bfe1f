"""Prepare what a run trains with: its images, both models and the teacher's logits, all made before the first step.

torch is imported only once the run has its device, so that queued runs use little memory.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd import limits
from kd.config import NO_TEACHER, PRETRAINED, SMALL_SIDE, STUDENT_NAMES, DistillConfig
from kd.data.views import Frame
from kd.errors import UserError
from kd.runs.pieces import PauseAsked, Piece
from kd.runs.queue import StopAsked
from kd.runs.run import Run
from kd.runs.store import existing_teacher, run_of_teacher
from kd.system.processes import may_have_children
from kd.training.distributed import ALONE, Ranks
from kd.training.plan import Plan, fitting_epochs, is_trained, mean_area, pixel_size, sizes_of, trials_of

if TYPE_CHECKING:
    import numpy as np
    import torch

    from kd.data.pixels import Pixels
    from kd.data.splits import Splits
    from kd.data.views import Views
    from kd.models.device import Compute
    from kd.models.student import Student
    from kd.models.teacher import Teacher
    from kd.training.targets import Targets

# At most one ``progress`` event in this time.
PROGRESS_SECONDS = 0.5
# The first of several processes tells the others its plan under this name, once all is prepared but the targets.
PREPARED = "plan"
# Of a run's minutes, this share goes to measuring how many epochs fit into them.
MEASURING_SHARE = 0.02


@dataclass(frozen=True)
class Job:
    """A run at work: its folder, what was asked, the device it computes on, where pixels and targets are kept; which
    ``piece`` of it this is, where its GPU is lent for a while only; and this process's place among those that work on it."""

    run: Run
    config: DistillConfig
    device: "torch.device"
    cache: Path
    piece: Piece | None = None
    ranks: Ranks = ALONE

    def tell(self, event: str, **data: Any) -> None:
        """Write an event."""
        self.run.append(event, **data)

    def progress(self, phase: str) -> Callable[[int, int], None]:
        """Return a function of (done, of) that writes ``progress`` events, two a second at most, and obeys ``STOP``.

        Where the GPU is lent it ends the piece while there is still the time that passed between two of its calls.
        """
        told, longest = -math.inf, 0.0

        def tell(done: int, of: int) -> None:
            nonlocal told, longest
            passed = time.perf_counter() - told
            if passed < PROGRESS_SECONDS:
                return
            longest = max(longest, passed if told > 0 else 0.0)
            told = time.perf_counter()
            if self.run.stop_asked():
                raise StopAsked
            self.tell("progress", phase=phase, done=done, of=of)
            if self.piece and self.piece.is_over(longest):
                raise PauseAsked("time")

        return tell

    def needs_gpu(self, plan: Plan) -> None:
        """End this piece of a run here where the next one has the GPU, and there is something to train."""
        if self.piece and not self.piece.has_gpu and not is_trained(self.run, plan):
            raise PauseAsked("gpu")

    def needs_no_gpu(self) -> None:
        """End this piece of a run here where it has the GPU, which is not needed any more."""
        if self.piece and self.piece.has_gpu:
            raise PauseAsked("cpu")


@dataclass(frozen=True)
class DecodedSplits:
    """The training and validation images, decoded, and the views of the training images."""

    train: "Pixels"
    validation: "Pixels"
    views: "Views"


def start_job(run: Run, piece: Piece | None = None, ranks: Ranks = ALONE) -> Job:
    """Return the job of a run, or of a piece of it, whose turn it is. Raises ``UserError`` where its device is not there."""
    from kd.models.device import pick_device
    from kd.system.files import cache_folder

    config = run.config()
    return Job(run, config, pick_device(config.device), cache_folder(run.path.parent, config.dataset), piece, ranks)


def load_job_splits(job: Job) -> "Splits":
    """Load the three splits, without training images that are in validation or test as well."""
    from kd.data.duplicates import without_duplicates
    from kd.data.splits import load_splits

    splits = load_splits(job.config)
    check_labels(job.config, len(splits.classes))
    return without_duplicates(splits, job.config, job.cache, job.progress)


def check_labels(config: DistillConfig, classes: int) -> None:
    """Raise ``UserError`` where fewer labels are to be kept than there are classes."""
    if config.labels and config.labels < classes:
        raise UserError(
            f"labels is {config.labels}, and there are {classes} classes: every class needs at least one training picture that "
            f"keeps its label. Choose {classes} or more.",
            setting="labels",
        )


def load_job_teacher(config: DistillConfig, splits: "Splits") -> "Teacher | None":
    """Load the teacher, its outputs in the order of the dataset's classes; ``None`` where the labels alone teach."""
    from kd.training.labels import check_known

    teacher = open_teacher(config, splits, splits.counts("train"))
    if teacher:
        check_known(splits, teacher, config.baseline == "yes")
    return teacher


def open_teacher(config: DistillConfig, splits: "Splits", counts: list[int] | None) -> "Teacher | None":
    """Load the teacher as ``load_job_teacher`` does, for splits of which not all images are known yet.

    ``counts`` are the numbers of training images of each class, where they are known.
    """
    from kd.models.framing import OWN_SIZE
    from kd.models.teacher import load_teacher

    if config.teacher == NO_TEACHER:
        return None
    teacher = load_teacher(existing_teacher(config.teacher), splits.classes, config.label_map, counts)
    if teacher.framing == OWN_SIZE:
        teacher.set_size(common_size(splits, "The teacher"))
    return teacher


def with_classes(splits: "Splits", teacher: "Teacher | None", config: DistillConfig) -> "Splits":
    """Return splits whose images have no labels with the teacher's classes; others as they are."""
    from kd.training.labels import with_teacher_classes

    return splits if splits.labelled else with_teacher_classes(splits, teacher, config)


def common_size(splits: "Splits", whose: str) -> tuple[int, int]:
    """Return the height and width that all images of all splits have. Raises ``UserError`` where they differ."""
    from kd.data.images import row_size
    from kd.data.streamed import looked_at

    parts = (splits.train, splits.validation, splits.test)
    found = {size for part in parts for row in looked_at(part) if (size := row_size(row)) is not None}
    if len(found) != 1:
        shown = ", ".join(f"{width} x {height}" for width, height in sorted(found)[:3])
        raise UserError(
            f"{whose} takes pictures at their own size (do_resize is false in its preprocessor_config.json), and the pictures "
            f"have {len(found)} sizes ({shown} ...). Set do_resize to true and a size there, or give pictures of one size."
        )
    ((width, height),) = found
    return height, width


def frame_of(teacher: "Teacher | None", student: "Student", size: tuple[int, int]) -> Frame:
    """Return what is kept of each image, at ``size``: what the teacher's processor shows it, or else the student's."""
    relative_to, height, width = teacher.framing if teacher else student.framing
    return Frame(size, "image" if relative_to == "own size" else relative_to, height, width)


def frame_size(splits: "Splits", teacher: "Teacher | None", student: "Student") -> tuple[int, int]:
    """Return the height and width in pixels at which images are kept decoded, for these models."""
    from kd.data.images import typical_size

    sizes = [model.normalization.size for model in (teacher, student) if model]
    return pixel_size(sizes, typical_size(splits.train)[1])


def build_student(config: DistillConfig, splits: "Splits", seed: int, teacher: "Teacher | None" = None) -> "Student":
    """Build the student with the weights that a training with this seed begins with.

    Its processor shows it the same part of an image as the teacher's does.
    """
    from kd.data.images import typical_size
    from kd.models.framing import OWN_SIZE, WHOLE
    from kd.models.student import check_batch_size, load_student, with_framing
    from kd.models.zoo import student_side

    side = config.image_size
    if config.student in STUDENT_NAMES:  # a pretrained student's own processor says its size
        side = student_side(config.student, side, typical_size(splits.train)[0])
    student = load_student(config.student, splits.classes, side, seed, config.heal == "yes")
    check_batch_size(config.student, student, config.batch_size)
    if teacher is None and student.framing not in (OWN_SIZE, None):
        return student
    size = student.normalization.size
    if student.framing == OWN_SIZE:
        size = common_size(splits, "The student")
    framing = WHOLE if teacher is None or teacher.framing == OWN_SIZE else teacher.framing
    return with_framing(student, size, framing)


def make_plan(job: Job, splits: "Splits", teacher: "Teacher | None", student: "Student") -> Plan:
    """Decide what the run will do and write it as the ``plan`` event; a resumed run keeps to its plan. Of several processes
    the first decides for all, and this is where the others wait until it has prepared everything.

    Raises ``UserError`` for what exceeds the limits, and for a method or an input size that does not fit.
    """
    from kd.models.device import pick_precision
    from kd.models.student import check_input_size

    if not job.ranks.is_first:
        return job.ranks.wait(PREPARED)
    config, size = job.config, student.normalization.size
    limits.check_pictures(sum(splits.sizes().values()), len(splits.classes))
    if not splits.labelled:
        config = dataclasses.replace(config, lambda_=1.0)
    warnings = plan_warnings(config, splits, teacher)
    frame = frame_of(teacher, student, frame_size(splits, teacher, student))
    theirs = "fp32"
    if teacher:
        theirs = pick_precision(config.precision, job.device, teacher.model, teacher.normalization.size, job.cache)
    at_once = trainings_at_once(job.device, config) if job.ranks.count == 1 else 1
    with training_threads(job.device, size, config.threads):
        precision = pick_precision(config.precision, job.device, student.model, size, job.cache)
        trials = tuple(trials_of(config))
        plan = Plan(config, trials, splits.classes, size, frame, precision, theirs, warnings, at_once)
        config = with_epochs(job, plan, splits, teacher, student)
    if config.start_size:
        check_input_size(config.student, student, sizes_of(config, size)(0))
    limits.check_steps(config.epochs, len(splits.train), config.batch_size, len(plan.trials))
    return dataclasses.replace(plan, config=config)


def plan_warnings(config: DistillConfig, splits: "Splits", teacher: "Teacher | None") -> list[str]:
    """List what the user should know of this teacher with these images and this method."""
    from kd.training.losses import check_classes

    if teacher is None:
        return []
    known = None if teacher.known is None else int(teacher.known.sum())
    few = (
        check_classes(config.method, len(splits.classes))
        if known is None
        else check_classes(config.method, known, "The teacher knows")
    )
    return [*teacher.warnings, *seen_before(config, splits), *few, *pretrained_advice(config, splits)]


def pretrained_advice(config: DistillConfig, splits: "Splits") -> list[str]:
    """Name the student's pretrained twin where the images are photos: small images have little in common with ImageNet's."""
    from kd.data.images import typical_size

    if config.student not in PRETRAINED or config.recipe != "scratch" or typical_size(splits.train)[0] <= SMALL_SIDE:
        return []
    return [
        f"The student {config.student} begins with random weights. From pretrained ones it learns far more in the same time: "
        f"--student {PRETRAINED[config.student]}, or a folder with such a model."
    ]


def seen_before(config: DistillConfig, splits: "Splits") -> list[str]:
    """Warn where the teacher is another run's student, from the same dataset cut in another way."""
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


def with_epochs(job: Job, plan: Plan, splits: "Splits", teacher: "Teacher | None", student: "Student") -> DistillConfig:
    """Return the effective configuration: that of ``plan`` with the epochs that fit into its minutes, if it has any.

    It is decided once, and kept in the ``plan`` event.
    """
    from kd.models.device import Compute

    config, made = plan.config, job.run.last("plan")
    if made is None and config.minutes is not None and job.piece and not job.piece.has_gpu:
        return config  # what fits into the minutes is measured where it is trained
    if made is None:
        speed = {}
        if config.minutes is not None:
            from kd.training.throughput import Clock, measure_throughput

            compute = Compute(job.device, plan.precision)
            clock = Clock(MEASURING_SHARE * 60 * config.minutes, job.progress("throughput"))
            cost = dataclasses.replace(
                measure_throughput(student, config, plan.frame.size, compute, clock),
                images=len(splits.train),
                validation=len(splits.validation),
                teacher=online_seconds(config, teacher, Compute(job.device, plan.teacher_precision)),
            )
            config = dataclasses.replace(config, epochs=fitting_epochs(config, plan.input_size, cost))
            throughput = cost.images_per_second(mean_area(config, plan.input_size))
            speed = {"minutes": config.minutes, "images_per_second": round(throughput, 1)}
        job.tell("plan", epochs=config.epochs, **{"lambda": config.lambda_}, **speed)
        made = job.run.last("plan")
    return dataclasses.replace(config, epochs=made["epochs"])


def online_seconds(config: DistillConfig, teacher: "Teacher | None", compute: "Compute") -> float:
    """Return the seconds an image of a teacher that is asked in every step; 0 of one whose logits are kept."""
    if config.targets != "online" or teacher is None:
        return 0.0
    from kd.models.device import batch_seconds

    at_once = config.processes if compute.device.type == "cuda" else 1
    size, batch = teacher.normalization.size, config.batch_size // at_once
    return batch_seconds(teacher, size, compute, batch, rounds=3) / batch / at_once


@contextmanager
def run_threads(job: Job) -> Iterator[None]:
    """Use the number of CPU threads that the run asks for, if it does."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(job.config.threads or before, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def trainings_at_once(device: "torch.device", config: DistillConfig) -> int:
    """Return how many of a run's trainings go on at the same time: where each is given one thread of a CPU, as many as there
    are threads. It is one on a GPU, where no process can be forked, with more threads, which no forked one can begin, and where
    several processes train together."""
    import torch

    one = config.threads != 1 or config.processes > 1 or device.type != "cpu"
    if one or not sys.platform.startswith("linux") or not may_have_children():
        return 1
    return min(torch.get_num_threads(), len(trials_of(config)))


@contextmanager
def training_threads(device: "torch.device", size: tuple[int, int], asked: int | None = None) -> Iterator[None]:
    """Use the number of CPU threads that was asked for, or else suits a student of this input size, while it trains."""
    import torch

    from kd.models.device import pick_threads

    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(min(asked, before) if asked else pick_threads(max(size)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def decode(job: Job, plan: Plan, splits: "Splits") -> DecodedSplits:
    """Decode the training and validation images, or map what an earlier run decoded; the ``data`` event."""
    from kd.data.pixels import fingerprint, load_pixels
    from kd.data.views import Views

    started = time.perf_counter()
    train = load_pixels(splits.train, plan.frame, job.cache, job.progress("train pixels"))
    validation = load_pixels(splits.validation, plan.frame, job.cache, job.progress("validation pixels"))
    train = dataclasses.replace(train, labels=kept_labels(train.labels, len(splits.classes), job.config))
    labelled = int((train.labels >= 0).sum())
    job.tell(
        "data",
        **splits.sizes(),
        **({"labelled": labelled} if splits.labelled and labelled < len(train.labels) else {}),
        classes=splits.classes,
        labels=splits.labels,
        validation_pictures=fingerprint(splits.validation),
        test_pictures=fingerprint(splits.test),
        warnings=[*splits.warnings, *train.warnings, *train.unreadable, *validation.unreadable],
        seconds=round(time.perf_counter() - started, 2),
        cache="hit" if train.cached and validation.cached else "miss",
    )
    return DecodedSplits(train, validation, Views(train.fingerprint, len(train.labels), plan.config.crop_area))


def kept_labels(labels: "np.ndarray", classes: int, config: DistillConfig) -> "np.ndarray":
    """Return the labels ``[N]`` of training images after all but ``config.labels`` of them have become -1.

    Each class keeps its share, at least one. Which images keep theirs depends on the seed of the splits alone, and those
    of a smaller number are among those of a larger one.
    """
    import numpy as np

    wanted = config.labels
    if wanted is None or wanted >= (labels >= 0).sum():
        return labels
    order = np.random.default_rng(config.split_seed).permutation(len(labels))
    place = np.empty(len(labels))  # of an image in its class's order, as a share of that class
    for index in range(classes):
        members = order[labels[order] == index]
        place[members] = np.arange(len(members)) / len(members)
    place[labels < 0] = np.inf
    kept = np.lexsort((order.argsort(), place))[:wanted]
    answer = np.full_like(labels, -1)
    answer[kept] = labels[kept]
    return answer


def tell_models(job: Job, plan: Plan, teacher: "Teacher | None", student: "Student") -> None:
    """Write the ``models`` event: what each costs, what was repaired in the student, on what and how it will train."""
    from kd.evaluation.latency import model_cost

    config = plan.config
    job.tell(
        "models",
        teacher=teacher and {"name": config.teacher, **model_cost(teacher.model, teacher.normalization.size)},
        student={"name": config.student, **model_cost(student.model, plan.input_size)},
        image_size=list(plan.input_size),
        healed=student.repairs,
        warnings=plan.warnings,
        device=str(job.device),
        precision=plan.precision,
        **({"processes": job.ranks.count} if job.ranks.count > 1 else {}),
    )


def teacher_targets(
    job: Job, plan: Plan, splits: "Splits", teacher: "Teacher | None", pixels: DecodedSplits
) -> "Targets":
    """Measure the teacher on the validation images, then ask it for the logits of every view that will be trained on;
    the ``teacher`` and ``targets`` events."""
    from kd.training.targets import Targets

    validation = None if teacher is None else check_teacher(job, splits, teacher, pixels.validation)
    if job.ranks.is_first:
        job.ranks.tell(PREPARED, plan)
    job.needs_gpu(plan)
    if teacher is None:
        return Targets()
    if job.piece and not job.piece.has_gpu:  # all is trained
        asked = [event for event in job.run.events() if event["event"] == "targets"]
        made = max(asked, key=lambda event: event["seconds"])  # the others found them there
        return Targets([], made["seconds"], made["cache"], teacher, validation)
    teacher.to(job.device)
    if plan.config.targets == "online":
        job.tell("targets", cache="online", seconds=0, precision=plan.teacher_precision)
        return Targets(cache="online", teacher=teacher, validation=validation)
    targets = dataclasses.replace(ask_teacher(job, plan, teacher, pixels, plan.views), validation=validation)
    if splits.labelled:
        check_targets(job, targets, pixels)
    return targets


def check_targets(job: Job, targets: "Targets", pixels: DecodedSplits) -> None:
    """Measure the teacher's logits of the whole training images, which its students learn, and warn where they are worse
    than those of validation images by more than chance allows; the ``target_check`` event.

    They should not be: the teacher may even have been trained on these images.
    """
    from kd.evaluation.metrics import is_lower_than_chance_allows
    from kd.evaluation.scoring import quality
    from kd.training.labels import known_rows

    teacher, right, counts = targets.teacher, [], []
    for logits, part in ((targets.logits[0], pixels.train), (targets.validation, pixels.validation)):
        rows = known_rows(teacher, part.labels) & (part.labels >= 0)
        right.append(quality(logits[rows], part.labels[rows])["accuracy"])
        counts.append(int(rows.sum()))
    warnings = []
    if is_lower_than_chance_allows(right, counts):
        warnings.append(
            f"The teacher is right on {right[0]:.1%} of the training pictures, whose answers the student learns, and on "
            f"{right[1]:.1%} of the validation pictures: more than chance explains. Are the training labels right, and do "
            "the training pictures look like the others?"
        )
    job.tell("target_check", accuracy=round(right[0], 5), validation=round(right[1], 5), warnings=warnings)


def check_teacher(job: Job, splits: "Splits", teacher: "Teacher", validation: "Pixels") -> "np.ndarray":
    """Measure the teacher on the validation images before training, write it as the ``teacher`` event, and return its
    logits ``[N, C]`` on those that can be read."""
    import numpy as np

    from kd.evaluation.metrics import chance_level
    from kd.evaluation.scoring import load_scores, quality, score
    from kd.training.labels import check_variety, known_rows

    def ask() -> np.ndarray:
        told = job.progress("teacher check")
        return score(teacher, teacher.processor, splits.validation, job.device, told).logits

    logits = load_scores(f"{teacher.key()}-{validation.fingerprint}", job.cache, len(validation.labels), ask)
    if not splits.labelled:
        job.tell("teacher", warnings=check_variety(logits, splits.classes))
        return logits
    rows = known_rows(teacher, validation.labels)
    labels, right = validation.labels[rows], quality(logits[rows], validation.labels[rows])["accuracy"]
    chance = np.bincount(labels).max() / len(labels)
    warnings = []
    if right <= chance_level(labels):
        warnings.append(
            f"The teacher is right on {right:.1%} of the validation pictures, no better than always saying "
            f"the commonest class ({chance:.1%}). Are these its classes, in its order?"
        )
    job.tell("teacher", **rounded(quality(logits, validation.labels)), warnings=warnings)
    return logits


def ask_teacher(job: Job, plan: Plan, teacher: "Teacher", pixels: DecodedSplits, count: int) -> "Targets":
    """Load or compute the teacher's logits of the first ``count`` views; the ``targets`` event."""
    from kd.models.device import Compute
    from kd.training.targets import TargetCache, load_targets

    cache = TargetCache(teacher, pixels.views, job.cache, Compute(job.device, plan.teacher_precision))
    targets = load_targets(cache, pixels.train, count, job.progress("targets"), job.ranks)
    job.tell("targets", cache=targets.cache, seconds=round(targets.seconds, 2), precision=plan.teacher_precision)
    return targets


def label_pixels(job: Job, plan: Plan, splits: "Splits", pixels: DecodedSplits, targets: "Targets") -> DecodedSplits:
    """Label images that have no labels with the teacher's first choices for the whole image; others stay as they are."""
    from kd.training.labels import label_by_teacher

    if splits.labelled or is_trained(job.run, plan):
        return pixels
    whole = ask_teacher(job, plan, targets.teacher, pixels, 1) if targets.online else targets
    return dataclasses.replace(
        pixels,
        train=label_by_teacher(pixels.train, whole.logits[0]),
        validation=label_by_teacher(pixels.validation, targets.validation),
    )


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    """Round metrics as events and reports have them, to five digits."""
    return {name: round(value, 5) for name, value in metrics.items()}
