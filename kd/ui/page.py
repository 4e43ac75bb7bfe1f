"""The page: five tabs over a folder of runs. It keeps nothing itself; a second tab or a restart shows the same."""

import math
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from kd import limits
from kd.data.library.store import UPLOAD_PREFIX
from kd.errors import UserError
from kd.system.files import default_runs_folder
from kd.ui import api, compare, datasets, distill, login, runs, settings, sweep, theme
from kd.ui.access import keep_clean, kind_errors, own, own_upload, token_of, visitor

CACHE_SECONDS = 3600
"""Pictures of visitors are deleted from the server after this time."""

# How long, in seconds, a thread that computes may keep the others waiting. A poll waits many times before it is
# answered, and Python's own 5 ms each time would add up.
SWITCH_SECONDS = 0.0005


def serve(host: str | None = None, port: int | None = None, shared: bool = False) -> None:
    """Serve the page until the process is told to end.

    Args:
        host: The address to listen on. By default that in ``GRADIO_SERVER_NAME``, or 127.0.0.1.
        port: By default that in ``GRADIO_SERVER_PORT``, or the first from 7860 on that is free.
        shared: Whether visitors are kept apart, as they are on a Space and where ``KD_SHARED`` is 1.

    Raises:
        UserError: where nothing can listen on this address and port.
        ValueError: where a limit in the environment is no number.
    """
    if shared:
        os.environ["KD_SHARED"] = "1"  # for the page's child processes too
    sys.setswitchinterval(SWITCH_SECONDS)
    options = launch_options()
    keep_clean()
    page = build()
    try:
        page.launch(server_name=host, server_port=port, **options)
    except OSError as error:
        address = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
        raise UserError(
            f"Nothing can listen at {address} on {f'port {port}' if port else 'any of the ports that were tried'}: "
            "another program does, or the address is not one of this machine's. Choose another with `kd app --host` and "
            "`--port`, or with GRADIO_SERVER_NAME and GRADIO_SERVER_PORT."
        ) from error


def build() -> gr.Blocks:
    """The page's blocks."""
    with gr.Blocks(
        title="Distillery", analytics_enabled=False, fill_width=True, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)
    ) as page:
        gr.HTML(theme.header(), js_on_load=None, apply_default_css=False)
        if login.is_offered():
            login.build(page)
        saved = gr.BrowserState(None, storage_key="distillery", secret="distillery-browser-state")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Distill", id="distill"):
                first = distill.build()
            with gr.Tab("Pictures", id="data"):
                brought = datasets.build()
            with gr.Tab("Sweep", id="sweep"):
                swept = sweep.build(first.widgets)
            with gr.Tab("Compare", id="compare") as second_tab:
                second = compare.build(first.live)
            with gr.Tab("Runs", id="runs"):
                third = runs.build()
        api.add()
        quick = distill.PRIVATE
        # Through the queue, beside any number of others: outside it gradio shows no error.
        queued = {**quick, "queue": True, "concurrency_limit": None}
        for button, begin in ((first.button, distill.on_distill), (first.make, distill.on_make)):
            button.click(begin, [saved, first.live, *first.widgets], [saved, first.live], **queued)
        swept.button.click(sweep.on_sweep, [first.live, *swept.widgets], swept.board, **queued)
        second_tab.select(compare.offer, [first.live, second.run], second.run, **quick)
        for source in (first.live, third):
            source.compare(to_compare, first.live, [tabs, second.run], **quick)
        for source in (swept.board, third):
            source.open(to_run, [saved, first.live], [tabs, saved, first.live], **quick)
        brought.use(to_dataset, first.live, [tabs, *first.chosen], **quick)
        page.load(arrive, saved, [saved, first.live, swept.board, third, brought, tabs], **quick)
    return page


def arrive(
    saved: dict | None, request: gr.Request, profile: gr.OAuthProfile | None
) -> tuple[dict, dict, dict, dict, dict, Any]:
    """A page is opened: its browser's token (a new one for a new visitor), that of whoever is signed in, and the run to
    show, the one in the address or else the last; with a sweep in the address, its tab."""
    saved, asked = visitor(saved), request.query_params
    owner, swept = login.owner_of(saved["owner"], request, profile), asked.get("sweep", "")
    run = asked.get("run") or last_run(saved, owner)
    return (
        saved,
        {"run": run, "owner": owner, "view": asked.get("view", "")},
        {"sweep": swept, "owner": owner},
        {"owner": owner},
        {"owner": owner},
        gr.Tabs(selected="sweep") if swept else gr.skip(),
    )


def last_run(saved: dict, token: str) -> str | None:
    """The run that the browser has shown last, unless it is gone, or that of a login that has signed out."""
    try:
        return own(saved.get("run"), token).id
    except UserError:
        return None


def to_compare(live: dict | None, event: gr.EventData) -> tuple[gr.Tabs, gr.Dropdown]:
    """From a run to the Compare tab, the run chosen."""
    return gr.Tabs(selected="compare"), compare.offer(live, event.run)


def to_run(saved: dict | None, live: dict | None, event: gr.EventData) -> tuple[gr.Tabs, dict, dict]:
    """From the list to the run itself."""
    return (
        gr.Tabs(selected="distill"),
        {**visitor(saved), "run": event.run},
        {"run": event.run, "owner": token_of(live), "new": True},
    )


def to_dataset(live: dict | None, event: gr.EventData) -> list[Any]:
    """From a dataset of the visitor's to the Distill tab, its preset for one's own things, with the dataset chosen and the
    teacher to be: the sample's knows other classes."""
    with kind_errors():
        upload = own_upload(event.dataset, token_of(live))
        name = upload.info()["name"]
    *updates, own_row = distill.on_preset("custom")
    value = f"{UPLOAD_PREFIX}{upload.id}"
    choices = [*((one, one) for one in settings.suggestions("dataset")), (name, value)]
    updates[list(settings.FIELDS).index("dataset")] = gr.update(choices=choices, value=value)
    updates[list(settings.FIELDS).index("teacher")] = gr.update(value=None)
    return [gr.Tabs(selected="distill"), "custom", *updates, own_row]


def launch_options() -> dict[str, Any]:
    """What ``launch`` takes beside host and port, which are in gradio's own environment variables."""
    return {
        "theme": theme.theme(),
        "css": theme.css(),
        "head": theme.head(),
        "show_error": True,
        "ssr_mode": False,
        "run_history": False,
        "enable_monitoring": False,
        "max_file_size": None if (most := limits.current().upload_mb) == math.inf else int(most * 1e6),
        "mcp_server": has_mcp(),
        "footer_links": ["api"],
        "blocked_paths": blocked_paths(),
    }


def blocked_paths() -> list[str]:
    """gradio serves every file of its upload folder to whoever knows the path: not the runs, where they are kept there."""
    runs_folder, uploads = default_runs_folder().resolve(), Path(get_upload_folder()).resolve()
    return [str(runs_folder)] if runs_folder.is_relative_to(uploads) else []


def has_mcp() -> bool:
    """Whether there is an ``mcp`` package that gradio can serve: the first major version."""
    try:
        return version("mcp").startswith("1.")
    except PackageNotFoundError:
        return False
