"""What a label is worth: a study's accuracy against the number of labels, with the teacher and without it, as a figure."""

import statistics
from typing import Any

import numpy as np
import plotly.graph_objects as go

from kd.errors import UserError
from kd.evaluation.significance import verdict
from kd.experiments.study import Study, current_results, right_of

# Whose answers were learned, and the colour of its curve.
TEACHER, ALONE = ("with the teacher", "#c2661f"), ("labels alone", "#3b82c4")

Rows = dict[int, dict[str, Any]]  # seed -> result


def label_rows(study: Study) -> dict[bool, dict[int | None, Rows]]:
    """Return a study's results by whether the teacher was asked, then by the number of labels (``None`` for all, last).

    Raises ``UserError`` where the study has no results of both kinds.
    """
    found: dict[bool, dict[int | None, Rows]] = {True: {}, False: {}}
    for row in current_results(study):
        settings = row["settings"]
        taught = settings["lambda"] > 0 and settings["teacher"] != "none"
        found[taught].setdefault(settings.get("labels"), {})[row["seed"]] = row
    if not all(found.values()):
        raise UserError(
            f"{study.results} has no results both with the teacher and without it (lambda 0), so there is nothing to draw."
        )
    return {taught: dict(sorted(by.items(), key=lambda one: one[0] or np.inf)) for taught, by in found.items()}


def sentence(rows: dict[bool, dict[int | None, Rows]]) -> str:
    """Say how many labels alone do as well as the fewest with the teacher: the first number that is not shown to be worse."""
    fewest, taught = next(iter(rows[True].items()))
    begin = f"With the teacher, {_words(fewest)} do"
    for labels, alone in rows[False].items():
        both = sorted(taught.keys() & alone.keys())
        found = verdict(*(np.stack([right_of(side[seed]) for seed in both]) for side in (taught, alone)))
        if found["answer"] != "helps":
            return f"{begin} as well as {_words(labels)} without it."
    return f"{begin} better than {_words(labels)} without it."


def _words(labels: int | None) -> str:
    return "all labels" if labels is None else f"{labels:,} labels"


def label_figure(study: Study) -> go.Figure:
    """Draw the mean test accuracy over seeds, with its standard deviation, against the number of labels.

    With lambda 1 no label is used, so one number of labels stands for all: it is drawn as a level line.
    """
    rows = label_rows(study)
    figure = go.Figure()
    names = ["all" if n is None else f"{n:,}" for n in sorted({*rows[False], *rows[True]}, key=lambda n: n or np.inf)]
    for (name, colour), by in ((TEACHER, rows[True]), (ALONE, rows[False])):
        scores = [[row["accuracy"] for row in seeds.values()] for seeds in by.values()]
        x = ["all" if labels is None else f"{labels:,}" for labels in by]
        if len(by) == 1 and all(row["settings"]["lambda"] == 1 for seeds in by.values() for row in seeds.values()):
            x, scores, name = names, scores * len(names), f"{name} (it needs no label)"
        figure.add_scatter(
            x=x,
            y=[statistics.mean(one) for one in scores],
            error_y={"array": [statistics.stdev(one) if len(one) > 1 else 0 for one in scores]},
            name=name, mode="lines+markers", line={"color": colour, "width": 2.5}, marker={"size": 8},
        )  # fmt: skip
    figure.update_layout(
        title={"text": sentence(rows), "font": {"size": 15}}, template="plotly_white", width=820, height=380,
        xaxis={"title": "training pictures with a label", "type": "category", "categoryorder": "array", "categoryarray": names},
        yaxis={"title": "test accuracy", "tickformat": ".0%"}, legend={"x": 0.98, "xanchor": "right", "y": 0.06},
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
    )  # fmt: skip
    return figure
