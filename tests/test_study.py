"""Studies: settings that are varied over seeds, compared from what was kept."""

import json

import numpy as np
import pytest
from conftest import kd

from kd import study
from kd.runs import RunError


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


def test_a_study_trains_each_once_compares_and_goes_on_where_it_was(small_study, tmp_path):
    done = kd("study", small_study, "--runs-dir", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    first, second = study.rows_of(study.load(small_study))
    assert (first["label"], second["label"], first["seed"]) == ("labels", "dist", 7)
    assert first["accuracy"] == pytest.approx(study.right_of(first).mean(), abs=1e-4)
    *_, labels, dist = done.stdout.splitlines()
    assert labels.startswith("labels") and "points" not in labels
    assert "points (95% " in dist and "1 seed:" in dist
    # the last result is lost, half written: its run is done and found again, and nothing is trained anew
    results = small_study.with_name("study.json.results")
    results.write_text(results.read_text()[:-20])
    again = kd("study", small_study, "--runs-dir", tmp_path / "runs")
    assert again.returncode == 0 and again.stdout == done.stdout
    assert len(list((tmp_path / "runs").glob("2*"))) == 2
    assert kd("study", small_study, "--show").stdout == done.stdout


def test_right_and_wrong_survive_the_file(tmp_path):
    right = np.random.default_rng(0).random(37) < 0.5
    packed = {"right": study.base64.b64encode(np.packbits(right)).decode(), "pictures": 37}
    assert (study.right_of(packed) == right).all()


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
        ('{"vary": {"a": {}}, "seeds": []}', "seeds is a list and not empty"),
        ('{"vary": {"a": {}}, "seeds": 3}', "seeds is a list and not empty"),
        ('{"vary": {"a": {}}, "settings": {"dataset": "$NOWHERE_SET"}}', "no such variable"),
    ],
)
def test_what_is_no_study_is_refused_in_words(text, words, tmp_path):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(RunError, match=words):
        study.load(tmp_path / "study.json")
    with pytest.raises(RunError, match="cannot be read"):
        study.load(tmp_path / "gone.json")
