"""Many commands of ``kd`` in one process that knows a small Hub only: libraries that take seconds are imported once."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.hub import Hub
from tests.support.paths import ROOT

LOOP = """
import contextlib, io, json, os, sys, traceback
from kd.cli.main import main
from kd.export import space
space.POLL_SECONDS, space.SETTLE_SECONDS = 0.05, 0.2
for line in sys.stdin:
    asked, out, err = json.loads(line), io.StringIO(), io.StringIO()
    for name, value in asked["environment"].items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(asked["arguments"])
        except Exception:
            code = traceback.print_exc() or "raised"
    print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}), flush=True)
"""


@dataclass(frozen=True)
class Done:
    """What a command has printed, and its exit code."""

    code: int
    out: str
    err: str


class Commands:
    """A process that runs one command of ``kd`` after another."""

    def __init__(self, hub: Hub, home: Path, folder: Path = ROOT) -> None:
        environment = {**hub.environment(home), "PYTHONPATH": str(folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOOP],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, **environment: str | None) -> Done:
        self.process.stdin.write(json.dumps({"arguments": arguments, "environment": environment}) + "\n")
        self.process.stdin.flush()
        return Done(**json.loads(self.process.stdout.readline()))

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
