"""Commands for runs: ``distill teacher estimate run resume watch stop rename runs compare export``."""

import argparse
import dataclasses
import json
import shlex
import signal
from pathlib import Path
from typing import Any

from kd.cli.measure import work_on_sweep_here
from kd.cli.options import (
    BadUsage,
    Command,
    add_child,
    add_json,
    add_preset,
    add_settings,
    config_from,
    given_settings,
    own_run,
    quiet,
    with_folders,
)
from kd.cli.screen import Screen, export_table, result_table, table
from kd.config import NO_TEACHER, OF_PICTURES, RUN_TEACHER, DistillConfig, public_name
from kd.data.library.store import short_name
from kd.errors import UserError
from kd.experiments.sweep import Sweep
from kd.export.bundle import FORMATS, check_formats, check_has_student, check_out, check_packages, export_student
from kd.export.job import check_not_exporting, work_on_export
from kd.export.push_job import check_not_pushing
from kd.runs.process import follow_run, start_run
from kd.runs.run import CLOSED, LONGEST_NAME, Run
from kd.runs.store import create_run, list_runs, local_owner
from kd.system import lazy_imports, memory
from kd.system.files import default_runs_folder
from kd.system.processes import answer_parent

# The settings that a run without a teacher does not have. ``student`` is given as ``--base`` there.
NOT_OF_FINETUNING = (
    "teacher",
    "student",
    "label_map",
    "method",
    "temperature",
    "lambda",
    "weight",
    "baseline",
    "targets",
    "export",
    *(public_name(field) for field in dataclasses.fields(DistillConfig) if "only" in field.metadata),
)

ROW = ("run", "status", "teacher", "student", "temperature", "lambda", "accuracy", "name")

REPORT = "print the report as the last line of standard output"

RUN = {"metavar": "RUN", "help": "its id, the start of one, or last"}


def add(command: Command) -> None:
    one = command("distill", distill, "train a student from a teacher; with no options, the embedded sample, offline")
    add_preset(one)
    add_settings(one)
    add_json(one, REPORT)

    one = command(
        "estimate", estimate, "how long distill would take here with these settings, from a short measurement"
    )
    add_preset(one)
    add_settings(one)
    add_json(one)
    add_child(one)

    one = command(
        "teacher",
        teacher,
        "make a teacher: fine-tune a pretrained model on a dataset's classes, as a run without a teacher",
    )
    one.add_argument("--base", required=True, metavar="HUB_ID_OR_FOLDER", help="the pretrained image classifier")
    add_settings(one, but=NOT_OF_FINETUNING)
    add_json(one, REPORT)

    one = command("run", run_folder, "work on the run in FOLDER, in this process (what distill starts)")
    one.add_argument("folder", type=Path)
    one.add_argument("--resume", action="store_true", help="go on with a run that was closed, or died")

    for name, call, help in (
        ("resume", resume, "go on with a run that was stopped, failed or died, from its last checkpoint"),
        ("watch", watch, "show a run as it goes"),
        ("stop", stop, "ask a run to stop; the best student so far is kept"),
    ):
        one = command(name, call, help)
        one.add_argument("run", **RUN)
        if name != "stop":
            add_json(one, REPORT)

    one = command("rename", rename, "give a run a name; an empty one takes it away")
    one.add_argument("run", **RUN)
    one.add_argument("name", metavar="NAME", help=f"at most {LONGEST_NAME} characters")

    add_json(command("runs", show_runs, "list the runs, newest first"))

    one = command("compare", compare, "compare the answers of a run's teacher and student to your pictures")
    one.add_argument("run", **RUN)
    one.add_argument("images", nargs="+", metavar="IMAGE")
    add_json(one)

    one = command("export", export, "export a run's student to ONNX and int8, scored on its whole test split")
    one.add_argument("run", **RUN)
    one.add_argument("--to", default=",".join(FORMATS), metavar="FORMATS",
                     help=f"{' and '.join(FORMATS)}, with a comma; onnx is always made (default: both)")  # fmt: skip
    one.add_argument("--job", action="store_true", help=argparse.SUPPRESS)  # how the page starts it
    one.add_argument("--out", metavar="FOLDER_OR_ZIP", help="a copy, into a new folder, or a file that ends in .zip")
    add_json(one)


def distill(options: argparse.Namespace) -> int:
    """Create a run, start its process and follow it."""
    config = config_from(options)
    run = create_run(config, options.runs_dir, local_owner(options.runs_dir))
    return _follow(run, options.json, start_run(run))


def teacher(options: argparse.Namespace) -> int:
    """Fine-tune a pretrained model on the dataset as a run, then print how to distil from it."""
    try:
        config = DistillConfig.finetune(options.base, **given_settings(options))
    except ValueError as error:
        raise BadUsage(str(error)) from error
    config = with_folders(config, options.runs_dir)
    run = create_run(config, options.runs_dir, local_owner(options.runs_dir))
    return _follow(run, options.json, start_run(run))


def estimate(options: argparse.Namespace) -> int:
    """Measure for some seconds, then print how long each stage of a run will take."""
    if options.child:
        return answer_parent(lambda job, tell: _estimate(DistillConfig.from_dict(job["config"]), Path(job["runs_dir"])))
    found = _estimate(config_from(options), options.runs_dir)
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["stages"].items())
    print(
        f"about {found['seconds']:.0f} s: {stages} ({found['epochs']} epochs at {found['images_per_second']:,.0f} images/s)"
    )
    if options.json:
        print(json.dumps(found))
    return 0


def _estimate(config: DistillConfig, folder: Path) -> dict[str, Any]:
    """Estimate a run of ``config`` in ``folder``; what was imported until now counts, as a run's process imports it too."""
    lazy_imports.load("kd.training.estimate")
    quiet()
    from kd.system.files import cache_folder
    from kd.training.estimate import estimate as measure

    return measure(config, cache_folder(folder, config.dataset), began=0.0)


def run_folder(options: argparse.Namespace) -> int:
    """Work on a run, or on a sweep, in this process."""
    from kd.distill import execute

    run = Run(options.folder.resolve())
    if (run.path / "sweep.json").exists():
        return work_on_sweep_here(Sweep(run.path))
    signal.signal(signal.SIGTERM, lambda *_: run.ask_to_stop())
    memory.prefer_to_be_killed()
    execute(run, resume=options.resume)
    return 0 if run.status() == "done" else 1


def resume(options: argparse.Namespace) -> int:
    """Go on with a run that was closed, or died, and follow it."""
    run = own_run(options)
    status = run.status()
    if status == "done":
        raise UserError(f"Run {run.id} is done; there is nothing to resume. Its student is in {run.path / 'student'}.")
    if status in ("running", "queued"):
        raise UserError(f"Run {run.id} is {status}. Use `python -m kd watch {run.id}`.")
    check_not_exporting(run, "resume the run")
    check_not_pushing(run, "resume the run")
    return _follow(run, options.json, start_run(run, resume=True), run.read()[1])


def watch(options: argparse.Namespace) -> int:
    """Follow a run from its first event."""
    return _follow(own_run(options), options.json)


def stop(options: argparse.Namespace) -> int:
    """Ask a run to stop."""
    run = own_run(options)
    if run.status() in CLOSED:
        raise UserError(
            f"Run {run.id} is not running: it {'has died' if run.status() == 'died' else 'is ' + run.status()}."
        )
    run.ask_to_stop()
    print(f"Asked run {run.id} to stop.")
    return 0


def rename(options: argparse.Namespace) -> int:
    """Give a run a name, or take it away."""
    run = own_run(options)
    name = run.rename(options.name)
    print(f"Run {run.id} is now called {name!r}." if name else f"Run {run.id} has no name any more.")
    return 0


def show_runs(options: argparse.Namespace) -> int:
    """List the runs."""
    rows = [_row(run) for run in list_runs(options.runs_dir)]
    if options.json:
        print(json.dumps(rows))
    elif rows:
        print(table(list(ROW), [list(row.values()) for row in rows]))
    else:
        print(f"No runs in {options.runs_dir.resolve()} yet. `python -m kd distill` makes one.")
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print the answers of a run's teacher and student to each image, and the table of both models."""
    run = own_run(options)
    quiet()
    from kd.evaluation.compare import compare as compare_models

    found = compare_models(run, options.images)
    if options.json:
        print(json.dumps(found))
        return 0
    rows = []
    for row in found["pictures"]:
        if "error" in row:
            rows.append([Path(row["name"]).name, row["error"], "", ""])
        else:
            best = [f"{row[side][0]['label']} {row[side][0]['confidence']:.0%}" for side in ("teacher", "student")]
            rows.append([Path(row["name"]).name, *best, "same" if row["agree"] else "different"])
    print(table(["picture", "teacher", "student", ""], rows))
    print()
    print(result_table(found, found["agreement"]))
    if found["note"]:
        print(found["note"])
    return 0


def export(options: argparse.Namespace) -> int:
    """Export a run's student and print what was measured of each file."""
    if options.job:  # of a visitor of this server, who was checked
        work_on_export(Run(Path(options.run).resolve()), prepare=quiet)
        return 0
    run, screen = own_run(options), Screen()
    check_formats(options.to)
    check_out(options.out)
    check_packages()
    check_has_student(run)
    screen.line(f"exporting the student of run {run.id}")
    quiet()

    def progress(done: int, of: int) -> None:
        screen.progress(f"test pictures {done:,} of {of:,}", done / max(of, 1))

    try:
        found = export_student(run, options.to, options.out, progress)
    finally:
        screen.clear()
    print(export_table(found))
    print(f"{options.out or found['folder']}")
    if options.json:
        print(json.dumps(found))
    return 0 if all(one["success"] for one in found["files"].values()) else 1


def _row(run: Run) -> dict[str, Any]:
    """Return the row of a run in the list; also of one that cannot be read, such as a damaged or deleted one."""
    try:
        config, report, last = run.config(), run.report(), run.last("eval")
    except (UserError, ValueError):
        return {"run": run.id, "status": "unreadable", **dict.fromkeys(ROW[2:], "")}
    accuracy = (
        f"{report['student']['accuracy']:.1%} test" if report else f"{last['accuracy']:.1%} validation" if last else ""
    )
    if accuracy and run.labels() == "teacher":
        accuracy += ", agreement"
    cells = [
        run.id,
        run.status(),
        short_name(config.teacher),
        short_name(config.student),
        config.temperature,
        run.lambda_(),
        accuracy,
        run.name(),
    ]
    return dict(zip(ROW, cells, strict=True))


def _follow(run: Run, as_json: bool, process: Any = None, cursor: int = 0) -> int:
    """Show a run until it is closed, then its result.

    If it was started here (as ``process``), Ctrl-C asks it to stop, and a second Ctrl-C leaves without waiting for
    that.
    """
    screen = Screen(run)

    def on_signal(*_: Any) -> None:
        if on_signal.again:
            raise KeyboardInterrupt
        on_signal.again = True
        screen.line("Stopping: the best student so far is kept. Ctrl-C again not to wait for it.")
        run.ask_to_stop()

    on_signal.again = False
    if process:
        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)
    try:
        status = follow_run(run, screen.show, process, cursor)
    except KeyboardInterrupt:
        screen.line(f"Left run {run.id}. `python -m kd watch {run.id}` shows it.")
        return 1
    screen.clear()
    if status == "died":
        screen.line(
            f"Run {run.id} died: its process is gone. {run.explain_death()} `python -m kd resume {run.id}` goes on with it."
        )
    if status == "paused":
        screen.line(f"Run {run.id} is paused. {run.last('paused')['message']} {run.goes_on}")
    report = run.report()
    if status != "done" or report is None:
        return 1
    screen.line("\n" + result_table(report, report["agreement"]))
    config = run.config()
    if report.get("verdict"):
        screen.line(report["verdict"]["sentence"])
    screen.line(f"{'model' if config.teacher == NO_TEACHER else 'student'}: {run.path / 'student'}")
    if config.teacher == NO_TEACHER:
        screen.line(f"distil from it: {distil_from(run)}")
    if as_json:
        print(json.dumps(report), flush=True)
    return 0


def distil_from(run: Run) -> str:
    """Return the command that distils from the model that a run has trained, on the same images."""
    values, usual = run.config().to_dict(), DistillConfig().to_dict()
    chosen = {"teacher": f"{RUN_TEACHER}{run.id}"}
    chosen |= {name: values[name] for name in OF_PICTURES if values[name] != usual[name]}
    if run.path.parent != default_runs_folder().resolve():
        chosen["runs_dir"] = run.path.parent
    words = [text for name, value in chosen.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join(["python", "-m", "kd", "distill", "--preset", "custom", *words])
