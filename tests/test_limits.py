"""The limits: one place, environment variables, stricter among strangers."""

import pytest

from kd.limits import Limits, table


def test_a_shared_server_is_stricter_than_one_s_own():
    own, shared = Limits.from_environment({}), Limits.from_environment({"KD_SHARED": "1"})
    assert own.quota_mb is None and shared.quota_mb == 3000
    assert all(
        mine is None or theirs <= mine for mine, theirs in zip(vars(own).values(), vars(shared).values(), strict=True)
    )


def test_an_environment_variable_changes_a_limit_or_takes_it_away():
    limits = Limits.from_environment({"SPACE_ID": "a/b", "KD_OPEN_RUNS": "5", "KD_QUEUE": "none"})
    assert (limits.open_runs, limits.queue, limits.steps) == (5, None, 50_000)


@pytest.mark.parametrize("text", ["many", "-1", "nan", "inf"])
def test_what_is_no_number_is_refused_in_words(text):
    with pytest.raises(ValueError, match=rf"KD_FILES is '{text}'; expected a number, 0 or more, or none"):
        Limits.from_environment({"KD_FILES": text})


def test_every_limit_is_told_with_its_variable():
    assert ("KD_STEPS", "none", "50,000", "training steps of a run, over all its trainings") in table()
