"""Duplicates, and the check of a dataset before anything is trained on it."""

import io
import json
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageEnhance, ImageOps

from kd.cli.main import main
from kd.config import DistillConfig
from kd.data.duplicates import (
    Pair,
    Thumbnails,
    _make_thumbnails,
    find_duplicates,
    groups,
    known_pairs,
    load_thumbnails,
    shrunk,
    without_duplicates,
)
from kd.data.splits import load_splits
from kd.errors import UserError
from kd.evaluation import dataset_report
from kd.evaluation.dataset_check import check
from kd.system.cache import Cache
from kd.ui import dataset_check, settings


def photo(seed: int, size: int = 160) -> Image.Image:
    """Something with as much to see as a photo: coloured blots of all sizes."""
    rng = np.random.default_rng(seed)
    values = sum(
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize((size, size), 3), float
        )
        for cells in (3, 6, 12, 24)
    )
    return Image.fromarray((values / 4).astype(np.uint8))


def again(picture: Image.Image, quality: int = 75) -> Image.Image:
    """Written as JPEG and read."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


CHANGES = {
    "written again": lambda p: again(p, 40),
    "half the size": lambda p: p.resize((80, 80)),
    "cropped": lambda p: p.crop((5, 4, 156, 157)),
    "brightened": lambda p: ImageEnhance.Brightness(p).enhance(1.15),
    "mirrored": lambda p: again(ImageOps.mirror(p)),
    "all of it": lambda p: again(ImageEnhance.Brightness(p.crop((3, 0, 158, 157)).resize((120, 120))).enhance(1.1)),
}


def seen(pictures: list[Image.Image]) -> Thumbnails:
    thumbs = np.stack([shrunk(picture) for picture in pictures])
    digests = np.array([np.void(picture.tobytes()[:64].ljust(64)) for picture in pictures])
    return Thumbnails(thumbs, np.array([picture.size for picture in pictures]), digests, {})


# --- Duplicates


def test_a_changed_photo_is_found_and_another_is_not():
    changed = [change(photo(nth)) for nth, change in enumerate(CHANGES.values())]
    others = [photo(nth) for nth in range(40)]
    found = find_duplicates(seen(others + changed))
    assert {(pair.one, pair.other) for pair in found} == {(nth, 40 + nth) for nth in range(len(changed))}
    assert all(pair.kind == "near" for pair in found)


def test_equal_files_are_found_whatever_they_show_and_blank_pictures_are_not_near_ones():
    grey = [Image.new("RGB", (40, 40), (level, level, level)) for level in (100, 100, 101)]
    assert [(pair.one, pair.other, pair.kind) for pair in find_duplicates(seen(grey))] == [(0, 1, "exact")]


def test_trousers_of_the_sample_that_look_alike_are_not_duplicates():
    """The class whose pictures are most alike; one pair of the first 450 is the same photo."""
    train = load_splits(DistillConfig()).train
    rows = np.flatnonzero(np.asarray(train["label"]) == 1)[:450]
    (pair,) = find_duplicates(_make_thumbnails(train.select(rows), lambda done, of: None))
    assert (rows[pair.one], rows[pair.other]) == (100, 3931) and pair.difference < 0.02


def test_pictures_hang_together_through_others():
    pairs = [Pair(2, 5, "near", 0.1), Pair(1, 4, "exact", 0), Pair(4, 5, "near", 0.1)]
    assert groups(6, pairs).tolist() == [0, 1, 1, 3, 1, 1]


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """Split folders of two classes. In train: 8 pictures a class; 3 of cats are a test picture changed, 1 a validation
    picture; one validation dog is a test dog."""
    folder = tmp_path_factory.mktemp("planted")

    def save(name: str, picture: Image.Image) -> None:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)

    for label, start in (("cat", 0), ("dog", 100)):
        for split, first, count in (("train", 0, 8), ("validation", 20, 3), ("test", 40, 3)):
            for nth in range(count):
                save(f"{split}/{label}/{nth}", photo(start + first + nth))
    for nth, change in enumerate(("written again", "cropped", "mirrored")):
        save(f"train/cat/test {nth}", CHANGES[change](photo(40 + nth)))
    save("train/cat/validation", CHANGES["brightened"](photo(20)))
    save("validation/dog/test", photo(140))
    return folder


def test_what_is_in_test_is_left_out_of_training_and_that_is_said(planted, tmp_path):
    config = DistillConfig(dataset=str(planted))
    splits = load_splits(config)
    assert splits.sizes() == {"train": 20, "validation": 7, "test": 6}
    kept = without_duplicates(splits, config, tmp_path)
    assert kept.sizes() == {"train": 16, "validation": 6, "test": 6}
    assert kept.warnings == [
        "3 training pictures are duplicates of test pictures and are left out of training.",
        "1 validation picture is a duplicate of a test picture and is left out of validation.",
        "1 training picture is a duplicate of a validation picture and is left out of training.",
    ]
    names = {Path(row["image"]["path"]).stem for row in kept.train}
    assert names == {str(nth) for nth in range(8)}
    as_they_are = DistillConfig(dataset=str(planted), duplicates="keep")
    assert without_duplicates(splits, as_they_are, tmp_path) is splits


def test_pictures_are_looked_at_once_and_a_damaged_file_again(planted, tmp_path, monkeypatch):
    splits = load_splits(DistillConfig(dataset=str(planted)))
    pairs = known_pairs(splits, tmp_path)
    looked = load_thumbnails(splits.train, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("kd.data.duplicates._make_thumbnails", lambda dataset, progress: pytest.fail("looked again"))
        assert known_pairs(splits, tmp_path) == pairs
        assert np.array_equal(load_thumbnails(splits.train, tmp_path).thumbs, looked.thumbs)
    for file in (tmp_path / "thumbnails").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert known_pairs(splits, tmp_path) == pairs


def test_of_very_many_pictures_only_equal_files_are_found(planted, tmp_path, monkeypatch):
    monkeypatch.setattr("kd.data.duplicates.NEAR_MOST", 30)
    monkeypatch.setattr("kd.data.duplicates._make_thumbnails", lambda dataset, progress: pytest.fail("decoded"))
    pairs = known_pairs(load_splits(DistillConfig(dataset=str(planted))), tmp_path)
    assert [(pair.one, pair.other, pair.kind) for pair in pairs] == [(26, 30, "exact")]


def test_splits_that_we_cut_have_their_duplicates_on_one_side(tmp_path):
    for label, start in (("cat", 0), ("dog", 100)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for nth in range(6):
            for copy, picture in (("", photo(start + nth)), (" copy", again(photo(start + nth)))):
                picture.save(tmp_path / "data" / label / f"{nth}{copy}.png")
    config = DistillConfig(dataset=str(tmp_path / "data"))
    kept = without_duplicates(load_splits(config), config, tmp_path / "cache")
    names = [{Path(row["image"]["path"]).stem[0] for row in part if row["label"] == 0} for part in (kept.train, kept.validation, kept.test)]  # fmt: skip
    assert not names[0] & (names[1] | names[2]) and not names[1] & names[2]


def test_a_validation_split_that_is_the_test_split_is_refused(planted, tmp_path):
    config = DistillConfig(dataset=str(planted), validation_split="test")
    with pytest.raises(
        UserError, match=r"All 6 validation pictures are duplicates of test pictures.*--duplicates keep"
    ):
        without_duplicates(load_splits(config), config, tmp_path)


# --- The check


EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> Path:
    """Whatever can be wrong: one photo under two labels, a class without validation pictures and with few for training, a
    hundred times as many of another, a broken file, a grey picture, a class whose name is markup, copies across splits."""

    def png(picture: Image.Image) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()

    folder = tmp_path_factory.mktemp("bad")
    classes = ["cat", "dog", EVIL]
    train = [(png(photo(nth, 80)), nth % 2) for nth in range(60)] + [(png(photo(200 + nth, 80)), 2) for nth in range(2)]
    train += [(png(again(photo(7, 80), 98)), 0), (b"no picture", 0), (png(photo(9, 80).convert("L")), 1)]
    parts = {
        "train": train,
        "validation": [(png(photo(300 + nth, 80)), nth % 2) for nth in range(12)],
        "test": [train[0], *((png(photo(400 + nth, 80)), nth % 3) for nth in range(11))],
    }
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=classes)})
    for name, rows in parts.items():
        images = [{"bytes": data, "path": f"{nth} {EVIL}.png"} for nth, (data, _) in enumerate(rows)]
        columns = {"image": images, "label": [label for _, label in rows]}
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def found(bad, tmp_path_factory) -> dict:
    return check(DistillConfig(dataset=str(bad), image_size=96), tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    "words",
    [
        f"No validation picture of {EVIL}",
        f"Fewer than 10 training pictures of {EVIL} (2)",
        f"cat has 32 training pictures, {EVIL} 2: 16 times as many",
        "12 test pictures.",
        "1 of 12 test pictures is in train or validation too",
        "2 pictures have a duplicate with another label",
        "1 of 65 training pictures repeats another one of train",
        "1 file cannot be read",
        "88 pictures are smaller than the student's input of 96 px",
        "1 of 88 pictures are grey, unlike the others",
    ],
)
def test_each_problem_is_found(found, words):
    assert any(words in problem["what"] for problem in found["problems"]), [one["what"] for one in found["problems"]]


def test_problems_are_ranked_by_what_they_do_to_the_result(found):
    points = [problem["points"] for problem in found["problems"]]
    assert points == sorted(points, reverse=True)
    doubled = next(problem for problem in found["problems"] if "of 12 test pictures" in problem["what"])
    assert "up to 8.3 points too good" in doubled["why"] and doubled["points"] == 8.3
    assert all(problem["why"] and problem["do"] for problem in found["problems"])


def test_what_is_found_is_counted_and_named(found):
    assert found["counts"]["validation"] == [6, 6, 0] and found["pictures_in_all"]["train"] == 65
    assert found["sizes"]["smallest"] == found["sizes"]["largest"] == [80, 80] and found["sizes"]["grey"] == 1
    (broken,) = found["unreadable"]
    assert broken["label"] == "cat" and "is not a picture that can be read" in broken["reason"]
    kinds = [(pair["kind"], pair["conflict"]) for pair in found["duplicates"]]
    assert kinds == [("near", True), ("exact", False)]


def test_a_check_is_one_page_without_scripts_and_names_are_text_in_it(found):
    page = dataset_report.page(found)
    assert "<img src=x" not in page and "&lt;img src=x" in page and "<script" not in page and "http" not in page
    assert page.count("data:image/jpeg;base64,") == 3 + 2
    text = "\n".join(dataset_report.lines(found))
    assert "two labels" in text and "unreadable  train: 63" in text
    json.dumps(dataset_report.as_json(found), allow_nan=False)


def test_a_teacher_is_asked_once_and_one_of_other_classes_is_a_problem(colours, teacher, tmp_path, monkeypatch):
    config = DistillConfig(dataset=str(colours), teacher=str(teacher))
    first = check(config, tmp_path, ask_teacher=True)
    assert first["teacher"]["accuracy"] > 0.8 and "right on" in dataset_report.body(first)
    monkeypatch.setattr(import_module("kd.evaluation.compare"), "score", lambda *_: pytest.fail("asked again"))
    assert check(config, tmp_path, ask_teacher=True)["teacher"] == first["teacher"]
    other = check(DistillConfig(dataset=str(colours)), tmp_path, ask_teacher=True)
    assert other["problems"][0]["what"] == "The teacher cannot be asked." and "10" in other["problems"][0]["why"]
    monkeypatch.undo()
    # what is which is shown where the names differ, also where the teacher cannot be asked
    assert "Which class is which" not in dataset_report.body(first) and "<td>none</td>" in dataset_report.body(other)
    told = check(replace(config, label_map="blue sky=green leaf, green leaf=blue sky"), tmp_path, ask_teacher=True)
    assert [(row["class"], row["teacher"], row["found"]) for row in told["teacher"]["labels"]] == [
        ("blue sky", "green leaf", "as told"), ("green leaf", "blue sky", "as told"), ("red brick", "red brick", "the same name"),
    ]  # fmt: skip
    assert "<td>green leaf</td><td>as told</td>" in dataset_report.body(told) and told["teacher"]["accuracy"] < 0.5


def test_the_command_line_keeps_a_page_or_json_and_problems_are_no_failure(bad, tmp_path, capsys):
    flags = ["check", "--dataset", str(bad), "--runs-dir", str(tmp_path)]
    assert main([*flags, "--out", str(tmp_path / "check.html"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["problems"] and "pictures" not in printed and (tmp_path / "check.html").stat().st_size > 5000
    assert main([*flags, "--out", str(tmp_path / "check.json")]) == 0
    assert json.loads((tmp_path / "check.json").read_text())["pictures"]["sheet"]
    for wrong in (
        ["--out", "check.txt"],
        ["--out", str(tmp_path / "no" / "a.html")],
        ["--dataset", str(tmp_path / "no")],
    ):
        assert main([*flags, *wrong]) == 2
        assert "kd: " in capsys.readouterr().err


# --- The page's panel


def asked(dataset: Path | str, asker: str = "a", **others) -> dict:
    """What the page's script sends."""
    values = {**settings.preset_values("sample"), "dataset": str(dataset), "image_size": 32}
    return {"values": [settings.to_widget(*item) for item in values.items()], "owner": "", "asker": asker, **others}


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """Nothing under way, nothing kept."""
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    monkeypatch.setattr("kd.ui.dataset_check._kept", Cache(lambda: 8))
    yield
    dataset_check._give_up()


def test_a_check_runs_beside_the_page_one_at_a_time_and_can_be_cancelled(planted, tmp_path, alone):
    check(DistillConfig(dataset=str(planted), image_size=32), tmp_path / ".cache")  # the process finds it there
    assert dataset_check.checked(asked(planted, "other")) == {"wait": "Starting"}
    process = dataset_check._now.child.process
    assert dataset_check.checked(asked(planted, image_size=64) | {"teacher": True}) == {"wait": dataset_check.OTHERS}
    assert dataset_check.cancel({"asker": "a"}) == {} and process.poll() is None  # not the one who began it
    dataset_check.cancel({"asker": "other"})
    assert process.wait(20) < 0 and dataset_check._now is None
    end = time.monotonic() + 60
    while "wait" in (news := dataset_check.checked(asked(planted))):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert news["title"].endswith("problems in planted0") and "of 6 test pictures are in train" in news["html"]
    assert dataset_check.checked(asked(planted, file="html"))["text"].startswith("<!doctype html>")
    assert json.loads(dataset_check.checked(asked(planted, file="json"))["text"])["problems"]
    assert dataset_check.checked(asked(planted))["html"] and dataset_check._now is None  # kept


def test_what_cannot_be_checked_says_why(tmp_path, alone, monkeypatch):
    assert "duplicates is 'some'" in dataset_check.checked(asked("sample") | {"values": [
        settings.to_widget(*item) for item in {**settings.preset_values("sample"), "duplicates": "some"}.items()
    ]})["problem"]  # fmt: skip
    assert "no longer kept" in dataset_check.checked(asked("sample", file="html"))["problem"]
    monkeypatch.setenv("KD_SHARED", "1")
    assert "lost its key" in dataset_check.checked(asked("sample", owner={"a": 1}))["problem"]
    owner = "0" * 32
    assert "a path" in dataset_check.checked(asked(tmp_path, owner=owner))["problem"]
    key = dataset_check._named(asked("some/pictures", owner=owner))[1]
    dataset_check._kept.put(key, UserError("mine"))
    assert dataset_check.checked(asked("some/pictures", owner=owner)) == {"problem": "mine"}
    assert dataset_check._kept.find(dataset_check._named(asked("some/pictures", owner="1" * 32))[1]) is None
    assert dataset_check._now is None
