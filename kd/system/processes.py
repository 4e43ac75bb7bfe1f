"""Child processes: ``python -m kd`` beside this one, its answers in lines of JSON, and a worker that answers calls."""

import json
import multiprocessing
import os
import signal
import site
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

import psutil

from kd.errors import UserError
from kd.system import memory
from kd.system.files import ROOT

# A child that has said nothing for so long is reported as silent.
SILENCE_SECONDS = 0.5

# A child reports its progress no more often than this.
PROGRESS_SECONDS = 0.2


# --- python -m kd


def kd_command(*arguments: str) -> list[str]:
    """Return the command line of ``python -m kd`` with these arguments.

    ``-P`` keeps Python from importing files of the working folder, which is the user's, in the place of libraries.
    """
    return [sys.executable, "-P", "-m", "kd", *arguments]


def kd_environment() -> dict[str, str]:
    """Return this process's environment, so changed that ``kd_command`` runs the code that runs here.

    Python finds an installed package without help, and a folder of packages on ``PYTHONPATH`` would come before the
    standard library. A checkout, or a folder that only this process knows, has to be named.
    """
    environment = dict(os.environ)
    if str(ROOT) not in (*site.getsitepackages(), site.getusersitepackages()):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    return environment


def start_kd(
    *arguments: str, environment: dict[str, str | None] | None = None, nice: int = 0, **streams: Any
) -> subprocess.Popen:
    """Start ``python -m kd`` with these arguments in a process group of its own, which outlives this process.

    Args:
        environment: variables that are added to those of this process, or with ``None`` taken away from them.
        nice: by so much its priority is lower than this process's.
        streams: ``stdin``, ``stdout`` and ``stderr`` as ``Popen`` takes them; by default nothing is read or kept.
    """
    variables = {**kd_environment(), **(environment or {})}
    process = subprocess.Popen(
        kd_command(*arguments),
        start_new_session=True,
        env={name: value for name, value in variables.items() if value is not None},
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **streams},
    )
    if nice and sys.platform != "win32":
        with suppress(psutil.Error):  # it has ended already
            psutil.Process(process.pid).nice(min(19, os.nice(0) + nice))
    return process


def end_group(process: subprocess.Popen) -> None:
    """Kill a process that ``start_kd`` has started and all that it has started, and wait until it has ended."""
    if sys.platform == "win32":
        process.kill()
    else:
        with suppress(ProcessLookupError, PermissionError):  # macOS says the second of a group that has just ended
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and that nobody has collected yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def may_have_children() -> bool:
    """Tell whether this process may start others with ``multiprocessing``: not one that ends with its parent, such as
    ZeroGPU's, which has the GPU."""
    return not multiprocessing.current_process().daemon


# --- Lines of JSON between a parent and its child


class ChildEnded(UserError):
    """The child ended before it answered. ``reason``: the last line that it wrote to standard error, or its exit code."""

    def __init__(self, reason: str, was_killed: bool) -> None:
        super().__init__(f"The process ended before it answered: {reason}")
        self.reason, self.was_killed = reason, was_killed


class Child:
    """A ``python -m kd`` process that is given a job and answers in lines of JSON (``answer_parent`` is its side).

    The job is the one value on its standard input. It writes ``{"phase", "done", "of"}`` as it goes and at last either
    ``{"answer"}`` or ``{"problem", "kind", "setting"}``. What it writes to standard error is kept for ``ChildEnded``.
    """

    def __init__(self, *arguments: str, job: Any, environment: dict[str, str] | None = None, nice: int = 0) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (``answer`` closes it)
        self.process = start_kd(
            *arguments, environment=environment, nice=nice,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()
        with suppress(BrokenPipeError), self.process.stdin as pipe:  # ``answer`` says why it has ended
            pipe.write(json.dumps(job).encode())

    def _read(self) -> None:
        """Queue every line that the child writes, then an empty one."""
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def answer(self, on_progress: Callable[[dict[str, Any] | None], None] = lambda progress: None) -> Any:
        """Return the child's answer once it has come; the child and all that it has started are ended then.

        ``on_progress`` is called with each report of progress, and with ``None`` whenever the child has been silent for
        ``SILENCE_SECONDS``. It may raise, which ends the child too.

        Raises ``UserError`` with the child's own words, ``ChildEnded`` where it ended before it answered.
        """
        try:
            while True:
                try:
                    line = self._lines.get(timeout=SILENCE_SECONDS)
                except Empty:
                    on_progress(None)
                    continue
                if not line:
                    raise self._ended()
                try:
                    message = json.loads(line)
                except ValueError:  # printed by a library that is not Python, or cut off where the child was killed
                    continue
                if "answer" in message:
                    return message["answer"]
                if "problem" in message:
                    raise UserError(message["problem"], message["kind"], message["setting"])
                on_progress(message)
        finally:
            self.end()
            self._reader.join()
            self.process.stdout.close()
            self._errors.close()

    def _ended(self) -> ChildEnded:
        code = self.process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return ChildEnded(lines[-1].strip() if lines else f"code {code}", was_killed=code < 0)

    def end(self) -> None:
        """Kill the child and all that it has started."""
        end_group(self.process)


Tell = Callable[[str, int, int], None]


def answer_parent(work: Callable[[Any, Tell], Any]) -> int:
    """Do the job that a ``Child`` is given and answer its parent; return the exit code.

    ``work`` is called with the job and with ``tell``, which takes a phase's name and how much of how much is done, and
    returns the answer. A ``UserError`` or ``OSError`` is the answer ``problem``. Whatever libraries print goes to
    standard error.
    """
    answers, last = sys.stdout, 0.0

    def write(**message: Any) -> None:
        print(json.dumps(message), file=answers, flush=True)

    def tell(phase: str, done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_SECONDS or done == of:
            last = time.monotonic()
            write(phase=phase, done=done, of=of)

    job = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):
        try:
            write(answer=work(job, tell))
        except UserError as problem:
            write(problem=str(problem), kind=problem.kind, setting=problem.setting)
            return 1
        except OSError as problem:
            write(problem=str(problem), kind="", setting="")
            return 1
    return 0


# --- A worker that answers calls


class WorkerEnded(UserError):
    """The worker's process ended while it worked on a call."""


class WorkerTimeout(UserError):
    """The worker's process was ended because a call took too long."""


class Worker:
    """Call functions in a process that is started when it is first needed, and again after a call was its end.

    One is called at a time, for at most ``seconds``. ``prepare`` is called in each new process before anything else.
    Answers come back as JSON, never as pickles: a hostile image may have taken over the process that decodes it.
    """

    def __init__(self, prepare: Callable[[], None], seconds: float, method: str = "spawn") -> None:
        self.prepare, self.seconds, self.method = prepare, seconds, method
        self.process: multiprocessing.Process | None = None
        self._lock = Lock()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``function(*arguments)``. The arguments must be ready for pickle, what is returned for JSON.

        Raises ``UserError`` where the function raises it or ``ValueError``, ``RuntimeError`` where it raises anything
        else, ``WorkerEnded`` and ``WorkerTimeout``.
        """
        with self._lock:
            if self.process is None or not self.process.is_alive():
                self._begin()
            try:
                self.pipe.send((function, arguments))
                if not self.pipe.poll(self.seconds):
                    self.end()
                    raise WorkerTimeout(f"No answer came in {self.seconds:g} s.")
                message = json.loads(self.pipe.recv_bytes())
            except (EOFError, OSError):
                self.end()
                raise WorkerEnded("The process ended before it answered.") from None
        if "problem" in message:
            raise UserError(message["problem"], message["kind"], message["setting"])
        if "failure" in message:
            failure = RuntimeError(message["failure"])
            failure.add_note(message["traceback"])
            raise failure
        return message["answer"]

    def is_busy(self) -> bool:
        """Tell whether a call is being answered: another one would wait."""
        return self._lock.locked()

    def _begin(self) -> None:
        self.end()
        context = multiprocessing.get_context(self.method)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.prepare, self.seconds), daemon=True)
        self.process.start()
        theirs.close()

    def end(self) -> None:
        """End the process, and with it what it keeps in memory."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def _serve(pipe: Connection, prepare: Callable[[], None], seconds: float) -> None:
    """Answer calls in the worker's process until its parent is gone."""
    follow_parent()
    prepare()
    with suppress(EOFError, OSError):
        while True:
            function, arguments = pipe.recv()
            # A decoder that hangs may keep the thread that watches the parent from running.
            signal.setitimer(signal.ITIMER_REAL, 2 * seconds)
            try:
                message = {"answer": function(*arguments)}
            except UserError as problem:
                message = {"problem": str(problem), "kind": problem.kind, "setting": problem.setting}
            except ValueError as problem:
                message = {"problem": str(problem), "kind": "", "setting": ""}
            except Exception as error:
                if memory.ran_out(error):
                    return  # the next process begins with none taken
                message = {"failure": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send_bytes(json.dumps(message).encode())


def follow_parent() -> None:
    """Leave Ctrl-C to the parent of this child process, and end when it has ended, whatever ended it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this child process when its parent has ended, whatever ended it."""
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(0)
