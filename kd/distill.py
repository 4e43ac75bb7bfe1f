"""The recipe, top to bottom: the one place to read first.

Nothing heavy is imported until a run has its device: one that waits for its turn should be small.
"""

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

from kd import runs
from kd.config import DistillConfig
from kd.launch import StopAsked, busy, device_name, slot
from kd.runs import Run, RunDeleted, RunError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from kd.data import Pixels, Splits, Views
    from kd.models import Student, Teacher
    from kd.targets import Targets
    from kd.trainer import ImageDistilTrainer, RunCallback

PROGRESS_SECONDS = 0.5
PACKAGES = ("torch", "transformers", "datasets", "accelerate")


def distill(config: DistillConfig | None = None, runs_dir: Path | str | None = None) -> dict[str, Any]:
    """Distil in this process and return the report (``report.json``; the README explains its fields).

    Raises ``RunError`` (or a ``ValueError`` of the configuration) with a message that says what to do.
    """
    folder = Path(runs_dir) if runs_dir else runs.default_folder()
    config = config or DistillConfig.preset("sample")
    run = runs.create(config, folder, runs.local_owner(folder))
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
                run.append("resumed" if resume else "started", pid=os.getpid())
                recipe(run)
        except (StopAsked, KeyboardInterrupt):
            run.close("stopped", message=f"Stopped. `python -m kd resume {run.id}` goes on with it.")
        except RunDeleted:
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
    # Only OSError has a number for a full disk; safetensors and torch.save raise errors of their own.
    if "No space left" in str(error) or shutil.disk_usage(run.path).free < runs.RESERVE_BYTES:
        return f"The disk is full ({run.path}). Free some space, then `python -m kd resume {run.id}`."
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "Out of memory. Choose a smaller batch size, image size or student."
    if isinstance(error, RunError | ValueError) and not isinstance(error, UnicodeError):
        return str(error)
    return f"{type(error).__name__}: {error}. This is our mistake, not yours; the traceback is in stderr.txt."


def recipe(run: Run) -> None:
    """Everything between ``started`` and ``done``."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    work = prepare(run, Progress(run))
    trainer, callback = build_trainer(run, work)
    with threads(work.device, work.student):
        train_student(run, work, trainer)
    save_best(run, work, trainer)
    write_report(run, work, trainer, callback)


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
    device: "torch.device"
    precision: str
    progress: Progress
    splits: "Splits"
    teacher: "Teacher"
    student: "Student"
    train: "Pixels"
    validation: "Pixels"
    validation_logits: "np.ndarray"
    """The teacher's, ``[N, C]``."""
    views: "Views"
    targets: "Targets | None"
    """``None``: the teacher answers in every step."""


def prepare(run: Run, progress: Progress) -> Work:
    """Pictures, models (their labels checked before a second is spent) and targets; an event for each."""
    from kd import data, models

    config = run.config()
    device = models.pick_device(os.environ.get("KD_DEVICE", config.device))  # see launch.gpu_of_its_own
    cache = data.cache_folder(run.path.parent)
    splits = data.load_splits(config)
    short, long = data.typical_size(splits.train)
    teacher, said = models.load_teacher(config.teacher, splits.classes)
    healing = config.heal == "yes"
    student = models.load_student(config.student, splits.classes, config.image_size, short, config.seed, healing)
    with threads(device, student):
        precision = models.pick_precision(config.precision, device, student.model, student.pipeline.size, cache)

    # A little over the larger of the two inputs, so that crops need not be enlarged; never over the pictures' own size.
    side = min(long, round(1.15 * max(*teacher.pipeline.size, *student.pipeline.size)))
    train, validation = load_both(run, splits, side, cache, progress)
    tell_models(run, config, teacher, student, device, precision, said)
    validation_logits = check_teacher(run, teacher, splits, validation, cache, device, progress)
    views = data.Views(train.fingerprint, len(train.labels), config.crop_area)
    targets = load_all_targets(run, config, teacher, train, views, cache, device, progress)
    return Work(
        config,
        device,
        precision,
        progress,
        splits,
        teacher,
        student,
        train,
        validation,
        validation_logits,
        views,
        targets,
    )


def tell_models(
    run: Run,
    config: DistillConfig,
    teacher: "Teacher",
    student: "Student",
    device: "torch.device",
    precision: str,
    warnings: list[str],
) -> None:
    """The ``models`` event: what each costs, what was healed in the student, on what and how it will train."""
    from kd.compare import cost

    run.append(
        "models",
        teacher={"name": config.teacher, **cost(teacher.model, teacher.pipeline.size)},
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

    def ask() -> np.ndarray:
        return score(teacher, teacher.processor, splits.validation, device, progress.phase("teacher check")).logits

    logits = load_scores(f"{teacher.key()}-{validation.fingerprint}", cache, len(validation.labels), ask)
    found = quality(logits, validation.labels)
    chance = np.bincount(validation.labels).max() / len(validation.labels)
    noise = 3 * (chance * (1 - chance) / len(validation.labels)) ** 0.5
    warnings = []
    if found["accuracy"] <= chance + noise:
        warnings.append(
            f"The teacher is right on {found['accuracy']:.1%} of the validation pictures, no better than always saying "
            f"the commonest class ({chance:.1%}). Are these its classes, in its order?"
        )
    run.append("teacher", **rounded(found), warnings=warnings)
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
    from kd.models import pick_precision
    from kd.targets import load_targets

    teacher.to(device)
    if config.targets == "online":
        run.append("targets", cache="online", seconds=0)
        return None
    precision = pick_precision(config.precision, device, teacher.model, teacher.pipeline.size, cache)
    count = min(config.views, config.epochs)
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
    from kd.trainer import Diverged, ImageDistilTrainer, RunCallback, ViewBatches

    config, student, targets = work.config, work.student.pipeline, work.targets
    online = work.teacher if targets is None else None
    batches = ViewBatches(
        work.train, work.views, student, work.device, targets and targets.logits, online and online.pipeline
    )
    whole = Views(work.validation.fingerprint, len(work.validation.labels), 1.0)
    held_out = ViewBatches(work.validation, whole, student, work.device, [work.validation_logits])

    def metrics(answers) -> dict[str, float]:
        if not np.isfinite(answers.predictions).all():
            raise Diverged("the student's answers are not finite numbers")
        agreed = agreement(answers.predictions, work.validation_logits)
        return {**quality(answers.predictions, answers.label_ids), "agreement": agreed}

    before = run.last("eval")
    callback = RunCallback(run, batches, min(config.views, config.epochs), before["seconds"] if before else 0.0)
    trainer = ImageDistilTrainer(
        teacher_model=online,
        student_model=work.student.model.to(memory_format=torch.channels_last),
        temperature=config.temperature,
        lambda_param=config.lambda_,
        args=arguments(run, work, len(batches)),
        train_dataset=batches,
        eval_dataset=held_out,
        data_collator=ViewBatches.collate,
        compute_metrics=metrics,
        callbacks=[callback, TensorBoardCallback(SummaryWriter(run.path / "logs"))],
    )
    trainer.remove_callback(PrinterCallback)
    callback.trainer = trainer
    return trainer, callback


def arguments(run: Run, work: Work, pictures: int) -> Any:
    """`Trainer`'s own settings: AdamW, one cycle of the learning rate, a checkpoint and a look at validation an epoch,
    the best by accuracy loaded at the end."""
    import math

    from transformers import TrainingArguments

    from kd.data import Undecoded, processes

    config = work.config
    steps = math.ceil(pictures / config.batch_size)
    return TrainingArguments(
        output_dir=str(run.path / "checkpoints"),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=128,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=max(1, steps * config.epochs // 10),
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        seed=config.seed,
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


def last_checkpoint(run: Run) -> str | None:
    """The newest checkpoint that is whole: `Trainer` writes ``trainer_state.json`` last."""

    def is_whole(path: Path) -> bool:
        try:
            return bool(json.loads((path / "trainer_state.json").read_text()))
        except (OSError, ValueError):
            return False

    found = sorted((run.path / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return next((str(path) for path in reversed(found) if is_whole(path)), None)


def train_student(run: Run, work: Work, trainer: "ImageDistilTrainer") -> None:
    """Train, from the last checkpoint if there is one; the trainer's model is then the best by validation accuracy.

    Raises ``StopAsked`` when stopped and ``RunError`` when the loss diverges, the best so far kept in ``student/``.
    """
    from kd.trainer import Diverged

    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(run))
    except Diverged as error:
        best, kept = trainer.state.best_model_checkpoint, "No epoch had ended before, so there is no student."
        if best:
            trainer.model = type(trainer.model).from_pretrained(best)
            save_best(run, work, trainer)
            kept = (
                f"The best student so far ({trainer.state.best_metric:.1%} on validation) is in {run.path / 'student'}."
            )
        raise RunError(f"Training diverged: {error}. Try a learning rate ten times lower. {kept}") from error
    if run.stop_asked():
        save_best(run, work, trainer)
        raise StopAsked


def save_best(run: Run, work: Work, trainer: "ImageDistilTrainer") -> None:
    """The trainer's model and the student's processor into ``student/``; the ``exported`` event."""
    from kd.export import save_student

    save_student(trainer.model.cpu(), work.student.processor, run.path / "student")
    run.append("exported", folder="student")


def write_report(run: Run, work: Work, trainer: "ImageDistilTrainer", callback: "RunCallback") -> None:
    """Load the saved student as anyone would, measure both on the test split, write the report, close the run."""
    from kd.compare import ratios

    sides, agreed, said = measure(run, work)
    speeds = [e["images_per_second"] for e in run.events() if e["event"] == "step"]
    state, targets = trainer.state, work.targets
    report = {
        "run": run.id,
        "config": work.config.to_dict(),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
        "data": {**work.splits.sizes(), "classes": work.splits.classes},
        **sides,
        "baseline": None,
        "notes": said,
        "agreement": round(agreed, 5),
        **ratios(sides["teacher"], sides["student"]),
        "train": {
            "seconds": round(callback.trained, 2),
            "images_per_second": round(statistics.median(speeds), 1),
            "epochs": work.config.epochs,
            "best_epoch": round(state.best_global_step * work.config.epochs / state.max_steps),
        },
        "targets": {"seconds": round(targets.seconds, 2), "cache": targets.cache}
        if targets
        else {"seconds": 0, "cache": "online"},
    }
    runs.write_whole(run.path / "report.json", json.dumps(report, indent=2))
    shown = ("teacher", "student", "agreement", "speedup", "size_ratio", "train")
    run.append("result", **{name: report[name] for name in shown}, warnings=said)
    run.close("done")
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)  # the best is in student/; the rest only takes space


def measure(run: Run, work: Work) -> tuple[dict[str, dict[str, Any]], float, list[str]]:
    """``teacher`` and ``student`` by the same ruler on the test split, which nothing has looked at before, their
    agreement there, and what a reader of the figures should know."""
    import numpy as np

    from kd.compare import BUSY_NOTE, agreement, cost, load_exported, quality, race, score
    from kd.data import BadPicture, cache_folder, fingerprint, pictures
    from kd.targets import load_scores

    model, processor, pipeline = load_exported(run)
    teacher, test = work.teacher, work.splits.test
    both = {"teacher": (teacher, teacher.processor), "student": (model, processor)}
    found = score(model, processor, test, work.device, work.progress.phase("test: student"))

    def ask() -> np.ndarray:
        return score(teacher, teacher.processor, test, work.device, work.progress.phase("test: teacher")).logits

    cache = cache_folder(run.path.parent)
    logits = {
        "teacher": load_scores(f"{teacher.key()}-{fingerprint(test)}", cache, len(found.indices), ask),
        "student": found.logits,
    }
    picture = next(picture for _, picture in pictures(test) if not isinstance(picture, BadPicture))
    timed = race(both, picture, work.device)
    costs = {"teacher": cost(teacher.model, teacher.pipeline.size), "student": cost(model, pipeline.size)}
    labels = np.asarray(test["label"])[found.indices]
    sides = {
        name: {
            "name": getattr(work.config, name),
            **rounded(quality(logits[name], labels)),
            **costs[name],
            **timed[name],
        }
        for name in both
    }
    said = [*found.unreadable, *([BUSY_NOTE] if busy(run.path.parent, but=run) else [])]
    return sides, agreement(logits["student"], logits["teacher"]), said


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in metrics.items()}
