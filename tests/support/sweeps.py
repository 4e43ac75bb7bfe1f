"""Sweeps that are written by hand."""

from kd.config import DistillConfig
from kd.experiments.grid import Grid, Point
from kd.experiments.sweep import Sweep, create_sweep

KD, DIST = Point(2.0, 0.5, "kd"), Point(2.0, 0.5, "dist")


def make_sweep(folder, grid: Grid | None = None, **settings) -> Sweep:
    return create_sweep(DistillConfig(**settings), grid or Grid("1,2", "0,0.5"), folder, "t")


def tell_point(one: Sweep, point: Point, epochs: int, accuracy: float | None, agreement: float = 0.5) -> None:
    """The event of a training that has ended."""
    one.append(
        "point", **point.to_dict(), epochs=epochs, run=f"{point}/{epochs}", accuracy=accuracy,
        agreement=None if accuracy is None else agreement, diverged=accuracy is None, seconds=1.0,
    )  # fmt: skip
