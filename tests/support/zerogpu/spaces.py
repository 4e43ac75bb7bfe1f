"""A stand-in for Hugging Face's package ``spaces`` on a ZeroGPU Space, with this machine's CPU as the GPU.

It does what ``spaces`` 0.51 does around a decorated function: it asks for a duration, forks a daemonic process, hands it the
pickled arguments, runs the function in a thread there, takes the pickled answer, and keeps the process for the next call.
The package talks to a device API, which grants or refuses, and ends the process when its time is over; here that is the
folder ``KD_ZEROGPU_FOLDER``: ``quota`` has the seconds that are left, ``refusals`` the titles of the next errors, one a line,
and ``calls.jsonl`` is written. How much is done in a second differs from machine to machine; with ``KD_ZEROGPU_LOOKS`` a
piece of a run takes its time for over after it has looked at the clock so many times.
"""

import json
import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from threading import Timer
from typing import Any

if "gradio" in sys.modules and not hasattr(sys.modules["gradio"], "Blocks"):
    raise ImportError("gradio itself is not to import this")

import gradio as gr
from gradio.context import LocalContext

FORK = multiprocessing.get_context("fork")


def error(title: str, message: str) -> gr.Error:
    """The error of the package."""
    return gr.Error(message, title=title, print_exception=False)


class DeviceAPI:
    """Who grants a GPU, in the place of a server."""

    def __init__(self) -> None:
        self.folder = Path(os.environ["KD_ZEROGPU_FOLDER"])

    def text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def schedule(self, seconds: float) -> None:
        request = LocalContext.request.get(None)
        title = ""
        if refusals := self.text("refusals").splitlines():
            title, *rest = refusals
            (self.folder / "refusals").write_text("\n".join(rest))
        elif request is None or ((left := self.text("quota")) and float(left) < seconds):
            title = "ZeroGPU quota exceeded"
        with (self.folder / "calls.jsonl").open("a") as file:
            line = {"time": time.time(), "seconds": seconds, "in_request": request is not None, "refused": title}
            file.write(json.dumps(line) + "\n")
        if title:
            raise error(title, f"{title}: {seconds} s requested")

    def release(self, seconds: float) -> None:
        if left := self.text("quota"):
            (self.folder / "quota").write_text(str(float(left) - seconds))


class Worker:
    """The process that has the GPU."""

    def __init__(self, task: Callable) -> None:
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=serve, args=(task, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.is_idle = True

    def call(self, arguments: tuple, seconds: float) -> Any:
        """The answer; an error of the package where the process raises, or is ended because its time is over."""
        self.pipe.send_bytes(pickle.dumps(arguments))
        timer, self.is_idle = Timer(seconds, self.process.kill), False
        timer.start()
        try:
            name, answer = pickle.loads(self.pipe.recv_bytes())
        except EOFError:
            raise error("ZeroGPU worker error", "GPU task aborted") from None
        finally:
            timer.cancel()
            self.is_idle = True
        if name:
            raise error("ZeroGPU worker error", name)
        return answer


def serve(task: Callable, pipe: Any) -> None:
    """What the forked process does."""
    assert multiprocessing.current_process().daemon
    if looks := os.environ.get("KD_ZEROGPU_LOOKS"):
        end_after(int(looks))

    def run(arguments: tuple) -> tuple[str, Any]:
        try:
            return "", task(*arguments)
        except Exception as problem:
            return type(problem).__name__, None

    while True:
        try:
            arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(run, arguments).result()
        pipe.send_bytes(pickle.dumps(answer))


def end_after(looks: int) -> None:
    """Let pieces of runs in this process end after so many looks at the clock."""
    from kd.runs.pieces import Piece

    in_time = Piece.is_over

    def is_over(piece: Piece, seconds: float) -> bool:
        piece.looks = getattr(piece, "looks", 0) + 1
        return piece.has_gpu and (piece.looks > looks or in_time(piece, seconds))

    Piece.is_over = is_over


# The processes of the functions, each of which is kept for the next call.
workers: list[Worker] = []


def GPU(duration: Callable[..., float]) -> Callable:
    """Decorate a function that has a GPU."""

    def decorate(task: Callable) -> Callable:
        @wraps(task)
        def lent(*arguments: Any) -> Any:
            api, seconds = DeviceAPI(), duration(*arguments)
            api.schedule(seconds)
            workers[:] = [one for one in workers if one.process.is_alive() and one.is_idle]
            if not workers:
                workers.append(Worker(task))
            worker = workers[-1]
            began = time.monotonic()
            try:
                return worker.call(arguments, seconds)
            finally:
                api.release(time.monotonic() - began)

        lent.zerogpu = None
        return lent

    return decorate
