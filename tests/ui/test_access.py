"""What a visitor of a shared server may name as a dataset and as a teacher."""

import pytest

from kd.config import DistillConfig
from kd.distill import distill
from kd.errors import UserError
from kd.runs.store import create_run
from kd.ui import access, dark_knowledge
from tests.support.uploads import PHOTOS, packed, take


def test_on_a_shared_server_a_run_takes_the_visitor_s_own_dataset_and_no_other_s(tmp_path, lenient, monkeypatch):
    from kd.ui import access

    monkeypatch.setenv("KD_SHARED", "1")
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    mine, yours = "a" * 32, "b" * 32
    upload = take(tmp_path, packed(tmp_path / "a.zip", PHOTOS), mine)
    named, path = DistillConfig(dataset=f"upload:{upload.id}"), DistillConfig(dataset=str(upload.path))
    assert access.with_own(named, mine) == path
    access.check_names(named)
    with pytest.raises(UserError, match="a path"):
        access.check_names(path)
    for other in (f"upload:{upload.id}", "upload:20260101-000000000000-0000", "upload:last", "upload:../x"):
        with pytest.raises(UserError, match=r"There is no dataset '.*' among yours"):
            access.with_own(DistillConfig(dataset=other), yours)
    with pytest.raises(UserError, match="a path"):
        access.check_names(DistillConfig(dataset=str(tmp_path)))


def test_on_a_shared_server_only_an_own_run_can_teach(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_SHARED", "1")
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    mine, theirs = access.new_token(), access.new_token()
    run = create_run(DistillConfig(), tmp_path, mine)
    (run.path / "student").mkdir()
    (run.path / "student" / "config.json").touch()
    run.close("done")
    asked = DistillConfig(teacher=f"run:{run.id}")
    assert access.with_own(asked, mine).teacher == str(run.path / "student")
    for config, token in ((asked, theirs), (asked, ""), (DistillConfig(teacher="run:last"), theirs)):
        with pytest.raises(UserError, match="among yours"):
            access.with_own(config, token)
    begun = DistillConfig(teacher=str(run.path / "student"))
    with pytest.raises(UserError, match="a path"):
        access.check_names(begun)
    assert "is not asked here" in dark_knowledge.teacher_says({"teacher": asked.teacher, "example": 0})["problem"]


def test_an_archive_is_no_dataset_before_it_is_imported(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"photos.zip is an archive.*Bring it in Pictures"):
        access.with_own(DistillConfig(dataset=str(tmp_path / "photos.zip")), "")
    with pytest.raises(UserError, match="Bring it in Pictures"):
        distill(DistillConfig(dataset=str(tmp_path / "photos.zip")), tmp_path)
