"""A run whose folder was copied from another machine is the user's own here."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from kd.config import DistillConfig
from kd.errors import UserError
from kd.evaluation.compare import compare
from kd.runs.run import Run
from kd.runs.store import create_run, find_run, local_owner, resolve, teacher_here
from kd.training.checkpoints import save_student
from kd.ui import access
from kd.ui.compare import choices
from tests.support import toys
from tests.support.command import kd


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """The folder of another machine's runs: two that are done, one of which has taught the other, of another owner."""
    runs, student = tmp_path / "rented" / "runs", toys.tiny_resnet(toys.CLASSES)
    first = create_run(DistillConfig(teacher="none"), runs, local_owner(runs))
    save_student(student, toys.processor(), first.path / "student")
    first.close("done")
    second = create_run(resolve(DistillConfig(teacher=f"run:{first.id}"), runs, None), runs, local_owner(runs))
    save_student(student, toys.processor(), second.path / "student")
    second.close("done")
    return runs


@pytest.fixture
def here(elsewhere, tmp_path) -> Run:
    """The second of them, copied to this machine's runs; the other machine is gone."""
    second = find_run(elsewhere, "last")
    shutil.copytree(second.path, tmp_path / "runs" / second.id)
    shutil.move(elsewhere.parent, tmp_path / "gone")
    return Run(tmp_path / "runs" / second.id)


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    path = tmp_path / "sky.png"
    Image.new("RGB", (32, 32), (60, 90, 200)).save(path)
    return [str(path)]


def test_a_copied_run_is_listed_and_changed_as_ones_own(here, monkeypatch):
    folder = here.path.parent
    listed = kd("runs", "--json", "--runs-dir", folder, check=True)
    assert [row["run"] for row in json.loads(listed.stdout)] == [here.id]
    kd("rename", here.id, "from a rented machine", "--runs-dir", folder, check=True)
    assert here.name() == "from a rented machine" and here.is_owned_by(local_owner(folder))
    monkeypatch.setenv("KD_RUNS_DIR", str(folder))
    assert access.own_runs("") == [here] and [id for _, id in choices(None)] == [here.id]
    assert resolve(DistillConfig(teacher=f"run:{here.id}"), folder, local_owner(folder)).teacher


def test_where_strangers_share_the_server_a_copied_run_stays_its_owners(here, monkeypatch):
    token = local_owner(here.path.parent)
    monkeypatch.setenv("KD_SHARED", "1")
    assert not here.is_owned_by(token) and not here.is_owned_by("")
    with pytest.raises(PermissionError, match="belongs to somebody else"):
        here.check_owner(token)


def test_a_token_that_is_not_this_machines_owns_no_copied_run(here):
    local_owner(here.path.parent)
    assert not here.is_owned_by("somebody") and not here.is_owned_by("é")


def test_a_copied_run_is_compared_with_its_teacher_once_that_is_copied_too(here, pictures, tmp_path):
    with pytest.raises(UserError, match=rf"copy its folder to {here.path / 'teacher'}"):
        compare(here, pictures)
    theirs = find_run(tmp_path / "gone" / "runs", here.config().teacher.split("/")[-2])
    shutil.copytree(theirs.path / "student", here.path / "teacher")
    assert compare(here, pictures)["agreement"] == 1.0
    shutil.rmtree(here.path / "teacher")
    shutil.copytree(theirs.path, here.path.parent / theirs.id)  # or the whole run that has made it
    assert teacher_here(here) == str(here.path.parent / theirs.id / "student")
    assert compare(here, pictures)["agreement"] == 1.0


def test_a_teacher_that_was_a_folder_of_another_machine_is_asked_for_in_words(here, pictures):
    settings = here.settings()
    settings["config"]["teacher"] = "/rented/teacher"
    (here.path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"not on this machine: it was in /rented/teacher .* copy that folder to"):
        compare(here, pictures)
