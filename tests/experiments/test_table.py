"""The table of a sweep's points."""

from kd.experiments.grid import Grid
from kd.experiments.sweep import settings_of
from kd.experiments.table import heat_maps, legend
from tests.support.sweeps import make_sweep, tell_point


def test_points_tell_the_longest_training_and_what_runs_now_and_the_map_shows_them(tmp_path):
    one = make_sweep(tmp_path, Grid("1,2", "0,0.5"))
    assert {row["rung"] for row in one.points()} == {None} and one.plan() is None
    one.append("plan", epochs=2, rungs=[(3, 1), (2, 2)])
    labels, warm, hot = one.grid().points()
    tell_point(one, labels, 1, 0.5)
    tell_point(one, labels, 2, 0.75)
    tell_point(one, warm, 1, None)
    run = one.make_run(settings_of(one.config(), hot, 1))
    rows = one.points()
    assert [(row["rung"], row["epochs"], row["accuracy"]) for row in rows] == [(2, 2, 0.75), (1, 1, None), (None,) * 3]
    assert [row["now"] for row in rows] == [None, None, run.id] and rows[1]["diverged"]
    assert heat_maps(one) == [
        [["kd", "T 1", "T 2"], ["lambda 0", "75.0% (2)", "75.0% (2)"], ["lambda 0.5", "diverged (1)", "..."]]
    ]
    assert "neither T nor the method matters" in legend(one)
