"""Copies in a bucket: what is closed comes back after the disk was lost, as it was last, and nothing that was deleted."""

import json
import shutil
from pathlib import Path

import pytest

from kd.config import DistillConfig
from kd.devtools.chaos import Skipped, small_disk
from kd.experiments.grid import Grid
from kd.experiments.sweep import create_sweep, list_sweeps
from kd.export.job import FOLDER as EXPORTING
from kd.runs import backup, visitors
from kd.runs.backup import Backup
from kd.runs.bucket import Copy
from kd.runs.run import Run
from kd.runs.store import create_run, delete_dataset, delete_run, list_runs, local_owner
from kd.system.files import SWEEPS
from kd.system.ids import new_id, owner_hash

ANNA, ACCOUNT = "aa" * 16, "cc" * 16


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "bucket"
    folder.mkdir()
    monkeypatch.setenv("KD_BUCKET", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def finished(folder: Path, token: str = ANNA, size: int = 10_000) -> Run:
    run = create_run(DistillConfig(), folder, token)
    run.append("started", pid=1)
    run.append("done")
    (run.path / "student").mkdir()
    (run.path / "student" / "model.safetensors").write_bytes(bytes(range(250)) * (size // 250))
    return run


def dataset(folder: Path, token: str = ANNA) -> Path:
    path = folder.resolve() / ".datasets" / new_id(1.7e9)
    (path / ".cache").mkdir(parents=True)
    (path / ".cache" / "pixels.npy").write_bytes(b"0" * 50_000)
    (path / "train.parquet").write_bytes(b"pictures")
    (path / "dataset.json").write_text(json.dumps({"id": path.name, "name": "mine", "owner": owner_hash(token)}))
    return path


def serve(folder: Path, bucket: Path) -> Backup:
    """What a server does at its start, and then every few seconds."""
    server = Backup(folder, bucket)
    server.open()
    server.restore()
    assert server.update(), server.problem
    return server


def lose_disk(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def files(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != "lock"
    }


def test_runs_sweeps_datasets_and_the_secret_come_back_as_they_were(folder, bucket):
    run, upload, secret = finished(folder), dataset(folder), local_owner(folder)
    sweep = create_sweep(DistillConfig(), Grid(temperatures=(1.0, 2.0), lambdas=(1.0,)), folder, ANNA)
    sweep.append("stopped", message="")
    run.rename("the good one")
    before = {path: files(path) for path in (run.path, sweep.path)}
    server = serve(folder, bucket)
    assert not server.problem
    assert {file.stat().st_mode & 0o777 for file in bucket.rglob("*") if file.is_file()} == {0o600}
    lose_disk(folder)
    serve(folder, bucket)
    assert {path: files(path) for path in before} == before
    assert local_owner(folder) == secret
    (again,) = list_runs(folder)
    assert (again.name(), again.status(), again.is_owned_by(ANNA)) == ("the good one", "done", True)
    assert [one.id for one in list_sweeps(folder)] == [sweep.id]
    assert files(upload).keys() == {"dataset.json", "train.parquet"}  # what can be made again was not kept


def test_a_run_that_works_or_waits_is_not_copied_until_it_is_closed(folder, bucket):
    waiting, working, exported = create_run(DistillConfig(), folder, ANNA), finished(folder), finished(folder)
    job = exported.path / EXPORTING
    job.mkdir()
    shutil.copy(exported.path / "config.json", job)
    (job / "events.jsonl").write_text(json.dumps({"event": "started", "time": 0}) + "\n")
    server = Backup(folder, bucket)
    server.open()
    with Run(working.path).work(), Run(job).work():
        assert server.update()
        assert list((bucket / "runs").iterdir()) == []
    assert server.update()
    assert {file.stem for file in (bucket / "runs").glob("*.json")} == {working.id, exported.id}
    assert waiting.status() == "queued"


def test_what_a_resumed_run_loses_is_only_what_came_after_its_last_copy(folder, bucket):
    run = create_run(DistillConfig(), folder, ANNA)
    run.append("started", pid=1)
    run.append("stopped", message="")
    server = serve(folder, bucket)
    with run.work():
        run.append("resumed", pid=1)
        assert server.update()
    lose_disk(folder)
    serve(folder, bucket)
    assert run.status() == "stopped"


def test_a_name_and_an_owner_that_changed_after_the_copy_are_right_and_the_archive_is_not_sent_again(folder, bucket):
    run, upload = finished(folder), dataset(folder)
    server = serve(folder, bucket)
    archives = {file.name: file.stat().st_ino for file in bucket.rglob("*.tar")}
    run.rename("later")
    visitors.hand_over(folder, owner_hash(ANNA), owner_hash(ACCOUNT))
    assert server.update()
    assert {file.name: file.stat().st_ino for file in bucket.rglob("*.tar")} == archives
    lose_disk(folder)
    serve(folder, bucket)
    assert run.name() == "later" and run.is_owned_by(ACCOUNT) and not run.is_owned_by(ANNA)
    assert json.loads((upload / "dataset.json").read_text())["owner"] == owner_hash(ACCOUNT)


def test_what_was_made_of_a_run_later_is_copied_too_and_the_older_archive_goes(folder, bucket):
    run = finished(folder)
    server = serve(folder, bucket)
    (run.path / "export").mkdir()
    (run.path / "export" / "student.onnx").write_bytes(b"onnx")
    assert server.update()
    assert len(list((bucket / "runs").glob("*.tar"))) == 1
    lose_disk(folder)
    serve(folder, bucket)
    assert (run.path / "export" / "student.onnx").read_bytes() == b"onnx"


def test_what_is_deleted_has_no_copy_at_once_and_stays_deleted(folder, bucket):
    from kd.data.library.store import Upload

    run, upload, idle = finished(folder), dataset(folder), finished(folder, ACCOUNT)
    serve(folder, bucket)
    delete_run(run)
    delete_dataset(Upload(upload))
    visitors.clean(folder, days=-1)
    assert [file.name for kind in ("runs", "datasets") for file in (bucket / kind).iterdir()] == []
    lose_disk(folder)
    serve(folder, bucket)
    assert not run.path.exists() and not upload.exists() and not idle.path.exists()


def test_a_deletion_that_the_bucket_missed_is_carried_over_later(folder, bucket, monkeypatch):
    run, server = finished(folder), None
    server = serve(folder, bucket)
    monkeypatch.delenv("KD_BUCKET")  # as if it had not answered
    delete_run(run)
    assert list((bucket / "runs").iterdir()) != []
    assert server.update()
    assert list((bucket / "runs").iterdir()) == []


def test_a_folder_of_runs_that_has_gone_away_deletes_no_copies(folder, bucket):
    finished(folder)
    server = serve(folder, bucket)
    lose_disk(folder)
    assert not server.update() and "not the one of before" in server.problem
    assert len(list((bucket / "runs").iterdir())) == 2


@pytest.mark.parametrize("harm", ["cut", "changed", "gone", "index"])
def test_a_copy_that_was_cut_is_not_brought_back_and_the_others_are(folder, bucket, harm):
    whole, harmed = finished(folder), finished(folder)
    serve(folder, bucket)
    copy = Copy.of(harmed.path, bucket)
    archive = copy.folder / copy.read()["archive"]
    if harm == "cut":
        archive.write_bytes(archive.read_bytes()[:5000])
    elif harm == "changed":
        data = bytearray(archive.read_bytes())
        data[data.index(bytes(range(250))) + 7] ^= 1
        archive.write_bytes(data)
    elif harm == "gone":
        archive.unlink()
    else:
        copy.index.write_text(copy.index.read_text()[:40])
    lose_disk(folder)
    server = serve(folder, bucket)
    assert [run.id for run in list_runs(folder)] == [whole.id]
    assert "1 could not be brought back" in server.words()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".back")] == []


def test_a_name_in_a_copy_that_leads_elsewhere_is_refused(folder, bucket):
    run = finished(folder)
    serve(folder, bucket)
    index = Copy.of(run.path, bucket).index
    index.write_text(index.read_text().replace('"name"', '"../name"').replace('"config.json"', '"../../config.json"'))
    lose_disk(folder)
    serve(folder, bucket)
    assert list_runs(folder) == [] and not (folder.parent / "config.json").exists()


def test_visitors_are_known_to_have_been_here(folder, bucket):
    run = finished(folder)
    visitors.seen(folder, owner_hash(ANNA))
    when = visitors.last_seen(folder)
    serve(folder, bucket)
    lose_disk(folder)
    serve(folder, bucket)
    assert run.path.exists()
    assert visitors.last_seen(folder) == pytest.approx(when)


# --- Troubles


def test_a_bucket_of_another_server_is_left_alone(folder, bucket, tmp_path):
    kept = finished(folder)
    serve(folder, bucket)
    other = tmp_path / "other"
    finished(other)
    local_owner(other)
    server = Backup(other, bucket)
    with pytest.raises(backup.OtherBucket, match="copies of another server"):
        server.open()
    assert {file.stem for file in (bucket / "runs").glob("*.json")} == {kept.id}


def test_a_bucket_that_is_away_is_a_sentence_and_is_used_once_it_is_there(folder, bucket):
    run = finished(folder)
    server = serve(folder, bucket)
    shutil.move(bucket, away := bucket.with_name("away"))
    run.rename("meanwhile")
    with pytest.raises(FileNotFoundError):
        Backup(folder, bucket).open()
    assert not server.update()
    assert "trouble since" in server.words()
    shutil.move(away, bucket)
    assert server.update() and server.words() == ""
    assert Copy.of(run.path, bucket).read()["small"]["name"] == "meanwhile"


def test_a_bucket_that_cannot_be_read_at_the_start_is_brought_back_once_it_can(folder, bucket, monkeypatch):
    run = finished(folder)
    serve(folder, bucket)
    lose_disk(folder)
    server = Backup(folder, bucket)
    server.open()
    shutil.move(bucket / "sweeps", away := bucket.with_name("away"))
    monkeypatch.setenv("SPACE_ID", "a/b")
    assert not server.step() and "trouble since" in server.words() and not run.path.exists()
    shutil.move(away, bucket / "sweeps")
    assert server.step() and server.words() == backup.KEPT and run.status() == "done"


def test_a_copy_that_could_not_be_read_at_the_start_is_tried_again_later_and_a_damaged_one_is_not(
    folder, bucket, monkeypatch
):
    run, damaged = finished(folder), finished(folder)
    serve(folder, bucket)
    lose_disk(folder)
    whole = Copy.of(run.path, bucket).read()
    archive, away = bucket / "runs" / whole["archive"], bucket / "away.tar"
    (bucket / "runs" / Copy.of(damaged.path, bucket).read()["archive"]).write_bytes(b"cut")
    shutil.move(archive, away)
    archive.mkdir()  # cannot be read now: an OSError, as where the bucket is away
    server = Backup(folder, bucket)
    server.open()
    server.restore()
    assert set(server.missed) == {run.id, damaged.id} and not run.path.exists()
    archive.rmdir()
    shutil.move(away, archive)
    monkeypatch.setattr(server, "again", 0.0)
    assert server.step() and run.status() == "done" and server.missed == [damaged.id]
    assert server.again == float("inf")


def test_what_was_deleted_while_the_bucket_was_away_does_not_come_back_when_it_is_read_again(
    folder, bucket, monkeypatch
):
    run = finished(folder)
    server = serve(folder, bucket)
    monkeypatch.setattr(Copy, "remove", lambda self: (_ for _ in ()).throw(OSError(5, "away")))
    delete_run(run)
    server.restore()
    assert not run.path.exists() and Copy.of(run.path, bucket).read()


@pytest.mark.parametrize(("runs", "bucket"), [("a", "a"), ("a", "a/b"), ("a/b", "a")])
def test_a_bucket_that_is_not_apart_from_the_runs_is_refused_in_words(tmp_path, runs, bucket):
    run = finished(tmp_path / runs)
    (tmp_path / bucket).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    server = Backup(tmp_path / runs, tmp_path / bucket)
    assert not server.step() and "are not apart" in server.words() and "KD_BUCKET or KD_RUNS_DIR" in server.words()
    assert sorted(tmp_path.rglob("*")) == before and run.status() == "done"


def test_a_full_bucket_keeps_the_copies_that_it_has_and_no_half_one(folder, bucket):
    small = finished(folder)
    try:
        with small_disk(bucket):
            server = serve(folder, bucket)
            large = finished(folder, size=200_000_000)
            assert not server.update()
            assert "No space left" in server.words() and large.id in server.words()
            assert {file.stem for file in (bucket / "runs").glob("*.json")} == {small.id}
            assert not list(bucket.rglob(f"*{large.id}*"))
            delete_run(large)
            assert server.update() and server.words() == ""
    except Skipped as reason:
        pytest.skip(str(reason))


def test_a_copy_beside_which_the_run_goes_on_is_given_up(folder, bucket):
    run = finished(folder)
    server = Backup(folder, bucket)
    server.open()

    def go_on() -> None:  # while the archive is written
        (run.path / "student" / "more").write_text("later")

    assert not Copy.of(run.path, bucket).write(run.path, lambda: True, go_on)
    assert list((bucket / "runs").iterdir()) == []
    assert server.update() and Copy.of(run.path, bucket).read() is not None


# --- What the page says


def test_a_space_says_what_a_restart_loses_and_one_s_own_machine_says_nothing(folder, bucket, monkeypatch):
    assert backup.what_is_lost() == ""
    server = serve(folder, bucket)
    assert server.words() == ""
    monkeypatch.setenv("SPACE_ID", "a/b")
    assert backup.what_is_lost() == backup.LOST
    assert server.words() == backup.KEPT
    server.done, server.of = 1, 3
    assert server.words().endswith("1 of 3 are here.")


def test_sweeps_are_kept_apart_from_runs(folder, bucket):
    assert Copy.of(folder / SWEEPS / "x", bucket).folder.name == "sweeps"
    assert Copy.of(folder / "x", bucket).folder.name == "runs"
