"""What a caller is told to do next, whatever has become of a run."""

from kd.runs.run import CLOSED, LIFECYCLE
from kd.ui.api.runs import NEXT


def test_each_status_that_a_run_can_have_says_what_to_do_next():
    assert set(NEXT) == {*LIFECYCLE.values(), *CLOSED}
    assert all(words.endswith(".") for words in NEXT.values())
