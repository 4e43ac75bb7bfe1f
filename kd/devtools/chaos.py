"""Bad days, made on purpose: ``python -m kd chaos`` kills, fills, starves and cuts small runs, and looks what is left.

Every fault strikes a run of a few hundred of the sample's pictures at a random moment of a given stage. It is survived
if the run then has a status that is true, nothing half-written passes for whole, no lock stays taken and no process is
left; and if a resume ends it with the accuracy of the run that nothing happened to.
"""

import http.client
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
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
from kd.devtools.page import APP, answers, environment, free_port, until, wait_for_page
from kd.errors import UserError
from kd.runs.process import finish_run, start_run
from kd.runs.queue import slot_path
from kd.runs.run import CLOSED, Run
from kd.runs.store import create_run, list_runs
from kd.system.files import ASSETS
from kd.system.processes import is_alive

SIZES = {"train": 400, "validation": 100, "test": 200}

EPOCHS = 4

STAGE_SECONDS = 180
"""How long a stage may be in coming."""

SETTLE_SECONDS = 60
"""How long a run may take to notice a fault."""

LEAVE_SECONDS = 10
"""How long a killed run's helpers may stay: torch's notice within 5 s that it is gone."""

DISK_MEGABYTES = 64

SMALL_FILE = 100_000
"""Bytes: more than a run's events, less than its decoded pictures and its student."""


# --- When


def _event(name: str) -> Callable[[Run], bool]:
    return lambda run: run.last(name) is not None


def _file(pattern: str) -> Callable[[Run], bool]:
    return lambda run: next(run.path.parent.glob(pattern), None) is not None


def _is_saving(run: Run) -> bool:
    return any(not (one / "trainer_state.json").exists() for one in run.path.glob("checkpoints/*/checkpoint-*"))


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
"""Each stage, and how it is seen that it has begun."""

SPANS = {"start": ("started", "data"), "teacher": ("models", "teacher"), "targets": ("teacher", "targets"),
         "step": ("training", "exported"), "test": ("exported", "arm"), "report": ("arm", "done")}  # fmt: skip
"""The events between which a stage lies; the others are a matter of ``MOMENT`` seconds."""

MOMENT = 0.03


# --- What


@dataclass
class Scene:
    """A run in a folder of its own (``runs`` in it), under way."""

    folder: Path
    run: Run
    rng: Random
    page: "Page | None" = None
    notes: list[str] = field(default_factory=list)
    """What went wrong meanwhile."""

    @property
    def pid(self) -> int:
        return self.run.last("started", "resumed")["pid"]


@dataclass(frozen=True)
class Fault:
    """Something that happens to a run at a stage. ``words``: one of these is in the message if the run fails."""

    name: str
    stage: str
    strike: Callable[[Scene], None]
    words: tuple[str, ...] = ()
    mend: Callable[[Scene], None] = lambda scene: None
    through_page: bool = False
    small_disk: bool = False
    goes_on: bool = False
    """The run does not end by it."""


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
    """Kill the trainer, and halve the files that it wrote last, as if they had not reached the disk."""
    kill_trainer(scene)
    written = sorted(scene.run.path.glob("checkpoints/*/checkpoint-*"), key=lambda path: path.stat().st_mtime)
    targets = sorted(scene.run.path.parent.glob(".cache/targets/*/view-*.npy"))
    for file in [*written[-1].iterdir(), targets[-1]]:
        os.truncate(file, file.stat().st_size // 2)


def fill_disk(scene: Scene) -> None:
    """Leave no byte free."""
    with (scene.folder / "filler").open("wb") as file:
        size = 0
        while free := os.statvfs(scene.folder).f_bavail * os.statvfs(scene.folder).f_frsize:
            with suppress(OSError):  # the run was faster
                os.posix_fallocate(file.fileno(), size, free)
                size += free


def empty_disk(scene: Scene) -> None:
    (scene.folder / "filler").unlink()


def limit_memory(scene: Scene) -> None:
    """Let the trainer have what it has, and not a page more."""
    with suppress(psutil.Error, ProcessLookupError):  # the run was faster
        size = psutil.Process(scene.pid).memory_info().vms
        resource.prlimit(scene.pid, resource.RLIMIT_AS, (size, size))


def limit_files(scene: Scene) -> None:
    with suppress(ProcessLookupError):
        resource.prlimit(scene.pid, resource.RLIMIT_FSIZE, (SMALL_FILE, SMALL_FILE))


def start_another(scene: Scene) -> None:
    """A second process for a run that is worked on must refuse."""
    if start_run(scene.run, resume=True).wait(SETTLE_SECONDS) == 0 or scene.run.last("resumed"):
        scene.notes.append("two processes worked on the run")


def take_lock(scene: Scene) -> None:
    """Somebody cleans the lock away and resumes: the first process must leave the run alone."""
    first = scene.pid
    (scene.run.path / "lock").unlink()
    start_run(scene.run, resume=True)
    if not until(lambda: not is_alive(first), SETTLE_SECONDS):
        scene.notes.append("the first process trains on")


def make_read_only(scene: Scene) -> None:
    """Make the disk read-only under a run that died: it can be looked at, and says why it cannot go on."""
    kill_trainer(scene)
    until(lambda: not scene.run.is_locked(), LEAVE_SECONDS)  # a zombie's threads may still have files open
    if not until(lambda: mount("-o", "remount,ro", scene.folder), LEAVE_SECONDS):
        raise Skipped("the disk cannot be made read-only")
    if scene.run.status() != "died" or list_runs(scene.run.path.parent) != [scene.run]:
        scene.notes.append("the run cannot be looked at")
    try:
        start_run(scene.run, resume=True)
        scene.notes.append("a process was started")
    except UserError as error:
        if "nothing can be written" not in str(error):
            scene.notes.append(str(error))


def make_writable(scene: Scene) -> None:
    mount("-o", "remount,rw", scene.folder)


def faults(kills: int, rng: Random) -> Iterator[Fault]:
    """The whole programme; the moments of the kills go round the stages, in a random order each time."""
    victims = (("the trainer", kill_trainer), ("the trainer", kill_trainer), ("the page", kill_page),
               ("the trainer", kill_trainer), ("page and trainer", kill_both))  # fmt: skip
    stages: list[str] = []
    for nth in range(kills):
        stages = stages or rng.sample(list(STAGES), len(STAGES))
        name, strike = victims[nth % len(victims)]
        with_page = strike is not kill_trainer
        yield Fault(f"kill -9 {name}", stages.pop(), strike, through_page=with_page, goes_on=strike is kill_page)
    yield Fault("power cut", "save", cut_power)
    yield Fault("a second resume", "step", start_another, goes_on=True)
    yield Fault("its lock taken away", "step", take_lock, goes_on=True)
    for nth, stage in enumerate(("start", "targets", "step", "save", "export", "report")):
        disk = {"words": ("disk is full",), "mend": empty_disk, "small_disk": True}
        yield Fault("full disk", stage, fill_disk, through_page=nth == 2, **disk)
    yield Fault("read-only disk", "step", make_read_only, mend=make_writable, small_disk=True)
    for stage in ("start", "save"):
        yield Fault("limit on files", stage, limit_files, ("lets a file be", "limit on the size of files"))
    for nth, stage in enumerate(("start", "targets", "step")):
        yield Fault(
            "limit on memory", stage, limit_memory, ("Out of memory", "no further thread"), through_page=nth == 2
        )


# --- Where


@dataclass(frozen=True)
class Page:
    """``app.py`` over a folder, on a port of its own."""

    process: subprocess.Popen
    port: int

    def call(self, name: str, *data: Any) -> Any:
        """What an endpoint of the page's API answers. Raises ``UserError``."""
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
    port = free_port()
    kept = environment(folder, port)
    del kept["KD_CACHE_DIR"]
    with (folder / "page.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(APP)], cwd=folder, env=kept, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
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
    """A disk of its own at ``folder``. Raises ``Skipped`` where mounting is not allowed."""
    if not mount("-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", folder):
        raise Skipped("mounting a small disk needs root on Linux")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


class Skipped(Exception):
    """The fault cannot be made on this machine."""


# --- What is left


def workers(run: Run) -> list[int]:
    """Return the processes that work on a run, its helpers included, which have the same command line."""
    every = psutil.process_iter(["cmdline"])
    return [one.pid for one in every if str(run.path) in (one.info["cmdline"] or ()) and is_alive(one.pid)]


def left_behind(run: Run) -> Iterator[str]:
    """What a dead run still holds."""
    if not until(lambda: not run.is_locked(), 1):
        yield "the run's lock stays taken"
    try:
        with FileLock(slot_path(run.path.parent, "cpu"), timeout=1):
            pass
    except Timeout:
        yield "the device's slot stays taken"
    if not until(lambda: not workers(run), LEAVE_SECONDS):
        yield f"processes {workers(run)} stay"


def half_written(run: Run, unbroken: Run) -> Iterator[str]:
    """Files that pass for whole and are not: of the run, and of its caches, which should be as those of ``unbroken``."""
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
        except Exception as error:  # whatever the libraries say of it
            yield f"{folder.name} is not whole: {error}"
    for file in run.path.parent.glob(".cache/*/**/*.npy"):
        with suppress(ValueError, EOFError):  # one that cannot be read is thrown away by whoever wants it
            if not np.allclose(
                np.load(file), np.load(unbroken.path.parent / file.relative_to(run.path.parent)), atol=1e-3
            ):
                yield f"{file.name} in the cache is another than it should be"


# --- The play


@dataclass(frozen=True)
class Outcome:
    """What came of a fault: the last event before it, the run's status and words after it, and what was wrong."""

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
    """Play every fault, the kills at moments drawn from ``seed``; ``tell`` hears of each as it ends.

    Raises ``UserError`` where even the run that nothing happens to does not end well.
    """
    os.environ.pop("KD_CACHE_DIR", None)  # each run has its cache beside it
    rng, outcomes = Random(seed), []
    with tempfile.TemporaryDirectory(prefix="kd-chaos-", ignore_cleanup_errors=True) as top:
        config = DistillConfig.preset(
            "sample", dataset=str(make_dataset(Path(top) / "pictures")), epochs=EPOCHS, views=2, batch_size=32,
            precision="fp32",
        )  # fmt: skip
        unbroken = create_run(config, Path(top) / "unbroken" / "runs", "chaos")
        if finish_run(unbroken, lambda event: None, new=True) != "done":
            raise UserError(f"The run that nothing happens to: {unbroken.last('failed')}")
        for nth, fault in enumerate(faults(kills, rng)):
            folder = Path(top) / f"{nth:02}"
            folder.mkdir()
            try:
                outcome = play(fault, folder, config, unbroken, rng)
            except (UserError, OSError) as error:
                outcome = Outcome(fault.name, fault.stage, "", "", "", (str(error),))
            tell(outcome)
            outcomes.append(outcome)
            shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def make_dataset(folder: Path) -> Path:
    """A few pictures of the embedded sample, of all its classes."""
    from pyarrow import parquet

    folder.mkdir()
    for split, count in SIZES.items():
        rows = parquet.read_table(ASSETS / "sample" / f"{split}.parquet")
        parquet.write_table(rows.take(np.linspace(0, len(rows) - 1, count, dtype=int)), folder / f"{split}.parquet")
    return folder


def play(fault: Fault, folder: Path, config: DistillConfig, unbroken: Run, rng: Random) -> Outcome:
    """Let a fault strike a new run, see what is left, and resume it."""
    with ExitStack() as stack:
        try:
            if fault.small_disk:
                stack.enter_context(small_disk(folder))
            scene = begin(fault, folder, config, rng, stack)
            run = scene.run
            wait_for(fault.stage, run, unbroken, rng)
            last = run.events()[-1]["event"]
            fault.strike(scene)
        except Skipped as why:
            return Outcome(fault.name, fault.stage, "", str(why), "", skipped=True)
        status = settle(scene, fault)
        said = (run.last("failed") or {}).get("message", "") if status == "failed" else status
        problems = [*scene.notes, *wrong(status, said, fault)]
        if status not in CLOSED and not fault.goes_on:
            kill_trainer(scene)  # it hangs, and a resume would wait for it
        if scene.page:
            problems += page_problems(scene)
        fault.mend(scene)
        if status in CLOSED:
            problems += [*left_behind(run), *half_written(run, unbroken)]
        end = run.status() if run.status() == "done" else finish_run(run, lambda event: None)
        problems += different(run, unbroken) if end == "done" else [f"it ended {end}: {run.last('failed', 'stopped')}"]
        problems += [*left_behind(run), *half_written(run, unbroken)]
        accuracy = run.report()["student"]["accuracy"] if end == "done" else 0.0
        return Outcome(fault.name, fault.stage, last, said, f"{end}, {accuracy:.1%}", tuple(problems))


def begin(fault: Fault, folder: Path, config: DistillConfig, rng: Random, stack: ExitStack) -> Scene:
    """Start a run, by the page or by hand."""
    if not fault.through_page:
        run = create_run(config, folder / "runs", "chaos")
        start_run(run)
        return Scene(folder, run, rng)
    page = stack.enter_context(page_over(folder))
    page.call("start_run", "sample", config.to_dict(), "")
    return Scene(folder, list_runs(folder / "runs")[0], rng, page)


def wait_for(stage: str, run: Run, unbroken: Run, rng: Random) -> None:
    """Until a random moment of a stage. Raises ``UserError`` if it does not come."""
    end = time.monotonic() + STAGE_SECONDS
    while not STAGES[stage](run):
        if time.monotonic() > end or run.last("failed", "stopped"):
            raise UserError(f"The stage {stage} of run {run.id} does not come: {run.events()[-1]}")
        if run.last("done"):
            break  # it was too short to be seen
        time.sleep(0.004)
    begin_, end_ = (unbroken.last(name)["time"] for name in SPANS.get(stage, ("done", "done")))
    time.sleep(rng.random() * (end_ - begin_ or MOMENT))


def settle(scene: Scene, fault: Fault) -> str:
    """The run's status once it has noticed the fault."""
    if not fault.goes_on:
        until(lambda: scene.run.status() in CLOSED, SETTLE_SECONDS)
    return scene.run.status()


def wrong(status: str, said: str, fault: Fault) -> Iterator[str]:
    """What a run should not have become, or said."""
    if status not in CLOSED and not fault.goes_on:
        yield f"it is {status}"
    if status == "failed" and not any(words in said for words in fault.words):
        yield "these are not the words for it"


def page_problems(scene: Scene) -> list[str]:
    """The page lives; or where it was killed, one that is started again shows the run as it is."""
    if scene.page.process.poll() is None:
        return [] if answers(scene.page.port) else ["the page does not answer"]
    with page_over(scene.folder) as page:
        found = page.call("get_run", scene.run.id, "", 0)["status"]
        return [] if found in (scene.run.status(), "running") else [f"the page says {found}"]


def different(run: Run, unbroken: Run) -> list[str]:
    """Whether a resumed run has another accuracy than the one that nothing happened to."""
    ours, theirs = (one.report()["student"]["accuracy"] for one in (run, unbroken))
    return [] if ours == theirs else [f"accuracy {ours:.1%}, unbroken {theirs:.1%}"]
