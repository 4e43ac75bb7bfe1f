"""The command line's entry: what it imports, its help, how it ends, and the page that it serves."""

import re
import socket
import subprocess
import sys

import pytest

from kd.cli import main


def test_ctrl_c_is_an_end_and_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(main.limits, "markdown", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main.main(["limits"]) == 1 and capsys.readouterr().err == "kd: stopped\n"


def test_importing_kd_or_asking_for_help_loads_nothing_heavy():
    code = "import sys, kd, kd.cli.main; kd.cli.main.parser(); print([m for m in ('torch', 'transformers', 'datasets', 'gradio', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_help_shows_every_command_once_in_a_group(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = main.parser().format_help()
    commands = next(action for action in main.parser()._actions if action.choices).choices
    shown = re.findall(r"^  ([a-z]+)(?: build)? {2,}\S", text.partition("\ntraining runs:\n")[2], re.MULTILINE)
    assert sorted(shown) == sorted(commands)
    titles = re.findall(r"^([a-z ]+):$", text, re.MULTILINE)
    assert titles[-4:] == ["training runs", "pictures", "proof and measuring", "server and project"]


def test_the_help_fits_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, main.parser().format_help().splitlines())) <= 80


def test_a_port_that_cannot_be_is_bad_usage(capsys):
    assert main.main(["app", "--port", "99999"]) == 2
    assert "--port is 99999; expected a whole number from 1 to 65535" in capsys.readouterr().err


@pytest.fixture
def taken_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_taken_is_told_in_words(taken_port, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    monkeypatch.setattr("sys.setswitchinterval", lambda seconds: None)
    assert main.main(["app", "--port", str(taken_port), "--runs-dir", str(tmp_path)]) == 1
    assert f"Nothing can listen at 127.0.0.1 on port {taken_port}: another program does" in capsys.readouterr().err


def test_the_assets_of_an_installed_package_are_not_overwritten(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(main, "ASSETS", tmp_path / "kd" / "assets")
    assert main.main(["sample", "build"]) == 2
    assert "Name the folder to write to with --assets" in capsys.readouterr().err
