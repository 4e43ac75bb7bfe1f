"""The command ``deploy``: put the app on a Space."""

import argparse
import os

from kd.cli.options import BadUsage, Command
from kd.cli.screen import Screen, table
from kd.export import space
from kd.export.staging import ZERO_GPU, Staged, stage


def add(command: Command) -> None:
    one = command(
        "deploy", deploy, "put this checkout on a Space of the Hugging Face Hub, or update the one that is there"
    )
    one.add_argument("name", metavar="OWNER/NAME", help="the Space")
    one.add_argument("--hardware", metavar="H", help=f"its hardware: {ZERO_GPU} (free), cpu-basic, t4-small ... "
                     "(default: as it is; the Hub's default for a new one)")  # fmt: skip
    one.add_argument("--private", action="store_true", help="only its owner may see it")
    one.add_argument("--bucket", metavar="OWNER/BUCKET", help="keep closed runs and pictures in this bucket of the Hub, so "
                     "that a restart loses nothing")  # fmt: skip
    one.add_argument("--var", metavar="NAME=VALUE", action="append", default=[], help="a variable of its environment; "
                     "may be given several times")  # fmt: skip
    one.add_argument("--secret", metavar="NAME", action="append", default=[], help="a secret of its environment; the value "
                     "is taken from the variable of this name here")  # fmt: skip
    one.add_argument(
        "--dirty",
        action="store_true",
        help="send files with changes that are not committed; what git does not track is never sent",
    )
    one.add_argument(
        "--overwrite", action="store_true", help="replace all files of a Space that `kd deploy` has not made"
    )
    one.add_argument("--dry-run", action="store_true", help="print what would be sent, and ask the Hub nothing")


def deploy(options: argparse.Namespace) -> int:
    """Create or update a Space, wait for its build, and print its address."""
    wanted, screen = wanted_from(options), Screen()
    wanted.check()
    if options.dry_run:
        print_staged(wanted, stage(wanted.name, wanted.hardware, options.dirty))
        return 0
    done = space.deploy(wanted, screen.line, options.dirty, options.overwrite)
    try:
        ended = space.wait_for(wanted.name, done["commit"], screen.line)
    except KeyboardInterrupt:
        screen.line(f"No longer waiting. The Space goes on by itself: {wanted.address}")
        return 1
    if ended != "RUNNING":
        screen.line(f"The Space {wanted.name} {space.ENDED.get(ended, f'ended as {ended}.')}")
    print(wanted.address)
    return 0 if ended == "RUNNING" else 1


def wanted_from(options: argparse.Namespace) -> space.Wanted:
    """Return what was asked for. Raises ``BadUsage``."""
    variables = dict(text.partition("=")[::2] for text in options.var)
    if wrong := next((text for text in options.var if "=" not in text), None):
        raise BadUsage(f"--var is {wrong!r}; expected NAME=VALUE.")
    if missing := [name for name in options.secret if not os.environ.get(name)]:
        raise BadUsage(
            f"--secret {missing[0]} takes its value from the variable {missing[0]} of this environment, and that is not set."
        )
    secrets = {name: os.environ[name] for name in options.secret}
    return space.Wanted(options.name, options.hardware, options.private, options.bucket, variables, secrets)


def print_staged(wanted: space.Wanted, staged: Staged) -> None:
    """Print all that would be sent."""
    print(table(["bytes", "file"], [[f"{staged.size(path):,}".rjust(12), path] for path in staged.files]))
    print(f"\n{len(staged.files)} files, {staged.total() / 1e6:,.1f} MB, of commit {staged.commit[:10]}"
          f"{', with changes that are not committed' if staged.is_dirty else ''}")  # fmt: skip
    print(f"\nREADME.md of the Space begins with:\n---\n{staged.front_matter()}---")
    settings = {
        "Space": f"{wanted.name}{' (private)' if wanted.private else ''}",
        "hardware": wanted.hardware or "as it is, or the Hub's default",
        "bucket": wanted.bucket and f"{wanted.bucket} at {space.MOUNT}",
        "variables": ", ".join(f"{key}={value}" for key, value in wanted.all_variables().items()),
        "secrets": ", ".join(wanted.secrets),
    }
    print("\n".join(f"{name}: {value}" for name, value in settings.items() if value))
    print("Nothing was sent.")
