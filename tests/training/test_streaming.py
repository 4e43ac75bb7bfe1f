"""Streams: the same files as the ordinary way, from wherever the pass was cut, and in words what cannot be streamed."""

import json
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from kd.data import stream
from kd.data.pixels import fingerprint
from kd.data.stream import split_of
from kd.data.stream_files import Progress
from kd.distill import execute
from kd.errors import UserError
from kd.evaluation.dataset_check import check_dataset
from kd.runs.process import follow_run, start_run
from kd.runs.run import Run
from kd.training import setup
from kd.training.estimate import estimate
from kd.training.streaming import load_job_splits
from tests.support import architectures
from tests.support.paths import ROOT
from tests.support.runs import changed_by, curve, make_run
from tests.support.toys import CLASSES, class_folders

SIZES = {"train": 60, "validation": 18, "test": 24}


def rows_of(folder: Path, seed: int, each: int, size: int = 32) -> list[dict]:
    """Made-up pictures of every class, in turn."""
    files = class_folders(folder, each, seed, size)
    return [
        {"image": {"bytes": (files / name / f"{nth:03}.png").read_bytes(), "path": None}, "label": index}
        for nth in range(each)
        for index, name in enumerate(CLASSES)
    ]


def write(rows: list[dict], file: Path, label=None) -> None:
    """Write rows as a parquet file with small row groups."""
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    features = {"image": Image(), "label": label or ClassLabel(names=CLASSES)}
    Dataset.from_dict(columns, Features({name: features[name] for name in columns})).to_parquet(file, batch_size=10)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Parquet files of three splits, train in three parts."""
    folder, pictures = tmp_path_factory.mktemp("shards"), tmp_path_factory.mktemp("pictures")
    for seed, (split, size) in enumerate(SIZES.items()):
        rows = rows_of(pictures / split, seed, size // 3)
        parts = 3 if split == "train" else 1
        for part in range(parts):
            some = rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]
            write(some, folder / f"{split}-{part:05}-of-{parts:05}.parquet")
    return folder


@pytest.fixture
def streamed(small, shards) -> dict:
    """The settings of a run on the parquet files, read as a stream, in chunks of a few rows."""
    return {**small, "dataset": str(shards), "streaming": "yes", "views": 2, "image_size": 32}


@pytest.fixture
def few_rows(monkeypatch) -> None:
    """Chunks of a few rows, so that a toy has several."""
    monkeypatch.setattr(stream, "CHUNK_ROWS", 32)


def kept(run: Run) -> dict[str, np.ndarray]:
    """The decoded images and the targets in a run's cache, by their paths."""
    cache = run.path.parent / ".cache"
    return {
        str(path.relative_to(cache)): np.load(path)
        for path in sorted(cache.rglob("*.npy"))
        if "streams" not in str(path)
    }


def test_a_stream_makes_the_same_pixels_targets_and_scores_as_the_files_read_at_once(
    streamed, few_rows, tmp_path, monkeypatch
):
    at_once, roomy = (make_run({**streamed, "streaming": way}, tmp_path / way) for way in ("no", "yes"))
    execute(at_once)
    execute(roomy)
    expected, found = kept(at_once), kept(roomy)
    assert expected.keys() == found.keys() and any("view-1" in name for name in expected)
    for name, values in expected.items():
        np.testing.assert_allclose(values, found[name], atol=1e-4, err_msg=name)
    one, other = (run.report() for run in (at_once, roomy))
    assert one["data"] == other["data"] and one["student"]["accuracy"] == other["student"]["accuracy"]
    assert one["teacher"]["accuracy"] == other["teacher"]["accuracy"]
    told = roomy.last("stream")
    assert told["read"] == sum(SIZES.values()) and told["cache"] == "miss" and told["pixels"]
    assert "only equal files were looked for" in " ".join(roomy.last("data")["warnings"])
    # Without room for pixels, the pictures are read again where they lie, and the targets are the same.
    monkeypatch.setenv("KD_PIXELS_GB", "0")
    lazy = make_run({**streamed, "epochs": 2}, tmp_path / "lazy")
    execute(lazy)
    assert not list((tmp_path / "lazy").rglob("pixels.npy")) and not lazy.last("stream")["pixels"]
    assert "decoded anew in each epoch" in " ".join(lazy.last("data")["warnings"])
    targets = kept(lazy)
    assert targets and targets.keys() == {name for name in expected if "pixels" not in name}
    for name, values in targets.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-4)


def job_of(settings: dict, folder: Path, **changes) -> setup.Job:
    """A job that has begun."""
    run = make_run({**settings, **changes}, folder)
    run.append("started", pid=0, oom_kills=None)
    return setup.start_job(run)


@pytest.mark.slow
def test_a_pass_that_is_killed_goes_on_after_its_last_chunk_and_makes_the_same_files(streamed, shards, tmp_path):
    whole = job_of(streamed, tmp_path / "whole")
    expected = load_job_splits(whole)
    job = job_of(streamed, tmp_path / "killed")
    code = (
        "import os, signal, sys; from pathlib import Path; from kd.data import stream; from kd.runs.run import Run\n"
        "from kd.training import setup, streaming\n"
        "stream.CHUNK_ROWS, told = 7, streaming.Pass._report\n"
        "def report(self, split, progress, more=0):\n"
        "    told(self, split, progress, more)\n"
        "    if split.name == 'train' and progress.done == 28 and more: os.kill(os.getpid(), signal.SIGKILL)\n"
        "streaming.Pass._report = report\n"
        f"streaming.load_job_splits(setup.start_job(Run(Path({str(job.run.path)!r}))))"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (folder,) = (job.cache / "streams").iterdir()
    before = json.loads((folder / "progress.json").read_text())
    assert before["done"] == 28 and before["train"] == 28 and sorted(before["ended"]) == ["test", "validation"]
    found = load_job_splits(job)
    assert job.run.last("stream")["cache"] == "partial" and job.run.last("stream")["read"] == sum(SIZES.values())
    for name in ("train", "validation", "test"):
        assert fingerprint(getattr(found, name)) == fingerprint(getattr(expected, name))
    one, other = kept(whole.run), kept(job.run)
    assert one.keys() == other.keys() and len(one) == 2
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-4)
    assert not list(job.cache.rglob("*.part"))
    load_job_splits(job)
    assert job.run.last("stream")["cache"] == "hit"


def test_pixels_that_are_gone_are_streamed_again_also_where_the_pass_before_was_killed_at_its_very_end(
    streamed, few_rows, tmp_path
):
    job = job_of(streamed, tmp_path)
    load_job_splits(job)
    (folder,) = (job.cache / "streams").iterdir()
    Progress(train=60, readable=60, streamed=True).save(folder)
    shutil.rmtree(job.cache / "pixels")
    load_job_splits(job)
    assert job.run.last("stream")["cache"] == "miss" and list(job.cache.rglob("pixels.npy"))


def test_tar_shards_are_streamed_and_need_room_for_their_pixels(streamed, tmp_path, monkeypatch):
    rows = rows_of(tmp_path / "pictures", 3, 30)
    folder = tmp_path / "tars"
    folder.mkdir()
    for part in range(2):
        with tarfile.open(folder / f"train-{part:05}.tar", "w") as archive:
            for nth, row in enumerate(rows[part::2]):
                for ending, data in (("png", row["image"]["bytes"]), ("cls", str(row["label"]).encode())):
                    file = tmp_path / "member"
                    file.write_bytes(data)
                    archive.add(file, f"{part}-{nth:04}.{ending}")
    names = {"label_map": "0=blue sky, 1=green leaf, 2=red brick", "dataset": str(folder)}
    job = job_of(streamed, tmp_path / "a", **names)
    found = load_job_splits(job)
    assert found.classes == ["0", "1", "2"] and sum(found.sizes().values()) == 90
    assert found.sizes()["test"] > 2 and found.sizes()["validation"] > 2
    monkeypatch.setenv("KD_PIXELS_GB", "0")
    with pytest.raises(UserError, match="beginning to end only"):
        load_job_splits(job_of(streamed, tmp_path / "b", **names))


def test_splits_that_are_missing_are_cut_by_the_files_and_nothing_is_on_both_sides(streamed, few_rows, tmp_path):
    rows = rows_of(tmp_path / "pictures", 4, 60)
    rows += rows[:20]  # twenty twice: each of these pairs has one side
    write(rows, tmp_path / "one" / "train.parquet")
    other = [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]
    write(other, tmp_path / "other" / "train.parquet")
    found = {
        name: load_job_splits(
            job_of(streamed, tmp_path / f"runs-{name}", dataset=str(tmp_path / name), test_fraction=0.2)
        )
        for name in ("one", "other")
    }
    files = {name: {row["image"]["bytes"] for row in splits.test} for name, splits in found.items()}
    assert files["one"] == files["other"] and 20 < len(files["one"]) < 56
    splits = found["one"]
    sides = [{row["image"]["bytes"] for row in part} for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 180 and sum(splits.sizes().values()) == 200
    assert any("No test split" in text for text in splits.warnings)


def test_a_share_is_cut_as_large_as_was_asked_for():
    shares = {"test": 0.1, "validation": 0.2}
    names = [split_of(number.to_bytes(16, "little"), shares, 0) for number in range(20_000)]
    assert names.count("test") == pytest.approx(2000, abs=150)
    assert names.count("validation") == pytest.approx(4000, abs=200)
    others = [split_of(number.to_bytes(16, "little"), shares, 1) for number in range(2000)]
    assert others != names[:2000]


def test_what_is_in_test_too_is_left_out_of_training_and_counted(streamed, few_rows, tmp_path):
    rows = rows_of(tmp_path / "pictures", 5, 20)
    for split, some in (("train", rows), ("validation", rows[40:]), ("test", [*rows[:6], *rows[40:43]])):
        write(some, tmp_path / "d" / f"{split}.parquet")
    splits = load_job_splits(job_of(streamed, tmp_path / "runs", dataset=str(tmp_path / "d")))
    assert splits.sizes() == {"train": 60 - 6 - 20, "validation": 17, "test": 9}
    said = " ".join(splits.warnings)
    assert "9 pictures were left out of training, equal to a test picture" in said
    assert "3 pictures were left out of validation, equal to a test picture" in said
    kept_all = job_of(streamed, tmp_path / "more", dataset=str(tmp_path / "d"), duplicates="keep")
    assert load_job_splits(kept_all).sizes() == {"train": 60, "validation": 20, "test": 9}


def test_labels_that_are_words_are_found_by_a_pass_over_the_labels_and_missing_ones_need_a_teacher(streamed, tmp_path):
    rows = rows_of(tmp_path / "pictures", 6, 20)
    named = [{**row, "label": CLASSES[row["label"]] if nth % 5 else None} for nth, row in enumerate(rows)]
    write(named, tmp_path / "d" / "train.parquet", Value("string"))
    found = load_job_splits(job_of(streamed, tmp_path / "a", dataset=str(tmp_path / "d")))
    assert found.classes == CLASSES and (np.asarray(found.train["label"]) < 0).sum() == 12
    assert (np.asarray(found.test["label"]) >= 0).all() and "12 of the training pictures have no label" in str(
        found.warnings
    )
    alone = job_of(streamed, tmp_path / "b", dataset=str(tmp_path / "d"), teacher="none")
    assert (load_job_splits(alone).train["label"] >= 0).all()


def test_pictures_without_any_label_are_learned_from_the_teacher_alone(streamed, tmp_path):
    rows = [{"image": row["image"]} for row in rows_of(tmp_path / "pictures", 7, 20)]
    write(rows, tmp_path / "d" / "train.parquet")
    splits = load_job_splits(job_of(streamed, tmp_path / "runs", dataset=str(tmp_path / "d")))
    assert not splits.labelled and splits.classes == [] and (splits.train["label"] == -1).all()
    with pytest.raises(UserError, match="nothing to learn"):
        load_job_splits(job_of(streamed, tmp_path / "none", dataset=str(tmp_path / "d"), teacher="none"))


def test_many_pictures_that_cannot_be_read_end_the_pass_and_a_few_are_named(streamed, tmp_path):
    rows = rows_of(tmp_path / "pictures", 8, 20)
    rows[7]["image"]["bytes"] = b"no picture"
    for split in ("train", "validation", "test"):
        write(
            rows if split == "train" else rows_of(tmp_path / split, 9 + len(split), 4),
            tmp_path / "d" / f"{split}.parquet",
        )
    job = job_of(streamed, tmp_path / "runs", dataset=str(tmp_path / "d"))
    load_job_splits(job)
    (named,) = job.cache.rglob("unreadable.json")
    assert [entry["index"] for entry in json.loads(named.read_text())] == [7]
    for row in rows[:20]:
        row["image"]["bytes"] = b"no picture"
    write(rows, tmp_path / "d" / "train.parquet")
    with pytest.raises(UserError, match=r"More than 10% of the pictures cannot be read"):
        load_job_splits(job_of(streamed, tmp_path / "runs", dataset=str(tmp_path / "d")))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda folder: class_folders(folder, 2), "without parquet files or tar shards"),
        (lambda folder: folder / "photos.zip", "cannot be streamed"),
        (lambda folder: "sample", "on this disk and small"),
        (lambda folder: folder / "train.parquet", "could not be read by the library"),
    ],
)
def test_what_cannot_be_streamed_is_refused_in_words(streamed, tmp_path, make, words):
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("photos.zip", "train.parquet"):
        (folder.parent / name).write_bytes(b"PK not a table")
    where = make(folder)
    if isinstance(where, Path) and where.suffix:
        where = folder.parent / where.name
    with pytest.raises(UserError, match=words):
        load_job_splits(job_of(streamed, tmp_path / "runs", dataset=str(where)))


def test_the_estimate_and_the_check_say_what_they_cannot_know_of_a_stream(streamed, tmp_path):
    config = job_of(streamed, tmp_path).config
    found = estimate(config, tmp_path / ".cache")
    assert "How fast the pictures arrive is not known" in found["unknown"][0] and found["stages"]["targets"] > 0
    with pytest.raises(UserError, match="cannot be checked"):
        check_dataset(config, tmp_path / ".cache")


# The files of one run are read while it trains, and it is asked to stop in the middle of its second epoch of three.
STOP_IN_THE_MIDDLE = """
from kd.training.callback import RunCallback
ours = RunCallback.asks
def asks(self):
    if self.trainer.state.global_step == 19:
        self.run.ask_to_stop()
    return ours(self)
RunCallback.asks = asks
"""


@pytest.mark.slow
def test_two_processes_train_on_a_stream_as_one_does_and_go_on_in_the_middle_of_an_epoch(
    streamed, tmp_path, monkeypatch
):
    """There is no room for pixels: pictures are read from their files by the workers of each process, in blocks."""
    monkeypatch.setenv("KD_PIXELS_GB", "0")
    student = architectures.save("DeiTForImageClassification", tmp_path / "deit")
    settings = {**streamed, "student": str(student), "image_size": None, "learning_rate": 5e-4, "batch_size": 4}
    settings |= {"epochs": 3, "device": "cpu"}
    one, two = (make_run({**settings, "processes": count}, tmp_path / str(count)) for count in (1, 2))
    assert follow_run(one, lambda event: None, start_run(one)) == "done"
    with changed_by(STOP_IN_THE_MIDDLE, tmp_path / "site"):
        assert follow_run(two, lambda event: None, start_run(two)) == "stopped"
    assert two.last("eval")["step"] == 20 and one.last("eval")["step"] == 45
    assert follow_run(two, lambda event: None, start_run(two, resume=True)) == "done"
    told = [event for event in two.events() if event["event"] == "stream"]
    assert [event["cache"] for event in told] == ["miss", "hit"] and not told[0]["pixels"]
    assert two.last("models")["processes"] == 2
    losses = [curve(run, "train/loss") for run in (one, two)]
    assert len(losses[0]) == len(losses[1]) == 45
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    targets = [kept(run) for run in (one, two)]
    assert targets[0].keys() == targets[1].keys() and any("view-1" in name for name in targets[0])
    for name, values in targets[0].items():
        np.testing.assert_allclose(values, targets[1][name], atol=1e-4)
