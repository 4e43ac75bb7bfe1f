"""Pictures: where they come from, how they are split, and how a batch of them becomes a tensor.

Two ways lead from a picture to a tensor. The *ruler* (``kd.evaluation.compare``) opens the original file and uses a model's own
processor; every reported score comes from it. The *fast* way here is for training: pictures are decoded once into
``[N, 3, S, S]`` uint8, and crops of a whole batch are cut, scaled and normalised at once.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from kd import limits
from kd.config import SAMPLE, DistillConfig
from kd.data.folders import SPLIT_NAMES, layout
from kd.data.images import ENDINGS, BadPicture, identified, open_picture
from kd.runs.run import RunError, write_whole
from kd.runs.visitors import DATASETS
from kd.system.hub import from_hub

ASSETS = Path(__file__).resolve().parent.parent.parent / "assets"
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label")
SMALL_SIDE = 64
"""Pictures up to this size keep their size; larger ones are trained on at 224 pixels unless asked otherwise."""
NPY_HEADER = 128
"""Bytes of the header of an ``.npy`` file of at most four axes."""


# --- Rows


def open_row(row: dict[str, Any], least: int | None = None) -> Image.Image:
    """The picture of a dataset's row (``{"image": {"bytes", "path"}}``, as ``Image(decode=False)`` gives it)."""
    image = row["image"]
    name = Path(image["path"]).name if image["path"] else ""
    return open_picture(image["bytes"] if image["bytes"] is not None else image["path"], name, least)


def pictures(dataset: Any) -> Iterator[tuple[int, Image.Image | BadPicture]]:
    """Each row's index with its picture, or with what is wrong with it."""
    for index, row in enumerate(dataset):
        try:
            yield index, open_row(row)
        except BadPicture as problem:
            yield index, problem


# --- Splits


@dataclass(frozen=True)
class Splits:
    """Three ``datasets.Dataset`` with the columns ``image`` (undecoded) and ``label`` (an index of ``classes``).

    Where the pictures have no labels (``labelled`` is false) every label is -1, and there are no classes yet: they will be
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
        """Whose the labels are, as events and reports have it: the ``dataset``'s, or the ``teacher``'s."""
        return "dataset" if self.labelled else "teacher"

    def counts(self, split: str) -> list[int]:
        """The pictures of each class in a split; none where they have no labels."""
        labels = np.asarray(getattr(self, split)["label"])
        return np.bincount(labels, minlength=len(self.classes)).tolist() if self.labelled else []

    def sizes(self) -> dict[str, int]:
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


def load_splits(config: DistillConfig) -> Splits:
    """The pictures that ``config`` names, with the missing splits cut from train, seeded, and stratified where there are
    labels.

    Raises ``RunError`` on anything that a user can mend.
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
            raise RunError(
                f"The {name} split has the classes {some(part.features['label'].names)}, train has {some(classes)}. "
                "Every split needs the same classes."
            )
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name not in found:
            found["train"], found[name] = cut(found["train"], fraction, name, config.split_seed)
            said.append(f"No {name} split: {_many(len(found[name]))} cut from train.")
    counts = np.bincount(found["train"]["label"], minlength=len(classes))
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise RunError(f"No training picture of {some(empty)}. Add some, or remove the class.")
    if len(classes) < 2:
        raise RunError(
            f"The dataset has one class ({classes[0]}). A classifier needs at least two. Pictures without labels, to learn "
            "from the teacher alone, lie in the folder itself, in no class folder."
        )
    return Splits(found["train"], found["validation"], found["test"], classes, said)


def _unlabelled(found: dict[str, Any], config: DistillConfig, columns: list[str], labelled: list[str]) -> Splits:
    """The splits of a dataset whose training pictures have no labels; those of the splits ``labelled`` are not used."""
    said = []
    if len(columns) > 1:
        said.append(f"No column of {some(columns)} has labels. If another one holds them, name it with --label-column.")
    said += [f"Train has no labels, so those of the {name} split are not used." for name in labelled]
    found = {name: _without_labels(part) for name, part in found.items()}
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name not in found:
            found["train"], found[name] = cut(found["train"], fraction, name, config.split_seed)
            said.append(f"No {name} split: {_many(len(found[name]))} cut from train.")
    return Splits(found["train"], found["validation"], found["test"], [], said, labelled=False)


def _without_labels(dataset: Any) -> Any:
    return dataset.select_columns(["image"]).add_column("label", [-1] * len(dataset))


def _is_unlabelled(dataset: Any) -> bool:
    return set(dataset.unique("label")) <= {-1, None}


def _with_labels(dataset: Any) -> tuple[Any, int]:
    """The rows that have a label, and how many have none."""
    labels = dataset["label"]
    known = [nth for nth, label in enumerate(labels) if label is not None and label >= 0]
    return (dataset if len(known) == len(labels) else dataset.select(known)), len(labels) - len(known)


def cut(dataset: Any, fraction: float, name: str, seed: int = 0) -> tuple[Any, Any]:
    """``dataset`` without, and only, a share of it: of each class ``fraction``, at least one picture; of all pictures
    where they have no labels. ``seed`` is never the run's: two runs on the same pictures share their test split."""
    labels, names = np.asarray(dataset["label"]), getattr(dataset.features["label"], "names", None)
    rng, taken = np.random.default_rng(seed), []
    for index in range(len(names)) if names else (-1,):
        members = np.flatnonzero(labels == index)
        if len(members) < 2:
            whose = f"{names[index]} has" if names else "The dataset has"
            raise RunError(
                f"{whose} {len(members)} training picture{'s' * (len(members) != 1)}, too few to cut a "
                f"{name} split from. Add pictures{' of it, remove the class,' if names else ''} or give a {name} split."
            )
        taken.append(rng.permutation(members)[: max(1, round(len(members) * fraction))])
    chosen = np.sort(np.concatenate(taken))
    return dataset.select(np.setdiff1d(np.arange(len(labels)), chosen)), dataset.select(chosen)


def _many(count: int) -> str:
    return "1 picture was" if count == 1 else f"{count:,} pictures were"


def _load(config: DistillConfig, said: list[str]) -> dict[str, Any]:
    """Split name -> dataset, as they come; into ``said``, what was left out."""
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
            raise RunError(
                f"{path} is a {path.suffix or 'nameless'} file. Expected a parquet file or a folder of class folders."
            )
        return _load_parquet({"train": [path]})
    if path.parent.name == DATASETS:
        raise RunError("The imported dataset is gone: it was deleted. Import the pictures again, then start a new run.")
    return _load_hub(config)


def _load_parquet(files: dict[str, list[Path]]) -> dict[str, Any]:
    """Split name -> the rows of its files, without a copy in a cache."""
    import pyarrow
    from datasets import Dataset
    from pyarrow import parquet

    found = {}
    for name, parts in files.items():
        try:
            found[name] = Dataset(pyarrow.concat_tables([parquet.read_table(part) for part in parts]))
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise RunError(f"{some(parts)} could not be read as parquet: {error}") from error
    return found


def _load_folder(path: Path, said: list[str]) -> dict[str, Any]:
    """The splits of a folder of pictures, understood as an import understands it (``kd.data.folders``); into ``said``, which
    pictures have no place."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    files = _pictures_in(path)
    if not files:
        raise RunError(
            f"{path} is empty. Expected a folder for each class, with pictures in it, or pictures without labels."
        )
    plan = layout(file.relative_to(path).parts for file in files)
    homes = {
        path.joinpath(*parts[: parts.index(label)])
        for index, (_, label) in plan.places.items()
        if label and (parts := files[index].relative_to(path).parts)
    }
    if empty := [one for home in sorted(homes) for one in _folders_in(home) if not _pictures_in(one)]:
        raise RunError(
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
    """The pictures below a folder, sorted, without what systems leave behind (dot files, ``__MACOSX``)."""
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
    """Train, and validation and test where there are any: those that were named, or found by their usual names."""
    picked = {}
    for name, usual in SPLIT_NAMES.items():
        wanted = getattr(config, f"{name}_split")
        if wanted is not None and wanted not in found:
            raise RunError(f"There is no split {wanted!r}. The dataset has {some(list(found))}.")
        match = wanted or next((split for u in usual for split in found if split.lower() == u), None)
        if match is not None:
            picked[name] = found[match]
    if "train" not in picked and len(found) == 1:
        picked["train"] = next(iter(found.values()))
    if "train" not in picked:
        raise RunError(f"No training split among {some(list(found))}. Name it with --train-split.")
    for name, part in picked.items():
        if not len(part):
            raise RunError(f"The {name} split is empty.")
    return picked


def _standard(dataset: Any, config: DistillConfig, split: str) -> Any:
    """The two columns that everything else relies on."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    features = dataset.features
    image = config.image_column or _image_column(features)
    if image not in features:
        raise RunError(
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
        raise RunError(
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
    """The column of pictures: by type, with the usual name if there are several; else by its usual name."""
    from datasets import Image as ImageFeature

    typed = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    named = [name for name in IMAGE_COLUMNS if name in (typed or features)]
    return next(iter([*named, *typed]), None)


def _cast_to_pictures(dataset: Any, column: str, split: str) -> Any:
    """A column of files' bytes, or of ``{bytes, path}``, as `datasets` writes pictures where its own notes are lost."""
    from datasets import Image as ImageFeature

    kind = dataset.features[column]
    is_binary = getattr(kind, "dtype", None) in ("binary", "large_binary")
    if is_binary or (isinstance(kind, dict) and "bytes" in kind):
        return dataset.cast_column(column, ImageFeature())
    raise RunError(
        f"The column {column!r} of the {split} split holds {kind}, not pictures. Expected the bytes of picture files; name "
        "another with --image-column."
    )


def some(names: list[str], most: int = 6) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def fingerprint(dataset: Any) -> str:
    """A hash of the files and labels themselves, in order: it knows nothing of where or when they were read."""
    digest = hashlib.blake2b(digest_size=16)
    for row in dataset:
        data = file_bytes(row)
        digest.update(len(data).to_bytes(8, "little") + row["label"].to_bytes(8, "little", signed=True))
        digest.update(data)
    return digest.hexdigest()


def file_bytes(row: dict[str, Any]) -> bytes:
    """A row's file; nothing of one that is not there, which is named when it is to be decoded."""
    image = row["image"]
    if image["bytes"] is not None:
        return image["bytes"]
    try:
        return Path(image["path"]).read_bytes()
    except FileNotFoundError:
        return b""


def typical_size(dataset: Any, most: int = 64) -> tuple[int, int]:
    """The median shorter side and the largest longer side in pixels of some pictures, spread over the dataset."""
    sample = dataset.select(np.linspace(0, len(dataset) - 1, min(most, len(dataset)), dtype=int))
    sizes = [size for row in sample if (size := row_size(row)) is not None]
    if not sizes:
        raise RunError(f"None of {len(sample)} pictures that were tried can be read.")
    return int(np.median([min(size) for size in sizes])), max(max(size) for size in sizes)


def row_size(row: dict[str, Any]) -> tuple[int, int] | None:
    """A picture's width and height from the first bytes of its file; ``None`` of what is no picture."""
    image = row["image"]
    try:
        with identified(image["bytes"] if image["bytes"] is not None else image["path"], "") as picture:
            return picture.size
    except BadPicture:
        return None


# --- Pixels, decoded once


@dataclass(frozen=True)
class Pixels:
    """A split for training: ``values[indices]`` is uint8 ``[B, 3, S, S]``, whole pictures squeezed into squares, and
    ``labels`` int64 ``[N]``. Unreadable pictures are left out and named in ``unreadable``.

    ``values`` is a memory-mapped array, or ``Undecoded`` where that would not fit on the disk; ``warnings`` says so.
    """

    values: "np.ndarray | Undecoded"
    labels: np.ndarray
    fingerprint: str
    unreadable: list[str]
    cached: bool
    warnings: list[str] = field(default_factory=list)


class Undecoded:
    """Pictures that are decoded each time they are asked for; to be asked by worker processes."""

    def __init__(self, dataset: Any, side: int) -> None:
        self.dataset, self.shape = dataset, (len(dataset), 3, side, side)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, indices: Any) -> np.ndarray:
        rows = np.arange(len(self))[indices]
        return np.stack([_squeezed(self.dataset[int(row)], self.shape[-1]) for row in rows])


def cache_folder(runs: Path, dataset: str) -> Path:
    """Where a dataset's pixels and targets are kept for the next run: ``KD_CACHE_DIR``, or ``.cache`` beside the runs;
    those of an imported one in its own folder, for they are its owner's, count as such, and go when it goes."""
    if Path(dataset).parent == Path(runs).resolve() / DATASETS:
        return Path(dataset) / ".cache"
    return Path(os.environ.get("KD_CACHE_DIR") or Path(runs) / ".cache")


def pixels_folder(fingerprint: str, side: int, cache: Path) -> Path:
    """Where a split's decoded pictures are kept, in ``pixels.npy``."""
    return Path(cache) / "pixels" / f"{fingerprint}-{side}"


def load_pixels(
    dataset: Any, side: int, cache: Path, progress: Callable[[int, int], None] = lambda done, of: None
) -> Pixels:
    """Decode a split to ``side`` pixels, or map what an earlier run decoded.

    Raises ``RunError`` if more of the pictures cannot be read than ``limits.unreadable_share``.
    """
    print_ = fingerprint(dataset)
    labels = np.asarray(dataset["label"], dtype=np.int64)
    folder = pixels_folder(print_, side, cache)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        unreadable, values = _unreadable(folder), mapped(folder / "pixels.npy")
        if unreadable is None or (values is not None and len(values) != len(dataset) - len(unreadable)):
            values = None
        warnings = [] if values is not None else _too_large(len(dataset), side, folder)
        cached = unreadable is not None and (values is not None or bool(warnings))
        if not cached:
            try:
                _decode(dataset, side, folder, progress, keep=not warnings)
            finally:  # what was not finished cannot be gone on with, and on a full disk it is in the way
                (folder / "pixels.part").unlink(missing_ok=True)
            unreadable, values = _unreadable(folder), mapped(folder / "pixels.npy")
    keep = np.setdiff1d(np.arange(len(labels)), [entry["index"] for entry in unreadable])
    if values is None:
        values = Undecoded(dataset.select(keep), side)
    return Pixels(values, labels[keep], print_, [entry["reason"] for entry in unreadable], cached, warnings)


def _unreadable(folder: Path) -> list[dict[str, Any]] | None:
    """What ``_decode`` has left out (``index``, ``reason``), or ``None`` where it has not ended."""
    try:
        return json.loads((folder / "unreadable.json").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _too_large(count: int, side: int, folder: Path) -> list[str]:
    """Words for the user if decoded pictures would take more than the disk should give: ``KD_PIXELS_GB`` (10^9 bytes),
    or half of what is free."""
    budget = float(os.environ.get("KD_PIXELS_GB") or shutil.disk_usage(folder).free / 2e9)
    needed = count * 3 * side * side / 1e9
    if needed <= budget:
        return []
    return [
        f"Decoded, {count:,} pictures of {side} px would take {needed:.1f} GB, more than the {budget:.1f} GB that may be "
        f"used (KD_PIXELS_GB, or half of the free disk). They are decoded anew in each epoch by {processes()} processes, "
        "which is slower. Free some space, or choose a smaller image size."
    ]


def _decode(dataset: Any, side: int, folder: Path, progress: Callable[[int, int], None], keep: bool) -> None:
    """Every picture once, by several processes, into ``pixels.npy`` (unless it is not to be kept); what could not be
    read into ``unreadable.json``."""
    temporary, unreadable, done = folder / "pixels.part", [], 0
    with npy_writer(temporary, (3, side, side), np.uint8) as write:
        for answers in in_batches(Squeezed(dataset, side), 32):
            for index, answer in enumerate(answers, start=done):
                if isinstance(answer, str):
                    unreadable.append({"index": index, "reason": answer})
            if len(unreadable) > max(1, limits.current().unreadable_share * len(dataset)):
                reasons = " ".join(entry["reason"] for entry in unreadable[:5])
                raise RunError(
                    f"More than {limits.current().unreadable_share:.0%} of the pictures cannot be read. The first: {reasons}"
                )
            if keep and (read := [answer for answer in answers if not isinstance(answer, str)]):
                write(np.stack(read))
            done += len(answers)
            progress(done, len(dataset))
    write_whole(folder / "unreadable.json", json.dumps(unreadable))
    if keep:
        os.replace(temporary, folder / "pixels.npy")


def _squeezed(row: dict[str, Any], side: int) -> np.ndarray:
    """A row's picture as uint8 ``[3, S, S]``."""
    picture = open_row(row, least=2 * side)
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3)
    return np.asarray(picture).transpose(2, 0, 1)


@dataclass(frozen=True)
class Squeezed:
    """A dataset's pictures ``[3, S, S]``, or in words why one cannot be read."""

    dataset: Any
    side: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> np.ndarray | str:
        try:
            return _squeezed(self.dataset[index], self.side)
        except BadPicture as problem:
            return str(problem)


def in_order(values: "np.ndarray | Undecoded", begin: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """``Pixels.values`` from index ``begin`` on as batches uint8 ``[B, 3, S, S]``, each with the index of its first."""
    if not isinstance(values, Undecoded):
        for start in range(begin, len(values), size):
            yield start, np.array(values[start : start + size])
        return
    rest = values.dataset.select(range(begin, len(values)))
    for nth, batch in enumerate(in_batches(Squeezed(rest, values.shape[-1]), size)):
        yield begin + nth * size, np.stack(batch)


def processes() -> int:
    """How many processes decode pictures: one for each core that this one may use, or none beside this one where
    processes cannot be forked (a spawned one would run a user's script again)."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0


def in_batches(items: Any, size: int) -> Iterator[list]:
    """Lists of ``size`` items of a sequence, in order, made by several processes."""
    from torch.utils.data import DataLoader

    workers = processes()
    yield from DataLoader(
        items,
        batch_size=size,
        collate_fn=list,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )


@contextmanager
def npy_writer(
    path: Path, shape: tuple[int, ...], dtype: type, rows: int = 0
) -> Iterator[Callable[[np.ndarray], None]]:
    """Write an ``.npy`` file row by row (or rows by rows), the number of rows known at the end only.

    A file that is half written has no valid header: ``mapped`` takes it for missing. ``rows`` of it are kept and
    written on from, where ``rows_in`` has found as many.
    """

    def header() -> dict[str, Any]:
        return {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (rows, *shape)}

    def write(values: np.ndarray) -> None:
        nonlocal rows
        values = np.ascontiguousarray(values, dtype=dtype).reshape(-1, *shape)
        file.write(values.tobytes())
        rows += len(values)

    with Path(path).open("r+b" if rows else "wb") as file:
        # The header has a fixed size whatever the count: numpy leaves room for it to grow.
        file.write(bytes(NPY_HEADER))
        file.truncate(NPY_HEADER + rows * int(np.prod(shape)) * np.dtype(dtype).itemsize)
        file.seek(0, os.SEEK_END)
        yield write
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header())
        if file.tell() != NPY_HEADER:
            raise AssertionError("numpy changed the size of its header")
        file.flush()
        os.fsync(file.fileno())


def rows_in(path: Path, shape: tuple[int, ...], dtype: type) -> int:
    """How many whole rows an interrupted ``npy_writer`` has left in a file."""
    try:
        size = Path(path).stat().st_size
    except FileNotFoundError:
        return 0
    return max(0, size - NPY_HEADER) // (int(np.prod(shape)) * np.dtype(dtype).itemsize)


def mapped(path: Path) -> np.ndarray | None:
    """A memory-mapped ``.npy`` file, or ``None`` if it is missing, truncated or empty (it is deleted then)."""
    try:
        return np.load(path, mmap_mode="r")
    except FileNotFoundError:
        return None
    except (ValueError, EOFError):
        path.unlink()
        return None


# --- Views


@dataclass(frozen=True)
class Views:
    """The crops of a split: a pure function of (fingerprint, picture, view, ``seed``).

    View 0 is the whole picture. Other views are crops of ``crop_area`` to 1 of the area and aspect 3/4 to 4/3 of the
    picture's own (Szegedy et al. 2015, arXiv:1409.4842, section 6), half of them mirrored.
    """

    fingerprint: str
    count: int
    crop_area: float
    seed: int = 0

    def boxes(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """``boxes`` float32 ``[N, 4]`` (left, top, width, height, as shares of the picture) and ``mirrored`` ``[N]``."""
        if view == 0:
            whole = np.tile(np.array([0, 0, 1, 1], np.float32), (self.count, 1))
            return whole, np.zeros(self.count, bool)
        rng = np.random.default_rng([int(self.fingerprint, 16), self.seed, view])
        area, aspect, left, top, mirror = rng.random((self.count, 5)).T
        area = self.crop_area + (1 - self.crop_area) * area
        aspect = np.exp(np.log(3 / 4) + np.log(16 / 9) * aspect)
        width, height = np.minimum(np.sqrt(area * aspect), 1), np.minimum(np.sqrt(area / aspect), 1)
        boxes = np.stack([left * (1 - width), top * (1 - height), width, height], axis=1)
        return boxes.astype(np.float32), mirror < 0.5


def crop(values: Any, boxes: Any, mirrored: Any, size: tuple[int, int]) -> Any:
    """Cut a box from each picture and scale it: ``[B, 3, S, S]`` (uint8 or float) to float ``[B, 3, *size]``.

    ``boxes`` ``[B, 4]`` and ``mirrored`` ``[B]`` as ``Views.boxes`` gives them, as tensors. Bilinear; where a picture
    shrinks by more than 1.5, several points are averaged for each pixel, so that fine patterns do not alias.
    """
    import torch
    from torch.nn.functional import avg_pool2d, grid_sample

    points = max(1, round(values.shape[-1] / max(size)))
    height, width = size[0] * points, size[1] * points
    left, top, across, down = (part[:, None] for part in boxes.unbind(1))
    middles = [(torch.arange(n, device=boxes.device) + 0.5) / n for n in (width, height)]
    along = torch.where(mirrored[:, None], 1 - middles[0], middles[0])
    # Where each point lies in the picture, -1 to 1; like this, a quarter of affine_grid's time.
    grid = boxes.new_empty(len(boxes), height, width, 2)
    grid[..., 0] = (2 * (left + across * along) - 1)[:, None, :]
    grid[..., 1] = (2 * (top + down * middles[1]) - 1)[:, :, None]
    cropped = grid_sample(values.float(), grid, padding_mode="border", align_corners=False)
    return avg_pool2d(cropped, points) if points > 1 else cropped
