"""Read what a configuration's dataset names: a folder, parquet files, a dataset of the `datasets` library, the Hub's."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.config import SAMPLE, DistillConfig
from kd.data.folders import SPLIT_NAMES, Layout, layout
from kd.data.images import LFS, is_picture
from kd.data.metadata import METADATA, read_labels, with_labels
from kd.data.walk import files_below, is_left_behind
from kd.errors import UserError
from kd.system.files import ASSETS, DATASETS
from kd.system.hub import from_hub
from kd.text import shown, some

# The files by which `save_to_disk` of `datasets` marks a folder: of several splits, of one.
SAVED_SPLITS, SAVED = "dataset_dict.json", "state.json"

NO_PICTURE = "is no picture"


def load_source(config: DistillConfig, said: list[str]) -> dict[str, Any]:
    """Return the datasets of all splits by their own names; what was left out is added to ``said``."""
    if config.dataset == SAMPLE:
        return _load_parquet({name: [ASSETS / "sample" / f"{name}.parquet"] for name in SPLIT_NAMES})
    path = Path(os.path.expanduser(config.dataset))
    if path.is_dir():
        return _load_folder(path, config, said)
    if path.is_file():
        if path.name in METADATA:
            raise UserError(f"{path} is a table of labels. Name the folder that it is in, which has the pictures too.")
        if path.suffix != ".parquet":
            raise UserError(
                f"{path} is a {path.suffix or 'nameless'} file. Expected a parquet file or a folder of class folders."
            )
        return _load_parquet({"train": [path]})
    if path.parent.name == DATASETS:
        raise UserError(
            "The imported dataset is gone: it was deleted. Import the pictures again, then start a new run."
        )
    return _load_with_datasets(config.dataset, config, is_local=False)


def _load_folder(path: Path, config: DistillConfig, said: list[str]) -> dict[str, Any]:
    """Return the splits of a folder: its own parquet files, what `datasets` has written or describes, or images."""
    if (path / SAVED_SPLITS).is_file() or (path / SAVED).is_file():
        return _load_saved(path)
    tables = sorted(file for file in path.glob("*.parquet") if file.name not in METADATA)
    if _has_configurations(path):
        return _load_with_datasets(str(path), config, is_local=True)
    if tables:
        names = list(map(table_split, tables))
        if path.parent.name != DATASETS:  # an import has said it
            beside = [(file, why) for file, why in files_below(path) if file not in tables]
            _say_left_out(path, [(file, why or "lies beside parquet files") for file, why in beside], said)
        return _load_parquet({name: [f for f, n in zip(tables, names, strict=True) if n == name] for name in names})
    files = Files.of(path)
    if files.pictures:
        _say_left_out(path, files.rest, said)
        return _load_pictures(files, config, said)
    if any(file.suffix in (".parquet", ".arrow") for file, _ in files.rest):
        return _load_with_datasets(str(path), config, is_local=True)
    expected = "Expected a folder for each class, with pictures in it, or pictures without labels."
    if not files.rest and not files.tables:
        raise UserError(f"{path} is empty. {expected}")
    unused = [*files.rest, *((table, NO_PICTURE) for table in files.tables)]
    reasons = [f"{shown(str(file.relative_to(path)))} {why}" for file, why in unused]
    raise UserError(f"There are no pictures in {path}: {some(reasons, 3)}. {expected}")


def table_split(file: Path) -> str:
    """Return the split that a file of rows is part of: train of ``train-00000-of-00002.parquet``."""
    return file.stem.split("-")[0]


def _say_left_out(path: Path, files: Iterable[tuple[Path, str]], said: list[str]) -> None:
    """Add to ``said`` how many files were left out for each reason."""
    by_reason: dict[str, list[Path]] = {}
    for file, why in files:
        by_reason.setdefault(why, []).append(file.relative_to(path))
    for why, names in by_reason.items():
        said.append(f"{len(names)} left out, {shown(str(names[0]))} first: it {why}.")


# --- Tables


def _load_parquet(files: dict[str, list[Path]]) -> dict[str, Any]:
    """Return the rows of each split's files, without a copy in a cache."""
    import pyarrow
    from datasets import Dataset
    from pyarrow import parquet

    found = {}
    for name, parts in files.items():
        check_pointers(parts)
        try:
            found[name] = Dataset(pyarrow.concat_tables([parquet.read_table(part) for part in parts]))
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{some(parts)} could not be read as parquet: {error}") from error
    return found


def check_pointers(files: Iterable[Path]) -> None:
    """Raise ``UserError`` where a clone has only the pointers of Git LFS in place of the files."""
    for file in files:
        with file.open("rb") as opened:
            if opened.read(len(LFS)) == LFS:
                raise UserError(f"{file} is only a pointer of Git LFS. Get the files themselves with `git lfs pull`.")


def _has_configurations(path: Path) -> bool:
    """Return whether the folder is a clone from the Hub whose README says which files are which split."""
    import yaml
    from huggingface_hub import DatasetCard

    try:
        return bool(DatasetCard.load(path / "README.md").data.to_dict().get("configs"))
    except (OSError, ValueError, TypeError, yaml.YAMLError):  # no README, or one without the Hub's header
        return False


def _load_saved(path: Path) -> dict[str, Any]:
    """Return what `save_to_disk` has written, whatever tensors it was to give."""
    from datasets import Dataset, load_from_disk

    found = explained_files(path, lambda: load_from_disk(str(path)))
    found = {"train": found} if isinstance(found, Dataset) else found
    return {name: part.with_format(None) for name, part in found.items()}


def _load_with_datasets(name: str, config: DistillConfig, is_local: bool) -> dict[str, Any]:
    """Return the splits of a dataset of the Hub, or of a clone of one."""
    from datasets import load_dataset

    def load() -> dict[str, Any]:
        return dict(load_dataset(name, config.dataset_config))

    if not is_local:
        return from_hub("dataset", name, load)
    path = Path(name)
    check_pointers(file for file, why in files_below(path) if not why and file.suffix in (".parquet", ".arrow"))
    return explained_files(path, lambda: from_hub("dataset", name, load, is_local=True))


def explained_files(path: "Path | str", load: Any) -> Any:
    """Return what ``load`` does, with the errors of `datasets` about somebody's files in words."""
    import pyarrow
    import yaml
    from datasets.exceptions import DatasetsError

    files = (pyarrow.ArrowException, OSError, ValueError, TypeError, LookupError, DatasetsError, yaml.YAMLError)
    try:
        return load()
    except files as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{path} could not be read by the library `datasets`: {reason}") from error


# --- Pictures


@dataclass(frozen=True)
class Files:
    """The files below a folder: ``pictures``, ``tables`` of their labels, and the ``rest``, each with the reason."""

    path: Path
    pictures: list[Path]
    tables: list[Path]
    rest: list[tuple[Path, str]]

    @classmethod
    def of(cls, path: Path) -> "Files":
        found = cls(path, [], [], [])
        for file, why in files_below(path):
            if why:
                found.rest.append((file, why))
            elif file.name in METADATA:
                found.tables.append(file)
            elif is_picture(file):
                found.pictures.append(file)
            else:
                found.rest.append((file, NO_PICTURE))
        return found


def _load_pictures(found: Files, config: DistillConfig, said: list[str]) -> dict[str, Any]:
    """Return the splits of a folder of images, understood as an import understands it (``kd.data.folders``).

    Their labels are those of ``metadata.csv`` and the like, where there are any, else the names of their folders.
    """
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    path, files = found.path, found.pictures
    names = [file.relative_to(path).parts for file in files]
    plan = layout(names)
    columns: dict[str, Any] = {"image": ImageFeature()}
    tables = [file for file, why in files_below(path) if not why and file.name in METADATA]
    table = read_labels(
        {file.relative_to(path).parts: file.read_bytes() for file in tables}, names, config.label_column
    )
    said += table.said
    if table.labels:
        plan = with_labels(plan, names, table.labels)
        columns["label"] = Value("string")
    elif plan.classes:
        _check_empty_classes(found, plan)
        columns["label"] = ClassLabel(names=plan.classes)
    _say_left_out(path, [(files[index], why) for index, why in sorted(plan.skipped.items())], said)
    parts = {}
    for split in SPLIT_NAMES:
        rows = [(str(files[i]), label) for i, (where, label) in sorted(plan.places.items()) if where == split]
        values = {"image": [file for file, _ in rows], "label": [label for _, label in rows]}
        if rows:
            parts[split] = Dataset.from_dict({name: values[name] for name in columns}, features=Features(columns))
    return parts


def _check_empty_classes(found: Files, plan: Layout) -> None:
    """Raise ``UserError`` where a folder beside class folders has no image in it."""
    path, files = found.path, found.pictures
    homes = {
        path.joinpath(*parts[: parts.index(label)])
        for index, (_, label) in plan.places.items()
        if label and (parts := files[index].relative_to(path).parts)
    }
    full = {parent for file in files for parent in file.parents}
    loops = {entry for entry, _ in found.rest if entry.is_dir()}
    beside = [one for home in sorted(homes) for one in sorted(home.iterdir()) if one.is_dir()]
    if empty := [one for one in beside if one not in full | loops and not is_left_behind(one.name)]:
        raise UserError(
            f"No pictures in {some([one.name for one in empty])} (in {path}). Add some, or remove the folder."
        )
