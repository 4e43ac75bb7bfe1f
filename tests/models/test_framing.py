"""Which part of an image a processor shows its model, read off what it does."""

import io

import numpy as np
import pytest
from PIL import Image
from transformers import (
    BeitImageProcessorPil,
    BitImageProcessorPil,
    ConvNextImageProcessorPil,
    DeiTImageProcessorPil,
    LevitImageProcessorPil,
    MobileNetV2ImageProcessorPil,
    MobileViTImageProcessorPil,
    PoolFormerImageProcessorPil,
    TextNetImageProcessorPil,
    ViTImageProcessorPil,
)

from kd.data.pixels import Framed
from kd.data.views import Frame
from kd.errors import UserError
from kd.models.framing import OWN_SIZE, framed_processor, read_framing
from kd.models.processor import read_normalization, run_processor

CUT = {"do_center_crop": True, "size": {"height": 64, "width": 64}, "crop_size": {"height": 56, "width": 56}}
PROCESSORS = {
    "whole": (ViTImageProcessorPil(), "image", 1, 1),
    "not square": (ViTImageProcessorPil(size={"height": 96, "width": 128}), "image", 1, 1),
    "middle of a squeezed one": (BeitImageProcessorPil(**CUT), "image", 7 / 8, 7 / 8),
    "DeiT": (DeiTImageProcessorPil(), "image", 7 / 8, 7 / 8),
    "short side": (BitImageProcessorPil(), "short side", 1, 1),
    "short side, cut": (MobileNetV2ImageProcessorPil(), "short side", 7 / 8, 7 / 8),
    "crop_pct": (ConvNextImageProcessorPil(size={"shortest_edge": 224}), "short side", 7 / 8, 7 / 8),
    "crop_pct of large ones": (ConvNextImageProcessorPil(size={"shortest_edge": 384}), "image", 1, 1),
    "LeViT": (LevitImageProcessorPil(), "short side", 7 / 8, 7 / 8),
    "PoolFormer": (PoolFormerImageProcessorPil(), "short side", 224 / 248, 224 / 248),
    "channels the other way": (MobileViTImageProcessorPil(size={"shortest_edge": 288}), "short side", 8 / 9, 8 / 9),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_part_that_a_processor_shows_is_read_off_what_it_does(name):
    processor, relative_to, height, width = PROCESSORS[name]
    assert read_framing(processor) == (relative_to, pytest.approx(height, abs=1e-3), pytest.approx(width, abs=1e-3))


@pytest.mark.parametrize("size", [(640, 480), (180, 320), (77, 77)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_what_is_kept_of_an_image_is_what_the_processor_shows(name, size):
    processor = PROCESSORS[name][0]
    normalization, framing = read_normalization(processor), read_framing(processor)
    blocks = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    image = Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)
    frame = Frame(normalization.size, *framing)
    file = io.BytesIO()
    image.save(file, "PNG")
    values = Framed([{"image": {"bytes": file.getvalue(), "path": "a.png"}, "label": 0}], frame)[0]
    shown = np.asarray(run_processor(processor, [image])[0], np.float64)
    scale, offset = (np.reshape(v, (3, 1, 1)) for v in (normalization.scale, normalization.offset))
    colours = ((shown - offset) / scale)[list(np.argsort(normalization.channels))]
    off = np.abs(values - colours)
    assert off.mean() < 2.5 and np.quantile(off, 0.99) < 12, (off.mean(), np.quantile(off, 0.99))


@pytest.mark.parametrize(
    ("own", "size"), [("whole", (28, 28)), ("crop_pct", (64, 64)), ("channels the other way", (64, 64))]
)
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_student_is_shown_the_teachers_part_at_its_own_size_with_its_own_normalization(name, own, size):
    framing = read_framing(PROCESSORS[name][0])
    mine = PROCESSORS[own][0]
    made = framed_processor(mine, size, framing)
    before, after = read_normalization(mine), read_normalization(made)
    assert after.size == size and after.channels == before.channels
    assert np.allclose(after.scale, before.scale, rtol=1e-4) and np.allclose(after.offset, before.offset, atol=1e-3)
    assert np.allclose(read_framing(made)[1:], framing[1:], atol=2 / min(size))


def test_what_pads_or_keeps_shapes_is_refused_and_what_keeps_sizes_is_told():
    with pytest.raises(UserError, match="pads pictures"):
        read_framing(MobileViTImageProcessorPil())  # cuts 256 pixels of 224
    with pytest.raises(UserError, match="inputs of different sizes"):
        read_framing(TextNetImageProcessorPil())
    assert read_framing(ViTImageProcessorPil(do_resize=False)) == OWN_SIZE
