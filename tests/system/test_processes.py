"""Starting the program again: the same code runs, whatever folder it is started from."""

import os
import site
import subprocess

from kd.system import processes
from tests.support.paths import ROOT


def test_a_checkout_is_named_first_and_what_was_named_is_kept(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert processes.kd_environment()["PYTHONPATH"] == os.pathsep.join([str(ROOT), "/elsewhere"])


def test_an_installed_package_is_found_without_being_named(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(processes, "ROOT", site.getsitepackages()[0])
    assert "PYTHONPATH" not in processes.kd_environment()


def test_a_user_s_file_with_a_library_s_name_is_not_imported(tmp_path):
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    command, environment = processes.kd_command("runs", "--runs-dir", "here"), processes.kd_environment()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("No runs in ") and done.returncode == 0, done.stderr
