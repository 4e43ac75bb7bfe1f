"""The recipe, top to bottom: the one place to read first.

Nothing heavy is imported until a run has its device: one that waits for its turn should be small.
"""

import json
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

from kd.config import DistillConfig
from kd.errors import UserError
from kd.runs.failures import failure_message
from kd.runs.queue import StopAsked, device_name, device_slot
from kd.runs.run import LIFECYCLE, Run, RunDeleted, RunTaken, events_by_trial
from kd.runs.store import create_run, local_owner, with_upload
from kd.system import lazy_imports, memory
from kd.system.files import default_runs_folder, write_whole
from kd.system.hub import listening
from kd.training.checkpoints import save_best
from kd.training.loop import train_within_memory
from kd.training.plan import trials_of
from kd.training.report import is_better, keep_students, kept_seed, score_student, scores_of, write_report
from kd.training.setup import Progress, Work, for_trial, prepare

LIBRARIES = (
    "kd.evaluation.compare",
    "kd.data.duplicates",
    "kd.training.labels",
    "kd.training.trainer",
    "torch.utils.tensorboard",
)
"""The modules of a run that bring the libraries along."""


def distill(config: DistillConfig | None = None, runs_dir: Path | str | None = None) -> dict[str, Any]:
    """Distil in this process and return the report (``report.json``; the README explains its fields).

    Raises ``UserError`` (or a ``ValueError`` of the configuration) with a message that says what to do.
    """
    folder = Path(runs_dir) if runs_dir else default_runs_folder()
    config = config or DistillConfig.preset("sample")
    owner = local_owner(folder)
    run = create_run(with_upload(config, folder, owner), folder, owner)
    execute(run)
    report = run.report()
    if report is None:
        raise UserError(f"Run {run.id} was stopped. `python -m kd resume {run.id}` goes on with it.")
    return report


def execute(run: Run, resume: bool = False) -> None:
    """Work on a run until it is closed, its lock and its device's slot held; every ending is an event.

    Raises what went wrong, after the ``failed`` event has said it in words.
    """
    with run.work():
        check_order(run, resume)
        try:
            run.keep_reserve()
            with device_slot(run, device_name(run.config().device)):
                run.append("resumed" if resume else "started", pid=os.getpid(), oom_kills=memory.kills())
                recipe(run)
        except (StopAsked, KeyboardInterrupt):
            run.close("stopped", message=f"Stopped. `python -m kd resume {run.id}` goes on with it.")
        except (RunDeleted, RunTaken):
            raise
        except BaseException as error:
            run.close("failed", message=failure_message(error, run), error=type(error).__name__)
            raise


def check_order(run: Run, resume: bool) -> None:
    """A run is begun once, and resumed only while it is not done. Raises ``UserError``."""
    last = run.last(*LIFECYCLE)
    if last and last["event"] == "done":
        raise UserError(f"Run {run.id} is done; its student is in {run.path / 'student'}.")
    if not resume and last and last["event"] not in ("created", "queued"):
        raise UserError(f"Run {run.id} was begun already. `python -m kd resume {run.id}` goes on with it.")
    run.forget_old_stop()


def recipe(run: Run) -> None:
    """Everything between ``started`` and ``done``."""
    lazy_imports.load(*LIBRARIES)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with listening(lambda text: run.append("hub", message=text), run.stop_asked):
        work = prepare(run, Progress(run))
    arms = trials_of(work.config)
    for arm in arms:
        if not (arm.folder(run) / "scores.json").exists():  # what a resumed run has left to do
            train_arm(run, for_trial(work, arm))
    write_report(run, work, arms)


def train_arm(run: Run, work: Work) -> None:
    """Train one student and measure it on the test split; the ``arm`` event. Of several seeds the best on validation is kept."""
    work, trainer, callback = train_within_memory(run, work)
    save_best(run, work, trainer)
    state, events = trainer.state, events_by_trial(run.events())[work.arm.seed, work.arm.name]
    done = trials_of(work.config)[: work.arm.nth]
    before, validation = scores_of(run, done[:-1]), round(state.best_metric, 5)
    scores = {
        "arm": work.arm.name,
        "seed": work.arm.seed,
        **score_student(run, work),
        "validation": validation,
        "kept": is_better(before, work.arm, validation),
        "best_epoch": round(state.best_global_step * work.config.epochs / state.max_steps),
        "epochs": work.config.epochs,
        "seconds": round(callback.trained, 2),
        "images_per_second": round(
            statistics.median(e["images_per_second"] for e in events if e["event"] == "step"), 1
        ),
    }
    write_whole(work.arm.folder(run) / "scores.json", json.dumps(scores))
    run.append("arm", **scores)
    keep_students(run, done, kept_seed([*before, scores]))
    shutil.rmtree(trainer.args.output_dir, ignore_errors=True)  # the best is kept; the rest only takes space
