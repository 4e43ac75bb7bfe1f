"""Duplicates: which pictures are found, and what is left out of training because of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
from tests.support.photos import CHANGES, again, photo


def seen(pictures: list[Image.Image]) -> Thumbnails:
    thumbs = np.stack([shrunk(picture) for picture in pictures])
    digests = np.array([np.void(picture.tobytes()[:64].ljust(64)) for picture in pictures])
    return Thumbnails(thumbs, np.array([picture.size for picture in pictures]), digests, {})


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
