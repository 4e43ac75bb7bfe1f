"""Train one student: `Trainer` with our batches, loss and events; from its last checkpoint, and on a GPU that is too small."""

import dataclasses
import json
import math
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kd.config import DistillConfig
from kd.errors import UserError
from kd.runs.pieces import PauseAsked
from kd.runs.queue import StopAsked
from kd.runs.run import Run, events_by_trial
from kd.system import memory
from kd.system.files import text_of, write_whole
from kd.training.checkpoints import checkpoints_folder, last_checkpoint, save_best, student_folder
from kd.training.distributed import Over
from kd.training.plan import TRAINED, Plan, Trial
from kd.training.setup import DecodedSplits, Job, training_threads

if TYPE_CHECKING:
    import numpy as np

    from kd.models.student import Student
    from kd.training.batches import ViewBatches
    from kd.training.losses import Method
    from kd.training.targets import Targets
    from kd.training.trainer import ImageDistilTrainer


@dataclass(frozen=True)
class Lesson:
    """What one training is made of: its plan and trial, the student it begins with, the images and the targets."""

    plan: Plan
    trial: Trial
    student: "Student"
    pixels: DecodedSplits
    targets: "Targets"


@dataclass(frozen=True)
class Trained:
    """What a training came to: the best accuracy on ``validation`` and in which of its ``epochs``, seconds, throughput."""

    trial: Trial
    validation: float
    best_epoch: int
    epochs: int
    seconds: float
    images_per_second: float


def train(job: Job, lesson: Lesson, fresh_student: Callable[[], "Student"]) -> Trained | None:
    """Train a student, keep the best by validation accuracy in the trial's folder, and say and write down what came of it; of
    several processes that train together only the first does so.

    Where a GPU's memory runs out, training goes on from the last checkpoint with batches in smaller parts, whose
    gradients are summed, and with a ``fresh_student``. (`Trainer`'s ``auto_find_batch_size`` would begin again, with other
    batches and another schedule.) Several processes do so where they can agree on it, else the run goes on so once it is resumed.
    """
    while True:
        trainer = build_trainer(job, lesson)
        try:
            with training_threads(job.device, lesson.plan.input_size, lesson.plan.config.threads):
                run_trainer(job, lesson, trainer)
            save_best(job.run, lesson.trial, trainer, lesson.student.processor)
            return keep_trained(job.run, what_came(job.run, lesson, trainer)) if job.ranks.is_first else None
        except RuntimeError as error:
            if not memory.ran_out_on_gpu(error):
                raise
        # Outside of the handler: the error refers to everything that was on the GPU when it was raised.
        if job.ranks.count > 1 and not trainer.ran_out_together:
            fail_without_memory(job, lesson)
        before = trainer.args.gradient_accumulation_steps
        job.ranks.first(
            f"after {before} parts of training {lesson.trial.nth}", partial(use_smaller_parts_of, job, lesson)
        )
        lesson.student.model.cpu()
        del trainer
        memory.free()
        lesson = dataclasses.replace(lesson, student=fresh_student())


def keep_trained(run: Run, trained: Trained) -> Trained:
    """Write down what a training came to, for whoever goes on with the run if this process ends before it is measured."""
    values = {name: value for name, value in dataclasses.asdict(trained).items() if name != "trial"}
    write_whole(trained.trial.folder(run) / TRAINED, json.dumps(values))
    return trained


def load_trained(run: Run, trial: Trial) -> Trained | None:
    """Return what a training came to that was over before the run was resumed, ``None`` where it is still to do; the
    ``exported`` event."""
    if not (said := text_of(trial.folder(run) / TRAINED)):
        return None
    run.append("exported", folder=str(student_folder(run, trial).relative_to(run.path)))
    return Trained(trial, **json.loads(said))


def what_came(run: Run, lesson: Lesson, trainer: "ImageDistilTrainer") -> Trained:
    """Read what a training came to off its trainer and its events."""
    state, trial = trainer.state, lesson.trial
    steps = [e for e in events_by_trial(run.events())[trial.seed, trial.name] if e["event"] == "step"]
    return Trained(
        trial,
        validation=round(state.best_metric, 5),
        epochs=lesson.plan.config.epochs,
        best_epoch=round(state.best_global_step * lesson.plan.config.epochs / state.max_steps),
        seconds=round(trainer.run_callback.trained, 2),
        images_per_second=round(statistics.median(e["images_per_second"] for e in steps), 1),
    )


def use_smaller_parts_of(job: Job, lesson: Lesson) -> None:
    """Cut the batches of a training, or each process's part of them, into smaller parts from now on."""
    size = lesson.plan.config.batch_size // job.ranks.count
    use_smaller_parts(job.run, size, least_part(lesson.student.model))


def fail_without_memory(job: Job, lesson: Lesson) -> NoReturn:
    """End a run in which one of several GPUs has run out of memory within a step, where the others wait for it in operations
    that it cannot take part in any more; the ``memory`` event of the process that ran out, whichever it is.

    Raises ``UserError``.
    """
    whole = Run(job.run.path)  # the other processes' own writes nothing
    use_smaller_parts_of(dataclasses.replace(job, run=whole), lesson)
    raise UserError(
        f"Process {job.ranks.rank + 1} of {job.ranks.count} ran out of its GPU's memory in the middle of a step, in which the others "
        f"waited for it, so they could not go on together. {whole.goes_on[:-1]} from its last checkpoint, with each batch in "
        "smaller parts. Or choose a smaller batch size, image size or student."
    )


def use_smaller_parts(run: Run, size: int, least: int = 1) -> None:
    """Cut batches of ``size`` into twice as many parts from now on, or the next number that leaves them equal; the
    ``memory`` event. Raises ``UserError`` where the parts would have fewer than ``least`` images."""
    now = parts_of_batches(run)
    wanted = None if now == size else memory.more_parts(now, size)
    if wanted is None or size // wanted < least:
        pictures = "one picture" if now == size else f"{size // now} pictures"
        raise UserError(
            f"Out of the GPU's memory, even with {pictures} at a time. Choose a smaller image size or student."
        )
    said = (
        f"The GPU is out of memory with {size // now} pictures at a time. Each batch of {size} is now computed in {wanted} parts of "
        f"{size // wanted}, their gradients summed: steps and learning rates stay as they were; BatchNorm sees a part."
    )
    run.append("memory", parts=wanted, batch_size=size, warnings=[said])


def least_part(model: Any) -> int:
    """Return how many images a part of a batch has at least: two where there is BatchNorm, which needs more than one
    number of each channel."""
    from kd.training.trainer import has_batch_norm

    return 2 if has_batch_norm(model) else 1


def parts_of_batches(run: Run) -> int:
    """Return into how many parts each batch of this run is cut: one, until memory ran out. All its trainings are alike."""
    event = run.last("memory")
    return event["parts"] if event else 1


def build_trainer(job: Job, lesson: Lesson) -> "ImageDistilTrainer":
    """Build `Trainer` with our batches, our loss and our events; its ``run_callback`` writes them."""
    import torch
    from transformers.trainer_callback import PrinterCallback

    from kd.models.device import Compute
    from kd.training.batches import ViewBatches
    from kd.training.callback import RunCallback
    from kd.training.trainer import ImageDistilTrainer, with_shared_batch_norm

    run, plan, trial, targets = job.run, lesson.plan, lesson.trial, lesson.targets
    config, taught = plan.config, trial.is_distilled and targets.teacher is not None
    train, held_out = build_batches(job, lesson)
    model = with_shared_batch_norm(lesson.student.model, job.ranks, job.device)
    before = [e for e in events_by_trial(run.events()).get((trial.seed, trial.name), []) if e["event"] == "eval"]
    callback = RunCallback(run, train, plan, trial, before[-1]["seconds"] if before else 0.0)
    trainer = ImageDistilTrainer(
        teacher_model=targets.teacher if taught and targets.online else None,
        student_model=model.to(memory_format=torch.channels_last),
        temperature=config.temperature,
        lambda_param=config.lambda_ if trial.is_distilled else 0.0,
        method=method_of(config),
        warmup_epochs=min(config.dkd_warmup, config.epochs / 12) if config.method.startswith("dkd") else 0.0,
        mixup=config.mixup,
        ema=config.ema,
        known=targets.teacher.known if taught else None,
        args=arguments_of(job, lesson, train),
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=ViewBatches.collate,
        compute_metrics=metrics_against(targets, lesson.pixels.validation.labels),
        callbacks=[callback, *([tensorboard(run, trial)] if job.ranks.is_first else [])],
        ranks=job.ranks,
    )
    if job.piece:
        from kd.training.lent_gpu import LentGpu

        callback.lent = LentGpu(run, job.piece, len(held_out))
        trainer.add_callback(callback.lent)
    trainer.remove_callback(PrinterCallback)
    callback.trainer, trainer.run_callback = trainer, callback
    trainer.blocks = train.blocks
    trainer.teacher_autocast = Compute(job.device, plan.teacher_precision).autocast
    return trainer


def tensorboard(run: Run, trial: Trial) -> Any:
    """Return what writes a training's curves for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(run.path / "logs" / trial.folder(run).name))


def build_batches(job: Job, lesson: Lesson) -> tuple["ViewBatches", "ViewBatches"]:
    """Build the batches of the training images, in their views, and of the validation images, each whole.

    Who learns from the labels alone sees the images that have one, again and again: as many in an epoch as with a teacher.
    """
    import numpy as np
    import torch

    from kd.data.views import Views
    from kd.training.batches import ViewBatches

    pixels, targets, student = lesson.pixels, lesson.targets, lesson.student.normalization
    teaches = None
    if lesson.trial.is_distilled and targets.teacher is not None:
        teaches = targets.teacher.normalization if targets.online else targets.logits
    labels, rows = pixels.train.labels, None
    if (teaches is None or lesson.plan.config.lambda_ == 0) and (labels < 0).any():
        rows = np.resize(np.flatnonzero(labels >= 0), len(labels))
    train = ViewBatches(pixels.train, pixels.views, student, job.device, teaches, rows)
    whole = Views(pixels.validation.fingerprint, len(pixels.validation.labels), 1.0)
    # `Trainer` has as many workers for validation as for training, and none of them may touch a GPU.
    device = torch.device("cpu") if train.undecoded else job.device
    theirs = None if targets.validation is None else [targets.validation]
    return train, ViewBatches(pixels.validation, whole, student, device, theirs)


def arguments_of(job: Job, lesson: Lesson, train: "ViewBatches") -> Any:
    """Return `Trainer`'s settings for one training."""
    from kd.data.pixels import decoding_processes
    from kd.models.device import Compute
    from kd.training.trainer import training_arguments

    config = dataclasses.replace(lesson.plan.config, seed=lesson.trial.seed)
    compute = Compute(job.device, lesson.plan.precision)
    folder = checkpoints_folder(job.run, lesson.trial)
    count = job.ranks.count
    parts = math.gcd(parts_of_batches(job.run), config.batch_size // count)  # they may have been of other processes
    settings = training_arguments(config, len(train), compute, folder, parts * count)
    settings.gradient_accumulation_steps = parts
    settings.dataloader_num_workers = decoding_processes() if train.undecoded else 0
    return settings


def metrics_against(targets: "Targets", labels: "np.ndarray") -> Callable[[Any], dict[str, float]]:
    """Return what `Trainer` measures after each epoch: accuracy and F1, and agreement with the teacher on the classes
    that it knows. ``labels`` ``[N]`` are those of the validation images."""
    import numpy as np

    from kd.evaluation.scoring import agreement, quality
    from kd.training.labels import known_rows
    from kd.training.trainer import Diverged

    def metrics(answers) -> dict[str, float]:
        if not np.isfinite(answers.predictions).all():
            raise Diverged("the student's answers are not finite numbers")
        agreed = {}
        if targets.teacher:
            rows = known_rows(targets.teacher, labels)
            agreed = {"agreement": agreement(answers.predictions[rows], targets.validation[rows])}
        return {**quality(answers.predictions, answers.label_ids), **agreed}

    return metrics


def method_of(config: DistillConfig) -> "Method":
    """Return the loss that a configuration asks for."""
    from kd.training.losses import Method

    return Method(
        config.method, config.temperature, config.dkd_alpha, config.dkd_beta, config.dist_beta, config.dist_gamma,
        config.weight,
    )  # fmt: skip


def run_trainer(job: Job, lesson: Lesson, trainer: "ImageDistilTrainer") -> None:
    """Train, from the last checkpoint if there is one; the trainer's model is then the best by validation accuracy.

    Of several processes the first says what went wrong in all of them; the others leave with ``Over``.

    Raises ``StopAsked`` when stopped and ``UserError`` when the loss diverges, after the best so far has been saved;
    ``PauseAsked`` before the GPU is taken away, after a checkpoint.
    """
    from kd.training.trainer import Diverged

    run, trial, processor = job.run, lesson.trial, lesson.student.processor
    find = partial(last_checkpoint, Path(trainer.args.output_dir), bool(trainer.average))
    parts = trainer.args.gradient_accumulation_steps
    # Here the other processes wait while the first measures the student of the training before.
    checkpoint = job.ranks.first(f"checkpoint of {trial.nth} in {parts}", find)
    if job.ranks.count > 1:
        trainer.train_dataset.show(0, lesson.plan.input_size)  # the largest; each epoch has its own
        trainer.check_memory()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except Diverged as error:
        if not job.ranks.is_first:
            raise Over from error
        best, kept = trainer.state.best_model_checkpoint, "No epoch had ended before, so there is no student."
        if best:
            trainer.model = type(trainer.model).from_pretrained(best, trust_remote_code=False)
            save_best(run, trial, trainer, processor)
            kept = (
                f"The best student so far ({trainer.state.best_metric:.1%} on validation) is in "
                f"{student_folder(run, trial)}."
            )
        raise UserError(
            f"Training diverged: {error}. Try a learning rate ten times lower. {kept}",
            kind="diverged", setting="learning_rate",
        ) from error  # fmt: skip
    lent = trainer.run_callback.lent
    if lent and lent.is_paused and trainer.state.global_step < trainer.state.max_steps:
        raise PauseAsked("time")
    if run.stop_asked():
        save_best(run, trial, trainer, processor)
        raise StopAsked


def forget_checkpoints(run: Run, trial: Trial) -> None:
    """Remove a trial's checkpoints, since its best student and its scores are kept, and the rest only takes space."""
    shutil.rmtree(checkpoints_folder(run, trial), ignore_errors=True)
    (trial.folder(run) / TRAINED).unlink(missing_ok=True)
