"""Files that cannot be loaded are blamed in words, and say what to do; no code of theirs is run."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTImageProcessorPil
from transformers.utils import is_timm_available

from kd.errors import UserError
from kd.models.student import check_batch_size, load_student
from kd.models.teacher import load_teacher
from tests.support import architectures, toys
from tests.support.paths import ROOT

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tiny model with its processor."""
    toys.tiny_resnet(toys.CLASSES).save_pretrained(tmp_path)
    toys.processor().save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, name: str = "config.json", **values) -> None:
    """Change entries of a JSON file."""
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def cut(folder: Path) -> None:
    weights(folder).write_bytes(weights(folder).read_bytes()[:-1000])


def one_class_too_many(folder: Path) -> None:
    change(folder, id2label=dict(enumerate([*toys.CLASSES, "sea"])))


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def other_weights(folder: Path) -> None:
    save_file({"other.weight": torch.zeros(2)}, weights(folder), {"format": "pt"})


def not_a_number(folder: Path) -> None:
    save_file(
        {key: t * float("nan") if t.is_floating_point() else t for key, t in load_file(weights(folder)).items()},
        weights(folder),
        {"format": "pt"},
    )


def missing_part(folder: Path) -> None:
    weights(folder).rename(folder / "model-00001-of-00002.safetensors")
    keys = load_file(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(keys, "model-00002-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


FAULTS = {
    "pointer": (lambda f: weights(f).write_text(LFS), r"only Git LFS pointers to them \(model.safetensors in .*git lfs pull"),
    "cut": (cut, "cut off or damaged .*Download them again"),
    "empty": (lambda f: weights(f).write_bytes(b""), "cut off or damaged .*Download them again"),
    "web page": (lambda f: weights(f).write_text("<!doctype html>" * 99), "cut off or damaged .*Download them again"),
    "no part": (missing_part, "model-00002-of-00002.safetensors"),
    "timm": (
        lambda f: (f / "config.json").write_text('{"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {}}'),
        "needs timm, not installed here. Install with `pip install timm`",
    ),
    "quantised": (lambda f: change(f, quantization_config={"quant_method": "bitsandbytes"}), "its weights are quantised"),
    "processor": (lambda f: (f / "preprocessor_config.json").unlink(), r"\(resnet\).*save_pretrained\(FOLDER\)"),
    "broken processor": (lambda f: (f / "preprocessor_config.json").write_text("{"), "cannot be loaded.*JSON"),
    "strange processor": (lambda f: change(f, "preprocessor_config.json", image_mean=[0.5]), "not supported.*mean"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded.*JSON"),
    "list as config": (lambda f: (f / "config.json").write_text("[]"), "model_type in its config.json"),
    "strange config": (lambda f: change(f, hidden_sizes="many"), "cannot be loaded"),
    "strange names": (lambda f: change(f, id2label={"first": "a"}), "cannot be loaded"),
    "sizes": (lambda f: change(f, embedding_size=12), "weights of other sizes than its config.json says"),
    "other weights": (other_weights, "no weights of a ResNetForImageClassification"),
    "nan": (not_a_number, "not finite numbers, so its weights are damaged"),
    "grey": (lambda f: change(f, num_channels=1), r"takes pictures of 1 channel \(num_channels"),
    "adapter": (adapter, r"adapter \(LoRA\).*Merge it"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["teacher", "student"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_cannot_be_used_says_what_is_wrong_and_what_to_do(kind, fault, folder):
    if fault == "timm" and is_timm_available():
        pytest.skip("timm is installed")
    spoil, words = FAULTS[fault]
    spoil(folder)
    with pytest.raises(UserError, match=words) as raised:
        load_teacher(str(folder), toys.CLASSES) if kind == "teacher" else load_student(str(folder), ["x", "y"], None, 0)
    assert "our mistake" not in str(raised.value) and kind in str(raised.value) and "\n" not in str(raised.value)


def test_a_teacher_with_one_name_too_many_says_how_many_outputs_there_are(folder):
    one_class_too_many(folder)
    with pytest.raises(UserError, match=r"names 4 classes.*its weights have 3 outputs"):
        load_teacher(str(folder), toys.CLASSES)
    assert load_student(str(folder), ["x", "y"], None, 0).model.config.num_labels == 2  # a new head in any case


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_a_model_of_several_labels_a_picture_is_no_teacher_and_a_student_of_one(problem, folder):
    change(folder, problem_type=problem)
    with pytest.raises(UserError, match=f"problem_type is {problem}.*each picture has one class"):
        load_teacher(str(folder), toys.CLASSES)
    student = load_student(str(folder), toys.CLASSES, None, 0)
    assert student.model.config.problem_type == "single_label_classification"
    assert student.repairs == [f"problem_type {problem} -> single_label_classification"]


def test_every_student_says_that_a_picture_has_one_label():
    config = load_student("mobilenet_v2_0.35", toys.CLASSES, 32, 0).model.config
    assert config.problem_type == "single_label_classification"


def test_weights_that_are_not_in_the_checkpoint_are_named(folder):
    found = load_file(weights(folder))
    gone = next(key for key in found if key.startswith("resnet.encoder"))
    save_file({key: tensor for key, tensor in found.items() if key != gone}, weights(folder), {"format": "pt"})
    assert any(gone in said for said in load_student(str(folder), ["x", "y"], None, 0).repairs)
    with pytest.raises(UserError, match="never trained"):
        load_teacher(str(folder), toys.CLASSES)


def test_a_config_that_asks_for_tuples_gets_named_outputs(folder):
    change(folder, return_dict=False)
    assert load_teacher(str(folder), toys.CLASSES)(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 3)


@pytest.mark.parametrize("kind", ["teacher", "student"])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_in_a_folder_is_never_run_nor_asked_about(kind, file, folder, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\nclass Mine: ...\n")
    classes = {
        "AutoConfig": "code.Mine",
        "AutoModelForImageClassification": "code.Mine",
        "AutoImageProcessor": "code.Mine",
    }
    change(folder, file, auto_map=classes, model_type="mine", image_processor_type="Mine")
    monkeypatch.setattr("builtins.input", lambda text: "y")
    with pytest.raises(UserError, match=r"Python code of its own \(auto_map.*never run") as raised:
        load_teacher(str(folder), toys.CLASSES) if kind == "teacher" else load_student(str(folder), ["x", "y"], None, 0)
    assert not ran.exists() and "trust_remote_code" not in str(raised.value)


def test_nothing_is_loaded_without_forbidding_code():
    calls = [
        (path.name, call)
        for path in [ROOT / "app.py", *sorted((ROOT / "kd").rglob("*.py"))]
        for call in re.findall(r"\.from_pretrained\((?:[^()]|\([^()]*\))*\)", path.read_text())
    ]
    assert len(calls) >= 8
    assert [one for one in calls if "trust_remote_code=False" not in one[1]] == []


def test_a_batch_of_one_picture_is_refused_where_its_norms_see_one_value(folder):
    small = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    small.save_pretrained(folder)
    student = load_student(str(folder), toys.CLASSES, None, 0)
    check_batch_size("s", student, 2)
    with pytest.raises(UserError, match=r"batch size of 1.*Choose a batch size of 2") as raised:
        check_batch_size("s", student, 1)
    assert raised.value.setting == "batch_size"
    check_batch_size("mobilenet", load_student("deit_tiny", toys.CLASSES, 32, 0), 1)


def test_trying_a_student_leaves_it_as_it_was():
    torch.manual_seed(3)
    before = torch.rand(1)
    student = load_student("mobilenet_v2_0.35", toys.CLASSES, 32, 3)
    assert all(buffer.eq(0).all() for key, buffer in student.model.named_buffers() if "running_mean" in key)
    assert all(parameter.grad is None for parameter in student.model.parameters())
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), before)


def test_a_pvt_of_three_classes_has_three_outputs(tmp_path):
    name = "PvtForImageClassification"
    folder = architectures.save(name, tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    settings.pop("num_labels")  # as older versions of transformers saved it
    (folder / "config.json").write_text(json.dumps(settings))
    assert load_teacher(str(folder), toys.CLASSES)(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 3)
    student = load_student(str(folder), ["x", "y"], None, 0)
    student.model.save_pretrained(tmp_path / "student")
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "student").classifier.out_features == 2
