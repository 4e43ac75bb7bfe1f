"""Events -> Plotly figures. The page's script starts from ``figures`` and appends ``points`` to them; ``analysis`` are
still ones, of a run that is done."""

import html
import math
from typing import Any

import plotly.graph_objects as go

from kd.config import NO_TEACHER, DistillConfig
from kd.runs.run import Run, events_by_trial

COPPER, TEAL, VIOLET, BLUE, GREY = "#c2661f", "#0d9488", "#8268d8", "#3b82c4", "#8a8f98"
"""Readable on white and on near-black. Blue is what learned without a teacher."""

CYCLE = (COPPER, TEAL, VIOLET, BLUE, "#c0497f", "#7a8c1e", "#b38600", "#5b6b7b")
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

NAMES_BELOW = {"legend": {"y": -0.24, "yanchor": "top"}, "margin": {"t": 40}}

MOST_POINTS = 2000
"""A curve that is drawn at once has about this many points at most; a screen shows no more."""

MOST_CLASSES = 30
"""So many classes are drawn at most: those on which the student is worst."""

MOST_NUMBERED = 12
"""Up to so many classes a confusion matrix has room for figures."""

LONGEST_NAME = 20


def points(events: list[dict[str, Any]]) -> dict[str, dict[str, list]]:
    """``losses`` and ``accuracy``, each ``x`` (epochs) and ``y`` (a list for each trace): what is to be appended."""
    steps = [e for e in events if e["event"] == "step"]
    evals = [e for e in events if e["event"] == "eval"]
    return {
        "losses": {"x": [e["epoch"] for e in steps], "y": [[e[name] for e in steps] for name in LOSSES]},
        "accuracy": {"x": [e["epoch"] for e in evals], "y": [[e.get(name) for e in evals] for name in ACCURACIES]},
    }


def training_figures(events: list[dict[str, Any]], epochs: float | None = None) -> dict[str, go.Figure]:
    """``losses`` (total, soft, hard) and ``accuracy`` (student on validation, agreement, the teacher as a level line; of
    pictures without labels the agreement alone).

    ``epochs`` is where the axis ends: the epochs to come while a run trains, ``None``, for as far as it came, once it is
    closed. While it trains, the training that goes on comes first in each figure, since what is appended goes there; of
    a closed run, the run's own student. The others follow in thin lines: the baseline's curves beside the student's.
    """
    arms = (events_by_trial(events) if epochs else own_first(events)) or {(0, "distilled"): []}
    (now, latest), *others = reversed(arms.items()) if epochs else arms.items()
    drawn, ended = points(latest), [(key, points(part)) for key, part in others]
    reached = max([1, *(x for part in (drawn, *(part for _, part in ended)) for x in part["losses"]["x"])])
    end = epochs or reached
    labelled = not by_teacher(events)
    taught = not any(e["event"] == "models" and e.get("teacher", {}) is None for e in events)
    title = "Accuracy on validation" if labelled else "Agreement with the teacher on validation"
    losses, accuracy = _figure("Losses", end), _figure(title, end, percent=True)
    without = now[1] == "baseline"
    for (name, line), values in zip(LOSSES.items(), drawn["losses"]["y"], strict=True):
        losses.add_scatter(
            **thin(drawn["losses"]["x"], values), name=f"{name}, no teacher" if without else name, mode="lines",
            line={**line, "color": BLUE} if without else line, visible=name == "hard" or (taught and not without),
        )  # fmt: skip
    for (key, (label, line)), values in zip(ACCURACIES.items(), drawn["accuracy"]["y"], strict=True):
        line, label = ({**line, "color": BLUE}, f"{label}, no teacher") if without else (line, label)
        accuracy.add_scatter(
            **thin(drawn["accuracy"]["x"], values), name=label, mode="lines+markers", line=line,
            visible=taught if key == "agreement" else labelled,
        )  # fmt: skip
    several, named = len({seed for seed, _ in arms}) > 1, set()
    for (seed, arm), part in reversed(ended) if epochs else ended:
        name = "no teacher" if arm == "baseline" else "other seeds" if several else "student"
        line = {"color": COPPER if arm == "distilled" else BLUE, "width": 1.5}
        group = {"legendgroup": name, "showlegend": name not in named}  # one entry for all its seeds
        if several:
            group["hovertemplate"] = f"%{{y}} (seed {seed})"
        named.add(name)
        losses.add_scatter(
            **thin(part["losses"]["x"], part["losses"]["y"][2]), **group, name=f"hard, {name}", mode="lines",
            line={**line, "dash": "dash"},
        )  # fmt: skip
        accuracy.add_scatter(
            **thin(part["accuracy"]["x"], part["accuracy"]["y"][0]), **group, name=name, mode="lines+markers",
            line=line, marker={"size": 4},
        )  # fmt: skip
    level = next((e.get("accuracy") for e in reversed(events) if e["event"] == "teacher"), None)
    if level is not None:
        line = {"color": GREY, "width": 1.5, "dash": "longdash"}
        accuracy.add_scatter(x=[0, end], y=[level, level], name="teacher", mode="lines", line=line)
    if ended:  # more names than fit above
        for figure in (losses, accuracy):
            figure.update_layout(**NAMES_BELOW, height=350)
    return {"losses": losses, "accuracy": accuracy}


def own_first(events: list[dict[str, Any]]) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """``runs.by_arm``, the training first whose student was kept as the run's own."""
    arms = events_by_trial(events)
    seed = next((e["seed"] for e in reversed(events) if e["event"] == "arm" and e.get("kept")), None)
    return dict(sorted(arms.items(), key=lambda item: item[0] != (seed, "distilled")))


def by_teacher(events: list[dict[str, Any]]) -> bool:
    """Whether the teacher's answers took the place of labels, and agreement that of accuracy."""
    return any(e["event"] == "data" and e.get("labels") == "teacher" for e in events)


def overlay_figures(chosen: list[Run]) -> dict[str, go.Figure]:
    """``losses`` (total) and ``accuracy`` (student on validation) of several runs, a colour each."""
    losses, accuracy = _figure("Total loss"), _figure("Accuracy on validation", percent=True)
    for nth, run in enumerate(chosen):
        events = run.events()
        drawn = points(next(iter(own_first(events).values()), []))
        line = {"color": CYCLE[nth % len(CYCLE)], "width": 2, "dash": "solid" if nth < len(CYCLE) else "dash"}
        losses.add_scatter(
            **thin(drawn["losses"]["x"], drawn["losses"]["y"][0]), name=name_of(run), mode="lines", line=line
        )
        accuracy.add_scatter(
            **thin(drawn["accuracy"]["x"], drawn["accuracy"]["y"][0]),
            name=f"{name_of(run)}, agreement" if by_teacher(events) else name_of(run),
            mode="lines+markers",
            line=line,
        )
    for figure in (losses, accuracy):  # the names are long: below the axis, a line each
        figure.update_layout(**NAMES_BELOW, height=300 + 20 * len(chosen))
    return {"losses": losses, "accuracy": accuracy}


def name_of(run: Run) -> str:
    """What a curve is called: "mobilenet_v2_0.35 T 5 λ 0.5 (3f9a)"."""
    config: DistillConfig = run.config()
    student = plain(config.student.rstrip("/").rsplit("/", 1)[-1])
    if config.teacher == NO_TEACHER:
        return f"{student}, labels alone ({run.id[-4:]})"
    return f"{student} T {config.temperature:g} λ {run.lambda_():g} ({run.id[-4:]})"


def thin(x: list[float], y: list[float]) -> dict[str, list[float]]:
    """``x`` and ``y``, every k-th point of a long curve, its last one always."""
    every = math.ceil(len(x) / MOST_POINTS) or 1
    return {"x": x[::-1][::every][::-1], "y": y[::-1][::every][::-1]}


# --- Still figures: where teacher and student differ


def analysis_figures(found: dict[str, Any]) -> dict[str, go.Figure]:
    """What ``kd.evaluation.disagreement.analyse`` found, as ``f1``, ``confusion_teacher``, ``confusion_student`` and ``reliability``;
    without labels, ``confusion_student`` alone, against the teacher's answers."""
    worst = worst_classes(found)
    if found.get("labels") == "teacher":
        return {"confusion_student": confusion(found, "student", sorted(worst), truth="teacher")}
    return {
        "f1": class_bars(found, worst),
        **{f"confusion_{side}": confusion(found, side, sorted(worst)) for side in ("teacher", "student")},
        "reliability": reliability(found),
    }


def worst_classes(found: dict[str, Any]) -> list[int]:
    """The classes that are drawn, by the points of F1 that the student has less than the teacher, the most first."""
    lost = [t - s for t, s in zip(found["teacher"]["f1"], found["student"]["f1"], strict=True)]
    return sorted(range(len(lost)), key=lambda index: -lost[index])[:MOST_CLASSES]


def class_bars(found: dict[str, Any], shown: list[int]) -> go.Figure:
    """F1 of each class, teacher above student, the class that lost most on top."""
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
    """What a model takes for what: the right answers in teal, the wrong ones in copper, by their share of the class. Both
    models' colours mean the same shares."""
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
    """How often each model is right against how sure it is; the level line is one that is as sure as it is right."""
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
    """The chosen rows and columns of a confusion matrix, and the same as shares of all pictures of the class."""
    matrix = found[side]["confusion"]
    counts = [[matrix[i][j] for j in shown] for i in shown]
    return counts, [[count / (sum(matrix[i]) or 1) for count in row] for i, row in zip(shown, counts, strict=True)]


def _faint(colour: str, opacity: float) -> str:
    """A colour over whatever is behind it."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def plain(text: str) -> str:
    """Text that Plotly shows as it is: it reads some HTML."""
    return html.escape(text, quote=False)


def labels(classes: list[str]) -> list[str]:
    """Class names that are short, different from each other, and no HTML."""
    found: list[str] = []
    for name in classes:
        name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        again = sum(other == name for other in found)
        found.append(f"{name} ({again + 1})" if again else name)
    return [plain(name) for name in found]


# --- What all figures share


def _figure(title: str, end: float | None = None, percent: bool = False) -> go.Figure:
    """An empty figure over epochs."""
    return go.Figure(
        layout={
            **_layout(title, 300),
            "xaxis": {"title": {"text": "epoch", "standoff": 8}, **({"range": [0, end]} if end else {"rangemode": "tozero"})},
            "yaxis": {"tickformat": ".0%", "autorangeoptions": {"clipmin": 0, "clipmax": 1.02}} if percent else {"tickformat": "~g"},
            "hovermode": "x unified",
            "uirevision": "kept",
        }
    )  # fmt: skip


def _still(title: str, height: int, x: str, y: str) -> go.Figure:
    """An empty figure that cannot be zoomed: a finger on it scrolls the page."""
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
    """No background and no font colour: the page gives a figure those of its theme."""
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
