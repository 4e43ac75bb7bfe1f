"""Write the model card of an export: what the student is, how it was made, what was measured, how to use it."""

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kd.config import NO_TEACHER, SAMPLE, STUDENT_NAMES, DistillConfig
from kd.data.library.store import short_name
from kd.runs.run import Run

# How many classes a card lists by name.
MOST_CLASSES = 50


def write_card(path: Path, run: Run, results: dict[str, Any]) -> None:
    """Write ``README.md`` from what an export has measured (``results.json``)."""
    demo, report, training = (path.parent / "demo.html").exists(), run.report(), run.last("training")
    step = run.last("step")
    stopped = f"stopped in epoch {math.ceil(step['epoch'])} of {training['epochs']}" if step and not report else ""
    path.write_text(card(run.config(), results, report, demo, stopped), encoding="utf-8")


def card(
    config: DistillConfig,
    results: dict[str, Any],
    report: dict[str, Any] | None,
    demo: bool = False,
    stopped: str = "",
) -> str:
    """Return the model card in Markdown; ``demo``: whether ``demo.html`` is among the files, ``stopped``: how far a run was
    that has no report."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = as_code
    return environment.get_template("README.md").render(
        config=config,
        results=results,
        report=report,
        demo=demo,
        stopped=stopped,
        teacher=None if config.teacher == NO_TEACHER else short_name(config.teacher),
        dataset=short_name(config.dataset),
        student=short_name(config.student),
        base=base_model(config),
        classes=results["classes"][:MOST_CLASSES],
        more=max(0, len(results["classes"]) - MOST_CLASSES),
        rows=table_rows(results),
        failed=[name for name, one in results["files"].items() if not one["success"]],
    )


def as_code(text: Any) -> str:
    """Return text as Markdown's code, on one line: names come from users and may hold anything."""
    return f"`{' '.join(str(text).replace('`', chr(39)).replace('|', '/').split())}`"


def base_model(config: DistillConfig) -> str | None:
    """Return the Hub id of the weights that the student began with; ``None`` for random ones, or a folder."""
    name = config.student
    is_hub_id = name not in (*STUDENT_NAMES, SAMPLE) and name.count("/") == 1 and not name.startswith((".", "/", "~"))
    return name if is_hub_id else None


def table_rows(results: dict[str, Any]) -> list[list[str]]:
    """Return the table of the files: name, accuracy, agreement, greatest difference, MB, ms with one thread and with all."""
    rows = []
    for name, one in results["files"].items():
        single, every = one["latency_ms"]["one_thread"], one["latency_ms"]["all_threads"]
        per_second = f"{one['images_per_second']:,.0f} at {one['batch']}" if "batch" in one else ""
        rows.append([
            f"`{name}`", f"{one['accuracy']:.2%}", f"{one['agreement']:.2%}", f"{one['difference']:.1g}",
            f"{one['megabytes']:.2f}", f"{single['p50']:.3f} / {single['p95']:.3f}",
            f"{every['p50']:.3f} / {every['p95']:.3f}", per_second,
        ])  # fmt: skip
    if teacher := results["teacher"]:
        single, every = teacher["latency_ms"]["one_thread"], teacher["latency_ms"]["all_threads"]
        rows.append([
            "the teacher, for comparison", "", "", "", f"{teacher['megabytes']:.2f}",
            f"{single['p50']:.3f} / {single['p95']:.3f}", f"{every['p50']:.3f} / {every['p95']:.3f}", "",
        ])  # fmt: skip
    return rows
