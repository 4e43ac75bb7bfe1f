"""The training of one student: `Trainer` with our batches, loss and events, its checkpoints, and a GPU too small."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from kd.config import DistillConfig
from kd.errors import UserError
from kd.runs.queue import StopAsked
from kd.runs.run import Run, events_by_trial
from kd.system import memory
from kd.training.checkpoints import checkpoints_folder, last_checkpoint, save_best, student_folder
from kd.training.plan import sizes_of, views_of
from kd.training.setup import Work, fresh_student, threads

if TYPE_CHECKING:
    from kd.training.callback import RunCallback
    from kd.training.losses import Method
    from kd.training.trainer import ImageDistilTrainer


def train_within_memory(run: Run, work: Work) -> tuple[Work, "ImageDistilTrainer", "RunCallback"]:
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
        memory.free()
        work = dataclasses.replace(work, student=fresh_student(work, work.arm))


def use_smaller_parts(run: Run, work: Work) -> None:
    """Cut batches into twice as many parts from now on, or the next number that leaves them equal; the ``memory`` event.
    Raises ``UserError`` where a part is one picture already."""
    size = work.config.batch_size
    now = parts(run)
    if now == size:
        raise UserError(
            "Out of the GPU's memory, even with one picture at a time. Choose a smaller image size or student."
        )
    wanted = memory.more_parts(now, size)
    said = (
        f"The GPU is out of memory with {size // now} pictures at a time. Each batch of {size} is now computed in {wanted} parts of "
        f"{size // wanted}, their gradients summed: steps and learning rates stay as they were; BatchNorm sees a part."
    )
    run.append("memory", parts=wanted, batch_size=size, warnings=[said])


def parts(run: Run) -> int:
    """Into how many parts each batch of this run is cut: one, until memory ran out. All its trainings are alike."""
    event = run.last("memory")
    return event["parts"] if event else 1


def build_trainer(run: Run, work: Work) -> tuple["ImageDistilTrainer", "RunCallback"]:
    """`Trainer` with our batches, our loss and our events."""
    import numpy as np
    import torch
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback
    from transformers.trainer_callback import PrinterCallback

    from kd.data.pixels import decoding_processes
    from kd.data.views import Views
    from kd.evaluation.scoring import agreement, quality
    from kd.training.batches import ViewBatches
    from kd.training.callback import RunCallback
    from kd.training.labels import known_rows
    from kd.training.trainer import Diverged, ImageDistilTrainer, training_arguments

    config, arm, student = work.config, work.arm, work.student.normalization
    distilled = arm.name == "distilled" and work.teacher is not None
    online = work.teacher if distilled and work.targets is None else None
    logits = work.targets.logits if distilled and work.targets else None
    batches = ViewBatches(work.train, work.views, student, work.device, logits, online and online.normalization)
    whole = Views(work.validation.fingerprint, len(work.validation.labels), 1.0)
    theirs = work.validation_logits
    # `Trainer` has as many workers for validation as for training, and none of them may touch a GPU.
    device = torch.device("cpu") if batches.undecoded else work.device
    held_out = ViewBatches(work.validation, whole, student, device, None if theirs is None else [theirs])

    def metrics(answers) -> dict[str, float]:
        if not np.isfinite(answers.predictions).all():
            raise Diverged("the student's answers are not finite numbers")
        agreed = {}
        if work.teacher:
            rows = known_rows(work.teacher, work.validation.labels)
            agreed = {"agreement": agreement(answers.predictions[rows], theirs[rows])}
        return {**quality(answers.predictions, answers.label_ids), **agreed}

    before = [e for e in events_by_trial(run.events()).get((arm.seed, arm.name), []) if e["event"] == "eval"]
    callback = RunCallback(
        run, batches, views_of(config), sizes_of(config, student.size),
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
        ema=config.ema,
        known=work.teacher.known if distilled else None,
        args=training_arguments(
            config,
            len(batches),
            checkpoints_folder(run, arm),
            arm.seed,
            work.device,
            work.precision,
            parts(run),
            decoding_processes() if batches.undecoded else 0,
        ),
        train_dataset=batches,
        eval_dataset=held_out,
        data_collator=ViewBatches.collate,
        compute_metrics=metrics,
        callbacks=[callback, TensorBoardCallback(SummaryWriter(run.path / "logs" / arm.folder(run).name))],
    )
    trainer.remove_callback(PrinterCallback)
    callback.trainer = trainer
    return trainer, callback


def method_of(config: DistillConfig) -> "Method":
    """The loss that a configuration asks for."""
    from kd.training.losses import Method

    return Method(
        config.method, config.temperature, config.dkd_alpha, config.dkd_beta, config.dist_beta, config.dist_gamma,
        config.weight,
    )  # fmt: skip


def train_student(run: Run, work: Work, trainer: "ImageDistilTrainer") -> None:
    """Train, from the last checkpoint if there is one; the trainer's model is then the best by validation accuracy.

    Raises ``StopAsked`` when stopped and ``UserError`` when the loss diverges, the best so far kept in ``student/``.
    """
    from kd.training.trainer import Diverged

    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(Path(trainer.args.output_dir), bool(trainer.average)))
    except Diverged as error:
        best, kept = trainer.state.best_model_checkpoint, "No epoch had ended before, so there is no student."
        if best:
            trainer.model = type(trainer.model).from_pretrained(best)
            save_best(run, work, trainer)
            kept = (
                f"The best student so far ({trainer.state.best_metric:.1%} on validation) is in "
                f"{student_folder(run, work.arm)}."
            )
        raise UserError(f"Training diverged: {error}. Try a learning rate ten times lower. {kept}") from error
    if run.stop_asked():
        save_best(run, work, trainer)
        raise StopAsked
