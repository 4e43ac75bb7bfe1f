"""Visitors of a shared server: how much each may have, and what becomes of it when they do not come back."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from kd.cli import main
from kd.config import DistillConfig
from kd.devtools import load
from kd.errors import UserError
from kd.experiments.grid import Grid
from kd.experiments.sweep import create_sweep
from kd.export.job import make_job
from kd.runs import visitors
from kd.runs.run import Run
from kd.runs.store import create_run, local_owner
from kd.system.ids import owner_hash
from kd.ui import access

ANNA, BEN = "aa" * 16, "bb" * 16

LONG_AGO = time.time() - 30 * visitors.DAY


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for name, value in {"KD_RUNS_DIR": str(tmp_path), "KD_SHARED": "1", "KD_QUOTA_MB": "3", "KD_DISK_MB": "5"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def finished(folder: Path, token: str, megabytes: float = 0) -> Run:
    run = create_run(DistillConfig(), folder, token)
    run.append("done")
    (run.path / "student").mkdir()
    (run.path / "student" / "model.safetensors").write_bytes(b"\0" * int(megabytes * 1e6))
    return run


def dataset(folder: Path, token: str, megabytes: float = 0) -> Path:
    path = folder / ".datasets" / token[:4]
    path.mkdir(parents=True)
    (path / "dataset.json").write_text(json.dumps({"owner": owner_hash(token)}))
    (path / "train.parquet").write_bytes(b"\0" * int(megabytes * 1e6))
    return path


def leave(*paths: Path) -> None:
    """As if nothing had happened in these folders for a month."""
    for path in paths:
        for file in path.rglob("*"):
            os.utime(file, (LONG_AGO, LONG_AGO))


# --- Room


def test_a_visitors_runs_and_datasets_count_together_and_not_anothers(folder):
    finished(folder, ANNA, 1.5)
    finished(folder, BEN, 0.5)
    dataset(folder, ANNA, 1.2)
    visitors.check_room(folder, owner_hash(ANNA))
    left = [visitors.room(folder, owner_hash(whose)) for whose in (ANNA, BEN)]
    assert [own / 1e6 for own, _ in left] == pytest.approx([0.3, 2.5], abs=0.1)
    assert [every / 1e6 for _, every in left] == pytest.approx([1.8, 1.8], abs=0.1)
    finished(folder, ANNA, 0.5)
    with pytest.raises(UserError, match="take 3 MB; the most is 3 MB"):
        visitors.check_room(folder, owner_hash(ANNA))
    finished(folder, BEN, 2)
    with pytest.raises(UserError, match="all visitors take the 5 MB"):
        visitors.check_room(folder, owner_hash(BEN))


def test_a_run_is_not_begun_without_room_for_it(folder):
    finished(folder, ANNA, 3.1)
    with pytest.raises(UserError, match="Your runs and datasets take 3 MB"), access.admitted(ANNA):
        pytest.fail("it was begun")
    with access.admitted(BEN):
        pass


def test_without_limits_nothing_is_counted(folder, monkeypatch):
    finished(folder, ANNA, 9)
    monkeypatch.setenv("KD_QUOTA_MB", "none")
    monkeypatch.setenv("KD_DISK_MB", "none")
    visitors.check_room(folder, owner_hash(ANNA))


def test_fifty_starts_at_once_are_no_more_than_the_limit(folder):
    begun, refused = [], []

    def start() -> None:
        try:
            with access.admitted(ANNA):
                begun.append(create_run(DistillConfig(), folder, ANNA))
        except UserError as problem:
            refused.append(str(problem))

    threads = [threading.Thread(target=start) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == 3 and set(refused) == {
        "You have 3 runs waiting or running. Stop one, or wait until it is done."
    }


def test_a_run_that_was_just_resumed_counts_before_its_process_says_so(folder, monkeypatch):
    monkeypatch.setenv("KD_OPEN_RUNS", "1")
    one, other = (finished(folder, ANNA) for _ in range(2))
    with access.admitted(ANNA, one.id):
        pass
    with pytest.raises(UserError, match="You have 1 runs"), access.admitted(ANNA, other.id):
        pass
    access._resumed.clear()


def test_a_full_queue_says_how_full(folder, monkeypatch):
    monkeypatch.setenv("KD_QUEUE", "1")
    create_run(DistillConfig(), folder, BEN)
    with pytest.raises(UserError, match="The queue is full: 1 runs wait or run"), access.admitted(ANNA):
        pass


def test_the_limits_words_are_what_the_load_test_calls_busy(folder, monkeypatch):
    monkeypatch.setenv("KD_OPEN_RUNS", "1")
    monkeypatch.setenv("KD_QUEUE", "1")
    create_run(DistillConfig(), folder, ANNA)
    dataset(folder, BEN, 3.1)
    for refused in (
        lambda: access.admitted(ANNA).__enter__(),
        lambda: access.admitted(BEN).__enter__(),
        lambda: visitors.check_room(folder, owner_hash(BEN)),
    ):
        with pytest.raises(UserError) as refusal:
            refused()
        assert load.BUSY.search(str(refusal.value))


# --- Who does not come back


def test_what_an_idle_visitor_left_is_deleted_and_nobody_elses(folder):
    left, pictures = finished(folder, ANNA), dataset(folder, ANNA)
    sweep = create_sweep(DistillConfig(), Grid("1", "0.5"), folder, ANNA)
    sweep.append("stopped", message="")
    kept, mine = finished(folder, BEN), finished(folder, local_owner(folder))
    leave(left.path, pictures, sweep.path, kept.path, mine.path)
    visitors.seen(folder, owner_hash(BEN))
    gone = visitors.clean(folder, days=7)
    assert {one.path for one in gone} == {left.path, pictures, sweep.path}
    assert not left.path.exists() and not pictures.exists() and not sweep.path.exists()
    assert kept.path.exists() and mine.path.exists()


def test_nothing_of_a_visitor_goes_while_one_of_the_runs_is_at_work(folder):
    done, works = finished(folder, ANNA), create_run(DistillConfig(), folder, ANNA)
    with works.work():
        works.append("started")
        leave(done.path, works.path)
        assert not visitors.idle(folder, 7, time.time())
    assert len(visitors.idle(folder, 7, time.time())) == 2  # it has died since


def test_nothing_of_a_visitor_goes_while_a_student_is_exported_or_pushed(folder):
    run = finished(folder, ANNA)
    job = Run(run.path / "pushing")
    make_job(run, job)
    with job.work():
        job.begin(resume=False)
        leave(run.path)
        assert not visitors.idle(folder, 7, time.time())
        job.close("done")
    leave(run.path)
    assert len(visitors.idle(folder, 7, time.time())) == 1


def test_who_looks_at_a_run_has_been_seen_and_who_only_tries_a_token_has_not(folder):
    run = finished(folder, ANNA)
    access.own_runs(BEN)
    with pytest.raises(UserError):
        access.own(run.id, BEN)
    assert not (folder / ".visitors").exists()
    access.own(run.id, ANNA)
    mark = folder / ".visitors" / owner_hash(ANNA)
    before = mark.stat().st_mtime_ns
    access.own_runs(ANNA)
    assert mark.stat().st_mtime_ns == before  # once a minute at most
    os.utime(mark, (LONG_AGO, LONG_AGO))
    access.own_runs(ANNA)
    assert mark.stat().st_mtime > LONG_AGO + 1


def test_a_server_cleans_once_an_hour_however_often_it_is_started(folder, monkeypatch):
    leave(finished(folder, ANNA).path)
    assert len(visitors.clean_if_due(folder)) == 1
    leave(finished(folder, ANNA).path)
    assert not visitors.clean_if_due(folder)
    os.utime(folder / ".visitors" / ".cleaned", (LONG_AGO, LONG_AGO))
    monkeypatch.setenv("KD_IDLE_DAYS", "none")
    assert not visitors.clean_if_due(folder)


def test_clean_by_hand_lists_first_and_deletes_when_told_to(folder, capsys, monkeypatch):
    run = finished(folder, ANNA, 1)
    leave(run.path)
    assert main.main(["clean", "--days", "60"]) == 0 and "0 runs" in capsys.readouterr().out
    assert main.main(["clean"]) == 0 and run.path.exists()
    said = capsys.readouterr().out
    assert str(run.path) in said and "would be deleted with --yes: 1 runs, sweeps and datasets, 1.0 MB" in said
    assert main.main(["clean", "--yes"]) == 0 and not run.path.exists()
    monkeypatch.delenv("KD_SHARED")
    for days in ([], ["--days", "-1"], ["--days", "soon"]):
        assert main.main(["clean", *days]) == 2
    assert "--days is 'soon'; expected a number" in capsys.readouterr().err


def test_a_visitor_reads_the_limits_beforehand(folder, monkeypatch):
    said = access.house_rules()
    assert "3 runs waiting or running" in said and "50,000 training steps" in said and "come back for 7 days" in said
    monkeypatch.delenv("KD_SHARED")
    assert access.house_rules() == ""
