"""Streams: the same files as the ordinary way, from wherever the pass was cut, and in words what cannot be streamed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from kd.data import stream
from kd.data.pixels import fingerprint
from kd.data.stream import split_of
from kd.distill import execute
from kd.errors import UserError
from kd.runs.run import Run
from kd.training import setup
from kd.training.streaming import load_job_splits
from tests.support.paths import ROOT
from tests.support.runs import make_run
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
    """Chunks of seven rows, so that a toy has many."""
    monkeypatch.setattr(stream, "CHUNK_ROWS", 7)


def kept(run: Run) -> dict[str, np.ndarray]:
    """The decoded images and the targets in a run's cache, by their paths."""
    cache = run.path.parent / ".cache"
    return {str(path.relative_to(cache)): np.load(path) for path in sorted(cache.rglob("*.npy")) if "streams" not in str(path)}


def test_a_stream_makes_the_same_pixels_targets_and_scores_as_the_files_read_at_once(streamed, few_rows, tmp_path):
    runs = [make_run({**streamed, "streaming": way}, tmp_path / way) for way in ("no", "yes")]
    for run in runs:
        execute(run)
    at_once, in_a_stream = map(kept, runs)
    assert at_once.keys() == in_a_stream.keys() and any("view-1" in name for name in at_once)
    for name, values in at_once.items():
        np.testing.assert_allclose(values, in_a_stream[name], atol=1e-4, err_msg=name)
    one, other = (run.report() for run in runs)
    assert one["data"] == other["data"] and one["student"]["accuracy"] == other["student"]["accuracy"]
    assert one["teacher"]["accuracy"] == other["teacher"]["accuracy"]
    told = runs[1].last("stream")
    assert told["read"] == sum(SIZES.values()) and told["cache"] == "miss" and told["pixels"]
    assert "only equal files were looked for" in " ".join(runs[1].last("data")["warnings"])
