"""Datasets, teachers and students from the Hub: the real libraries, against a Hub on this machine."""

import hashlib
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from safetensors.torch import load_file

from kd.config import DistillConfig
from kd.data.pixels import fingerprint
from kd.data.splits import load_splits
from kd.data.stream import open_source
from kd.distill import execute
from kd.errors import UserError
from kd.models.student import load_student
from kd.models.teacher import load_teacher
from kd.runs.store import create_run
from kd.system.hub import listening
from tests.support.hub import Hub, Trouble
from tests.support.toys import CLASSES, class_folders, teacher_folder

SIZES = {"train": 48, "validation": 12, "test": 15}

TWO_CONFIGURATIONS = """---
configs:
- config_name: bright
  data_dir: bright
- config_name: dark
  data_dir: dark
---
"""


# --- What a client does, in its own process


def dataset(name: str, **settings: Any) -> tuple[dict[str, int], list[str]]:
    """Sizes of the splits, and the classes."""
    splits = load_splits(DistillConfig(dataset=name, **settings))
    return splits.sizes(), splits.classes


def streamed(name: str, **settings: Any) -> tuple[dict[str, str], list[str], list[str]]:
    """A fingerprint of each split, read as a stream; the classes; the files of train, without the Hub's address."""
    import datasets

    datasets.config.STREAMING_READ_RETRY_INTERVAL = 0  # not 5 s
    source, found = open_source(DistillConfig(dataset=name, streaming="yes", **settings)), {}
    for split, rows in source.splits.items():
        digest = hashlib.blake2b(digest_size=16)
        for chunk, _ in rows.chunks(None, 0):
            for row in chunk:
                digest.update(row.digest + row.label.to_bytes(8, "little", signed=True))
        found[split] = digest.hexdigest()
    return found, source.classes, [file.partition("data/")[2] for file in source.splits["train"].files]


def read_at_once(name: str) -> dict[str, str]:
    """The fingerprint of each split, downloaded."""
    splits = load_splits(DistillConfig(dataset=name))
    return {split: fingerprint(getattr(splits, split)) for split in SIZES}


def teacher(name: str) -> str:
    """The hash of its weights, processor and order of classes."""
    return load_teacher(name, CLASSES).key()


def student(name: str) -> tuple[dict[int, str], list[int], float]:
    """Its classes, the shape of its head's weights, and the sum of all weights below the head."""
    model = load_student(name, ["ripe", "unripe"], None, seed=0).model
    return model.config.id2label, list(model.classifier[-1].weight.shape), body(model.state_dict())


def body(weights: dict[str, torch.Tensor]) -> float:
    """The sum of all weights but the head's, rounded once: in any order the same."""
    return math.fsum(
        value.double().sum().item() for name, value in weights.items() if not name.startswith("classifier")
    )


def distilled(folder: Path, preset: str) -> dict[str, Any]:
    """The report of a small run of a preset, which exports nothing."""
    small = {"student": "resnet_8", "image_size": 32, "epochs": 1, "batch_size": 16, "baseline": "no", "export": "no"}
    run = create_run(DistillConfig.preset(preset, **small), folder, "t")
    execute(run)
    return run.report()


LOADERS = [dataset, teacher, student]


def in_a_run(
    load: Callable[..., Any], name: str, folder: Path, stop_after: float | None = None
) -> tuple[Any, list[str]]:
    """What a run would load, and what it says of waiting meanwhile; it may be asked to stop after so many seconds."""
    run = create_run(DistillConfig(), folder, "t")
    if stop_after is not None:
        threading.Timer(stop_after, run.ask_to_stop).start()
    try:
        with (
            listening(lambda text: run.append("hub", message=text), run.stop_asked),
            patch("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024),
        ):  # not 10 MB: so small it is
            found = load(name)
    except KeyboardInterrupt:
        found = "stopped"
    return found, [event["message"] for event in run.events() if event["event"] == "hub"]


@contextmanager
def client(environment: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """A process with ``environment`` that calls one of the functions above and hands back what it returns or raises."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        with patch.dict(os.environ, environment, clear=True):
            process.submit(os.getpid).result()  # it starts here, with the environment of this moment
        process.submit(body, {})  # it imports the libraries, while others do
        yield lambda function, *args, **settings: process.submit(function, *args, **settings).result()


# --- What is on the Hub


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``owner/teacher``, ``owner/pickled`` (the same in a pickle), ``owner/colours``, ``owner/many`` (train in two files),
    ``owner/lights`` (two configurations), and a model and a dataset ``owner/secret``."""
    root, pictures = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("pictures")
    models, datasets = root / "models/owner", root / "datasets/owner"
    weights = teacher_folder(models / "teacher") / "model.safetensors"
    shutil.copytree(models / "teacher", models / "secret")
    shutil.copytree(models / "teacher", models / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(weights), models / "pickled/pytorch_model.bin")
    for seed, (split, size) in enumerate(SIZES.items()):
        folder = class_folders(pictures / split, size // len(CLASSES), seed)
        write_parquet(folder, datasets / f"colours/data/{split}-00000-of-00001.parquet")
        write_parquet(folder, datasets / f"lights/bright/{split}.parquet")
    write_parquet(pictures / "test", datasets / "lights/dark/train.parquet")
    for seed in range(2):
        folder = class_folders(pictures / f"part-{seed}", 20, 10 + seed)
        write_parquet(folder, datasets / f"many/data/train-{seed:05}-of-00002.parquet")
    for split in ("validation", "test"):
        write_parquet(pictures / split, datasets / f"many/data/{split}-00000-of-00001.parquet")
    (datasets / "lights/README.md").write_text(TWO_CONFIGURATIONS)
    shutil.copytree(datasets / "colours", datasets / "secret")
    return root


def write_parquet(folder: Path, file: Path) -> None:
    """A folder of class folders as a parquet file with the pictures in it, as ``push_to_hub`` writes it."""
    files = [(picture, index) for index, name in enumerate(CLASSES) for picture in sorted((folder / name).iterdir())]
    rows = {
        "image": [{"bytes": picture.read_bytes(), "path": picture.name} for picture, _ in files],
        "label": [index for _, index in files],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(rows, Features({"image": Image(), "label": ClassLabel(names=CLASSES)})).to_parquet(file)


@pytest.fixture(scope="module")
def hub(root: Path) -> Iterator[Hub]:
    with Hub(root, gated={"owner/secret"}) as hub:
        yield hub


@pytest.fixture(scope="module")
def clients(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Callable[..., Any]]]:
    """One that reaches the Hub, one in offline mode, and one whose Hub is gone."""
    home = tmp_path_factory.mktemp
    with Hub(hub.root) as gone:
        pass
    environments = {
        "online": hub.environment(home("online")),
        "offline": {**hub.environment(home("offline")), "HF_HUB_OFFLINE": "1"},
        "cut off": gone.environment(home("cut-off")),
    }
    with ExitStack() as stack:
        yield {name: stack.enter_context(client(environment)) for name, environment in environments.items()}


@pytest.fixture
def ask(clients: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    return clients["online"]


# --- With the Hub


def test_a_dataset_on_the_hub_is_loaded_with_its_splits(ask):
    assert ask(dataset, "owner/colours") == (SIZES, CLASSES)


def test_of_a_dataset_with_two_configurations_one_must_be_chosen(ask):
    for settings in ({}, {"dataset_config": "dim"}):
        with pytest.raises(UserError, match=r"(?s)--dataset-config.*bright.*dark"):
            ask(dataset, "owner/lights", **settings)
    assert ask(dataset, "owner/lights", dataset_config="bright")[0] == SIZES


def test_a_teacher_on_the_hub_is_the_one_that_was_put_there(ask, root):
    assert ask(teacher, "owner/teacher") == ask(teacher, str(root / "models/owner/teacher"))


def test_a_pretrained_student_keeps_its_weights_and_gets_a_new_head(ask, root):
    classes, head, weights = ask(student, "owner/teacher")
    assert classes == {0: "ripe", 1: "unripe"}
    assert head == [2, 16]
    assert weights == body(load_file(root / "models/owner/teacher/model.safetensors"))


@pytest.mark.parametrize("load", LOADERS)
def test_an_id_that_is_not_on_the_hub_is_said_to_be_unknown(ask, load):
    with pytest.raises(UserError, match=f"There is no {load.__name__} 'owner/nobody'"):
        ask(load, "owner/nobody")


@pytest.mark.parametrize("load", LOADERS)
def test_a_gated_repository_is_said_to_be_gated(ask, load):
    with pytest.raises(UserError, match=f"The {load.__name__} 'owner/secret' is gated"):
        ask(load, "owner/secret")


@pytest.mark.parametrize("load", [teacher, student])
def test_a_pickled_checkpoint_is_refused_and_nobody_is_asked_to_convert_it(ask, hub, load):
    with pytest.raises(UserError, match="no safetensors weights"):
        ask(load, "owner/pickled")
    assert not [line for line in hub.asked if "pytorch_model.bin" in line or "/commits/" in line]


def test_the_guide_s_preset_takes_its_teacher_and_pictures_from_the_hub(ask, root, tmp_path):
    shutil.copytree(root / "models/owner/teacher", root / "models/merve/beans-vit-224")  # colours stand in for beans
    shutil.copytree(root / "datasets/owner/colours", root / "datasets/AI-Lab-Makerere/beans")
    report = ask(distilled, tmp_path, "beans")
    assert report["data"] == {**SIZES, "classes": CLASSES, "labels": "dataset"}
    assert report["teacher"]["name"] == "merve/beans-vit-224"
    assert report["teacher"]["accuracy"] > 0.9


# --- With a Hub in trouble


@pytest.fixture
def troubled(hub: Hub, root: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """Puts a copy of a repository on the Hub, under a name that no client knows, with troubles to come."""
    copies = []

    def put(kind: str, *troubles: Trouble) -> str:
        source = root / ("datasets/owner/colours" if kind == "dataset" else "models/owner/teacher")
        copies.append(source.with_name(f"copy-{abs(hash(request.node.name))}"))
        shutil.copytree(source, copies[-1])
        hub.troubles[:] = troubles
        return f"owner/{copies[-1].name}"

    yield put
    hub.troubles.clear()
    for copy in copies:
        shutil.rmtree(copy)


def test_a_hub_that_is_busy_is_asked_again_and_each_wait_is_said(ask, troubled, root, tmp_path):
    busy = Trouble("/config.json", 429, {"Retry-After": "1"})
    name = troubled("model", Trouble("/api/models", 503), busy, busy)  # the library asks twice before it waits
    key, said = ask(in_a_run, teacher, name, tmp_path)
    assert key == ask(teacher, str(root / "models/owner/teacher"))
    assert said == [
        "The Hub has trouble of its own (503); trying again in 1 s.",
        "The Hub asks for fewer requests; trying again in 2 s.",
    ]


def test_the_hubs_own_header_says_how_long_to_wait(ask, troubled, root, tmp_path):
    """It sends ``RateLimit`` with each answer, and no ``Retry-After``; what counts is that nothing remains."""
    limits = {"RateLimit": '"api";r=0;t=2', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    name = troubled(
        "model", Trouble("/api/models", 429, limits), Trouble("/api/models", 503, {"RateLimit": '"api";r=9;t=99'})
    )
    key, said = ask(in_a_run, teacher, name, tmp_path)
    assert key == ask(teacher, str(root / "models/owner/teacher"))
    assert said == [
        "The Hub asks for fewer requests (429); trying again in 3 s.",
        "The Hub has trouble of its own (503); trying again in 2 s.",
    ]


def test_a_dataset_waits_for_a_busy_hub_too(ask, troubled, tmp_path):
    found, said = ask(in_a_run, dataset, troubled("dataset", Trouble("/tree/", 502)), tmp_path)
    assert found == (SIZES, CLASSES) and said == ["The Hub is busy; trying again in 1 s."]


def test_a_download_that_is_cut_goes_on_where_it_broke_off(ask, troubled, hub, root, tmp_path):
    name = troubled("model", Trouble("/model.safetensors"), Trouble("/model.safetensors", cut=4096))  # HEAD, then GET
    key, said = ask(in_a_run, teacher, name, tmp_path)
    assert key == ask(teacher, str(root / "models/owner/teacher"))
    assert said == ["A download from the Hub broke off; going on from there."]
    assert any(line.endswith("bytes=4096-") for line in hub.asked if name in line)


def test_a_stream_that_is_cut_goes_on_and_gives_what_a_download_gives(ask, hub):
    begun = len(hub.asked)
    hub.troubles[:] = [Trouble("train-00001-of-00002.parquet bytes=4-", cut=3000)]
    found, classes, files = ask(streamed, "owner/many")
    asked = [line for line in hub.asked[begun:] if "train-00001-of-00002.parquet bytes=4-" in line]
    assert len(asked) == 2, "the read that was cut, and the same again"
    assert classes == CLASSES and files == [f"train-{part:05}-of-00002.parquet" for part in range(2)]
    assert found == ask(read_at_once, "owner/many")


def test_a_stream_that_is_not_there_or_has_nothing_to_read_is_refused_in_words(ask, root):
    with pytest.raises(UserError, match="no such id on the Hub"):
        ask(streamed, "owner/nothing")
    with pytest.raises(UserError, match="choose one with --dataset-config"):
        ask(streamed, "owner/lights")
    broken = root / "datasets/owner/broken/data"
    broken.mkdir(parents=True, exist_ok=True)
    (broken / "train-00000-of-00001.parquet").write_bytes(b"no table" * 10)
    with pytest.raises(UserError, match="could not be read by the library"):
        ask(streamed, "owner/broken")


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (429, {"Retry-After": "3600"}, r"asks for fewer requests \(429\)"),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "does not accept your token"),
        (403, {}, "your token has no right"),
        (404, {"X-Error-Code": "RepoNotFound"}, "There is no teacher"),
        (403, {"X-Error-Code": "GatedRepo"}, "is gated"),
    ],
)
def test_the_ways_in_which_a_hub_refuses_are_told_apart(ask, troubled, status, headers, words):
    with pytest.raises(UserError, match=words):
        ask(teacher, troubled("model", Trouble("", status, headers)))


def test_a_stop_ends_the_wait_for_the_hub(ask, troubled, tmp_path):
    started = time.perf_counter()
    name = troubled("model", Trouble("", 503, {"Retry-After": "60"}))
    assert ask(in_a_run, teacher, name, tmp_path, stop_after=0.2) == (
        "stopped",
        ["The Hub has trouble of its own (503); trying again in 60 s."],
    )
    assert time.perf_counter() - started < 20


# --- Without


@pytest.mark.parametrize("load", LOADERS)
def test_offline_mode_is_named_as_the_reason_and_nothing_is_asked(clients, hub, load):
    before = len(hub.asked)
    with pytest.raises(UserError, match="offline mode is on"):
        clients["offline"](load, "owner/colours")
    assert len(hub.asked) == before


@pytest.mark.parametrize("load", LOADERS)
def test_a_hub_that_cannot_be_reached_is_said_soon(clients, load):
    started = time.perf_counter()
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        clients["cut off"](load, "owner/colours")
    assert time.perf_counter() - started < 20
