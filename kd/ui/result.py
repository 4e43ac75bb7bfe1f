"""The result of a run as HTML."""

import html
from statistics import mean
from typing import Any

from kd.training.report import kept_seed_words


def count(value: float) -> str:
    """ "0.41 M", "1.2 G"."""
    return f"{value / 1e9:.2f} G" if value >= 1e9 else f"{value / 1e6:.2f} M"


def times(ratio: float) -> str:
    """How many times: "26×", "3.4×", "0.82×"."""
    return f"{ratio:.0f}×" if ratio >= 20 else f"{ratio:.1f}×" if ratio >= 1 else f"{ratio:.2f}×"  # noqa: RUF001


def against(ratio: float, less: str, more: str) -> str:
    """The student against the teacher: "26× fewer", or "1.2× more" where it has more."""
    return f"{times(ratio)} {less}" if ratio >= 1 else f"{times(1 / ratio)} {more}"


def table(head: list[str], rows: list[list[str]], caption: str, classes: str = "") -> str:
    """An HTML table with row headers; every cell is escaped. On a phone each cell shows its column's name."""
    cells = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<table class="kd-table {classes}"><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
    )


def costs(sides: dict[str, Any]) -> list[list[str]]:
    """Rows of teacher against student that a report and a comparison share: parameters, size, FLOPs, latency."""
    t, s = sides["teacher"], sides["student"]
    ms = {name: side["latency_ms"] for name, side in (("t", t), ("s", s))}
    few, small = ("fewer", "more"), ("smaller", "larger")
    return [
        ["Parameters", count(t["parameters"]), count(s["parameters"]), against(t["parameters"] / s["parameters"], *few)],
        ["Size", f"{t['megabytes']:.2f} MB", f"{s['megabytes']:.2f} MB", against(sides["size_ratio"], *small)],
        ["FLOPs", count(t["flops"]), count(s["flops"]), against(t["flops"] / s["flops"], *few)],
        ["Latency p50", f"{ms['t']['p50']:.2f} ms", f"{ms['s']['p50']:.2f} ms", against(sides["speedup"], "faster", "slower")],
        ["Latency p95", f"{ms['t']['p95']:.2f} ms", f"{ms['s']['p95']:.2f} ms", ""],
    ]  # fmt: skip


def how_timed(latency: dict[str, Any]) -> str:
    """The small print under a latency."""
    threads = f"{latency['threads']} thread{'s' * (latency['threads'] > 1)}"
    return (
        f"Latency: one picture, {latency['dtype']}, {latency['device']}, {threads}, "
        f"{latency['n']} trials, without preprocessing. A multiply-add counts as two FLOPs."
    )


MARKS = {"helps": "▲", "hurts": "▼", "no difference shown": "=", "one seed": "?"}
"""A verdict has a sign beside its colour."""


def result(report: dict[str, Any]) -> str:
    """A report as HTML: the verdict if there is one, the table of both models, or of the one where there was no teacher,
    each seed's figures."""
    if not report["teacher"]:
        return alone_table(report["student"]) + seeds_table(report)
    return verdict(report) + result_table(report) + seeds_table(report)


def verdict(report: dict[str, Any]) -> str:
    """Whether the teacher helped, in a sentence; nothing for a run without a baseline."""
    found = report.get("verdict")
    if not found:
        return ""
    mark, answer = MARKS[found["answer"]], found["answer"].split()[0]
    return (
        f'<p class="kd-verdict kd-{answer}"><span class="kd-mark" aria-hidden="true">{mark}</span> '
        f"<span>{html.escape(found['sentence'])}</span></p>"
    )


def seeds_table(report: dict[str, Any]) -> str:
    """The test accuracy of each seed, and its mean; nothing for a single one."""
    by_arm: dict[str, dict[int, float]] = {}
    for trial in report.get("trials", []):
        by_arm.setdefault(trial["arm"], {})[trial["seed"]] = trial["accuracy"]
    distilled, baseline = by_arm.get("distilled", {}), by_arm.get("baseline")
    if len(distilled) < 2:
        return ""

    def row(name: str, ours: float, theirs: float | None) -> list[str]:
        return [
            name,
            f"{ours:.2%}",
            *([] if theirs is None else [f"{theirs:.2%}", f"{100 * (ours - theirs):+.2f} points"]),
        ]

    rows = [row(str(seed), distilled[seed], baseline and baseline[seed]) for seed in distilled]
    rows.append(row("Mean", mean(distilled.values()), baseline and mean(baseline.values())))
    head = [
        "Seed",
        "Distilled" if report["teacher"] else "Accuracy",
        *(["No teacher", "Difference"] if baseline else []),
    ]
    measured = "Test accuracy" if is_labelled(report) else "Agreement with the teacher on the test split"
    return table(head, rows, f"{measured} of each seed; {kept_seed_words(report)}", "kd-seeds")


def is_labelled(report: dict[str, Any]) -> bool:
    """Whether the pictures had labels; else the teacher's answers took their place, and accuracy is agreement."""
    return report.get("data", {}).get("labels", "dataset") == "dataset"


NO_LABELS = (
    "The pictures have no labels. Agreement, how often the student says what the teacher says of test pictures that neither "
    "learned from, shows how well it copies; how often either is right cannot be known."
)


def result_table(report: dict[str, Any]) -> str:
    """Teacher against student as a report has them, on the test split; below it the same student without the teacher."""
    rows = [
        *(_scores(report) if is_labelled(report) else []),
        ["Agreement", "", f"{report['agreement']:.2%}", "same class as the teacher"],
        *costs(report),
    ]
    said = [*([] if is_labelled(report) else [NO_LABELS]), how_timed(report["student"]["latency_ms"])]
    note = "".join(f'<p class="kd-note">{html.escape(words)}</p>' for words in said)
    return (
        table(
            ["Measure", "Teacher", "Student", "Student against teacher"],
            rows,
            "Measured on the test split",
            "kd-versus",
        )
        + note
    )


def alone_table(side: dict[str, Any]) -> str:
    """What a run without a teacher has trained."""
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
    note = f'<p class="kd-note">{html.escape(how_timed(latency))}</p>'
    return table(["Measure", "Model"], rows, "Learned from the labels alone, measured on the test split") + note


def _scores(report: dict[str, Any]) -> list[list[str]]:
    """Rows of accuracy and F1."""
    t, s, baseline = report["teacher"], report["student"], report.get("baseline")
    points = 100 * (s["accuracy"] - t["accuracy"])
    return [
        ["Test accuracy", f"{t['accuracy']:.2%}", f"{s['accuracy']:.2%}", f"{points:+.2f} points"],
        *([_without_teacher(baseline, t)] if baseline else []),
        ["Macro F1", f"{t['f1']:.4f}", f"{s['f1']:.4f}", f"{s['f1'] - t['f1']:+.4f}"],
    ]


def _without_teacher(baseline: dict[str, Any], teacher: dict[str, Any]) -> list[str]:
    points = 100 * (baseline["accuracy"] - teacher["accuracy"])
    return ["… learned without the teacher", "", f"{baseline['accuracy']:.2%}", f"{points:+.2f} points"]
