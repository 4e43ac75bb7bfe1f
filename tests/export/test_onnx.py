"""Models as ONNX files: the same answers for any number of pictures, or a refusal in words."""

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from kd.config import STUDENT_NAMES
from kd.errors import UserError
from kd.evaluation.scoring import load_saved_student
from kd.export.graph import read_preprocessing, self_contained
from kd.export.onnx import export_model, open_session
from kd.models.processor import run_processor
from kd.models.student import load_student
from kd.models.teacher import load_teacher
from kd.models.zoo import student_side
from tests.support import architectures, toys

# Of each sweep so many are tried in every run of the tests.
SHOWN_STUDENTS = ("resnet_8", "mobilenet_v2_0.35")
SHOWN = ("ConvNextForImageClassification", "SwiftFormerForImageClassification", "MobileViTForImageClassification")

# Those that are no teacher and no student (``tests/models/test_architectures.py``).
UNSUPPORTED = (
    "ImageGPTForImageClassification", "PPLCNetForImageClassification", "ShieldGemma2ForImageClassification",
    "Siglip2ForImageClassification",
)  # fmt: skip
# Those whose own processor no graph can do: it crops before it resizes, keeps the shape, or resizes to multiples of 32.
REFUSED = (
    "DonutSwinForImageClassification", "PerceiverForImageClassificationConvProcessing",
    "PerceiverForImageClassificationFourier", "PerceiverForImageClassificationLearned", "TextNetForImageClassification",
)  # fmt: skip


def cases(names, shown) -> list:
    return [pytest.param(name, marks=() if name in shown else pytest.mark.slow) for name in names]


def check_parity(model: nn.Module, path, size: tuple[int, int]) -> None:
    """The file answers as the model does, for one picture and for several."""
    session = open_session(path)
    for count in (1, 2, 5):
        values = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            expected = model(pixel_values=values).logits.numpy()
        found = session.run(None, {"pixel_values": values.numpy()})[0]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-3 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", cases(STUDENT_NAMES, SHOWN_STUDENTS))
def test_every_student_of_the_zoo_is_exported_from_its_saved_folder_with_parity(name, tmp_path):
    side = student_side(name, None, 32)
    student = load_student(name, toys.CLASSES, side, seed=0)
    student.model.save_pretrained(tmp_path / "student")
    student.processor.save_pretrained(tmp_path / "student")
    model, _, normalization = load_saved_student(tmp_path / "student")
    export_model(model, normalization.size, tmp_path / "model.onnx")
    check_parity(model, tmp_path / "model.onnx", normalization.size)


@pytest.mark.parametrize("name", cases([name for name in architectures.ALL if name not in UNSUPPORTED], SHOWN))
def test_every_supported_architecture_is_exported_with_parity_or_cannot_be_exported_for_a_reason(name, tmp_path):
    try:
        folder = architectures.save(name, tmp_path / "model")
    except ImportError as error:
        pytest.skip(str(error).strip().splitlines()[0])
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    size = (architectures.SIDE, architectures.SIDE)
    export_model(model, size, tmp_path / "model.onnx")
    check_parity(model, tmp_path / "model.onnx", size)
    processor = AutoImageProcessor.from_pretrained(folder)
    if name in REFUSED:
        with pytest.raises(
            UserError, match=r"The student cannot be exported: what its .* does to a picture's size is none"
        ):
            read_preprocessing(processor)
        return
    whole = self_contained(onnx.load(tmp_path / "model.onnx"), read_preprocessing(processor), toys.CLASSES)
    picture = Image.effect_noise((81, 60), 90).convert("RGB")
    found = open_session(whole.SerializeToString()).run(None, {"picture": np.asarray(picture)})[0]
    with torch.inference_mode():
        expected = model(pixel_values=run_processor(processor, [picture])).logits[0].softmax(-1).numpy()
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_a_teacher_is_exported_with_its_outputs_in_the_order_of_the_dataset_s_classes(teacher, tmp_path):
    one = load_teacher(str(teacher), [*toys.CLASSES[::-1]])
    export_model(one, (32, 32), tmp_path / "teacher.onnx")
    check_parity(one, tmp_path / "teacher.onnx", (32, 32))


def test_a_file_holds_nothing_of_where_it_was_made(tmp_path):
    export_model(toys.tiny_resnet(toys.CLASSES), (32, 32), tmp_path / "model.onnx")
    assert b"/site-packages/" not in (tmp_path / "model.onnx").read_bytes()
    model = onnx.load(tmp_path / "model.onnx")
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


class Model(nn.Module):
    """What a classifier of transformers looks like from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.layer(pixel_values.mean((2, 3))))


class CountsInPython(Model):
    """A model that counts its pictures in Python: a trace makes the count a constant."""

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.layer(pixel_values.mean((2, 3))) * float(len(pixel_values)))


class Impossible(Model):
    """A model that leaves PyTorch on the way."""

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=torch.from_numpy(np.linalg.pinv(pixel_values.mean((2, 3)).numpy()).T))


def test_a_trace_that_answers_otherwise_than_the_model_is_not_taken(tmp_path):
    model = CountsInPython().eval()
    export_model(model, (8, 8), tmp_path / "model.onnx")
    check_parity(model, tmp_path / "model.onnx", (8, 8))


def test_a_model_that_no_exporter_takes_is_refused_with_what_they_say(tmp_path):
    with pytest.raises(
        UserError, match=r"The model cannot be exported: PyTorch's two exporters to ONNX say: .*; and: "
    ):
        export_model(Impossible(), (8, 8), tmp_path / "model.onnx")
