"""The command ``push``: a run's student to the Hugging Face Hub."""

import argparse
import json
from pathlib import Path

from kd.cli.options import Command, add_json, own_run, quiet
from kd.cli.screen import Screen
from kd.errors import UserError
from kd.export.bundle import find_export
from kd.export.push import LICENSES, PushSettings, default_name, push_student
from kd.export.push_job import work_on_push
from kd.runs.run import Run
from kd.system.hub import listening


def add(command: Command) -> None:
    """Add the command."""
    one = command("push", push, "push a run's student to the Hugging Face Hub, with what was measured of it")
    one.epilog = "The token that may write is that of `hf auth login`, or in HF_TOKEN."
    one.add_argument("run", metavar="RUN", help="its id, the start of one, or last")
    one.add_argument("repo", nargs="?", metavar="OWNER/NAME",
                     help="the repository; NAME alone is your own (default: distillery- and the run's name)")  # fmt: skip
    one.add_argument("--public", action="store_true", help="for everybody to see; by default it is private")
    one.add_argument("--overwrite", action="store_true",
                     help="write over a repository that Distillery has not made; files of other names stay")  # fmt: skip
    one.add_argument("--license", default="", metavar="ID",
                     help=f"its licence, by the id that it has on the Hub, such as {', '.join(LICENSES[:3])}")  # fmt: skip
    one.add_argument("--job", action="store_true", help=argparse.SUPPRESS)  # how the page starts it
    add_json(one)


def push(options: argparse.Namespace) -> int:
    """Push a run's student, after exporting it where it has no export, and print its address."""
    if options.job:  # of a visitor of this server, who was checked
        work_on_push(Run(Path(options.run).resolve()))
        return 0
    run, screen = own_run(options), Screen()
    settings = PushSettings(options.public, options.overwrite, options.license)
    screen.line(f"pushing the student of run {run.id} to {options.repo or default_name(run)}")
    if find_export(run) is None:
        quiet()  # which loads those libraries: an export needs them, what follows does not

    def progress(stage: str, done: int, of: int) -> None:
        words = {
            "export": f"exporting, test pictures {done:,} of {of:,}",
            "ask": "asking the Hub",
            "upload": f"sending, {done / 1e6:.1f} of {of / 1e6:.1f} MB",
            "commit": "writing the commit",
        }
        screen.progress(words[stage], done / max(of, 1))

    try:
        with listening(screen.line, lambda: False):
            found = push_student(run, options.repo, settings=settings, progress=progress)
    except UserError as problem:
        if problem.kind == "taken":
            raise UserError(f"{problem} The option is --overwrite.", kind="taken") from problem
        raise
    finally:
        screen.clear()
    for note in found["notes"]:
        screen.line(note)
    print(found["url"])
    if options.json:
        print(json.dumps(found))
    return 0
