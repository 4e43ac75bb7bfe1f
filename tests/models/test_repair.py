"""The repair of students: momentum, signal strength, dropout and stochastic depth."""

import pytest
import torch
from torch import nn

from kd.models.repair import StochasticDepth, repair_training_settings
from kd.models.student import load_student
from kd.models.zoo import STUDENTS
from tests.support import toys


@pytest.mark.parametrize("name", ["mobilenet_v2_0.35", pytest.param("efficientnet_b0", marks=pytest.mark.slow)])
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
        model = load_student(name, toys.CLASSES, 64, seed=0, repair=healing).model.train()
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
    student = load_student("mobilenet_v2_0.35", toys.CLASSES, 32, seed=0)
    assert student.model.config.classifier_dropout_prob == student.model.dropout.p == pytest.approx(0.2)


def test_a_healed_efficientnet_drops_whole_blocks_of_a_picture_or_none_of_it():
    student = load_student("efficientnet_b0", toys.CLASSES, 32, seed=0)
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
