"""Training within the memory there is."""

import pytest

from kd.errors import UserError
from kd.training.loop import use_smaller_parts


def test_a_batch_is_cut_into_equal_parts_down_to_one_picture(run):
    for _ in range(3):
        use_smaller_parts(run, 12)
    assert [event["parts"] for event in run.events() if event["event"] == "memory"] == [2, 4, 12]
    with pytest.raises(UserError, match="even with one picture at a time"):
        use_smaller_parts(run, 12)
