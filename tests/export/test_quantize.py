"""Models of eight bits: they answer nearly as the model does, whatever its architecture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from kd.export.onnx import export_model, open_session
from kd.export.quantize import quantize
from tests.export.test_onnx import UNSUPPORTED, cases
from tests.support import architectures

# Attention, shapes that the first inference of shapes cannot work out, and no transformer.
SHOWN = ("DeiTForImageClassification", "ConvNextV2ForImageClassification", "ResNetForImageClassification")
# As a share of the largest logit. A file whose attention was of eight bits was off by 0.4 to 1.4.
MOST_OFF = 0.3
SIDE = architectures.SIDE


def logits_of_both(model: nn.Module, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of some images by the file of floats and by that of eight bits."""
    inputs = np.random.default_rng(0).normal(size=(24, 1, 3, SIDE, SIDE)).astype(np.float32)
    export_model(model, (SIDE, SIDE), folder / "model.onnx")
    quantize(folder / "model.onnx", folder / "int8.onnx", inputs)
    sessions = [open_session(folder / name) for name in ("model.onnx", "int8.onnx")]
    floats, whole = (
        np.concatenate([one.run(None, {"pixel_values": image})[0] for image in inputs]) for one in sessions
    )
    return floats, whole


@pytest.mark.parametrize("name", cases([name for name in architectures.ALL if name not in UNSUPPORTED], SHOWN))
def test_every_supported_architecture_answers_nearly_the_same_with_eight_bits(name, tmp_path):
    try:
        folder = architectures.save(name, tmp_path / "model")
    except ImportError as error:
        pytest.skip(str(error).strip().splitlines()[0])
    floats, whole = logits_of_both(AutoModelForImageClassification.from_pretrained(folder).eval(), tmp_path)
    assert np.abs(floats - whole).max() < MOST_OFF * np.abs(floats).max()


class WindowOfEfficientNet(nn.Module):
    """A classifier that averages over a window larger than its image, as EfficientNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=16), nn.ReLU6(), nn.AvgPool2d(32, ceil_mode=True), nn.Flatten(), nn.Linear(32, 3)
        )

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.layers(pixel_values))


def test_an_average_over_a_window_larger_than_the_image_is_that_of_the_image(tmp_path):
    torch.manual_seed(0)
    floats, whole = logits_of_both(WindowOfEfficientNet().eval(), tmp_path)
    varies = floats - floats.mean(0)
    assert np.abs(floats - whole).max() < MOST_OFF * np.abs(varies).max()
