"""Teachers and students."""

import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    BitImageProcessorPil,
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
    MobileViTImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
)

from kd.errors import UserError
from kd.evaluation.latency import count_flops, latency_summary, timed_trials
from kd.models.device import _time_precisions, pick_device, pick_precision
from kd.models.processor import read_normalization, resized_processor, run_processor
from kd.models.repair import StochasticDepth, repair_training_settings
from kd.models.student import load_student
from kd.models.teacher import Teacher, load_teacher
from kd.models.zoo import STUDENTS
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


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("size", [28, 32, 64])
def test_every_student_takes_small_pictures_and_has_a_sensible_last_map(name, size):
    student = load_student(name, toys.CLASSES, None, size, seed=0)
    side = student.normalization.size[0]
    assert side >= size
    maps = []

    def note(module, inputs, output):
        if isinstance(module, nn.Conv2d) and output.shape[-1] > 1:
            maps.append(output.shape[-1])

    for module in student.model.modules():
        module.register_forward_hook(note)
    with torch.inference_mode():
        logits = student.model(pixel_values=torch.zeros(2, 3, side, side)).logits
    assert logits.shape == (2, 3) and student.model.config.id2label == dict(enumerate(toys.CLASSES))
    assert maps[-1] >= 2


def test_students_of_one_seed_are_equal_and_of_two_are_not():
    weights = [
        next(load_student("mobilenet_v2_0.35", toys.CLASSES, 32, 32, seed).model.parameters()) for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", ["mobilenet_v2_0.35", "efficientnet_b0"])
def test_healing_makes_running_statistics_those_of_many_batches(name):
    def error_of_running_means(student: nn.Module) -> float:
        """How far the first norm's running mean is from the mean over 60 batches, in deviations of one batch's."""
        norm = next(module for module in student.modules() if isinstance(module, nn.BatchNorm2d))
        seen, generator = [], torch.Generator().manual_seed(0)
        norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].mean((0, 2, 3))))
        student.train()
        with torch.no_grad():
            for _ in range(60):
                student(
                    pixel_values=torch.randn(4, 3, 32, 32, generator=generator) + torch.randn(1, generator=generator)
                )
        means = torch.stack(seen)
        return ((norm.running_mean - means.mean(0)).abs() / means.std(0)).mean().item()

    raw = STUDENTS[name](32, {"num_labels": 3})
    healed = STUDENTS[name](32, {"num_labels": 3})
    healed.load_state_dict(raw.state_dict())
    assert "BatchNorm momentum" in repair_training_settings(healed)[0] and repair_training_settings(healed) == []
    assert error_of_running_means(healed) < 0.5 * error_of_running_means(raw)


@pytest.mark.parametrize("name", ["mobilenet_v2_1.0", "efficientnet_b0", "mobilevit_xx_small"])
def test_healing_lifts_every_signal_above_the_epsilon_of_its_norm(name):
    def least_signal(healing: bool) -> float:
        """The smallest variance that comes into a norm, in epsilons."""
        model = load_student(name, toys.CLASSES, 64, 64, seed=0, repair=healing).model.train()
        least = []
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(
                    lambda norm, inputs: least.append(inputs[0].var((0, 2, 3)).median().item() / norm.eps)
                )
        model(pixel_values=torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        return min(least)

    assert least_signal(healing=True) > 10 * least_signal(healing=False)


def test_healing_turns_a_keep_probability_into_a_dropout():
    student = load_student("mobilenet_v2_0.35", toys.CLASSES, 32, 32, seed=0)
    assert student.model.config.classifier_dropout_prob == student.model.dropout.p == pytest.approx(0.2)


def test_a_healed_efficientnet_drops_whole_blocks_of_a_picture_or_none_of_it():
    student = load_student("efficientnet_b0", toys.CLASSES, 32, 32, seed=0)
    assert any("whole blocks in 9 layers" in said for said in student.repairs)
    drop = [m for m in student.model.modules() if isinstance(m, StochasticDepth)][-1]
    assert drop.p == pytest.approx(0.2 * 14 / 16)
    torch.manual_seed(0)
    values = torch.rand(4000, 3, 2, 2) + 1
    dropped = drop.train()(values)
    kept = dropped.flatten(1).any(1)
    assert torch.equal(dropped[~kept], torch.zeros_like(values[~kept]))
    torch.testing.assert_close(dropped[kept], values[kept] / (1 - drop.p))
    assert (~kept).float().mean().item() == pytest.approx(drop.p, abs=0.02)
    assert torch.equal(drop.eval()(values), values)


@pytest.mark.parametrize(
    "processor",
    [toys.processor(40), ConvNextImageProcessorPil(), MobileViTImageProcessorPil()],
    ids=lambda p: type(p).__name__,
)
def test_a_processor_can_be_asked_for_another_size(processor):
    assert read_normalization(resized_processor(processor, 64)).size == (64, 64)


@pytest.mark.parametrize(
    ("classes", "changed"),
    [
        (["sky", "leaf", "brick"], {"classifier.1.weight", "classifier.1.bias"}),
        (toys.CLASSES[::-1], {"classifier.1.weight", "classifier.1.bias"}),
        (["Blue_Sky", "green-leaf", "red brick"], set()),
    ],
)
def test_a_pretrained_student_of_as_many_classes_gets_a_new_head_unless_it_knows_these(teacher, classes, changed):
    old = AutoModelForImageClassification.from_pretrained(teacher).state_dict()
    new = load_student(str(teacher), classes, None, 32, seed=0).model.state_dict()
    assert {name for name in old if not torch.equal(old[name], new[name])} == changed


def test_the_key_of_a_teacher_knows_its_processor_and_settings(teacher):
    model = AutoModelForImageClassification.from_pretrained(teacher)
    keys = [Teacher(model, toys.processor()).key()]
    other = toys.processor()
    other.resample = 0
    keys.append(Teacher(model, other).key())
    model.config.hidden_act = "gelu"
    keys.append(Teacher(model, toys.processor()).key())
    assert len(set(keys)) == 3


def test_pretrained_weights_stay_and_their_momentum_and_dropout_are_healed(tmp_path):
    raw = STUDENTS["mobilenet_v2_0.35"](32, {"num_labels": 5})
    raw.save_pretrained(tmp_path)
    toys.processor(32).save_pretrained(tmp_path)
    student = load_student(str(tmp_path), toys.CLASSES, None, 32, seed=0)
    assert student.pretrained and student.model.config.num_labels == 3
    assert [said.split(" in ")[0] for said in student.repairs] == [
        "BatchNorm momentum 0.997 -> 0.1", "classifier dropout 0.8 -> 0.2"
    ]  # fmt: skip
    assert next(m for m in student.model.modules() if isinstance(m, nn.BatchNorm2d)).momentum == 0.1
    unhealed = load_student(str(tmp_path), toys.CLASSES, None, 32, seed=0, repair=False)
    assert not unhealed.repairs and unhealed.model.config.classifier_dropout_prob == 0.8
    first = next(iter(raw.state_dict()))
    assert torch.equal(student.model.state_dict()[first], raw.state_dict()[first])


def test_a_teacher_answers_in_the_dataset_s_order(tmp_path, teacher):
    shuffled = [toys.CLASSES[i] for i in (2, 0, 1)]
    model = AutoModelForImageClassification.from_pretrained(teacher)
    direct = Teacher(model, toys.processor())
    reordered, _ = load_teacher(str(teacher), shuffled)
    values = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(reordered(values).logits, direct(values).logits[:, [2, 0, 1]])
    assert reordered.key() != direct.key()


def test_a_teacher_of_more_classes_is_narrowed_to_the_mapped_ones_in_the_dataset_s_order(teacher):
    classes, label_map = ["bricks", "water", "sky"], "water=, sky=blue sky, bricks=red brick"
    narrowed, said = load_teacher(str(teacher), classes, label_map, [7, 5, 8])
    values = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = load_teacher(str(teacher), None)[0](values).logits
    assert narrowed.columns == [2, None, 0] and narrowed.known.tolist() == [True, False, True]
    logits = narrowed(values).logits
    torch.testing.assert_close(logits[:, [0, 2]], whole[:, [2, 0]])
    assert (logits.softmax(1)[:, 1] == 0).all() and logits.isfinite().all()
    assert (
        "does not know 1 of 3 classes (water: label map). Their 5 of 20 training pictures are learned from the labels"
        in said[0]
    )


def test_a_backbone_without_a_trained_head_is_refused(tmp_path):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )
    ViTForImageClassification(config).vit.save_pretrained(tmp_path)
    toys.processor().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"never trained.*Fine-tune it on these classes first"):
        load_teacher(str(tmp_path), ["a", "b"])


def test_a_folder_that_is_no_classifier_says_so(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        load_teacher(str(tmp_path), toys.CLASSES)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="bert model, which transformers cannot use for image classification"):
        load_teacher(str(tmp_path), toys.CLASSES)


def test_a_teacher_without_a_processor_says_so(tmp_path):
    toys.tiny_resnet(toys.CLASSES).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no preprocessor_config\.json"):
        load_teacher(str(tmp_path), toys.CLASSES)


def test_an_unknown_student_names_those_there_are():
    with pytest.raises(UserError, match=r"no student 'mobilenet'.*mobilenet_v2_1\.0"):
        load_student("mobilenet", toys.CLASSES, None, 32, seed=0)


def test_a_device_that_is_not_there_is_refused_in_words():
    with pytest.raises(UserError, match="cannot be used; this machine has"):
        pick_device("cuda:63")


def test_flops_see_into_attention_and_count_two_a_multiply_add():
    linear = load_student("mobilenet_v2_1.0", [str(i) for i in range(1000)], 224, 224, seed=0).model
    assert count_flops(linear, (224, 224)) == pytest.approx(2 * 300e6, rel=0.05)  # 300 M multiply-adds in the paper
    config = ViTConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64, image_size=128, patch_size=8
    )
    tokens = 16 * 16 + 1
    attention = 2 * 2 * tokens * tokens * 64  # Q K^T and its product with V
    dense = 2 * tokens * (4 * 64 * 64 + 2 * 64 * 64) + 2 * 256 * 3 * 64 * 64
    assert count_flops(ViTForImageClassification(config), (128, 128)) == pytest.approx(attention + dense, rel=0.01)


def test_latency_takes_turns_and_keeps_its_promises():
    order = []
    calls = {name: lambda name=name: (order.append(name), time.sleep(0.002)) for name in ("a", "b")}
    times = timed_trials(calls, torch.device("cpu"), trials=30, seconds=0.0)
    assert order[-60:] == ["a", "b"] * 30 and len(times["a"]) == 30
    slow_and_fast = {"slow": lambda: time.sleep(0.01), "fast": lambda: time.sleep(0.001)}
    times = timed_trials(slow_and_fast, torch.device("cpu"), trials=10, seconds=0.1)
    assert len(times["slow"]) < 30 < 60 < len(times["fast"])  # not ten times as long for the slow one
    found = latency_summary(np.arange(1, 101, dtype=float), torch.device("cpu"))
    assert found["p50"] == 50.5 and found["n"] == 100 and found["batch"] == 1 and found["threads"] >= 1


def test_the_quicker_precision_is_tried_once_and_remembered(tmp_path, monkeypatch):
    model = load_student("mobilenet_v2_0.35", ["a", "b"], 28, 28, 0).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tried = []

    def time_them(bf16: float):
        return lambda *_: tried.append(1) or {"fp32": 1.0, "bf16": bf16}

    def pick(asked: str = "auto", cache=tmp_path) -> str:
        return pick_precision(asked, torch.device("cpu"), model, (28, 28), cache)

    assert _time_precisions(model, (28, 28), rounds=1).keys() == {"fp32", "bf16"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    monkeypatch.setattr("kd.models.device._has_bf16", lambda: True)
    monkeypatch.setattr("kd.models.device._time_precisions", time_them(0.8))
    assert pick() == pick() == "bf16" and len(tried) == 1
    monkeypatch.setattr("kd.models.device._time_precisions", time_them(0.95))
    assert pick(cache=tmp_path / "other") == "fp32" and pick("bf16") == "bf16" and len(tried) == 2
    monkeypatch.setattr("kd.models.device._has_bf16", lambda: False)
    assert pick(cache=tmp_path / "third") == "fp32" and len(tried) == 2
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        pick("fp16")
