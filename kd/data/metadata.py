"""Read the labels of images from a table beside them, by the convention of the `imagefolder` of `datasets`.

``metadata.csv``, ``metadata.jsonl`` or ``metadata.parquet`` has the columns ``file_name``, relative to the table, and
``label``. Unlike `datasets`, what is listed but missing, or there but not listed, is counted and told, and the words of a
csv file stay as they are.
"""

import io
import os
import unicodedata
from dataclasses import dataclass, field

from kd.data.folders import USUAL, Layout, Parts
from kd.data.images import LFS
from kd.data.labels import ONE_LABEL, label_name
from kd.errors import UserError
from kd.text import shown, some

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

# What the column of labels is usually called.
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label", "cls")


@dataclass
class Table:
    """The ``labels`` (``None`` for none) of images by their names, and what is to be ``said`` of their tables."""

    labels: dict[Parts, str | None] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


def read_labels(tables: dict[Parts, bytes], names: list[Parts], column: str | None = None) -> Table:
    """Return the labels that ``tables``, by their names, give to the images called ``names``.

    ``column`` holds them; by default the first with a usual name. Raises ``UserError`` for a table that cannot be read,
    that lists none of the images, or that gives two labels to one.
    """
    found, known, missing, used = Table(), {_normal(name): name for name in names}, [], []
    for place, data in tables.items():
        file, rows = "/".join(place), _columns("/".join(place), data)
        labels = column or next((name for name in LABEL_COLUMNS if name in rows), None)
        if "file_name" not in rows or labels not in rows:
            found.said.append(
                f"{file} is not used: it has the columns {some([shown(name) for name in rows])}. Expected file_name, and label or the column that "
                "--label-column names."
            )
            continue
        used.append(f"the column {labels!r} of {file}")
        for name, value in zip(rows["file_name"], rows[labels], strict=True):
            path, label = os.path.normpath("/".join((*place[:-1], str(name).replace("\\", "/")))), label_name(value)
            picture = known.get(_normal(tuple(path.split("/"))))
            if picture is None:
                missing.append(shown(str(name)))
            elif found.labels.setdefault(picture, label) != label:
                both = shown(f"{name}: {found.labels[picture]} and {label}")
                raise UserError(f"{file} gives two labels to {both}. {ONE_LABEL}")
    if missing and not found.labels:
        raise UserError(f"None of the pictures that are listed in {some(used)} is there: {some(missing)}.")
    if missing:
        found.said.append(
            f"{len(missing)} of the pictures that are listed are not there, {missing[0]} first: left out."
        )
    if found.labels:
        found.said.append(f"The labels are {some(used)}.")
    return found


def _normal(name: Parts) -> Parts:
    return tuple(unicodedata.normalize("NFC", part) for part in name)


def _columns(name: str, data: bytes) -> dict[str, list]:
    """Return the columns of a table; the cells of a csv file stay the words that they are."""
    import pandas

    if data.startswith(LFS):
        raise UserError(f"{name} is only a pointer of Git LFS. Get the file itself with `git lfs pull`.")
    try:
        if name.endswith(".csv"):
            table = pandas.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False, encoding="utf-8-sig")
        elif name.endswith(".jsonl"):
            table = pandas.read_json(io.BytesIO(data), lines=True, dtype=False)
        else:
            table = pandas.read_parquet(io.BytesIO(data))
    except (OSError, ValueError, AttributeError, TypeError) as error:  # lines of JSON may hold no objects
        raise UserError(f"{name} could not be read: {shown(str(error))}. Mend it, or remove it.") from error
    return {str(column).strip(): table[column].tolist() for column in table}


def with_labels(plan: Layout, names: list[Parts], labels: dict[Parts, str | None]) -> Layout:
    """Return a layout's splits with the labels of a table; images that it does not list are skipped."""
    has_splits = {split for split, _ in plan.places.values()} != {"train"}
    places: dict[int, tuple[str, str | None]] = {}
    skipped: dict[int, str] = {}
    for index, name in enumerate(names):
        named = next((USUAL[part.lower()] for part in name[:-1] if part.lower() in USUAL), None)
        split = named if has_splits else "train"
        if name not in labels:
            skipped[index] = "is not listed in the metadata"
        elif split is None:
            skipped[index] = "lies beside the folders train, validation and test"
        else:
            places[index] = split, labels[name]
    return Layout(places, skipped)
