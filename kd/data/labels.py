"""Turn what people write as labels into the classes of a dataset: one name a picture, or none."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kd.data.folders import in_order
from kd.errors import UserError
from kd.text import some

ONE_LABEL = "More than one label a picture is not supported; name a column of single labels with --label-column."


def label_name(value: Any) -> str | None:
    """Return the class that a label names; ``None`` where it is none: nothing, -1, not a number, or an empty word.

    Raises ``UserError`` for a list of labels.
    """
    if isinstance(value, list | tuple | set | dict | np.ndarray):
        raise UserError(f"A label is {value!r}. {ONE_LABEL}")
    if isinstance(value, float) and (math.isnan(value) or value.is_integer()):
        value = None if math.isnan(value) else int(value)
    name = "" if value is None else str(value).strip()
    return None if name in ("", "-1") else name


def is_list(feature: Any) -> bool:
    """Return whether a column of `datasets` holds more than one plain value in each row: lists, tables, images."""
    from datasets import ClassLabel, Value

    return not isinstance(feature, ClassLabel | Value)


def named_labels(dataset: Any, split: str) -> list[str | None]:
    """Return the class that each row of the column ``label`` names. Raises ``UserError`` where a row has several."""
    from datasets import ClassLabel

    feature = dataset.features["label"]
    if is_list(feature):
        raise UserError(
            f"The column of labels of the {split} split holds {feature}, not one label for each picture. {ONE_LABEL}"
        )
    if not isinstance(feature, ClassLabel):
        return [label_name(value) for value in dataset["label"][:]]
    names = [label_name(name) for name in feature.names]
    return [None if value is None or value < 0 else names[value] for value in dataset["label"][:]]


def class_names(dataset: Any, labels: Iterable[str | None]) -> list[str]:
    """Return the classes of the training images: those that the column lists, else those that occur."""
    from datasets import ClassLabel

    feature = dataset.features["label"]
    if isinstance(feature, ClassLabel):
        return [name for name in map(label_name, feature.names) if name is not None]
    return in_order({name for name in labels if name is not None})


def with_classes(dataset: Any, labels: Sequence[str | None], classes: list[str], split: str) -> Any:
    """Return a dataset whose column ``label`` holds indices of ``classes``, -1 where there is no label.

    Raises ``UserError`` for labels that are no class of the training images.
    """
    from datasets import ClassLabel

    index: dict[str | None, int] = {None: -1} | {name: nth for nth, name in enumerate(classes)}
    if unknown := in_order({name for name in labels if name is not None} - set(classes)):
        raise UserError(
            f"The {split} split has pictures of {some(unknown)}, but train has only the classes {some(classes)}. Add training "
            "pictures of it, or remove the class."
        )
    column = [index[name] for name in labels]
    feature = dataset.features["label"]
    if isinstance(feature, ClassLabel) and feature.names == classes and column == dataset["label"][:]:
        return dataset
    dataset = dataset.remove_columns("label").add_column("label", column)
    return dataset.cast_column("label", ClassLabel(names=classes))
