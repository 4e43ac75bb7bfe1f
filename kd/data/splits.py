"""Load the images that a configuration names, and split them into training, validation and test images."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kd.config import SAMPLE, DistillConfig
from kd.data.folders import SPLIT_NAMES, layout
from kd.data.images import ENDINGS
from kd.errors import UserError
from kd.system.files import ASSETS, DATASETS
from kd.system.hub import from_hub
from kd.text import pictures_were, some

# What the columns of images and of labels are usually called.
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label")


# --- Splits


@dataclass(frozen=True)
class Splits:
    """Three ``datasets.Dataset`` with the columns ``image`` (undecoded) and ``label`` (an index of ``classes``).

    Where the images have no labels (``labelled`` is false) every label is -1, and there are no classes yet: they will be
    the teacher's.
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
        return np.bincount(labels, minlength=len(self.classes)).tolist() if self.labelled else []

    def sizes(self) -> dict[str, int]:
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


def load_splits(config: DistillConfig) -> Splits:
    """Return the images that ``config`` names. Splits that are missing are cut from train.

    The cut is seeded, and stratified where there are labels.

    Raises ``UserError`` for everything that a user can correct.
    """
    said: list[str] = []
    found = _pick_splits(_load(config, said), config)
    columns = list(found["train"].features)
    found = {name: _standard(part, config, name) for name, part in found.items()}
    labelled = {name: not _is_unlabelled(part) for name, part in found.items()}
    if not labelled["train"]:
        return _unlabelled(found, config, columns, [name for name, known in labelled.items() if known])
    for name in [name for name, known in labelled.items() if not known]:
        said.append(f"The {name} split has no labels, so a {name} split is cut from train.")
        del found[name]
    for name, part in found.items():
        found[name], count = _with_labels(part)
        if count:
            said.append(f"{count} pictures of the {name} split have no label and are left out.")
    classes = found["train"].features["label"].names
    for name, part in found.items():
        if part.features["label"].names != classes:
            raise UserError(
                f"The {name} split has the classes {some(part.features['label'].names)}, train has {some(classes)}. "
                "Every split needs the same classes."
            )
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name not in found:
            found["train"], found[name] = cut(found["train"], fraction, name, config.split_seed)
            said.append(f"No {name} split: {pictures_were(len(found[name]))} cut from train.")
    counts = np.bincount(found["train"]["label"], minlength=len(classes))
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise UserError(f"No training picture of {some(empty)}. Add some, or remove the class.")
    if len(classes) < 2:
        raise UserError(
            f"The dataset has one class ({classes[0]}). A classifier needs at least two. Pictures without labels, to learn "
            "from the teacher alone, lie in the folder itself, in no class folder."
        )
    return Splits(found["train"], found["validation"], found["test"], classes, said)


def _unlabelled(found: dict[str, Any], config: DistillConfig, columns: list[str], labelled: list[str]) -> Splits:
    """Return the splits of a dataset whose training images have no labels; those of the splits ``labelled`` are dropped."""
    said = []
    if len(columns) > 1:
        said.append(f"No column of {some(columns)} has labels. If another one holds them, name it with --label-column.")
    said += [f"Train has no labels, so those of the {name} split are not used." for name in labelled]
    found = {name: _without_labels(part) for name, part in found.items()}
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name not in found:
            found["train"], found[name] = cut(found["train"], fraction, name, config.split_seed)
            said.append(f"No {name} split: {pictures_were(len(found[name]))} cut from train.")
    return Splits(found["train"], found["validation"], found["test"], [], said, labelled=False)


def _without_labels(dataset: Any) -> Any:
    return dataset.select_columns(["image"]).add_column("label", [-1] * len(dataset))


def _is_unlabelled(dataset: Any) -> bool:
    return set(dataset.unique("label")) <= {-1, None}


def _with_labels(dataset: Any) -> tuple[Any, int]:
    """Return the rows that have a label, and how many have none."""
    labels = dataset["label"]
    known = [nth for nth, label in enumerate(labels) if label is not None and label >= 0]
    return (dataset if len(known) == len(labels) else dataset.select(known)), len(labels) - len(known)


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


def _load(config: DistillConfig, said: list[str]) -> dict[str, Any]:
    """Return the datasets of all splits by their own names; what was left out is added to ``said``."""
    if config.dataset == SAMPLE:
        return _load_parquet({name: [ASSETS / "sample" / f"{name}.parquet"] for name in SPLIT_NAMES})
    path = Path(os.path.expanduser(config.dataset))
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            return _load_folder(path, said)
        names = [file.stem.split("-")[0] for file in files]  # train-00000-of-00002 is a part of train
        return _load_parquet({name: [f for f, n in zip(files, names, strict=True) if n == name] for name in names})
    if path.is_file():
        if path.suffix != ".parquet":
            raise UserError(
                f"{path} is a {path.suffix or 'nameless'} file. Expected a parquet file or a folder of class folders."
            )
        return _load_parquet({"train": [path]})
    if path.parent.name == DATASETS:
        raise UserError(
            "The imported dataset is gone: it was deleted. Import the pictures again, then start a new run."
        )
    return _load_hub(config)


def _load_parquet(files: dict[str, list[Path]]) -> dict[str, Any]:
    """Return the rows of each split's files, without a copy in a cache."""
    import pyarrow
    from datasets import Dataset
    from pyarrow import parquet

    found = {}
    for name, parts in files.items():
        try:
            found[name] = Dataset(pyarrow.concat_tables([parquet.read_table(part) for part in parts]))
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{some(parts)} could not be read as parquet: {error}") from error
    return found


def _load_folder(path: Path, said: list[str]) -> dict[str, Any]:
    """Return the splits of a folder of images, understood as an import understands it (``kd.data.folders``).

    What has no place among them is added to ``said``.
    """
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    files = _pictures_in(path)
    if not files:
        raise UserError(
            f"{path} is empty. Expected a folder for each class, with pictures in it, or pictures without labels."
        )
    plan = layout(file.relative_to(path).parts for file in files)
    homes = {
        path.joinpath(*parts[: parts.index(label)])
        for index, (_, label) in plan.places.items()
        if label and (parts := files[index].relative_to(path).parts)
    }
    if empty := [one for home in sorted(homes) for one in _folders_in(home) if not _pictures_in(one)]:
        raise UserError(
            f"No pictures in {some([one.name for one in empty])} (in {path}). Add some, or remove the folder."
        )
    for why, indices in _by_value(plan.skipped).items():
        said.append(f"{len(indices)} left out, {files[indices[0]].relative_to(path)} first: it {why}.")
    columns: dict[str, Any] = {"image": ImageFeature()}
    if plan.classes:
        columns["label"] = ClassLabel(names=plan.classes)
    found = {}
    for split in SPLIT_NAMES:
        rows = [(str(files[i]), label) for i, (where, label) in plan.places.items() if where == split]
        values = {"image": [file for file, _ in rows], "label": [label for _, label in rows]}
        if rows:
            found[split] = Dataset.from_dict({name: values[name] for name in columns}, features=Features(columns))
    return found


def _pictures_in(folder: Path) -> list[Path]:
    """Return the images below a folder, sorted, without what systems leave behind (dot files, ``__MACOSX``)."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in ENDINGS
        and not any(part.startswith((".", "__MACOSX")) for part in file.relative_to(folder).parts)
        and file.is_file()
    ]


def _folders_in(folder: Path) -> list[Path]:
    return [
        entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
    ]


def _by_value(places: dict[int, str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, value in places.items():
        found.setdefault(value, []).append(index)
    return found


def _load_hub(config: DistillConfig) -> dict[str, Any]:
    from datasets import load_dataset

    return from_hub("dataset", config.dataset, lambda: dict(load_dataset(config.dataset, config.dataset_config)))


def _pick_splits(found: dict[str, Any], config: DistillConfig) -> dict[str, Any]:
    """Return train, and validation and test where there are any: those that are named, or have their usual names."""
    picked = {}
    for name, usual in SPLIT_NAMES.items():
        wanted = getattr(config, f"{name}_split")
        if wanted is not None and wanted not in found:
            raise UserError(f"There is no split {wanted!r}. The dataset has {some(list(found))}.")
        match = wanted or next((split for u in usual for split in found if split.lower() == u), None)
        if match is not None:
            picked[name] = found[match]
    if "train" not in picked and len(found) == 1:
        picked["train"] = next(iter(found.values()))
    if "train" not in picked:
        raise UserError(f"No training split among {some(list(found))}. Name it with --train-split.")
    for name, part in picked.items():
        if not len(part):
            raise UserError(f"The {name} split is empty.")
    return picked


def _standard(dataset: Any, config: DistillConfig, split: str) -> Any:
    """Return a dataset with the columns ``image`` and ``label`` only, as everything else expects them."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    features = dataset.features
    image = config.image_column or _image_column(features)
    if image not in features:
        raise UserError(
            f"No column of pictures in the {split} split: it has {some(list(features))}. Name one with --image-column."
        )
    if not isinstance(features[image], ImageFeature):
        dataset = _cast_to_pictures(dataset, image, split)
    label = config.label_column or next((n for n, f in features.items() if isinstance(f, ClassLabel)), None)
    label = label or next((n for n in LABEL_COLUMNS if n in features), None)
    if label is None:
        dataset = _without_labels(dataset.select_columns([image]).rename_columns({image: "image"}))
        return dataset.cast_column("image", ImageFeature(decode=False))
    if label not in features:
        raise UserError(
            f"The {split} split has no column {label!r}: its columns are {some(list(features))}. Name the column of the "
            "labels with --label-column, or none where there are no labels."
        )
    dataset = dataset.select_columns([image, label]).rename_columns({image: "image", label: "label"})
    if not isinstance(dataset.features["label"], ClassLabel) and not _is_unlabelled(dataset):
        values = [None if value is None or value == -1 else str(value) for value in dataset["label"]]
        names = sorted({name for name in values if name is not None}, key=lambda n: n.zfill(9) if n.isdigit() else n)
        index = {name: i for i, name in enumerate(names)}
        column = [-1 if name is None else index[name] for name in values]
        dataset = (
            dataset.remove_columns("label").add_column("label", column).cast_column("label", ClassLabel(names=names))
        )
    return dataset.cast_column("image", ImageFeature(decode=False))


def _image_column(features: Any) -> str | None:
    """Return the column of images: by its type, the usual name first if there are several; else by its usual name."""
    from datasets import Image as ImageFeature

    typed = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    named = [name for name in IMAGE_COLUMNS if name in (typed or features)]
    return next(iter([*named, *typed]), None)


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
