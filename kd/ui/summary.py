"""Where a run is: its events folded into one small record, and that record in words."""

import dataclasses
import html
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from kd.runs.run import CLOSED, LIFECYCLE, Run
from kd.system import memory
from kd.training.report import whose
from kd.ui.settings import on_page

STAGES = ("Queue", "Pictures", "Teacher", "Targets", "Training", "Test")
STAGE_OF = {"created": 0, "queued": 0, "started": 1, "resumed": 1, "data": 2, "teacher": 3, "targets": 4, "exported": 5}
"""Event -> the stage that begins with it."""
DOING = {
    "looking for duplicates": "Looking for duplicates",
    "comparing pictures": "Comparing the pictures with each other",
    "pace": "Measuring how many epochs fit into the minutes",
    "train pixels": "Reading the training pictures",
    "validation pixels": "Reading the validation pictures",
    "teacher check": "Checking the teacher on validation",
    "targets": "Asking the teacher, once for each view",
    "test: teacher": "Measuring the teacher on the test split",
    "test: student": "Measuring the student on the test split",
}
AT_STAGE = (
    "Starting",
    "Reading the pictures",
    "Checking the teacher",
    "Asking the teacher",
    "Training",
    "Measuring both",
)


@dataclass(frozen=True)
class Summary:
    """What the events so far say of a run."""

    lifecycle: str = "created"
    stage: int = 0
    phase: str | None = None
    done: int = 0
    of: int = 0
    place: int | None = None
    ready: float | None = None
    device: str | None = None
    message: str | None = None
    oom_kills: int | None = None
    epochs: int | None = None
    epoch: float = 0.0
    steps: int = 0
    step: int = 0
    seconds: float = 0.0
    arm: str = "distilled"
    nth: int = 1
    arms: int = 1
    images_per_second: float | None = None
    accuracy: float | None = None
    agreement: float | None = None
    labels: str = "dataset"
    warnings: tuple[str, ...] = ()

    def after(self, event: dict[str, Any]) -> "Summary":
        """The summary once ``event`` has happened."""
        name, changes = event["event"], {}
        if name in LIFECYCLE:
            changes = {"lifecycle": name, "message": event.get("message"), "place": event.get("place")}
            changes["ready"] = event["time"] + event["wait"] if "wait" in event else None
        if name in ("started", "resumed"):
            changes["oom_kills"] = event.get("oom_kills")
        if name in STAGE_OF:
            changes |= {"stage": STAGE_OF[name], "phase": None}
        if name == "progress":
            changes = {key: event[key] for key in ("phase", "done", "of")}
        if name == "data":
            changes["labels"] = event.get("labels", "dataset")
        if name == "hub":
            changes = {"phase": event["message"], "done": 0, "of": 0}
        if name in ("queued", "models"):
            changes["device"] = event["device"]
        if name == "training":
            changes = {key: event[key] for key in ("epochs", "steps", "step", "arm", "nth") if key in event}
            changes |= {"arms": event.get("of", 1), "stage": STAGE_OF["targets"], "phase": None}
            changes["epoch"] = event["step"] * event["epochs"] / max(event["steps"], 1)
        if name == "step":
            changes = {key: event[key] for key in ("epoch", "step", "seconds", "images_per_second")}
        if name == "eval" and self.nth == 1:  # of the first student
            changes = {"agreement": event.get("agreement")}
            changes |= {"accuracy": event["accuracy"]} if self.labels == "dataset" else {}
        if name == "arm" and event.get("kept") and self.labels == "dataset":  # a later student that is better
            changes = {"accuracy": event["validation"]}
        if event.get("warnings"):
            changes["warnings"] = tuple(dict.fromkeys([*self.warnings, *event["warnings"]]))
        return dataclasses.replace(self, **changes)

    def share(self) -> float:
        """How much of the present stage is done, from 0 to 1."""
        if self.lifecycle == "done":
            return 1.0
        if self.stage == STAGE_OF["targets"]:
            return min(self.step / self.steps, 1.0) if self.steps else 0.0
        return min(self.done / self.of, 1.0) if self.phase and self.of else 0.0

    def line(self, status: str) -> tuple[str, str]:
        """What is going on, and its figures: ("Training, epoch 3 of 8", "1,240 images/s on the CPU, 40 s left")."""
        if status in CLOSED:
            return self._closing(status), ""
        if status == "queued":
            return f"Waiting for the {self._where()}: {self.in_queue()}" if self.place else "Starting", ""
        if self.stage == STAGE_OF["targets"] and self.epochs:
            return f"{self._training()}, epoch {self._epoch()} of {self.epochs}", self._pace()
        if self.phase == "pace":
            return DOING["pace"], f"{self.share():.0%}"
        if self.phase:
            return DOING.get(self.phase, self.phase), f"{self.done:,} of {self.of:,}" if self.of else ""
        return AT_STAGE[self.stage], ""

    def in_queue(self) -> str:
        """The place in the queue, and the time that is left to wait where it is known."""
        left = self.ready - time.time() if self.ready else 0
        return f"place {self.place} in the queue" + (f", about {roughly(left)}" if left >= 1 else "")

    def _closing(self, status: str) -> str:
        where = f" in epoch {self._epoch()} of {self.epochs}" if self.epochs else ""
        return {
            "done": "Done",
            "failed": on_page(self.message or "Failed"),
            "stopped": f"Stopped{where}. Resume goes on from the last checkpoint.",
            "died": f"The run's process is gone: it ended{where} without a word. {memory.epitaph(self.oom_kills)} "
            "Resume goes on from the last checkpoint.",
        }[status]

    def _training(self) -> str:
        """What is trained, where that is not the run's own student: "Training 2 of 6, without the teacher"."""
        which = f" {self.nth} of {self.arms}" if self.arms > 1 else ""
        return f"Training{which}" + (", without the teacher" if self.arm == "baseline" else "")

    def _epoch(self) -> int:
        return min(int(self.epoch - 1e-6) + 1, self.epochs or 1) if self.epoch else 1

    def _pace(self) -> str:
        if not self.images_per_second or not self.step:
            return ""
        left = (self.steps * (self.arms - self.nth + 1) - self.step) * self.seconds / self.step
        return f"{self.images_per_second:,.0f} images/s on the {self._where()}, {duration(left)} left"

    def _where(self) -> str:
        return "GPU" if (self.device or "cpu") != "cpu" else "CPU"


_seen: dict[Path, tuple[int, Summary]] = {}
"""A run's cursor and summary so far: only a shortcut past the events that have been read before."""
MOST_SEEN = 1000


def summarize(run: Run) -> Summary:
    """The summary of all events of a run. Raises ``RunDeleted``."""
    cursor, summary = _seen.get(run.path, (0, Summary()))
    events, cursor = run.read(cursor)
    for event in events:
        summary = summary.after(event)
    _seen[run.path] = cursor, summary
    if len(_seen) > MOST_SEEN:
        _seen.pop(next(iter(_seen)), None)
    return summary


def status_of(run: Run, summary: Summary) -> str:
    """``run.status()``, which reads every event, asked for only where the summary cannot tell."""
    status = LIFECYCLE[summary.lifecycle]
    return status if status in CLOSED or run.is_locked() else run.status()


# --- Figures in words


def duration(seconds: float) -> str:
    """ "40 s", "3 min 20 s", "2 h 5 min"."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def roughly(seconds: float) -> str:
    """A time that is only guessed, without digits that claim more: "40 s", "1 min 20 s", "12 min", "2 h 5 min"."""
    step = next((step for below, step in ((10, 1), (60, 5), (600, 10), (3600, 60)) if seconds < below), 300)
    return duration(max(1, round(seconds / step) * step)).removesuffix(" 0 s").removesuffix(" 0 min")


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
    return table(head, rows, f"{measured} of each seed; {whose(report)}", "kd-seeds")


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
