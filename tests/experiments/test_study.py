"""Studies: settings that are varied over seeds, compared from what was kept."""

import json

import numpy as np
import pytest

from kd.cli import main
from kd.distill import execute
from kd.errors import UserError
from kd.experiments import study
from kd.experiments.study import (
    Study,
    add_result,
    compared_settings,
    current_results,
    fingerprint_of_test_split,
    load_study,
    right_of,
    study_table,
    train_to_the_end,
    work_on_study,
)
from tests.support.command import kd


@pytest.fixture
def small_study(small, tmp_path, monkeypatch):
    monkeypatch.setenv("PICTURES", small["dataset"])
    asked = {
        "settings": {**small, "dataset": "$PICTURES", "epochs": 1},
        "vary": {"labels": {"lambda": 0}, "dist": {"method": "dist"}},
        "seeds": [7],
        "against": "labels",
    }
    (tmp_path / "study.json").write_text(json.dumps(asked))
    return tmp_path / "study.json"


def test_a_study_trains_each_once_compares_and_goes_on_where_it_was(small_study, tmp_path, monkeypatch, capsys):
    # in this process, which has torch: that a run begins in one of its own is told by the sweep's test
    monkeypatch.setattr(study, "finish_run", lambda run, tell, new: execute(run) or run.status())
    command = ["study", str(small_study), "--runs-dir", str(tmp_path / "runs")]
    assert main.main(command) == 0
    done = capsys.readouterr().out
    first, second = current_results(load_study(small_study))
    assert (first["label"], second["label"], first["seed"]) == ("labels", "dist", 7)
    assert first["accuracy"] == pytest.approx(right_of(first).mean(), abs=1e-4)
    *_, labels, dist = done.splitlines()
    assert labels.startswith("labels") and "points" not in labels
    assert "points (95% " in dist and "1 seed: no" in dist
    # the last result is lost, half written: its run is done and found again, and nothing is trained anew
    results = small_study.with_name("study.json.results")
    results.write_text(results.read_text()[:-20])
    assert main.main(command) == 0 and capsys.readouterr().out == done
    assert len(list((tmp_path / "runs").glob("2*"))) == 2
    assert kd("study", small_study, "--show").stdout == done
    # a run of the same settings whose pictures have changed since is not taken
    config = load_study(small_study).config("labels", 7)
    assert train_to_the_end(config, tmp_path / "runs", print).last("data")["test_pictures"] == first["test"]
    monkeypatch.setattr("kd.experiments.study.fingerprint_of_test_split", lambda config: "others")
    monkeypatch.setattr(study, "create_run", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_to_the_end(config, tmp_path / "runs", print)


def kept(file, **changes) -> None:
    """One result of ``labels``, seed 7, as if it had been trained."""
    one = load_study(file)
    right = np.ones(4, bool)
    row = {
        "label": "labels", "seed": 7, "accuracy": 1.0, "validation": 1.0, "epochs": 1, "seconds": 1.0, "pictures": 4,
        "right": study.base64.b64encode(np.packbits(right)).decode(),
        "test": fingerprint_of_test_split(one.config("labels", 7)), "settings": compared_settings(one.asked("labels", 7)),
    }  # fmt: skip
    add_result(one, {**row, **changes})


def test_a_result_of_other_settings_is_not_counted_and_younger_settings_had_their_defaults(small_study, capsys):
    kept(small_study)
    (row,) = current_results(load_study(small_study))
    younger = {name: value for name, value in row["settings"].items() if name != "split_seed"}
    kept(small_study, settings=younger)
    assert len(current_results(load_study(small_study))) == 2
    kept(small_study, settings={**younger, "split_seed": 3})
    kept(small_study, settings={**younger, "student": "resnet_18"})
    kept(small_study, seed=9)
    assert len(current_results(load_study(small_study))) == 2
    small_study.write_text(small_study.read_text().replace('"epochs": 1', '"epochs": 2'))
    assert not current_results(load_study(small_study))
    shown = kd("study", small_study, "--show")
    assert shown.returncode == 0 and "5 results of other labels, seeds or settings, left out" in shown.stderr


def test_results_on_other_test_pictures_are_refused_before_anything_is_trained(small_study, tmp_path):
    kept(small_study, test="0" * 32)
    with pytest.raises(
        UserError,
        match=r"study.json.results holds 1 result of 'labels' on other test pictures than those that .* has",
    ):
        work_on_study(Study(**{**vars(load_study(small_study)), "seeds": [7, 8]}), tmp_path / "runs", print)
    assert not list((tmp_path / "runs").glob("2*"))


def test_results_on_different_pictures_are_not_compared(small_study):
    kept(small_study)
    one = load_study(small_study)
    kept(small_study, label="dist", test="0" * 32, settings=compared_settings(one.asked("dist", 7)))
    assert [line[0] for line in study_table(one)[1:]] == ["labels", "dist"] and study_table(one)[2][-1] == ""


def test_what_is_varied_comes_before_what_is_shared_with_all_that_its_method_brings(small_study):
    one = load_study(small_study)
    one.settings.update(temperature=7, views=2)
    one.vary.update(own={"method": "dist", "temperature": 3}, guide={"recipe": "guide"})
    assert [one.asked(label, 0).temperature for label in ("labels", "dist", "own", "guide")] == [7, 1, 3, 5]
    assert one.asked("dist", 0).weight == 2 and one.asked("guide", 0).views == 1


def test_the_environment_is_asked_when_something_is_to_be_trained(small_study, tmp_path, monkeypatch, capsys):
    kept(small_study)
    one = load_study(small_study)
    one.vary["labels"]["teacher"] = "$MY_TEACHER"
    with pytest.raises(UserError, match=r"teacher is '\$MY_TEACHER', and the environment has no such variable"):
        work_on_study(Study(**{**vars(one), "seeds": [8]}), tmp_path, print)
    monkeypatch.setenv("MY_TEACHER", "sample")
    assert one.config("labels", 7).teacher == "sample"
    monkeypatch.delenv("PICTURES")
    assert main.main(["study", str(small_study), "--show"]) == 0 and "labels" in capsys.readouterr().out


def test_right_and_wrong_survive_the_file(tmp_path):
    right = np.random.default_rng(0).random(37) < 0.5
    packed = {"right": study.base64.b64encode(np.packbits(right)).decode(), "pictures": 37}
    assert (right_of(packed) == right).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("{}", "varies nothing"),
        ('{"vary": {"a": {}}, "seed": 1}', "has seed; it can have preset"),
        ('{"vary": {"a": {}}, "against": "b"}', "compares with 'b'"),
        ('{"vary": {"a": {"temperature": 0}}}', "temperature is 0"),
        ('{"vary": {"a": {"name": "x"}}}', "Unknown setting name"),
        ('{"vary": {"a": 1}}', "each of vary are objects"),
        ('{"vary": {"a": {}}, "settings": []}', "settings and each"),
        ('{"vary": {"a": {}}, "seeds": []}', "seeds are whole numbers"),
        ('{"vary": {"a": {}}, "seeds": [[0]]}', "seeds are whole numbers"),
        ('{"vary": {"a": {}}, "seeds": [0, "x"]}', "seeds are whole numbers"),
        ('{"vary": {"a": {}}, "seeds": 3}', "seeds are whole numbers"),
        ('{"vary": {"a": {}}, "seeds": [0, -1]}', "seed is -1"),
        ('{"vary": {"a": {"teacher": "run:last"}}}', "run:last is not always the same run"),
    ],
)
def test_what_is_no_study_is_refused_in_words(text, words, tmp_path):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(UserError, match=words):
        load_study(tmp_path / "study.json")
    with pytest.raises(UserError, match="cannot be read"):
        load_study(tmp_path / "gone.json")


def test_a_results_line_that_is_damaged_is_named(small_study):
    small_study.with_name("study.json.results").write_text("<<<<<<< HEAD\n")
    with pytest.raises(UserError, match=r"study.json.results has a line that is not a result"):
        current_results(load_study(small_study))
