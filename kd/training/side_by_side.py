"""Train several students of a run at the same time, each in a process of its own, where there are threads for all of them."""

import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from kd.errors import UserError
from kd.runs.failures import is_raised_here
from kd.runs.queue import StopAsked
from kd.runs.run import Run
from kd.system.processes import follow_parent
from kd.training.loop import Trained
from kd.training.plan import Trial

Learn = Callable[[Trial], Trained]


@contextmanager
def side_by_side(run: Run, learn: Learn, trials: list[Trial], at_once: int) -> Iterator[Learn]:
    """Yield a function that returns what a trial's training has come to, once it is over.

    With ``at_once`` 1 it trains when it is called. With more, so many trainings go on from the start, in forked processes:
    they share the decoded images and the targets with this one, and import nothing. (The processes of a `DataLoader` are
    made in the same way.) The figures are the same either way. An error of one ends the others; ``STOP`` is obeyed by each.

    Raises, besides what ``learn`` does, ``UserError`` where the system ended a training.
    """
    if min(at_once, len(trials)) < 2:
        yield learn
        return
    forks = multiprocessing.get_context("fork")
    others = set(multiprocessing.active_children())  # of whoever calls this
    with ProcessPoolExecutor(min(at_once, len(trials)), forks, _begin, (run, learn)) as pool:
        futures = {trial: pool.submit(_train, trial) for trial in trials}
        ours = set(multiprocessing.active_children()) - others

        def trained(trial: Trial) -> Trained:
            try:
                return futures[trial].result()
            except BrokenProcessPool:
                raise UserError(f"A training's process is gone. {run.explain_death()} {run.goes_on}") from None

        try:
            yield trained
        except StopAsked:  # the others are about to save what they have learned
            pool.shutdown(cancel_futures=True)
            raise
        except BaseException:
            for process in ours:
                process.terminate()
            raise


# In a forked process: its run, and what trains a student. A function that holds images cannot be sent through a pipe.
_job: tuple[Run, Learn] | None = None


def _begin(run: Run, learn: Learn) -> None:
    import torch

    global _job
    _job = run, learn
    follow_parent()
    # The threads of OpenMP are not there in a forked process, and an operation of several would wait for them for ever.
    torch.set_num_threads(1)


def _train(trial: Trial) -> Trained:
    run, learn = _job
    if run.stop_asked():  # before it was this one's turn
        raise StopAsked
    try:
        return learn(trial)
    except ValueError as error:
        if is_raised_here(error):  # which cannot be told any more once it has come through the pipe
            raise UserError(str(error)) from None
        raise
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # it cannot come through the pipe as it is
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise
