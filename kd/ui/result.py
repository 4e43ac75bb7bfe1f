"""The result of a run as HTML."""

from dataclasses import dataclass
from statistics import mean
from typing import Any

from kd.training.report import kept_seed_words
from kd.ui.rendering import render

# A verdict has a sign beside its colour, for those who cannot tell the colours apart.
MARKS = {"helps": "▲", "hurts": "▼", "no difference shown": "=", "one seed": "?"}

# Older reports have a smaller ratio as 0.
LEAST_RATIO = 0.005

# With so many seeds, each with the teacher and without, a difference of the size that a teacher makes can be told from luck.
PROOF_SEEDS = 3

NUMBERS = {
    2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten", 11: "eleven",
    12: "twelve",
}  # fmt: skip

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


def result(report: dict[str, Any], proof: str = "") -> str:
    """Render a report: the sentence, the verdict if there is one with the button ``proof``, the table of both models (of one
    where there was no teacher), and the accuracy of each seed."""
    latency = report["student"]["latency_ms"]
    if not report["teacher"]:
        verdict, models, notes = None, single_model_table(report["student"]), [latency_note(latency)]
    else:
        verdict, models = report["verdict"], both_models_table(report)
        notes = [*([] if is_labelled(report) else [NO_LABELS]), *deployed_notes(report), latency_note(latency)]
    return render(
        "result", sentence=sentence(report), verdict=verdict, marks=MARKS, proof=proof, models=models, notes=notes,
        seeds=seeds_table(report),
    )  # fmt: skip


def is_labelled(report: dict[str, Any]) -> bool:
    """Tell whether the images had labels. Where they had none, the teacher's answers took their place, and what a report
    calls accuracy is agreement with the teacher."""
    return report["data"]["labels"] == "dataset"


# --- The sentence, and what would prove it


def sentence(report: dict[str, Any]) -> str:
    """Say what came out as a person would: "The student has 89.6%, its teacher 94.6%: five times faster, …"."""
    ours, alone = mean_accuracy(report, "distilled"), mean_accuracy(report, "baseline")
    seeds = len({trial["seed"] for trial in report["trials"]})
    on_average = f"On average over {seeds} seeds, the" if seeds > 1 else "The"
    if not report["teacher"]:
        return f"{on_average} model has {percent(ours)} on the test pictures."
    costs = (
        f"{compared(deployed_speedup(report), 'faster', 'slower', 'as fast')}, "
        f"{compared(report['size_ratio'], 'smaller', 'larger', 'as large')}"
    )
    if not is_labelled(report):
        return (
            f"The student says what its teacher says of {percent(report['agreement'])} of the test pictures: {costs}."
        )
    kept = report.get("config", {}).get("labels")  # reports of before have no such setting
    labels = f", learning from {kept:,} labels," if kept else ""
    without = f"; without the teacher{labels} it has {percent(alone)}" if alone is not None else ""
    return f"{on_average} student has {percent(ours)}, its teacher {percent(report['teacher']['accuracy'])}: {costs}{without}."


def mean_accuracy(report: dict[str, Any], arm: str) -> float | None:
    """Return the mean test accuracy of the trainings with the teacher (``distilled``) or without (``baseline``); ``None``
    where there was none."""
    return mean(found) if (found := [trial["accuracy"] for trial in report["trials"] if trial["arm"] == arm]) else None


def percent(share: float) -> str:
    """Return a share as "94.6%"; what lies halfway, such as 0.9455, is rounded up, as a reader of "94.55%" would."""
    return f"{share + 1e-9:.1%}"


def compared(ratio: float, more: str, less: str, same: str) -> str:
    """Return a ratio as one says it: "five times faster", "1.4 times slower", "as fast"."""
    factor, word = (ratio, more) if ratio >= 1 else (1 / (ratio or LEAST_RATIO), less)
    if factor < 1.05:
        return same
    rounded = round(factor) if factor >= 2.95 else round(factor, 1)
    return f"{NUMBERS.get(rounded, f'{rounded:g}')} times {word}"


def proof_words(report: dict[str, Any], events: list[dict[str, Any]]) -> str:
    """Return the words of the button that starts the same training with enough seeds, and about how long that would take
    after what this run took. They are empty where the run had as many, or its pictures have no labels."""
    trained = [trial["arm"] for trial in report["trials"]]
    if not report["teacher"] or not is_labelled(report) or trained.count("baseline") >= PROOF_SEEDS:
        return ""
    begun = next((e["time"] for e in events if e["event"] == "training"), 0.0)
    ended = max((e["time"] for e in events if e["event"] == "arm"), default=0.0)
    closed = events[-1]["time"]
    # Trainings may have gone on at the same time, and the run may have been stopped in between.
    training = min(ended - begun, sum(trial["seconds"] for trial in report["trials"]))
    minutes = round((training * 2 * PROOF_SEEDS / len(trained) + closed - ended) / 60)
    return f"Prove it: {PROOF_SEEDS} seeds, about {f'{minutes} minutes' if minutes > 1 else 'a minute'}"


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
    onnx = sides.get("onnx")
    of = " in PyTorch" if onnx else ""
    few, small = ("fewer", "more"), ("smaller", "larger")
    fewer_flops = against(t["flops"] / s["flops"], *few) if t["flops"] and s["flops"] else ""
    rows = [
        ["Parameters", count(t["parameters"]), count(s["parameters"]), against(t["parameters"] / s["parameters"], *few)],
        ["Size", f"{t['megabytes']:.2f} MB", f"{s['megabytes']:.2f} MB", against(sides["size_ratio"], *small)],
        ["FLOPs", count(t["flops"]), count(s["flops"]), fewer_flops],
        *([deployed_row(onnx)] if onnx else []),
        [f"Latency p50{of}", f"{t_ms['p50']:.2f} ms", f"{s_ms['p50']:.2f} ms", against(sides["speedup"], "faster", "slower")],
        [f"Latency p95{of}", f"{t_ms['p95']:.2f} ms", f"{s_ms['p95']:.2f} ms", ""],
    ]  # fmt: skip
    head = ["Measure", "Teacher", "Student", "Student against teacher"]
    return Table(head, [*(rows_before or []), *rows], caption, "kd-versus")


def deployed_row(onnx: dict[str, Any]) -> list[str]:
    """Return the row of the latency of both models in ONNX Runtime, in which a student is deployed."""
    ours, theirs = onnx["student"]["latency_ms"]["p50"], onnx["teacher"]
    return [
        "Latency in ONNX Runtime, as deployed",
        f"{theirs['latency_ms']['p50']:.3f} ms" if theirs else "not timed",
        f"{ours:.3f} ms",
        against(onnx["speedup"], "faster", "slower") if onnx["speedup"] else "",
    ]


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


def deployed_speedup(report: dict[str, Any]) -> float:
    """Return how many times faster than its teacher the student is in ONNX Runtime; in PyTorch, where it was not exported."""
    return (report.get("onnx") or {}).get("speedup") or report["speedup"]


def count(value: float | None) -> str:
    """Return a large number in millions or billions: "0.41 M", "1.20 G"; ``None`` is one that was not counted."""
    if value is None:
        return "not counted"
    return f"{value / 1e9:.2f} G" if value >= 1e9 else f"{value / 1e6:.2f} M"


def times(ratio: float) -> str:
    """Return a ratio as "26×", "3.4×" or "0.82×"."""
    return f"{ratio:.0f}×" if ratio >= 20 else f"{ratio:.1f}×" if ratio >= 1 else f"{ratio:.2f}×"  # noqa: RUF001


def against(ratio: float, less: str, more: str) -> str:
    """Return how the student compares with the teacher: "26× fewer", "1.2× more" where it has more, or "the same"."""
    if round(ratio, 1) == 1:
        return "the same"
    return f"{times(ratio)} {less}" if ratio >= 1 else f"{times(1 / (ratio or LEAST_RATIO))} {more}"


def deployed_notes(report: dict[str, Any]) -> list[str]:
    """Say how the student was timed in ONNX Runtime, and whether it is the same model there; nothing of a run that did not
    export it."""
    if not (onnx := report.get("onnx")):
        return []
    latency = onnx["student"]["latency_ms"]
    return [
        f"{latency['runtime']}: one picture, one thread's own time, {latency['n']:,} trials, without preprocessing. The exported student "
        f"gives PyTorch's answer on {onnx['agreement']:.2%} of the test pictures"
        + ("." if onnx["success"] else f", which is too few. {onnx.get('others', '')}")
    ]


def latency_note(latency: dict[str, Any]) -> str:
    """Return how a latency was measured, in words."""
    threads = f"{latency['threads']} thread{'s' * (latency['threads'] > 1)}"
    return (
        f"Latency: one picture, {latency['dtype']}, {latency['device']}, {threads}, "
        f"{latency['n']} trials, without preprocessing. A multiply-add counts as two FLOPs."
    )
