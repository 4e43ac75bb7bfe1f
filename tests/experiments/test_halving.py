"""Successive halving: rungs, what a budget buys, and the ranking."""

import pytest

from kd.config import DistillConfig
from kd.experiments.grid import Grid, Point
from kd.experiments.halving import RunCost, epochs_within, ranking, rungs, sweep_seconds
from tests.support.sweeps import make_sweep, tell_point


@pytest.mark.parametrize(
    ("points", "epochs", "expected"),
    [
        (17, 12, [(17, 3), (9, 6), (5, 12)]),
        (4, 30, [(4, 8), (2, 15), (1, 30)]),
        (3, 4, [(3, 2), (2, 4)]),
        (2, 4, [(2, 2), (1, 4)]),
        (1, 4, [(1, 4)]),
        (17, 3, [(17, 1), (9, 2), (5, 3)]),
        (17, 2, [(17, 1), (9, 2)]),
        (17, 1, [(17, 1)]),
    ],
)
def test_each_rung_has_half_the_points_for_twice_the_epochs(points, epochs, expected):
    assert rungs(points, epochs) == expected


def test_a_budget_buys_the_most_epochs_that_fit():
    config, pace = DistillConfig(trials=2, views=3), RunCost(epoch=2.0, run=5.0, view=10.0)
    # 4 points: 4 trainings of 1 epoch, 2 of 2, 1 of 4, then 2 pairs of 4; 8 runs; 2 views that the pace has not seen
    needed = (4 * 1 + 2 * 2 + 4 + 2 * 2 * 4) * 2.0 + 8 * 5.0 + 2 * 10.0
    assert sweep_seconds(4, 4, config, pace) == needed
    assert epochs_within(needed, 4, config, pace) == 4
    alone = sweep_seconds(4, 4, config, pace, sides=1)
    assert needed - alone == 4 * config.trials * pace.epoch  # without labels there is no training without the teacher
    assert epochs_within(needed - 0.1, 4, config, pace) == 3
    assert epochs_within(1, 4, config, pace) == 0


def test_a_longer_training_ranks_above_then_accuracy_agreement_and_order_and_what_diverged_is_out(tmp_path):
    one = make_sweep(tmp_path, Grid("1,2,4,8", "0,0.5"))
    one.append("plan", epochs=4, rungs=[(5, 1), (3, 2), (2, 4)])
    first, second, third, fourth = (Point(t, 0.5, "kd") for t in (1, 2, 4, 8))
    tell_point(one, first, 1, 0.9)
    tell_point(one, second, 1, 0.7, agreement=0.6)
    tell_point(one, second, 2, 0.6)
    tell_point(one, third, 1, 0.9, agreement=0.6)
    tell_point(one, fourth, 1, 0.9)
    tell_point(one, one.grid().points()[0], 1, None)
    assert [Point.of(row) for row in ranking(one.points())] == [second, third, first, fourth]
