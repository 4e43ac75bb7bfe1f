"""The rows of the benchmark: what the process of each trains, and what its recipe costs besides.

``kd.devtools.speed`` starts these processes and gives them turns.
"""

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kd.devtools.timing import Cost, Enough, PeakMemory, Stages, Turns, seconds_of
from kd.devtools.workload import Plan
from kd.errors import UserError
from kd.runs.run import Run
from kd.runs.store import create_run
from kd.training import setup
from kd.training.checkpoints import save_best
from kd.training.loop import Lesson, build_trainer
from kd.training.plan import Plan as RunPlan
from kd.training.plan import Trial
from kd.training.report import TestSplit, TrialResult, measure_models, score_student
from kd.training.setup import training_threads

# How many times as many images the rows of `kd bench --scale` train on.
SCALES = (1, 10, 50)
# More epochs than a row has turns for.
ENDLESS = 10**6
# Works on a whole run in this process: kd.distill.execute, which the command line hands in.
Execute = Callable[[Run], None]


@dataclass
class Row:
    """What the process of a row works with.

    ``folder`` is the one that ``kd.devtools.workload.prepare`` has filled. Where whole recipes are measured
    (``plan.full``) there are no ``turns``, and ``execute`` works on a whole run in this process.
    """

    name: str
    plan: Plan
    folder: Path
    execute: Execute | None
    stages: Stages = field(default_factory=Stages)
    turns: Turns | None = None


# --- The Transformers guide


def guide(row: Row) -> dict[str, Any]:
    """Run the code of the Transformers guide (``kd.devtools.guide``)."""
    from transformers import AutoImageProcessor

    from kd.data.splits import load_splits
    from kd.devtools.guide import build_trainer as build_guide_trainer
    from kd.devtools.guide import process

    plan, stages = row.plan, row.stages
    splits = load_splits(plan.config(row.folder))
    processor = AutoImageProcessor.from_pretrained(row.folder / "teacher", trust_remote_code=False)
    started = time.perf_counter()
    processed = process(splits, processor, row.folder)
    decoding = (time.perf_counter() - started) / sum(splits.sizes().values())
    trainer = build_guide_trainer(plan, splits.classes, processor, processed, row.folder)
    if row.turns is None:
        trainer.train()
        trainer.evaluate(processed["test"])
        return {"precision": "fp32"}
    stages.wrap(trainer, "data_collator", "decode")
    stages.wrap(trainer.train_dataset, "__getitems__", "decode")
    stages.wrap(trainer.teacher, "forward", "targets")
    train_in_turns(trainer, row)
    evaluated, saved = time_epoch_end(trainer)
    evaluated /= len(processed["validation"])
    return {
        "precision": "fp32",
        "costs": [
            Cost("decode", "decode", plan.images + 2 * plan.validation, decoding, "decode"),
            Cost("evaluation", "evaluate each epoch, and test", (plan.epochs + 1) * plan.validation, evaluated),
            Cost("saving", "save each epoch", plan.epochs, saved),
        ],
    }


def train_in_turns(trainer: Any, row: Row) -> None:
    """Run the trainer's own loop, but wait at the end of a step until the row has its turn again."""
    from transformers import TrainerCallback

    stages, turns, batch = row.stages, row.turns, row.plan.batch_size

    class TakesTurns(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer=None, **kwargs) -> None:
            stages.wrap(optimizer, "step", "optimiser")

        def on_step_end(self, args, state, control, **kwargs) -> None:
            turns.step(batch)

    if len(trainer.train_dataset) < batch:
        raise UserError(
            f"The dataset has {len(trainer.train_dataset)} training pictures; a batch of {batch} needs more."
        )
    trainer.args.dataloader_drop_last = True
    trainer.add_callback(TakesTurns)
    stages.wrap(trainer, "training_step", "forward/backward")
    stages.wrap(trainer.accelerator, "clip_grad_norm_", "optimiser")
    with suppress(Enough):
        trainer.train()


def time_epoch_end(trainer: Any) -> tuple[float, float]:
    """Return the seconds of an evaluation, the best of three, and of saving a checkpoint."""
    trainer.args.dataloader_drop_last = False
    evaluated = min(seconds_of(trainer.evaluate) for _ in range(3))
    return evaluated, seconds_of(lambda: trainer._save_checkpoint(trainer.model, trial=None))


# --- Our own runs


def ours(row: Row, way: str = "cached") -> dict[str, Any]:
    """Run what ``kd distill`` runs, with ``cached`` or ``online`` targets, or its ``baseline``."""
    plan = row.plan
    endless = {} if row.turns is None else {"epochs": ENDLESS}
    targets, trial = ("cached", "baseline") if way == "baseline" else (way, "distilled")
    run = create_run(plan.config(row.folder, targets=targets, **endless), row.folder / f"runs-{way}", "bench")
    if row.turns is None:
        row.execute(run)
        return {"precision": run.last("models")["precision"]}
    run.append("started")
    scoring = Stages()
    time_scoring(scoring)
    prepared = prepare_run(run)
    lesson = prepared.lesson(Trial(prepared.plan.config.seed, trial, 1, 1))
    trainer = build_timed_trainer(prepared.job, lesson, row.stages)
    with training_threads(prepared.job.device, prepared.plan.input_size, prepared.plan.config.threads):
        train_in_turns(trainer, row)
        epoch_end = time_epoch_end(trainer)
    return {
        "precision": prepared.plan.precision,
        "costs": costs_of_ours(plan, prepared, trainer, scoring, epoch_end),
    }


@dataclass
class Prepared:
    """What the recipe (``kd.distill.recipe``) has made before its first training."""

    job: setup.Job
    plan: RunPlan
    splits: Any
    pixels: setup.DecodedSplits
    targets: Any

    def lesson(self, trial: Trial) -> Lesson:
        student = setup.build_student(self.plan.config, self.splits, trial.seed, self.targets.teacher)
        return Lesson(self.plan, trial, student, self.pixels, self.targets)


def prepare_run(run: Run) -> Prepared:
    """Do what the recipe does before its first training."""
    job = setup.start_job(run)
    splits = setup.load_job_splits(job)
    teacher = setup.load_job_teacher(job.config, splits)
    student = setup.build_student(job.config, splits, job.config.seed, teacher)
    plan = setup.make_plan(job, splits, teacher, student)
    pixels = setup.decode(job, plan, splits)
    setup.tell_models(job, plan, teacher, student)
    return Prepared(job, plan, splits, pixels, setup.teacher_targets(job, plan, splits, teacher, pixels))


def build_timed_trainer(job: setup.Job, lesson: Lesson, stages: Stages) -> Any:
    """Build the trainer of a run so that its stages are timed, and so that it neither evaluates nor saves."""
    trainer = build_trainer(job, lesson)
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    stages.wrap(trainer.train_dataset, "__getitems__", "crop")
    if lesson.trial.is_distilled:
        stages.wrap(trainer, "_teacher_logits", "targets")
    return trainer


def time_scoring(stages: Stages) -> None:
    """Time the scoring of original files (``kd.evaluation.scoring``), and the measuring of both models' latency."""
    from kd.evaluation import latency, scoring
    from kd.models.teacher import Teacher

    score = scoring.score

    def timed(model: Any, *arguments: Any, **options: Any) -> Any:
        with stages.time("teacher" if isinstance(model, Teacher) else "student"):
            return score(model, *arguments, **options)

    scoring.score = timed
    stages.wrap(latency, "measure_latency", "latency")


def costs_of_ours(
    plan: Plan, prepared: Prepared, trainer: Any, scoring: Stages, epoch_end: tuple[float, float]
) -> list[Cost]:
    """List what a run costs besides its steps. ``epoch_end``: seconds of an evaluation, and of saving a checkpoint."""
    job, trial, splits = prepared.job, trainer.run_callback.trial, prepared.splits
    (evaluated, saved), test = epoch_end, TestSplit(prepared.job, splits, prepared.targets)
    save_best(job.run, trial, trainer, prepared.lesson(trial).student.processor)
    _, answers = score_student(job, trial, test)
    measure_models(job, prepared.plan, test, TrialResult(trial, {}, answers))
    data, targets = job.run.last("data"), job.run.last("targets")
    held_out, tested = len(prepared.pixels.validation.labels), len(splits.test)
    pictures, views = plan.images + plan.validation, min(plan.views, plan.epochs)
    decode = data["seconds"] / (data["train"] + data["validation"])
    teacher = scoring.seconds["teacher"] / (held_out + tested)
    asked = targets["seconds"] / len(prepared.pixels.train.labels) / views
    return [
        Cost("decode", "decode", pictures, decode, "decode"),
        Cost("targets", "targets", plan.images * views, asked, "teacher"),
        Cost("evaluation", "check and test the teacher", 2 * plan.validation, teacher, "teacher"),
        Cost("evaluation", "evaluate each epoch", plan.epochs * plan.validation, evaluated / held_out),
        Cost("evaluation", "test the student", plan.validation, scoring.seconds["student"] / tested),
        Cost("evaluation", "latency", 1, scoring.seconds["latency"]),
        Cost("saving", "save each epoch", plan.epochs, saved),
    ]


# --- Without a trainer, without a teacher, with more images


def ceiling(row: Row, quick: bool = True) -> dict[str, Any]:
    """Train the student alone on one batch in memory, in the fastest of our precisions and memory layouts.

    Without ``quick`` the gradients of depthwise convolutions are PyTorch's own.
    """
    import torch

    from kd.models.device import pick_device

    plan, turns = row.plan, row.turns
    device = pick_device(plan.device)
    layouts = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    halves = ["bf16"] if device.type == "cpu" else ["bf16", "fp16"]
    steps = {
        f"{precision} {name}": student_step(row, precision, layout, quick)
        for precision in ("fp32", *halves)
        for name, layout in layouts.items()
    }
    with training_threads(device, (plan.image_size, plan.image_size)), suppress(Enough):
        times = {name: [seconds_of(step, turns.synchronise) for _ in range(3)] for name, step in steps.items()}
        best = min(times, key=lambda name: min(times[name][1:]))
        step = steps[best]
        steps.clear()
        while True:
            step()
            turns.step(plan.batch_size)
    return {"precision": best, "costs": None}


def student_step(row: Row, precision: str, layout: Any, quick: bool) -> Callable[[], None]:
    """Return one training step of a fresh student on a batch that never changes."""
    import torch
    from torch import nn

    from kd.models.depthwise import DepthwiseConv2d
    from kd.models.device import Compute, pick_device
    from kd.models.student import load_student
    from kd.training.losses import distillation_loss

    plan, stages = row.plan, row.stages
    device = pick_device(plan.device)
    student = load_student(plan.student, [str(i) for i in range(10)], plan.image_size, 0)
    model = student.model.train().to(device, memory_format=layout)
    for module in model.modules():
        if isinstance(module, DepthwiseConv2d) and not quick:
            module.__class__ = nn.Conv2d
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    values = torch.randn(plan.batch_size, 3, *student.normalization.size, device=device).contiguous(
        memory_format=layout
    )
    logits = torch.randn(plan.batch_size, 10, device=device)
    labels = torch.arange(plan.batch_size, device=device) % 10

    def step() -> None:
        with stages.time("forward/backward"):
            with Compute(device, precision).autocast():
                answers = model(pixel_values=values).logits
            distillation_loss(answers, logits, labels, 5.0, 0.5).total.backward()
        with stages.time("optimiser"):
            optimizer.step()
            optimizer.zero_grad()

    return step


def loop(row: Row) -> dict[str, Any]:
    """Distil in a plain PyTorch loop: teacher and student in bf16, a fresh random crop of each image in every epoch.

    Worker processes decode, cut, scale and mirror the images one by one, as most scripts do. There is no Trainer.
    """
    import torch
    from torch.nn import functional as F

    from kd.data.splits import load_splits
    from kd.models.device import Compute, pick_device
    from kd.models.student import load_student
    from kd.models.teacher import load_teacher

    plan, stages = row.plan, row.stages
    splits, compute = load_splits(plan.config(row.folder)), Compute(pick_device(plan.device), "bf16")
    teacher = load_teacher(str(row.folder / "teacher"), splits.classes).to(compute.device)
    student = load_student(plan.student, splits.classes, plan.image_size, 0).model.to(compute.device).train()
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3)
    images = RandomCrops(splits.train, teacher.normalization.size[0])
    batches = torch.utils.data.DataLoader(images, plan.batch_size, shuffle=True, drop_last=True, num_workers=2)
    with suppress(Enough):
        while True:
            for pixels, labels in batches:
                values, labels = teacher.normalization(pixels.to(compute.device).float()), labels.to(compute.device)
                with stages.time("targets"), torch.no_grad(), compute.autocast():
                    theirs = teacher(values).logits.float()
                with stages.time("forward/backward"):
                    with compute.autocast():
                        ours = student(pixel_values=values).logits.float()
                    soft = F.kl_div(F.log_softmax(ours / 5, -1), F.softmax(theirs / 5, -1), reduction="batchmean") * 25
                    (0.5 * F.cross_entropy(ours, labels) + 0.5 * soft).backward()
                with stages.time("optimiser"):
                    optimizer.step()
                    optimizer.zero_grad()
                row.turns.step(plan.batch_size)
    return {"precision": "bf16", "costs": None}


class RandomCrops:
    """A split whose images are decoded, cut at random, scaled and mirrored each time that they are asked for."""

    def __init__(self, dataset: Any, side: int) -> None:
        self.dataset, self.side = dataset, side

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        from PIL import Image, ImageOps

        from kd.data.images import open_row

        row, rng = self.dataset[index], np.random.default_rng()
        image = open_row(row)
        share, width, height = np.sqrt(rng.uniform(0.35, 1)), *image.size
        left, top = rng.uniform(0, width * (1 - share)), rng.uniform(0, height * (1 - share))
        box = (left, top, left + share * width, top + share * height)
        image = image.resize((self.side, self.side), Image.Resampling.BILINEAR, box, reducing_gap=3)
        image = ImageOps.mirror(image) if rng.random() < 0.5 else image
        return np.asarray(image).transpose(2, 0, 1).copy(), row["label"]


def student_only(row: Row) -> dict[str, Any]:
    """Train without a teacher, as the baseline of a run is trained."""
    found = ours(row, "baseline")
    return {**found, "costs": [cost for cost in found["costs"] if cost.shared != "teacher"]}


def scaled(row: Row, times: int) -> dict[str, Any]:
    """Train with ``cached`` targets on ``times`` as many images.

    These are the decoded images, repeated, each in crops of its own, with random logits for the teacher's.
    """
    from kd.data.pixels import Pixels
    from kd.data.views import Views
    from kd.system.files import mapped, npy_writer

    plan, folder = row.plan, row.folder
    run = create_run(plan.config(folder, epochs=ENDLESS, targets="online"), folder / f"runs-{times}", "bench")
    run.append("started")
    prepared = prepare_run(run)
    few, count = prepared.pixels.train, plan.images * times
    order = np.random.default_rng(0).integers(0, len(few.labels), count)
    file = folder / f"pixels-{times}.npy"
    with npy_writer(file, few.values.shape[1:], np.uint8) as write:
        for start in range(0, count, 512):
            write(few.values[order[start : start + 512]])
    with npy_writer(folder / f"logits-{times}.npy", (len(prepared.splits.classes),), np.float32) as write:
        write(np.random.default_rng(1).normal(size=(count, len(prepared.splits.classes))))
    train = Pixels(mapped(file), few.labels[order], few.fingerprint, [], True)
    views = Views(few.fingerprint, count, prepared.plan.config.crop_area)
    prepared.pixels = dataclasses.replace(prepared.pixels, train=train, views=views)
    logits = [mapped(folder / f"logits-{times}.npy")] * plan.views
    prepared.targets = dataclasses.replace(prepared.targets, logits=logits, cache="hit")
    config = dataclasses.replace(prepared.plan.config, targets="cached")
    prepared.plan = dataclasses.replace(prepared.plan, config=config)
    trainer = build_timed_trainer(prepared.job, prepared.lesson(prepared.plan.trials[0]), row.stages)
    with training_threads(prepared.job.device, prepared.plan.input_size, prepared.plan.config.threads):
        train_in_turns(trainer, row)
    return {
        "precision": prepared.plan.precision,
        "costs": None,
        "images": count,
        "file_gb": round(file.stat().st_size / 1e9, 2),
    }


# Row -> what its process does. ``plain`` is the ceiling without what we changed in PyTorch: the gradients of
# ``kd.models.depthwise`` and the settings of the allocator.
WAYS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "guide": guide,
    "online": lambda row: ours(row, "online"),
    "cached": lambda row: ours(row, "cached"),
    "loop": loop,
    "ceiling": ceiling,
    "plain": lambda row: ceiling(row, quick=False),
    "student only": student_only,
    **{f"cached {times}x": functools.partial(scaled, times=times) for times in SCALES},
}


def work_on_row(row: Row, connection: Any) -> None:
    """Do all that the process of a row does.

    Through ``connection`` go its turns, then what the row's function returned and its memory, or a ``UserError``.
    """
    born = time.perf_counter()
    import datasets
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore")
    memory = PeakMemory()
    memory.start()
    gpu = row.plan.on_gpu
    synchronise = torch.cuda.synchronize if gpu else lambda: None
    if not row.plan.full:
        row.turns = Turns(connection, row.stages, synchronise, row.plan.turn_seconds)
    start = time.perf_counter() - born
    try:
        facts = WAYS[row.name](row)
    except UserError as problem:
        connection.send(problem)
        return
    peak = torch.cuda.max_memory_allocated() / 1e6 if gpu else memory.peak
    connection.send({
        **facts, "seconds": time.perf_counter() - born, "start": start, "peak_mb": round(peak),
        "threads": torch.get_num_threads(), "device": torch.cuda.get_device_name() if gpu else "cpu",
    })  # fmt: skip
