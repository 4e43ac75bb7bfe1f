"""The results of a sweep as tables."""

from typing import Any

from kd.experiments.grid import Point
from kd.experiments.halving import ranking
from kd.experiments.sweep import Sweep

# Whose labels are learned (``Sweep.labels``) -> what a heat map shows.
MEASURED = {"dataset": "Accuracy", "teacher": "Agreement with the teacher"}


def heat_maps(sweep: Sweep) -> list[list[list[str]]]:
    """Return a table for each method, the head first: a row for each lambda, a column for each temperature.

    A cell has the accuracy on validation of the point's longest training and, in brackets, its epochs. The winner has a
    star.
    """
    grid, rows = sweep.grid(), sweep.points()
    best = next(iter(ranking(rows)), None) if sweep.last("done") else None
    cells = {Point.of(row): _cell(row, row is best) for row in rows}

    def table(method: str) -> list[list[str]]:
        head = [method, *(f"T {temperature:g}" for temperature in grid.temperatures)]
        return [head] + [
            [f"lambda {weight:g}", *(cells[grid.point(t, weight, method)] for t in grid.temperatures)]
            for weight in grid.lambdas
        ]

    return [table(method) for method in grid.methods]


def _cell(row: dict[str, Any], is_best: bool) -> str:
    if row["rung"] is None:
        return "..." if row["now"] else "-"
    figure = "diverged" if row["diverged"] else f"{row['accuracy']:.1%}"
    return f"{figure} ({row['epochs']}){'*' if is_best else ''}"


def legend(sweep: Sweep) -> str:
    """Say what the cells of a heat map mean."""
    words = f"{MEASURED[sweep.labels()]} on validation (epochs of the longest training); * the winner."
    if 0 in sweep.grid().lambdas:
        words += " At lambda 0 neither T nor the method matters: one training stands for all."
    return words
