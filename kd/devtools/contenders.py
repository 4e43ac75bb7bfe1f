"""The bench's rows: what the process of each does, and what is counted in it. ``kd.devtools.speed`` lets them take turns."""

import dataclasses
import functools
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd.config import DistillConfig, checked, setting
from kd.distill import execute
from kd.errors import UserError
from kd.runs.queue import device_name
from kd.runs.run import Run
from kd.runs.store import create_run
from kd.system.memory import private_megabytes
from kd.training import setup
from kd.training.checkpoints import save_best
from kd.training.loop import Lesson, build_trainer
from kd.training.plan import Plan as RunPlan
from kd.training.plan import Trial
from kd.training.report import TestSplit, TrialResult, measure_models, score_student
from kd.training.setup import training_threads

VIT_B = "vit_b_16"
"""The bench's teacher: ViT-B/16 with random weights, which takes the same time as one that was trained."""

PHOTOS = "photos"
"""The bench's pictures: JPEGs of 500 x 500 pixels, like those of the guide."""

CLASSES = 3

SCALES = (1, 10, 50)

PART = 128

WARM_UP = 1


@dataclass(frozen=True)
class Plan:
    """What is measured: the recipe of ``epochs`` on ``images`` pictures, in ``full`` or on a part. Raises ``ValueError``,
    in words for a user, on a value out of range."""

    teacher: str = setting(VIT_B, "teacher: a Hub id, a folder, 'sample', or 'vit_b_16' with random weights")
    dataset: str = setting(PHOTOS, "pictures: a Hub id, a folder, 'sample', or 'photos', which are made up")
    student: str = setting("mobilenet_v2_1.0", "student: a name from `python -m kd students`, a Hub id or a folder")
    device: str = setting("auto", "auto, cpu or cuda", choices=("auto", "cpu", "cuda"))
    image_size: int = setting(224, "side of the student's input in pixels", low=16, high=1024)
    batch_size: int = setting(32, "pictures a step", low=1)
    epochs: int = setting(30, "of the recipe", low=1)
    images: int = setting(1000, "training pictures of the recipe", low=32)
    validation: int = setting(100, "of the recipe's validation pictures, and of its test pictures", low=32)
    views: int = setting(1, "crops of each picture that the teacher sees", low=1)
    rounds: int = setting(5, "turns of each row, of which the median counts", low=1)
    full: bool = False
    turn_seconds: float = 3.0
    """A turn of a row takes this long, and at least one step."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.metadata:
                object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))
        if self.batch_size > self.images:
            raise ValueError(f"A batch of {self.batch_size} is more than the {self.images} pictures of the recipe.")

    @property
    def on_gpu(self) -> bool:
        return device_name(self.device) != "cpu"

    @property
    def part(self) -> int:
        """How many training pictures are worked on: enough for a few steps, and on a fast device for many."""
        few = max(PART, (32 if self.on_gpu else 4) * self.batch_size)
        return self.images if self.full else min(few, self.images)

    def config(self, folder: Path, **changes: Any) -> DistillConfig:
        """The settings of our runs, on the teacher and the pictures that ``prepare`` has put into ``folder``."""
        settings = {
            "teacher": str(folder / "teacher"), "dataset": str(folder / "pictures"), "student": self.student,
            "image_size": self.image_size, "batch_size": self.batch_size, "epochs": self.epochs, "views": self.views,
            "device": self.device, "duplicates": "keep",
        }  # fmt: skip
        return DistillConfig.preset("custom", **{**settings, **changes})


# --- What is worked on


def prepare(plan: Plan, folder: Path) -> None:
    """A teacher and a part of the pictures (with ``full``: all), as files."""
    from kd.data.splits import load_splits

    if plan.dataset == PHOTOS:
        _write_photos(folder / "photos", plan.part, plan.validation)
        source = folder / "photos"
    else:
        source = plan.dataset
    splits = load_splits(DistillConfig.preset("custom", dataset=str(source)))
    few = max(len(splits.classes), 32)
    sizes = {
        "train": plan.part,
        "validation": plan.validation if plan.full else few,
        "test": plan.validation if plan.full else few,
    }
    for name, size in sizes.items():
        _write_split(getattr(splits, name), size, folder / "pictures" / f"{name}.parquet")
    _save_teacher(plan.teacher, splits.classes, folder / "teacher")


def _write_split(dataset: Any, size: int, file: Path) -> None:
    """Some of a split's pictures, spread over it and of every class, as parquet: a class name need not be a file's."""
    from datasets import Dataset

    from kd.data.images import file_bytes

    names, labels = dataset.features["label"].names, np.asarray(dataset["label"])
    order = np.random.default_rng(0).permutation(len(dataset))
    firsts = [order[labels[order] == label][0] for label in range(len(names))]
    chosen = dataset.select(list(dict.fromkeys([*firsts, *order]))[:size])
    rows = {"image": [{"bytes": file_bytes(row), "path": None} for row in chosen], "label": chosen["label"]}
    file.parent.mkdir(exist_ok=True)
    Dataset.from_dict(rows, features=dataset.features).to_parquet(file)


def _write_photos(folder: Path, train: int, held_out: int) -> None:
    """JPEGs with as much detail as photos of their size: about 60 KB each."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, size in (("train", train), ("validation", held_out), ("test", held_out)):
        for nth in range(max(size, 4 * CLASSES)):
            coarse = rng.normal(128, 60, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize((500, 500), Image.Resampling.BICUBIC), np.float32)
            noisy = (smooth + rng.normal(0, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
            path = folder / split / f"class {nth % CLASSES}" / f"{nth:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy).save(path, quality=85)


def _save_teacher(name: str, classes: list[str], folder: Path) -> None:
    """The teacher as a folder that a run can be pointed to."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    from kd.models.teacher import load_teacher

    if name == VIT_B:
        labels = {"id2label": dict(enumerate(classes)), "label2id": {label: i for i, label in enumerate(classes)}}
        model = ViTForImageClassification(ViTConfig(**labels))  # its defaults are ViT-B/16 at 224 px
        processor = ViTImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    else:
        teacher = load_teacher(name, classes)
        model, processor = teacher.model, teacher.processor
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


# --- What is counted in each process


class Stages:
    """Seconds by stage; of stages inside each other, a moment counts for the inner one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.inner = [0.0]
        self.synchronise: Callable[[], None] = lambda: None

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        self.inner.append(0.0)
        try:
            yield
        finally:
            self.synchronise()
            spent = time.perf_counter() - started
            self.seconds[stage] += spent - self.inner.pop()
            self.inner[-1] += spent

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Count ``owner.name``'s time for a stage from now on."""
        call = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.time(stage):
                return call(*arguments, **options)

        setattr(owner, name, timed)


class Memory(threading.Thread):
    """The most memory in MB (10^6 bytes) that this process could not give back: looked at twenty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = self.now()

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, self.now())
            time.sleep(0.05)

    @staticmethod
    def now() -> float:
        """Return the memory of this process that is not mapped from files, MB."""
        return private_megabytes()


class Enough(Exception):
    """The bench has what it wants."""


class Turns:
    """A row's side of taking turns: it works while it is its turn and waits at the end of a step while it is not."""

    def __init__(self, connection: Any, stages: Stages, synchronise: Callable[[], None], turn_seconds: float) -> None:
        self.connection, self.stages, self.synchronise = connection, stages, synchronise
        self.turn_seconds = turn_seconds
        self.steps = -WARM_UP

    def step(self, images: int) -> None:
        """A step on so many pictures has ended. Raises ``Enough`` after the last turn."""
        self.steps += 1
        if self.steps < 0:
            return
        self.synchronise()
        seconds = time.perf_counter() - self.started if self.steps else 0.0
        if 0 < seconds < self.turn_seconds:
            return
        self.connection.send((self.steps * images, seconds, dict(self.stages.seconds)))
        try:
            asked = self.connection.recv()
        except EOFError:  # the bench itself has ended
            raise SystemExit(1) from None
        if asked == "enough":
            raise Enough
        # On a GPU a stage ends when its kernels do: waiting for them costs speed, so only the last turn does.
        self.stages.synchronise = self.synchronise if asked == "stages" else lambda: None
        self.stages.seconds.clear()
        self.steps, self.started = 0, time.perf_counter()


@dataclass
class Cost:
    """``count`` times ``seconds`` of a stage in the whole recipe. What later runs find made is ``shared``: ``decode`` or
    ``teacher``."""

    stage: str
    what: str
    count: float
    seconds: float
    shared: str = ""

    @property
    def total(self) -> float:
        return self.count * self.seconds

    def __str__(self) -> str:
        unit = f"{self.seconds * 1000:,.1f} ms" if self.seconds < 1 else f"{self.seconds:,.2f} s"
        return f"{self.what}: {self.count:,.0f} x {unit} = {self.total:,.1f} s"


# --- The rows: each prepares, trains in turns, and returns its one-off costs


def guide(plan: Plan, folder: Path, turns: Turns | None, stages: Stages) -> dict[str, Any]:
    """The Transformers guide "Knowledge distillation for computer vision" (docs/source/en/tasks/
    knowledge_distillation_for_image_classification.md), its code as it stands but for names that are gone: pixel lists
    by ``dataset.map``, float32, the teacher in every step and in every evaluation, the student as transformers makes
    it; and grey pictures become RGB. It learns at a batch size of 8; here at the bench's own, which is faster."""
    import torch
    from datasets import Image
    from torch.nn import functional as F
    from transformers import (
        AutoImageProcessor,
        AutoModelForImageClassification,
        DefaultDataCollator,
        MobileNetV2Config,
        MobileNetV2ForImageClassification,
        Trainer,
        TrainingArguments,
    )
    from transformers.trainer_callback import PrinterCallback

    from kd.data.splits import load_splits
    from kd.models.student import load_student

    class ImageDistilTrainer(Trainer):
        def __init__(self, teacher_model=None, student_model=None, temperature=None, lambda_param=None, **kwargs):
            super().__init__(model=student_model, **kwargs)
            self.teacher = teacher_model.to(self.args.device).eval()
            self.temperature, self.lambda_param = temperature, lambda_param
            self.loss_function = torch.nn.KLDivLoss(reduction="batchmean")

        def compute_loss(self, student, inputs, return_outputs=False, **kwargs):
            student_output = student(**inputs)
            with torch.no_grad(), stages.time("targets"):
                teacher_output = self.teacher(**inputs)
            soft_teacher = F.softmax(teacher_output.logits / self.temperature, dim=-1)
            soft_student = F.log_softmax(student_output.logits / self.temperature, dim=-1)
            distillation_loss = self.loss_function(soft_student, soft_teacher) * (self.temperature**2)
            loss = (1.0 - self.lambda_param) * student_output.loss + self.lambda_param * distillation_loss
            return (loss, student_output) if return_outputs else loss

    splits = load_splits(plan.config(folder))
    dataset = {name: getattr(splits, name).cast_column("image", Image()) for name in splits.sizes()}
    processor = AutoImageProcessor.from_pretrained(folder / "teacher")
    with stages.time("decode"):
        processed = {
            name: part.map(
                lambda examples: processor([image.convert("RGB") for image in examples["image"]]), batched=True,
                remove_columns="image", cache_file_name=str(folder / f"guide-{name}.arrow"),
            )
            for name, part in dataset.items()
        }  # fmt: skip
    if plan.student == "mobilenet_v2_1.0":
        student = MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=len(splits.classes)))
    else:
        student = load_student(plan.student, splits.classes, plan.image_size, 0, healing=False).model
    trainer = ImageDistilTrainer(
        student_model=student,
        teacher_model=AutoModelForImageClassification.from_pretrained(folder / "teacher"),
        args=TrainingArguments(
            output_dir=str(folder / "guide"), num_train_epochs=plan.epochs if plan.full else 10**6,
            per_device_train_batch_size=plan.batch_size, per_device_eval_batch_size=plan.batch_size,
            logging_strategy="epoch", eval_strategy="epoch" if plan.full else "no",
            save_strategy="epoch" if plan.full else "no", save_total_limit=2, metric_for_best_model="accuracy",
            load_best_model_at_end=plan.full, report_to="none", disable_tqdm=True, use_cpu=plan.device == "cpu",
        ),
        train_dataset=processed["train"],
        eval_dataset=processed["validation"],
        data_collator=DefaultDataCollator(),
        processing_class=processor,
        compute_metrics=lambda answers: {"accuracy": float((answers[0].argmax(-1) == answers[1]).mean())},
        temperature=5,
        lambda_param=0.5,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    read = stages.seconds.pop("decode")
    if turns is None:
        trainer.train()
        trainer.evaluate(processed["test"])
        return {"precision": "fp32"}
    stages.wrap(trainer, "data_collator", "decode")
    stages.wrap(trainer.train_dataset, "__getitems__", "decode")
    train_in_turns(trainer, turns, stages, plan.batch_size)
    evaluated, saved = time_epoch_end(trainer)
    held_out, split_sizes = len(processed["validation"]), sum(splits.sizes().values())
    return {
        "precision": "fp32",
        "costs": [
            Cost("decode", "decode", plan.images + 2 * plan.validation, read / split_sizes, "decode"),
            Cost(
                "evaluation", "evaluate each epoch, and test", (plan.epochs + 1) * plan.validation, evaluated / held_out
            ),
            Cost("saving", "save each epoch", plan.epochs, saved),
        ],
    }


def train_in_turns(trainer: Any, turns: Turns, stages: Stages, batch: int) -> None:
    """The trainer's own loop, which waits at the end of a step until it is its turn again."""
    from transformers import TrainerCallback

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
    """Seconds of an evaluation, the best of three, and of saving a checkpoint."""
    trainer.args.dataloader_drop_last = False
    evaluated = min(seconds_of(trainer.evaluate) for _ in range(3))
    return evaluated, seconds_of(lambda: trainer._save_checkpoint(trainer.model, trial=None))


def ours(plan: Plan, folder: Path, turns: Turns | None, stages: Stages, row: str = "cached") -> dict[str, Any]:
    """Run what ``kd distill`` runs, with ``cached`` or ``online`` targets, or its ``baseline``."""
    endless = {} if turns is None else {"epochs": 10**6}
    targets, name = ("cached", "baseline") if row == "baseline" else (row, "distilled")
    run = create_run(plan.config(folder, targets=targets, **endless), folder / f"runs-{row}", "bench")
    if turns is None:
        execute(run)
        return {"precision": run.last("models")["precision"]}
    run.append("started")
    scoring = Stages()
    count_scoring(scoring)
    prepared = prepare_run(run)
    lesson = prepared.lesson(Trial(prepared.plan.config.seed, name, 1, 1))
    trainer = trainer_in_stages(prepared.job, lesson, stages)
    with training_threads(prepared.job.device, prepared.plan.input_size):
        train_in_turns(trainer, turns, stages, plan.batch_size)
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
        student = setup.build_student(self.plan.config, self.splits, trial.seed)
        return Lesson(self.plan, trial, student, self.pixels, self.targets)


def prepare_run(run: Run) -> Prepared:
    """Do what the recipe does before its first training."""
    job = setup.start_job(run)
    splits = setup.load_job_splits(job)
    teacher = setup.load_job_teacher(job.config, splits)
    student = setup.build_student(job.config, splits, job.config.seed)
    plan = setup.make_plan(job, splits, teacher, student)
    pixels = setup.decode(job, plan, splits)
    setup.tell_models(job, plan, teacher, student)
    return Prepared(job, plan, splits, pixels, setup.teacher_targets(job, plan, splits, teacher, pixels))


def trainer_in_stages(job: setup.Job, lesson: Lesson, stages: Stages) -> Any:
    """Build a run's trainer, its stages counted; it neither evaluates nor saves on its own."""
    trainer = build_trainer(job, lesson)
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    stages.wrap(trainer.train_dataset, "__getitems__", "crop")
    if lesson.trial.is_distilled:
        stages.wrap(trainer, "_teacher_logits", "targets")
    return trainer


def count_scoring(stages: Stages) -> None:
    """Count what scoring on original files takes (``kd.evaluation.scoring``), and the timing of both models."""
    from kd.evaluation import latency, scoring
    from kd.models.teacher import Teacher

    score = scoring.score

    def counted(model: Any, *arguments: Any, **options: Any) -> Any:
        with stages.time("teacher" if isinstance(model, Teacher) else "student"):
            return score(model, *arguments, **options)

    scoring.score = counted
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


def ceiling(plan: Plan, folder: Path, turns: Turns, stages: Stages, quick: bool = True) -> dict[str, Any]:
    """The student's forward, backward and optimiser step on one batch that is in place, in the best of our precisions
    and layouts; without ``quick``, with PyTorch's own gradients of depthwise convolutions."""
    import torch

    from kd.models.device import pick_device

    device = pick_device(plan.device)
    layouts = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    halves = ["bf16"] if device.type == "cpu" else ["bf16", "fp16"]
    ways = {
        f"{precision} {name}": student_step(plan, stages, precision, layout, quick)
        for precision in ("fp32", *halves)
        for name, layout in layouts.items()
    }
    with training_threads(device, (plan.image_size, plan.image_size)), suppress(Enough):
        times = {name: [seconds_of(step, turns.synchronise) for _ in range(3)] for name, step in ways.items()}
        best = min(times, key=lambda name: min(times[name][1:]))
        step = ways[best]
        ways.clear()
        while True:
            step()
            turns.step(plan.batch_size)
    return {"precision": best, "costs": None}


def student_step(plan: Plan, stages: Stages, precision: str, layout: Any, quick: bool) -> Callable[[], None]:
    """One training step of a fresh student on a batch that never changes."""
    import torch
    from torch import nn

    from kd.models.depthwise import DepthwiseConv2d
    from kd.models.device import Compute, pick_device
    from kd.models.student import load_student
    from kd.training.losses import distillation_loss

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


def seconds_of(call: Callable[[], Any], synchronise: Callable[[], None] = lambda: None) -> float:
    started = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - started


def student_only(plan: Plan, folder: Path, turns: Turns, stages: Stages) -> dict[str, Any]:
    """Our training without a teacher, as a run's baseline is."""
    found = ours(plan, folder, turns, stages, "baseline")
    return {**found, "costs": [cost for cost in found["costs"] if cost.shared != "teacher"]}


def scaled(plan: Plan, folder: Path, turns: Turns, stages: Stages, times: int) -> dict[str, Any]:
    """``cached`` on ``times`` as many pictures: the decoded ones again and again, each in crops of its own, with made-up
    answers of a teacher."""
    from kd.data.pixels import Pixels
    from kd.data.views import Views
    from kd.system.files import mapped, npy_writer

    run = create_run(plan.config(folder, epochs=10**6, targets="online"), folder / f"runs-{times}", "bench")
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
    trainer = trainer_in_stages(prepared.job, prepared.lesson(prepared.plan.trials[0]), stages)
    with training_threads(prepared.job.device, prepared.plan.input_size):
        train_in_turns(trainer, turns, stages, plan.batch_size)
    return {
        "precision": prepared.plan.precision,
        "costs": None,
        "images": count,
        "file_gb": round(file.stat().st_size / 1e9, 2),
    }


WAYS: dict[str, Callable[..., dict[str, Any]]] = {
    "guide": guide,
    "online": lambda *a: ours(*a, "online"),
    "cached": lambda *a: ours(*a, "cached"),
    "ceiling": ceiling,
    "plain": lambda *a: ceiling(*a, quick=False),
    "student only": student_only,
    **{f"cached {times}x": functools.partial(scaled, times=times) for times in SCALES},
}
"""Row -> what its process does. ``plain`` is the ceiling without what we changed in PyTorch's way: the gradients of
``kd.models.depthwise`` and the allocator's settings."""


def work_on(row: str, plan: Plan, folder: Path, connection: Any) -> None:
    """A row's process. Sends its turns, then what ``WAYS`` returned with its memory, or an error in words."""
    born = time.perf_counter()
    import datasets
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore")
    memory, stages = Memory(), Stages()
    memory.start()
    gpu = plan.on_gpu
    synchronise = torch.cuda.synchronize if gpu else lambda: None
    turns = None if plan.full else Turns(connection, stages, synchronise, plan.turn_seconds)
    start = time.perf_counter() - born
    try:
        facts = WAYS[row](plan, folder, turns, stages)
    except UserError as problem:
        connection.send(problem)
        return
    peak = torch.cuda.max_memory_allocated() / 1e6 if gpu else memory.peak
    connection.send({
        **facts, "seconds": time.perf_counter() - born, "start": start, "peak_mb": round(peak),
        "threads": torch.get_num_threads(), "device": torch.cuda.get_device_name() if gpu else "cpu",
    })  # fmt: skip
