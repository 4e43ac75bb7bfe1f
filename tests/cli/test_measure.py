"""The commands that measure the project."""

import pytest

from kd.cli import main
from kd.devtools import chaos


@pytest.mark.parametrize(("problems", "code"), [((), 0), (("the run's lock stays taken",), 1)])
def test_the_command_prints_each_fault_and_the_count(monkeypatch, capsys, problems, code):
    found = [
        chaos.Outcome("kill -9 the trainer", "save", "eval", "died", "done, 90.0%", problems),
        chaos.Outcome("full disk", "save", "", "mounting needs root", "", skipped=True),
    ]
    monkeypatch.setattr("kd.devtools.chaos.chaos", lambda kills, seed, tell: [tell(one) or one for one in found])
    assert main.main(["chaos", "--seed", "3"]) == code
    printed = capsys.readouterr().out
    assert f"{1 - code} of 1 faults survived, 1 skipped" in printed and "seed 3" in printed
    assert not problems or "no: the run's lock stays taken" in printed
