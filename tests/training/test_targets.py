"""Cached targets: the same answers as the live teacher, made once, safe to share."""

import multiprocessing
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import MobileNetV2ImageProcessorPil

from kd.config import DistillConfig
from kd.data.pixels import load_pixels
from kd.data.splits import load_splits
from kd.data.views import Frame, Views
from kd.evaluation.scoring import score
from kd.models.device import Compute
from kd.models.teacher import Teacher, load_teacher
from kd.training.batches import ViewBatches
from kd.training.distributed import Ranks
from kd.training.targets import TargetCache, _compute_all, load_targets
from kd.training.trainer import ImageDistilTrainer, training_arguments
from tests.support import toys

CPU = torch.device("cpu")


@pytest.fixture
def world(colours, teacher, tmp_path):
    """Pixels, views, teacher and an empty cache."""
    splits = load_splits(DistillConfig(dataset=str(colours)))
    pixels = load_pixels(splits.train, Frame((32, 32)), tmp_path)
    model = load_teacher(str(teacher), splits.classes)
    return pixels, Views(pixels.fingerprint, len(pixels.labels), 0.5), model, tmp_path


def load(world, count: int, precision: str = "fp32", **changes):
    pixels, views, model, cache = world
    kept = TargetCache(model, changes.get("views", views), changes.get("folder", cache), Compute(CPU, precision))
    return load_targets(kept, changes.get("pixels", pixels), count, changes.get("progress", lambda done, of: None))


class Store(dict):
    """What processes wait for each other through, within one."""

    set = dict.__setitem__
    get = dict.__getitem__

    def check(self, names: list[str]) -> bool:
        return all(name in self for name in names)


@pytest.mark.parametrize("count", [2, 3])
def test_the_rows_that_several_processes_ask_about_are_together_those_of_one(world, tmp_path, count):
    pixels, views, model, _ = world
    alone, store, found = load(world, 3, folder=tmp_path / "alone"), Store(), {}

    def ask(rank: int) -> None:
        kept = TargetCache(model, views, tmp_path / "several", Compute(CPU))
        found[rank] = load_targets(kept, pixels, 3, ranks=Ranks(rank, count, store=store))

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for rank in range(count):
        for ours, theirs in zip(found[rank].logits, alone.logits, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert found[0].cache == "miss" and not list((tmp_path / "several").rglob("*.rows-*"))


def test_cached_equals_online_on_the_same_views(world):
    pixels, views, model, _ = world
    cached = load(world, 3)
    batches = ViewBatches(pixels, views, model.normalization, CPU, model.normalization)
    for view in range(3):
        batches.show(view)
        indices = [5, 0, 77, 30]
        with torch.inference_mode():
            online = model(batches.__getitems__(indices)["teacher_pixel_values"]).logits
        torch.testing.assert_close(torch.from_numpy(cached.logits[view][indices]), online, atol=1e-5, rtol=1e-5)
    assert np.abs(cached.logits[1] - cached.logits[0]).max() > 0.01


@pytest.mark.parametrize("size", [(60, 45), (45, 60), (64, 36), (80, 40)])
def test_the_first_view_is_what_the_teachers_own_processor_gives_of_pictures_of_any_shape(teacher, tmp_path, size):
    rng = np.random.default_rng(0)
    for nth in range(12):
        name = toys.CLASSES[nth % 3]
        (tmp_path / "d" / name).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))  # noise at both ends
        image.paste(toys.picture(name, rng, min(size)), ((size[0] - min(size)) // 2, (size[1] - min(size)) // 2))
        image.save(tmp_path / "d" / name / f"{nth}.png")
    model = load_teacher(str(teacher), toys.CLASSES)
    cut = MobileNetV2ImageProcessorPil(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    model = Teacher(model.model, cut)
    train = load_splits(DistillConfig(dataset=str(tmp_path / "d"), test_fraction=0.1, validation_fraction=0.1)).train
    pixels = load_pixels(train, Frame((36, 36), *model.framing), tmp_path)
    found = load_targets(TargetCache(model, Views("0", len(train), 0.5), tmp_path, Compute(CPU)), pixels, 2)
    shown = score(model, cut, train, CPU).logits
    np.testing.assert_allclose(found.logits[0], shown, atol=1e-5)
    assert (found.logits[0].argmax(-1) == pixels.labels).mean() > 0.9
    # what the student sees of it is the same part
    batches = ViewBatches(pixels, Views("0", len(train), 0.5), model.normalization, CPU)
    with torch.inference_mode():
        seen = model(batches.__getitems__(list(range(len(train))))["pixel_values"]).logits.argmax(-1).numpy()
    assert (seen == shown.argmax(-1)).mean() > 0.8


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_teacher_that_is_asked_in_every_step_computes_in_the_precision_of_kept_targets(world, tmp_path, precision):
    pixels, views, model, _ = world
    kept = load(world, 2, precision)
    batches = ViewBatches(pixels, views, model.normalization, CPU, model.normalization)
    batches.show(1)
    config = DistillConfig(batch_size=16)
    arguments = training_arguments(config, len(batches), Compute(CPU, precision), tmp_path / "t")
    student = toys.tiny_resnet(toys.CLASSES)
    trainer = ImageDistilTrainer(model, student, args=arguments, train_dataset=batches, eval_dataset=batches)
    indices = list(range(16))
    online = trainer._teacher_logits(batches.__getitems__(indices)).numpy()
    assert online.dtype == np.float32
    np.testing.assert_allclose(online, kept.logits[1][indices], atol=1e-5 if precision == "fp32" else 0.02)
    other = load(world, 2, "bf16" if precision == "fp32" else "fp32").logits[1][indices]
    assert np.abs(online - other).max() > 10 * np.abs(online - kept.logits[1][indices]).max()


def test_the_next_run_finds_them_and_more_views_cost_only_what_is_missing(world):
    assert load(world, 2).cache == "miss"
    again = load(world, 2)
    assert again.cache == "hit" and again.logits[0].dtype == np.float32 and len(again.logits) == 2
    assert load(world, 3).cache == "partial"
    assert load(world, 1).cache == "hit"


def test_another_crop_teacher_or_precision_has_another_key(world, tmp_path):
    pixels, _, model, _ = world
    load(world, 1)
    assert load(world, 1, views=Views(pixels.fingerprint, len(pixels.labels), 0.9)).cache == "miss"
    assert load(world, 1, precision="bf16").cache == "miss"
    with torch.no_grad():
        next(model.model.parameters())[0] += 0.01
    assert load(world, 1).cache == "miss"


@pytest.mark.parametrize("cut", [1, 400, 10**9])
def test_a_truncated_file_is_thrown_away_and_made_again(world, cut):
    before = np.array(load(world, 1).logits[0])
    file = next(world[3].rglob("view-0.npy"))
    file.write_bytes(file.read_bytes()[:-cut])
    again = load(world, 1)
    assert again.cache == "miss"
    np.testing.assert_array_equal(again.logits[0], before)


def test_two_runs_that_want_the_same_key_at_once_compute_it_once(world, monkeypatch):
    compute, calls = _compute_all, multiprocessing.Value("i", 0)

    def slow(*arguments) -> None:
        with calls.get_lock():
            calls.value += 1
        time.sleep(0.5)
        compute(*arguments)

    monkeypatch.setattr("kd.training.targets._compute_all", slow)
    context, found = multiprocessing.get_context("fork"), multiprocessing.Queue()
    both = [context.Process(target=lambda: found.put(load(world, 1).cache)) for _ in range(2)]
    for process in both:
        process.start()
    assert sorted(found.get(timeout=60) for _ in both) == ["hit", "miss"]
    for process in both:
        process.join()
    assert calls.value == 1


def test_an_interrupted_pass_leaves_nothing_that_looks_whole_and_is_gone_on_with(world, monkeypatch):
    pixels, _, _, cache = world
    monkeypatch.setattr("kd.training.targets.TARGET_BATCH", 16)
    size, seen = len(pixels.labels), []

    def stop(done: int, of: int) -> None:
        seen.append((done, of))
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(world, 2, progress=stop)
    assert seen[-1] == (64, 2 * size) and not list(cache.rglob("view-*.npy"))
    seen.clear()
    again = load(world, 2, progress=lambda *progress: seen.append(progress))
    assert seen[0] == (80, 2 * size) and seen[-1] == (2 * size, 2 * size) and again.cache == "miss"
    afresh = load(world, 2, folder=cache / "other")
    for ours, theirs in zip(again.logits, afresh.logits, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_pass_that_runs_out_of_memory_goes_on_in_smaller_batches(world, monkeypatch):
    forward, sizes = type(world[2]).forward, []

    def small_memory(self, pixel_values):
        sizes.append(len(pixel_values))
        if len(pixel_values) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, pixel_values)

    expected = np.array(load(world, 1, folder=world[3] / "other").logits[0])
    monkeypatch.setattr(type(world[2]), "forward", small_memory)
    np.testing.assert_allclose(load(world, 1).logits[0], expected, atol=1e-5)
    assert sizes[:3] == [64, 32, 16]


def test_pictures_that_are_not_kept_have_the_same_targets(world, colours, monkeypatch):
    cache = world[3]
    kept = load(world, 2)
    monkeypatch.setenv("KD_PIXELS_GB", "0.0001")
    lazy = load_pixels(load_splits(DistillConfig(dataset=str(colours))).train, Frame((32, 32)), cache / "lazy")
    found = load(world, 2, folder=cache / "lazy", pixels=lazy)
    np.testing.assert_allclose(found.logits[1], kept.logits[1], atol=1e-5)
