"""The command line's entry: what it imports, and how it ends."""

import subprocess
import sys

from kd.cli import main


def test_ctrl_c_is_an_end_and_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(main.limits, "markdown", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main.main(["limits"]) == 1 and capsys.readouterr().err == "kd: stopped\n"


def test_importing_kd_or_asking_for_help_loads_nothing_heavy():
    code = "import sys, kd, kd.cli.main; kd.cli.main.parser(); print([m for m in ('torch', 'transformers', 'datasets', 'gradio', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
