"""What a sweep varies: temperatures x lambdas x methods; and which settings and grids can be swept."""

import dataclasses
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

from kd.config import METHODS, NO_TEACHER, SAMPLE, DistillConfig, checked, public_name, setting
from kd.data.library.store import dataset_classes

MOST_POINTS = 60

# The settings that a sweep decides itself.
SWEPT = ("temperature", "lambda", "method", "baseline", "minutes")


@dataclass(frozen=True)
class Point:
    """One combination of the settings that a sweep varies."""

    temperature: float
    lambda_: float
    method: str

    def to_dict(self) -> dict[str, Any]:
        return {public_name(field): getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """Return the point of a row of ``Sweep.points``, or of an event."""
        return cls(row["temperature"], row["lambda"], row["method"])

    def __str__(self) -> str:
        with_teacher = f"{self.method}, T {self.temperature:g}, lambda {self.lambda_:g}"
        return with_teacher if self.lambda_ else "lambda 0, labels alone"


@dataclass(frozen=True)
class Grid:
    """What is swept, and the time for it.

    Lists may be text with commas, as flags and text boxes deliver them. Raises ``ValueError``, with a message for the
    user, for values that make no grid.
    """

    temperatures: tuple[float, ...] = setting(
        "1,2,5,10", "temperatures to try", of="temperature", expected="numbers above 0", example="1,2,5"
    )
    lambdas: tuple[float, ...] = setting(
        "0,0.25,0.5,0.75,1", "weights of the teacher to try", of="lambda", expected="numbers from 0 to 1", example="0,0.5,1"
    )  # fmt: skip
    methods: tuple[str, ...] = setting(
        "kd", "losses to try", of="method", expected=f"some of {', '.join(METHODS)},", example="kd,dist"
    )
    budget_minutes: float | None = setting(
        None, "time for all of it, the last trials included; it sets the epochs (default: the settings' own)", above=0
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check = check_list if "of" in field.metadata else checked
            object.__setattr__(self, field.name, check(field, getattr(self, field.name)))
        if not any(self.lambdas):
            raise ValueError("lambdas has 0 alone, which is no teacher. Add one above it, for example 0,0.5.")
        if (count := len(self.points())) > MOST_POINTS:
            raise ValueError(f"These are {count} points, and a sweep has {MOST_POINTS} at most. Shorten a list.")

    def point(self, temperature: float, lambda_: float, method: str) -> Point:
        """Return the point for these values; at lambda 0, without the teacher, it is the same for all the others."""
        return Point(temperature, lambda_, method) if lambda_ else Point(self.temperatures[0], 0.0, self.methods[0])

    def points(self) -> list[Point]:
        """List each point once. Where two are equal in all that is measured, the earlier one ranks higher."""
        combinations = product(self.methods, self.lambdas, self.temperatures)
        return list(
            dict.fromkeys(self.point(temperature, weight, method) for method, weight, temperature in combinations)
        )


def check_list(field: dataclasses.Field, value: Any) -> tuple:
    """Check a list of values for one field of ``Grid``; return each of them once, in their order."""
    config_field = next(f for f in dataclasses.fields(DistillConfig) if public_name(f) == field.metadata["of"])
    values = value.split(",") if isinstance(value, str) else list(value)
    try:
        found = [checked(config_field, item) for item in values]
    except ValueError:
        found = []
    if not found:
        expected, example = field.metadata["expected"], field.metadata["example"]
        given = value if isinstance(value, str) else ",".join(map(str, values))
        raise ValueError(
            f"{field.name} is {given!r}; expected {expected} separated by commas, for example {example}."
        ) from None
    return tuple(dict.fromkeys(found))


def settings_of(config: DistillConfig, point: Point, epochs: int) -> dict[str, Any]:
    """Return the settings that a training of ``point`` changes in ``config``.

    A method has the weight of its paper, unless ``config`` has a weight of its own.
    """
    usual = {method: METHODS[method].get("weight", 1.0) for method in (config.method, point.method)}
    weight = usual[point.method] if config.weight == usual[config.method] else config.weight
    return {**point.to_dict(), "weight": weight, "epochs": epochs, "trials": 1, "baseline": "no"}


# --- What can be swept


def check_sweep(config: DistillConfig, grid: Grid) -> None:
    """Check whether ``config`` can be swept, as far as that is known without reading the images (see ``check_labels``).

    Raises ``ValueError`` with a message for the user.
    """
    if config.minutes is not None:
        raise ValueError("A sweep has no minutes for each training. Give epochs, or budget-minutes for all of it.")
    if config.seed + config.trials >= 2**32:
        raise ValueError(f"seed is {config.seed}; the winner needs {config.trials} above it. Take a smaller one.")
    if config.teacher == NO_TEACHER:
        raise ValueError("The teacher is none, and a sweep compares ways to learn from a teacher. Choose a teacher.")
    if (classes := dataset_classes(config.dataset)) is not None:
        check_classes(grid, classes)


def check_labels(config: DistillConfig, grid: Grid) -> str:
    """Check ``grid`` against the classes of the images; return ``dataset``, or ``teacher`` if they have no labels.

    Raises ``ValueError`` as ``check_classes`` does, and ``UserError`` as a run would.
    """
    classes = None if config.dataset == SAMPLE else dataset_classes(config.dataset)
    if config.dataset != SAMPLE and classes is None:
        from kd.data.splits import load_splits
        from kd.data.stream import open_source

        load = open_source if config.streaming == "yes" else load_splits
        classes = load(config).classes  # none where there are no labels
    if classes is not None:
        check_classes(grid, classes)
    return "teacher" if classes == [] else "dataset"


def check_classes(grid: Grid, classes: list[str]) -> None:
    """Raise ``ValueError``, before half of a grid is trained, if a part of it makes no sense for these classes."""
    if not classes:
        check_without_labels(grid)
    standardised = [method for method in grid.methods if method.endswith("+std")]
    if len(classes) == 2 and standardised:
        raise ValueError(
            f"methods has {', '.join(standardised)}, and the pictures have two classes, {' and '.join(classes)}: the standardised "
            "logits of two classes are always the same two numbers. Leave it out."
        )


def check_without_labels(grid: Grid) -> None:
    """Raise ``ValueError`` if a grid has another lambda than 1, which is what all are without labels."""
    if grid.lambdas != (1.0,):
        given = ",".join(f"{weight:g}" for weight in grid.lambdas)
        raise ValueError(
            f"The pictures have no labels, so a student learns from the teacher alone, and lambdas is {given}: 0, labels "
            "alone, would have nothing to learn from, and any other is trained as 1. Give 1 alone, or put each class's "
            "pictures into a folder of its own."
        )
