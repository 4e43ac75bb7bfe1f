"""Decoded pixels: what cannot be read, what is kept, what is decoded again, and the fingerprint."""

from pathlib import Path

import numpy as np
import pytest

from kd.config import DistillConfig
from kd.data.images import open_row
from kd.data.pixels import fingerprint, in_order, load_pixels
from kd.data.splits import load_splits
from kd.data.views import Frame
from kd.errors import UserError
from tests.support import toys
from tests.support.toys import dataset_config


def test_an_unreadable_training_picture_is_left_out_and_named(tmp_path):
    toys.class_folders(tmp_path / "d", 20)
    splits = load_splits(dataset_config(tmp_path / "d"))
    Path(splits.train[7]["image"]["path"]).write_text("no")
    pixels = load_pixels(splits.train, Frame((32, 32)), tmp_path / "cache")
    assert len(pixels.values) == len(pixels.labels) == len(splits.train) - 1
    assert "png is not a picture" in pixels.unreadable[0]
    assert load_pixels(splits.train, Frame((32, 32)), tmp_path / "cache").unreadable == pixels.unreadable


def test_many_unreadable_pictures_stop_the_run(tmp_path):
    toys.class_folders(tmp_path / "d", 10)
    for file in list((tmp_path / "d" / "red brick").iterdir())[:8]:
        file.write_text("no")
    with pytest.raises(UserError, match="More than 10% of"):
        load_pixels(load_splits(dataset_config(tmp_path / "d")).train, Frame((32, 32)), tmp_path / "cache")


def test_pixels_are_decoded_once_and_a_truncated_file_is_thrown_away(tmp_path, colours):
    train = load_splits(dataset_config(colours)).train
    first = load_pixels(train, Frame((32, 32)), tmp_path)
    assert not first.cached and load_pixels(train, Frame((32, 32)), tmp_path).cached
    expected = np.asarray(open_row(train[3])).transpose(2, 0, 1)
    np.testing.assert_array_equal(first.values[3], expected)
    file = next(tmp_path.rglob("pixels.npy"))
    file.write_bytes(file.read_bytes()[:-100])
    again = load_pixels(train, Frame((32, 32)), tmp_path)
    assert not again.cached
    np.testing.assert_array_equal(again.values[3], expected)


def test_pictures_that_the_disk_has_no_room_for_are_decoded_when_asked_for(tmp_path, colours, monkeypatch):
    train = load_splits(dataset_config(colours)).train
    kept = load_pixels(train, Frame((32, 32)), tmp_path / "a")
    assert kept.warnings == []
    monkeypatch.setenv("KD_PIXELS_GB", "0.0001")
    lazy = load_pixels(train, Frame((32, 32)), tmp_path / "b")
    assert not list((tmp_path / "b").rglob("pixels.*")) and lazy.values.shape == kept.values.shape
    assert "would take 0.0 GB, more than the 0.0 GB" in lazy.warnings[0] and "KD_PIXELS_GB" in lazy.warnings[0]
    np.testing.assert_array_equal(lazy.values[[5, 90, 2]], kept.values[[5, 90, 2]])
    np.testing.assert_array_equal(
        np.concatenate([batch for _, batch in in_order(lazy.values, 10, 7)]), kept.values[10:]
    )
    assert load_pixels(train, Frame((32, 32)), tmp_path / "b").cached
    assert load_pixels(train, Frame((32, 32)), tmp_path / "a").warnings == [], "what is decoded already is used"


def test_pixels_of_which_the_list_or_a_part_is_lost_are_decoded_anew(colours, tmp_path):
    train = load_splits(DistillConfig(dataset=str(colours))).train
    before = np.array(load_pixels(train, Frame((32, 32)), tmp_path).values)
    folder = next((tmp_path / "pixels").iterdir())
    for spoil in (
        lambda: (folder / "unreadable.json").write_text("["),
        lambda: np.save(folder / "pixels.npy", before[:-1]),
        lambda: (folder / "pixels.npy").unlink(),
    ):
        spoil()
        again = load_pixels(train, Frame((32, 32)), tmp_path)
        assert not again.cached and np.array_equal(again.values, before)
    assert load_pixels(train, Frame((32, 32)), tmp_path).cached and not list(folder.glob("*.part"))


def test_a_fingerprint_is_of_the_contents(tmp_path):
    one = load_splits(dataset_config(toys.class_folders(tmp_path / "a", 12))).train
    same = load_splits(dataset_config(toys.class_folders(tmp_path / "b", 12))).train
    other = load_splits(dataset_config(toys.class_folders(tmp_path / "c", 12, seed=1))).train
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
