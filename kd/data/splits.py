"""Load the images that a configuration names, and split them into training, validation and test images."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kd.config import NO_TEACHER, DistillConfig, joined_classes
from kd.data.depth import deep_notes
from kd.data.folders import SPLIT_NAMES, UNLABELLED
from kd.data.labels import class_names, is_list, named_labels, with_classes
from kd.data.metadata import LABEL_COLUMNS
from kd.data.sources import load_source
from kd.errors import UserError
from kd.text import pictures_were, some

# What the column of images is usually called.
IMAGE_COLUMNS = ("image", "img")


# --- Splits


@dataclass(frozen=True)
class Splits:
    """Three ``datasets.Dataset`` with the columns ``image`` (undecoded) and ``label`` (an index of ``classes``).

    Where the images have no labels (``labelled`` is false) every label is -1, and there are no classes yet: they will be
    the teacher's. Where train has labels, some of its images may have none: theirs is -1.
    """

    train: Any
    validation: Any
    test: Any
    classes: list[str]
    warnings: list[str] = field(default_factory=list)
    labelled: bool = True

    @property
    def labels(self) -> str:
        """Return where the labels come from, as events and reports name it: the ``dataset`` or the ``teacher``."""
        return "dataset" if self.labelled else "teacher"

    def counts(self, split: str) -> list[int]:
        """Return the number of images of each class in a split; an empty list where they have no labels."""
        labels = np.asarray(getattr(self, split)["label"])
        return np.bincount(labels[labels >= 0], minlength=len(self.classes)).tolist() if self.labelled else []

    def sizes(self) -> dict[str, int]:
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


def load_splits(config: DistillConfig) -> Splits:
    """Return the images that ``config`` names. Splits that are missing are cut from train.

    The cut is seeded, and stratified where there are labels. Training images without a label stay among others that have
    one only where there is a teacher to learn them from.

    Raises ``UserError`` for everything that a user can correct.
    """
    if config.streaming == "yes":
        raise UserError(
            "This looks at pictures of the whole dataset again and again, which a stream does not allow. Leave out --streaming, or "
            "name one of its files as the dataset.",
            setting="streaming",
        )
    said: list[str] = []
    source = load_source(config, said)
    found = _pick_splits(source, config)
    columns = list(found["train"].features)
    found = {name: _standard(part, config, name, said) for name, part in found.items()}
    names = {name: named_labels(part, name) for name, part in found.items()}
    labelled = {name: any(label is not None for label in labels) for name, labels in names.items()}
    if not labelled["train"]:
        return _unlabelled(found, config, columns, (said, [name for name, known in labelled.items() if known]))
    for name in [name for name, known in labelled.items() if not known]:
        said.append(f"The {name} split has no labels, so a {name} split is cut from train.")
        del found[name]
    classes = class_names(found["train"], names["train"])
    if joined := joined_classes(config.label_map):
        classes, names = _joined(classes, names, joined, said)
    found["train"], names["train"] = _with_unlabelled_splits(found, names["train"], source, config, said)
    for name, part in found.items():
        found[name] = _without_unlabelled(with_classes(part, names[name], classes, name), name, config, said)
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name not in found:
            found["train"], found[name] = cut(found["train"], fraction, name, config.split_seed)
            said.append(f"No {name} split: {pictures_were(len(found[name]))} cut from train.")
    result = Splits(found["train"], found["validation"], found["test"], classes, said)
    if empty := [name for name, count in zip(classes, result.counts("train"), strict=True) if not count]:
        raise UserError(f"No training picture of {some(empty)}. Add some, or remove the class.")
    if len(classes) < 2:
        raise UserError(
            f"The dataset has one class ({classes[0]}). A classifier needs at least two. Pictures without labels, to learn "
            "from the teacher alone, lie in the folder itself, in no class folder."
        )
    said += deep_notes(list(found.values()))
    return result


def _with_unlabelled_splits(
    found: dict[str, Any], labels: list[str | None], source: dict[str, Any], config: DistillConfig, said: list[str]
) -> tuple[Any, list[str | None]]:
    """Return train and its label names with the images of splits that are called ``UNLABELLED`` and not used otherwise."""
    from datasets import concatenate_datasets

    asked = (config.train_split, config.validation_split, config.test_split)
    more = [
        _without_labels(_standard(part, config, name, said))
        for name, part in source.items()
        if name.lower() in UNLABELLED and name not in asked
    ]
    if not more:
        return found["train"], labels
    train = found["train"].remove_columns("label").add_column("label", [-1] * len(labels))
    return concatenate_datasets([train, *more]), labels + [None] * sum(map(len, more))


def _joined(
    classes: list[str], names: dict[str, list[str | None]], joined: dict[str, str], said: list[str]
) -> tuple[list[str], dict[str, list[str | None]]]:
    """Return the classes, and each split's label names, after those that the label map joins have become one."""
    return (
        joined_names(classes, joined, said),
        {split: [joined.get(name, name) for name in labels] for split, labels in names.items()},
    )


def joined_names(classes: list[str], joined: dict[str, str], said: list[str]) -> list[str]:
    """Return the classes after those that the label map joins have become one; ``said`` tells which.

    Raises ``UserError`` for a name that is no class.
    """
    for ours, kept in joined.items():
        if unknown := {ours, kept} - set(classes):
            raise UserError(
                f"The label map gives {ours!r} and {kept!r} the same class of the teacher, so they become one class, but the "
                f"dataset has no {some(sorted(unknown))}: its classes are {some(classes)}. Write both as the dataset does."
            )
        said.append(f"{ours} and {kept} are one class, {kept}: the label map gives both the same class of the teacher.")
    return [name for name in classes if name not in joined]


def _unlabelled(
    found: dict[str, Any], config: DistillConfig, columns: list[str], told: tuple[list[str], list[str]]
) -> Splits:
    """Return the splits of a dataset whose training images have no labels.

    ``told``: what is said already, and the splits that have labels, which are dropped.
    """
    said, labelled = told
    if len(columns) > 1:
        said.append(f"No column of {some(columns)} has labels. If another one holds them, name it with --label-column.")
    said += [f"Train has no labels, so those of the {name} split are not used." for name in labelled]
    found = {name: _without_labels(part) for name, part in found.items()}
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name not in found:
            found["train"], found[name] = cut(found["train"], fraction, name, config.split_seed)
            said.append(f"No {name} split: {pictures_were(len(found[name]))} cut from train.")
    said += deep_notes(list(found.values()))
    return Splits(found["train"], found["validation"], found["test"], [], said, labelled=False)


def _without_labels(dataset: Any) -> Any:
    return dataset.select_columns(["image"]).add_column("label", [-1] * len(dataset))


def _without_unlabelled(dataset: Any, split: str, config: DistillConfig, said: list[str]) -> Any:
    """Return a split without its rows that have no label, unless they are training images that a teacher can teach."""
    labels = np.asarray(dataset["label"])
    known = np.flatnonzero(labels >= 0)
    count = len(labels) - len(known)
    if not count:
        return dataset
    have = f"{count:,} picture{'s' * (count > 1)} of the {split} split {'have' if count > 1 else 'has'} no label"
    if split == "train" and config.teacher != NO_TEACHER and config.lambda_ > 0:
        said.append(f"{have}: {'they are' if count > 1 else 'it is'} learned from the teacher alone.")
        return dataset
    said.append(f"{have} and {'are' if count > 1 else 'is'} left out.")
    return dataset.select(known)


def cut(dataset: Any, fraction: float, name: str, seed: int = 0) -> tuple[Any, Any]:
    """Return ``dataset`` without a share of it, and that share.

    The share is ``fraction`` of each class, at least one image; of all images where they have no labels. ``seed`` is never
    the run's: two runs on the same images share their test split.
    """
    labels, names = np.asarray(dataset["label"]), getattr(dataset.features["label"], "names", None)
    rng, taken = np.random.default_rng(seed), []
    for index in range(len(names)) if names else (-1,):
        members = np.flatnonzero(labels == index)
        if len(members) < 2:
            whose = f"{names[index]} has" if names else "The dataset has"
            raise UserError(
                f"{whose} {len(members)} training picture{'s' * (len(members) != 1)}, too few to cut a "
                f"{name} split from. Add pictures{' of it, remove the class,' if names else ''} or give a {name} split."
            )
        taken.append(rng.permutation(members)[: max(1, round(len(members) * fraction))])
    chosen = np.sort(np.concatenate(taken))
    return dataset.select(np.setdiff1d(np.arange(len(labels)), chosen)), dataset.select(chosen)


def _pick_splits(found: dict[str, Any], config: DistillConfig) -> dict[str, Any]:
    """Return train, and validation and test where there are any: those that are named, or have their usual names."""
    picked = {name: found[match] for name, match in pick_names(list(found), config).items()}
    for name, part in picked.items():
        if not len(part):
            raise UserError(f"The {name} split is empty.")
    return picked


def pick_names(found: list[str], config: DistillConfig) -> dict[str, str]:
    """Return which of the splits that were ``found`` is train, and which are validation and test, if any.

    Raises ``UserError`` for a split that is named and not there, and where none is train.
    """
    picked = {}
    for name, usual in SPLIT_NAMES.items():
        wanted = getattr(config, f"{name}_split")
        if wanted is not None and wanted not in found:
            raise UserError(f"There is no split {wanted!r}. The dataset has {some(found)}.")
        match = wanted or next((split for u in usual for split in found if split.lower() == u), None)
        if match is not None:
            picked[name] = match
    if "train" not in picked and len(found) == 1:
        picked["train"] = found[0]
    if "train" not in picked:
        raise UserError(f"No training split among {some(found)}. Name it with --train-split.")
    return picked


def _standard(dataset: Any, config: DistillConfig, split: str, said: list[str]) -> Any:
    """Return a dataset with the columns ``image`` and ``label`` only, as everything else expects them."""
    found, _, label = standard_columns(dataset, config, split, said)
    return _without_labels(found) if label is None else found


def standard_columns(dataset: Any, config: DistillConfig, split: str, said: list[str]) -> tuple[Any, str, str | None]:
    """Return a dataset, streamed or not, with its undecoded images in the column ``image`` and its labels, if it has any,
    in the column ``label``; and what both columns were called, ``None`` where there are no labels.

    Raises ``UserError`` for a column that is not there.
    """
    from datasets import Image as ImageFeature

    features = dataset.features
    image = config.image_column or _image_column(features)
    if image not in features:
        raise UserError(
            f"No column of pictures in the {split} split: it has {some(list(features))}. Name one with --image-column."
        )
    if not isinstance(features[image], ImageFeature):
        dataset = _cast_to_pictures(dataset, image, split)
    label = config.label_column or _label_column(features, split, said)
    if label is None:
        dataset = _renamed(dataset.select_columns([image]), {image: "image"})
        return dataset.cast_column("image", ImageFeature(decode=False)), image, None
    if label not in features:
        raise UserError(
            f"The {split} split has no column {label!r}: its columns are {some(list(features))}. Name the column of the "
            "labels with --label-column, or none where there are no labels."
        )
    dataset = _renamed(dataset.select_columns([image, label]), {image: "image", label: "label"})
    return dataset.cast_column("image", ImageFeature(decode=False)), image, label


def _renamed(dataset: Any, names: dict[str, str]) -> Any:
    """Return a dataset whose columns are called otherwise; a streamed one takes a new name only where it is another."""
    changed = {old: new for old, new in names.items() if old != new}
    return dataset.rename_columns(changed) if changed else dataset


def _image_column(features: Any) -> str | None:
    """Return the column of images: by its type, the usual name first if there are several; else by its usual name."""
    from datasets import Image as ImageFeature

    typed = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    named = [name for name in IMAGE_COLUMNS if name in (typed or features)]
    return next(iter([*named, *typed]), None)


def _label_column(features: Any, split: str, said: list[str]) -> str | None:
    """Return the column of labels: the one called ``label``, else one of classes, else one with another usual name.

    A column of lists comes last. Where there are several, ``said`` tells which was taken.
    """
    from datasets import ClassLabel

    def rank(name: str) -> tuple:
        usual = LABEL_COLUMNS.index(name) if name in LABEL_COLUMNS else len(LABEL_COLUMNS)
        return is_list(features[name]), name != "label", not isinstance(features[name], ClassLabel), usual

    typed = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    found = sorted({*typed, *(name for name in LABEL_COLUMNS if name in features)}, key=rank)
    if len(found) > 1:
        told = f"The labels are the column {found[0]!r}; {some(found[1:])} could be too (--label-column)."
        said += [told] if told not in said else []
    return next(iter(found), None)


def _cast_to_pictures(dataset: Any, column: str, split: str) -> Any:
    """Cast a column of files' bytes, or of ``{bytes, path}``, to images: `datasets` writes it so without its own notes."""
    from datasets import Image as ImageFeature

    kind = dataset.features[column]
    is_binary = getattr(kind, "dtype", None) in ("binary", "large_binary")
    if is_binary or (isinstance(kind, dict) and "bytes" in kind):
        return dataset.cast_column(column, ImageFeature())
    raise UserError(
        f"The column {column!r} of the {split} split holds {kind}, not pictures. Expected the bytes of picture files; name "
        "another with --image-column."
    )
