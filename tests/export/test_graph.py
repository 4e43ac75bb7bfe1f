"""One file of a student and its processor's work: on pictures of any size it computes what the processor does."""

import json

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
    LevitImageProcessorPil,
    MobileNetV2ImageProcessorPil,
    MobileViTImageProcessorPil,
    PerceiverImageProcessorPil,
    PoolFormerImageProcessorPil,
    ViTImageProcessorPil,
)

from kd.errors import UserError
from kd.export.graph import preprocessing_model, read_preprocessing, self_contained
from kd.export.onnx import export_model, open_session
from kd.models.framing import Framing, framed_processor
from kd.models.processor import run_processor
from tests.support import toys

SQUARE = {"height": 32, "width": 32}
PROCESSORS = {
    "squeezed to a square": ViTImageProcessorPil(size=SQUARE),
    "squeezed, bicubic, not square": ViTImageProcessorPil(size={"height": 40, "width": 24}, resample=3),
    "short side and centre": MobileNetV2ImageProcessorPil(size={"shortest_edge": 37}, crop_size=SQUARE),
    "short side and centre, bicubic": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE),
    "squeezed and centre": BitImageProcessorPil(size={"height": 39, "width": 36}, crop_size=SQUARE),
    "crop_pct of ConvNeXt": ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875),
    "crop_pct of PoolFormer": PoolFormerImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE, crop_pct=0.9),
    "LeViT's 256/224": LevitImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE),
    "channels swapped": MobileViTImageProcessorPil(size={"shortest_edge": 36}, crop_size=SQUARE),
    "scaled twice": EfficientNetImageProcessorPil(size=SQUARE, resample=2),
    "framed like a teacher's": framed_processor(
        ViTImageProcessorPil(size=SQUARE), (28, 28), Framing("short side", 0.875, 0.875)
    ),
}
SIZES = [(20, 17), (17, 20), (61, 40), (200, 33), (33, 200), (32, 32), (1, 1), (801, 603)]


def odd_picture(size: tuple[int, int]) -> Image.Image:
    """A picture with hard edges and noise."""
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    noise[: size[1] // 2, : size[0] // 2] = (255, 0, 10)
    return Image.fromarray(noise)


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_the_graph_makes_of_odd_pictures_what_the_processor_makes_within_one_of_255_levels(processor):
    found = read_preprocessing(processor)
    session = open_session(preprocessing_model(found).SerializeToString())
    scale = np.abs(np.reshape(found.normalization.scale, (3, 1, 1)))
    for size in SIZES:
        picture = odd_picture(size)
        made = session.run(None, {"picture": np.asarray(picture)})[0][0]
        off = np.abs(made - run_processor(processor, [picture])[0].numpy()) / scale
        assert off.max() <= 1.01 and off.mean() < 0.3, size


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_the_graph_is_right_on_a_camera_s_picture_too(processor):
    found = read_preprocessing(processor)
    session, picture = open_session(preprocessing_model(found).SerializeToString()), odd_picture((4000, 3000))
    made = session.run(None, {"picture": np.asarray(picture)})[0][0]
    off = np.abs(made - run_processor(processor, [picture])[0].numpy())
    assert (off / np.abs(np.reshape(found.normalization.scale, (3, 1, 1)))).max() <= 1.01


@pytest.mark.parametrize(
    ("processor", "words"),
    [
        (ViTImageProcessorPil(size=SQUARE, resample=1), "the filter Lanczos, and ONNX has bilinear and bicubic"),
        (ViTImageProcessorPil(size=SQUARE, resample=0), "the filter nearest"),
        (ViTImageProcessorPil(do_resize=False), "leaves pictures at their own size"),
        (PerceiverImageProcessorPil(size=SQUARE, crop_size={"height": 64, "width": 64}), "none of the ways"),
        (MobileNetV2ImageProcessorPil(size={"shortest_edge": 30}, crop_size=SQUARE), "none of the ways"),
    ],
    ids=["Lanczos", "nearest", "own size", "crop first", "padding"],
)
def test_a_processor_that_does_not_fit_into_a_graph_is_refused_in_words(processor, words):
    with pytest.raises(UserError, match=f"The student cannot be exported: .*{words}") as refused:
        read_preprocessing(processor)
    assert refused.value.kind == "not exportable"


def test_the_whole_file_takes_pixels_and_gives_the_student_s_probabilities_and_the_names_of_the_classes(tmp_path):
    model, processor = toys.tiny_resnet(toys.CLASSES).eval(), toys.processor()
    export_model(model, (32, 32), tmp_path / "bare.onnx")
    names = ['"quoted"', "ünïcode, with a comma", "<b>"]
    whole = self_contained(onnx.load(tmp_path / "bare.onnx"), read_preprocessing(processor), names)
    session = open_session(whole.SerializeToString())
    assert [(one.name, one.type, one.shape) for one in session.get_inputs()] == [
        ("picture", "tensor(uint8)", ["height", "width", 3])
    ]
    assert [(one.name, one.type, one.shape) for one in session.get_outputs()] == [
        ("probabilities", "tensor(float)", [3])
    ]
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == names
    for size in SIZES:
        picture = odd_picture(size)
        with torch.inference_mode():
            expected = model(pixel_values=run_processor(processor, [picture])).logits[0].softmax(-1).numpy()
        found = session.run(None, {"picture": np.asarray(picture)})[0]
        np.testing.assert_allclose(found, expected, atol=0.005)
        assert found.sum() == pytest.approx(1, abs=1e-5)
