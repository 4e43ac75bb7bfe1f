"""Events -> Plotly figures. The page's script starts from ``figures`` and appends ``points`` to them."""

import math
from typing import Any

import plotly.graph_objects as go

from kd.config import DistillConfig
from kd.runs import Run

COPPER, TEAL, VIOLET, GREY = "#c2661f", "#0d9488", "#8268d8", "#8a8f98"
"""Readable on white and on near-black."""
CYCLE = (COPPER, TEAL, VIOLET, "#3b82c4", "#c0497f", "#7a8c1e", "#b38600", "#5b6b7b")
"""Colours of runs that are overlaid; the ninth run begins again, with dashes."""
LOSSES = {
    "total": {"color": COPPER, "width": 2.5},
    "soft": {"color": TEAL, "width": 1.5, "dash": "dot"},
    "hard": {"color": VIOLET, "width": 1.5, "dash": "dash"},
}
ACCURACIES = {
    "accuracy": ("student", {"color": COPPER, "width": 2.5}),
    "agreement": ("agreement", {"color": TEAL, "width": 1.5, "dash": "dot"}),
}
MOST_POINTS = 2000
"""A curve that is drawn at once has about this many points at most; a screen shows no more."""


def surviving(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events without the steps that a resume took back: it goes on from a checkpoint, ``training``'s ``step``."""
    kept: list[dict[str, Any]] = []
    for event in events:
        if event["event"] == "training":
            kept = [e for e in kept if e["event"] not in ("step", "eval") or e["step"] <= event["step"]]
        kept.append(event)
    return kept


def points(events: list[dict[str, Any]]) -> dict[str, dict[str, list]]:
    """``losses`` and ``accuracy``, each ``x`` (epochs) and ``y`` (a list for each trace): what is to be appended."""
    steps = [e for e in events if e["event"] == "step"]
    evals = [e for e in events if e["event"] == "eval"]
    return {
        "losses": {"x": [e["epoch"] for e in steps], "y": [[e[name] for e in steps] for name in LOSSES]},
        "accuracy": {"x": [e["epoch"] for e in evals], "y": [[e[name] for e in evals] for name in ACCURACIES]},
    }


def figures(events: list[dict[str, Any]], epochs: float | None = None) -> dict[str, go.Figure]:
    """``losses`` (total, soft, hard) and ``accuracy`` (student on validation, agreement, the teacher as a level line).

    ``epochs`` is where the axis ends: the epochs to come while a run trains, ``None`` for as far as it came.
    """
    drawn = points(surviving(events))
    end = epochs or max([1, *drawn["losses"]["x"], *drawn["accuracy"]["x"]])
    losses = _figure("Losses", end)
    for (name, line), values in zip(LOSSES.items(), drawn["losses"]["y"], strict=True):
        losses.add_scatter(**thin(drawn["losses"]["x"], values), name=name, mode="lines", line=line)
    accuracy = _figure("Accuracy on validation", end, percent=True)
    for (label, line), values in zip(ACCURACIES.values(), drawn["accuracy"]["y"], strict=True):
        accuracy.add_scatter(**thin(drawn["accuracy"]["x"], values), name=label, mode="lines+markers", line=line)
    level = next((e["accuracy"] for e in reversed(events) if e["event"] == "teacher"), None)
    if level is not None:
        line = {"color": GREY, "width": 1.5, "dash": "longdash"}
        accuracy.add_scatter(x=[0, end], y=[level, level], name="teacher", mode="lines", line=line)
    return {"losses": losses, "accuracy": accuracy}


def overlay(runs: list[Run]) -> dict[str, go.Figure]:
    """``losses`` (total) and ``accuracy`` (student on validation) of several runs, a colour each."""
    losses, accuracy = _figure("Total loss"), _figure("Accuracy on validation", percent=True)
    for nth, run in enumerate(runs):
        drawn = points(surviving(run.events()))
        line = {"color": CYCLE[nth % len(CYCLE)], "width": 2, "dash": "solid" if nth < len(CYCLE) else "dash"}
        losses.add_scatter(
            **thin(drawn["losses"]["x"], drawn["losses"]["y"][0]), name=name_of(run), mode="lines", line=line
        )
        accuracy.add_scatter(
            **thin(drawn["accuracy"]["x"], drawn["accuracy"]["y"][0]),
            name=name_of(run),
            mode="lines+markers",
            line=line,
        )
    for figure in (losses, accuracy):  # the names are long: below the axis, a line each
        figure.update_layout(height=300 + 20 * len(runs), legend={"y": -0.24, "yanchor": "top"}, margin={"t": 40})
    return {"losses": losses, "accuracy": accuracy}


def name_of(run: Run) -> str:
    """What a curve is called: "mobilenet_v2_0.35 T 5 λ 0.5 (3f9a)"."""
    config: DistillConfig = run.config()
    student = config.student.rstrip("/").rsplit("/", 1)[-1]
    return f"{student} T {config.temperature:g} λ {config.lambda_:g} ({run.id[-4:]})"


def thin(x: list[float], y: list[float]) -> dict[str, list[float]]:
    """``x`` and ``y``, every k-th point of a long curve, its last one always."""
    every = math.ceil(len(x) / MOST_POINTS) or 1
    return {"x": x[::-1][::every][::-1], "y": y[::-1][::every][::-1]}


def _figure(title: str, end: float | None = None, percent: bool = False) -> go.Figure:
    """An empty figure over epochs. It has no background and no font colour: the page gives it those of its theme."""
    return go.Figure(
        layout={
            "title": {"text": title, "x": 0, "xref": "container", "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"l": 8, "t": 8}, "font": {"size": 15}},
            "template": "none",
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 52, "r": 12, "t": 68, "b": 40},
            "height": 300,
            "xaxis": {"title": {"text": "epoch", "standoff": 8}, **({"range": [0, end]} if end else {"rangemode": "tozero"})},
            "yaxis": {"tickformat": ".0%", "autorangeoptions": {"clipmin": 0, "clipmax": 1.02}} if percent else {"tickformat": "~g"},
            "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "font": {"size": 11}},
            "hovermode": "x unified",
            "showlegend": True,
            "uirevision": "kept",
        }
    )  # fmt: skip
