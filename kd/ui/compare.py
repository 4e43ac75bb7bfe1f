"""The fourth tab: teacher and student side by side on the visitor's pictures."""

import base64
import csv
import html
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
from kd.ui import theme
from kd.ui.access import kind_errors, own_runs, readable, token_of
from kd.ui.result import costs, how_timed, table, times

MOST_PICTURES = 64

CARDS = 4
"""Up to so many pictures are shown large; more become a table."""

PRIVATE: dict[str, Any] = {"api_visibility": "private"}

EXAMPLES = [str(path) for path in theme.EXAMPLES]


def side_by_side(run: Run, pictures: Sequence[str], thumbnails: bool = False) -> dict[str, Any]:
    """``kd.evaluation.compare`` of up to 64 files, each with its ``disagreement`` (and its ``thumbnail``), the most disagreed on first,
    and those with different first choices before all others.

    Raises ``UserError`` for no pictures, too many, or none that can be read.
    """
    if not pictures:
        raise UserError("Choose at least one picture: upload or paste your own, or take an example.")
    if len(pictures) > MOST_PICTURES:
        raise UserError(f"{len(pictures)} pictures are too many at once; the most is {MOST_PICTURES}.")
    check_teacher_exists(run)
    found = worker.ask(worker.side_by_side, run.path, list(pictures), thumbnails)
    for row in found["pictures"]:
        row |= {"name": Path(row["name"]).name, "disagreement": disagreement(row)}
    found["pictures"].sort(key=lambda row: (row.get("agree", True), -row["disagreement"]))
    return found


def disagreement(row: dict[str, Any]) -> float:
    """Half the summed difference of the two models' confidences over what either has in its top five: 0 is the same
    answer, 1 a wholly different one, -1 a picture that cannot be read."""
    if "error" in row:
        return -1.0
    teacher, student = ({top["label"]: top["confidence"] for top in row[side]} for side in ("teacher", "student"))
    return round(sum(abs(teacher.get(k, 0) - student.get(k, 0)) for k in teacher.keys() | student.keys()) / 2, 5)


# --- As HTML


def shown(found: dict[str, Any]) -> str:
    """A comparison with thumbnails: figures, then a card a picture, or a table of many."""
    rows = [(row, row.pop("thumbnail")) for row in found["pictures"]]
    note = f'<p class="kd-note">{html.escape(found["note"])}</p>' if found["note"] else ""
    pictures = cards(rows) if len(rows) <= CARDS else many(rows)
    return f'<div class="kd-list">{figures(found)}{note}{pictures}{details(found)}</div>'


def figures(found: dict[str, Any]) -> str:
    """The four figures that matter, large."""
    good = sum("error" not in row for row in found["pictures"])
    ms = {side: found[side]["latency_ms"] for side in ("teacher", "student")}
    tiles = (
        ("Agreement", f"{found['agreement']:.0%}", f"same first choice on {good} picture{'s' if good > 1 else ''}"),
        ("Speed-up", times(found["speedup"]), f"{ms['teacher']['p50']:.1f} ms to {ms['student']['p50']:.1f} ms, median"),
        ("Size ratio", times(found["size_ratio"]), f"{found['teacher']['megabytes']:.1f} MB to {found['student']['megabytes']:.1f} MB"),
    )  # fmt: skip
    return (
        '<dl class="kd-tiles">'
        + "".join(f"<div><dt>{name}</dt><dd>{big}</dd><dd>{small}</dd></div>" for name, big, small in tiles)
        + "</dl>"
    )


def cards(rows: list[tuple[dict, str]]) -> str:
    """A card for each picture: what it is called, and both top fives as bars."""
    return '<div class="kd-cards">' + "".join(card(row, image) for row, image in rows) + "</div>"


def card(row: dict[str, Any], image: str) -> str:
    name = html.escape(row["name"])
    if "error" in row:
        return (
            f'<article class="kd-card"><h2>{name}</h2><p class="kd-problem">{html.escape(row["error"])}</p></article>'
        )
    same = "both say the same" if row["agree"] else "they differ"
    return (
        f'<article class="kd-card"><img src="{image}" alt="{name}"><h2>{name}</h2><p class="kd-note">{same}</p>'
        f'<div class="kd-pair">{bars("Teacher", row["teacher"])}{bars("Student", row["student"])}</div></article>'
    )


def bars(side: str, top: list[dict[str, Any]], tag: str = "h3") -> str:
    """One model's most likely classes, a bar each, under its name."""
    items = "".join(
        f"<li><span>{html.escape(one['label'])}</span><span>{one['confidence']:.1%}</span>"
        f'<i style="width:{100 * one["confidence"]:.1f}%"></i></li>'
        for one in top
    )
    return f'<div><{tag} class="kd-side">{side}</{tag}><ol class="kd-bars kd-{side.lower()}">{items}</ol></div>'


def many(rows: list[tuple[dict, str]]) -> str:
    """A table, the most disagreed on first, and the same as a CSV file."""
    body = "".join(row_of_many(row, image) for row, image in rows)
    data = base64.b64encode(as_csv([row for row, _ in rows]).encode()).decode()
    return (
        f'<div class="kd-above"><h2>{len(rows)} pictures, the most disagreed on first</h2>'
        f'<a class="kd-button" download="comparison.csv" href="data:text/csv;base64,{data}">Download CSV</a></div>'
        '<table class="kd-table kd-many"><thead><tr><th scope="col">Picture</th><th scope="col">Teacher</th>'
        f'<th scope="col">Student</th><th scope="col">Disagreement</th></tr></thead><tbody>{body}</tbody></table>'
    )


def row_of_many(row: dict[str, Any], image: str) -> str:
    name = html.escape(row["name"])
    if "error" in row:
        return (
            f'<tr><th scope="row">{name}</th><td colspan="3" class="kd-problem">{html.escape(row["error"])}</td></tr>'
        )
    choices = "".join(
        f'<td data-label="{side}">{html.escape(row[side.lower()][0]["label"])} {row[side.lower()][0]["confidence"]:.0%}'
        f'<details><summary aria-label="{side}\'s top five for {name}">top five</summary>{bars(side, row[side.lower()])}</details></td>'
        for side in ("Teacher", "Student")
    )  # fmt: skip
    mark = "" if row["agree"] else ' class="kd-differs"'
    return (
        f'<tr{mark}><th scope="row"><img src="{image}" alt=""> <span>{name}</span></th>{choices}'
        f'<td data-label="Disagreement">{row["disagreement"]:.0%}</td></tr>'
    )


def details(found: dict[str, Any]) -> str:
    """The table of costs, and how the latency was timed."""
    note = f'<p class="kd-note">{html.escape(how_timed(found["student"]["latency_ms"]))}</p>'
    head = ["Measure", "Teacher", "Student", "Student against teacher"]
    return table(head, costs(found), "What each costs", "kd-versus") + note


def as_csv(rows: list[dict[str, Any]]) -> str:
    """A line a picture: both first choices with confidences, whether they agree, disagreement, error."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        ("picture", "teacher", "teacher_confidence", "student", "student_confidence", "agree", "disagreement", "error")
    )
    for row in rows:
        if "error" in row:
            cells = [row["name"], "", "", "", "", "", "", row["error"]]
        else:
            t, s = row["teacher"][0], row["student"][0]
            cells = [
                row["name"],
                t["label"],
                t["confidence"],
                s["label"],
                s["confidence"],
                row["agree"],
                row["disagreement"],
                "",
            ]
        writer.writerow([harmless(cell) for cell in cells])
    return text.getvalue()  # fmt: skip


def harmless(cell: Any) -> Any:
    """A spreadsheet takes text that begins like a formula for one; a quote before it prevents that."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def data_url(picture: bytes | None) -> str:
    """A picture's bytes as a data URL; nothing for none."""
    return f"data:image;base64,{base64.b64encode(picture).decode()}" if picture else ""


# --- The tab


@dataclass
class CompareTab:
    """What the other parts of the page refer to."""

    run: gr.Dropdown
    result: gr.HTML


EMPTY = (
    '<section class="kd-empty"><h2>Nothing compared yet</h2><p>Choose a finished run and some pictures, then click '
    "<b>Compare</b>: teacher and student answer side by side, with their confidences and their times.</p></section>"
)


def build(live: gr.HTML) -> CompareTab:
    """Run and pictures on the left, the answers on the right."""
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
            result = gr.HTML(EMPTY, js_on_load=None, apply_default_css=False, elem_id="comparison")  # fmt: skip
    examples.take(take, pictures, pictures, queue=False, **PRIVATE)
    button.click(
        on_compare, [live, run, pictures], result,
        concurrency_id="compare", concurrency_limit=1, show_progress_on=result, **PRIVATE,
    )  # fmt: skip
    return CompareTab(run, result)


def example_buttons() -> str:
    """The examples as buttons with their pictures, and one for all of them."""
    pictures = "".join(
        f'<button type="button" data-nth="{nth}" aria-label="Add the example {Path(path).stem}"><img alt="" src="{png(path)}"></button>'
        for nth, path in enumerate(EXAMPLES)
    )
    every = f'<button type="button" class="kd-button" data-nth="-1">Take all {len(EXAMPLES)}</button>'
    return f'<div class="kd-examples"><p>Or take examples</p>{pictures}{every}</div>'


def png(path: str) -> str:
    """A small PNG file as a data URL."""
    return data_url(Path(path).read_bytes())


def take(pictures: list[tuple[str, Any]] | None, event: gr.EventData) -> list[str]:
    """An example's button: the pictures with that one added, or all examples."""
    nth = event.nth
    if not isinstance(nth, int) or not 0 <= nth < len(EXAMPLES):
        return EXAMPLES
    return [*(path for path, _ in pictures or []), EXAMPLES[nth]]


def on_compare(live: dict | None, id: str | None, pictures: list[tuple[str, Any]] | None) -> str:
    """The Compare button. A run that is seen through a read-only link can be compared too."""
    with kind_errors():
        if not id:
            raise UserError("Choose a finished run first. The Distill tab makes one.")
        view = live.get("view", "") if isinstance(live, dict) else ""
        paths = [path for path, _ in pictures or []]
        return shown(side_by_side(readable(id, token_of(live), view), paths, thumbnails=True))


def choices(live: dict | None) -> list[tuple[str, str]]:
    """The finished runs that a visitor may compare, those with a teacher, as (words, id), newest first."""
    token = token_of(live)
    runs = own_runs(token)
    if isinstance(live, dict) and live.get("run") and live["run"] not in [run.id for run in runs]:
        with suppress(UserError):
            runs = [readable(live["run"], token, live.get("view", "")), *runs]
    found = []
    for run in runs:
        with suppress(UserError):  # deleted meanwhile, or of another version
            if status_of(run, summarize(run)) == "done" and run.config().teacher != NO_TEACHER:
                found.append((in_words(run), run.id))
    return found


def in_words(run: Run) -> str:
    """A run on one line."""
    config = run.config()
    when = time.strftime("%d %b %H:%M UTC", time.gmtime(run.settings()["created"]))
    name = f"{run.name()}, " if run.name() else ""
    return f"{when}: {name}{short_name(config.student)}, T {config.temperature:g}, lambda {run.lambda_():g}, {short_name(config.dataset)}"


def offer(live: dict | None, chosen: str | None) -> gr.Dropdown:
    """The tab is opened: list the runs, and get torch ready meanwhile."""
    if worker.ask.process is None:
        Thread(target=worker.ask, args=(worker.warm_up,), daemon=True).start()
    known = choices(live)
    ids = [id for _, id in known]
    return gr.Dropdown(known, value=chosen if chosen in ids else next(iter(ids), None))
