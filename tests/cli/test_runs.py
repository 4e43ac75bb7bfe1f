"""The commands for runs: distill, runs, rename."""

import json

from kd.cli import main
from kd.config import DistillConfig
from kd.runs.store import create_run, local_owner


def test_a_run_is_given_a_name_on_the_command_line_and_loses_it_again(run, capsys):
    run = create_run(DistillConfig(), run.path.parent, local_owner(run.path.parent))
    where = ["--runs-dir", str(run.path.parent)]
    assert main.main(["rename", run.id, "  Mäntel und\nHüte ", *where]) == 0
    main.main(["runs", *where])
    assert run.name() == "Mäntel und Hüte" and "Mäntel und Hüte" in capsys.readouterr().out
    assert main.main(["rename", run.id, "x" * 81, *where]) == 1
    assert "81 characters; the most is 80" in capsys.readouterr().err
    assert main.main(["rename", run.id, "", *where]) == 0 and run.name() == ""


def test_a_run_of_another_version_does_not_hide_the_others(tmp_path, capsys):
    odd, fine = (create_run(DistillConfig(), tmp_path, "t") for _ in range(2))
    settings = odd.settings()
    settings["config"]["invented_later"] = 1
    (odd.path / "config.json").write_text(json.dumps(settings))
    assert main.main(["runs", "--runs-dir", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["run"], row["status"]) for row in rows] == [(fine.id, "queued"), (odd.id, "unreadable")]


def test_a_folder_that_cannot_hold_runs_is_said_to_be_one(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main.main(["distill", "--runs-dir", str(tmp_path / "file")]) == 1
    assert "Runs cannot be kept in" in capsys.readouterr().err
