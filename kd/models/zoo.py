"""Build the students with random weights."""

import math
from collections.abc import Callable
from typing import Any

from transformers import (
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
)

from kd.config import SMALL_SIDE

# Side in pixels of a student's input where the images are not small.
DEFAULT_SIDE = 224

# Architectures whose config has no strides, so that small images would leave too small a last feature map: their processor
# enlarges small images to this side.
ENLARGED_SIDES = {"resnet_18": 112}


def label_config(classes: list[str]) -> dict[str, Any]:
    """Return the entries of a model's config that name its classes, of which each image has one."""
    return {
        "id2label": dict(enumerate(classes)),
        "label2id": {name: i for i, name in enumerate(classes)},
        "problem_type": "single_label_classification",
    }


def _stride(size: int, least: int = 16) -> int:
    """Return the largest total stride that leaves a last feature map of at least 4 x 4, but no stride under ``least``.

    For inputs of 28 or 32 pixels, 16 leaves 2 x 2. In the same number of minutes a MobileNetV2 learned more with it than
    with a map of 4 x 4, which takes twice the time per image (83% against 79% on the sample, one seed).
    """
    return next((stride for stride in (32, 16) if math.ceil(size / stride) >= 4), least)


def _mobilenet_v2(width: float) -> Callable[[int, dict], PreTrainedModel]:
    """Return the builder of a MobileNetV2 whose layers have ``width`` times the channels of the paper's."""

    def build(size: int, names: dict) -> PreTrainedModel:
        return MobileNetV2ForImageClassification(
            # TensorFlow's asymmetric padding only matters to weights trained with it, and copies the input of every layer.
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


def _small_resnet(depth: int) -> Callable[[int, dict], PreTrainedModel]:
    """Return the builder of a ResNet for small images, as the distillation literature has them: three stages of blocks of
    two convolutions, 6n + 2 layers (He et al. 2015, arXiv:1512.03385, section 4.2). Widths are 1.5 times the paper's."""

    def build(size: int, names: dict) -> PreTrainedModel:
        return ResNetForImageClassification(
            ResNetConfig(
                embedding_size=16, hidden_sizes=[24, 48, 96], depths=[(depth - 2) // 6] * 3, layer_type="basic", **names
            )
        )

    return build


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


# Students with random weights: name -> builder, which takes the side of the input in pixels and ``label_config``.
STUDENTS: dict[str, Callable[[int, dict], PreTrainedModel]] = {
    **{f"mobilenet_v2_{width}": _mobilenet_v2(width) for width in (1.4, 1.0, 0.75, 0.5, 0.35)},
    "mobilevit_xx_small": _mobilevit_xx_small,
    "efficientnet_b0": _efficientnet_b0,
    "resnet_8": _small_resnet(8),
    "resnet_14": _small_resnet(14),
    "resnet_18": _resnet_18,
    "convnextv2_atto": _convnextv2_atto,
    "deit_tiny": _deit_tiny,
}


def student_side(name: str, asked: int | None, image_side: int) -> int:
    """Return the input side in pixels of a student with random weights.

    It is ``asked`` where that is given, else the images' own side, rounded up to a multiple of 4, where they are small (up
    to 64 pixels), else 224.
    """
    if asked is not None:
        return asked
    if image_side > SMALL_SIDE:
        return DEFAULT_SIDE
    return max(math.ceil(image_side / 4) * 4, 28, ENLARGED_SIDES.get(name, 0))
