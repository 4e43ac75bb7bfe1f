"""Understand the folders of somebody's images: splits, classes, or images without labels. Pure functions of names."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

# Split -> what its folder, or a split on the Hub, is usually called.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}

USUAL = {usual: split for split, names in SPLIT_NAMES.items() for usual in names}

# What the folder of images without labels is usually called, where others have some.
UNLABELLED = ("unlabelled", "unlabeled", "unsup", "unsupervised")

# The names of numbered classes: only a number, or a word and one.
NUMBER, WORD_AND_NUMBER = re.compile(r"()(-?\d+(?:\.\d+)?)", re.ASCII), re.compile(r"(.*\D)(\d+)", re.ASCII)

# The folders that lead to an image, and its own name.
Parts = tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """``places``: the index of an image -> its split and class (``None`` where it has no label); ``skipped``: the index of
    one that has no place among the others -> the reason."""

    places: dict[int, tuple[str, str | None]] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        return in_order({name for _, name in self.places.values() if name is not None})


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names of classes in order: numbers by their value, also after one word (class_2, class_10), else A to Z."""
    names = sorted(names)
    found = {name: NUMBER.fullmatch(name) or WORD_AND_NUMBER.fullmatch(name) for name in names}
    if None in found.values() or len({match[1] for match in found.values()}) > 1:
        return names
    return sorted(names, key=lambda name: float(found[name][2]))


def layout(names: Iterable[Parts]) -> Layout:
    """Understand class folders, with or without split folders above them, in one folder or in several nested ones.

    Where there is only one class folder, or none, there are no labels; splits are kept. The images of a folder that is
    called ``UNLABELLED``, beside class folders or splits, have none and belong to train.
    """
    every = dict(enumerate(names))
    rest, loose = _inside(every)
    if not _are_splits(rest):
        if len(_folders(rest)) < 2:
            return Layout({index: ("train", None) for index in every})
        beside = "lies beside the class folders, so its class is not known"
        return Layout({i: ("train", _class_of(parts[0])) for i, parts in rest.items()}, dict.fromkeys(loose, beside))
    splits = {i: USUAL[parts[0].lower()] for i, parts in rest.items() if parts[0].lower() in USUAL}
    more = {i: ("train", None) for i, parts in rest.items() if parts[0].lower() in UNLABELLED}
    skipped = dict.fromkeys(
        every.keys() - splits.keys() - more.keys(), "lies beside the folders train, validation and test"
    )
    inner, unlabelled = _inside({i: rest[i][1:] for i in splits})
    if len(_folders(inner)) < 2:
        return Layout({i: (split, None) for i, split in splits.items()} | more, skipped)
    beside = "lies beside class folders, or in a split that has none, so its class is not known"
    places = {i: (splits[i], _class_of(parts[0])) for i, parts in inner.items()}
    return Layout(places | more, skipped | dict.fromkeys(unlabelled, beside))


def _class_of(folder: str) -> str | None:
    """Return the class that a folder stands for, ``None`` for one of images without labels."""
    return None if folder.lower() in UNLABELLED else folder


def _inside(names: dict[int, Parts]) -> tuple[dict[int, Parts], list[int]]:
    """Return ``names`` without the folders that hold all the others, and the indices of those that lie beside folders."""
    loose: list[int] = []
    while True:
        loose += [index for index, parts in names.items() if len(parts) == 1]
        names = {index: parts for index, parts in names.items() if len(parts) > 1}
        if len(_folders(names)) != 1:
            return names, loose
        names = {index: parts[1:] for index, parts in names.items()}


def _folders(names: dict[int, Parts]) -> set[str]:
    return {parts[0] for parts in names.values()}


def _are_splits(names: dict[int, Parts]) -> bool:
    """Return whether folders are splits: all are called so, or the one that is called train holds folders.

    A class may be called train, next to car and plane.
    """
    labelled = [parts for parts in names.values() if parts[0].lower() not in UNLABELLED]
    called = [parts for parts in labelled if parts[0].lower() in USUAL]
    nested = any(USUAL[parts[0].lower()] == "train" and len(parts) > 2 for parts in called)
    return bool(called) and (nested or len(called) == len(labelled))
