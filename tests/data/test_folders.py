"""Which folders are splits and which are classes."""

import pytest

from kd.data.folders import in_order, layout

LAYOUTS = {
    "class folders": ("cat/1 dog/2", "train:cat train:dog"),
    "a single top folder": ("photos/cat/1 photos/dog/2", "train:cat train:dog"),
    "several top folders": ("a/b/cat/1 a/b/dog/2", "train:cat train:dog"),
    "splits": ("Train/cat/1 Train/dog/2 VAL/cat/3 testing/dog/4", "train:cat train:dog validation:cat test:dog"),
    "splits with other names": ("x/training/a/1 x/training/b/2 x/Dev/a/3", "train:a train:b validation:a"),
    "a top folder in each split": ("train/in/a/1 train/in/b/2 valid/in/a/3", "train:a train:b validation:a"),
    "a heap": ("1 2", "train:None train:None"),
    "a heap in a folder": ("photos/1 photos/2", "train:None train:None"),
    "one class is none": ("cat/1 cat/2", "train:None train:None"),
    "a heap with one folder": ("1 2 best/3", "train:None train:None train:None"),
    "splits without classes": ("train/1 val/2", "train:None validation:None"),
    "loose pictures": ("cover a/1 b/2", "skipped train:a train:b"),
    "a loose picture beside the top folder": ("cover x/a/1 x/b/2", "skipped train:a train:b"),
    "a test split without labels": ("train/a/1 train/b/2 test/3", "train:a train:b skipped"),
    "folders beside splits": ("train/a/1 train/b/2 misc/3", "train:a train:b skipped"),
    "a class called train": ("car/1 plane/2 train/3", "train:car train:plane train:train"),
    "folders in a class": ("cat/in/1 cat/out/2 dog/3", "train:cat train:cat train:dog"),
    "pictures without labels beside classes": ("a/1 b/2 Unlabeled/3", "train:a train:b train:None"),
    "pictures without labels beside splits": ("train/a/1 train/b/2 unsup/3", "train:a train:b train:None"),
    "pictures without labels in a split": ("train/a/1 train/b/2 train/unlabelled/3", "train:a train:b train:None"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_people_pack_is_understood(kind):
    names, wanted = (text.split() for text in LAYOUTS[kind])
    found = layout(tuple(name.split("/")) for name in names)
    places = {index: f"{split}:{name}" for index, (split, name) in found.places.items()}
    assert [places.get(index, "skipped") for index in range(len(names))] == wanted
    assert set(found.skipped) == {index for index, place in enumerate(wanted) if place == "skipped"}


@pytest.mark.parametrize(
    "names",
    [
        "0 1 2 10",
        "00 1 02 10",
        "-1 0 2 10",
        "0.5 1 1.25 10",
        "class_0 class_2 class_10",
        "class-1 class-10",
        "1 10 2x",
        "a1 b0",
    ],
)
def test_classes_are_in_the_order_of_their_numbers_where_all_have_one(names):
    assert in_order(reversed(names.split())) == names.split()
