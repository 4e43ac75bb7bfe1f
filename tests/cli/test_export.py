"""``kd export`` as a user calls it."""

import json
import shutil
import zipfile

import pytest

from kd.config import DistillConfig
from kd.runs.run import Run
from kd.runs.store import create_run, local_owner
from tests.support.command import kd


@pytest.fixture
def made(colours, teacher, tmp_path) -> Run:
    """A run with a student, of this machine's owner."""
    config = DistillConfig(teacher=str(teacher), dataset=str(colours), image_size=32)
    run = create_run(config, tmp_path, local_owner(tmp_path))
    shutil.copytree(teacher, run.path / "student")
    return run


def test_the_student_of_the_last_run_is_exported_and_copied_with_a_table_and_json(made, tmp_path):
    out = tmp_path / "student.zip"
    done = kd("export", "last", "--to", "onnx", "--out", out, "--json", "--runs-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    assert "student.onnx" in "\n".join(table) and str(out) in table[-1]
    assert json.loads(last)["files"]["student.onnx"]["agreement"] == 1
    assert f"student-{made.id}/predict.py" in zipfile.ZipFile(out).namelist()
    assert "exporting the student of run" in done.stderr and "Traceback" not in done.stderr


def test_what_cannot_be_done_is_said_at_once_with_code_1(made, tmp_path):
    (tmp_path / "there").mkdir()
    for arguments, words in (
        (["nosuch"], "no run"),
        ([made.id, "--to", "fp16"], "There is no format 'fp16' to export to. The formats are onnx, int8."),
        ([made.id, "--out", tmp_path / "there"], "exists already"),
        ([made.id, "--out", tmp_path / "no" / "folder"], "there is no folder"),
    ):
        done = kd("export", *arguments, "--runs-dir", tmp_path)
        assert done.returncode == 1 and words in done.stderr.replace("There is no run", "no run"), done.stderr
        assert "Traceback" not in done.stderr
    assert not (made.path / "export").exists()


def test_on_a_shared_server_a_run_of_somebody_else_is_not_exported(made, tmp_path):
    settings = made.settings()
    (made.path / "config.json").write_text(json.dumps({**settings, "owner": "0" * 64}))
    done = kd("export", "last", "--runs-dir", tmp_path, KD_SHARED="1")
    assert done.returncode == 1 and "belongs to somebody else" in done.stderr and "Traceback" not in done.stderr
