"""The points of a sweep."""

import pytest

from kd.experiments.grid import Grid, Point
from tests.support.sweeps import DIST, KD


def test_without_the_teacher_there_is_one_point_whatever_the_temperature_and_the_method():
    grid = Grid("1,2", "0,0.5", "kd,dist")
    assert grid.points() == [Point(1, 0, "kd"), Point(1, 0.5, "kd"), KD, Point(1, 0.5, "dist"), DIST]
    assert grid.point(2, 0, "dist") == Point(1, 0, "kd")


def test_lists_come_as_text_or_as_lists_each_value_once():
    assert Grid(" 2, 1,2 ", [0.5]) == Grid((2, 1), "0.5")
    assert len(Grid().points()) == 17


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"temperatures": "1,,x"}, "temperatures is '1,,x'; expected numbers above 0 separated by commas, for example 1,2"),
        ({"temperatures": "0,1"}, "temperatures is '0,1'"),
        ({"temperatures": []}, "temperatures is ''"),
        ({"lambdas": "0.5,1.5"}, "lambdas is '0.5,1.5'; expected numbers from 0 to 1"),
        ({"lambdas": "0"}, "lambdas has 0 alone"),
        ({"methods": "kd,hinton"}, "methods is 'kd,hinton'; expected some of kd, dkd, dist"),
        ({"budget_minutes": "0"}, "budget_minutes is '0'; expected a number above 0"),
        ({"temperatures": range(1, 62), "lambdas": "0,1"}, "These are 62 points, and a sweep has 60 at most"),
    ],
)  # fmt: skip
def test_what_is_no_grid_is_refused_in_words(asked, words):
    with pytest.raises(ValueError) as refusal:
        Grid(**asked)
    assert words in str(refusal.value)
