"""The plan of a run: input sizes, and the epochs that fit into the minutes."""

import pytest

from kd.config import DistillConfig
from kd.training.plan import fitting_epochs, sizes_of
from kd.training.throughput import EpochCost


def test_the_input_grows_from_its_start_to_the_full_size_in_two_thirds_of_training():
    sizes = sizes_of(DistillConfig(start_size=64, epochs=12), (128, 128))
    assert [sizes(epoch)[0] for epoch in (0, 3, 6, 8, 11)] == [64, 96, 112, 128, 128]
    assert sizes_of(DistillConfig(), (28, 28))(0) == (28, 28)


@pytest.mark.parametrize("epochs", [1, 2, 3, 30])
@pytest.mark.parametrize("full", [(28, 28), (40, 40), (100, 72), (200, 200)])
def test_the_last_epoch_is_at_the_full_size_however_few_there_are_and_whatever_it_is(epochs, full):
    assert sizes_of(DistillConfig(start_size=16, epochs=epochs), full)(epochs - 1) == full


def test_more_epochs_of_an_input_that_grows_fit_into_the_same_minutes():
    full, pictures, validation = (128, 128), 2400, 240
    cost = EpochCost(1 / 80, 1 / 240, pictures, validation)
    epochs = fitting_epochs(DistillConfig(minutes=20, start_size=64), full, cost)
    sizes = sizes_of(DistillConfig(start_size=64, epochs=epochs), full)
    seconds = sum(pictures / 80 * sizes(epoch)[0] ** 2 / 128**2 + validation / 240 for epoch in range(epochs))
    assert abs(seconds - 20 * 60) < pictures / 80
    assert epochs > fitting_epochs(DistillConfig(minutes=20), full, cost) == round(1200 / 31)
    assert fitting_epochs(DistillConfig(minutes=0.001), full, cost) == 1


def test_a_teacher_that_is_asked_in_every_step_takes_of_the_minutes():
    config, full = DistillConfig(minutes=20, targets="online"), (128, 128)
    cost = EpochCost(1 / 80, 1 / 240, 2400, 240, teacher=0.2)
    assert fitting_epochs(config, full, cost) == round(1200 / (31 + 2400 * 0.2))
