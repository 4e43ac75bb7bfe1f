"""Fault tests: ``python -m kd chaos`` kills small runs, fills their disk, limits their memory, and checks what is left.

Every fault is injected into a run on a few hundred images of the sample, at a random moment of a given stage. The run
survives it if its status afterwards is true, no half-written file is taken for a whole one, no lock and no process is
left, and if it reaches, after a resume, the accuracy of the reference run, into which no fault was injected.
"""

import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil
from filelock import FileLock, Timeout

from kd.config import DistillConfig
from kd.devtools.server import EXIT_SECONDS, answers, environment, free_port, start_page, until, wait_for_page
from kd.errors import UserError
from kd.runs.process import finish_run, start_run
from kd.runs.queue import slot_path
from kd.runs.run import CLOSED, Run
from kd.runs.store import create_run, list_runs
from kd.system.files import ASSETS
from kd.system.processes import is_alive

# The small run.
SIZES = {"train": 400, "validation": 100, "test": 200}
EPOCHS = 4

# How long the run may take to reach a stage, and to notice a fault.
STAGE_SECONDS = 180
SETTLE_SECONDS = 60

DISK_MEGABYTES = 64
# Bytes: more than the events of a run, less than its decoded images and its student.
SMALL_FILE = 100_000


# --- When a fault is injected


def _event(name: str) -> Callable[[Run], bool]:
    return lambda run: run.last(name) is not None


def _file(pattern: str) -> Callable[[Run], bool]:
    return lambda run: next(run.path.parent.glob(pattern), None) is not None


def _is_saving(run: Run) -> bool:
    return any(not (one / "trainer_state.json").exists() for one in run.path.glob("checkpoints/*/checkpoint-*"))


# Stage -> how it is seen that it has begun.
STAGES: dict[str, Callable[[Run], bool]] = {
    "start": _event("started"),
    "data": _file(".cache/pixels/*/pixels.part"),
    "teacher": _event("models"),
    "targets": _event("teacher"),
    "step": _event("training"),
    "save": _is_saving,
    "export": _file("*/.student.part"),
    "test": _event("exported"),
    "report": _event("arm"),
}

# The events between which a stage lies; the other stages last about ``MOMENT`` seconds.
SPANS = {"start": ("started", "data"), "teacher": ("models", "teacher"), "targets": ("teacher", "targets"),
         "step": ("training", "exported"), "test": ("exported", "arm"), "report": ("arm", "done")}  # fmt: skip
MOMENT = 0.03


# --- The faults


@dataclass
class Scene:
    """A run at work in a folder of its own; ``notes`` are the problems seen while the fault was injected."""

    folder: Path
    run: Run
    page: "Page | None" = None
    notes: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.run.last("started", "resumed")["pid"]


@dataclass(frozen=True)
class Fault:
    """Something that happens to a run at a stage.

    ``inject`` makes it happen, ``undo`` takes it back before the resume. One of ``words`` is in the message if the run
    fails. ``through_page``: the run was started on the page; ``goes_on``: the fault does not end the run.
    """

    name: str
    stage: str
    inject: Callable[[Scene], None]
    words: tuple[str, ...] = ()
    undo: Callable[[Scene], None] = lambda scene: None
    through_page: bool = False
    small_disk: bool = False
    goes_on: bool = False


def kill_trainer(scene: Scene) -> None:
    with suppress(ProcessLookupError):  # it had ended
        os.kill(scene.pid, signal.SIGKILL)


def kill_page(scene: Scene) -> None:
    scene.page.process.kill()
    scene.page.process.wait()


def kill_both(scene: Scene) -> None:
    kill_page(scene)
    kill_trainer(scene)


def cut_power(scene: Scene) -> None:
    """Kill the trainer and halve the files that it wrote last, as if the rest had not reached the disk."""
    kill_trainer(scene)
    written = sorted(scene.run.path.glob("checkpoints/*/checkpoint-*"), key=lambda path: path.stat().st_mtime)
    targets = sorted(scene.run.path.parent.glob(".cache/targets/*/view-*.npy"))
    for file in [*written[-1].iterdir(), targets[-1]]:
        os.truncate(file, file.stat().st_size // 2)


def fill_disk(scene: Scene) -> None:
    """Leave no byte of the disk free."""
    with (scene.folder / "filler").open("wb") as file:
        size = 0
        while free := os.statvfs(scene.folder).f_bavail * os.statvfs(scene.folder).f_frsize:
            with suppress(OSError):  # the run has taken the space meanwhile
                os.posix_fallocate(file.fileno(), size, free)
                size += free


def empty_disk(scene: Scene) -> None:
    (scene.folder / "filler").unlink()


def limit_memory(scene: Scene) -> None:
    """Allow the trainer the memory that it has now, and no more."""
    with suppress(psutil.NoSuchProcess):  # it had ended
        process = psutil.Process(scene.pid)
        size = process.memory_info().vms
        process.rlimit(psutil.RLIMIT_AS, (size, size))


def limit_files(scene: Scene) -> None:
    with suppress(psutil.NoSuchProcess):
        psutil.Process(scene.pid).rlimit(psutil.RLIMIT_FSIZE, (SMALL_FILE, SMALL_FILE))


def start_another(scene: Scene) -> None:
    """Start a second process for the run, which must refuse to work on it."""
    if start_run(scene.run, resume=True).wait(SETTLE_SECONDS) == 0 or scene.run.last("resumed"):
        scene.notes.append("two processes worked on the run")


def take_lock(scene: Scene) -> None:
    """Delete the lock and resume the run: the first process must leave the run alone."""
    first = scene.pid
    (scene.run.path / "lock").unlink()
    start_run(scene.run, resume=True)
    if not until(lambda: not is_alive(first), SETTLE_SECONDS):
        scene.notes.append("the first process did not end")


def make_read_only(scene: Scene) -> None:
    """Make the disk read-only under a run that died: it can still be read, and a resume says why it cannot go on."""
    kill_trainer(scene)
    until(lambda: not scene.run.is_locked(), EXIT_SECONDS)  # a zombie's threads may still have files open
    if not until(lambda: mount("-o", "remount,ro", scene.folder), EXIT_SECONDS):
        raise Skipped("the disk cannot be made read-only")
    if scene.run.status() != "died" or list_runs(scene.run.path.parent) != [scene.run]:
        scene.notes.append("the run cannot be read")
    try:
        start_run(scene.run, resume=True)
        scene.notes.append("a process was started")
    except UserError as error:
        if "nothing can be written" not in str(error):
            scene.notes.append(str(error))


def make_writable(scene: Scene) -> None:
    mount("-o", "remount,rw", scene.folder)


def faults(kills: int, rng: Random) -> Iterator[Fault]:
    """List all faults. The kills go through the stages in rounds, in a random order each."""
    victims = (("the trainer", kill_trainer), ("the trainer", kill_trainer), ("the page", kill_page),
               ("the trainer", kill_trainer), ("page and trainer", kill_both))  # fmt: skip
    stages: list[str] = []
    for nth in range(kills):
        stages = stages or rng.sample(list(STAGES), len(STAGES))
        name, inject = victims[nth % len(victims)]
        with_page = inject is not kill_trainer
        yield Fault(f"kill -9 {name}", stages.pop(), inject, through_page=with_page, goes_on=inject is kill_page)
    yield Fault("power cut", "save", cut_power)
    yield Fault("a second resume", "step", start_another, goes_on=True)
    yield Fault("its lock taken away", "step", take_lock, goes_on=True)
    for nth, stage in enumerate(("start", "targets", "step", "save", "export", "report")):
        disk = {"words": ("disk is full",), "undo": empty_disk, "small_disk": True}
        yield Fault("full disk", stage, fill_disk, through_page=nth == 2, **disk)
    yield Fault("read-only disk", "step", make_read_only, undo=make_writable, small_disk=True)
    for stage in ("start", "save"):
        yield Fault("limit on files", stage, limit_files, ("lets a file be", "limit on the size of files"))
    for nth, stage in enumerate(("start", "targets", "step")):
        yield Fault(
            "limit on memory", stage, limit_memory, ("Out of memory", "no further thread"), through_page=nth == 2
        )


# --- The page and the small disk


@dataclass(frozen=True)
class Page:
    """The page over a folder, on a port of its own."""

    process: subprocess.Popen
    port: int

    def call(self, name: str, *data: Any) -> Any:
        """Call an endpoint of the page's API and return its answer. Raises ``UserError`` for an error."""
        event = json.loads(self._ask("POST", f"/gradio_api/call/{name}", json.dumps({"data": data})))["event_id"]
        answer = self._ask("GET", f"/gradio_api/call/{name}/{event}")
        if "event: complete" not in answer:
            raise UserError(f"The page answers {answer!r}")
        return json.loads(answer.rsplit("data: ", 1)[1])[0]

    def _ask(self, method: str, path: str, body: str | None = None) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            return connection.getresponse().read().decode()
        finally:
            connection.close()


@contextmanager
def page_over(folder: Path) -> Iterator[Page]:
    """Serve the page over ``folder``, each run's cache among the runs, and kill it in the end."""
    port = free_port()
    variables = environment(folder, port)
    del variables["KD_CACHE_DIR"]
    process = start_page(folder, variables)
    try:
        wait_for_page(process, port, folder / "page.txt")
        yield Page(process, port)
    finally:
        process.kill()
        process.wait()


def mount(*arguments: Any) -> bool:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode == 0


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a small disk at ``folder``. Raises ``Skipped`` where that is not allowed."""
    if not mount("-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", folder):
        raise Skipped("mounting a small disk needs root on Linux")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


class Skipped(Exception):
    """The fault cannot be injected on this machine."""


# --- What is left of the run


def workers(run: Run) -> list[int]:
    """List the processes that work on a run, and their helpers, which have the same command line."""
    found = psutil.process_iter(["cmdline"])
    return [one.pid for one in found if str(run.path) in (one.info["cmdline"] or []) and is_alive(one.pid)]


def left_behind(run: Run) -> Iterator[str]:
    """Tell what a run that has ended still holds: its lock, its device or processes."""
    if not until(lambda: not run.is_locked(), 1):
        yield "the run's lock stays taken"
    try:
        with FileLock(slot_path(run.path.parent, "cpu"), timeout=1):
            pass
    except Timeout:
        yield "the device's slot stays taken"
    # torch's helpers notice within 5 s that their process was killed.
    if not until(lambda: not workers(run), EXIT_SECONDS):
        yield f"processes {workers(run)} stay"


def half_written(run: Run, reference: Run) -> Iterator[str]:
    """Tell which files of the run pass for whole and are not, and which of its cache differ from ``reference``'s."""
    import torch
    from safetensors.torch import load_file

    from kd.training.checkpoints import last_checkpoint

    for file in [*run.path.glob("*.json"), *run.path.glob("arms/*/*.json")]:
        try:
            json.loads(file.read_text())
        except ValueError:
            yield f"{file.name} is no JSON"
    checkpoints = [last_checkpoint(folder) for folder in run.path.glob("checkpoints/*")]
    for folder in [run.path / "student", *(Path(one) for one in checkpoints if one)]:
        try:
            if folder.exists():
                load_file(folder / "model.safetensors")
                json.loads((folder / "config.json").read_text())
                for file in (*folder.glob("*.pt"), *folder.glob("*.pth")):
                    torch.load(file, weights_only=False)
        except Exception as error:  # of any library that reads them
            yield f"{folder.name} is not whole: {error}"
    for file in run.path.parent.glob(".cache/*/**/*.npy"):
        expected = reference.path.parent / file.relative_to(run.path.parent)
        with suppress(ValueError, EOFError):  # a file that cannot be read is replaced by the next run that needs it
            if not np.allclose(np.load(file), np.load(expected), atol=1e-3):
                yield f"{file.name} in the cache has wrong values"


# --- The test


@dataclass(frozen=True)
class Outcome:
    """The result of a fault.

    ``last`` is the last event before it, ``said`` the run's message or status after it, ``end`` its status and accuracy
    after the resume, ``problems`` what was wrong.
    """

    fault: str
    stage: str
    last: str
    said: str
    end: str
    problems: tuple[str, ...] = ()
    skipped: bool = False

    @property
    def verdict(self) -> str:
        return "skipped" if self.skipped else "no: " + "; ".join(self.problems) if self.problems else "yes"


def chaos(kills: int, seed: int, tell: Callable[[Outcome], None]) -> list[Outcome]:
    """Test every fault, the kills at moments drawn from ``seed``; ``tell`` is called with each outcome.

    Raises ``UserError`` where the reference run, without a fault, is not done in the end.
    """
    os.environ.pop("KD_CACHE_DIR", None)  # the cache of each run must be its own
    rng, outcomes = Random(seed), []
    with tempfile.TemporaryDirectory(prefix="kd-chaos-", ignore_cleanup_errors=True) as top:
        config = DistillConfig.preset(
            "sample", dataset=str(make_dataset(Path(top) / "pictures")), epochs=EPOCHS, views=2, batch_size=32,
            precision="fp32",
        )  # fmt: skip
        reference = create_run(config, Path(top) / "reference" / "runs", "chaos")
        if finish_run(reference, lambda event: None, new=True) != "done":
            raise UserError(f"The reference run, without a fault, is not done: {reference.last('failed')}")
        for nth, fault in enumerate(faults(kills, rng)):
            folder = Path(top) / f"{nth:02}"
            folder.mkdir()
            try:
                outcome = try_fault(fault, folder, reference, rng)
            except (UserError, OSError) as error:
                outcome = Outcome(fault.name, fault.stage, "", "", "", (str(error),))
            tell(outcome)
            outcomes.append(outcome)
            shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def make_dataset(folder: Path) -> Path:
    """Write a few images of the embedded sample, of all its classes."""
    from pyarrow import parquet

    folder.mkdir()
    for split, count in SIZES.items():
        rows = parquet.read_table(ASSETS / "sample" / f"{split}.parquet")
        parquet.write_table(rows.take(np.linspace(0, len(rows) - 1, count, dtype=int)), folder / f"{split}.parquet")
    return folder


def try_fault(fault: Fault, folder: Path, reference: Run, rng: Random) -> Outcome:
    """Inject a fault into a new run with the settings of ``reference``, check what is left, and resume the run."""
    with ExitStack() as stack:
        try:
            if fault.small_disk:
                stack.enter_context(small_disk(folder))
            scene = begin(fault, folder, reference.config(), stack)
            run = scene.run
            wait_for(fault.stage, run, reference, rng)
            last = run.events()[-1]["event"]
            fault.inject(scene)
        except Skipped as why:
            return Outcome(fault.name, fault.stage, "", str(why), "", skipped=True)
        status = settle(scene, fault)
        message = (run.last("failed") or {}).get("message", "") if status == "failed" else status
        problems = [*scene.notes, *unexpected(status, message, fault)]
        if status not in CLOSED and not fault.goes_on:
            kill_trainer(scene)  # it hangs, and a resume would wait for it
        if scene.page:
            problems += page_problems(scene)
        fault.undo(scene)
        if status in CLOSED:
            problems += [*left_behind(run), *half_written(run, reference)]
        end = run.status() if run.status() == "done" else finish_run(run, lambda event: None)
        problems += different(run, reference) if end == "done" else [f"it ended {end}: {run.last('failed', 'stopped')}"]
        problems += [*left_behind(run), *half_written(run, reference)]
        accuracy = run.report()["student"]["accuracy"] if end == "done" else 0.0
        return Outcome(fault.name, fault.stage, last, message, f"{end}, {accuracy:.1%}", tuple(problems))


def begin(fault: Fault, folder: Path, config: DistillConfig, stack: ExitStack) -> Scene:
    """Start a run, on the page (which ``stack`` ends) or without one."""
    if not fault.through_page:
        run = create_run(config, folder / "runs", "chaos")
        start_run(run)
        return Scene(folder, run)
    page = stack.enter_context(page_over(folder))
    page.call("start_run", "sample", config.to_dict(), "")
    return Scene(folder, list_runs(folder / "runs")[0], page)


def wait_for(stage: str, run: Run, reference: Run, rng: Random) -> None:
    """Wait for a random moment of a stage, which is as long as that of ``reference``.

    Raises ``UserError`` if the run does not reach it.
    """
    end = time.monotonic() + STAGE_SECONDS
    while not STAGES[stage](run):
        if time.monotonic() > end or run.last("failed", "stopped"):
            raise UserError(f"Run {run.id} did not reach the stage {stage}: {run.events()[-1]}")
        if run.last("done"):
            break  # it was too short to be seen
        time.sleep(0.004)
    begin_, end_ = (reference.last(name)["time"] for name in SPANS.get(stage, ("done", "done")))
    time.sleep(rng.random() * (end_ - begin_ or MOMENT))


def settle(scene: Scene, fault: Fault) -> str:
    """Return the status of the run once it has noticed the fault."""
    if not fault.goes_on:
        until(lambda: scene.run.status() in CLOSED, SETTLE_SECONDS)
    return scene.run.status()


def unexpected(status: str, message: str, fault: Fault) -> Iterator[str]:
    """Tell what is wrong with the status of a run after a fault, and with its message."""
    if status not in CLOSED and not fault.goes_on:
        yield f"it is {status}"
    if status == "failed" and not any(words in message for words in fault.words):
        yield "its message does not name the cause"


def page_problems(scene: Scene) -> list[str]:
    """Tell whether the page answers; where it was killed, whether a new one shows the status of the run."""
    if scene.page.process.poll() is None:
        return [] if answers(scene.page.port) else ["the page does not answer"]
    with page_over(scene.folder) as page:
        found = page.call("get_run", scene.run.id, "", 0)["status"]
        return [] if found in (scene.run.status(), "running") else [f"the page shows {found}"]


def different(run: Run, reference: Run) -> list[str]:
    """Tell whether the resumed run has another accuracy than ``reference``."""
    found, expected = (one.report()["student"]["accuracy"] for one in (run, reference))
    return [] if found == expected else [f"accuracy {found:.1%}, without the fault {expected:.1%}"]
