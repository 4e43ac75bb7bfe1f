"""Load image processors, change their size, and read what they compute: size, channel order, scale and offset."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor

from kd.errors import UserError


@dataclass(frozen=True)
class Normalization:
    """What a processor computes: resize to ``size`` (height, width), reorder the channels, then ``pixel * scale + offset``.

    ``scale`` and ``offset`` are those for pixels from 0 to 255, one for each channel of the output.
    """

    size: tuple[int, int]
    channels: tuple[int, int, int]
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalize images ``[B, 3, H, W]`` with values from 0 to 255 that have the right size already."""
        scale, offset = (pixels.new_tensor(v).view(1, 3, 1, 1) for v in (self.scale, self.offset))
        if self.channels != (0, 1, 2):
            pixels = pixels[:, list(self.channels)]
        return pixels * scale + offset


def read_normalization(processor: Any) -> Normalization:
    """Find out what a processor computes from its outputs for images of a single colour.

    Its settings cannot be relied on, since every family of models interprets them differently: EfficientNet's divides by
    the standard deviation twice, MobileViT's swaps channels.

    Raises ``UserError`` where the outputs are not a scale and an offset for each channel.
    """
    colours = ["black", "red", "lime", "blue"]
    outputs = [np.asarray(run_processor(processor, [Image.new("RGB", (512, 512), c)])[0], np.float64) for c in colours]
    if outputs[0].ndim != 3 or len(outputs[0]) != 3:
        shape = " x ".join(map(str, outputs[0].shape))
        raise UserError(f"{type(processor).__name__} makes inputs of {shape} of a picture, not of 3 x height x width.")
    offset = outputs[0].mean(axis=(1, 2))
    matrix = np.stack([out.mean(axis=(1, 2)) - offset for out in outputs[1:]], axis=1) / 255
    channels = np.abs(matrix).argmax(axis=1)
    scale = matrix[np.arange(3), channels]
    rest = np.abs(matrix).sum() - np.abs(scale).sum()
    if sorted(channels) != [0, 1, 2] or rest > 1e-6 * np.abs(scale).sum():
        raise UserError(f"{type(processor).__name__} mixes colour channels, which is not supported.")
    height, width = outputs[0].shape[1:]
    return Normalization((height, width), tuple(channels.tolist()), tuple(scale.tolist()), tuple(offset.tolist()))


def run_processor(processor: Any, images: list[Image.Image]) -> Tensor:
    """Return the inputs float32 ``[B, 3, H, W]`` that a model's own processor makes of images."""
    inputs = processor(images, return_tensors="pt")
    if "pixel_values" not in inputs:
        raise UserError(f"{type(processor).__name__} makes {', '.join(inputs)} of a picture, not pixel_values.")
    return inputs["pixel_values"]


def load_processor(source: str, kind: str, name: str, architecture: str = "") -> Any:
    """Load the image processor of a checkpoint; ``kind``, ``name`` and ``architecture`` are for error messages."""
    try:
        return AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        text = str(error)
        if re.search("trust_remote_code|valid JSON", text) or not re.search(
            "preprocessor_config|[Ii]mage processor", text
        ):
            raise
        raise UserError(
            f"The {kind} {name!r} has no preprocessor_config.json, which says how to prepare its input pictures. Save the one "
            f"of the model that it was made from ({architecture or 'its base model'}) into its folder: load "
            "that with transformers' AutoImageProcessor, then call its save_pretrained(FOLDER)."
        ) from error


def resized_processor(processor: Any, side: int) -> Any:
    """Return a copy of a processor whose outputs are squares of ``side`` pixels.

    Like the original, it resizes both sides, or resizes the shorter side and crops the centre.
    """
    settings, square = processor.to_dict(), {"height": side, "width": side}
    if settings["size"].get("shortest_edge"):
        return type(processor).from_dict(
            {**settings, "size": {"shortest_edge": side}, "do_center_crop": True, "crop_size": square}
        )
    return type(processor).from_dict({**settings, "size": square, "do_center_crop": False})
