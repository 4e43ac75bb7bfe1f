"""What the command line prints: the events of a run as lines and a progress bar, and tables."""

import math
import statistics
import sys
from typing import Any

from kd.config import NO_TEACHER
from kd.data.library.store import short_name
from kd.runs.run import Run
from kd.runs.summary import Summary
from kd.training.report import kept_seed_words


class Screen:
    """Shows the events of a run as lines and one progress bar on standard error; standard output is for the report."""

    def __init__(self, run: Run | None = None) -> None:
        self.run, self.bar, self.summary = run, "", Summary()

    def clear(self) -> None:
        """Remove the progress bar."""
        if self.bar:
            print("\r" + " " * len(self.bar) + "\r", end="", file=sys.stderr)
            self.bar = ""

    def line(self, text: str) -> None:
        self.clear()
        print(text, file=sys.stderr, flush=True)

    def progress(self, text: str, share: float) -> None:
        """Draw the progress bar again, on a terminal only: it would fill a log."""
        if sys.stderr.isatty():
            full = round(30 * share)
            bar = f"[{'#' * full}{'.' * (30 - full)}] {share:4.0%} {text}"
            print("\r" + bar.ljust(len(self.bar)), end="", file=sys.stderr, flush=True)
            self.bar = bar

    def show(self, e: dict[str, Any]) -> None:
        """Show one event."""
        self.summary = self.summary.after(e)
        show = getattr(self, f"show_{e['event']}", None)
        if show:
            show(e)
        for warning in e.get("warnings", []):
            self.line(f"  warning: {warning}")

    def show_created(self, e: dict) -> None:
        c = self.run.config()
        teacher, settings = "labels alone", ""
        if c.teacher != NO_TEACHER:
            teacher, settings = short_name(c.teacher), f"T {c.temperature:g}, lambda {c.lambda_:g}, "
        length = f"{c.minutes:g} minutes" if c.minutes else f"{c.epochs} epochs"
        models = f"{teacher} -> {short_name(c.student)}"
        self.line(f"run {self.run.id}: {models} on {short_name(c.dataset)}, {settings}{length}")

    def show_queued(self, e: dict) -> None:
        wait = f", about {math.ceil(e['wait'] / 60)} min" if "wait" in e else ""
        self.line(f"waiting for the {e['device']}: place {e['place']} in the queue{wait}")

    def show_progress(self, e: dict) -> None:
        counted = f" of {e['of']:,}" if e["of"] else ""  # of a stream it may not be known
        self.progress(f"{e['phase']} {e['done']:,}{counted}", e["done"] / e["of"] if e["of"] else 0.0)

    def show_hub(self, e: dict) -> None:
        self.line(e["message"])

    def show_data(self, e: dict) -> None:
        some = f" ({e['labelled']:,} with a label)" if "labelled" in e else ""
        self.line(
            f"pictures: {e['train']:,} train{some}, {e['validation']:,} validation, {e['test']:,} test, "
            f"{len(e['classes'])} classes ({e['seconds']:.1f} s, cache {e['cache']})"
        )

    def show_models(self, e: dict) -> None:
        t, s = e["teacher"], e["student"]
        teacher = f"teacher: {t['parameters'] / 1e6:.2f} M, {millions(t['flops'], 'MFLOPs')}; " if t else ""
        self.line(
            f"{'student' if t else 'model'}: {s['parameters'] / 1e6:.2f} M parameters, {millions(s['flops'], 'MFLOPs')} at "
            f"{e['image_size'][0]} px; {teacher}{e['device']}, {e['precision']}"
        )
        for change in e["healed"]:
            self.line(f"  healed: {change}")

    def show_teacher(self, e: dict) -> None:
        if "accuracy" in e:
            self.line(f"teacher: {e['accuracy']:.1%} on validation")

    def show_targets(self, e: dict) -> None:
        self.line(f"targets: {e['cache']} ({e['seconds']:.1f} s)")

    def show_target_check(self, e: dict) -> None:
        self.line(f"  the teacher is right on {e['accuracy']:.1%} of the training pictures")

    def show_plan(self, e: dict) -> None:
        if "minutes" in e:
            self.line(
                f"plan: {e['epochs']} epochs in {e['minutes']:g} minutes, at {e['images_per_second']:,.0f} images/s"
            )

    def show_training(self, e: dict) -> None:
        if e["of"] > 1:
            self.line(f"training {e['nth']} of {e['of']}: {self.whose(e)}")

    def whose(self, e: dict) -> str:
        """Say whose event it is: "seed 0, without the teacher"."""
        teacher = ", with the teacher" if e["arm"] == "distilled" else ", without the teacher"
        return f"seed {e['seed']}" + ("" if self.run.config().teacher == NO_TEACHER else teacher)

    def show_arm(self, e: dict) -> None:
        score = f"{e['accuracy']:.2%} on the test split"
        if self.summary.labels == "teacher":
            score = f"agrees with the teacher on {e['accuracy']:.2%} of the test split"
        whose = f"{self.whose(e)}: " if self.summary.at_once > 1 else "  "
        self.line(f"{whose}{score}, {e['seconds']:.0f} s of training")

    def show_step(self, e: dict) -> None:
        if (e["arm"], e["seed"]) != (self.summary.arm, self.summary.seed):
            return
        steps = self.summary.steps
        left = (steps - e["step"]) * e["seconds"] / e["step"]
        self.progress(
            f"loss {e['total']:.3f}, {e['images_per_second']:,.0f} images/s, {left:.0f} s left", e["step"] / steps
        )

    def show_eval(self, e: dict) -> None:
        scores = [f"{e['accuracy']:.1%} on validation"] if self.summary.labels == "dataset" else []
        if "agreement" in e:
            split = "" if scores else " of validation"
            scores.append(f"agrees with the teacher on {e['agreement']:.1%}{split}")
        whose = f"{self.whose(e)}: " if self.summary.at_once > 1 else ""
        self.line(f"{whose}epoch {e['epoch']:g}: {', '.join(scores)} ({e['seconds']:.0f} s)")

    def show_stopped(self, e: dict) -> None:
        self.line(e["message"])

    def show_failed(self, e: dict) -> None:
        self.line(f"failed: {e['message']}")


# A ratio that was rounded to 0.00 is at most this.
MIN_RATIO = 0.005


def result_table(report: dict[str, Any], agreement: float | None) -> str:
    """Return the table of teacher (if there is one) and student, and what is said below it.

    ``report`` is that of a run, or what ``compare`` returns.
    """
    labelled = report.get("data", {}).get("labels", "dataset") == "dataset"
    scored = labelled and "accuracy" in report["student"]
    rows, onnx = [], report.get("onnx")
    for name in [name for name in ("teacher", "student") if report[name]]:
        side = report[name]
        latency = side["latency_ms"]
        rows.append([
            name if report["teacher"] else "model",
            *([f"{side['accuracy']:.2%}", f"{side['f1']:.4f}"] if scored else []),
            f"{side['parameters'] / 1e6:.2f} M",
            f"{side['megabytes']:.2f}",
            millions(side["flops"], "M"),
            *([milliseconds(onnx[name]["latency_ms"]["p50"]) if onnx[name] else ""] if onnx else []),
            f"{latency['p50']:.2f}",
            f"{latency['p95']:.2f}",
        ])  # fmt: skip
    baseline = report.get("baseline")
    if baseline and scored:
        rows.append(["no teacher", f"{baseline['accuracy']:.2%}", f"{baseline['f1']:.4f}", *[""] * (len(rows[0]) - 3)])
    quality = ["test accuracy", "macro F1"] if scored else []
    latency = report["student"]["latency_ms"]
    threads = "1 thread" if latency["threads"] == 1 else f"{latency['threads']} threads"
    comparison = ""
    if report["teacher"]:
        scope = "" if labelled else " of the test pictures; they have no labels, so who is right is not known"
        speed = speed_words(report["speedup"])
        if onnx and onnx["speedup"]:
            speed = f"{speed_words(onnx['speedup'])} in ONNX Runtime, as deployed ({speed} in PyTorch),"
        ratios = f"{speed} and {size_words(report['size_ratio'])}"
        comparison = f"\nThe student is {ratios}; it agrees with the teacher on {agreement:.1%}{scope}."
    deployed = ["ms in ONNX Runtime"] if onnx else []
    of = "PyTorch " if onnx else ""
    return (
        table(["", *quality, "parameters", "MB", "FLOPs", *deployed, f"{of}ms p50", f"{of}ms p95"], rows)
        + f"{seed_means(report) if scored else ''}{comparison}\nLatency: one picture, {latency['dtype']}, "
        f"{latency['device']}, {threads}, {latency['n']} trials, without preprocessing."
        + (deployed_note(onnx) if onnx else "")
    )


def deployed_note(onnx: dict[str, Any]) -> str:
    """Return a line about the student in ONNX Runtime: how it was timed, and whether it is still the same model."""
    return (
        f"\nIn {onnx['student']['latency_ms']['runtime']}: one thread's own time, p50; the student's file of "
        f"{onnx['student']['megabytes']:.2f} MB gives PyTorch's answer on {onnx['agreement']:.2%} of the test pictures"
        + ("." if onnx["success"] else f", which is too few. {onnx.get('others', '')}")
    )


def export_table(found: dict[str, Any]) -> str:
    """Return the table of an export's files, and what is said below it. ``found`` is its ``results.json``."""
    rows = []
    for name, one in [*found["files"].items(), *([("teacher", found["teacher"])] if found["teacher"] else [])]:
        single, every = one["latency_ms"]["one_thread"], one["latency_ms"]["all_threads"]
        scores = ["", "", ""]
        if "accuracy" in one:
            scores = [f"{one['accuracy']:.2%}", f"{one['agreement']:.2%}", f"{one['difference']:.1g}"]
        rows.append([
            name, *scores, f"{one['megabytes']:.2f}", *(milliseconds(v) for v in (single["p50"], single["p95"])),
            milliseconds(every["p50"]), f"{one['images_per_second']:,.0f}" if "batch" in one else "",
            "" if one.get("success", True) else "too few the same",
        ])  # fmt: skip
    right = "accuracy" if found["labels"] == "dataset" else "like teacher"
    head = ["", right, "same", "off", "MB", "ms p50", "ms p95", "all threads", "images/s", ""]
    said = (
        f"On all {found['test_pictures']:,} test pictures; PyTorch: {found['pytorch']['accuracy']:.2%}. Same: how often a file "
        "gives PyTorch's answer; off: the greatest difference of a logit (student files: of a probability)."
    )
    if found["speedup"]:
        said += f"\nIn ONNX Runtime, one thread, the student is {speed_words(found['speedup'])} than its teacher."
    marked = [f"{name}: {one['others']}" for name, one in found["files"].items() if not one["success"]]
    return "\n".join([table(head, rows), said, *marked, *found["notes"]])


def milliseconds(value: float) -> str:
    """Return a time in milliseconds with digits enough for a small model."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def seed_means(report: dict[str, Any]) -> str:
    """Return a line with each side's mean accuracy over its seeds and the standard deviation; nothing for one seed.

    It also says which seed's student is in the table.
    """
    trials, found = report.get("trials", []), []
    with_teacher = "with the teacher " if report["teacher"] else ""
    for words, arm in ((with_teacher, "distilled"), ("without ", "baseline")):
        scores = [100 * trial["accuracy"] for trial in trials if trial["arm"] == arm]
        if len(scores) > 1:
            found.append(f"{words}{statistics.mean(scores):.1f}% +- {statistics.stdev(scores):.1f}")
    seeds = len({trial["seed"] for trial in trials})
    return f"\nOver {seeds} seeds: {', '.join(found)}; {kept_seed_words(report)}." if found else ""


def speed_words(speedup: float) -> str:
    """Say a speed-up in words: "2 times faster", below one "1.3 times slower", near one "as fast"."""
    if 0.95 < speedup < 1.05:
        return "as fast"
    if speedup >= 1:
        return f"{speedup:g} times faster"
    slower = 1 / max(speedup, MIN_RATIO)
    return f"{slower:,.0f} times slower" if slower >= 10 else f"{slower:.2g} times slower"


def size_words(ratio: float) -> str:
    """Say a ratio of sizes in words: "3.8 times smaller", below one "2 times larger", near one "as large"."""
    if 0.95 < ratio < 1.05:
        return "as large"
    return f"{ratio:g} times smaller" if ratio >= 1 else f"{1 / max(ratio, MIN_RATIO):.2g} times larger"


def millions(flops: int | None, unit: str) -> str:
    """Return a number of FLOPs in millions of a unit, or that they were not counted."""
    return "FLOPs not counted" if flops is None else f"{flops / 1e6:,.1f} {unit}"


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Align columns of text, each as wide as its widest cell."""
    cells = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)
