"""The events of a run and of a sweep, one ``TypedDict`` each: the lines of ``events.jsonl``.

Every event also has ``event``, its name, and ``time``, Unix seconds. Most may have ``warnings``, sentences for the user.
"""

from typing import Any, Literal, NotRequired, TypedDict

Labels = Literal["dataset", "teacher"]
Cost = dict[str, Any]  # name, parameters, megabytes, flops


class Event(TypedDict):
    """What all events have."""

    event: str
    time: float
    warnings: NotRequired[list[str]]


# --- The life of a run or a sweep: the last of these is its status


class Created(Event):
    expected: NotRequired[float]  # seconds that the run will take, where they were estimated


class Queued(Event):
    """The run waits for its device; ``place`` 1 is the next."""

    place: int
    device: str
    wait: NotRequired[int]  # seconds, where they are known


class Started(Event):
    """Also ``resumed``. ``oom_kills``: processes that the system had killed for want of memory by then, where it counts."""

    pid: int
    oom_kills: int | None


class Stopped(Event):
    message: str


class Paused(Event):
    """The run goes on later: its GPU is lent for a while only (``kd.runs.pieces``, which has the reasons)."""

    reason: Literal["gpu", "time", "cpu", "quota", "pending", "duration", "queue", "worker", "closed"]
    message: str


class Failed(Event):
    message: str
    error: str  # the class of the exception
    kind: str  # UserError.kind: "diverged", ...


class SweepDone(Event):
    """A run's has nothing more than its name. ``winner`` is a row of ``Sweep.points``, ``final`` a run's id."""

    winner: dict[str, Any]
    final: str
    sentence: str


# --- What a run does, in this order


class Progress(Event):
    """``done`` of ``of`` items of a phase."""

    phase: str
    done: int
    of: int


class Hub(Event):
    """A wait for the Hub."""

    message: str


# The effective configuration, decided once: a resumed run keeps to it. (``lambda`` is no name for a field of a class.)
RunPlan = TypedDict(
    "RunPlan",
    {
        "event": str,
        "time": float,
        "epochs": int,
        "lambda": float,
        "minutes": NotRequired[float],
        "images_per_second": NotRequired[float],
    },
)


class Stream(Event):
    """A streamed dataset has been read to its end, ``read`` images in ``seconds``. ``folder``: what is kept of it, in the
    cache. ``hit``: by an earlier run; ``partial``: a part of it before this run was interrupted."""

    folder: str
    read: int
    seconds: float
    cache: Literal["hit", "miss", "partial"]
    pixels: bool  # whether decoded images are kept


class Data(Event):
    """The images, decoded. ``validation_pictures`` and ``test_pictures`` are fingerprints."""

    train: int
    labelled: NotRequired[int]  # training images that have a label, where some have none
    validation: int
    test: int
    classes: list[str]
    labels: Labels
    validation_pictures: str
    test_pictures: str
    seconds: float
    cache: Literal["hit", "miss"]


class Models(Event):
    teacher: Cost | None
    student: Cost
    image_size: list[int]  # height, width
    healed: list[str]
    device: str
    precision: str
    processes: NotRequired[int]  # that train together, where there are several


class Teacher(Event):
    """The teacher on the validation images; no figures where they have no labels."""

    accuracy: NotRequired[float]
    f1: NotRequired[float]


class Targets(Event):
    cache: Literal["hit", "partial", "miss", "online"]
    seconds: float
    precision: NotRequired[str]


class TargetCheck(Event):
    """The teacher on the whole training images, whose logits students learn, and on the validation images."""

    accuracy: float
    validation: float


class Memory(Event):
    """A GPU's memory ran out: batches are cut into ``parts`` from now on."""

    parts: int
    batch_size: int


class Saved(Event):
    """How many seconds saving a checkpoint takes, and the student on validation before it: at most, so far, and only where
    the GPU is lent."""

    saving: float
    evaluating: float | None


class Training(Event):
    """A trial begins, or goes on after a resume from ``step``. Number ``nth`` ``of`` the run's trainings."""

    epochs: int
    steps: int
    step: int
    arm: Literal["distilled", "baseline"]
    seed: int
    nth: int
    of: int
    at_once: NotRequired[int]  # trainings that go on at the same time, where it is more than one


class Step(Event):
    """Mean losses over the images since the last such event. ``arm`` and ``seed`` are those of its training."""

    step: int
    epoch: float
    total: float
    soft: float
    hard: float
    images_per_second: float
    seconds: float
    arm: Literal["distilled", "baseline"]
    seed: int


class Eval(Event):
    """The student on the validation images, after an epoch. ``arm`` and ``seed`` are those of its training."""

    step: int
    epoch: float
    accuracy: float
    f1: float
    agreement: NotRequired[float]
    loss: float | None
    seconds: float
    arm: Literal["distilled", "baseline"]
    seed: int


class Exported(Event):
    folder: str  # of the student, under the run's


class Arm(Event):
    """A trial is done: its scores on the test split (``scores.json``)."""

    arm: Literal["distilled", "baseline"]
    seed: int
    accuracy: float
    f1: float
    agreement: NotRequired[float]
    validation: float
    kept: bool
    best_epoch: int
    epochs: int
    seconds: float
    images_per_second: float


class Result(Event):
    """The main parts of ``report.json``."""

    teacher: dict[str, Any] | None
    student: dict[str, Any]
    agreement: float | None
    speedup: float | None
    size_ratio: float | None
    train: dict[str, Any]
    verdict: dict[str, Any] | None
    onnx: NotRequired[dict[str, Any] | None]  # the student in ONNX Runtime, where the run exported it


# --- What a sweep does


class SweepPlan(Event):
    epochs: int
    rungs: list[tuple[int, int]]  # how many points, for how many epochs
    labels: Labels


class SweepRun(Event):
    """A run was made with these ``changes`` of the settings."""

    run: str
    changes: dict[str, Any]


# A point was measured on validation.
SweepPoint = TypedDict(
    "SweepPoint",
    {
        "event": str,
        "time": float,
        "temperature": float,
        "lambda": float,
        "method": str,
        "epochs": int,
        "run": str,
        "accuracy": float | None,
        "agreement": float | None,
        "diverged": bool,
        "seconds": float,
    },
)

# Name of an event -> its fields. A sweep's ``plan`` is another than a run's.
OF_RUNS: dict[str, Any] = {
    "created": Created,
    "queued": Queued,
    "started": Started,
    "resumed": Started,
    "progress": Progress,
    "hub": Hub,
    "plan": RunPlan,
    "stream": Stream,
    "data": Data,
    "models": Models,
    "teacher": Teacher,
    "targets": Targets,
    "target_check": TargetCheck,
    "memory": Memory,
    "training": Training,
    "step": Step,
    "eval": Eval,
    "exported": Exported,
    "arm": Arm,
    "result": Result,
    "saved": Saved,
    "stopped": Stopped,
    "paused": Paused,
    "failed": Failed,
    "done": Event,
}
OF_SWEEPS: dict[str, Any] = {
    **{name: OF_RUNS[name] for name in ("created", "started", "resumed", "stopped", "failed")},
    "plan": SweepPlan,
    "run": SweepRun,
    "point": SweepPoint,
    "done": SweepDone,
}
