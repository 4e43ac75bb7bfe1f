"""The page: five tabs over a folder of runs. It keeps no state itself; a second tab or a restart shows the same."""

import inspect
import math
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from kd import limits
from kd.data.library.store import UPLOAD_PREFIX
from kd.errors import UserError
from kd.runs import backup
from kd.system.files import default_runs_folder
from kd.system.zerogpu import is_zerogpu
from kd.ui import compare, datasets, distill, login, runs, settings, students, sweep, theme
from kd.ui.access import keep_clean, kind_errors, own, own_upload, token_of, visitor
from kd.ui.api import public
from kd.ui.api.students import ROUTES
from kd.ui.body_limit import BodyLimit

# Visitors' uploaded pictures are deleted from the server after this time.
CACHE_SECONDS = 3600

# gradio keeps 0.24 MB for each session, and a call by HTTP counts as one too. The page keeps nothing there, so that one
# that is dropped is made again with the next request.
MOST_SESSIONS = 128

# On ZeroGPU so many events may wait for each other.
MOST_QUEUED = 100

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
    if is_zerogpu():
        from kd.ui import zerogpu

        zerogpu.prepare()
    sys.setswitchinterval(SWITCH_SECONDS)
    options = launch_options()
    backup.begin(default_runs_folder())
    keep_clean()
    students.ask_hub()
    page = build()
    tell_mcp()
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
    """Build the page: its tabs, the public API, and what leads from one tab to another."""
    with gr.Blocks(
        title="Distillery", analytics_enabled=False, fill_width=True, delete_cache=(CACHE_SECONDS, CACHE_SECONDS)
    ) as page:
        gr.HTML(theme.header(), js_on_load=None, apply_default_css=False)
        if login.is_offered():
            login.build(page)
        saved = gr.BrowserState(None, storage_key="distillery", secret="distillery-browser-state")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Distill", id="distill"):
                distilling = distill.build()
            with gr.Tab("Pictures", id="data"):
                pictures = datasets.build()
            with gr.Tab("Sweep", id="sweep"):
                sweeping = sweep.build(distilling.widgets)
            with gr.Tab("Compare", id="compare") as compare_tab:
                comparing = compare.build(distilling.live)
            with gr.Tab("Runs", id="runs"):
                listed = runs.build()
        public.add()
        private, live = distill.PRIVATE, distilling.live
        # Through the queue, next to any number of others: outside it gradio shows no error.
        queued = {**private, "queue": True, "concurrency_limit": None}
        for button, begin in ((distilling.button, distill.on_distill), (distilling.make, distill.on_make)):
            button.click(begin, [saved, live, *distilling.widgets], [saved, live], **queued)
        live.prove(distill.on_prove, [saved, live], [saved, live], **queued)
        if is_zerogpu():
            from kd.ui import zerogpu

            # One piece may be asked for before the page has the answer to the one before.
            live.go_on(zerogpu.on_go_on, live, None, trigger_mode="multiple", **queued)
            page.queue(max_size=MOST_QUEUED)  # else gradio lets one event wait on ZeroGPU
        sweeping.button.click(sweep.on_sweep, [live, *sweeping.widgets], sweeping.board, **queued)
        compare_tab.select(compare.offer, [live, comparing.run], comparing.run, **private)
        for source in (live, listed):
            source.compare(to_compare, live, [tabs, comparing.run], **private)
        for source in (sweeping.board, listed):
            source.open(to_run, [saved, live], [tabs, saved, live], **private)
        pictures.use(to_dataset, live, [tabs, *distilling.chosen], **private)
        page.load(arrive, saved, [saved, live, sweeping.board, listed, pictures, tabs], **private)
        page.load(students.offer, None, distilling.student, **private)
    keep_signatures(page)
    return page


def keep_signatures(page: gr.Blocks) -> None:
    """Keep the signature of each kind of component.

    gradio describes all components of a page anew for each session, before its first request is answered, while nobody
    else's is. It works out their signatures each time; that is half of the time.
    """
    for kind in {type(block) for block in page.blocks.values()}:
        kind.__init__.__signature__ = inspect.signature(kind.__init__)


def arrive(
    saved: dict | None, request: gr.Request, profile: gr.OAuthProfile | None
) -> tuple[dict, dict, dict, dict, dict, Any]:
    """Return what a page that is opened begins with.

    That is the token of its browser (a new one for a new visitor) or of whoever is signed in, and the run to show: the one
    in the address, or else the browser's last. With a sweep in the address, the Sweep tab is opened.
    """
    saved, asked = visitor(saved), request.query_params
    owner, shown_sweep = login.owner_of(saved["owner"], request, profile), asked.get("sweep", "")
    run = asked.get("run") or last_run(saved, owner)
    return (
        saved,
        {"run": run, "owner": owner, "view": asked.get("view", "")},
        {"sweep": shown_sweep, "owner": owner},
        {"owner": owner},
        {"owner": owner},
        gr.Tabs(selected="sweep") if shown_sweep else gr.skip(),
    )


def last_run(saved: dict, token: str) -> str | None:
    """Return the run that the browser has shown last, or ``None`` if it is gone or belongs to a login that has signed out."""
    try:
        return own(saved.get("run"), token).id
    except UserError:
        return None


def to_compare(live: dict | None, event: gr.EventData) -> tuple[gr.Tabs, gr.Dropdown]:
    """Open the Compare tab with a run chosen."""
    return gr.Tabs(selected="compare"), compare.offer(live, event.run)


def to_run(saved: dict | None, live: dict | None, event: gr.EventData) -> tuple[gr.Tabs, dict, dict]:
    """Open the Distill tab with a run shown."""
    return (
        gr.Tabs(selected="distill"),
        {**visitor(saved), "run": event.run},
        {"run": event.run, "owner": token_of(live), "new": True},
    )


def to_dataset(live: dict | None, event: gr.EventData) -> list[Any]:
    """Open the Distill tab with one of the visitor's datasets chosen, in the preset for one's own pictures.

    The teacher is left to be chosen, where it now can be seen: the sample's knows other classes.
    """
    with kind_errors():
        upload = own_upload(event.dataset, token_of(live))
        name = upload.info()["name"]
    *updates, own_row = distill.on_preset("custom")
    value = f"{UPLOAD_PREFIX}{upload.id}"
    choices = [*((one, one) for one in settings.suggestions("dataset")), (name, value)]
    updates[list(settings.FIELDS).index("dataset")] = gr.update(choices=choices, value=value)
    updates[list(settings.FIELDS).index("teacher")] = gr.update(value=None)
    return [gr.Tabs(selected="distill"), "custom", *updates, own_row, gr.Accordion(open=True)]


def launch_options() -> dict[str, Any]:
    """Return what ``launch`` takes beside host and port, which are in gradio's own environment variables."""
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
        "state_session_capacity": MOST_SESSIONS,
        "app_kwargs": {"routes": ROUTES, "middleware": [Middleware(BodyLimit)]},
        "footer_links": ["api"],
        "blocked_paths": blocked_paths(),
    }


def blocked_paths() -> list[str]:
    """Return the folder of runs where it lies in gradio's upload folder, whose files are served to anyone with their path."""
    runs_folder, uploads = default_runs_folder().resolve(), Path(get_upload_folder()).resolve()
    return [str(runs_folder)] if runs_folder.is_relative_to(uploads) else []


def tell_mcp() -> None:
    """Say how agents can use the page, where it lacks a package for that."""
    if not has_mcp():
        print("Agents cannot use this page by MCP: `pip install 'mcp<2'`, then start it again.", file=sys.stderr)


def has_mcp() -> bool:
    """Tell whether an ``mcp`` package is installed that gradio can serve: the first major version.

    Where it is, the page is an MCP server: that offers the public API, to the same callers and with the same checks, so
    installing the package is all that has to be decided.
    """
    try:
        return version("mcp").startswith("1.")
    except PackageNotFoundError:
        return False
