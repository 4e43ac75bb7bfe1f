"""The configuration of a run: one frozen dataclass. Command-line flags and widgets are built from its fields."""

import dataclasses
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

# The name of the embedded dataset, and of its teacher.
SAMPLE = "sample"

# The teacher of a run that learns from the labels alone, as one that makes a teacher does.
NO_TEACHER = "none"

# How the name of a teacher begins that another run has trained; the run's id follows.
RUN_TEACHER = "run:"

# Images of up to this side keep their size; larger ones are trained on at 224 pixels unless asked otherwise.
SMALL_SIDE = 64

# The students with random weights that ``kd.models.zoo`` builds, named here so that a page can offer them without torch.
STUDENT_NAMES = (
    *(f"mobilenet_v2_{width}" for width in (1.4, 1.0, 0.75, 0.5, 0.35)),
    "mobilevit_xx_small",
    "efficientnet_b0",
    "resnet_8",
    "resnet_14",
    "resnet_18",
    "convnextv2_atto",
    "deit_tiny",
)

# Students with random weights -> the same architecture with weights of ImageNet, on the Hub.
PRETRAINED = {
    "mobilenet_v2_1.4": "google/mobilenet_v2_1.4_224",
    "mobilenet_v2_1.0": "google/mobilenet_v2_1.0_224",
    "mobilenet_v2_0.75": "google/mobilenet_v2_0.75_160",
    "mobilenet_v2_0.35": "google/mobilenet_v2_0.35_96",
    "mobilevit_xx_small": "apple/mobilevit-xx-small",
    "efficientnet_b0": "google/efficientnet-b0",
    "resnet_18": "microsoft/resnet-18",
    "convnextv2_atto": "facebook/convnextv2-atto-1k-224",
    "deit_tiny": "facebook/deit-tiny-patch16-224",
}

# Method -> the settings that come with it. Temperature and weight are its paper's (``kd.training.losses`` cites them);
# labels and teacher have equal shares, as all were measured. The defaults are those of kd.
METHODS: dict[str, dict[str, Any]] = {
    "kd": {},
    "dkd": {"temperature": 4.0, "lambda": 0.5},
    "dist": {"temperature": 1.0, "weight": 2.0, "lambda": 0.5},
    "kd+std": {"temperature": 2.0, "weight": 9.0, "lambda": 0.5},
    "dkd+std": {"temperature": 2.0, "weight": 9.0, "lambda": 0.5},
}

# Recipe -> the settings that it has in common for all students; ``scratch`` is the defaults.
RECIPES: dict[str, dict[str, Any]] = {
    "scratch": {},
    # Pretrained weights need smaller steps and fewer epochs; assets/studies/photos-pretrained.json has the figures.
    "pretrained": {"learning_rate": 1e-3, "epochs": 6, "views": 2},
    # huggingface.co/docs/transformers/tasks/knowledge_distillation_for_image_classification, as it stands
    "guide": {
        "learning_rate": 5e-5, "batch_size": 8, "views": 1, "crop_area": 1.0, "weight_decay": 0.0, "schedule": "linear",
        "warmup": 0.0, "temperature": 5.0, "lambda": 0.5, "heal": "no",
    },
}  # fmt: skip


def setting(default, help: str, **rules):
    """Return a dataclass field with its help and its rules.

    The rules are ``above`` or ``low``, ``high``, ``choices`` (no others), ``suggestions``, a ``pattern`` with what is
    ``expected`` in words, and ``only``, the methods that the setting matters to.
    """
    return dataclasses.field(default=default, metadata={"help": help, **rules})


@dataclass(frozen=True)
class DistillConfig:
    """The settings of one distillation. Raises ``ValueError``, in words for a user, on a value out of range."""

    teacher: str = setting(
        SAMPLE, "teacher: a Hub id, a folder, 'sample', run:ID for what a run has trained, or none for the labels alone"
    )
    dataset: str = setting(
        SAMPLE,
        "pictures: a Hub id, a folder of class folders or of pictures without labels, an archive of one, upload:ID, a parquet "
        "file, or 'sample'",
    )
    dataset_config: str | None = setting(None, "configuration of a Hub dataset that has several")
    train_split: str | None = setting(None, "name of the training split (default: found by name)")
    validation_split: str | None = setting(None, "name of the validation split (default: found, or cut from train)")
    test_split: str | None = setting(None, "name of the test split (default: found, or cut from train)")
    validation_fraction: float = setting(
        0.1, "share of train to cut where there is no validation split", above=0, high=0.5
    )
    test_fraction: float = setting(0.1, "share of train to cut where there is no test split", above=0, high=0.5)
    split_seed: int = setting(
        0,
        "seed of the splits that are cut; the same for a teacher that a run makes and for all that are compared",
        low=0,
    )
    image_column: str | None = setting(None, "column of the pictures (default: found by type)")
    label_column: str | None = setting(None, "column of the labels (default: found by type and name)")
    label_map: str | None = setting(
        None, "classes as the teacher calls them: 'class=teacher class, ...', or a JSON file (default: guessed by name)"
    )
    duplicates: str = setting(
        "one side",
        "one side: what is in the test split too (or in validation) is left out of training; keep: nothing is left out",
        choices=("one side", "keep"),
    )
    streaming: str = setting(
        "no",
        "yes: a dataset of the Hub, or many parquet files or tar shards, is read once from beginning to end and never "
        "downloaded as a whole or held in memory; validation and test are kept",
        choices=("yes", "no"),
    )
    student: str = setting(
        "mobilenet_v2_0.35",
        "student: a name from `python -m kd students`, a Hub id or a folder",
        suggestions=STUDENT_NAMES,
    )
    image_size: int | None = setting(
        None, "side of the student's input in pixels (default: from the pictures)", low=16, high=1024
    )
    recipe: str = setting(
        "scratch",
        "scratch: for random weights; pretrained: for others; guide: the Transformers guide's",
        choices=tuple(RECIPES),
    )
    method: str = setting(
        "kd",
        "what the student learns of the teacher's answers. kd: softened, try it first; dist: which are alike, as good on our "
        "sample, behind in short training on photos; dkd: the wrong classes apart, which hurt in our sample's 8 epochs; kd+std, dkd+std: standardised, no gain "
        "on our sample",
        choices=tuple(METHODS),
    )
    temperature: float = setting(5.0, "softens both distributions; higher shows more of the wrong classes", above=0)
    lambda_: float = setting(0.5, "weight of the teacher: 0 is labels only, 1 is teacher only", low=0, high=1)
    labels: int | None = setting(
        None,
        "training pictures that keep their label, as many of each class as its share; the others are learned from the "
        "teacher alone (default: all keep it)",
        low=2,
    )
    weight: float = setting(1.0, "of the method's own loss, inside its share lambda", above=0)
    dkd_alpha: float = setting(1.0, "weight of DKD's first term, the labelled class", low=0, only=("dkd", "dkd+std"))
    dkd_beta: float = setting(8.0, "weight of DKD's second term, the other classes", low=0, only=("dkd", "dkd+std"))
    dkd_warmup: float = setting(
        20.0, "epochs in which DKD's weight grows; at most a twelfth of all", low=0, only=("dkd", "dkd+std")
    )
    dist_beta: float = setting(1.0, "weight of DIST's relation between a picture's classes", low=0, only=("dist",))
    dist_gamma: float = setting(1.0, "weight of DIST's relation between a class's pictures", low=0, only=("dist",))
    baseline: str = setting(
        "no",
        "yes: the same student learns once more without the teacher, and the report says whether the teacher helped",
        choices=("yes", "no"),
    )
    trials: int = setting(1, "seeds that are trained, seed and up; with a baseline, of each", low=1, high=20)
    epochs: int = setting(30, "passes over the training pictures", low=1)
    minutes: float | None = setting(
        None, "time of each training to aim at; it sets the epochs, from a short measurement", above=0, high=1440
    )
    batch_size: int = setting(32, "pictures a step", low=1)
    learning_rate: float = setting(3e-3, "peak of the learning rate, after a warm-up and before a cosine", above=0)
    weight_decay: float = setting(0.05, "AdamW's weight decay", low=0)
    schedule: str = setting("cosine", "how the learning rate falls after the warm-up", choices=("cosine", "linear"))
    warmup: float = setting(0.1, "share of training in which the learning rate rises", low=0, high=0.5)
    mixup: float = setting(
        0.0, "mixes each picture and its targets with another's: Beta(a, a), 0 for none", low=0, high=10
    )
    ema: float = setting(
        0.0,
        "decay of a moving average of the weights, which is validated and kept in their place; 0 for none",
        low=0,
        high=0.999,
    )
    start_size: int | None = setting(
        None, "input side at which training begins; it grows to the full one in the first two thirds", low=16, high=1024
    )
    views: int = setting(
        4,
        "crops of each picture that the teacher sees; epoch e trains on view e mod views (online, above 1: each on its own)",
        low=1,
    )
    crop_area: float = setting(
        0.5, "smallest crop, as a share of the picture's area; 1: whole, every second view mirrored", above=0, high=1
    )
    targets: str = setting(
        "cached", "cached: the teacher sees each view once; online: in every step", choices=("cached", "online")
    )
    heal: str = setting(
        "yes",
        "yes: BatchNorm momentum and dropout as PyTorch means them, and random weights of Kaiming's size; no: as transformers has them",
        choices=("yes", "no"),
    )
    export: str = setting(
        "onnx",
        "onnx: at its end the run exports its student to ONNX, and scores and times it there beside the teacher; no: it does not",
        choices=("onnx", "no"),
    )
    seed: int = setting(0, "seed of the student's weights and of the order of pictures", low=0, high=2**32 - 1)
    device: str = setting(
        "auto",
        "auto, cpu, cuda, cuda:N or mps",
        pattern=r"auto|cpu|mps|cuda(:\d+)?",
        expected="auto, cpu, mps, cuda or cuda:N",
    )
    processes: int = setting(
        1,
        "processes that train together, each on a GPU of its own with its part of every batch, and ask the teacher about their "
        "parts of the pictures; auto: one for each GPU. On a CPU it is slower",
        low=1,
        high=64,
    )
    precision: str = setting("auto", "arithmetic while training", choices=("auto", "fp32", "bf16", "fp16"))
    threads: int | None = setting(
        None,
        "CPU threads of each training, and of the latency that is measured at the end (default: all; for training on small "
        "pictures all but one)",
        low=1,
        high=1024,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = checked(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        label_pairs(self.label_map or "")
        if self.batch_size % self.processes:
            raise ValueError(
                f"batch_size is {self.batch_size} and there are {self.processes} processes: each takes an equal part of every "
                f"batch. Choose a batch size that {self.processes} divides, such as "
                f"{self.processes * max(1, round(self.batch_size / self.processes))}."
            )
        if self.teacher == NO_TEACHER:
            if self.baseline == "yes":
                raise ValueError(
                    "baseline is yes, but the teacher is none: such a run is a baseline itself. Leave out the baseline, or "
                    "choose a teacher."
                )
            object.__setattr__(self, "lambda_", 0.0)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the configuration that ``to_dict`` wrote, where the weight of the teacher is called ``lambda``."""
        known = {public_name(field): field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"Unknown setting {', '.join(unknown)}. The settings are {', '.join(known)}.")
        return cls(**{known[name]: value for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return every setting under its public name, ready for JSON."""
        return {public_name(field): getattr(self, field.name) for field in dataclasses.fields(self)}

    def with_absolute_paths(self) -> Self:
        """Return a copy with absolute paths of what exists, so that a run can be resumed from another folder."""
        names = [name for name in ("teacher", "dataset", "student") if self._is_path(getattr(self, name))]
        return dataclasses.replace(
            self, **{name: str(Path(os.path.expanduser(getattr(self, name))).resolve()) for name in names}
        )

    @staticmethod
    def _is_path(value: str) -> bool:
        try:
            return value not in (SAMPLE, NO_TEACHER) and Path(os.path.expanduser(value)).exists()
        except OSError:  # too long for a name, say
            return False

    @classmethod
    def finetune(cls, base: str, /, **changes: Any) -> Self:
        """Return the settings of a run that makes a teacher: a pretrained ``base`` learns from the labels.

        ``base`` is a Hub id or a folder, ``changes`` are settings by their public names. Raises ``ValueError`` for a base
        that is none.
        """
        if base in (SAMPLE, NO_TEACHER) or base.startswith(RUN_TEACHER):
            raise ValueError(
                f"The model to fine-tune is {base!r}; expected a Hub id or a folder of a pretrained image classifier, for "
                "example google/vit-base-patch16-224."
            )
        if (
            "recipe" not in changes
        ):  # smaller steps than a student's: the base may be a transformer, which those would spoil
            changes = {"learning_rate": 5e-4, "epochs": 10, **changes}
        return cls.preset("custom", **changes, teacher=NO_TEACHER, student=base)

    @classmethod
    def preset(cls, name: str, /, **changes: Any) -> Self:
        """Return one of ``PRESETS`` with some settings (public names) changed.

        A method brings what its paper sets, a recipe what it consists of. A student that is not one of ours has the recipe
        for pretrained ones, unless asked otherwise.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"There is no preset {name!r}. The presets are {', '.join(PRESETS)}.")
        student = changes.get("student", PRESETS[name].get("student", STUDENT_NAMES[0]))
        if student not in STUDENT_NAMES:
            changes = {"recipe": "pretrained", **changes}
        if name == SAMPLE and (changes.get("teacher", SAMPLE), changes.get("dataset", SAMPLE)) != (SAMPLE, SAMPLE):
            # The sample's baseline is part of its demonstration; with other models and images it is a choice.
            changes = {"baseline": "no", **changes}
        of_recipe, of_method = RECIPES.get(str(changes.get("recipe")), {}), METHODS.get(str(changes.get("method")), {})
        return cls.from_dict({**PRESETS[name], **of_recipe, **of_method, **changes})


# Name -> the settings that a run can start from.
PRESETS: dict[str, dict[str, Any]] = {
    # Sized by measurement for 90 s on two CPU cores, from click to done; assets/guide/numbers.md has the figures. One
    # thread and one precision, so that the same seed gives the same figures whatever else the machine does.
    "sample": {
        "student": "resnet_8", "epochs": 16, "batch_size": 128, "learning_rate": 0.01, "weight_decay": 0.3, "views": 2,
        "crop_area": 1.0, "temperature": 2.0, "lambda": 1.0, "baseline": "yes", "precision": "fp32", "threads": 1,
    },
    # huggingface.co/docs/transformers/tasks/knowledge_distillation_for_image_classification
    "beans": {
        "teacher": "merve/beans-vit-224",
        "dataset": "AI-Lab-Makerere/beans",
        "student": "mobilenet_v2_1.0",
        "temperature": 5.0,
        "lambda": 0.5,
        "epochs": 30,
        "image_size": 224,
    },
    "custom": {"student": "mobilenet_v2_1.0", "temperature": 2.0, "lambda": 0.9},
}  # fmt: skip


def label_pairs(text: str) -> dict[str, str]:
    """Return the pairs of a label map: "class=teacher class, ..." or a JSON object.

    A class with nothing after its "=" has no class of the teacher. A comma that no "=" follows belongs to a name. Raises
    ``ValueError`` in words for a user.
    """
    problem = ValueError(
        f"label_map is {text!r}; expected pairs such as 'sneakers=running shoe, mug=coffee mug', or a JSON object of them."
    )
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError:
            raise problem from None
        if not all(isinstance(name, str) for name in found.values()):
            raise problem
        return {ours.strip(): theirs.strip() for ours, theirs in found.items()}
    pairs = {}
    for part in re.split(r",(?=[^,]*=)", text) if text.strip() else ():
        ours, equals, theirs = part.partition("=")
        if not equals or not ours.strip():
            raise problem
        pairs[ours.strip()] = theirs.strip()
    return pairs


def joined_classes(label_map: str | None) -> dict[str, str]:
    """Return the classes that a label map joins with another, each with that other: the map gives both the same class of
    the teacher, and the first that it names keeps its name."""
    first: dict[str, str] = {}
    pairs = label_pairs(label_map or "")
    joined = {ours: first.setdefault(theirs, ours) for ours, theirs in pairs.items() if theirs}
    return {ours: kept for ours, kept in joined.items() if ours != kept}


# The settings that say which images are learned from.
OF_PICTURES = (
    "dataset", "dataset_config", "train_split", "validation_split", "test_split", "validation_fraction", "test_fraction",
    "split_seed", "image_column", "label_column", "streaming",
)  # fmt: skip

# The settings that matter to a check of the images (``kd.evaluation.dataset_check``).
CHECKED = ("teacher", "label_map", *OF_PICTURES, "student", "image_size", "device")


def public_name(field: dataclasses.Field) -> str:
    """Return a field's name, ``lambda`` for ``lambda_``, as Python reserves that word."""
    return field.name.rstrip("_")


def checked(field: dataclasses.Field, value: Any) -> Any:
    """Return ``value`` as the type of a ``setting``, within its rules.

    Text is accepted for numbers, as flags and text boxes deliver it. Raises ``ValueError`` in words for a user.
    """
    rules = field.metadata
    kind, *none = get_args(field.type) or (field.type,)
    if isinstance(value, str):
        value = value.strip()
    if value is None or value == "":
        if none:
            return None
        raise _out_of_range(field, value)
    if kind is str:
        matches = isinstance(value, str) and re.fullmatch(rules.get("pattern", "(?s:.*)"), value)
        if not matches or value not in rules.get("choices", (value,)):
            raise _out_of_range(field, value)
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _out_of_range(field, value) from None
    out_of_range = number < rules.get("low", -math.inf) or number > rules.get("high", math.inf)
    if not math.isfinite(number) or out_of_range or number <= rules.get("above", -math.inf):
        raise _out_of_range(field, value)
    if kind is int and number != int(number):
        raise _out_of_range(field, value)
    return kind(number)


def _out_of_range(field: dataclasses.Field, value: Any) -> ValueError:
    """Return the error for a value that a setting does not take. It is not made before it is needed: a page reads settings
    many times a second."""
    example = "" if type(None) in get_args(field.type) else f", for example {field.default}"
    return ValueError(f"{public_name(field)} is {value!r}; expected {expected(field)}{example}.")


def expected(field: dataclasses.Field) -> str:
    """Return what a setting takes: "a number above 0", "a whole number from 16 to 1024", "one of cached, online"."""
    rules, kind = field.metadata, (get_args(field.type) or (field.type,))[0]
    if "choices" in rules:
        return f"one of {', '.join(rules['choices'])}"
    if "expected" in rules:
        return rules["expected"]
    words = {int: "a whole number", float: "a number", str: "text"}[kind]
    if "above" in rules:
        return f"{words} above {rules['above']}" + (f" and at most {rules['high']}" if "high" in rules else "")
    if "low" in rules and "high" in rules:
        return f"{words} from {rules['low']} to {rules['high']}"
    return words + (f", {rules['low']} or more" if "low" in rules else "")
