"""Every image classifier of transformers, as a teacher, as a student, and with a new head."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from kd.config import DistillConfig
from kd.errors import UserError
from kd.evaluation.latency import model_cost
from kd.models.device import Compute
from kd.models.pretrained import load_checkpoint, renew_head
from kd.models.processor import run_processor
from kd.models.student import load_student
from kd.models.teacher import load_teacher
from kd.training.trainer import ImageDistilTrainer, training_arguments
from tests.support import architectures, toys
from tests.support.architectures import ALL

# Those that cannot be used, and the reason in the message.
REFUSED = {
    "ImageGPTForImageClassification": "Clusters must be provided",
    "PPLCNetForImageClassification": "its output has no logits",
    "ShieldGemma2ForImageClassification": "does not take pictures of 64 x 64 pixels",
    "Siglip2ForImageClassification": "makes inputs of 256 x 768 of a picture",
}

# The output layers that are not called ``classifier``.
HEADS = {
    "BitForImageClassification": ["classifier.1"],
    "RegNetForImageClassification": ["classifier.1"],
    "ResNetForImageClassification": ["classifier.1"],
    "DeiTForImageClassificationWithTeacher": ["cls_classifier", "distillation_classifier"],
    "HGNetV2ForImageClassification": ["fc"],
    "TextNetForImageClassification": ["fc"],
    "ImageGPTForImageClassification": ["score"],
    "LevitForImageClassification": ["classifier.linear"],
    "LevitForImageClassificationWithTeacher": ["classifier.linear", "classifier_distill.linear"],
    **{name: ["perceiver.decoder.decoder.final_layer"] for name in ALL if "Perceiver" in name},
    "PPLCNetForImageClassification": ["head"],
    "SwiftFormerForImageClassification": ["head", "dist_head"],
}

# Three architectures that show the most, which every run of the tests tries; the others are slow.
SHOWN = ("SiglipForImageClassification", "LevitForImageClassificationWithTeacher", "BeitForImageClassification")


def cases(names: list[str]) -> list:
    return [pytest.param(name, marks=() if name in SHOWN else pytest.mark.slow) for name in names]


def saved(name: str, folder: Path, **settings) -> Path:
    """Save a tiny model, or skip the test where transformers itself lacks a package for it."""
    try:
        return architectures.save(name, folder, **settings)
    except ImportError as error:
        pytest.skip(str(error).strip().splitlines()[0])


@pytest.mark.parametrize("name", cases([name for name in ALL if name not in ("ShieldGemma2ForImageClassification",)]))
@pytest.mark.parametrize("classes", [["x", "y", "z"], ["x", "y", "z", "w"]], ids=len)
def test_exactly_the_head_is_new(name, classes, tmp_path):
    folder = saved(name, tmp_path)
    old = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    loaded = load_checkpoint("student", name, str(folder), classes)
    renew_head(loaded.model, loaded.head)
    new = loaded.model.state_dict()
    heads = tuple(f"{head}." for head in HEADS.get(name, ["classifier"]))
    moved = {key for key in old if old[key].shape != new[key].shape or not torch.equal(old[key], new[key])}
    assert old.keys() == new.keys() and moved == {key for key in old if key.startswith(heads)}
    assert all(new[key].std() > 0 for key in moved if key.endswith("weight"))


@pytest.mark.parametrize("name", cases(list(ALL)))
def test_a_teacher_answers_as_plain_transformers_does_or_is_refused(name, tmp_path):
    folder = saved(name, tmp_path)
    if name in REFUSED:
        with pytest.raises(UserError, match=f"The teacher .* is not supported: .*{REFUSED[name]}"):
            load_teacher(str(folder), toys.CLASSES)
        return
    teacher = load_teacher(str(folder), toys.CLASSES[::-1])
    plain = AutoModelForImageClassification.from_pretrained(folder).eval()
    values = run_processor(
        AutoImageProcessor.from_pretrained(folder), [Image.effect_noise((80, 60), 90).convert("RGB")]
    )
    with torch.inference_mode():
        torch.testing.assert_close(teacher(values).logits, plain(pixel_values=values).logits.flip(1))


class Pictures(torch.utils.data.Dataset):
    """Five noisy pictures at the size of the tiny architectures."""

    def __init__(self) -> None:
        self.values = torch.randn(5, 3, *[architectures.SIDE] * 2, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": self.values[index], "labels": index % 3, "teacher_logits": torch.eye(3)[index % 3]}


@pytest.mark.parametrize("name", cases(list(ALL)))
def test_a_student_is_trained_and_evaluated_and_saved_or_is_refused(name, tmp_path):
    folder = saved(name, tmp_path / "model", problem_type="multi_label_classification")
    if name in REFUSED:
        with pytest.raises(UserError, match=f"The student .* is not supported: .*{REFUSED[name]}"):
            load_student(str(folder), ["x", "y", "z"], None, 0)
        return
    model = load_student(str(folder), ["x", "y", "z"], None, 0).model
    side = architectures.SIDE
    assert model_cost(model, (side, side))["flops"] > 0  # counted between loading and training, as a run does
    config, compute = DistillConfig(epochs=1, batch_size=4), Compute(torch.device("cpu"))
    trainer = ImageDistilTrainer(
        student_model=model,
        lambda_param=0.5,
        args=training_arguments(config, 5, compute, tmp_path / "out"),
        train_dataset=Pictures(),
        eval_dataset=Pictures(),
        compute_metrics=lambda answers: {"accuracy": float((answers.predictions.argmax(-1) == 0).mean())},
    )
    trainer.train()
    assert "eval_accuracy" in trainer.evaluate()
    trainer.save_model(str(tmp_path / "student"))
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "student").eval()
    assert type(again) is type(model) and again.config.problem_type == "single_label_classification"
    values = Pictures().values
    with torch.no_grad():
        torch.testing.assert_close(again(pixel_values=values).logits, model.eval()(pixel_values=values).logits)
