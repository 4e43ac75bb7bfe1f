"""The public API: what ``gradio_client``, ``curl`` and an MCP client can call. The docstrings are its description."""

from typing import Any

import gradio as gr

from kd.config import DistillConfig
from kd.runs.summary import status_of, summarize
from kd.ui import distill
from kd.ui.access import kind_errors, new_token, readable, uploaded, valid_cursor
from kd.ui.compare import side_by_side
from kd.ui.progress import progress_line

# How many events an answer has at most, the newest of them.
MOST_EVENTS = 5000


def start_run(preset: str = "sample", settings: dict[str, Any] | None = None, token: str = "") -> dict[str, Any]:
    """Start distilling a student from a teacher, in the background, and return at once.

    Args:
        preset: Settings to start from: sample (built in, offline), beans or custom.
        settings: Settings to change, by name, for example {"temperature": 4, "lambda": 0.7, "epochs": 10}.
        token: On a shared server, the token of an earlier start_run, to own this run too; empty for a new one.

    Returns:
        run (its id), token (keep it: it owns the run on a shared server), status and config.
    """
    with kind_errors():
        if not isinstance(settings or {}, dict):
            raise ValueError(f'settings are {settings!r}; expected names and values, as in {{"epochs": 10}}.')
        config = DistillConfig.preset(preset, **(settings or {}))
        token = token or new_token()
        run = distill.start(config, token)
        return {"run": run.id, "token": token, "status": run.status(), "config": config.to_dict()}


def get_run(run: str, token: str = "", cursor: int = 0) -> dict[str, Any]:
    """Return what a run is doing, and its events since the last call.

    Args:
        run: The run's id.
        token: The token that start_run returned, or the key of a read-only link.
        cursor: The cursor of the last answer, to get only the events since; 0 for all.

    Returns:
        run, status (queued, running, done, failed, stopped, paused or died), line (in words), events, cursor for the next
        call, and report once the run is done.
    """
    with kind_errors():
        found = readable(run, token, token)
        summary = summarize(found)
        status = status_of(found, summary)
        events, cursor = found.read(valid_cursor(cursor))
        line = ", ".join(filter(None, progress_line(summary, status)))
        return {
            "run": found.id, "status": status, "line": line, "events": events[-MOST_EVENTS:], "cursor": cursor,
            "report": found.report(),
        }  # fmt: skip


def stop_run(run: str, token: str = "") -> dict[str, Any]:
    """Ask a run to stop. It ends after the step it is at; the student so far is kept.

    Args:
        run: The run's id.
        token: The token that start_run returned.

    Returns:
        run and status, as they were when the run was asked.
    """
    with kind_errors():
        found = distill.stop(run, token)
        return {"run": found.id, "status": found.status()}


def compare(run: str, images: list[gr.FileData], token: str = "") -> dict[str, Any]:
    """Ask the teacher and the student of a finished run about pictures, and time both.

    Args:
        run: The run's id.
        images: Up to 64 picture files; with gradio_client, [handle_file("a.png"), ...].
        token: The token that start_run returned, or the key of a read-only link.

    Returns:
        pictures (each: name, the top five of teacher and student with confidences, agree, disagreement; or error), the
        most disagreed on first; teacher and student (parameters, megabytes, flops, latency_ms with p50 and p95);
        agreement, speedup, size_ratio, and a note where another run slowed both down.
    """
    with kind_errors():
        return side_by_side(readable(run, token, token), [uploaded(image) for image in images or []])


def add() -> None:
    """Make the four functions endpoints. Only ``compare`` computes, so the others need no place in the queue."""
    for function in (start_run, get_run, stop_run):
        gr.api(function, api_name=function.__name__, queue=False)
    gr.api(compare, api_name="compare", concurrency_id="compare", concurrency_limit=1)
