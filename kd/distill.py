"""The recipe, top to bottom: the one place to read first.

Nothing heavy is imported until a run has its device: one that waits for its turn should be small.
"""

import dataclasses
import errno
import gc
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd import limits, memory, runs, uploads
from kd.config import NO_TEACHER, DistillConfig
from kd.hub import listening
from kd.launch import StopAsked, busy, device_name, slot
from kd.runs import Run, RunDeleted, RunError, RunTaken

if TYPE_CHECKING:
    import numpy as np
    import torch

    from kd.data import Pixels, Splits, Views
    from kd.losses import Method
    from kd.models import Student, Teacher
    from kd.targets import Targets
    from kd.trainer import ImageDistilTrainer, RunCallback

PROGRESS_SECONDS = 0.5
GROWTH = 16
"""An input that grows does so in steps of so many pixels."""
DISK = {
    errno.ENOSPC: "The disk is full ({place}). Free some space",
    errno.EDQUOT: "Your share of the disk is used up ({place}). Free some space",
    errno.EFBIG: "A file in {place} became larger than this system lets a file be (`ulimit -f`). Raise that limit",
    errno.EROFS: "Nothing can be written to {place}: it is read-only. Make it writable",
}
"""What the system says of a file that cannot be written, in words. By its text: safetensors hands no number on."""
PACKAGES = ("torch", "transformers", "datasets", "accelerate")


def distill(config: DistillConfig | None = None, runs_dir: Path | str | None = None) -> dict[str, Any]:
    """Distil in this process and return the report (``report.json``; the README explains its fields).

    Raises ``RunError`` (or a ``ValueError`` of the configuration) with a message that says what to do.
    """
    folder = Path(runs_dir) if runs_dir else runs.default_folder()
    config = config or DistillConfig.preset("sample")
    owner = runs.local_owner(folder)
    run = runs.create(uploads.resolved(config, folder, owner), folder, owner)
    execute(run)
    report = run.report()
    if report is None:
        raise RunError(f"Run {run.id} was stopped. `python -m kd resume {run.id}` goes on with it.")
    return report


def execute(run: Run, resume: bool = False) -> None:
    """Work on a run until it is closed, its lock and its device's slot held; every ending is an event.

    Raises what went wrong, after the ``failed`` event has said it in words.
    """
    with run.work():
        check_order(run, resume)
        try:
            run.keep_reserve()
            with slot(run, device_name(run.config().device)):
                run.append("resumed" if resume else "started", pid=os.getpid(), oom_kills=memory.kills())
                recipe(run)
        except (StopAsked, KeyboardInterrupt):
            run.close("stopped", message=f"Stopped. `python -m kd resume {run.id}` goes on with it.")
        except (RunDeleted, RunTaken):
            raise
        except BaseException as error:
            run.close("failed", message=in_words(error, run), error=type(error).__name__)
            raise


def check_order(run: Run, resume: bool) -> None:
    """A run is begun once, and resumed only while it is not done. Raises ``RunError``."""
    last = run.last(*runs.LIFECYCLE)
    if last and last["event"] == "done":
        raise RunError(f"Run {run.id} is done; its student is in {run.path / 'student'}.")
    if not resume and last and last["event"] not in ("created", "queued"):
        raise RunError(f"Run {run.id} was begun already. `python -m kd resume {run.id}` goes on with it.")
    run.forget_old_stop()


def in_words(error: BaseException, run: Run) -> str:
    """What a person can do about an error."""
    if not run.path.exists():
        return str(RunDeleted(f"The folder of run {run.id} was deleted while it ran: {run.path}"))
    again, place = (
        f", then `python -m kd resume {run.id}`.",
        (isinstance(error, OSError) and error.filename) or run.path,
    )
    if said := [words for number, words in DISK.items() if os.strerror(number) in str(error)]:
        return said[0].format(place=place) + again
    if shutil.disk_usage(run.path).free < runs.RESERVE_BYTES:  # torch.save says less
        return DISK[errno.ENOSPC].format(place=run.path) + again
    if memory.ran_out(error):
        return f"Out of memory. Choose a smaller batch size, image size or student; or free some memory{again}"
    if "can't start new thread" in str(error):
        return f"The system allows no further thread: memory or processes (`ulimit -u`) are at their limit. Raise it{again}"
    if any(words in str(error) for words in ("PytorchStreamWriter", "iostream error", "unexpected pos")):
        return (
            f"The disk is full, or was when a file in {run.path} was written, or a limit on the size of files is set "
            f"(`ulimit -f`). Mend it{again}"
        )
    if isinstance(error, RunError | ValueError) and not isinstance(error, UnicodeError):
        return str(error)
    return f"{type(error).__name__}: {error}. This is our mistake, not yours; the traceback is in stderr.txt."


def recipe(run: Run) -> None:
    """Everything between ``started`` and ``done``."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with listening(run):
        work = prepare(run, Progress(run))
    arms = arms_of(work.config)
    for arm in arms:
        if not (arm.folder(run) / "scores.json").exists():  # what a resumed run has left to do
            train_arm(run, at_arm(work, arm))
    write_report(run, work, arms)


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
    """What a run trains, in order. The first arm's student is the run's own."""
    names = ("distilled", "baseline") if config.baseline == "yes" else ("distilled",)
    pairs = [(config.seed + trial, name) for trial in range(config.trials) for name in names]
    return [Arm(*pair, nth, len(pairs)) for nth, pair in enumerate(pairs, start=1)]


def train_arm(run: Run, work: "Work") -> None:
    """Train one student, keep it, and measure it on the test split; the ``arm`` event."""
    work, trainer, callback = train_within_memory(run, work)
    save_best(run, work, trainer)
    state, events = trainer.state, runs.by_arm(run.events())[work.arm.seed, work.arm.name]
    scores = {
        "arm": work.arm.name,
        "seed": work.arm.seed,
        **score_student(run, work),
        "validation": round(state.best_metric, 5),
        "best_epoch": round(state.best_global_step * work.config.epochs / state.max_steps),
        "epochs": work.config.epochs,
        "seconds": round(callback.trained, 2),
        "images_per_second": round(
            statistics.median(e["images_per_second"] for e in events if e["event"] == "step"), 1
        ),
    }
    runs.write_whole(work.arm.folder(run) / "scores.json", json.dumps(scores))
    run.append("arm", **scores)
    shutil.rmtree(trainer.args.output_dir, ignore_errors=True)  # the best is kept; the rest only takes space


def train_within_memory(run: Run, work: "Work") -> tuple["Work", "ImageDistilTrainer", "RunCallback"]:
    """Train; where a GPU's memory runs out, on from the last checkpoint with batches in smaller parts, whose gradients are
    summed. (`Trainer`'s ``auto_find_batch_size`` would begin again, with other batches and another schedule.)"""
    while True:
        trainer, callback = build_trainer(run, work)
        try:
            with threads(work.device, work.student):
                train_student(run, work, trainer)
            return work, trainer, callback
        except RuntimeError as error:
            if not memory.ran_out_on_gpu(error):
                raise
        # Outside of the handler: the error holds on to all that was computed when it came.
        use_smaller_parts(run, work)
        work.student.model.cpu()
        del trainer, callback
        free_memory()
        work = dataclasses.replace(work, student=fresh_student(work, work.arm))


def use_smaller_parts(run: Run, work: "Work") -> None:
    """Cut batches into twice as many parts from now on, or the next number that leaves them equal; the ``memory`` event.
    Raises ``RunError`` where a part is one picture already."""
    size = work.config.batch_size
    now = parts(run)
    if now == size:
        raise RunError(
            "Out of the GPU's memory, even with one picture at a time. Choose a smaller image size or student."
        )
    wanted = next(count for count in range(2 * now, size + 1) if size % count == 0)
    said = (
        f"The GPU is out of memory with {size // now} pictures at a time. Each batch of {size} is now computed in {wanted} parts of "
        f"{size // wanted}, their gradients summed: steps and learning rates stay as they were; BatchNorm sees a part."
    )
    run.append("memory", parts=wanted, batch_size=size, warnings=[said])


def parts(run: Run) -> int:
    """Into how many parts each batch of this run is cut: one, until memory ran out. All its trainings are alike."""
    event = run.last("memory")
    return event["parts"] if event else 1


def free_memory() -> None:
    """Give back what nothing refers to any more."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


@contextmanager
def threads(device: "torch.device", student: "Student") -> Iterator[None]:
    """The number of threads that suits the student, while it trains."""
    import torch

    from kd.models import pick_threads

    before = torch.get_num_threads()
    torch.set_num_threads(pick_threads(max(student.pipeline.size)) if device.type == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    from kd import data, duplicates, models
    from kd.losses import check_classes
    from kd.taught import check_known, labelled_by, taught_alone

    config = run.config()
    device = models.pick_device(os.environ.get("KD_DEVICE", config.device))  # see launch.gpu_of_its_own
    cache = data.cache_folder(run.path.parent)
    splits = duplicates.one_side(data.load_splits(config), config, cache, progress.phase)
    short, long = data.typical_size(splits.train)
    teacher, said = None, []
    if config.teacher != NO_TEACHER:
        counts = splits.counts("train")
        teacher, said = models.load_teacher(config.teacher, splits.classes, config.label_map, counts)
        check_known(splits, teacher)
    if not splits.labelled:
        splits, config = taught_alone(config, splits, teacher)
    healing = config.heal == "yes"
    student = models.load_student(config.student, splits.classes, config.image_size, short, config.seed, healing)
    if config.start_size:
        models.check_size(config.student, student, sizes_of(config, student.pipeline.size)(0))
    with threads(device, student):
        precision = models.pick_precision(config.precision, device, student.model, student.pipeline.size, cache)
        config = with_epochs(run, config, student, device, precision, len(splits.train))
    limits.check_steps(config.epochs, len(splits.train), config.batch_size, len(arms_of(config)))
    if teacher:
        said += check_classes(config.method, len(splits.classes) if teacher.known is None else int(teacher.known.sum()))

    train, validation = load_both(run, splits, pixel_side(teacher, student, long), cache, progress)
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
        config, arm, device, precision, progress, splits, teacher, student, train, validation, validation_logits, views,
        targets,
    )  # fmt: skip


def at_arm(work: Work, arm: Arm) -> Work:
    """The same work for another arm: a student with the arm's weights."""
    if arm == work.arm:
        return work
    return dataclasses.replace(work, arm=arm, student=fresh_student(work, arm))


def fresh_student(work: Work, arm: Arm) -> "Student":
    """The run's student with the weights that an arm begins with."""
    from kd.models import load_student

    config, side = work.config, work.student.pipeline.size[0]
    return load_student(config.student, work.splits.classes, side, side, arm.seed, config.heal == "yes")


def pixel_side(teacher: "Teacher | None", student: "Student", longest: int) -> int:
    """The side in pixels at which pictures are kept: a little over the larger of the two inputs, so that crops need not
    be enlarged, and never over the pictures' own."""
    sizes = [model.pipeline.size for model in (teacher, student) if model]
    return min(longest, round(1.15 * max(map(max, sizes))))


def with_epochs(
    run: Run, config: DistillConfig, student: "Student", device: "torch.device", precision: str, pictures: int
) -> DistillConfig:
    """``config`` with the epochs that fit into its ``minutes``, if it has any; the ``plan`` event. A resumed run keeps
    to its plan."""
    if config.minutes is None:
        return config
    plan = run.last("plan")
    if plan is None:
        from kd.models import batch_seconds

        step = batch_seconds(student.model, student.pipeline.size, device, precision, config.batch_size)
        speed = config.batch_size / step
        epochs = max(1, round(config.minutes * 60 * speed / pictures))
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
    from kd.compare import cost

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
    from kd.data import load_pixels

    started = time.perf_counter()
    train = load_pixels(splits.train, side, cache, progress.phase("train pixels"))
    validation = load_pixels(splits.validation, side, cache, progress.phase("validation pixels"))
    run.append(
        "data",
        **splits.sizes(),
        classes=splits.classes,
        labels=splits.labels,
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

    from kd.compare import quality, score
    from kd.targets import load_scores
    from kd.taught import check_variety, taught

    def ask() -> np.ndarray:
        return score(teacher, teacher.processor, splits.validation, device, progress.phase("teacher check")).logits

    logits = load_scores(f"{teacher.key()}-{validation.fingerprint}", cache, len(validation.labels), ask)
    if not splits.labelled:
        run.append("teacher", warnings=check_variety(logits, splits.classes))
        return logits
    rows = taught(teacher, validation.labels)
    labels, right = validation.labels[rows], quality(logits[rows], validation.labels[rows])["accuracy"]
    chance = np.bincount(labels).max() / len(labels)
    noise = 3 * (chance * (1 - chance) / len(labels)) ** 0.5
    warnings = []
    if right <= chance + noise:
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
    return ask_teacher(run, config, min(config.views, config.epochs), teacher, train, views, cache, device, progress)


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
    from kd.models import pick_precision
    from kd.targets import load_targets

    precision = pick_precision(config.precision, device, teacher.model, teacher.pipeline.size, cache)
    targets = load_targets(teacher, train, views, count, cache, device, precision, progress.phase("targets"))
    run.append("targets", cache=targets.cache, seconds=round(targets.seconds, 2), precision=precision)
    return targets


def build_trainer(run: Run, work: Work) -> tuple["ImageDistilTrainer", "RunCallback"]:
    """`Trainer` with our batches, our loss and our events."""
    import numpy as np
    import torch
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback
    from transformers.trainer_callback import PrinterCallback

    from kd.compare import agreement, quality
    from kd.data import Views
    from kd.taught import taught
    from kd.trainer import Diverged, ImageDistilTrainer, RunCallback, ViewBatches

    config, arm, student = work.config, work.arm, work.student.pipeline
    distilled = arm.name == "distilled" and work.teacher is not None
    online = work.teacher if distilled and work.targets is None else None
    logits = work.targets.logits if distilled and work.targets else None
    batches = ViewBatches(work.train, work.views, student, work.device, logits, online and online.pipeline)
    whole = Views(work.validation.fingerprint, len(work.validation.labels), 1.0)
    theirs = work.validation_logits
    held_out = ViewBatches(work.validation, whole, student, work.device, None if theirs is None else [theirs])

    def metrics(answers) -> dict[str, float]:
        if not np.isfinite(answers.predictions).all():
            raise Diverged("the student's answers are not finite numbers")
        agreed = {}
        if work.teacher:
            rows = taught(work.teacher, work.validation.labels)
            agreed = {"agreement": agreement(answers.predictions[rows], theirs[rows])}
        return {**quality(answers.predictions, answers.label_ids), **agreed}

    before = [e for e in runs.by_arm(run.events()).get((arm.seed, arm.name), []) if e["event"] == "eval"]
    callback = RunCallback(
        run, batches, min(config.views, config.epochs), sizes_of(config, student.size),
        before[-1]["seconds"] if before else 0.0,
        {"arm": arm.name, "seed": arm.seed, "nth": arm.nth, "of": arm.of},
    )  # fmt: skip
    trainer = ImageDistilTrainer(
        teacher_model=online,
        student_model=work.student.model.to(memory_format=torch.channels_last),
        temperature=config.temperature,
        lambda_param=config.lambda_ if distilled else 0.0,
        method=method_of(config),
        warmup_epochs=min(config.dkd_warmup, config.epochs / 12) if config.method.startswith("dkd") else 0.0,
        mixup=config.mixup,
        known=work.teacher.known if distilled else None,
        args=arguments(run, work, len(batches)),
        train_dataset=batches,
        eval_dataset=held_out,
        data_collator=ViewBatches.collate,
        compute_metrics=metrics,
        callbacks=[callback, TensorBoardCallback(SummaryWriter(run.path / "logs" / arm.folder(run).name))],
    )
    trainer.remove_callback(PrinterCallback)
    callback.trainer = trainer
    return trainer, callback


def sizes_of(config: DistillConfig, full: tuple[int, int]) -> Callable[[float], tuple[int, int]]:
    """The share of training that is done -> the student's input: it grows evenly from ``start_size`` in steps of
    ``GROWTH`` pixels over the first two thirds (progressive resizing; Tan and Le 2021, arXiv:2104.00298, section 4)."""

    def size(share: float) -> tuple[int, int]:
        if config.start_size is None:
            return full
        grown = [config.start_size + (side - config.start_size) * min(1.0, 1.5 * share) for side in full]
        return tuple(min(side, round(now / GROWTH) * GROWTH) for side, now in zip(full, grown, strict=True))

    return size


def method_of(config: DistillConfig) -> "Method":
    """The loss that a configuration asks for."""
    from kd.losses import Method

    return Method(
        config.method, config.temperature, config.dkd_alpha, config.dkd_beta, config.dist_beta, config.dist_gamma,
        config.weight,
    )  # fmt: skip


def arguments(run: Run, work: Work, pictures: int) -> Any:
    """`Trainer`'s own settings: AdamW, one cycle of the learning rate, a checkpoint and a look at validation an epoch,
    the best by accuracy loaded at the end."""
    import math

    from transformers import TrainingArguments

    from kd.data import Undecoded, processes

    config, count = work.config, parts(run)
    steps = math.ceil(pictures / config.batch_size)
    return TrainingArguments(
        output_dir=str(checkpoints(run, work.arm)),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size // count,
        gradient_accumulation_steps=count,
        per_device_eval_batch_size=max(1, 128 // count),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=round(config.warmup * steps * config.epochs),
        lr_scheduler_type=config.schedule,
        optim="adamw_torch_fused",
        seed=work.arm.seed,
        bf16=work.precision == "bf16",
        fp16=work.precision == "fp16",
        use_cpu=work.device.type == "cpu",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        logging_steps=max(1, steps // 10),
        logging_nan_inf_filter=False,  # it would hide a loss that is no number, and wait for the device every step
        remove_unused_columns=False,
        dataloader_pin_memory=False,  # batches are on the device already
        dataloader_num_workers=processes() if isinstance(work.train.values, Undecoded) else 0,
        disable_tqdm=True,
        report_to="none",
    )


def checkpoints(run: Run, arm: Arm) -> Path:
    return run.path / "checkpoints" / arm.folder(run).name


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole: `Trainer` writes ``trainer_state.json`` last. The others are looked at too,
    for a power cut may take any of the files that were written last."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return next((str(path) for path in reversed(found) if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether all files of a checkpoint are there to their ends."""
    import zipfile

    from safetensors import SafetensorError, safe_open

    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        with safe_open(checkpoint / "model.safetensors", "pt"):  # compares its size with its header
            pickles = ("optimizer.pt", "scheduler.pt", "rng_state.pth")  # zip files, whose table is at their end
            return bool(state) and all(zipfile.is_zipfile(checkpoint / name) for name in pickles)
    except (OSError, ValueError, SafetensorError):
        return False


def train_student(run: Run, work: Work, trainer: "ImageDistilTrainer") -> None:
    """Train, from the last checkpoint if there is one; the trainer's model is then the best by validation accuracy.

    Raises ``StopAsked`` when stopped and ``RunError`` when the loss diverges, the best so far kept in ``student/``.
    """
    from kd.trainer import Diverged

    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(Path(trainer.args.output_dir)))
    except Diverged as error:
        best, kept = trainer.state.best_model_checkpoint, "No epoch had ended before, so there is no student."
        if best:
            trainer.model = type(trainer.model).from_pretrained(best)
            save_best(run, work, trainer)
            kept = (
                f"The best student so far ({trainer.state.best_metric:.1%} on validation) is in "
                f"{student_folder(run, work.arm)}."
            )
        raise RunError(f"Training diverged: {error}. Try a learning rate ten times lower. {kept}") from error
    if run.stop_asked():
        save_best(run, work, trainer)
        raise StopAsked


def student_folder(run: Run, arm: Arm) -> Path:
    """Where an arm's student is: the first's is the run's own."""
    return run.path / "student" if arm.nth == 1 else arm.folder(run) / "student"


def save_best(run: Run, work: Work, trainer: "ImageDistilTrainer") -> None:
    """The trainer's model and the student's processor into the arm's folder; the ``exported`` event."""
    from kd.export import save_student

    folder = student_folder(run, work.arm)
    work.arm.folder(run).mkdir(parents=True, exist_ok=True)
    save_student(trainer.model.cpu(), work.student.processor, folder)
    run.append("exported", folder=str(folder.relative_to(run.path)))


def score_student(run: Run, work: Work) -> dict[str, float]:
    """Load the arm's student as anyone would and measure it on the test split, which nothing has looked at before:
    ``accuracy``, ``f1`` and its ``agreement`` with the teacher, if there is one. Its answers are kept in ``test.npz``."""
    import numpy as np

    from kd.compare import agreement, load_student_folder, quality, score
    from kd.taught import taught

    folder = student_folder(run, work.arm)
    model, processor, _ = load_student_folder(folder)
    found = score(model, processor, work.splits.test, work.device, work.progress.phase("test: student"))
    labels = np.asarray(work.splits.test["label"])[found.indices]
    agreed = {}
    if work.teacher:
        teacher, rows = score_teacher(run, work, len(labels)), taught(work.teacher, labels)
        agreed = {"agreement": agreement(found.logits[rows], teacher[rows])}
    if not work.splits.labelled:
        labels = teacher.argmax(-1)
    np.savez(
        work.arm.folder(run) / "test.npz",
        logits=found.logits, labels=labels, indices=found.indices, unreadable=np.array(found.unreadable, dtype=str),
    )  # fmt: skip
    if work.arm.seed != work.config.seed:  # of the further trials only the answers matter
        shutil.rmtree(folder)
    return rounded({**quality(found.logits, labels), **agreed})


def score_teacher(run: Run, work: Work, size: int) -> "np.ndarray":
    """The teacher's logits ``[size, C]`` on the test pictures that can be read, asked for once and kept for all runs."""
    from kd.compare import score
    from kd.data import cache_folder, fingerprint
    from kd.targets import load_scores

    teacher, test = work.teacher, work.splits.test

    def ask() -> "np.ndarray":
        return score(teacher, teacher.processor, test, work.device, work.progress.phase("test: teacher")).logits

    return load_scores(f"{teacher.key()}-{fingerprint(test)}", cache_folder(run.path.parent), size, ask)


def write_report(run: Run, work: Work, arms: list[Arm]) -> None:
    """Gather what was measured, time both models, write the report, close the run."""
    from kd.compare import ratios

    trials = [json.loads((arm.folder(run) / "scores.json").read_text()) for arm in arms]
    own, targets = trials[0], work.targets
    sides, said = measure(run, work)
    baseline = next((trial for trial in trials if trial["arm"] == "baseline"), None)
    report = {
        "run": run.id,
        "config": work.config.to_dict(),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
        "data": {**work.splits.sizes(), "classes": work.splits.classes, "labels": work.splits.labels},
        **sides,
        "baseline": baseline and {name: baseline[name] for name in ("accuracy", "f1", "agreement")},
        "trials": trials,
        "verdict": verdict_of(run, work, arms),
        "notes": said,
        "agreement": own.get("agreement"),
        **(ratios(sides["teacher"], sides["student"]) if work.teacher else {"speedup": None, "size_ratio": None}),
        "train": {name: own[name] for name in ("seconds", "images_per_second", "epochs", "best_epoch")},
        "targets": {"seconds": round(targets.seconds, 2), "cache": targets.cache}
        if targets
        else {"seconds": 0, "cache": "online" if work.teacher else "none"},
    }
    if work.teacher:
        tell_apart(run, work, arms[0])
    runs.write_whole(run.path / "report.json", json.dumps(report, indent=2))
    shown = ("teacher", "student", "agreement", "speedup", "size_ratio", "train", "verdict")
    run.append("result", **{name: report[name] for name in shown}, warnings=said)
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)  # before the end, after which nobody comes to do it
    run.close("done")


def answers_of(run: Run, arm: Arm) -> dict[str, "np.ndarray"]:
    """An arm's ``logits`` ``[M, C]`` on the test pictures that can be read, their ``labels`` and ``indices`` ``[M]``, and
    why the others are ``unreadable``."""
    import numpy as np

    with np.load(arm.folder(run) / "test.npz") as file:
        return dict(file)


def tell_apart(run: Run, work: Work, arm: Arm) -> None:
    """Where teacher and student differ on the test split, kept for the page (``kd.analysis``)."""
    from kd.analysis import analyse, save_analysis

    answers = answers_of(run, arm)
    labels, classes = answers["labels"], work.splits.classes
    found = analyse(score_teacher(run, work, len(labels)), answers["logits"], labels, classes)
    save_analysis({**found, "labels": work.splits.labels}, work.splits.test, answers["indices"], run.path)


def verdict_of(run: Run, work: Work, arms: list[Arm]) -> dict[str, Any] | None:
    """Whether the teacher helped on the test pictures of the classes that it knows; ``None`` without a baseline."""
    import numpy as np

    from kd.taught import taught
    from kd.verdict import verdict

    right: dict[str, list[np.ndarray]] = {"distilled": [], "baseline": []}
    for arm in arms:
        answers = answers_of(run, arm)
        right[arm.name].append(answers["logits"].argmax(-1) == answers["labels"])
    if not right["baseline"]:
        return None
    sides = [np.stack(answers) for answers in right.values()]
    rows = taught(work.teacher, answers_of(run, arms[0])["labels"])
    found = verdict(*(side[:, rows] for side in sides))
    if not rows.all():
        points = 100 * (sides[0].mean() - sides[1].mean())
        found["sentence"] += (
            f" These are the pictures of the classes that the teacher knows; over all {len(rows):,} the difference is "
            f"{points:+z.1f} points."
        )
    return found


def measure(run: Run, work: Work) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """``teacher`` (``None`` where there is none) and ``student`` on the test split by the same ruler, with what they cost,
    timed in turns; and what a reader of the figures should know."""
    from kd.compare import BUSY_NOTE, cost, load_exported, quality, race
    from kd.data import pictures
    from kd.pictures import BadPicture
    from kd.taught import on_known

    model, processor, pipeline = load_exported(run)
    answers = answers_of(run, work.arm)
    logits, raced = {"student": answers["logits"]}, {"student": (model, processor)}
    costs = {"student": cost(model, pipeline.size)}
    if teacher := work.teacher:
        logits = {"teacher": score_teacher(run, work, len(answers["labels"])), **logits}
        raced = {"teacher": (teacher, teacher.processor), **raced}
        costs["teacher"] = cost(teacher.model, teacher.pipeline.size)
    picture = next(picture for _, picture in pictures(work.splits.test) if not isinstance(picture, BadPicture))
    timed = race(raced, picture, work.device)
    sides: dict[str, Any] = {"teacher": None} | {
        name: {
            "name": getattr(work.config, name),
            **rounded(quality(logits[name], answers["labels"])),
            **costs[name],
            **timed[name],
        }
        for name in logits
    }
    if not work.splits.labelled:  # it agrees with itself
        del sides["teacher"]["accuracy"], sides["teacher"]["f1"]
    said = [
        *on_known(work.splits, work.teacher, logits, answers["labels"]),
        *answers["unreadable"].tolist(),
        *([BUSY_NOTE] if busy(run.path.parent, but=run) else []),
    ]
    return sides, said


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in metrics.items()}
