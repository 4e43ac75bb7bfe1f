"""Duplicates, and the check of a dataset before anything is trained on it."""

import io
from pathlib import Path

import numpy as np
import pytest
import toys
from PIL import Image, ImageEnhance, ImageOps

from kd import duplicates
from kd.config import DistillConfig
from kd.data import load_splits
from kd.runs import RunError


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


def seen(pictures: list[Image.Image]) -> duplicates.Looks:
    thumbs = np.stack([duplicates.shrunk(picture) for picture in pictures])
    digests = np.array([np.void(picture.tobytes()[:64].ljust(64)) for picture in pictures])
    return duplicates.Looks(thumbs, np.array([picture.size for picture in pictures]), digests, {})


# --- Duplicates


def test_a_changed_photo_is_found_and_another_is_not():
    changed = [change(photo(nth)) for nth, change in enumerate(CHANGES.values())]
    others = [photo(nth) for nth in range(40)]
    found = duplicates.find(seen(others + changed))
    assert {(pair.one, pair.other) for pair in found} == {(nth, 40 + nth) for nth in range(len(changed))}
    assert all(pair.kind == "near" for pair in found)


def test_equal_files_are_found_whatever_they_show_and_blank_pictures_are_not_near_ones():
    grey = [Image.new("RGB", (40, 40), (level, level, level)) for level in (100, 100, 101)]
    assert [(pair.one, pair.other, pair.kind) for pair in duplicates.find(seen(grey))] == [(0, 1, "exact")]


def test_trousers_and_pullovers_of_the_sample_that_look_alike_are_not_duplicates():
    """The two classes whose pictures are most alike; one pair of them is the same photo."""
    train = load_splits(DistillConfig()).train
    labels = np.asarray(train["label"])
    rows = [*np.flatnonzero(labels == 1)[:500], *np.flatnonzero(labels == 2)[:500]]
    (pair,) = duplicates.find(duplicates._look(train.select(rows), lambda done, of: None))
    assert (rows[pair.one], rows[pair.other]) == (100, 3931) and pair.difference < 0.02


def test_pictures_hang_together_through_others():
    pairs = [duplicates.Pair(2, 5, "near", 0.1), duplicates.Pair(1, 4, "exact", 0), duplicates.Pair(4, 5, "near", 0.1)]
    assert duplicates.groups(6, pairs).tolist() == [0, 1, 1, 3, 1, 1]


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
    kept = duplicates.one_side(splits, config, tmp_path)
    assert kept.sizes() == {"train": 16, "validation": 6, "test": 6}
    assert kept.warnings == [
        "3 training pictures are duplicates of test pictures and are left out of training.",
        "1 validation picture is a duplicate of a test picture and is left out of validation.",
        "1 training picture is a duplicate of a validation picture and is left out of training.",
    ]
    names = {Path(row["image"]["path"]).stem for row in kept.train}
    assert names == {str(nth) for nth in range(8)}
    as_they_are = DistillConfig(dataset=str(planted), duplicates="keep")
    assert duplicates.one_side(splits, as_they_are, tmp_path) is splits


def test_pictures_are_looked_at_once_and_a_damaged_file_again(planted, tmp_path, monkeypatch):
    splits = load_splits(DistillConfig(dataset=str(planted)))
    pairs = duplicates.known_pairs(splits, tmp_path)
    looked = duplicates.looks(splits.train, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(duplicates, "_look", lambda dataset, progress: pytest.fail("looked again"))
        assert duplicates.known_pairs(splits, tmp_path) == pairs
        assert np.array_equal(duplicates.looks(splits.train, tmp_path).thumbs, looked.thumbs)
    for file in (tmp_path / "looks").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert duplicates.known_pairs(splits, tmp_path) == pairs


def test_splits_that_we_cut_have_their_duplicates_on_one_side(tmp_path):
    for label, start in (("cat", 0), ("dog", 100)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for nth in range(6):
            for copy, picture in (("", photo(start + nth)), (" copy", again(photo(start + nth)))):
                picture.save(tmp_path / "data" / label / f"{nth}{copy}.png")
    config = DistillConfig(dataset=str(tmp_path / "data"))
    kept = duplicates.one_side(load_splits(config), config, tmp_path / "cache")
    names = [{Path(row["image"]["path"]).stem[0] for row in part if row["label"] == 0} for part in (kept.train, kept.validation, kept.test)]  # fmt: skip
    assert not names[0] & (names[1] | names[2]) and not names[1] & names[2]


def test_a_validation_split_that_is_the_test_split_is_refused(planted, tmp_path):
    config = DistillConfig(dataset=str(planted), validation_split="test")
    with pytest.raises(RunError, match="All 6 validation pictures are duplicates of test pictures.*--duplicates keep"):
        duplicates.one_side(load_splits(config), config, tmp_path)
