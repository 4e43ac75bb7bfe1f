"""Plotly figures: the curves of runs, and still figures of where teacher and student differ.

The page's script starts from ``training_figures`` and appends the ``new_points`` of later events to them.
"""

import html
import math
from typing import Any

import plotly.graph_objects as go

from kd.config import NO_TEACHER, DistillConfig
from kd.runs.run import Run, events_by_trial

# Readable on white and on near-black. Blue is for what was trained without the teacher.
COPPER, TEAL, VIOLET, BLUE, GREY = "#c2661f", "#0d9488", "#8268d8", "#3b82c4", "#8a8f98"

# The colours of several runs in one figure; from the ninth run on they are repeated with dashed lines.
CYCLE = (COPPER, TEAL, VIOLET, BLUE, "#c0497f", "#7a8c1e", "#b38600", "#5b6b7b")

# Field of a ``step`` event -> its line
LOSSES = {
    "total": {"color": COPPER, "width": 2.5},
    "soft": {"color": TEAL, "width": 1.5, "dash": "dot"},
    "hard": {"color": VIOLET, "width": 1.5, "dash": "dash"},
}

# Field of an ``eval`` event -> its name in the figure, its line
ACCURACIES = {
    "accuracy": ("student", {"color": COPPER, "width": 2.5}),
    "agreement": ("agreement", {"color": TEAL, "width": 1.5, "dash": "dot"}),
}

# A legend below the axis, for more names than fit above the figure
LEGEND_BELOW = {"legend": {"y": -0.24, "yanchor": "top"}, "margin": {"t": 40}}

# A curve that is drawn at once has about this many points at most; a screen shows no more.
MOST_POINTS = 2000

# At most so many classes are drawn: those on which the student lost most.
MOST_CLASSES = 30

# A confusion matrix of more classes has no room for numbers in its cells.
MOST_NUMBERED = 12

LONGEST_NAME = 20


def points(events: list[dict[str, Any]]) -> dict[str, dict[str, list]]:
    """Return the points of one training in the figures ``losses`` and ``accuracy``: ``x`` (epochs), and a list for each field."""
    steps = [e for e in events if e["event"] == "step"]
    evals = [e for e in events if e["event"] == "eval"]
    return {
        "losses": {"x": [e["epoch"] for e in steps], **{name: [e[name] for e in steps] for name in LOSSES}},
        "accuracy": {"x": [e["epoch"] for e in evals], **{name: [e.get(name) for e in evals] for name in ACCURACIES}},
    }


def new_points(events: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, list]]]:
    """Return the ``points`` of new events by the name of their trial (``trial_name``)."""
    trials: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["event"] in ("step", "eval"):
            trials.setdefault(trial_name((event["seed"], event["arm"])), []).append(event)
    return {
        name: {figure: values for figure, values in points(some).items() if values["x"]}
        for name, some in trials.items()
    }


def trial_name(trial: tuple[int, str]) -> str:
    """Return the name by which the page's script finds the traces of a trial (seed, arm): "0 distilled"."""
    return f"{trial[0]} {trial[1]}"


def training_figures(events: list[dict[str, Any]], epochs: float | None = None) -> dict[str, go.Figure]:
    """Draw the curves of a run: ``losses`` (total, soft, hard) and ``accuracy`` (the student on validation, its agreement
    with the teacher, the teacher's accuracy as a level line; for images without labels the agreement alone).

    ``epochs`` is where the axis ends: the run's epochs while it trains, ``None`` for a closed run, to end where the curves
    do. The first traces are those of the student that is trained, and in a closed run of the one that was kept. The other
    trainings, such as the baseline, follow as thin lines. Each trace that grows has its trial and its field in ``meta``: the
    page's script appends to it whichever of them has new points.
    """
    trials = main_first(events, bool(epochs)) or {(0, "distilled"): []}
    (main_trial, main_events), *rest = trials.items()
    main, others = points(main_events), [(key, points(part)) for key, part in rest]
    end = epochs or max([1, *(x for part in (main, *(part for _, part in others)) for x in part["losses"]["x"])])
    labelled = not labelled_by_teacher(events)
    title = "Accuracy on validation" if labelled else "Agreement with the teacher on validation"
    losses, accuracy = _figure("Losses", end), _figure(title, end, percent=True)
    has_teacher = not any(e["event"] == "models" and e["teacher"] is None for e in events)
    for field, line in LOSSES.items():
        losses.add_scatter(
            **_trace(main_trial, main["losses"], field), name=field, mode="lines", line=line,
            visible=field == "hard" or has_teacher,
        )  # fmt: skip
    for field, (label, line) in ACCURACIES.items():
        accuracy.add_scatter(
            **_trace(main_trial, main["accuracy"], field), name=label, mode="lines+markers", line=line,
            visible=has_teacher if field == "agreement" else labelled,
        )  # fmt: skip
    _add_other_trials(losses, accuracy, others, several=len({seed for seed, _ in trials}) > 1)
    level = next((e.get("accuracy") for e in reversed(events) if e["event"] == "teacher"), None)
    if level is not None:
        line = {"color": GREY, "width": 1.5, "dash": "longdash"}
        accuracy.add_scatter(x=[0, end], y=[level, level], name="teacher", mode="lines", line=line)
    if others:
        for figure in (losses, accuracy):
            figure.update_layout(**LEGEND_BELOW, height=350)
    return {"losses": losses, "accuracy": accuracy}


def _add_other_trials(
    losses: go.Figure, accuracy: go.Figure, others: list[tuple[tuple[int, str], dict]], several: bool
) -> None:
    """Add the trials (seed, name) that are not the main one, as thin lines: hard loss and accuracy. ``several``: there are
    several seeds."""
    named: set[str] = set()
    for (seed, trial), part in others:
        name = "no teacher" if trial == "baseline" else "other seeds" if several else "student"
        line = {"color": COPPER if trial == "distilled" else BLUE, "width": 1.5 if several else 2}
        group = {"legendgroup": name, "showlegend": name not in named}  # one entry for all its seeds
        if several:
            group["hovertemplate"] = f"%{{y}} (seed {seed})"
        named.add(name)
        losses.add_scatter(
            **_trace((seed, trial), part["losses"], "hard"), **group, name=f"hard, {name}", mode="lines",
            line={**line, "dash": "dash"},
        )  # fmt: skip
        accuracy.add_scatter(
            **_trace((seed, trial), part["accuracy"], "accuracy"), **group, name=name, mode="lines+markers",
            line=line, marker={"size": 4},
        )  # fmt: skip


def _trace(trial: tuple[int, str], values: dict[str, list], field: str) -> dict[str, Any]:
    """Return the points of a trace, and whose they are."""
    return {**thin(values["x"], values[field]), "meta": {"trial": trial_name(trial), "field": field}}


def main_first(events: list[dict[str, Any]], goes_on: bool = False) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Return ``events_by_trial`` with the main trial first: the one whose student was kept, or, while a run goes on, the last
    that has begun of those that learn from the teacher. Its baseline may have begun before it."""
    trials = events_by_trial(events)
    kept = next((e["seed"] for e in reversed(events) if e["event"] == "arm" and e["kept"]), None)
    students = [trial for trial in trials if trial[1] == "distilled"]
    main = students[-1] if goes_on and students else (kept, "distilled")
    return dict(sorted(trials.items(), key=lambda item: (item[0] != main, item[0] not in students)))


def labelled_by_teacher(events: list[dict[str, Any]]) -> bool:
    """Tell whether the teacher's answers took the place of labels, and agreement that of accuracy."""
    return any(e["event"] == "data" and e["labels"] == "teacher" for e in events)


def overlay_figures(chosen: list[Run]) -> dict[str, go.Figure]:
    """Draw several runs, a colour each: ``losses`` (total) and ``accuracy`` (student on validation)."""
    losses, accuracy = _figure("Total loss"), _figure("Accuracy on validation", percent=True)
    for nth, run in enumerate(chosen):
        events = run.events()
        drawn = points(next(iter(main_first(events).values()), []))
        line = {"color": CYCLE[nth % len(CYCLE)], "width": 2, "dash": "solid" if nth < len(CYCLE) else "dash"}
        losses.add_scatter(
            **thin(drawn["losses"]["x"], drawn["losses"]["total"]), name=name_of(run), mode="lines", line=line
        )
        accuracy.add_scatter(
            **thin(drawn["accuracy"]["x"], drawn["accuracy"]["accuracy"]),
            name=f"{name_of(run)}, agreement" if labelled_by_teacher(events) else name_of(run),
            mode="lines+markers",
            line=line,
        )
    for figure in (losses, accuracy):  # the names are long: below the axis, a line each
        figure.update_layout(**LEGEND_BELOW, height=300 + 20 * len(chosen))
    return {"losses": losses, "accuracy": accuracy}


def name_of(run: Run) -> str:
    """Return the name of a run's curve: "mobilenet_v2_0.35 T 5 λ 0.5 (3f9a)"."""
    config: DistillConfig = run.config()
    student = plain(config.student.rstrip("/").rsplit("/", 1)[-1])
    labels = f", {config.labels:,} labels" if config.labels else ""
    called = run.name() or (run.id[-4:] if "-" in run.id else run.id)
    if config.teacher == NO_TEACHER:
        return f"{student}, labels alone{labels} ({called})"
    return f"{student} T {config.temperature:g} λ {run.lambda_():g}{labels} ({called})"


def thin(x: list[float], y: list[float]) -> dict[str, list[float]]:
    """Return ``x`` and ``y``, of a long curve only every k-th point, the last one always among them."""
    every = math.ceil(len(x) / MOST_POINTS) or 1
    return {"x": x[::-1][::every][::-1], "y": y[::-1][::every][::-1]}


# --- Still figures: where teacher and student differ


def analysis_figures(found: dict[str, Any]) -> dict[str, go.Figure]:
    """Draw what ``kd.evaluation.disagreement.analyse`` found: ``f1``, ``confusion_teacher``, ``confusion_student`` and
    ``reliability``; without labels ``confusion_student`` alone, against the teacher's answers."""
    worst = worst_classes(found)
    if found["labels"] == "teacher":
        return {"confusion_student": confusion(found, "student", sorted(worst), truth="teacher")}
    return {
        "f1": class_bars(found, worst),
        **{f"confusion_{side}": confusion(found, side, sorted(worst)) for side in ("teacher", "student")},
        "reliability": reliability(found),
    }


def worst_classes(found: dict[str, Any]) -> list[int]:
    """Return the classes to draw: those whose F1 fell most from teacher to student, the worst first."""
    lost = [t - s for t, s in zip(found["teacher"]["f1"], found["student"]["f1"], strict=True)]
    return sorted(range(len(lost)), key=lambda index: -lost[index])[:MOST_CLASSES]


def class_bars(found: dict[str, Any], shown: list[int]) -> go.Figure:
    """Draw the F1 of each class, the teacher's bar above the student's, the class that lost most on top."""
    names = labels([found["classes"][index] for index in shown])
    figure = _still("F1 of each class", 110 + 32 * len(shown), "F1", "")
    for side, colour in (("teacher", GREY), ("student", COPPER)):
        figure.add_bar(
            y=names, x=[found[side]["f1"][index] for index in shown], name=side, orientation="h",
            marker={"color": colour}, hovertemplate="%{y}: %{x:.1%}",
        )  # fmt: skip
    figure.update_layout(
        bargap=0.3, bargroupgap=0.06,
        xaxis={"range": [0, 1.005], "tickformat": ".0%", "dtick": 0.25},
        yaxis={"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False},
    )  # fmt: skip
    return figure


def confusion(found: dict[str, Any], side: str, shown: list[int], truth: str = "truth") -> go.Figure:
    """Draw a model's confusion matrix: right answers in teal, wrong ones in copper, by their share of the class. The same
    colour means the same share for both models."""
    names = labels([found["classes"][index] for index in shown])
    counts, shares = _counts_and_shares(found, side, shown)
    others = [_counts_and_shares(found, name, shown)[1] for name in ("teacher", "student")]
    most = max([0.05, *(s for rows in others for i, row in enumerate(rows) for j, s in enumerate(row) if i != j)])
    figure = _still(side.capitalize(), 150 + max(220, 26 * len(shown)), "answer", truth)
    for colour, top, right in ((TEAL, 1.0, True), (COPPER, most, False)):
        figure.add_heatmap(
            x=names, y=names, zmin=0, zmax=top, showscale=False, xgap=1, ygap=1, hoverongaps=False,
            z=[[share if (i == j) == right else None for j, share in enumerate(row)] for i, row in enumerate(shares)],
            customdata=counts, colorscale=[[0, _faint(colour, 0)], [1, _faint(colour, 0.75)]],
            hovertemplate="%{y} taken for %{x}:<br>%{customdata} pictures, %{z:.1%} of the class<extra></extra>",
        )  # fmt: skip
    if len(shown) <= MOST_NUMBERED:  # as text of its own, so that it has the theme's colour
        figure.add_scatter(
            x=names * len(names), y=[name for name in names for _ in names], mode="text", textfont={"size": 10},
            text=[str(count) if count else "" for row in counts for count in row], hoverinfo="skip",
        )  # fmt: skip
    figure.update_layout(
        showlegend=False,
        margin={"t": 44},
        xaxis={"type": "category", "automargin": True, "showgrid": False, "tickangle": -45},
        yaxis={"type": "category", "automargin": True, "showgrid": False, "autorange": "reversed"},
    )
    return figure


def reliability(found: dict[str, Any]) -> go.Figure:
    """Draw how often each model is right against how sure it is; the diagonal is a model that is as sure as it is right."""
    figure = _still("Sure and right", 340, "how sure", "how often right")
    line = {"color": GREY, "width": 1, "dash": "dot"}
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="as sure as right", line=line, hoverinfo="skip", showlegend=False
    )
    for side, colour, dash in (("teacher", GREY, "longdash"), ("student", COPPER, "solid")):
        sure = found[side]["calibration"]
        bins = [b for b in zip(sure["confidence"], sure["accuracy"], sure["count"], strict=True) if b[2]]
        largest = max(count for *_, count in bins)
        figure.add_scatter(
            x=[b[0] for b in bins], y=[b[1] for b in bins], customdata=[b[2] for b in bins], mode="lines+markers",
            name=f"{side}, ECE {sure['ece']:.1%}", line={"color": colour, "width": 2, "dash": dash},
            marker={"size": [5 + 11 * math.sqrt(b[2] / largest) for b in bins]},
            hovertemplate="%{x:.0%} sure, %{y:.0%} right, %{customdata} pictures",
        )  # fmt: skip
    ends = {"range": [0, 1.05], "tickformat": ".0%"}
    figure.update_layout(xaxis=ends, yaxis=ends, hovermode="closest")
    return figure


def _counts_and_shares(found: dict[str, Any], side: str, shown: list[int]) -> tuple[list[list[int]], list[list[float]]]:
    """Return the chosen rows and columns of a confusion matrix, and the same as shares of all images of the class."""
    matrix = found[side]["confusion"]
    counts = [[matrix[i][j] for j in shown] for i in shown]
    return counts, [[count / (sum(matrix[i]) or 1) for count in row] for i, row in zip(shown, counts, strict=True)]


def _faint(colour: str, opacity: float) -> str:
    """Return a colour that lets the background through."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def plain(text: str) -> str:
    """Return text that Plotly shows as it is: it reads a few HTML tags and entities in names, but no escaped quotes."""
    return html.escape(text, quote=False)


def labels(classes: list[str]) -> list[str]:
    """Return class names that are short, different from each other, and shown by Plotly as they are."""
    found: list[str] = []
    for name in classes:
        name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        again = sum(other == name for other in found)
        found.append(f"{name} ({again + 1})" if again else name)
    return [plain(name) for name in found]


# --- What all figures share


def _figure(title: str, end: float | None = None, percent: bool = False) -> go.Figure:
    """Return an empty figure over epochs."""
    return go.Figure(
        layout={
            **_layout(title, 300),
            "xaxis": {"title": {"text": "epoch", "standoff": 8}, **({"range": [0, end]} if end else {"rangemode": "tozero"})},
            "yaxis": {"minallowed": 0, **({"tickformat": ".0%", "maxallowed": 1.02} if percent else {"tickformat": "~g"})},
            "hovermode": "x unified",
            "uirevision": "kept",
        }
    )  # fmt: skip


def _still(title: str, height: int, x: str, y: str) -> go.Figure:
    """Return an empty figure that cannot be zoomed, so that a finger on it scrolls the page."""
    axes = {"xaxis": x, "yaxis": y}
    return go.Figure(
        layout={
            **_layout(title, height),
            **{axis: {"title": {"text": name, "standoff": 8}, "fixedrange": True} for axis, name in axes.items()},
            "margin": {"l": 52, "r": 26, "t": 68, "b": 40},
            "dragmode": False,
        }
    )


def _layout(title: str, height: int) -> dict[str, Any]:
    """Return the layout of all figures. It has no background and no font colour: the page sets those of its theme."""
    return {
        "title": {"text": title, "x": 0, "xref": "container", "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"l": 8, "t": 8}, "font": {"size": 15}},
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 52, "r": 12, "t": 68, "b": 40},
        "height": height,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "font": {"size": 11}},
        "showlegend": True,
    }  # fmt: skip
