"""The tab Compare: teacher and student side by side on the visitor's pictures."""

import base64
import csv
import io
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import gradio as gr

from kd.config import NO_TEACHER
from kd.data.library.store import short_name
from kd.errors import UserError
from kd.evaluation import worker
from kd.runs.run import Run
from kd.runs.store import check_teacher_exists
from kd.runs.summary import status_of, summarize
from kd.ui import in_browser, theme
from kd.ui.access import kind_errors, own_runs, readable, token_of
from kd.ui.rendering import render
from kd.ui.result import costs_table, latency_note, times

MOST_PICTURES = 64

# Up to so many images are shown large, as cards; more become a table.
MOST_CARDS = 4

PRIVATE: dict[str, Any] = {"api_visibility": "private"}

EXAMPLES = [str(path) for path in theme.EXAMPLES]


def side_by_side(run: Run, pictures: Sequence[str], thumbnails: bool = False) -> dict[str, Any]:
    """Compare teacher and student of a run (``kd.evaluation.compare``) on up to 64 files.

    Each row has a ``number`` (its place among ``pictures``), a ``disagreement`` and, if asked for, a ``thumbnail`` and the
    ``source``, where the page finds the file. Images with different first choices come first, then those with the larger
    disagreement. Raises ``UserError`` for no images, too many, or none that can be read.
    """
    if not pictures:
        raise UserError("Choose at least one picture: upload or paste your own, or take an example.")
    if len(pictures) > MOST_PICTURES:
        raise UserError(f"{len(pictures)} pictures are too many at once; the most is {MOST_PICTURES}.")
    check_teacher_exists(run)
    found = worker.ask(worker.side_by_side, run.path, list(pictures), thumbnails)
    for nth, row in enumerate(found["pictures"], start=1):
        if thumbnails:
            row["source"] = in_browser.file_address(row["name"])
        row |= {"number": nth, "name": Path(row["name"]).name, "disagreement": disagreement(row)}
    found["pictures"].sort(key=lambda row: (row.get("agree", True), -row["disagreement"]))
    return found


def disagreement(row: dict[str, Any]) -> float:
    """Return half the summed difference of both models' confidences in the classes that are in the top five of either: 0
    for the same answer, 1 for a wholly different one, -1 for an image that cannot be read."""
    if "error" in row:
        return -1.0
    teacher, student = ({top["label"]: top["confidence"] for top in row[side]} for side in ("teacher", "student"))
    return round(sum(abs(teacher.get(k, 0) - student.get(k, 0)) for k in teacher.keys() | student.keys()) / 2, 5)


# --- As HTML


def render_comparison(found: dict[str, Any]) -> str:
    """Render a comparison with thumbnails: the main figures, then a card for each image, or a table of many.

    What the student says in the visitor's browser has its place beside both, filled by the script once it is asked for.
    """
    rows = [{"error": "", **row, "image": row["thumbnail"]} for row in found["pictures"]]
    return render(
        "compare",
        run=found["run"],
        tiles=tiles(found),
        note=found["note"],
        rows=rows,
        csv=data_url(as_csv(rows).encode(), "text/csv") if len(rows) > MOST_CARDS else "",
        costs=costs_table(found, "What each costs"),
        timing=latency_note(found["student"]["latency_ms"]),
    )


def tiles(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the figures that matter most: name, figure, what it is of."""
    count = sum("error" not in row for row in found["pictures"])
    t, s = found["teacher"], found["student"]
    t_ms, s_ms = t["latency_ms"]["p50"], s["latency_ms"]["p50"]
    return [
        ("Agreement", f"{found['agreement']:.0%}", f"same first choice on {count} picture{'s' * (count > 1)}"),
        ("Speed-up", times(found["speedup"]), f"{t_ms:.1f} ms to {s_ms:.1f} ms in PyTorch, median"),
        ("Size ratio", times(found["size_ratio"]), f"{t['megabytes']:.1f} MB to {s['megabytes']:.1f} MB"),
    ]


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Return a line for each image: both first choices with confidences, whether they agree, disagreement, error."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        ("picture", "teacher", "teacher_confidence", "student", "student_confidence", "agree", "disagreement", "error")
    )
    for row in rows:
        cells = [""] * 6
        if not row["error"]:
            t, s = row["teacher"][0], row["student"][0]
            cells = [t["label"], t["confidence"], s["label"], s["confidence"], row["agree"], row["disagreement"]]
        writer.writerow([as_text(cell) for cell in (row["name"], *cells, row["error"])])
    return text.getvalue()


def as_text(cell: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula: text that begins like one gets a quote before it."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def data_url(data: bytes | None, kind: str = "image") -> str:
    """Return bytes as a data URL; nothing for none."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}" if data else ""


# --- The tab


@dataclass
class CompareTab:
    """The widgets that other parts of the page refer to."""

    run: gr.Dropdown
    result: gr.HTML


def build(live: gr.HTML) -> CompareTab:
    """Build the tab: run and images on the left, the answers on the right. ``live`` says which run the page shows."""
    with gr.Row(elem_classes="kd-columns"):
        with gr.Column(scale=3, min_width=300):
            run = gr.Dropdown(
                [], label="Run", info="A finished run of yours", allow_custom_value=True, elem_id="compare-run"
            )
            pictures = gr.Gallery(
                label=f"Pictures, up to {MOST_PICTURES}",
                sources=["upload", "clipboard"],
                type="filepath",
                file_types=["image"],
                columns=4,
                height=260,
                object_fit="contain",
                interactive=True,
                buttons=[],
                elem_id="pictures",
            )
            examples = gr.HTML(
                example_buttons(), apply_default_css=False, elem_id="examples",
                js_on_load="""element.addEventListener("click", (event) => {
                    const nth = event.target.closest("button")?.dataset.nth;
                    if (nth) trigger("take", { nth: Number(nth) });
                })""",
            )  # fmt: skip
            button = gr.Button("Compare", variant="primary", size="lg", elem_id="compare")
        with gr.Column(scale=7, min_width=320):
            in_browser.build(live, run)
            result = gr.HTML(render("compare_empty"), js_on_load=None, apply_default_css=False, elem_id="comparison")
    examples.take(take, pictures, pictures, queue=False, **PRIVATE)
    button.click(
        on_compare, [live, run, pictures], result,
        concurrency_id="compare", concurrency_limit=1, show_progress_on=result, **PRIVATE,
    )  # fmt: skip
    return CompareTab(run, result)


def example_buttons() -> str:
    """Render the examples as buttons with their images, and one for all of them."""
    return render("compare_examples", examples=[(Path(path).stem, png(path)) for path in EXAMPLES])


def png(path: str) -> str:
    """Return a small PNG file as a data URL."""
    return data_url(Path(path).read_bytes())


def take(pictures: list[tuple[str, Any]] | None, event: gr.EventData) -> list[str]:
    """Answer a click on an example: return the gallery's images with that one added, or all examples."""
    nth = event.nth
    if not isinstance(nth, int) or not 0 <= nth < len(EXAMPLES):
        return EXAMPLES
    return [*(path for path, _ in pictures or []), EXAMPLES[nth]]


def on_compare(live: dict | None, id: str | None, pictures: list[tuple[str, Any]] | None) -> str:
    """Answer a click on Compare. A run that is seen through a read-only link can be compared too."""
    with kind_errors():
        if not id:
            raise UserError("Choose a finished run first. The Distill tab makes one.")
        view = live.get("view", "") if isinstance(live, dict) else ""
        paths = [path for path, _ in pictures or []]
        return render_comparison(side_by_side(readable(id, token_of(live), view), paths, thumbnails=True))


def choices(live: dict | None) -> list[tuple[str, str]]:
    """Return the finished runs that a visitor may compare as (words, id), newest first; a run without a teacher is none."""
    token = token_of(live)
    runs = own_runs(token)
    if isinstance(live, dict) and live.get("run") and live["run"] not in [run.id for run in runs]:
        with suppress(UserError):
            runs = [readable(live["run"], token, live.get("view", "")), *runs]
    found = []
    for run in runs:
        with suppress(UserError):  # deleted meanwhile, or damaged
            if status_of(run, summarize(run)) == "done" and run.config().teacher != NO_TEACHER:
                found.append((run_words(run), run.id))
    return found


def run_words(run: Run) -> str:
    """Describe a run on one line."""
    config = run.config()
    when = time.strftime("%d %b %H:%M UTC", time.gmtime(run.settings()["created"]))
    name = f"{run.name()}, " if run.name() else ""
    return f"{when}: {name}{short_name(config.student)}, T {config.temperature:g}, lambda {run.lambda_():g}, {short_name(config.dataset)}"


def offer(live: dict | None, chosen: str | None) -> gr.Dropdown:
    """Answer the opening of the tab: list the runs, and meanwhile import torch in the worker process."""
    if worker.ask.process is None:
        Thread(target=worker.ask, args=(worker.warm_up,), daemon=True).start()
    known = choices(live)
    ids = [id for _, id in known]
    return gr.Dropdown(known, value=chosen if chosen in ids else next(iter(ids), None))
