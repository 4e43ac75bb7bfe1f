"""Let several processes work on one run: each trains on its part of every batch, and asks the teacher about its rows.

The process that holds the run's lock is the *first*. It prepares everything, and writes all events and files; the *others*
wait for it, then read the caches that it has filled. The first starts the others itself, or else `accelerate launch` has
started all of them, perhaps on several machines that share the run's folder.

They wait for each other through a store of names and values, which the first serves, and not in collective operations,
which end after some minutes. Collective operations are used while they train, where all are at the same step.
torch is imported inside functions: a run that waits in the queue is to take little memory.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from kd import limits
from kd.config import DistillConfig
from kd.errors import UserError
from kd.runs.failures import failure_message
from kd.runs.queue import StopAsked, device_name
from kd.runs.run import Run
from kd.system.processes import kd_command, kd_environment

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Value = TypeVar("Value")

# How often a process looks whether another has gone on, in seconds.
POLL_SECONDS = 0.1
# A process may wait so long for the first one to begin, which may have to wait for its turn.
LONGEST_WAIT = timedelta(days=7)
# A collective operation in which a process hangs ends with an error after so long.
LONGEST_OPERATION = timedelta(minutes=30)
# The others need so long at most to leave after the last training, and the first to close a run in which one failed, in seconds.
LEAVING_SECONDS = 20.0
# The first process has so long to find out by itself that another has failed, in seconds.
FINDING_SECONDS = 4.0
# The process id of the first process, in the environment of the others that it has started.
FIRST = "KD_FIRST_PROCESS"
# What says that this process is one of several. They are taken out of the environment except while the processes train
# together: each `Trainer` that sees them would wait for the others.
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")

# What the libraries say where another process is gone. gloo's errors have no type of their own.
LOST = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe", "gloo/transport")


class Over(Exception):
    """The first process has ended the work; the others have nothing more to do."""


class OtherFailed(UserError):
    """Another process of the run has failed, and said why."""


class Ranks:
    """This process's place among those that work on a run: ``rank`` of ``count``, ``local_rank`` on its machine.

    ``store`` is how they wait for each other. All methods do nothing that another process has to take part in where
    ``count`` is 1.
    """

    def __init__(self, rank: int = 0, count: int = 1, local_rank: int = 0, here: int = 1, store: Any = None) -> None:
        self.rank, self.count, self.local_rank, self.here, self.store = rank, count, local_rank, here, store
        self.own_group: Any = None  # of this process alone, while they train

    @property
    def is_first(self) -> bool:
        """Tell whether this process prepares, saves and reports."""
        return self.rank == 0

    # --- Waiting

    def tell(self, name: str, value: Any = None) -> None:
        """Give a value to whoever waits for this name."""
        if self.count > 1:
            self.store.set(name, pickle.dumps(value))

    def wait(self, name: str) -> Any:
        """Return the value of a name once it is told. Raises ``Over`` or ``OtherFailed`` where it will not be."""
        while not self.store.check([name]):
            self.check_others()
            time.sleep(POLL_SECONDS)
        return pickle.loads(self.store.get(name))  # it was told by a process of this run

    def first(self, name: str, make: Callable[[], Value]) -> Value:
        """Return what ``make`` returns in the first process, in all of them."""
        if not self.is_first:
            return self.wait(name)
        value = make()
        self.tell(name, value)
        return value

    def check_others(self) -> None:
        """Raise ``Over`` where the first process has ended the work, and ``OtherFailed`` where another has failed."""
        if self.is_first and self.store.check(["failure"]):
            raise OtherFailed(pickle.loads(self.store.get("failure")))
        if not self.is_first and self.store.check(["over"]):
            raise Over

    def rows(self, count: int) -> slice:
        """Return the part of so many rows that is this process's."""
        return slice(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    # --- While they train

    def agree(self, *flags: bool) -> list[bool]:
        """Return which of these flags at least one process has raised. All processes call it at the same step."""
        if self.count == 1:
            return list(flags)
        import torch

        raised = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(raised, torch.distributed.ReduceOp.MAX)
        return raised.bool().tolist()

    def sum(self, values: "Tensor") -> "Tensor":
        """Return the sum of a tensor over all processes, on the CPU."""
        import torch

        values = values.cpu()
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank."""
        import torch

        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def average(self, tensors: Iterable["Tensor"]) -> None:
        """Replace tensors of one type by their mean over all processes, with one operation."""
        import torch

        tensors = list(tensors)
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        parts = (flat / self.count).split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)])

    @contextmanager
    def training(self, device: "torch.device") -> Iterator[None]:
        """Let `Trainer` train with all processes, for the time of the context.

        On a CPU each process has its share of the threads.
        """
        if self.count == 1:
            yield
            return
        import torch

        threads, on_gpu, before = torch.get_num_threads(), device.type == "cuda", dict(os.environ)
        if on_gpu:
            torch.cuda.set_device(device)
        else:
            torch.set_num_threads(max(1, threads // self.here))
        place = dict(zip(PLACE, map(str, (self.rank, self.count, self.local_rank, self.here)), strict=True))
        os.environ.update(place)
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # else accelerate sets the number
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=torch.distributed.PrefixStore("training", self.store),
            rank=self.rank, world_size=self.count, timeout=LONGEST_OPERATION,
        )  # fmt: skip
        self.own_group, _ = torch.distributed.new_subgroups(1)
        try:
            yield
            torch.distributed.destroy_process_group()  # not after an error: it might wait for one that is gone
        finally:
            torch.set_num_threads(threads)
            os.environ.clear()
            os.environ.update(before)


# The ranks of a run that one process works on.
ALONE = Ranks()


class SharedBatches:
    """This process's part of each batch of a sampler whose order is the same in all processes.

    `accelerate` can cut batches too, but fills the last one up with images of the first, so that an epoch was not that of one
    process; and where a training goes on in the middle of an epoch, it does not tell every sampler which epoch that is. It
    finds the one that is called ``sampler`` here. A last batch of fewer images than ``least`` for each process is left out.
    """

    def __init__(self, sampler: Any, size: int, ranks: Ranks, least: int = 1) -> None:
        self.sampler, self.size, self.ranks, self.least = sampler, size, ranks, least

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.size)
        return whole + (rest >= self.least * self.ranks.count)

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in self.sampler:
            batch.append(index)
            if len(batch) == self.size:
                yield batch[self.ranks.rows(len(batch))]
                batch = []
        if len(batch) >= self.least * self.ranks.count:
            yield batch[self.ranks.rows(len(batch))]


# --- The first process


@contextmanager
def ranks_of(run: Run, config: DistillConfig) -> Iterator[Ranks]:
    """Yield the ranks of the process that holds a run's lock, the first; the others are started here, unless `accelerate
    launch` has started them, and have ended when this returns.

    Where one is gone before its time, this process ends too, at once, as if it had been killed itself: it may be waiting
    for that one in an operation that nothing ends.

    Raises:
        UserError: where this machine has not enough GPUs or cores, or another process has failed.
    """
    place = _place_outside()
    count = place[1] if place else config.processes
    if count == 1:
        yield ALONE
        return
    import torch

    check_batch(config, count)
    if place:
        ranks, others = _join(config.device, *place), []
    else:
        check_machine(config)
        ranks, others = _start_others(run, count)
    done, ending = Event(), Lock()
    watch = partial(_end_with, others, ranks, run, (done, ending))
    Thread(target=watch, daemon=True).start()
    try:
        yield ranks
        done.set()  # who leaves now does so in time
        ranks.tell("over")
        _leave(others)
    except BaseException as error:
        done.set()
        ending.acquire()  # where the other thread has it, that one ends this process
        if is_lost(error):  # the one that is gone may have said why
            _said_why(ranks, error)
        with suppress(torch.distributed.DistError):  # where another machine served the store, it may be gone
            ranks.tell("over")
        raise
    finally:
        done.set()
        for other in others:
            other.kill()
            other.wait()


def check_batch(config: DistillConfig, count: int) -> None:
    """Raise ``UserError`` where a batch cannot be cut into equal parts for so many processes."""
    if config.batch_size % count:
        raise UserError(
            f"batch_size is {config.batch_size} and there are {count} processes: each takes an equal part of every batch. "
            f"Choose a batch size that {count} divides, such as {count * max(1, round(config.batch_size / count))}.",
            setting="batch_size",
        )


def check_machine(config: DistillConfig) -> None:
    """Check that each process of a run has a GPU of this machine, or on the CPU a core.

    Raises ``UserError`` where there are too few, and ``ValueError`` where a server takes fewer.
    """
    limits.check_processes(config.processes)
    device = device_name(config.device)
    if device == "mps":
        raise UserError("Several processes need CUDA GPUs or the CPU. Leave out the processes.", setting="processes")
    if device == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        found, unit = cores, "core"
    else:
        import torch

        found, unit = torch.cuda.device_count(), "GPU"  # those of its run alone: it sees no others
    if config.processes > found:
        raise UserError(
            f"processes is {config.processes}, and this machine has {found} {unit}{'s' * (found != 1)} for the run: each process "
            f"needs one of its own. Choose {found} or fewer.",
            setting="processes",
        )


def _start_others(run: Run, count: int) -> tuple[Ranks, list[subprocess.Popen]]:
    """Serve the store, and start the other processes of a run. They write to the same output and belong to the same group."""
    import torch

    store = torch.distributed.TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)
    others = []
    for rank in range(1, count):
        device = {"KD_DEVICE": f"cuda:{rank}"} if os.environ.get("KD_DEVICE", "").startswith("cuda") else {}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), FIRST: str(os.getpid())}
        place = dict(zip(PLACE, map(str, (rank, count, rank, count)), strict=True))
        others.append(
            subprocess.Popen(
                kd_command("run", str(run.path)),
                env={**kd_environment(), **place, **where, **device},
                stdin=subprocess.DEVNULL,
            )
        )
    return Ranks(0, count, 0, count, store), others


def _end_with(others: list[subprocess.Popen], ranks: Ranks, run: Run, until: tuple[Event, Lock]) -> None:
    """End this process when one of the others is gone before its time, or has said that it failed, ``until`` the event is set.
    The lock is held from the moment on in which it is decided how the run ends.

    Where one has said why, this process has a moment to find that out by itself, and to close the run. It cannot where it
    waits for that one in an operation that nothing ends, as those of GPUs are: then the run is closed here.
    """
    done, ending = until
    store = ranks.store.clone()  # the other thread may wait for an answer of the store itself
    while not done.wait(POLL_SECONDS):
        said = pickle.loads(store.get("failure")) if store.check(["failure"]) else None
        how = _how_one_ended(others)
        if said is None and how is None:
            continue
        if how is not None and said is None and store.check(["failure"]):
            continue  # it has been said just now
        if (said is not None and done.wait(FINDING_SECONDS)) or not ending.acquire(blocking=False):
            return
        print(f"{how or 'A process of the run has failed'}; the run ends with it.", file=sys.stderr, flush=True)
        try:
            if said is not None:
                run.close("failed", message=said, error="OtherFailed", kind="")
                store.set("over", pickle.dumps(None))
        finally:  # whatever happened: nobody is to wait for this process, which may never come back
            for one in others:
                one.kill()
            os._exit(1)


def _how_one_ended(others: list[subprocess.Popen]) -> str | None:
    """Say which of the others is gone before its time, and how it ended; ``None`` where all are at work or have done theirs."""
    for rank, other in enumerate(others, start=1):
        if code := other.poll():
            how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            return f"Process {rank + 1} of {len(others) + 1} {how}"
    return None


def _leave(others: list[subprocess.Popen]) -> None:
    """Wait for the others to end, which have nothing more to do."""
    ends = time.monotonic() + LEAVING_SECONDS
    for other in others:
        with suppress(subprocess.TimeoutExpired):
            other.wait(max(0.0, ends - time.monotonic()))


def is_lost(error: BaseException) -> bool:
    """Tell whether an error says that another process is gone."""
    if "torch" not in sys.modules:
        return False
    import torch

    chain = [error, *filter(None, [error.__cause__, error.__context__])]
    # Else the words may be those of another connection, such as the Hub's.
    together = torch.distributed.is_initialized()
    return any(
        isinstance(link, torch.distributed.DistError) or (together and any(words in str(link) for words in LOST))
        for link in chain
    )


def _said_why(ranks: Ranks, error: BaseException) -> None:
    """Raise ``OtherFailed`` where another process has said why it is gone; else end this process, as if it had been killed."""
    import torch

    for _ in range(20):
        with suppress(torch.distributed.DistError):  # another machine served the store, and is gone too
            if ranks.store.check(["failure"]):
                raise OtherFailed(pickle.loads(ranks.store.get("failure"))) from error
        time.sleep(POLL_SECONDS)
    print(f"A process of the run is gone: {error}", file=sys.stderr, flush=True)
    os._exit(1)


# --- The other processes


@dataclass(frozen=True)
class RunToHelp(Run):
    """A run as its other processes see it: they write no event, and learn from the first whether to stop."""

    def append(self, event: str, **data: Any) -> None:
        """Leave it to the first process, which writes the same."""

    def stop_asked(self) -> bool:
        """Leave it to the first process."""
        return False


def is_other() -> bool:
    """Tell whether this process was started to help another with its run."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and int(os.environ.get("RANK", 0)) > 0


def help_first(run: Run, work: Callable[[Run, Ranks], None]) -> None:
    """Do this process's part of a run that the first process works on: ``work`` with the run as it sees it.

    Raises what went wrong here, after the first process was told in words.
    """
    if FIRST in os.environ:
        _end_with_parent()
    place = _place_outside()
    if place is None:
        raise AssertionError("this process is not one of several")
    ranks = _join(run.config().device, *place)
    try:
        work(RunToHelp(run.path), ranks)
    except (Over, StopAsked):
        return
    except BaseException as error:
        if is_lost(error):
            sys.exit(1)  # the first process is gone, or about to say why
        _tell_failure(ranks, failure_message(error, run))
        raise


def _tell_failure(ranks: Ranks, message: str) -> None:
    """Tell the first process why this one has failed, and wait until it has closed the run: whoever has started both, as
    `accelerate launch` has, kills it as soon as this one ends."""
    import torch

    ends = time.monotonic() + LEAVING_SECONDS
    with suppress(torch.distributed.DistError):  # the first process is gone too, and with it the store
        ranks.tell("failure", message)
        while time.monotonic() < ends and not ranks.store.check(["over"]):
            time.sleep(POLL_SECONDS)


def _end_with_parent() -> None:
    """End this process when the one that has started it is gone, and leave Ctrl-C to that one."""
    parent = int(os.environ[FIRST])
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _place_outside() -> tuple[int, int, int, int] | None:
    """Return rank, count, rank on this machine and count there where this process was started as one of several; they are
    taken out of the environment."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    rank, count, local_rank, here = (os.environ.pop(name, None) for name in PLACE)
    return int(rank or 0), int(count), int(local_rank or rank or 0), int(here or count)


def _join(asked: str, rank: int, count: int, local_rank: int, here: int) -> Ranks:
    """Connect to the store that the first process, or `accelerate launch`, serves."""
    import torch

    if FIRST in os.environ:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = torch.distributed.TCPStore(host, port, count, is_master=False, wait_for_workers=False)
    else:
        if asked != "cpu" and torch.cuda.is_available():
            os.environ["KD_DEVICE"] = f"cuda:{local_rank}"
        place = {"RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ.update(place)
        try:
            store, _, _ = next(torch.distributed.rendezvous("env://", timeout=LONGEST_WAIT))
        finally:
            for name in place:
                os.environ.pop(name, None)
    return Ranks(rank, count, local_rank, here, store)
