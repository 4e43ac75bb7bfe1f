"""The points of a sweep: temperatures x lambdas x methods."""

import dataclasses
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

from kd.config import METHODS, DistillConfig, checked, public_name, setting

MOST_POINTS = 60

SWEPT = ("temperature", "lambda", "method", "baseline", "minutes")
"""The settings that a sweep decides itself."""


@dataclass(frozen=True)
class Point:
    """What a sweep varies."""

    temperature: float
    lambda_: float
    method: str

    def to_dict(self) -> dict[str, Any]:
        return {public_name(field): getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """That of a row of ``Sweep.points``, or of an event."""
        return cls(row["temperature"], row["lambda"], row["method"])

    def __str__(self) -> str:
        taught = f"{self.method}, T {self.temperature:g}, lambda {self.lambda_:g}"
        return taught if self.lambda_ else "lambda 0, labels alone"


@dataclass(frozen=True)
class Grid:
    """What is swept, and the time for it. Lists may be text with commas, as flags and text boxes deliver them. Raises
    ``ValueError``, in words for a user, on what is no grid."""

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
            check = several if "of" in field.metadata else checked
            object.__setattr__(self, field.name, check(field, getattr(self, field.name)))
        if not any(self.lambdas):
            raise ValueError("lambdas has 0 alone, which is no teacher. Add one above it, for example 0,0.5.")
        if (count := len(self.points())) > MOST_POINTS:
            raise ValueError(f"These are {count} points, and a sweep has {MOST_POINTS} at most. Shorten a list.")

    def point(self, temperature: float, lambda_: float, method: str) -> Point:
        """The point that stands for these: without the teacher, neither its temperature nor the method matters."""
        return Point(temperature, lambda_, method) if lambda_ else Point(self.temperatures[0], 0.0, self.methods[0])

    def points(self) -> list[Point]:
        """Each point once; of equals in all that is measured, the earlier is preferred."""
        every = product(self.methods, self.lambdas, self.temperatures)
        return list(dict.fromkeys(self.point(temperature, weight, method) for method, weight, temperature in every))


def several(field: dataclasses.Field, value: Any) -> tuple:
    """A list of values of the setting that a ``Grid``'s field is ``of``, each once, in their order."""
    one = next(f for f in dataclasses.fields(DistillConfig) if public_name(f) == field.metadata["of"])
    values = value.split(",") if isinstance(value, str) else list(value)
    try:
        found = [checked(one, item) for item in values]
    except ValueError:
        found = []
    if not found:
        expected, example = field.metadata["expected"], field.metadata["example"]
        given = value if isinstance(value, str) else ",".join(map(str, values))
        raise ValueError(
            f"{field.name} is {given!r}; expected {expected} separated by commas, for example {example}."
        ) from None
    return tuple(dict.fromkeys(found))
