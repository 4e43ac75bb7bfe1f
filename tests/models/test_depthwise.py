"""Depthwise convolutions of ours: PyTorch's answers, and its gradients in float64."""

import copy
import itertools

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification

from kd.models.depthwise import DepthwiseConv2d, speed_up_depthwise
from kd.models.student import load_student
from kd.models.zoo import STUDENTS

SETTINGS = [
    {"kernel_size": kernel, "stride": stride, "dilation": dilation, "padding": padding, "side": side}
    for kernel, stride, dilation, side in itertools.product((1, 3, 5, 7), (1, 2, 3), (1, 2), (1, 2, 3, 6, 7, 12))
    for padding in sorted({0, dilation * (kernel // 2), dilation * (kernel - 1)})
    if side + 2 * padding > dilation * (kernel - 1)
]


def gradients(kind: type, side: int, dtype: torch.dtype, **settings) -> tuple[torch.Tensor, ...]:
    """Answers and gradients of one layer on a picture that is not square."""
    torch.manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:  # numbers that bfloat16 has too
        return torch.randn(shape).bfloat16().to(dtype)

    layer = kind(8, 8, groups=8, bias=False, **settings).to(dtype)
    layer.weight.data = noise(*layer.weight.shape)
    values = noise(3, 8, side, side + 1).contiguous(memory_format=torch.channels_last).requires_grad_()
    answers = layer(values)
    answers.backward(noise(*answers.shape))
    return answers.detach(), values.grad, layer.weight.grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_answers_and_gradients_are_those_of_pytorch_in_float64(dtype, tolerance):
    for settings in SETTINGS:
        exact = gradients(nn.Conv2d, dtype=torch.float64, **settings)
        for ours, theirs in zip(gradients(DepthwiseConv2d, dtype=dtype, **settings), exact, strict=True):
            torch.testing.assert_close(
                ours.double(), theirs, rtol=tolerance, atol=tolerance * max(1.0, theirs.abs().max().item()),
                msg=lambda text, settings=settings: f"{settings}: {text}",
            )  # fmt: skip


def test_gradients_agree_with_finite_differences():
    layer = DepthwiseConv2d(2, 2, 3, 2, 1, groups=2, bias=False).double()
    values = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, w: torch.func.functional_call(layer, {"weight": w}, (v,)),
                                    (values, layer.weight))  # fmt: skip


def test_a_student_s_gradients_stay_what_they_are():
    student = load_student("mobilenet_v2_0.35", ["a", "b"], 28, 0).model.train()
    plain = copy.deepcopy(student)
    for module in plain.modules():
        if isinstance(module, DepthwiseConv2d):
            module.__class__ = nn.Conv2d
    assert sum(type(module) is DepthwiseConv2d for module in student.modules()) == 17
    values = torch.randn(4, 3, 28, 28)
    for model in (student, plain):
        torch.manual_seed(1)
        model(pixel_values=values).logits.square().sum().backward()
    for ours, theirs in zip(student.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in STUDENTS if name.startswith(("mobilenet", "mobilevit", "eff"))])
def test_every_depthwise_student_has_them_and_is_saved_as_it_was(name, tmp_path):
    student = load_student(name, ["a", "b"], 32, 0).model.eval()
    assert any(isinstance(module, DepthwiseConv2d) for module in student.modules())
    student.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert not any(isinstance(module, DepthwiseConv2d) for module in again.modules())
    values = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again(values).logits, student(values).logits)


def test_what_is_not_depthwise_is_left_alone():
    layers = [
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.Conv2d(8, 8, 3, groups=8, bias=True),
        nn.Conv2d(8, 8, 3, groups=8, bias=False, padding_mode="reflect", padding=1),
        nn.Conv2d(8, 8, 3, groups=8, bias=False, padding=5),
    ]
    assert all(type(layer) is nn.Conv2d for layer in speed_up_depthwise(nn.Sequential(*layers)))
