"""The recipe, top to bottom: the one place to read first.

Nothing heavy is imported until a run has its device: one that waits for its turn should be small.
"""

import errno
import json
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

from kd.config import DistillConfig
from kd.data.library import store as uploads
from kd.runs import run as runs
from kd.runs.process import StopAsked, device_name, slot
from kd.runs.run import Run, RunDeleted, RunError, RunTaken
from kd.system import lazy_imports as imports
from kd.system import memory
from kd.system.hub import listening
from kd.training.loop import save_best, train_within_memory
from kd.training.report import is_better, keep_students, kept_seed, score_student, scores_of, write_report
from kd.training.setup import Progress, Work, arms_of, at_arm, prepare

LIBRARIES = (
    "kd.evaluation.compare",
    "kd.data.duplicates",
    "kd.training.labels",
    "kd.training.trainer",
    "torch.utils.tensorboard",
)
"""The modules of a run that bring the libraries along."""
DISK = {
    errno.ENOSPC: "The disk is full ({place}). Free some space",
    errno.EDQUOT: "Your share of the disk is used up ({place}). Free some space",
    errno.EFBIG: "A file in {place} became larger than this system lets a file be (`ulimit -f`). Raise that limit",
    errno.EROFS: "Nothing can be written to {place}: it is read-only. Make it writable",
}
"""What the system says of a file that cannot be written, in words. By its text: safetensors hands no number on."""


def distill(config: DistillConfig | None = None, runs_dir: Path | str | None = None) -> dict[str, Any]:
    """Distil in this process and return the report (``report.json``; the README explains its fields).

    Raises ``RunError`` (or a ``ValueError`` of the configuration) with a message that says what to do.
    """
    folder = Path(runs_dir) if runs_dir else runs.default_folder()
    config = config or DistillConfig.preset("sample")
    owner = runs.local_owner(folder)
    run = runs.create(uploads.resolved(config, folder, owner), folder, owner)
    execute(run)
    report = run.report()
    if report is None:
        raise RunError(f"Run {run.id} was stopped. `python -m kd resume {run.id}` goes on with it.")
    return report


def execute(run: Run, resume: bool = False) -> None:
    """Work on a run until it is closed, its lock and its device's slot held; every ending is an event.

    Raises what went wrong, after the ``failed`` event has said it in words.
    """
    with run.work():
        check_order(run, resume)
        try:
            run.keep_reserve()
            with slot(run, device_name(run.config().device)):
                run.append("resumed" if resume else "started", pid=os.getpid(), oom_kills=memory.kills())
                recipe(run)
        except (StopAsked, KeyboardInterrupt):
            run.close("stopped", message=f"Stopped. `python -m kd resume {run.id}` goes on with it.")
        except (RunDeleted, RunTaken):
            raise
        except BaseException as error:
            run.close("failed", message=in_words(error, run), error=type(error).__name__)
            raise


def check_order(run: Run, resume: bool) -> None:
    """A run is begun once, and resumed only while it is not done. Raises ``RunError``."""
    last = run.last(*runs.LIFECYCLE)
    if last and last["event"] == "done":
        raise RunError(f"Run {run.id} is done; its student is in {run.path / 'student'}.")
    if not resume and last and last["event"] not in ("created", "queued"):
        raise RunError(f"Run {run.id} was begun already. `python -m kd resume {run.id}` goes on with it.")
    run.forget_old_stop()


def in_words(error: BaseException, run: Run) -> str:
    """What a person can do about an error."""
    if not run.path.exists():
        return str(RunDeleted(f"The folder of run {run.id} was deleted while it ran: {run.path}"))
    again, place = (
        f", then `python -m kd resume {run.id}`.",
        (isinstance(error, OSError) and error.filename) or run.path,
    )
    if said := [words for number, words in DISK.items() if os.strerror(number) in str(error)]:
        return said[0].format(place=place) + again
    if shutil.disk_usage(run.path).free < runs.RESERVE_BYTES:  # torch.save says less
        return DISK[errno.ENOSPC].format(place=run.path) + again
    if memory.ran_out(error):
        return f"Out of memory. Choose a smaller batch size, image size or student; or free some memory{again}"
    if "can't start new thread" in str(error):
        return f"The system allows no further thread: memory or processes (`ulimit -u`) are at their limit. Raise it{again}"
    if any(words in str(error) for words in ("PytorchStreamWriter", "iostream error", "unexpected pos")):
        return (
            f"The disk is full, or was when a file in {run.path} was written, or a limit on the size of files is set "
            f"(`ulimit -f`). Mend it{again}"
        )
    if isinstance(error, RunError | ValueError) and not isinstance(error, UnicodeError):
        return str(error)
    return f"{type(error).__name__}: {error}. This is our mistake, not yours; the traceback is in stderr.txt."


def recipe(run: Run) -> None:
    """Everything between ``started`` and ``done``."""
    imports.load(*LIBRARIES)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with listening(run):
        work = prepare(run, Progress(run))
    arms = arms_of(work.config)
    for arm in arms:
        if not (arm.folder(run) / "scores.json").exists():  # what a resumed run has left to do
            train_arm(run, at_arm(work, arm))
    write_report(run, work, arms)


def train_arm(run: Run, work: Work) -> None:
    """Train one student and measure it on the test split; the ``arm`` event. Of several seeds the best on validation is kept."""
    work, trainer, callback = train_within_memory(run, work)
    save_best(run, work, trainer)
    state, events = trainer.state, runs.by_arm(run.events())[work.arm.seed, work.arm.name]
    done = arms_of(work.config)[: work.arm.nth]
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
    runs.write_whole(work.arm.folder(run) / "scores.json", json.dumps(scores))
    run.append("arm", **scores)
    keep_students(run, done, kept_seed([*before, scores]))
    shutil.rmtree(trainer.args.output_dir, ignore_errors=True)  # the best is kept; the rest only takes space
