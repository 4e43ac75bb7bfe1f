"""Find out which part of an image a processor shows to its model, and make a processor that shows the same part."""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from transformers import MobileNetV2ImageProcessorPil, ViTImageProcessorPil

from kd.errors import UserError
from kd.models.processor import Normalization, read_normalization, run_processor

# Width and height in pixels of the image that is shown to a processor to see what it does; and the other way round.
PROBE = (720, 480)
# Its colours run from LOW to HIGH. The noise on them makes up for the rounding of colours to whole numbers, which would
# otherwise shift all of them together.
LOW, HIGH, NOISE = 40, 215, 8
# By so much of the range of colours a measured line may bend, and a measured share may be wrong.
STRAIGHT, CLOSE = 0.03, 0.01


class Framing(NamedTuple):
    """The part of an image that a model sees: ``height`` and ``width`` of its middle, as shares of the ``image``'s own
    height and width, or both of its ``short side``. ``own size`` is the whole image, at the size that it has."""

    relative_to: str
    height: float
    width: float


WHOLE = Framing("image", 1.0, 1.0)
OWN_SIZE = Framing("own size", 1.0, 1.0)


def read_framing(processor: Any) -> Framing:
    """Find out which part of an image a processor keeps, from what it makes of an image whose colours tell their place.

    Its settings cannot be relied on: every family interprets them differently (ConvNeXt's ``crop_pct``, LeViT's 256/224).

    Raises ``UserError`` where the part is not a middle of constant shape: where it pads, or gives images of different
    shapes inputs of different sizes.
    """
    name = type(processor).__name__
    normalization = read_normalization(processor)
    wide, tall = (_covered(processor, normalization, size) for size in (PROBE, PROBE[::-1]))
    if wide.size != tall.size:
        if wide.size == PROBE[::-1]:
            return OWN_SIZE
        raise UserError(
            f"{name} gives pictures of different shapes inputs of different sizes, so they cannot be trained on together. Set "
            "a fixed size, or do_center_crop, in the preprocessor_config.json."
        )
    if not wide.is_middle or not tall.is_middle:
        raise UserError(
            f"{name} pads pictures, or shows a part that is not their middle, which is not supported. Set do_pad to false, or "
            "a crop_size that is not larger than the size, in the preprocessor_config.json."
        )
    ratio, close = PROBE[0] / PROBE[1], max(CLOSE, 1.5 / min(wide.size))  # a crop is of whole pixels
    # Of a wide image as of a tall one: shares of its own sides, or of its short side.
    of_image = (wide.height, wide.width), (tall.height, tall.width)
    of_short = (wide.height, wide.width * ratio), (tall.height * ratio, tall.width)
    for relative_to, (one, other) in (("image", of_image), ("short side", of_short)):
        if np.allclose(one, other, atol=close) and max(one) <= 1 + close:
            return Framing(relative_to, *(_exact(share, side) for share, side in zip(one, wide.size, strict=True)))
    raise UserError(f"{name} shows parts of different shape of different pictures, which is not supported.")


class _Covered(NamedTuple):
    """What an output shows: its ``size`` (height, width), and how much of the image's height and width."""

    size: tuple[int, int]
    height: float
    width: float
    is_middle: bool


def _covered(processor: Any, normalization: Normalization, size: tuple[int, int]) -> _Covered:
    width, height = size
    along, down = (LOW + (HIGH - LOW) * (np.arange(n) + 0.5) / n for n in size)
    colours = np.stack(
        [np.tile(along, (height, 1)), np.tile(down[:, None], (1, width)), np.full((height, width), 128.0)], -1
    )
    noisy = colours + np.random.default_rng(0).normal(0, NOISE, colours.shape)
    image = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
    output = np.asarray(run_processor(processor, [image])[0], np.float64)
    scale, offset = (np.reshape(v, (3, 1, 1)) for v in (normalization.scale, normalization.offset))
    # In the order of the output's channels: where the red one is, and the green one.
    red, green = normalization.channels.index(0), normalization.channels.index(1)
    shares = ((output - offset) / scale - LOW) / (HIGH - LOW)
    lines = [_line(shares[green].mean(1)), _line(shares[red].mean(0))]
    # Of an odd number of pixels the middle is half a pixel off.
    is_middle = all(
        bend < STRAIGHT and abs(start + slope / 2 - 0.5) < max(CLOSE, 1 / min(output.shape[1:]))
        for start, slope, bend in lines
    )
    return _Covered(output.shape[1:], lines[0][1], lines[1][1], is_middle)


def _line(values: np.ndarray) -> tuple[float, float, float]:
    """Fit a line to values at evenly spaced places from 0 to 1; return start, slope, and how far a value is off."""
    places = (np.arange(len(values)) + 0.5) / len(values)
    slope, start = np.polyfit(places, values, 1)
    return float(start), float(slope), float(np.abs(values - start - slope * places).max())


def _exact(share: float, side: int) -> float:
    """Return the share that was measured as a ratio of whole pixels: an output of ``side`` pixels is cut from so many."""
    return min(1.0, side / round(side / share))


def framing_or_none(processor: Any) -> Framing | None:
    """Return ``read_framing(processor)``, or ``None`` for a processor that cannot be used as it is, since it pads, say."""
    try:
        return read_framing(processor)
    except UserError:
        return None


def framed_processor(processor: Any, size: tuple[int, int], framing: Framing) -> Any:
    """Return a processor with the normalization of ``processor`` that shows this part of an image at ``size``.

    It is ``processor`` itself where that does so already. Raises ``UserError`` where no processor of transformers can.
    """
    normalization = read_normalization(processor)
    if normalization.size == size and framing_or_none(processor) == framing:
        return processor
    made = _with_settings(processor, normalization, _settings(size, framing))
    found, close = read_framing(made), read_normalization(made)
    is_same = found.relative_to == framing.relative_to and np.allclose(found[1:], framing[1:], atol=2 / min(size))
    if not is_same or close.size != size or not np.allclose(close.scale, normalization.scale, rtol=1e-4):
        raise UserError(
            f"No processor can show the student what the teacher's shows ({framing.relative_to}, {framing.height:.0%} x "
            f"{framing.width:.0%}) with the channels of {type(processor).__name__}. Choose another teacher or student."
        )
    return made


def _settings(size: tuple[int, int], framing: Framing) -> dict[str, Any]:
    """Return the settings of a processor that shows this part at ``size``."""
    height, width = size
    if framing.relative_to == "short side":
        resized = {"shortest_edge": round(max(height / framing.height, width / framing.width))}
    else:
        resized = {"height": round(height / framing.height), "width": round(width / framing.width)}
    crops = framing != WHOLE
    square = {"crop_size": {"height": height, "width": width}} if crops else {}
    return {"do_resize": True, "size": resized, "do_center_crop": crops, **square}


def _with_settings(processor: Any, normalization: Normalization, settings: dict[str, Any]) -> Any:
    """Return a processor with these settings that computes the same normalization: a plain one, or one of the same class
    where the order of channels is its own."""
    if normalization.channels != (0, 1, 2):
        return type(processor).from_dict({**processor.to_dict(), **settings})
    std = [1 / (255 * scale) for scale in normalization.scale]
    mean = [-offset * deviation for offset, deviation in zip(normalization.offset, std, strict=True)]
    plain = {"resample": 2, "image_mean": [round(v, 6) for v in mean], "image_std": [round(v, 6) for v in std]}
    if not settings["do_center_crop"]:
        return ViTImageProcessorPil(size=settings["size"], **plain)
    return MobileNetV2ImageProcessorPil(**settings, **plain)
