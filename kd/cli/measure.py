"""Commands that compare settings, and those that test the project itself: ``study sweep bench chaos load``."""

import argparse
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kd.cli.options import (
    BadUsage,
    Command,
    add_json,
    add_preset,
    add_settings,
    given_settings,
    help_of,
    quiet,
    with_folders,
)
from kd.cli.screen import table
from kd.config import DistillConfig
from kd.devtools.contenders import SCALES
from kd.devtools.scale import FULL, PICTURES
from kd.devtools.workload import Plan
from kd.experiments.grid import SWEPT, Grid, check_labels
from kd.experiments.sweep import Sweep, create_sweep, find_sweep, work_on_sweep
from kd.experiments.table import heat_maps, legend
from kd.runs.run import CLOSED
from kd.runs.store import local_owner
from kd.text import count_of

FIGURES = "print the figures as the last line of standard output"


def add(command: Command) -> None:
    one = command(
        "study", study, "train the variants of FILE with its seeds and compare them; goes on where it was stopped"
    )
    one.add_argument("file", type=Path, metavar="FILE", help="JSON, such as assets/studies/sample.json")
    one.add_argument("--show", action="store_true", help="train nothing, show the results so far")
    one.add_argument(
        "--figure",
        type=Path,
        metavar="OUT.html",
        help="draw accuracy against the number of labels, where the study varies it",
    )

    one = command(
        "sweep", sweep, "try temperatures, lambdas and methods; train the best longer, the winner with fresh seeds"
    )
    for field in dataclasses.fields(Grid):
        one.add_argument(f"--{field.name.replace('_', '-')}", metavar="VALUE", help=help_of(field))
    add_preset(one)
    add_settings(one, but=(*SWEPT, "trials"))
    one.add_argument("--trials", dest="set_trials", metavar="VALUE", help="the winner's fresh seeds (default: 3)")
    one.add_argument("--resume", metavar="SWEEP", help="go on with a sweep: its id, the start of one, or last")
    add_json(one, "print points, winner and verdict as the last line")

    add_bench(command)

    one = command("chaos", chaos, "kill small runs, fill their disk, limit their memory, and check that each survives")
    one.add_argument("--kills", type=int, default=20, help="how many times to kill -9 (default: 20)")
    one.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    add_json(one, "print all of it as the last line of standard output")

    one = command(
        "load", load, "send the requests of many visitors to a page of this machine, and print how long they wait"
    )
    one.add_argument("--clients", type=int, default=50, metavar="N", help="visitors at once (default: 50)")
    one.add_argument("--seconds", type=float, default=60, metavar="SECONDS", help="how long (default: 60)")
    one.add_argument("--url", help="a running page on 127.0.0.1 (default: one of its own, over a temporary folder)")
    add_json(one, FIGURES)


def add_bench(command: Command) -> None:
    """Add ``kd bench``."""
    one = command(
        "bench", bench, "measure how fast the guide's code, ours, and the student alone train on this machine"
    )
    for field in dataclasses.fields(Plan):
        if field.metadata:
            one.add_argument(f"--{field.name.replace('_', '-')}", metavar="VALUE", help=help_of(field))
    what = one.add_mutually_exclusive_group()
    what.add_argument("--full", action="store_true", help="each recipe from beginning to end, not a part scaled up")
    what.add_argument("--sweep", action="store_true", help="what a T x lambda sweep of 12 points costs")
    what.add_argument(
        "--scale",
        nargs="?",
        const="yes",
        metavar="PICTURES",
        help=f"cached on {', '.join(map(str, SCALES))} times the images, and the whole recipe, streamed, on "
        f"{' and '.join(f'{size:,}' for size in PICTURES)} small pictures (full: on {FULL:,} too; a number: on so many alone)",
    )
    what.add_argument(
        "--page", action="store_true", help="the page, in a browser: start, first point, polls, an open page"
    )
    what.add_argument(
        "--processes", metavar="N", help="a run with one process and with N: what they give, what they cost"
    )
    what.add_argument(
        "--gpu", action="store_true", help="all that a machine with a GPU can show, the most telling first"
    )
    one.add_argument("--small", action="store_true", help="with --gpu: the same on the CPU, on little")
    one.add_argument(
        "--out", type=Path, default=Path("bench-gpu.jsonl"), metavar="FILE",
        help="with --gpu: where each stage's result is written, and those that are done are read (default: bench-gpu.jsonl)",
    )  # fmt: skip
    one.add_argument(
        "--seconds", type=float, default=480, help="with --gpu: no stage begins that would take longer (default: 480)"
    )
    one.add_argument("--rows", metavar="NAMES", help="only these rows of the table, for example loop,online")
    add_json(one, FIGURES)


def study(options: argparse.Namespace) -> int:
    """Train what a study still needs, then print its table."""
    from kd.experiments.study import current_results, load_study, read_results, study_table, work_on_study

    one = load_study(options.file)
    try:
        if not options.show:
            work_on_study(one, options.runs_dir, lambda text: print(text, file=sys.stderr, flush=True))
    finally:
        head, *lines = study_table(one)
        print(table(head, lines))
        if options.figure:
            from kd.experiments.label_figure import label_figure

            label_figure(one).write_html(options.figure)
        if others := len(read_results(one)) - len(current_results(one)):
            words = f"{count_of(others, 'result')} of other labels, seeds or settings, left out"
            print(f"{one.results}: {words}.", file=sys.stderr)
    return 0


def sweep(options: argparse.Namespace) -> int:
    """Work on a sweep, a new one or one to resume, then print its heat maps and its result."""
    one = _resumed_sweep(options) if options.resume else _new_sweep(options)
    print(f"sweep {one.id}", file=sys.stderr)
    try:
        code = work_on_sweep_here(one)
    finally:
        for head, *lines in heat_maps(one):
            print(table(head, lines) + "\n")
        print(legend(one))
    if code:
        print(one.last("stopped")["message"], file=sys.stderr)
        return code
    report = one.report()
    print(report["sentence"])
    print(f"student: {one.runs_folder / report['student']}")
    if options.json:
        print(json.dumps(report))
    return 0


def _new_sweep(options: argparse.Namespace) -> Sweep:
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Grid)}
    try:
        grid = Grid(**{name: value for name, value in given.items() if value is not None})
        config = DistillConfig.preset(options.preset, **{"trials": 3, **given_settings(options)})
        config = with_folders(config, options.runs_dir)
        check_labels(config, grid)
        return create_sweep(config, grid, options.runs_dir, local_owner(options.runs_dir))
    except ValueError as error:
        raise BadUsage(str(error)) from error


def _resumed_sweep(options: argparse.Namespace) -> Sweep:
    given = [getattr(options, field.name) for field in dataclasses.fields(Grid)]
    if given_settings(options) or options.preset != "sample" or any(value is not None for value in given):
        raise BadUsage("--resume goes on with the sweep's own settings. Leave the others out, or start a new sweep.")
    one = find_sweep(options.runs_dir, options.resume)
    one.check_owner(local_owner(options.runs_dir))
    if one.status() in CLOSED:
        one.forget_stop()
    return one


def work_on_sweep_here(one: Sweep) -> int:
    """Work on a sweep in this process. Ctrl-C asks it to stop; a second Ctrl-C leaves without waiting for that."""

    def on_signal(*_: Any) -> None:
        if one.stop_asked():
            raise KeyboardInterrupt
        print("Stopping. Ctrl-C again not to wait for it.", file=sys.stderr, flush=True)
        one.ask_to_stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    work_on_sweep(one, lambda text: print(text, file=sys.stderr, flush=True))
    return 0 if one.status() == "done" else 1


def bench(options: argparse.Namespace) -> int:
    """Run the benchmark and print its table and arithmetic, or measure the page."""
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Plan) if field.name in options}
    try:
        plan = Plan(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise BadUsage(str(error)) from error
    started = time.perf_counter()
    end_tidily()

    def tell(text: str) -> None:
        print(f"{time.perf_counter() - started:5.0f} s  {text}", file=sys.stderr, flush=True)

    quiet()
    sizes = _scale_sizes(options.scale)
    found: dict[str, Any] = {}
    if options.gpu:
        from kd.devtools.gpu import measure_gpu

        found = measure_gpu(options.out, options.seconds, options.small, tell)
    elif options.processes:
        found = _bench_processes(plan, options.processes, tell)
    elif options.page:
        found = _bench_page(plan, tell)
    elif not (options.scale or "").isdigit():
        found = _bench_rows(plan, options, tell)
    if sizes:
        found["streamed"] = _bench_scale(sizes, plan, tell)
    if options.json:
        print(json.dumps(found))
    return 0


def end_tidily() -> None:
    """Let a command that is asked to end (SIGTERM) leave no temporary folder and no process behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _bench_processes(plan: Plan, asked: str, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    from kd.devtools import several

    if not asked.isdecimal() or int(asked) < 2:
        raise BadUsage(f"--processes is {asked}; expected a whole number, 2 or more.")
    found = several.measure_processes(plan, [1, int(asked)], tell)
    head, *lines = several.rows(found)
    print(table(head, lines))
    return found


def _bench_page(plan: Plan, tell: Callable[[str], None]) -> dict[str, Any]:
    from kd.devtools import page

    found = page.measure_page(plan.rounds, tell)
    print(table(["", "", ""], page.rows(found)))
    return found


def _scale_sizes(asked: str | None) -> list[int]:
    """Return on how many images the whole recipe is run, streamed: none unless ``--scale`` asks for it."""
    if asked is None:
        return []
    if asked in ("yes", "full"):
        return [*PICTURES, FULL] if asked == "full" else [*PICTURES]
    if not asked.isdigit() or int(asked) < 1000:
        raise BadUsage(f"--scale is {asked!r}; expected nothing, full, or a number of pictures, 1000 or more.")
    return [int(asked)]


def _bench_scale(sizes: list[int], plan: Plan, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    from kd.devtools import scale

    found = scale.measure_scale(sizes, tell, device=plan.device)
    head, *lines = scale.rows(found)
    print(table(head, lines))
    return found


def _bench_rows(plan: Plan, options: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    from kd.devtools import speed
    from kd.distill import execute

    kinds = {"full": speed.FULL_ROWS, "scale": speed.SCALE_ROWS, "sweep": speed.SWEEP_ROWS}
    rows = next((rows for kind, rows in kinds.items() if getattr(options, kind)), speed.ROWS)
    if options.rows:
        rows = tuple(name.strip() for name in options.rows.split(","))
        if unknown := sorted(set(rows) - {*speed.ROWS, *speed.SCALE_ROWS}):
            raise BadUsage(
                f"There is no row {', '.join(unknown)}. The rows are {', '.join(speed.ROWS + speed.SCALE_ROWS)}."
            )
    found = speed.bench(plan, rows, tell, execute)
    head, *lines = speed.table(found)
    print(table(head, lines))
    print(*speed.notes(plan, found), sep="\n")
    return found


def chaos(options: argparse.Namespace) -> int:
    """Test each fault and print a line for it, then how many were survived."""
    from kd.devtools.chaos import Outcome
    from kd.devtools.chaos import chaos as test_faults

    if options.kills < 0:
        raise BadUsage(f"kills is {options.kills}; expected 0 or more.")
    end_tidily()
    form = "{:20} {:8} {:10} {:40} {:14} {}"
    print(form.format("fault", "stage", "after", "what the run said", "resumed", "survived"), flush=True)

    def tell(one: Outcome) -> None:
        print(form.format(one.fault, one.stage, one.last, one.said[:40], one.end, one.verdict), flush=True)

    found = test_faults(options.kills, options.seed, tell)
    tested = [one for one in found if not one.skipped]
    survived = sum(not one.problems for one in tested)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    print(
        f"{survived} of {len(tested)} faults survived, {len(found) - len(tested)} skipped ({day}, seed {options.seed})"
    )
    if options.json:
        print(json.dumps([dataclasses.asdict(one) for one in found]))
    return 0 if survived == len(tested) else 1


def load(options: argparse.Namespace) -> int:
    """Run the load test; print how long visitors waited, and whether the goals were met."""
    from kd.devtools import server
    from kd.devtools.load import check_here, goals, listener, measure_load, rows

    if options.clients < 1 or not 1 <= options.seconds < math.inf:
        raise BadUsage("Expected 1 client or more, and 1 second or more.")
    end_tidily()

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def measure(url: str) -> dict[str, Any]:
        try:
            pid = listener(urlsplit(check_here(url)).port)
        except ValueError as error:
            raise BadUsage(str(error)) from error
        return measure_load(url, options.clients, options.seconds, pid, tell)

    if options.url:
        found = measure(options.url)
    else:
        with server.temporary_folder() as folder, server.serve(folder, KD_SHARED="1") as (url, _):
            found = measure(url)
    head, *lines = rows(found)
    print(table(head, lines))
    for words, met in goals(found):
        print(f"{ {True: 'met', False: 'not met', None: 'not measured'}[met] }: {words}")
    if options.json:
        print(json.dumps(found))
    return 0
