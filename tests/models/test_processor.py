"""A processor is read as arithmetic and can be set to another size."""

import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
    MobileViTImageProcessorPil,
)

from kd.models.processor import read_normalization, resized_processor, run_processor
from tests.support import toys


@pytest.mark.parametrize(
    "processor",
    [
        toys.processor(24),
        BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 24, "width": 24}),
        EfficientNetImageProcessorPil(size={"height": 24, "width": 24}),
        MobileViTImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 24, "width": 24}),
    ],
    ids=lambda p: type(p).__name__,
)
def test_a_processor_is_read_off_as_arithmetic(processor):
    found = read_normalization(processor)
    plain = Image.new("RGB", (24, 24), (10, 100, 200))
    expected = run_processor(processor, [plain])
    pixels = torch.tensor([10.0, 100, 200]).view(1, 3, 1, 1).expand(1, 3, 24, 24)
    assert found.size == (24, 24)
    torch.testing.assert_close(found(pixels), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "processor",
    [toys.processor(40), ConvNextImageProcessorPil(), MobileViTImageProcessorPil()],
    ids=lambda p: type(p).__name__,
)
def test_a_processor_can_be_asked_for_another_size(processor):
    assert read_normalization(resized_processor(processor, 64)).size == (64, 64)
