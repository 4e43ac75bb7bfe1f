"""Training within the memory there is."""

import pytest
from torch import nn

from kd.errors import UserError
from kd.training.loop import least_part, use_smaller_parts


def test_a_batch_is_cut_into_equal_parts_down_to_one_picture(run):
    for _ in range(3):
        use_smaller_parts(run, 12)
    assert [event["parts"] for event in run.events() if event["event"] == "memory"] == [2, 4, 12]
    with pytest.raises(UserError, match="even with one picture at a time"):
        use_smaller_parts(run, 12)


def test_with_batch_norm_no_part_is_a_single_picture(run):
    least = least_part(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    assert least_part(nn.Linear(2, 2)) == 1
    for _ in range(2):
        use_smaller_parts(run, 12, least)
    with pytest.raises(UserError, match="even with 3 pictures at a time"):
        use_smaller_parts(run, 12, least)
