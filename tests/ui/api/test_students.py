"""Who can download a student: its owner, and whoever has the address that the owner was given."""

import hashlib
import io
import json
import zipfile

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from kd.config import DistillConfig
from kd.runs.store import create_run
from kd.ui.api import students

OWNER, OTHER = "5e" * 16, "0" * 32


@pytest.fixture
def server(monkeypatch, tmp_path) -> TestClient:
    monkeypatch.setenv("KD_SHARED", "1")
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    return TestClient(Starlette(routes=students.ROUTES))


@pytest.fixture
def exported(server, tmp_path):
    """A run with an export of one file beside its results."""
    run = create_run(DistillConfig(), tmp_path, OWNER)
    (run.path / "student").mkdir()
    (run.path / "student" / "config.json").write_text("{}")
    (run.path / "student" / "model.safetensors").write_bytes(b"weights")
    (run.path / "export").mkdir()
    (run.path / "export" / "student.onnx").write_bytes(b"graph")
    weights = {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    (run.path / "export" / "results.json").write_text(json.dumps({"weights": weights}))
    return run


def test_the_owner_s_token_and_the_key_of_the_address_open_the_zip(server, exported):
    address = students.get_student(exported.id, OWNER)
    assert address["student"] is None and address["export"] is None  # folders of a shared server are nobody's business
    bearer = server.get(f"/student/{exported.id}.zip", headers={"Authorization": f"Bearer {OWNER}"})
    for answer in (bearer, server.get(address["download"])):
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
        names = zipfile.ZipFile(io.BytesIO(answer.content)).namelist()
        assert f"student-{exported.id}/student.onnx" in names and address["megabytes"] == round(
            len(answer.content) / 1e6, 2
        )


def test_nobody_else_gets_anything_and_another_s_run_is_as_one_that_does_not_exist(server, exported, tmp_path):
    other = create_run(DistillConfig(), tmp_path, OWNER)
    asked = [
        (exported.id, "", ""), (exported.id, OTHER, ""), (exported.id, "", OTHER), (exported.id, "", OWNER),
        (exported.id, "", students.download_key(other)), (exported.id, OWNER[:-1], ""), (exported.id, "", "ä"),
        ("20260101-000000000000-0000", OWNER, ""), ("last", OWNER, ""), ("..%2f" + exported.id, OWNER, ""),
    ]  # fmt: skip
    for id, token, key in asked:
        answer = server.get(f"/student/{id}.zip", params={"key": key}, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 404, (id, token, key)
        assert "among yours" in answer.text or answer.text == "Not Found"
    assert "has no export" in server.get(f"/student/{other.id}.zip?key={students.download_key(other)}").text
