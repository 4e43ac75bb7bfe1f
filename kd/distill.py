"""The recipe, top to bottom: the one place to read first.

Nothing heavy is imported until a run has its device: one that waits for its turn should be small.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd import runs
from kd.config import DistillConfig
from kd.launch import StopAsked, device_name, slot
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
        if resume:
            (run.path / "STOP").unlink(missing_ok=True)
        try:
            device = device_name(run.config().device)
            if device.startswith("cuda:"):  # the run sees its own GPU only, or Trainer would spread over all
                os.environ.setdefault("CUDA_VISIBLE_DEVICES", device.removeprefix("cuda:"))
            with slot(run, device):
                run.append("resumed" if resume else "started", pid=os.getpid())
                recipe(run)
        except (StopAsked, KeyboardInterrupt):
            run.close("stopped", message=f"Stopped. `python -m kd resume {run.id}` goes on with it.")
        except RunDeleted:
            raise
        except BaseException as error:
            run.close("failed", message=in_words(error, run), error=type(error).__name__)
            raise


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

    from kd import data, models, targets
    from kd.compare import cost

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = run.config()
    device = models.pick_device(config.device)
    cache = data.cache_folder(run.path.parent)
    progress = Progress(run)

    splits = data.load_splits(config)
    short, long = data.typical_size(splits.train)
    teacher, said = models.load_teacher(config.teacher, splits.classes)
    student = models.load_student(config.student, splits.classes, config.image_size, short, config.seed)
    side = min(long, round(1.15 * max(*teacher.pipeline.size, *student.pipeline.size)))
    precision = models.pick_precision(config.precision, device, max(student.pipeline.size))

    started = time.perf_counter()
    train = data.load_pixels(splits.train, side, cache, progress.phase("train pixels"))
    validation = data.load_pixels(splits.validation, side, cache, progress.phase("validation pixels"))
    run.append(
        "data",
        **splits.sizes(),
        classes=splits.classes,
        warnings=[*splits.warnings, *train.unreadable, *validation.unreadable],
        seconds=round(time.perf_counter() - started, 2),
        cache="hit" if train.cached and validation.cached else "miss",
    )
    run.append(
        "models",
        teacher={"name": config.teacher, **cost(teacher.model, teacher.pipeline.size)},
        student={"name": config.student, **cost(student.model, student.pipeline.size)},
        image_size=list(student.pipeline.size),
        healed=student.healed,
        warnings=said,
        device=str(device),
        precision=precision,
    )

    validation_logits = check_teacher(run, teacher, splits, validation, cache, device, progress)
    views = data.Views(train.fingerprint, len(train.labels), config.crop_area)
    wanted = None
    if config.targets == "cached":
        teacher_precision = models.pick_precision(config.precision, device, max(teacher.pipeline.size))
        wanted = targets.load_targets(
            teacher.to(device), train, views, min(config.views, config.epochs), cache, device, teacher_precision,
            progress.phase("targets"),
        )  # fmt: skip
    run.append("targets", cache=wanted.cache if wanted else "online", seconds=round(wanted.seconds, 2) if wanted else 0)

    trainer, callback = build_trainer(
        run, config, device, precision, teacher, student, train, validation, views, wanted, validation_logits
    )
    train_student(run, trainer, student)
    finish(run, config, device, splits, teacher, trainer, callback, wanted, progress)


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

    from kd import targets
    from kd.compare import quality, score

    logits, _ = targets.load_scores(
        f"{teacher.key()}-{validation.fingerprint}", cache, len(splits.validation),
        lambda: score(teacher, teacher.processor, splits.validation, device, progress.phase("teacher check")),
    )  # fmt: skip
    found = quality(logits, np.asarray(splits.validation["label"]))
    shares = np.bincount(validation.labels) / len(validation.labels)
    chance = shares.max()
    noise = 3 * (chance * (1 - chance) / len(validation.labels)) ** 0.5
    warnings = []
    if found["accuracy"] <= chance + noise:
        warnings.append(
            f"The teacher is right on {found['accuracy']:.1%} of the validation pictures, no better than always saying "
            f"the commonest class ({chance:.1%}). Are these its classes, in its order?"
        )
    run.append("teacher", accuracy=round(found["accuracy"], 5), f1=round(found["f1"], 5), warnings=warnings)
    return logits[~np.isnan(logits[:, 0])]


def build_trainer(
    run: Run,
    config: DistillConfig,
    device: "torch.device",
    precision: str,
    teacher: "Teacher",
    student: "Student",
    train: "Pixels",
    validation: "Pixels",
    views: "Views",
    wanted: "Targets | None",
    validation_logits: "np.ndarray",
) -> tuple["ImageDistilTrainer", "RunCallback"]:
    """`Trainer` with our batches, our loss and our events."""
    import math

    import torch
    from torch.utils.tensorboard import SummaryWriter
    from transformers import TrainingArguments
    from transformers.integrations import TensorBoardCallback
    from transformers.trainer_callback import PrinterCallback

    from kd.compare import agreement, quality
    from kd.data import Views
    from kd.trainer import ImageDistilTrainer, RunCallback, ViewBatches

    online = teacher.pipeline if wanted is None else None
    batches = ViewBatches(train, views, student.pipeline, device, wanted and wanted.logits, online)
    whole = Views(validation.fingerprint, len(validation.labels), 1.0)
    held_out = ViewBatches(validation, whole, student.pipeline, device, [validation_logits])

    def metrics(answers) -> dict[str, float]:
        agreed = agreement(answers.predictions, validation_logits)
        return {**quality(answers.predictions, answers.label_ids), "agreement": agreed}

    steps = math.ceil(len(batches) / config.batch_size)
    arguments = TrainingArguments(
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
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=device.type == "cpu",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        logging_steps=max(1, steps // 10),
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
    )
    before = run.last("eval")
    callback = RunCallback(
        run, batches, views=min(config.views, config.epochs), seconds_before=before["seconds"] if before else 0
    )
    trainer = ImageDistilTrainer(
        teacher_model=teacher if wanted is None else None,
        student_model=student.model.to(memory_format=torch.channels_last),
        temperature=config.temperature,
        lambda_param=config.lambda_,
        args=arguments,
        train_dataset=batches,
        eval_dataset=held_out,
        data_collator=ViewBatches.collate,
        processing_class=student.processor,
        compute_metrics=metrics,
        callbacks=[callback, TensorBoardCallback(SummaryWriter(run.path / "logs"))],
    )
    trainer.remove_callback(PrinterCallback)
    callback.trainer = trainer
    return trainer, callback


def last_checkpoint(run: Run) -> str | None:
    """The newest checkpoint that is whole: `Trainer` writes ``trainer_state.json`` last."""

    def is_whole(path: Path) -> bool:
        try:
            return bool(json.loads((path / "trainer_state.json").read_text()))
        except (OSError, ValueError):
            return False

    found = sorted((run.path / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return next((str(path) for path in reversed(found) if is_whole(path)), None)


def train_student(run: Run, trainer: "ImageDistilTrainer", student: "Student") -> None:
    """Train, from the last checkpoint if there is one; the trainer's model is then the best by validation accuracy.

    Raises ``StopAsked`` when stopped and ``RunError`` when the loss diverges, the best so far kept in ``student/``.
    """
    from kd.export import save_student
    from kd.trainer import Diverged

    folder = run.path / "student"
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(run))
    except Diverged as error:
        best = trainer.state.best_model_checkpoint
        kept = "No epoch had ended before, so there is no student."
        if best:
            save_student(type(student.model).from_pretrained(best), student.processor, folder)
            kept = f"The best student so far ({trainer.state.best_metric:.1%} on validation) is kept in {folder}."
        raise RunError(f"Training diverged: {error}. Try a learning rate ten times lower. {kept}") from error
    if run.stop_asked():
        save_student(trainer.model.cpu(), student.processor, folder)
        raise StopAsked


def finish(
    run: Run,
    config: DistillConfig,
    device: "torch.device",
    splits: "Splits",
    teacher: "Teacher",
    trainer: "ImageDistilTrainer",
    callback: "RunCallback",
    wanted: "Targets | None",
    progress: Progress,
) -> None:
    """Export the best student, load it again as anyone would, measure both on the test split, write the report."""
    import numpy as np

    from kd.compare import agreement, cost, load_exported, quality, race, ratios, score
    from kd.data import BadPicture, pictures
    from kd.export import save_student

    processor = trainer.processing_class
    save_student(trainer.model.cpu(), processor, run.path / "student")
    run.append("exported", folder="student")
    model, processor, pipeline = load_exported(run)

    labels = np.asarray(splits.test["label"])
    both = {"teacher": (teacher, teacher.processor), "student": (model, processor)}
    logits = {
        name: score(one, its, splits.test, device, progress.phase(f"test: {name}")) for name, (one, its) in both.items()
    }
    picture = next(picture for _, picture in pictures(splits.test) if not isinstance(picture, BadPicture))
    timed = race(both, picture, device)
    costs = {
        "teacher": cost(teacher.model, teacher.pipeline.size),
        "student": cost(model, pipeline.size),
    }
    sides = {
        name: {"name": getattr(config, name), **rounded(quality(logits[name], labels)), **costs[name], **timed[name]}
        for name in both
    }
    best_step = trainer.state.best_global_step
    report = {
        "run": run.id,
        "config": config.to_dict(),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
        "data": {**splits.sizes(), "classes": splits.classes},
        **sides,
        "baseline": None,
        "agreement": round(agreement(logits["student"], logits["teacher"]), 5),
        **ratios(sides["teacher"], sides["student"]),
        "train": {
            "seconds": round(callback.trained, 2),
            "images_per_second": round(callback.images / callback.training_seconds, 1),
            "epochs": config.epochs,
            "best_epoch": round(best_step * config.epochs / trainer.state.max_steps),
        },
        "targets": {
            "seconds": round(wanted.seconds, 2) if wanted else 0,
            "cache": wanted.cache if wanted else "online",
        },
    }
    runs.write_whole(run.path / "report.json", json.dumps(report, indent=2))
    run.append(
        "result",
        **{name: report[name] for name in ("teacher", "student", "agreement", "speedup", "size_ratio", "train")},
    )
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)  # the best is in student/; the rest only takes space
    run.close("done")


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in metrics.items()}
