"""The limits: one place, environment variables, stricter among strangers."""

import math

import pytest

from kd.cli import main
from kd.limits import VARIABLES, Limits, check_pictures, check_steps, current, table
from kd.runs import visitors
from kd.system.cache import Cache
from kd.ui import access


def test_a_shared_server_is_stricter_than_one_s_own():
    own, shared = Limits.from_environment({}), Limits.from_environment({"KD_SHARED": "1"})
    assert own.quota_mb == math.inf and shared.quota_mb == 3000
    assert all(theirs <= mine for mine, theirs in zip(vars(own).values(), vars(shared).values(), strict=True))


def test_an_environment_variable_changes_a_limit_or_takes_it_away():
    limits = Limits.from_environment({"SPACE_ID": "a/b", "KD_OPEN_RUNS": "5", "KD_QUEUE": "none"})
    assert (limits.open_runs, limits.queue, limits.steps) == (5, math.inf, 50_000)


@pytest.mark.parametrize("text", ["many", "-1", "nan", "inf"])
def test_what_is_no_number_is_refused_in_words(text):
    with pytest.raises(ValueError, match=rf"KD_FILES is '{text}'; expected a number, 0 or more, or none"):
        Limits.from_environment({"KD_FILES": text})


def test_a_mistyped_limit_is_told_by_every_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("KD_QUOTA_MB", "abc")
    for command in ("limits", "runs"):
        assert main.main([command, *(["--runs-dir", str(tmp_path)] if command == "runs" else [])]) == 2
        assert "KD_QUOTA_MB is 'abc'; expected a number" in capsys.readouterr().err


def test_every_limit_is_told_with_its_variable():
    assert ("KD_STEPS", "none", "50,000", "training steps of a run, over all its trainings") in table()


def test_a_run_of_too_many_steps_is_refused_in_words(monkeypatch):
    check_steps(1000, 10**6, 1, 10)  # no limit on one's own machine
    monkeypatch.setenv("KD_STEPS", "120")
    check_steps(epochs=10, pictures=65, batch=32, trainings=4)  # 3 steps an epoch
    words = (
        "would take 150 training steps: 10 epochs of 65 pictures, 32 at a time in each of 5 trainings. .* 120 at most"
    )
    with pytest.raises(ValueError, match=words):
        check_steps(epochs=10, pictures=65, batch=32, trainings=5)


def test_a_dataset_of_too_many_pictures_or_classes_is_refused_in_words(monkeypatch):
    check_pictures(10**7, 10**4 // 10)
    monkeypatch.setenv("KD_SHARED", "1")
    for pictures, classes, words in ((20_001, 2, "20,001 pictures; this server takes 20,000"), (9, 201, "201 classes")):
        with pytest.raises(ValueError, match=words):
            check_pictures(pictures, classes)


def test_the_table_for_the_readme_has_what_holds_here(monkeypatch, capsys):
    monkeypatch.setenv("KD_QUOTA_MB", "12.5")
    assert main.main(["limits"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == len(table()) and all(row.count("|") == head.count("|") for row in rows)
    assert "| KD_QUOTA_MB | none | 3,000 | 12.5 | disk that one visitor's runs and datasets may take, MB |" in rows
    monkeypatch.setenv("KD_QUOTA_MB", "much")
    assert main.main(["limits"]) == 2


def test_every_limit_can_be_taken_away(monkeypatch, tmp_path):
    from kd.ui import datasets
    from kd.ui.page import launch_options

    for name in VARIABLES:
        monkeypatch.setenv(name, "none" if name not in ("SPACE_ID", "KD_SHARED") else "1")
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    assert launch_options()["max_file_size"] is None and "none" not in datasets.hint() and "inf" not in datasets.hint()
    assert access.house_rules() == "" and visitors.clean_if_due(tmp_path) == []
    visitors.check_room(tmp_path, "somebody")
    assert Cache(lambda: current().compare_mb, len).get("key", lambda: "value") == "value"
    assert main.main(["clean"]) == 2  # for how many days?
