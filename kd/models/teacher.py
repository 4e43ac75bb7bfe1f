"""Teachers and students: loading, building, healing, and the check of labels before a second is spent."""

import copy
import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileViTConfig,
    MobileViTForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessorPil,
)
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.efficientnet.modeling_efficientnet import EfficientNetFinalBlockLayer

from kd.config import NO_TEACHER, SAMPLE
from kd.data.splits import ASSETS, SMALL_SIDE, some
from kd.models.class_map import match_classes, nameless, plain
from kd.models.depthwise import quicken
from kd.runs.run import RunError, lost_teacher, write_whole
from kd.system import memory
from kd.system.hub import from_hub

BIG_SIDE = 224
BF16_GAIN = 1.1
"""bf16 is taken where a batch is this many times faster: it has eight bits of precision, and timings are noisy."""
CLEAR_GAIN = 1.5
"""One look is enough where a precision is this many times faster."""
# Without this, transformers asks a Space to convert pickled weights, which opens a pull request on their repository.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"


# --- What a processor does to pixels, as numbers


@dataclass(frozen=True)
class Pipeline:
    """A processor as arithmetic: resize to ``size`` (height, width), reorder the channels, ``pixel * scale + offset``
    for pixels of 0 to 255."""

    size: tuple[int, int]
    channels: tuple[int, int, int]
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]

    def __call__(self, pixels: Tensor) -> Tensor:
        """``[B, 3, H, W]`` of 0 to 255, at ``size`` already, to what the model expects."""
        scale, offset = (pixels.new_tensor(v).view(1, 3, 1, 1) for v in (self.scale, self.offset))
        if self.channels != (0, 1, 2):
            pixels = pixels[:, list(self.channels)]
        return pixels * scale + offset


def pipeline(processor: Any) -> Pipeline:
    """Read a processor's arithmetic off what it does to plain pictures: every family names its settings differently
    (EfficientNet's divides by the deviation twice, MobileViT's swaps channels).

    Raises ``RunError`` where it is not a per-channel scale and offset.
    """
    colours = ["black", "red", "lime", "blue"]
    outputs = [np.asarray(run_processor(processor, [Image.new("RGB", (512, 512), c)])[0], np.float64) for c in colours]
    offset = outputs[0].mean(axis=(1, 2))
    matrix = np.stack([out.mean(axis=(1, 2)) - offset for out in outputs[1:]], axis=1) / 255
    channels = np.abs(matrix).argmax(axis=1)
    scale = matrix[np.arange(3), channels]
    rest = np.abs(matrix).sum() - np.abs(scale).sum()
    if sorted(channels) != [0, 1, 2] or rest > 1e-6 * np.abs(scale).sum():
        raise RunError(f"{type(processor).__name__} mixes colour channels, which is not supported.")
    height, width = outputs[0].shape[1:]
    return Pipeline((height, width), tuple(channels.tolist()), tuple(scale.tolist()), tuple(offset.tolist()))


def run_processor(processor: Any, images: list[Image.Image]) -> Tensor:
    """Pictures through a model's own processor: float32 ``[B, 3, H, W]``."""
    return processor(images, return_tensors="pt")["pixel_values"]


# --- Teacher


NEVER = -1e4
"""The logit of a class that the teacher does not know: no chance at all, and finite in every type."""


class Teacher(nn.Module):
    """A frozen classifier whose logits come in the order of ``classes``: the dataset's, or its own where that has none.

    ``known`` is bool ``[C]``, which of the classes it knows, or ``None`` for all; the logit of another is ``NEVER``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        columns: list[int | None] | None = None,
        classes: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.columns = columns
        self.classes = classes or classes_of(model.config)
        known = None if columns is None or None not in columns else torch.tensor([c is not None for c in columns])
        self.register_buffer("known", known, persistent=False)
        self.pipeline = pipeline(processor)

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """``[B, 3, H, W]`` to ``logits`` ``[B, C]``."""
        logits = self.model(pixel_values=pixel_values).logits
        if self.columns is not None:
            logits = logits[:, [column or 0 for column in self.columns]]
        if self.known is not None:
            logits = logits.masked_fill(~self.known, NEVER)
        return ImageClassifierOutput(logits=logits)

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in evaluation mode: dropout must not blur the targets."""
        return super().train(False)

    def key(self) -> str:
        """A hash of weights, architecture, processor and order of classes: what the answers depend on."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        config = {
            k: v for k, v in self.model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")
        }
        digest.update(repr((config, self.processor.to_dict(), self.columns)).encode())
        return digest.hexdigest()


def load_teacher(
    name: str, classes: list[str] | None, label_map: str | None = None, counts: list[int] | None = None
) -> tuple[Teacher, list[str]]:
    """The teacher, its outputs in the order of ``classes`` (none: in its own), and what the user should know about
    the match (``kd.models.class_map``). ``counts``: the training pictures of each class, to be named there.

    Raises ``RunError`` if it is not there, cannot be reached, has an untrained head, or other classes.
    """
    source = _source(name)

    def load() -> tuple[Any, dict[str, Any], Any]:
        _check_is_classifier(_config("teacher", source), name)
        model, info = _from_pretrained("teacher", source, output_loading_info=True)
        return model, info, load_processor(source, "teacher", name)

    model, info, processor = from_hub("teacher", name, load)
    fresh = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if fresh:
        raise RunError(
            f"The teacher {name!r} has weights that were never trained ({some(fresh)}): it is a backbone without a "
            "classification head. Fine-tune it on these classes first (`python -m kd teacher --base`), then use the result "
            "as the teacher."
        )
    if not classes:
        return Teacher(model, processor), []
    match = match_classes(classes_of(model.config), classes, label_map)
    match.check()
    in_order = match.columns == list(range(len(match.theirs)))
    return Teacher(model, processor, None if in_order else match.columns, classes), match.in_words(counts)


def teacher_classes(name: str) -> list[str]:
    """The classes of a teacher, without its weights. Raises ``RunError`` if it is not there, or no classifier."""
    source = _source(name)
    config = from_hub("teacher", name, lambda: _config("teacher", source))
    _check_is_classifier(config, name)
    return classes_of(config)


def _source(name: str) -> str:
    """A teacher's folder or Hub id."""
    if name == NO_TEACHER:
        raise RunError("The teacher is none: nobody can be asked. Choose a Hub id, a folder, or 'sample'.")
    if lost := lost_teacher(name):
        raise RunError(
            f"The teacher is gone: it was the student of run {lost}, which has been deleted or moved. Choose another "
            "teacher, or make it again. The students that it has taught stay as they are."
        )
    return str(ASSETS / "sample-teacher") if name == SAMPLE else name


def classes_of(config: Any) -> list[str]:
    """The classes that a model's config names, in their order."""
    return [str(config.id2label[index]) for index in sorted(config.id2label)]


def _check_is_classifier(config: Any, name: str) -> None:
    if type(config) not in AutoModelForImageClassification._model_mapping:
        raise RunError(
            f"{name!r} is a {config.model_type} model, which transformers cannot use for image classification. "
            "Choose a checkpoint of an image classifier, such as a ViT, ResNet or EfficientNet."
        )


def _config(kind: str, source: str) -> Any:
    """The checkpoint's config; of a local folder, one that is there at all."""
    path = Path(os.path.expanduser(source))
    if path.is_dir() and not (path / "config.json").exists():
        raise RunError(f"The {kind} folder {source} has no config.json. Expected a folder saved with save_pretrained.")
    try:
        return AutoConfig.from_pretrained(source)
    except ValueError as error:
        if "model_type" in str(error) or "model type" in str(error):
            raise RunError(
                f"The {kind} {source!r} is of a kind that this version of transformers does not know."
            ) from error
        raise


def _from_pretrained(kind: str, source: str, **options: Any) -> Any:
    """Weights in float32. Only safetensors: a pickle can run anything when it is loaded."""
    try:
        return AutoModelForImageClassification.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, **options
        )
    except OSError as error:
        if "safetensors" in str(error):
            raise RunError(
                f"The {kind} {source!r} has no safetensors weights. Pickled weights are refused, since loading them can "
                "run any code. Convert it with save_pretrained and use that."
            ) from error
        raise


def load_processor(source: str, kind: str, name: str) -> Any:
    """The image processor that a checkpoint was saved with."""
    try:
        return AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        if "preprocessor_config" in str(error) or "image processor" in str(error).lower():
            raise RunError(
                f"The {kind} {name!r} has no preprocessor_config.json: it cannot be told how to see."
            ) from error
        raise


# --- Students


def _names(classes: list[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}


def _stride(size: int, least: int = 16) -> int:
    """The largest total stride that leaves a last map of 4 x 4 pixels, but not under ``least``.

    16 leaves 2 x 2 of 28 or 32 pixels: in the same minutes a MobileNetV2 learned more on it than on 4 x 4, which cost
    twice the time a picture (83% against 79% on the sample, one seed).
    """
    return next((stride for stride in (32, 16) if math.ceil(size / stride) >= 4), least)


def _mobilenet_v2(width: float) -> Callable[[int, dict], PreTrainedModel]:
    def build(size: int, names: dict) -> PreTrainedModel:
        return MobileNetV2ForImageClassification(
            # TensorFlow's lopsided padding serves its weights only, and costs a copy before every convolution.
            MobileNetV2Config(
                depth_multiplier=width, image_size=size, output_stride=_stride(size), tf_padding=False, **names
            )
        )

    return build


def _mobilevit_xx_small(size: int, names: dict) -> PreTrainedModel:
    # huggingface.co/apple/mobilevit-xx-small, config.json
    return MobileViTForImageClassification(
        MobileViTConfig(
            hidden_sizes=[64, 80, 96], neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320], expand_ratio=2.0,
            hidden_dropout_prob=0.05, image_size=size, output_stride=_stride(size), **names,
        )
    )  # fmt: skip


def _efficientnet_b0(size: int, names: dict) -> PreTrainedModel:
    # huggingface.co/google/efficientnet-b0, config.json; the class's own defaults are B7's
    strides = {32: [1, 2, 2, 2, 1, 2, 1], 16: [1, 2, 2, 2, 1, 1, 1]}
    return EfficientNetForImageClassification(
        EfficientNetConfig(
            width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, dropout_rate=0.2, image_size=size,
            strides=strides[_stride(size)], **names,
        )
    )  # fmt: skip


def _resnet_18(size: int, names: dict) -> PreTrainedModel:
    # huggingface.co/microsoft/resnet-18, config.json
    return ResNetForImageClassification(
        ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", **names)
    )


def _convnextv2_atto(size: int, names: dict) -> PreTrainedModel:
    # huggingface.co/facebook/convnextv2-atto-1k-224, config.json; three stages halve after the patches
    return ConvNextV2ForImageClassification(
        ConvNextV2Config(
            hidden_sizes=[40, 80, 160, 320],
            depths=[2, 2, 6, 2],
            image_size=size,
            patch_size=_stride(size, least=8) // 8,
            **names,
        )
    )


def _deit_tiny(size: int, names: dict) -> PreTrainedModel:
    # huggingface.co/facebook/deit-tiny-patch16-224, config.json; at least 7 x 7 patches
    patch = next((patch for patch in (16, 8) if size // patch >= 7), 4)
    return DeiTForImageClassification(
        DeiTConfig(
            hidden_size=192, num_attention_heads=3, intermediate_size=768, image_size=size, patch_size=patch, **names
        )
    )


STUDENTS: dict[str, Callable[[int, dict], PreTrainedModel]] = {
    **{f"mobilenet_v2_{width}": _mobilenet_v2(width) for width in (1.4, 1.0, 0.75, 0.5, 0.35)},
    "mobilevit_xx_small": _mobilevit_xx_small,
    "efficientnet_b0": _efficientnet_b0,
    "resnet_18": _resnet_18,
    "convnextv2_atto": _convnextv2_atto,
    "deit_tiny": _deit_tiny,
}
"""Students with random weights: name -> builder of (input side in pixels, class names)."""
ENLARGED = {"resnet_18": 112}
"""Architectures with no setting for strides: their processor enlarges small pictures to this side."""


@dataclass(frozen=True)
class Student:
    """A model, its processor, and what was changed in it (``healed``)."""

    model: PreTrainedModel
    processor: Any
    pipeline: Pipeline
    pretrained: bool
    healed: list[str] = field(default_factory=list)


def student_side(name: str, asked: int | None, picture_side: int) -> int:
    """The side in pixels of a random-weights student's input: what was asked for, else the pictures' own where they
    are small (up to 64, a multiple of 4), else 224."""
    if asked is not None:
        return asked
    if picture_side > SMALL_SIDE:
        return BIG_SIDE
    return max(math.ceil(picture_side / 4) * 4, 28, ENLARGED.get(name, 0))


def load_student(
    name: str, classes: list[str], asked_size: int | None, picture_side: int, seed: int, healing: bool = True
) -> Student:
    """A student with random weights (a name in ``STUDENTS``), or with pretrained ones (id or folder), which have a new
    head where they know other classes than these, in this order.

    Raises ``RunError`` if it is not there, cannot be reached or does not take this input size.
    """
    torch.manual_seed(seed)
    if name in STUDENTS:
        side = student_side(name, asked_size, picture_side)
        model = STUDENTS[name](side, _names(classes))
        processor = ViTImageProcessorPil(
            size={"height": side, "width": side}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        student = Student(
            model, processor, pipeline(processor), pretrained=False, healed=heal(model) if healing else []
        )
    else:
        student = _pretrained_student(name, classes, asked_size, healing)
    check_size(name, student, student.pipeline.size)
    quicken(student.model)
    return student


def _pretrained_student(name: str, classes: list[str], asked_size: int | None, healing: bool) -> Student:
    if "/" not in name and not Path(os.path.expanduser(name)).is_dir():
        raise RunError(
            f"There is no student {name!r}. The students are {', '.join(STUDENTS)}; or give a Hub id or a folder."
        )

    def load() -> tuple[PreTrainedModel, Any]:
        config = _config("student", name)
        _check_is_classifier(config, name)
        model = _from_pretrained("student", name, ignore_mismatched_sizes=True, **_names(classes))
        return model if knows(config, classes) else renew_head(model), load_processor(name, "student", name)

    model, processor = from_hub("student", name, load)
    if asked_size is not None:
        processor = resized(processor, asked_size)
    healed = heal(model, random=False) if healing else []
    return Student(model, processor, pipeline(processor), pretrained=True, healed=healed)


def resized(processor: Any, side: int) -> Any:
    """A copy of a processor that hands out squares of ``side`` pixels, in its own way: by a resize, or by a resize of
    the shorter side and a crop of the centre."""
    settings, square = processor.to_dict(), {"height": side, "width": side}
    if settings["size"].get("shortest_edge"):
        return type(processor).from_dict(
            {**settings, "size": {"shortest_edge": side}, "do_center_crop": True, "crop_size": square}
        )
    return type(processor).from_dict({**settings, "size": square, "do_center_crop": False})


def knows(config: Any, classes: list[str]) -> bool:
    """Whether a model's outputs are these classes, in this order: by their names, if it has any."""
    theirs = classes_of(config)
    return not nameless(theirs) and list(map(plain, theirs)) == list(map(plain, classes))


def renew_head(model: PreTrainedModel) -> PreTrainedModel:
    """Fresh weights for all that is not the backbone: a head that fits by its size knows other classes."""
    for name, child in model.named_children():
        if name != model.base_model_prefix:
            for module in child.modules():
                if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm):
                    module.reset_parameters()
    return model


@torch.inference_mode()
def check_size(name: str, student: Student, size: tuple[int, int]) -> None:
    """One picture of ``size`` (height, width) through the student: one that it cannot take is a ``RunError`` here, not in
    the middle of a run."""
    height, width = size
    try:
        student.model.eval()(pixel_values=torch.zeros(1, 3, height, width))
    except (RuntimeError, ValueError) as error:
        if memory.ran_out(error):
            raise
        raise RunError(f"The student {name!r} does not take pictures of {height} x {width} pixels: {error}") from error


def heal(model: PreTrainedModel, random: bool = True) -> list[str]:
    """Give a model that will train PyTorch's meaning of two numbers and, where its weights are ``random``, initial ones of
    a sensible size; return what was changed.

    transformers carries TensorFlow's values over as they are. BatchNorm ``momentum=0.997`` (EfficientNet: 0.99) is
    TensorFlow's share of the *old* average; to PyTorch it is the share of the *new* batch, so the running statistics
    are those of the last batch and the model is evaluated on noise. It becomes 0.1, PyTorch's default (1 - 0.997
    would need a thousand steps to forget its start). ``classifier_dropout_prob=0.8`` is TensorFlow's *keep*
    probability (Sandler et al. 2018, arXiv:1801.04381); it becomes 0.2. Where EfficientNet drops a picture's whole block
    (``StochasticDepth``), transformers drops single numbers. All of this is of training alone: what the weights compute
    stays. A MobileNetV2's momentum is not in its config, so one that was healed is ill again once it is loaded.
    """
    changes = []
    norms = [
        module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and (module.momentum or 0) > 0.5
    ]
    if norms:
        changes.append(f"BatchNorm momentum {norms[0].momentum} -> 0.1 in {len(norms)} layers")
        for norm in norms:
            norm.momentum = 0.1
        if hasattr(model.config, "batch_norm_momentum"):
            model.config.batch_norm_momentum = 0.1
    if getattr(model.config, "classifier_dropout_prob", 0) > 0.5:
        keep = model.config.classifier_dropout_prob
        changes.append(f"classifier dropout {keep} -> {1 - keep:.1f}")
        model.config.classifier_dropout_prob = round(1 - keep, 3)
        model.dropout.p = round(1 - keep, 3)
    blocks = [module for module in model.modules() if isinstance(module, EfficientNetFinalBlockLayer)]
    if dropping := [
        b for b in blocks if b.apply_dropout and b.dropout.p and not isinstance(b.dropout, StochasticDepth)
    ]:
        changes.append(f"dropout of single numbers -> of whole blocks in {len(dropping)} layers")
        for block in dropping:
            block.dropout = StochasticDepth(block.dropout.p)
    if random and (small := _small_convolutions(model)):
        changes.append(f"initial weights of {len(small)} convolutions: normal(0, 0.02) -> Kaiming's")
        for convolution in small:
            nn.init.normal_(convolution.weight, 0, _kaiming(convolution))
    return changes


class StochasticDepth(nn.Dropout):
    """Drops what a block adds to a picture, ``[B, C, H, W]``, as a whole, with probability ``p``: Huang et al. (2016,
    arXiv:1603.09382), as EfficientNet was trained with (Tan and Le 2019, arXiv:1905.11946, section 5.2)."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * super().forward(values.new_ones(len(values), 1, 1, 1))


def _small_convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """The convolutions of a network with BatchNorm that start at less than half of Kaiming's size. At 0.02 a depthwise
    filter is 25 times smaller: what comes out of it is no larger than BatchNorm's epsilon (0.001)."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return []
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return [convolution for convolution in convolutions if convolution.weight.std() < _kaiming(convolution) / 2]


def _kaiming(convolution: nn.Conv2d) -> float:
    """The deviation of initial weights by what goes out of a unit (He et al. 2015, arXiv:1502.01852, section 2.2), of
    its own group, which ``nn.init.kaiming_normal_`` takes for all."""
    return math.sqrt(2 / (convolution.out_channels // convolution.groups * math.prod(convolution.kernel_size)))


# --- Device and arithmetic


def pick_device(asked: str) -> torch.device:
    """``auto`` is a GPU where there is one, else the CPU. Raises ``RunError`` for a device that is not there."""
    asked = os.environ.get("KD_DEVICE", asked)  # see launch.gpu_of_its_own
    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        gpus = torch.cuda.device_count()
        found = f"{gpus} CUDA device{'s' * (gpus != 1)}" if gpus else "no GPU, only the CPU"
        raise RunError(f"The device {asked!r} cannot be used; this machine has {found}. Use auto or cpu.") from error
    return torch.device("cuda:0") if asked == "cuda" else device


def pick_precision(asked: str, device: torch.device, model: nn.Module, size: tuple[int, int], cache: Path) -> str:
    """``fp32``, ``bf16`` or ``fp16``: the arithmetic of the forward pass.

    ``auto`` takes a half type where the device computes faster in it. A GPU does; a CPU with bfloat16 instructions may,
    by the layers and the size of the pictures, so there a few batches are timed (a step of a model with parameters
    that learn, the forward pass of a frozen one). The answer is kept in ``cache``: the same run takes the same path.
    """
    if asked == "fp16" and device.type == "cpu":
        raise RunError("fp16 needs a GPU. On the CPU use bf16, fp32 or auto.")
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not _has_bf16():
        return "fp32"
    shapes = [(tuple(p.shape), p.requires_grad) for p in model.parameters()]
    machine = (torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    key = hashlib.blake2b(repr((type(model).__name__, shapes, size, machine)).encode(), digest_size=16).hexdigest()
    file = Path(cache) / "precision" / key
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        seconds = _time_precisions(model, size)
        write_whole(file, "bf16" if seconds["bf16"] * BF16_GAIN < seconds["fp32"] else "fp32")
    return file.read_text()


def _has_bf16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _time_precisions(model: nn.Module, size: tuple[int, int], rounds: int = 3) -> dict[str, float]:
    """The best time in seconds of a batch in each precision, taking turns, after one to warm up; the first is enough
    where it is clear."""
    batch = int(np.clip(4 * 224 * 224 / (size[0] * size[1]), 4, 64))
    trial, best = _trial(model, size, torch.device("cpu"), batch), {"fp32": math.inf, "bf16": math.inf}
    for nth in range(rounds + 1):
        times = {precision: trial(precision) for precision in best}
        if nth:
            best = {precision: min(best[precision], times[precision]) for precision in best}
        if nth and not 1 / CLEAR_GAIN < best["fp32"] / best["bf16"] < CLEAR_GAIN:
            break
    return best


def batch_seconds(
    model: nn.Module, size: tuple[int, int], device: torch.device, precision: str, batch: int, rounds: int = 5
) -> float:
    """The median time in seconds of a batch: a training step of a model with parameters that learn, without its
    optimiser, the forward pass of a frozen one."""
    trial = _trial(model, size, device, batch)
    trial(precision)
    return float(np.median([trial(precision) for _ in range(rounds)]))


def _trial(model: nn.Module, size: tuple[int, int], device: torch.device, batch: int) -> Callable[[str], float]:
    """What times one batch in a precision, in seconds. A copy of the model is used: its statistics and gradients
    change."""
    values = torch.zeros(batch, 3, *size, device=device).contiguous(memory_format=torch.channels_last)
    learns = any(parameter.requires_grad for parameter in model.parameters())
    twin = copy.deepcopy(model).to(device, memory_format=torch.channels_last).train(learns)

    def seconds(precision: str) -> float:
        started = time.perf_counter()
        with torch.random.fork_rng():  # dropout must not shift the run's own random numbers
            with autocast(device, precision), torch.set_grad_enabled(learns):
                logits = twin(pixel_values=values).logits
            if learns:
                logits.sum().backward()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - started

    return seconds


def pick_threads(side: int) -> int:
    """How many threads should train a student of this input size on the CPU: all, but one core less for small ones.

    Their operations last microseconds and end in a barrier. A neighbour that takes a core (a browser that shows the
    page is enough) keeps one thread waiting, and with it all: on two cores 843 images/s became 32, while one thread
    alone went from 675 to 639.
    """
    threads = torch.get_num_threads()
    return max(1, threads - 1) if side <= SMALL_SIDE else threads


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> Any:
    """A context in which a model computes in ``precision``."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
