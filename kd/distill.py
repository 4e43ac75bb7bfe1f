"""The recipe, top to bottom: the one place to read first.

torch is imported only once the run has its device, so that queued runs use little memory.
"""

from functools import partial
from pathlib import Path
from typing import Any

from kd.config import DistillConfig
from kd.errors import UserError
from kd.export.after_run import export_after_run
from kd.export.bundle import Material
from kd.runs.pieces import Piece, is_in_pieces
from kd.runs.process import closed_by_an_event, follow_run, start_run
from kd.runs.queue import StopAsked, device_slot, devices_of
from kd.runs.run import LIFECYCLE, Run
from kd.runs.store import create_run, local_owner, resolve
from kd.system import lazy_imports
from kd.system.files import default_runs_folder
from kd.system.hub import listening
from kd.training import setup
from kd.training.distributed import ALONE, Ranks, help_first, is_other, ranks_of
from kd.training.loop import Lesson, Trained, load_trained, train
from kd.training.plan import Trial
from kd.training.report import TestSplit, evaluate_on_test, kept_result, load_result, write_report
from kd.training.side_by_side import side_by_side
from kd.training.streaming import load_job_splits

# The modules that import the libraries of a run (torch, transformers, datasets).
LIBRARIES = (
    "kd.evaluation.compare",
    "kd.data.duplicates",
    "kd.training.labels",
    "kd.training.callback",
    "torch.utils.tensorboard",
)


def distill(config: DistillConfig | None = None, runs_dir: Path | str | None = None) -> dict[str, Any]:
    """Distil in this process, or with ``processes`` in several others, and return the report (``report.json``;
    assets/guide/numbers.md explains its fields).

    Args:
        config: the settings; default: those of the preset ``sample``.
        runs_dir: where runs are kept; default: ``KD_RUNS_DIR``, or ``runs``.

    Raises:
        UserError: with a message that says what to do; ``ValueError`` for a setting out of range.
    """
    folder = Path(runs_dir) if runs_dir else default_runs_folder()
    config = config or DistillConfig.preset("sample")
    owner = local_owner(folder)
    run = create_run(resolve(config, folder, owner), folder, owner)
    if run.config().processes == 1:
        execute(run)
    elif follow_run(run, lambda event: None, start_run(run)) in ("failed", "died"):
        failed = run.last("failed")
        raise UserError(failed["message"] if failed else f"Run {run.id} died. {run.explain_death()} {run.goes_on}")
    report = run.report()
    if report is None:
        raise UserError(f"Run {run.id} was stopped. {run.goes_on}")
    return report


def recipe(run: Run, piece: Piece | None = None, ranks: Ranks = ALONE) -> None:
    """Do all that a run does between its events ``started`` and ``done``; or a ``piece`` of it, where its GPU is lent for a
    while only: one without the GPU ends in ``teacher_targets``, one that has it after the last training.

    Where several processes work on it, all of them do this: the first prepares and measures, and all of them ask the teacher
    and train (``kd.training.distributed``).
    """
    import_libraries()
    job = setup.start_job(run, piece, ranks)
    with listening(lambda text: job.tell("hub", message=text), run.stop_asked):
        # --- Data: three splits; no image of validation or test is in train as well
        splits = load_job_splits(job)
        # --- Teacher and student: whatever can be refused is refused here, before anything is computed
        teacher = setup.load_job_teacher(job.config, splits)
        splits = setup.with_classes(splits, teacher, job.config)
        student = setup.build_student(job.config, splits, job.config.seed, teacher)
        # --- Plan: each training of the run, the epochs that fit its minutes, views, precision
        plan = setup.make_plan(job, splits, teacher, student)
        # --- Pixels: training and validation images, decoded once
        pixels = setup.decode(job, plan, splits)
        setup.tell_models(job, plan, teacher, student)
        # --- Targets: the teacher's logits for every view, asked for once
        targets = setup.teacher_targets(job, plan, splits, teacher, pixels)
        pixels = setup.label_pixels(job, plan, splits, pixels, targets)
    # --- Each seed, with the teacher and without: the loss is in kd/training/losses.py
    test, results = TestSplit(job, splits, targets), []

    def learn(trial: Trial) -> Trained:
        if trained := load_trained(run, trial):
            return trained
        fresh_student = partial(setup.build_student, job.config, splits, trial.seed, teacher)
        return train(job, Lesson(plan, trial, fresh_student(), pixels, targets), fresh_student)

    missing = [trial for trial in plan.trials if not trial.is_done(run)]  # a resumed run has others behind it
    if piece and piece.has_gpu:
        for trial in missing:
            learn(trial)
        job.needs_no_gpu()
    untrained = ranks.first("trainings", lambda: [trial for trial in missing if not trial.is_trained(run)])
    with ranks.training(job.device), side_by_side(run, learn, missing, plan.at_once) as trained:
        if not ranks.is_first:
            for trial in untrained:
                learn(trial)
            return
        for trial in plan.trials:
            done = evaluate_on_test(job, trained(trial), test, results) if trial in missing else load_result(run, trial)
            results.append(done)
    # --- Export: the student in ONNX, scored and timed there beside its teacher
    answers = kept_result(results).answers
    onnx = export_after_run(Material(run, splits.train, splits.test, teacher, answers), job.progress("export"))
    # --- Verdict, latency, report
    write_report(job, plan, test, results, onnx)


def execute(run: Run, resume: bool = False) -> None:
    """Work on a run until it is closed, holding its lock and its device; every ending is an event.

    Raises what went wrong, after the ``failed`` event has said it in words.
    """
    if is_other():
        return help_first(run, help_with)
    with run.work():
        check_order(run, resume)
        config = run.config()
        with closed_by_an_event(run), device_slot(run, *devices_of(config.device, config.processes)):
            run.begin(resume)
            import_libraries()
            with ranks_of(run, config) as ranks:
                recipe(run, Piece() if is_in_pieces(run) else None, ranks)


def help_with(run: Run, ranks: Ranks) -> None:
    """Do another process's part of a run, once the first process has prepared it."""
    import_libraries()
    ranks.wait(setup.PREPARED)
    recipe(run, ranks=ranks)


def execute_piece(run: Run, ends: float) -> None:
    """Work on a run while this process has the GPU, which is taken away when ``time.monotonic()`` is ``ends``.

    Whoever calls this holds the run's lock and its place in the queue meanwhile. Raises as ``execute`` does.
    """
    with closed_by_an_event(run):
        run.begin(resume=True)
        if run.stop_asked():
            raise StopAsked
        recipe(run, Piece.with_gpu(run, ends))


def check_order(run: Run, resume: bool) -> None:
    """Refuse, with ``UserError``, to begin a run twice or to resume one that is done."""
    last = run.last(*LIFECYCLE)
    if last and last["event"] == "done":
        raise UserError(f"Run {run.id} is done; its student is in {run.path / 'student'}.")
    if not resume and last and last["event"] not in ("created", "queued"):
        raise UserError(f"Run {run.id} was begun already. {run.goes_on}")
    run.forget_old_stop()


def import_libraries() -> None:
    """Import torch, transformers and datasets, and keep transformers from printing over the run's own lines."""
    lazy_imports.load(*LIBRARIES)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
