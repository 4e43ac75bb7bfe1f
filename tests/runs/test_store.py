"""The folder of runs: finding, owning and deleting runs, and what they need of datasets and other runs."""

import pytest

from kd.config import DistillConfig
from kd.data.library.store import dataset_title, find_upload, list_uploads
from kd.data.pixels import load_pixels
from kd.data.splits import load_splits
from kd.data.views import Frame
from kd.errors import UserError
from kd.runs.store import (
    create_run,
    delete_dataset,
    delete_run,
    find_run,
    list_runs,
    local_owner,
    lost_teacher,
    resolve,
)
from kd.system.files import cache_folder
from kd.system.ids import GONE
from kd.ui import compare, dark_knowledge, theme
from tests.support.uploads import PHOTOS, packed, take


def test_a_deleted_run_is_gone_at_once_and_with_it_what_a_killed_deletion_has_left(run):
    half = run.path.with_name(f"{GONE}{run.id}-before")
    half.mkdir()
    delete_run(run)
    assert list(run.path.parent.glob("*")) == [] and list_runs(run.path.parent) == []


def test_one_token_owns_all_local_runs(tmp_path):
    assert local_owner(tmp_path) == local_owner(tmp_path)
    assert len(local_owner(tmp_path)) == 32
    assert (tmp_path / ".owner").stat().st_mode & 0o077 == 0


def test_an_owner_that_was_not_written_to_its_end_is_made_anew(tmp_path):
    (tmp_path / ".owner").touch()
    assert len(local_owner(tmp_path)) == 32


def test_a_running_run_cannot_be_deleted(run):
    with run.work(), pytest.raises(UserError, match="Stop it first"):
        delete_run(run)


def test_runs_are_found_by_the_start_of_their_id_and_an_id_is_never_a_path(tmp_path, run):
    other = create_run(DistillConfig(), tmp_path, "token")
    assert find_run(tmp_path, run.id) == run and find_run(tmp_path, "last") == other
    assert list_runs(tmp_path) == [other, run]
    for bad in ("../" + tmp_path.name, "", "nope", str(run.path), ".slots"):
        with pytest.raises(UserError):
            find_run(tmp_path, bad)


def test_a_dataset_answers_to_its_owner_and_is_deleted_when_no_run_needs_it(tmp_path, lenient):
    upload = take(tmp_path, packed(tmp_path / "a.zip", PHOTOS))
    with pytest.raises(PermissionError, match="belongs to somebody else"):
        upload.check_owner("you")
    with pytest.raises(UserError, match="among yours"):
        resolve(DistillConfig(dataset=f"upload:{upload.id}"), tmp_path, "you")
    config = resolve(DistillConfig(dataset=f"upload:{upload.id}"), tmp_path, "me")
    run = create_run(config, tmp_path, "me")
    assert run.config().dataset == str(upload.path) and dataset_title(run.config().dataset) == "a"
    with pytest.raises(UserError, match=f"in use by run {run.id}"):
        delete_dataset(upload)
    with run.work():
        run.close("stopped", message="")
    cache, size = cache_folder(tmp_path, run.config().dataset), upload.bytes()
    load_pixels(load_splits(run.config()).train, Frame((16, 16)), cache)
    assert upload.path in cache.parents and upload.bytes() > size  # decoded pictures count as theirs, and go with them
    assert load_splits(run.config()).sizes()["train"] > 0
    delete_dataset(upload)
    assert not cache.exists()
    with pytest.raises(UserError, match="The imported dataset is gone: it was deleted"):
        load_splits(run.config())
    assert list_uploads(tmp_path) == [] and dataset_title(str(upload.path)) == "a deleted dataset"
    with pytest.raises(UserError, match="There is no dataset"):
        find_upload(tmp_path, upload.id)


def test_a_teacher_whose_run_was_deleted_is_said_to_be_gone_and_what_still_works(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    first = create_run(DistillConfig(), tmp_path, local_owner(tmp_path))
    (first.path / "student").mkdir()
    (first.path / "student" / "config.json").write_text("{}")
    first.close("done")
    config = resolve(DistillConfig(teacher=f"run:{first.id}"), tmp_path, None)
    second = create_run(config, tmp_path, local_owner(tmp_path))
    second.close("done")
    delete_run(first)
    with pytest.raises(
        UserError, match=rf"student of run {first.id}, .* deleted.*student alone still works.*distil from"
    ):
        compare.side_by_side(second, [str(theme.EXAMPLES[0])])
    kept = second.config().teacher
    for teacher in (f"run:{first.id}", kept):
        said = dark_knowledge.teacher_says({"teacher": teacher, "example": 0})["problem"]
        assert first.id in said and "hoose another teacher" in said and "stay as they are" in said
    assert "no such folder" not in said and lost_teacher("sample") is lost_teacher("/no/student") is None
