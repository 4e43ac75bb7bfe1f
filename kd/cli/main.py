"""The command line: ``python -m kd`` or ``kd``. Exit codes: 0 done, 1 failed or stopped, 2 bad usage."""

import argparse
import json
import math
import os
import shutil
import sys
import textwrap
import time
from functools import partial
from pathlib import Path
from typing import Any

from kd import limits
from kd.cli import datasets, measure, push, runs, space
from kd.cli.options import BadUsage, Command, add_json, quiet
from kd.cli.screen import table
from kd.errors import UserError
from kd.runs import visitors
from kd.system.files import ASSETS, ROOT, default_runs_folder


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        limits.current()
    except ValueError as problem:
        print(f"kd: {problem}", file=sys.stderr)
        return 2
    try:
        return options.call(options)
    except KeyboardInterrupt:
        print("kd: stopped", file=sys.stderr)
        return 1
    except UserError as problem:
        print(f"kd: {problem}", file=sys.stderr)
        return 1
    except BadUsage as problem:
        print(f"kd: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output, such as `head`, has ended
        sys.stderr.close()
        return 1
    except OSError as problem:
        print(f"kd: {problem}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="kd",
        description="Turn a big image classifier into a small, fast one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(
        title="commands", required=True, metavar="COMMAND", help="one of those below; `kd COMMAND --help` explains it"
    )
    groups: dict[str, dict[str, str]] = {}

    def command(group: str, name: str, call: Any, help: str, under: Any = commands) -> argparse.ArgumentParser:
        one = under.add_parser(name.split()[-1], description=help)
        groups.setdefault(group, {})[name] = help
        one.add_argument("--runs-dir", type=Path, default=default_runs_folder(), metavar="FOLDER",
                         help="where runs are kept (default: KD_RUNS_DIR, or runs)")  # fmt: skip
        one.set_defaults(call=call)
        return one

    runs.add(partial(command, "training runs"))
    push.add(partial(command, "training runs"))
    datasets.add(partial(command, "pictures"))
    measure.add(partial(command, "proof and measuring"))
    add(partial(command, "server and project"), commands)
    space.add(partial(command, "server and project"))
    top.epilog = grouped(groups)
    return top


def grouped(groups: dict[str, dict[str, str]]) -> str:
    """Return the commands' names and helps under the titles of their groups, which argparse cannot do."""
    width = max(shutil.get_terminal_size().columns - 2, 40)
    indent = 4 + max(len(name) for commands in groups.values() for name in commands)
    return "\n\n".join(
        "\n".join(
            [
                f"{title}:",
                *(
                    textwrap.fill(help, width, initial_indent=f"  {name}".ljust(indent), subsequent_indent=" " * indent)
                    for name, help in commands.items()
                ),
            ]
        )
        for title, commands in groups.items()
    )


def add(command: Command, commands: Any) -> None:
    """Add the commands that serve the page, and those for the project itself."""
    one = command("app", app, "serve the page, until Ctrl-C")
    one.add_argument("--host", metavar="ADDRESS", help="where to listen (default: GRADIO_SERVER_NAME, or 127.0.0.1)")
    one.add_argument(
        "--port", type=int, help="the port (default: GRADIO_SERVER_PORT, or the first from 7860 on that is free)"
    )
    one.add_argument("--shared", action="store_true", help="keep visitors apart, as on a Space or with KD_SHARED=1")

    one = command("students", students, "list the students with random weights: parameters and FLOPs")
    one.add_argument("--image-size", type=int, default=224, help="side of the pictures in pixels (default: 224)")
    add_json(one)

    one = command("clean", clean, "delete the runs and datasets of a shared server's visitors who have not come back")
    one.add_argument("--days", metavar="DAYS", help="for so long (default: KD_IDLE_DAYS)")
    one.add_argument("--yes", action="store_true", help="delete; without it they are only listed")

    command("limits", show_limits, "list the limits of this server, and the environment variables that change them")

    sample = commands.add_parser("sample", description="The embedded sample and its teacher.").add_subparsers(
        required=True,
        metavar="COMMAND",
        help="build: remake the sample and train its teacher; example: record the run that the page shows at first",
    )
    help = "remake the sample and train its teacher (55 minutes on one thread)"
    one = command("sample build", build_sample, help, under=sample)
    one.add_argument("--source", type=Path, help="folder of Fashion-MNIST's files (default: Debian's package)")
    one.add_argument("--assets", type=Path, help="folder to write to (default: the project's assets)")
    one.add_argument("--epochs", type=int, default=20)
    help = "distil the sample and record the run as the example that the page shows at first"
    one = command("sample example", record_example, help, under=sample)
    one.add_argument("--assets", type=Path, help="folder with the sample, to write to (default: the project's assets)")


def app(options: argparse.Namespace) -> int:
    """Serve the page."""
    if options.port is not None and not 0 < options.port < 65536:
        raise BadUsage(f"--port is {options.port}; expected a whole number from 1 to 65535.")
    from kd.ui.page import serve

    os.environ["KD_RUNS_DIR"] = str(options.runs_dir)  # where the page looks for it
    serve(options.host, options.port, options.shared)
    return 0


def clean(options: argparse.Namespace) -> int:
    """List the runs, sweeps and datasets of visitors who have not come back, and with ``--yes`` delete them."""
    try:
        days = limits.current().idle_days if options.days is None else limits.number("--days", options.days)
    except ValueError as error:
        raise BadUsage(str(error)) from error
    if days == math.inf:
        raise BadUsage("For how many days has a visitor been away? Give --days, or set KD_IDLE_DAYS.")
    found = visitors.idle(options.runs_dir, days, time.time())
    megabytes = sum(one.size() for one in found) / 1e6  # counted before they are deleted
    gone = visitors.clean(options.runs_dir, days) if options.yes else found
    for one in gone:
        print(one.path)
    what = "Deleted" if options.yes else "These would be deleted with --yes:"
    print(f"{what} {len(gone)} runs, sweeps and datasets, {megabytes:,.1f} MB.")
    return 0


def show_limits(options: argparse.Namespace) -> int:
    """Print the limits of this server."""
    print(limits.markdown())
    return 0


def students(options: argparse.Namespace) -> int:
    """Print the parameters and FLOPs of each student with random weights."""
    quiet()
    from kd.evaluation.latency import model_cost
    from kd.models.student import load_student
    from kd.models.zoo import STUDENTS, student_side

    if not 16 <= options.image_size <= 1024:
        raise BadUsage(f"image-size is {options.image_size}; expected a whole number from 16 to 1024.")
    rows = []
    for name in STUDENTS:
        student = load_student(name, [str(i) for i in range(10)], student_side(name, None, options.image_size), seed=0)
        rows.append(
            {
                "student": name,
                "input": student.normalization.size[0],
                **model_cost(student.model, student.normalization.size),
            }
        )
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


def build_sample(options: argparse.Namespace) -> int:
    """Remake the sample and train its teacher."""
    assets = _assets(options)
    from kd.devtools import sample

    sample.build(assets, options.source or sample.SOURCE, options.epochs)
    return 0


def record_example(options: argparse.Namespace) -> int:
    """Record the example run."""
    assets = _assets(options)
    from kd.devtools import sample

    sample.record_example(assets)
    print(f"Wrote {assets / 'example'}.")
    return 0


def _assets(options: argparse.Namespace) -> Path:
    """Return the folder of the assets to write to. Raises ``BadUsage`` where it must be named."""
    if options.assets is None and ASSETS.parent != ROOT:
        raise BadUsage(f"Name the folder to write to with --assets: {ASSETS} belongs to an installed package.")
    return options.assets or ASSETS
