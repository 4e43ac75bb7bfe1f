"""The command line: ``python -m kd`` or ``kd``. Exit codes: 0 done, 1 failed or stopped, 2 bad usage."""

import argparse
import dataclasses
import json
import math
import os
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kd import launch, limits, memory, runs, uploads, visitors
from kd import sweep as sweeps
from kd.bench_rows import SCALES, Plan
from kd.config import CHECKED, NO_TEACHER, OF_PICTURES, PRESETS, RUN_TEACHER, SAMPLE, DistillConfig, public_name
from kd.runs import Run, RunError
from kd.sweep import SWEPT, Grid, Sweep
from kd.uploads import short


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        return options.call(options)
    except RunError as problem:
        print(f"kd: {problem}", file=sys.stderr)
        return 1
    except BadUsage as problem:
        print(f"kd: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has had enough
        sys.stderr.close()
        return 1
    except OSError as problem:
        print(f"kd: {problem}", file=sys.stderr)
        return 1


OF_A_TEACHER = (
    "teacher", "student", "label_map", "method", "temperature", "lambda", "weight", "baseline", "targets",
    *(public_name(field) for field in dataclasses.fields(DistillConfig) if "only" in field.metadata),
)  # fmt: skip
"""The settings that a run without a teacher has no use for, and the base's name."""
ROW = ("run", "status", "teacher", "student", "temperature", "lambda", "accuracy", "name")


MOST_SKIPPED, MOST_REASONS = 20, 8
"""Of an import that is refused so many skipped files are named, and so many reasons of the others."""


class BadUsage(Exception):
    """What was asked for makes no sense; nothing was begun."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="kd", description="Turn a big image classifier into a small, fast one.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, call: Any, help: str, under: Any = commands) -> argparse.ArgumentParser:
        one = under.add_parser(name, help=help, description=help)
        one.add_argument("--runs-dir", type=Path, default=runs.default_folder(), metavar="FOLDER",
                         help="where runs are kept (default: KD_RUNS_DIR, or runs)")  # fmt: skip
        one.set_defaults(call=call)
        return one

    one = command("distill", distill, "train a student from a teacher; with no options, the embedded sample, offline")
    _add_preset(one)
    _add_settings(one)
    one.add_argument("--json", action="store_true", help="print the report as the last line of standard output")

    one = command(
        "estimate", estimate, "how long distill would take here with these settings, from a short measurement"
    )
    _add_preset(one)
    _add_settings(one)
    one.add_argument("--json", action="store_true", help="print it as the last line of standard output")

    one = command(
        "teacher",
        teacher,
        "make a teacher: fine-tune a pretrained model on a dataset's classes, as a run without a teacher",
    )
    one.add_argument("--base", required=True, metavar="HUB_ID_OR_FOLDER", help="the pretrained image classifier")
    _add_settings(one, but=OF_A_TEACHER)
    one.add_argument("--json", action="store_true", help="print the report as the last line of standard output")

    one = command(
        "labels", label_table, "show which class of a teacher is taken for which of a dataset, without training"
    )
    wanted = ("teacher", "label_map", *OF_PICTURES)
    _add_settings(
        one,
        but=tuple(name for field in dataclasses.fields(DistillConfig) if (name := public_name(field)) not in wanted),
    )
    one.add_argument("--json", action="store_true")
    one.set_defaults(preset="custom")

    one = command(
        "check",
        check,
        "look at a dataset before training: duplicates, labels, classes, sizes, files that cannot be read",
    )
    one.set_defaults(preset="custom")
    _add_settings(
        one, but=tuple(name for name in map(public_name, dataclasses.fields(DistillConfig)) if name not in CHECKED)
    )
    one.add_argument(
        "--out", type=Path, metavar="FILE", help="keep the check: FILE.html, a page with pictures, or FILE.json"
    )
    one.add_argument("--json", action="store_true", help="print the check as the last line of standard output")

    one = command("run", run_folder, "work on the run in FOLDER, in this process (what distill starts)")
    one.add_argument("folder", type=Path)
    one.add_argument("--resume", action="store_true", help="go on with a run that was closed, or died")
    one.add_argument("--nice", type=int, default=0, metavar="N", help="lower the priority by so much (default: 0)")

    for name, call, help in (
        ("resume", resume, "go on with a run that was stopped, failed or died, from its last checkpoint"),
        ("watch", watch, "show a run as it goes"),
        ("stop", stop, "ask a run to stop; the best student so far is kept"),
    ):
        one = command(name, call, help)
        one.add_argument("run", metavar="RUN", help="its id, the start of one, or last")
        if name != "stop":
            one.add_argument("--json", action="store_true", help="print the report as the last line of standard output")

    one = command("rename", rename, "give a run a name; an empty one takes it away")
    one.add_argument("run", metavar="RUN", help="its id, the start of one, or last")
    one.add_argument("name", metavar="NAME", help=f"at most {runs.LONGEST_NAME} characters")

    command("runs", list_runs, "list the runs, newest first").add_argument("--json", action="store_true")

    one = command("clean", clean, "delete the runs and datasets of a shared server's visitors who have not come back")
    one.add_argument("--days", metavar="DAYS", help="for so long (default: KD_IDLE_DAYS)")
    one.add_argument("--yes", action="store_true", help="delete; without it they are only listed")

    command("limits", show_limits, "list the limits of this server, and the environment variables that change them")
    one = command("import", bring, "store the pictures of an archive or a folder as a dataset, for many runs")
    one.add_argument("source", nargs="?", type=Path, metavar="SOURCE", help="a zip, a tar (.gz, .bz2, .xz) or a folder")
    one.add_argument("--name", default="", help="what to call it (default: as the source is called)")
    one.add_argument("--json", action="store_true", help="print what was found as the last line of standard output")
    one.add_argument("--child", action="store_true", help=argparse.SUPPRESS)

    one = command("datasets", datasets, "list the datasets that were imported, with their sizes, or delete one")
    one.add_argument("action", nargs="?", choices=["delete"])
    one.add_argument("dataset", nargs="?", metavar="ID", help="its id, the start of one, or last")
    one.add_argument("--json", action="store_true")

    one = command("compare", compare, "a run's teacher and student side by side on your pictures")
    one.add_argument("run", metavar="RUN", help="its id, the start of one, or last")
    one.add_argument("images", nargs="+", metavar="IMAGE")
    one.add_argument("--json", action="store_true")

    one = command("students", students, "list the students with random weights: parameters and FLOPs")
    one.add_argument("--image-size", type=int, default=224, help="side of the pictures in pixels (default: 224)")
    one.add_argument("--json", action="store_true")

    one = command(
        "study", study, "the settings that FILE varies, over its seeds, compared; it can be stopped and goes on"
    )
    one.add_argument("file", type=Path, metavar="FILE", help="JSON; the README shows one")
    one.add_argument("--show", action="store_true", help="train nothing, show the results so far")

    one = command(
        "sweep", sweep, "temperatures x lambdas x methods: all briefly, the best for longer, the winner proved"
    )
    for field in dataclasses.fields(Grid):
        one.add_argument(f"--{field.name.replace('_', '-')}", metavar="VALUE", help=_help(field))
    _add_preset(one)
    _add_settings(one, but=(*SWEPT, "trials"))
    one.add_argument("--trials", dest="set_trials", metavar="VALUE", help="the winner's fresh seeds (default: 3)")
    one.add_argument("--resume", metavar="SWEEP", help="go on with a sweep: its id, the start of one, or last")
    one.add_argument("--json", action="store_true", help="print points, winner and verdict as the last line")

    one = command("bench", bench, "how fast: the guide's way, ours and the ceiling, side by side on this machine")
    for field in dataclasses.fields(Plan):
        if field.metadata:
            one.add_argument(f"--{field.name.replace('_', '-')}", metavar="VALUE", help=_help(field))
    what = one.add_mutually_exclusive_group()
    what.add_argument("--full", action="store_true", help="each recipe from beginning to end, not a part scaled up")
    what.add_argument("--sweep", action="store_true", help="price a T x lambda sweep of 12 points")
    what.add_argument("--scale", action="store_true", help=f"cached on {', '.join(map(str, SCALES))} times the images")
    what.add_argument("--page", action="store_true", help="the page, in a browser: start, first point, poll, watching")
    one.add_argument("--json", action="store_true", help="print the figures as the last line of standard output")

    one = command("chaos", chaos, "bad days: kill, fill, starve and cut small runs, and see whether each is survived")
    one.add_argument("--kills", type=int, default=20, help="how many times to kill -9 (default: 20)")
    one.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    one.add_argument("--json", action="store_true", help="print all of it as the last line of standard output")
    one = command(
        "load", load, "drive a page of this machine as many visitors at once would, and print what they wait for"
    )
    one.add_argument("--clients", type=int, default=50, metavar="N", help="visitors at once (default: 50)")
    one.add_argument("--seconds", type=float, default=60, metavar="SECONDS", help="for so long (default: 60)")
    one.add_argument("--url", help="a running page on 127.0.0.1 (default: one of its own, over a temporary folder)")
    one.add_argument("--json", action="store_true", help="print the figures as the last line of standard output")

    sample = commands.add_parser("sample", help="the embedded sample and its teacher").add_subparsers(
        required=True, metavar="COMMAND"
    )
    one = command("build", build_sample, "remake the sample and train its teacher (55 minutes on one thread)", sample)
    one.add_argument("--source", type=Path, help="folder of Fashion-MNIST's files (default: Debian's package)")
    one.add_argument("--assets", type=Path, help="folder to write to (default: the project's assets)")
    one.add_argument("--epochs", type=int, default=20)
    return top


def _add_preset(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--preset", default="sample", help=f"settings to start from: {', '.join(PRESETS)} (default: sample)"
    )


def _add_settings(one: argparse.ArgumentParser, but: tuple[str, ...] = ()) -> None:
    """A flag for each setting of a distillation, ``but`` those."""
    for field in dataclasses.fields(DistillConfig):
        name = public_name(field)
        if name not in but:
            one.add_argument(f"--{name.replace('_', '-')}", dest=f"set_{name}", metavar="VALUE", help=_help(field))


def _config(options: argparse.Namespace) -> DistillConfig:
    """What was asked for. Raises ``BadUsage``, and ``RunError`` for a run that cannot teach."""
    try:
        config = DistillConfig.preset(options.preset, **_asked(options))
    except ValueError as error:
        raise BadUsage(str(error)) from error
    config = runs.with_run_as_teacher(config, lambda id: runs.find(options.runs_dir, id))
    return _with_pictures(config, options.runs_dir)


def _with_pictures(config: DistillConfig, folder: Path) -> DistillConfig:
    """``config`` with the folder of the dataset that it names: an imported one, or an archive, which is imported now
    (once)."""
    path = Path(config.dataset).expanduser()
    if config.dataset != SAMPLE and path.is_file() and path.suffix != ".parquet":
        upload = _import(path, "", folder)
        print(f"{path.name} is dataset upload:{upload.id}", file=sys.stderr)
        return dataclasses.replace(config, dataset=str(upload.path))
    if not config.dataset.startswith(uploads.PREFIX):
        return config
    return uploads.resolved(config, folder, runs.local_owner(folder))


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of a distillation that were given; of a label map's file, what it holds. Raises ``BadUsage``."""
    given = {name.removeprefix("set_"): value for name, value in vars(options).items() if name.startswith("set_")}
    label_map = given.get("label_map")
    if label_map and "=" not in label_map and "{" not in label_map:
        try:
            given["label_map"] = Path(label_map).expanduser().read_text()
        except OSError as error:
            raise BadUsage(
                f"label-map is {label_map!r}, and there is no such file: {error.strerror}. Expected a JSON file, or pairs such as "
                "'sneakers=running shoe, mug=coffee mug'."
            ) from error
    return {name: value for name, value in given.items() if value is not None}


def _help(field: dataclasses.Field) -> str:
    """A setting's help with its default, and where a preset has another, that."""
    if field.default is None:
        return field.metadata["help"]
    name = public_name(field)
    others = [
        f"{preset}: {values[name]}"
        for preset, values in PRESETS.items()
        if values.get(name, field.default) != field.default
    ]
    return f"{field.metadata['help']} ({'; '.join([f'default: {field.default}', *others])})"


# --- Commands


def distill(options: argparse.Namespace) -> int:
    """Create a run, start its process and follow it."""
    config = _config(options)
    run = runs.create(config, options.runs_dir, runs.local_owner(options.runs_dir))
    return _follow(run, options.json, launch.start(run))


def teacher(options: argparse.Namespace) -> int:
    """Fine-tune a base on the dataset as a run like any other, then say how to distil from it."""
    try:
        config = DistillConfig.finetune(options.base, **_asked(options))
    except ValueError as error:
        raise BadUsage(str(error)) from error
    run = runs.create(config, options.runs_dir, runs.local_owner(options.runs_dir))
    return _follow(run, options.json, launch.start(run))


def label_table(options: argparse.Namespace) -> int:
    """Print how the teacher's classes and the dataset's are matched, and what that means."""
    config = _config(options)
    _quiet()
    from kd import labels
    from kd.data import SPLIT_NAMES, load_splits
    from kd.models import teacher_classes

    splits, theirs = load_splits(config), teacher_classes(config.teacher)
    if not splits.labelled:
        raise RunError(
            f"The dataset has no labels, so there is nothing to match: a student would learn the teacher's {len(theirs)} classes."
        )
    match = labels.match_classes(theirs, splits.classes, config.label_map)
    counts = [sum(split) for split in zip(*map(splits.counts, SPLIT_NAMES), strict=True)]
    rows = labels.tabulated(match, counts)
    if options.json:
        print(json.dumps(rows))
    else:
        cells = [[row["class"], f"{row['pictures']:,}", row["teacher"] or "-", row["found"]] for row in rows]
        print(table(["class", "pictures", "teacher", "found by"], cells))
    match.check()
    for said in match.in_words(splits.counts("train")):
        print(said, file=sys.stderr)
    return 0


def estimate(options: argparse.Namespace) -> int:
    """Measure a little, print the seconds of each stage."""
    config = _config(options)
    _quiet()
    from kd.data import cache_folder
    from kd.estimate import estimate as measure

    found = measure(config, cache_folder(options.runs_dir), began=0.0)  # a run's process has all this to do too
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["stages"].items())
    print(
        f"about {found['seconds']:.0f} s: {stages} ({found['epochs']} epochs at {found['images_per_second']:,.0f} images/s)"
    )
    if options.json:
        print(json.dumps(found))
    return 0


def check(options: argparse.Namespace) -> int:
    """Look at a dataset and say what is wrong with it, the worst first. Problems are findings, not failures."""
    config, asked = _config(options), _asked(options)
    if options.out and options.out.suffix not in (".html", ".json"):
        raise BadUsage(f"--out is {options.out}; expected a name that ends in .html or .json.")
    if options.out and not options.out.absolute().parent.is_dir():
        raise BadUsage(f"There is no folder {options.out.absolute().parent} to keep the check in.")
    _quiet()
    from kd import check_report
    from kd.check import check as look
    from kd.data import cache_folder

    try:
        found = look(config, cache_folder(options.runs_dir), "teacher" in asked, _told)
    except (RunError, FileNotFoundError) as problem:  # the second: a path that is not there, from `datasets`
        raise BadUsage(str(problem)) from problem
    if options.out:
        runs.write_whole(options.out, check_report.page(found) if options.out.suffix == ".html" else json.dumps(found))
    if found["classes"]:
        print(table(["class", *found["counts"]], list(zip(found["classes"], *found["counts"].values(), strict=True))))
        print()
    print(*check_report.lines(found), sep="\n")
    if options.json:
        print(json.dumps(check_report.as_json(found)))
    return 0


def _told(phase: str) -> Callable[[int, int], None]:
    """Progress on standard error, a line a second."""
    last = 0.0

    def tell(done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last > 1:
            last = time.monotonic()
            print(f"{phase}: {done:,} of {of:,}", file=sys.stderr, flush=True)

    return tell


def run_folder(options: argparse.Namespace) -> int:
    """Work on a run here. Its own errors are events already, so they need no traceback."""
    from kd.distill import execute

    os.nice(max(0, options.nice))
    run = Run(options.folder.resolve())
    if (run.path / "sweep.json").exists():
        return _work_on(Sweep(run.path))
    signal.signal(signal.SIGTERM, lambda *_: run.ask_to_stop())
    memory.go_first()
    execute(run, resume=options.resume)
    return 0 if run.status() == "done" else 1


def resume(options: argparse.Namespace) -> int:
    run = _mine(options)
    status = run.status()
    if status == "done":
        raise RunError(f"Run {run.id} is done; there is nothing to resume. Its student is in {run.path / 'student'}.")
    if status in ("running", "queued"):
        raise RunError(f"Run {run.id} is {status}. Use `python -m kd watch {run.id}`.")
    return _follow(run, options.json, launch.start(run, resume=True), run.read()[1])


def watch(options: argparse.Namespace) -> int:
    return _follow(_mine(options), options.json)


def stop(options: argparse.Namespace) -> int:
    run = _mine(options)
    if run.status() in runs.CLOSED:
        raise RunError(
            f"Run {run.id} is not running: it {'has died' if run.status() == 'died' else 'is ' + run.status()}."
        )
    run.ask_to_stop()
    print(f"Asked run {run.id} to stop.")
    return 0


def rename(options: argparse.Namespace) -> int:
    run = _mine(options)
    name = run.rename(options.name)
    print(f"Run {run.id} is now called {name!r}." if name else f"Run {run.id} has no name any more.")
    return 0


def list_runs(options: argparse.Namespace) -> int:
    rows = [_row(run) for run in runs.list_runs(options.runs_dir)]
    if options.json:
        print(json.dumps(rows))
    elif rows:
        print(table(list(ROW), [list(row.values()) for row in rows]))
    else:
        print(f"No runs in {options.runs_dir.resolve()} yet. `python -m kd distill` makes one.")
    return 0


def clean(options: argparse.Namespace) -> int:
    """List what visitors left behind, and with ``--yes`` delete it."""
    try:
        days = limits.current().idle_days if options.days is None else limits.number("--days", options.days)
    except ValueError as error:
        raise BadUsage(str(error)) from error
    if days is None:
        raise BadUsage("For how many days has a visitor been away? Give --days, or set KD_IDLE_DAYS.")
    found = visitors.idle(options.runs_dir, days, time.time())
    megabytes = sum(one.size() for one in found) / 1e6  # before it is gone
    gone = visitors.clean(options.runs_dir, days) if options.yes else found
    for one in gone:
        print(one.path)
    what = "Deleted" if options.yes else "These would be deleted with --yes:"
    print(f"{what} {len(gone)} runs, sweeps and datasets, {megabytes:,.1f} MB.")
    return 0


def show_limits(options: argparse.Namespace) -> int:
    try:
        print(limits.markdown())
    except ValueError as error:
        raise BadUsage(str(error)) from error
    return 0


def bring(options: argparse.Namespace) -> int:
    """Import, then say what was found."""
    if options.child:
        from kd.intake import child

        return child()
    if options.source is None:
        raise BadUsage("Name an archive or a folder: python -m kd import photos.zip")
    upload = _import(options.source, options.name, options.runs_dir)
    info = upload.info()
    print(found_table(info))
    for note in info["notes"]:
        print(note)
    if info["skipped"]:
        print(
            f"{info['skipped']:,} skipped, all in {upload.path / 'skipped.txt'}:",
            *_lines(info["examples"][:10]),
            sep="\n",
        )
    print(
        f"upload:{upload.id}\n`python -m kd distill --preset custom --teacher TEACHER --dataset upload:{upload.id}` distils."
    )
    if options.json:
        print(json.dumps({**{k: v for k, v in info.items() if k != "owner"}, "bytes": upload.bytes()}))
    return 0


def _import(source: Path, name: str, folder: Path) -> uploads.Upload:
    """Bring a dataset, its progress on standard error; what was skipped is told with a refusal."""
    screen = Screen()
    try:
        return uploads.bring(
            source, name, folder, runs.local_owner(folder),
            lambda done, of: of and screen.progress(f"file {done:,} of {of:,}", done / of),
        )  # fmt: skip
    except uploads.ImportRefused as problem:
        screen.clear()
        print(
            *_lines(problem.skipped[:MOST_SKIPPED]), *_more(problem.skipped[MOST_SKIPPED:]), sep="\n", file=sys.stderr
        )
        raise
    finally:
        screen.clear()


def _lines(skipped: list[tuple[str, str]]) -> list[str]:
    return [f"  {name}: {reason}" for name, reason in skipped]


def _more(skipped: list[tuple[str, str]]) -> list[str]:
    """How many other files were skipped, and why: nothing was stored, so no file has their names."""
    reasons = Counter(reason for _, reason in skipped).most_common()
    most, others = reasons[:MOST_REASONS], sum(count for _, count in reasons[MOST_REASONS:])
    lines = [f"  {count:,}: {reason}" for reason, count in most] + ([f"  {others:,}: other reasons"] if others else [])
    return [f"and {len(skipped):,} more:", *lines] if skipped else []


def found_table(info: dict[str, Any]) -> str:
    """The pictures of an imported dataset, a class and a split each."""
    splits = list(info["pictures"])
    rows = [[name, *(info["pictures"][split].get(name, 0) for split in splits)] for name in info["classes"] or [""]]
    every = [
        "all" if info["classes"] else "without labels",
        *(sum(info["pictures"][split].values()) for split in splits),
    ]
    return table(["class", *splits], [*(rows if info["classes"] else []), every])


def datasets(options: argparse.Namespace) -> int:
    """List what was imported, or delete one."""
    if options.action:
        if not options.dataset:
            raise BadUsage("Say which: python -m kd datasets delete ID")
        upload = uploads.find(options.runs_dir, options.dataset)
        upload.check_owner(runs.local_owner(options.runs_dir))
        size, name = upload.bytes(), upload.info()["name"]
        upload.delete()
        print(f"Deleted {name} ({upload.id}), {size / 1e6:,.1f} MB.")
        return 0
    rows = [_dataset_row(upload) for upload in uploads.list_uploads(options.runs_dir)]
    if options.json:
        print(json.dumps(rows))
    elif rows:
        print(table([*rows[0]], [[*row.values()] for row in rows]))
    else:
        print("No datasets yet. `python -m kd import photos.zip` makes one.")
    return 0


def _dataset_row(upload: uploads.Upload) -> dict[str, Any]:
    info = upload.info()
    return {
        "dataset": f"upload:{upload.id}", "name": info["name"], "classes": len(info["classes"]),
        **{split: sum(info["pictures"].get(split, {}).values()) for split in ("train", "validation", "test")},
        "MB": round(upload.bytes() / 1e6, 1), "skipped": info["skipped"],
        "imported": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(info["created"])),
    }  # fmt: skip


def compare(options: argparse.Namespace) -> int:
    run = _mine(options)
    _quiet()
    from kd.compare import compare as side_by_side

    found = side_by_side(run, options.images)
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


def students(options: argparse.Namespace) -> int:
    _quiet()
    from kd.compare import cost
    from kd.models import STUDENTS, load_student

    if not 16 <= options.image_size <= 1024:
        raise BadUsage(f"image-size is {options.image_size}; expected a whole number from 16 to 1024.")
    rows = []
    for name in STUDENTS:
        student = load_student(name, [str(i) for i in range(10)], None, options.image_size, seed=0)
        rows.append({"student": name, "input": student.pipeline.size[0], **cost(student.model, student.pipeline.size)})
    if options.json:
        print(json.dumps(rows))
        return 0
    shown = [
        [
            r["student"],
            f"{r['input']} px",
            f"{r['parameters'] / 1e6:.2f} M",
            f"{r['megabytes']:.1f}",
            f"{r['flops'] / 1e6:,.1f} M",
        ]
        for r in rows
    ]
    print(table(["student", "input", "parameters", "MB", "FLOPs"], shown))
    print(
        f"For pictures of {options.image_size} px and 10 classes, random weights; a multiply-add counts as two FLOPs."
    )
    return 0


def study(options: argparse.Namespace) -> int:
    """Train what a study still needs, then print its table."""
    from kd import study as studies

    asked = studies.load(options.file)
    try:
        if not options.show:
            studies.go_on(asked, options.runs_dir, lambda text: print(text, file=sys.stderr, flush=True))
    finally:
        head, *lines = studies.table(asked)
        print(table(head, lines))
    return 0


def sweep(options: argparse.Namespace) -> int:
    """Work on a sweep, new or to be resumed, then print its heat maps and what came of it."""
    one = _resumed_sweep(options) if options.resume else _new_sweep(options)
    print(f"sweep {one.id}", file=sys.stderr)
    try:
        code = _work_on(one)
    finally:
        for head, *lines in sweeps.heat_maps(one):
            print(table(head, lines) + "\n")
        print(sweeps.legend(one))
    if code:
        print(one.last("stopped")["message"], file=sys.stderr)
        return code
    report = one.report()
    print(report["sentence"])
    print(f"student: {one.runs_folder / report['final'] / 'student'}")
    if options.json:
        print(json.dumps(report))
    return 0


def _new_sweep(options: argparse.Namespace) -> Sweep:
    asked = {field.name: getattr(options, field.name) for field in dataclasses.fields(Grid)}
    try:
        grid = Grid(**{name: value for name, value in asked.items() if value is not None})
        config = DistillConfig.preset(options.preset, **{"trials": 3, **_asked(options)})
        config = _with_pictures(config, options.runs_dir)
        sweeps.check_labels(config, grid)
        return sweeps.create(config, grid, options.runs_dir, runs.local_owner(options.runs_dir))
    except ValueError as error:
        raise BadUsage(str(error)) from error


def _resumed_sweep(options: argparse.Namespace) -> Sweep:
    given = [getattr(options, field.name) for field in dataclasses.fields(Grid)]
    if _asked(options) or options.preset != "sample" or any(value is not None for value in given):
        raise BadUsage("--resume goes on with the sweep's own settings. Leave the others out, or begin a new sweep.")
    one = sweeps.find(options.runs_dir, options.resume)
    one.check_owner(runs.local_owner(options.runs_dir))
    return one


def _work_on(one: Sweep) -> int:
    """Work on a sweep here. Ctrl-C asks it to stop, and a second one does not wait for that."""

    def on_signal(*_: Any) -> None:
        if one.stop_asked():
            raise KeyboardInterrupt
        print("Stopping. Ctrl-C again not to wait for it.", file=sys.stderr, flush=True)
        one.ask_to_stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    sweeps.go_on(one, lambda text: print(text, file=sys.stderr, flush=True))
    return 0 if one.status() == "done" else 1


def bench(options: argparse.Namespace) -> int:
    """Measure, print a table with its arithmetic, and with ``--json`` all of it as the last line."""
    asked = {field.name: getattr(options, field.name) for field in dataclasses.fields(Plan) if field.name in options}
    try:
        plan = Plan(**{name: value for name, value in asked.items() if value is not None})
    except ValueError as error:
        raise BadUsage(str(error)) from error
    started = time.perf_counter()

    def tell(text: str) -> None:
        print(f"{time.perf_counter() - started:5.0f} s  {text}", file=sys.stderr, flush=True)

    _quiet()
    found = _bench_page(plan, tell) if options.page else _bench_rows(plan, options, tell)
    if options.json:
        print(json.dumps(found))
    return 0


def _bench_page(plan: Plan, tell: Callable[[str], None]) -> dict[str, Any]:
    from kd import bench_page

    found = bench_page.measure(plan.rounds, tell)
    print(table(["", "", ""], bench_page.rows(found)))
    return found


def _bench_rows(plan: Plan, options: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    from kd import bench as side_by_side

    kinds = {"full": side_by_side.FULL_ROWS, "scale": side_by_side.SCALE_ROWS, "sweep": side_by_side.SWEEP_ROWS}
    rows = next((rows for kind, rows in kinds.items() if getattr(options, kind)), side_by_side.ROWS)
    found = side_by_side.bench(plan, rows, tell)
    head, *lines = side_by_side.table(found)
    print(table(head, lines))
    print(*side_by_side.notes(plan, found), sep="\n")
    return found


def chaos(options: argparse.Namespace) -> int:
    """Play the faults, a line for each as it comes, then the count of those survived."""
    from kd.chaos import Outcome
    from kd.chaos import chaos as play

    if options.kills < 0:
        raise BadUsage(f"kills is {options.kills}; expected 0 or more.")
    form = "{:20} {:8} {:10} {:40} {:14} {}"
    print(form.format("fault", "stage", "after", "what the run said", "resumed", "survived"), flush=True)

    def tell(one: Outcome) -> None:
        print(form.format(one.fault, one.stage, one.last, one.said[:40], one.end, one.verdict), flush=True)

    found = play(options.kills, options.seed, tell)
    played = [one for one in found if not one.skipped]
    survived = sum(not one.problems for one in played)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    print(
        f"{survived} of {len(played)} faults survived, {len(found) - len(played)} skipped ({day}, seed {options.seed})"
    )
    if options.json:
        print(json.dumps([dataclasses.asdict(one) for one in found]))
    return 0 if survived == len(played) else 1


def load(options: argparse.Namespace) -> int:
    """Visit a page, print what the visitors waited for, and whether the goals were met."""
    from kd import bench_page
    from kd import load as visitors_at_once

    if options.clients < 1 or not 1 <= options.seconds < math.inf:
        raise BadUsage("Expected 1 client or more, and 1 second or more.")

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def measure(url: str) -> dict[str, Any]:
        try:
            pid = visitors_at_once.listener(urlsplit(visitors_at_once.check_here(url)).port)
        except ValueError as error:
            raise BadUsage(str(error)) from error
        return visitors_at_once.measure(url, options.clients, options.seconds, pid, tell)

    if options.url:
        found = measure(options.url)
    else:
        with bench_page.temporary_folder() as folder, bench_page.serve(folder, KD_SHARED="1") as (url, _):
            found = measure(url)
    head, *lines = visitors_at_once.rows(found)
    print(table(head, lines))
    for words, met in visitors_at_once.goals(found):
        print(f"{ {True: 'met', False: 'not met', None: 'not measured'}[met] }: {words}")
    if options.json:
        print(json.dumps(found))
    return 0


def build_sample(options: argparse.Namespace) -> int:
    from kd import sample
    from kd.data import ASSETS

    sample.build(options.assets or ASSETS, options.source or sample.SOURCE, options.epochs)
    return 0


# --- Showing


def _mine(options: argparse.Namespace) -> Run:
    run = runs.find(options.runs_dir, options.run)
    run.check_owner(runs.local_owner(options.runs_dir))
    return run


def _quiet() -> None:
    """No library's remarks between the lines of a table."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _row(run: Run) -> dict[str, Any]:
    """A run's line in the list. One that cannot be read (of another version, damaged, just deleted) has one too."""
    try:
        config, report, last = run.config(), run.report(), run.last("eval")
    except (RunError, ValueError):
        return {"run": run.id, "status": "unreadable", **dict.fromkeys(ROW[2:], "")}
    accuracy = (
        f"{report['student']['accuracy']:.1%} test" if report else f"{last['accuracy']:.1%} validation" if last else ""
    )
    if accuracy and run.labels() == "teacher":
        accuracy += ", agreement"
    cells = [
        run.id,
        run.status(),
        short(config.teacher),
        short(config.student),
        config.temperature,
        run.lambda_(),
        accuracy,
        run.name(),
    ]
    return dict(zip(ROW, cells, strict=True))


def _follow(run: Run, as_json: bool, process: Any = None, cursor: int = 0) -> int:
    """Show a run until it is closed, then its result.

    Of a run that was started here (``process``), Ctrl-C asks for a stop, and a second one does not wait for it.
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
        status = launch.follow(run, screen.show, process, cursor)
    except KeyboardInterrupt:
        screen.line(f"Left run {run.id}. `python -m kd watch {run.id}` shows it.")
        return 1
    screen.clear()
    if status == "died":
        screen.line(
            f"Run {run.id} died: its process is gone. {run.epitaph()} `python -m kd resume {run.id}` goes on with it."
        )
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
    """The command that distils from what a run has trained, on the same pictures."""
    values, usual = run.config().to_dict(), DistillConfig().to_dict()
    chosen = {"teacher": f"{RUN_TEACHER}{run.id}"}
    chosen |= {name: values[name] for name in OF_PICTURES if values[name] != usual[name]}
    if run.path.parent != runs.default_folder().resolve():
        chosen["runs_dir"] = run.path.parent
    words = [text for name, value in chosen.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join(["python", "-m", "kd", "distill", "--preset", "custom", *words])


class Screen:
    """A run's events as lines and one progress bar, on standard error: standard output is for the report."""

    def __init__(self, run: Run | None = None) -> None:
        self.run, self.bar, self.total, self.labels = run, "", 0, "dataset"

    def clear(self) -> None:
        """Take the progress bar away."""
        if self.bar:
            print("\r" + " " * len(self.bar) + "\r", end="", file=sys.stderr)
            self.bar = ""

    def line(self, text: str) -> None:
        self.clear()
        print(text, file=sys.stderr, flush=True)

    def progress(self, text: str, share: float) -> None:
        """Redraw the bar; on what is not a terminal it would only fill the log."""
        if sys.stderr.isatty():
            full = round(30 * share)
            bar = f"[{'#' * full}{'.' * (30 - full)}] {share:4.0%} {text}"
            print("\r" + bar.ljust(len(self.bar)), end="", file=sys.stderr, flush=True)
            self.bar = bar

    def show(self, e: dict[str, Any]) -> None:
        """One event."""
        show = getattr(self, f"show_{e['event']}", None)
        if show:
            show(e)
        for warning in e.get("warnings", []):
            self.line(f"  warning: {warning}")

    def show_created(self, e: dict) -> None:
        c = self.run.config()
        taught = f"T {c.temperature:g}, lambda {c.lambda_:g}, " if c.teacher != NO_TEACHER else ""
        whom = short(c.teacher) if taught else "labels alone"
        self.line(f"run {self.run.id}: {whom} -> {short(c.student)} on {short(c.dataset)}, {taught}{c.epochs} epochs")

    def show_queued(self, e: dict) -> None:
        wait = f", about {math.ceil(e['wait'] / 60)} min" if "wait" in e else ""
        self.line(f"waiting for the {e['device']}: place {e['place']} in the queue{wait}")

    def show_progress(self, e: dict) -> None:
        self.progress(f"{e['phase']} {e['done']:,} of {e['of']:,}", e["done"] / e["of"])

    def show_hub(self, e: dict) -> None:
        self.line(e["message"])

    def show_data(self, e: dict) -> None:
        self.labels = e.get("labels", "dataset")
        self.line(
            f"pictures: {e['train']:,} train, {e['validation']:,} validation, {e['test']:,} test, "
            f"{len(e['classes'])} classes ({e['seconds']:.1f} s, cache {e['cache']})"
        )

    def show_models(self, e: dict) -> None:
        t, s = e["teacher"], e["student"]
        taught = f"teacher: {t['parameters'] / 1e6:.2f} M, {t['flops'] / 1e6:,.1f} MFLOPs; " if t else ""
        self.line(
            f"{'student' if t else 'model'}: {s['parameters'] / 1e6:.2f} M parameters, {s['flops'] / 1e6:,.1f} MFLOPs at "
            f"{e['image_size'][0]} px; {taught}{e['device']}, {e['precision']}"
        )
        for change in e["healed"]:
            self.line(f"  healed: {change}")

    def show_teacher(self, e: dict) -> None:
        if "accuracy" in e:
            self.line(f"teacher: {e['accuracy']:.1%} on validation")

    def show_targets(self, e: dict) -> None:
        self.line(f"targets: {e['cache']} ({e['seconds']:.1f} s)")

    def show_plan(self, e: dict) -> None:
        self.line(f"plan: {e['epochs']} epochs in {e['minutes']:g} minutes, at {e['images_per_second']:,.0f} images/s")

    def show_training(self, e: dict) -> None:
        self.total = e["steps"]
        if e.get("of", 1) > 1:
            teacher = ", with the teacher" if e["arm"] == "distilled" else ", without the teacher"
            if self.run.config().teacher == NO_TEACHER:
                teacher = ""
            self.line(f"training {e['nth']} of {e['of']}: seed {e['seed']}{teacher}")

    def show_arm(self, e: dict) -> None:
        said = f"{e['accuracy']:.2%} on the test split"
        if self.labels == "teacher":
            said = f"agrees with the teacher on {e['accuracy']:.2%} of the test split"
        self.line(f"  {said}, {e['seconds']:.0f} s of training")

    def show_step(self, e: dict) -> None:
        left = (self.total - e["step"]) * e["seconds"] / e["step"]
        self.progress(
            f"loss {e['total']:.3f}, {e['images_per_second']:,.0f} images/s, {left:.0f} s left", e["step"] / self.total
        )

    def show_eval(self, e: dict) -> None:
        said = [f"{e['accuracy']:.1%} on validation"] if self.labels == "dataset" else []
        if "agreement" in e:
            where = "" if said else " of validation"
            said.append(f"agrees with the teacher on {e['agreement']:.1%}{where}")
        self.line(f"epoch {e['epoch']:g}: {', '.join(said)} ({e['seconds']:.0f} s)")

    def show_stopped(self, e: dict) -> None:
        self.line(e["message"])

    def show_failed(self, e: dict) -> None:
        self.line(f"failed: {e['message']}")


def result_table(report: dict[str, Any], agreed: float | None) -> str:
    """Teacher, if there is one, and student side by side, as text. ``report``: a run's, or what ``compare`` returns."""
    labelled = report.get("data", {}).get("labels", "dataset") == "dataset"
    scored = labelled and "accuracy" in report["student"]
    rows = []
    for name in [name for name in ("teacher", "student") if report[name]]:
        side = report[name]
        latency = side["latency_ms"]
        rows.append([
            name if report["teacher"] else "model",
            *([f"{side['accuracy']:.2%}", f"{side['f1']:.4f}"] if scored else []),
            f"{side['parameters'] / 1e6:.2f} M",
            f"{side['megabytes']:.2f}",
            f"{side['flops'] / 1e6:,.1f} M",
            f"{latency['p50']:.2f}",
            f"{latency['p95']:.2f}",
        ])  # fmt: skip
    quality = ["test accuracy", "macro F1"] if scored else []
    whose = "" if labelled else " of the test pictures; they have no labels, so who is right is not known"
    latency = report["student"]["latency_ms"]
    against = ""
    if report["teacher"]:
        against = (
            f"\nThe student is {pace(report['speedup'])} and {report['size_ratio']:g} times smaller; it agrees with the "
            f"teacher on {agreed:.1%}{whose}."
        )
    return (
        table(["", *quality, "parameters", "MB", "FLOPs", "ms p50", "ms p95"], rows)
        + f"{against}\nLatency: one picture, {latency['dtype']}, {latency['device']}, "
        f"{latency['threads']} threads, {latency['n']} trials, without preprocessing."
    )


def pace(speedup: float) -> str:
    """A speed-up in words: "2 times faster", below one "1.3 times slower", near one "as fast"."""
    if 0.95 < speedup < 1.05:
        return "as fast"
    return f"{speedup:g} times faster" if speedup >= 1 else f"{1 / speedup:.2g} times slower"


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Columns of text, as wide as their widest cell."""
    cells = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)
