"""The GPU of a ZeroGPU Space: lent to a request of a visitor for a while, so that a run is worked on in pieces there.

The page that shows a run asks for each piece with a request of its own, whose visitor's quota it takes. What needs no GPU
is done by ordinary processes before and after (``kd.runs.pieces``). This is the only module of the page in whose process
torch is imported, by ``spaces``; it is imported on such a Space alone, before anything else has imported torch.
"""

import math
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Event, Thread
from typing import Any

import gradio as gr
import httpx
import psutil
import spaces  # before torch, which it imports and puts functions of its own into
from gradio.context import LocalContext

from kd.distill import LIBRARIES, execute_piece
from kd.errors import UserError
from kd.runs.pieces import WORDS, PauseAsked
from kd.runs.process import closed_by_an_event, start_run
from kd.runs.queue import LENT, device_slot, seconds_left
from kd.runs.run import LIFECYCLE, Run, RunDeleted
from kd.system import lazy_imports
from kd.system.processes import end_with_parent
from kd.ui.access import admitted, kind_errors, own, token_of

# Seconds that a GPU is lent for at most, to an anonymous visitor and to one who is signed in with a free account. ZeroGPU
# counts up to 1.5 times as many, of a day's 120 and 300. ``KD_ZEROGPU_SECONDS`` has both where they are others.
MOST_SECONDS = "80,200"

# Seconds below which a piece is not worth its start.
LEAST = 15

# What is expected to be left to do is asked for so many times: a GPU is not lent a second time for a rest of seconds.
SPARE = 1.25

# The title of an error of ``spaces`` -> why the run is paused. Any other has the reason ``queue``.
REASONS = {
    "ZeroGPU quota exceeded": "quota",
    "ZeroGPU pending credits exceeded": "pending",
    "ZeroGPU illegal duration": "duration",
    "ZeroGPU worker error": "worker",
}

# Said in the place of ``WORDS["quota"]`` to who is signed in.
USED_UP = "The GPU time of your account for today is used up. Resume tomorrow."


# Set once all is imported.
_prepared = Event()


def prepare() -> None:
    """Import what a piece needs into the page's process, in the background: ZeroGPU's process is forked from it, and would
    else spend the visitor's time on it."""

    def load() -> None:
        try:
            lazy_imports.load(*LIBRARIES)
        finally:
            _prepared.set()

    Thread(target=load, daemon=True).start()


# --- In the process that has the GPU


@spaces.GPU(duration=lambda run, seconds: seconds)
def chunk(run: Run, seconds: int) -> None:
    """Work on a piece of a run in ZeroGPU's process, which is ended after so many ``seconds``.

    What comes of it is in the run's events. An error is there too, in words, and its traceback in ``stderr.txt``.
    """
    import torch

    begun = time.monotonic()
    if "KD_DEVICE" not in os.environ:  # a new process, whose time began when it was forked; it may be used again
        begun -= max(0.0, time.time() - psutil.Process().create_time())
        os.environ["KD_DEVICE"] = "cuda:0" if torch.cuda.is_available() else "cpu"
        end_with_parent()
    try:
        execute_piece(run, begun + seconds)
    except RunDeleted:
        return
    except Exception:
        with (run.path / "stderr.txt").open("a") as log:
            traceback.print_exc(file=log)


# --- In the page's process


def on_go_on(live: dict[str, Any] | None, event: gr.EventData, profile: gr.OAuthProfile | None) -> None:
    """Work on the next piece of a paused run when the page that shows it asks for one."""
    token = token_of(live)
    with kind_errors():
        go_on(own(event.run, token), token, profile is not None)


def go_on(run: Run, token: str, signed_in: bool) -> None:
    """Lend the GPU for one piece of a paused run, in this request, and start what follows where that needs no GPU.

    Nothing is done where the run is at work already: another page of the visitor has asked first. Raises ``UserError``
    where the visitor has too many runs.
    """
    if run.status() != "paused":
        return
    with admitted(token, run.id):  # nobody else can start a run meanwhile: it is not to last as long as the piece
        pass
    with ExitStack() as stack:
        try:
            stack.enter_context(run.work())
        except UserError:
            if run.status() != "paused":
                return
            raise
        if run.last(*LIFECYCLE)["event"] != "paused":
            return
        run.forget_old_stop()
        work_in_turn(run, signed_in)
    last = run.last(*LIFECYCLE)
    if last["event"] == "paused" and last["reason"] == "cpu":
        start_run(run, resume=True, behind=True)


def work_in_turn(run: Run, signed_in: bool) -> None:
    """Wait for the run's turn, then ask for the GPU; a refusal pauses the run. Waiting with the GPU would cost its time."""
    with closed_by_an_event(run), device_slot(run, LENT):
        if not is_page_open():
            raise PauseAsked("closed")
        run.append("queued", place=1, device=LENT)  # now for one of ZeroGPU's
        lend(run, signed_in)


def lend(run: Run, signed_in: bool) -> None:
    """Ask for the GPU, for a shorter time again where there is no more left, and work on a piece of the run with it.

    Raises ``PauseAsked`` where there is none, or where it was taken away too early.
    """
    _prepared.wait()  # a process that is forked in the middle of an import would wait for its end for ever
    for seconds in amounts(run, signed_in):
        try:
            return chunk(run, seconds)
        except gr.Error as error:
            reason = REASONS.get(error.title, "queue")
        except (RuntimeError, httpx.HTTPError):  # ZeroGPU does not answer as it should
            note_error(run)
            reason = "queue"
        if reason not in ("quota", "duration"):
            break
    if reason == "worker" and run.last(*LIFECYCLE)["event"] not in ("queued", "resumed"):
        return  # it has said itself how it ended
    raise PauseAsked(reason, USED_UP if reason == "quota" and signed_in else WORDS[reason])


def note_error(run: Run) -> None:
    """Write the error that is handled into the run's log."""
    with (run.path / "stderr.txt").open("a") as log:
        traceback.print_exc(file=log)


def amounts(run: Run, signed_in: bool) -> Iterator[int]:
    """Yield the seconds to ask for: what is left to do, as far as a visitor gets as much, then half of it each time."""
    anonymous, known = map(int, os.environ.get("KD_ZEROGPU_SECONDS", MOST_SECONDS).split(","))
    seconds = min(known if signed_in else anonymous, expected(run))
    while True:
        yield math.ceil(seconds)
        if seconds <= LEAST:
            return
        seconds = max(LEAST, seconds / 2)


def expected(run: Run) -> float:
    """Return the seconds that all which still needs the GPU takes with some to spare, infinite before training has shown it."""
    events = run.events()
    last = {event["event"]: event for event in events}
    training, step, begun, saved = (last.get(name) for name in ("training", "step", "resumed", "saved"))
    if not (training and step and begun and saved) or step["time"] < training["time"]:
        return math.inf
    starts = max(0.0, training["time"] - begun["time"])
    saving = saved["saving"] + (saved["evaluating"] or 0.0)
    return max(
        LEAST, SPARE * (starts + seconds_left(events, step["time"]) + saving * (training["of"] - training["nth"] + 1))
    )


def is_page_open() -> bool:
    """Tell whether the page whose request this is still waits for its answer, as ``spaces`` finds it out too."""
    blocks, id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    if blocks is None or id is None:
        return True
    jobs = [event for job in blocks._queue.active_jobs if job for event in job]
    return all(event.alive for event in jobs if event._id == id)
