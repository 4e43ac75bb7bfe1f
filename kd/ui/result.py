"""The result of a run as HTML."""

from dataclasses import dataclass
from statistics import mean
from typing import Any

from kd.training.report import kept_seed_words
from kd.ui.rendering import render

# A verdict has a sign beside its colour, for those who cannot tell the colours apart.
MARKS = {"helps": "▲", "hurts": "▼", "no difference shown": "=", "one seed": "?"}

NO_LABELS = (
    "The pictures have no labels. Agreement, how often the student says what the teacher says of test pictures that neither "
    "learned from, shows how well it copies; how often either is right cannot be known."
)


@dataclass(frozen=True)
class Table:
    """A table for the macro ``table``: the first cell of each row is its header, ``classes`` are of the style sheet."""

    head: list[str]
    rows: list[list[str]]
    caption: str
    classes: str = ""


def result(report: dict[str, Any]) -> str:
    """Render a report: the verdict if there is one, the table of both models (of one where there was no teacher), and the
    accuracy of each seed."""
    latency = report["student"]["latency_ms"]
    if not report["teacher"]:
        verdict, models, notes = None, single_model_table(report["student"]), [latency_note(latency)]
    else:
        verdict, models = report["verdict"], both_models_table(report)
        notes = [*([] if is_labelled(report) else [NO_LABELS]), latency_note(latency)]
    return render("result", verdict=verdict, marks=MARKS, models=models, notes=notes, seeds=seeds_table(report))


def is_labelled(report: dict[str, Any]) -> bool:
    """Tell whether the images had labels. Where they had none, the teacher's answers took their place, and what a report
    calls accuracy is agreement with the teacher."""
    return report["data"]["labels"] == "dataset"


# --- Tables


def both_models_table(report: dict[str, Any]) -> Table:
    """Return teacher against student on the test split, with the scores of the same student trained without the teacher."""
    rows = [
        *(_score_rows(report) if is_labelled(report) else []),
        ["Agreement", "", f"{report['agreement']:.2%}", "same class as the teacher"],
    ]
    return costs_table(report, "Measured on the test split", rows)


def costs_table(sides: dict[str, Any], caption: str, rows_before: list[list[str]] | None = None) -> Table:
    """Return what teacher and student cost, as a report or a comparison (``sides``) has it: parameters, size, FLOPs and
    latency, after other rows of the same columns."""
    t, s = sides["teacher"], sides["student"]
    t_ms, s_ms = t["latency_ms"], s["latency_ms"]
    few, small = ("fewer", "more"), ("smaller", "larger")
    fewer_flops = against(t["flops"] / s["flops"], *few) if t["flops"] and s["flops"] else ""
    rows = [
        ["Parameters", count(t["parameters"]), count(s["parameters"]), against(t["parameters"] / s["parameters"], *few)],
        ["Size", f"{t['megabytes']:.2f} MB", f"{s['megabytes']:.2f} MB", against(sides["size_ratio"], *small)],
        ["FLOPs", count(t["flops"]), count(s["flops"]), fewer_flops],
        ["Latency p50", f"{t_ms['p50']:.2f} ms", f"{s_ms['p50']:.2f} ms", against(sides["speedup"], "faster", "slower")],
        ["Latency p95", f"{t_ms['p95']:.2f} ms", f"{s_ms['p95']:.2f} ms", ""],
    ]  # fmt: skip
    head = ["Measure", "Teacher", "Student", "Student against teacher"]
    return Table(head, [*(rows_before or []), *rows], caption, "kd-versus")


def single_model_table(side: dict[str, Any]) -> Table:
    """Return the scores and costs of a model that was trained without a teacher."""
    latency = side["latency_ms"]
    rows = [
        ["Test accuracy", f"{side['accuracy']:.2%}"],
        ["Macro F1", f"{side['f1']:.4f}"],
        ["Parameters", count(side["parameters"])],
        ["Size", f"{side['megabytes']:.2f} MB"],
        ["FLOPs", count(side["flops"])],
        ["Latency p50", f"{latency['p50']:.2f} ms"],
        ["Latency p95", f"{latency['p95']:.2f} ms"],
    ]
    return Table(["Measure", "Model"], rows, "Learned from the labels alone, measured on the test split")


def seeds_table(report: dict[str, Any]) -> Table | None:
    """Return the test accuracy of each seed and the mean, with the teacher and without; ``None`` for a single seed."""
    accuracy: dict[str, dict[int, float]] = {}
    for trial in report["trials"]:
        accuracy.setdefault(trial["arm"], {})[trial["seed"]] = trial["accuracy"]
    distilled, baseline = accuracy["distilled"], accuracy.get("baseline")
    if len(distilled) < 2:
        return None

    def row(name: str, seeds: list[int]) -> list[str]:
        ours = mean(distilled[seed] for seed in seeds)
        if not baseline:
            return [name, f"{ours:.2%}"]
        theirs = mean(baseline[seed] for seed in seeds)
        return [name, f"{ours:.2%}", f"{theirs:.2%}", f"{100 * (ours - theirs):+.2f} points"]

    head = [
        "Seed",
        "Distilled" if report["teacher"] else "Accuracy",
        *(["No teacher", "Difference"] if baseline else []),
    ]
    rows = [*(row(str(seed), [seed]) for seed in distilled), row("Mean", list(distilled))]
    measure = "Test accuracy" if is_labelled(report) else "Agreement with the teacher on the test split"
    return Table(head, rows, f"{measure} of each seed; {kept_seed_words(report)}", "kd-seeds")


def _score_rows(report: dict[str, Any]) -> list[list[str]]:
    """Return the rows of accuracy and F1."""
    t, s, baseline = report["teacher"], report["student"], report["baseline"]

    def accuracy(name: str, ours: float, theirs: str) -> list[str]:
        return [name, theirs, f"{ours:.2%}", f"{100 * (ours - t['accuracy']):+.2f} points"]

    return [
        accuracy("Test accuracy", s["accuracy"], f"{t['accuracy']:.2%}"),
        *([accuracy("… learned without the teacher", baseline["accuracy"], "")] if baseline else []),
        ["Macro F1", f"{t['f1']:.4f}", f"{s['f1']:.4f}", f"{s['f1'] - t['f1']:+.4f}"],
    ]


# --- Figures in words


def count(value: float | None) -> str:
    """Return a large number in millions or billions: "0.41 M", "1.20 G"; ``None`` is one that was not counted."""
    if value is None:
        return "not counted"
    return f"{value / 1e9:.2f} G" if value >= 1e9 else f"{value / 1e6:.2f} M"


def times(ratio: float) -> str:
    """Return a ratio as "26×", "3.4×" or "0.82×"."""
    return f"{ratio:.0f}×" if ratio >= 20 else f"{ratio:.1f}×" if ratio >= 1 else f"{ratio:.2f}×"  # noqa: RUF001


def against(ratio: float, less: str, more: str) -> str:
    """Return how the student compares with the teacher: "26× fewer", or "1.2× more" where it has more."""
    return f"{times(ratio)} {less}" if ratio >= 1 else f"{times(1 / ratio)} {more}"


def latency_note(latency: dict[str, Any]) -> str:
    """Return how a latency was measured, in words."""
    threads = f"{latency['threads']} thread{'s' * (latency['threads'] > 1)}"
    return (
        f"Latency: one picture, {latency['dtype']}, {latency['device']}, {threads}, "
        f"{latency['n']} trials, without preprocessing. A multiply-add counts as two FLOPs."
    )
