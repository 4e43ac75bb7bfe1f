"""Read the arithmetic of an image processor (size, channel order, scale, offset), load and resize processors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor

from kd.errors import UserError


@dataclass(frozen=True)
class Normalization:
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


def read_normalization(processor: Any) -> Normalization:
    """Read a processor's arithmetic off what it does to plain pictures: every family names its settings differently
    (EfficientNet's divides by the deviation twice, MobileViT's swaps channels).

    Raises ``UserError`` where it is not a per-channel scale and offset.
    """
    colours = ["black", "red", "lime", "blue"]
    outputs = [np.asarray(run_processor(processor, [Image.new("RGB", (512, 512), c)])[0], np.float64) for c in colours]
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
    """Pictures through a model's own processor: float32 ``[B, 3, H, W]``."""
    return processor(images, return_tensors="pt")["pixel_values"]


def load_processor(source: str, kind: str, name: str) -> Any:
    """The image processor that a checkpoint was saved with."""
    try:
        return AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        if "preprocessor_config" in str(error) or "image processor" in str(error).lower():
            raise UserError(
                f"The {kind} {name!r} has no preprocessor_config.json: it cannot be told how to see."
            ) from error
        raise


def resized_processor(processor: Any, side: int) -> Any:
    """A copy of a processor that hands out squares of ``side`` pixels, in its own way: by a resize, or by a resize of
    the shorter side and a crop of the centre."""
    settings, square = processor.to_dict(), {"height": side, "width": side}
    if settings["size"].get("shortest_edge"):
        return type(processor).from_dict(
            {**settings, "size": {"shortest_edge": side}, "do_center_crop": True, "crop_size": square}
        )
    return type(processor).from_dict({**settings, "size": square, "do_center_crop": False})
