"""The whole recipe on many made-up images, streamed: seconds by stage, throughput, and memory, which must not grow.

Each run is a process of its own, as the page starts it; its memory is sampled from outside. No run imports this.
"""

import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from kd.config import DistillConfig
from kd.errors import UserError
from kd.runs.process import start_run
from kd.runs.run import Run
from kd.runs.store import create_run
from kd.system.memory import private_megabytes

# How many images the runs of `kd bench --scale` have, and the last of those of `--scale full`.
PICTURES, FULL = (10_000, 200_000), 1_000_000

# Side of an image in pixels, classes, images of validation and of test, images of a parquet file and of a row group in it.
SIDE, CLASSES, HELD_OUT, IN_FILE, IN_GROUP = 64, 10, 2000, 10_000, 1000

# The smallest student there is, and a teacher of five times its work with random weights: what it says takes the same time.
STUDENT, TEACHER = "resnet_8", "resnet_14"

# How often memory is sampled, in seconds.
SAMPLING = 0.2

STAGES = ("start", "stream", "open", "teacher", "targets", "training", "test", "the rest")


def measure_scale(sizes: list[int], tell: Callable[[str], None], **settings: Any) -> list[dict[str, Any]]:
    """Run the recipe on each number of images, and return what ``figures`` says of each.

    ``settings`` are those of the runs that are to be others. Raises ``UserError`` where a run fails.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="kd-scale-") as name:
        folder = Path(name)
        save_teacher(folder / "teacher")
        for size in sizes:
            tell(f"writing {size:,} pictures")
            pictures = folder / f"pictures-{size}"
            write_pictures(pictures, size)
            tell(f"a run on {size:,} pictures")
            run = create_run(config_for(folder / "teacher", pictures, **settings), folder / f"runs-{size}", "bench")
            memory = sampled(run)
            found.append({**figures(run, size), **memory})
    return found


def config_for(teacher: Path, pictures: Path, **changes: Any) -> DistillConfig:
    """Return the settings of a run on made-up images: one epoch, streamed."""
    settings = {
        "teacher": str(teacher), "dataset": str(pictures), "student": STUDENT, "image_size": SIDE, "epochs": 1,
        "batch_size": 128, "streaming": "yes", "precision": "fp32",
    }  # fmt: skip
    return DistillConfig.preset("custom", **{**settings, **changes})


def save_teacher(folder: Path) -> None:
    """Save a model of the made-up classes with random weights."""
    from kd.models.student import load_student

    model = load_student(TEACHER, class_names(), SIDE, 0)
    model.model.save_pretrained(folder)
    model.processor.save_pretrained(folder)


def class_names() -> list[str]:
    return [f"pattern {nth}" for nth in range(CLASSES)]


def write_pictures(folder: Path, count: int, held_out: int = HELD_OUT, seed: int = 0) -> None:
    """Write ``count`` training images, and ``held_out`` of validation and of test, as parquet files of JPEGs."""
    from datasets import ClassLabel, Features, Image
    from pyarrow import Table, parquet

    schema = Features({"image": Image(), "label": ClassLabel(names=class_names())}).arrow_schema
    rng = np.random.default_rng(seed)
    patterns = rng.uniform(40, 215, (CLASSES, 8, 8, 3))
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in (("train", count), ("validation", held_out), ("test", held_out)):
        for start in range(0, size, IN_FILE):
            labels = rng.integers(0, CLASSES, min(IN_FILE, size - start))
            images = [{"bytes": jpeg(patterns[label], rng), "path": None} for label in labels]
            table = Table.from_pydict({"image": images, "label": labels.tolist()}, schema=schema)
            parquet.write_table(table, folder / f"{split}-{start // IN_FILE:05}.parquet", row_group_size=IN_GROUP)


def jpeg(pattern: np.ndarray, rng: np.random.Generator) -> bytes:
    """Return a noisy image of a class's ``pattern``, uint8 ``[8, 8, 3]``, as a JPEG of about 1.5 KB."""
    from PIL import Image

    noisy = (pattern + rng.normal(0, 40, pattern.shape)).clip(0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(noisy).resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(data, "JPEG", quality=85)
    return data.getvalue()


def sampled(run: Run) -> dict[str, float]:
    """Work on a run in its own process; return the most memory that this had of its own, in MB, and that it and its worker
    processes had together. Raises ``UserError`` where the run does not end."""
    process, peak, together = start_run(run), 0.0, 0.0
    try:
        while process.poll() is None:
            own = private_megabytes(process.pid) or 0.0
            peak, together = max(peak, own), max(together, own + sum(_of_children(process.pid)))
            time.sleep(SAMPLING)
    finally:  # the benchmark itself may be asked to end
        process.kill()
    if run.status() != "done":
        last = run.last("failed", "stopped") or {}
        raise UserError(f"The run of the benchmark has {run.status()}: {last.get('message', 'see its stderr.txt')}")
    return {"peak_mb": round(peak), "peak_with_workers_mb": round(together)}


def _of_children(pid: int) -> list[float]:
    """Return the memory of a process's children, MB. What they still share with it counts again."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    return [private_megabytes(child.pid) or 0.0 for child in children]


def figures(run: Run, pictures: int) -> dict[str, Any]:
    """Return ``pictures``, ``seconds`` in all and by stage in ``stages``, and the images/s of the stream and of training."""
    events = {event["event"]: event for event in run.events()}  # the last of each
    at = {name: event["time"] for name, event in events.items()}
    begun, streamed = at["started"], events["stream"]["seconds"]
    training = run.report()["train"]
    ends = {
        "start": at["stream"] - streamed, "stream": at["stream"], "open": at["models"], "teacher": at["teacher"],
        "targets": at["targets"], "training": at["eval"], "test": at["arm"], "the rest": at["done"],
    }  # fmt: skip
    stages = dict(zip(STAGES, np.diff([begun, *(ends[stage] for stage in STAGES)]).tolist(), strict=True))
    return {
        "pictures": pictures,
        "seconds": round(at["done"] - begun, 1),
        "stages": {stage: round(seconds, 1) for stage, seconds in stages.items()},
        "streamed_per_second": round(events["stream"]["read"] / streamed, 1),
        "images_per_second": training["images_per_second"],
        "accuracy": run.report()["student"]["accuracy"],
    }


def rows(found: list[dict[str, Any]]) -> list[list[str]]:
    """Format what ``measure_scale`` returned as a table: the head, then a line for each number of images."""
    head = ["pictures", "s", "streamed/s", "trained/s", "peak MB", "with workers", *STAGES]
    return [head] + [
        [
            f"{one['pictures']:,}", f"{one['seconds']:,.0f}", f"{one['streamed_per_second']:,.0f}",
            f"{one['images_per_second']:,.0f}", f"{one['peak_mb']:,}", f"{one['peak_with_workers_mb']:,}",
            *(f"{one['stages'][stage]:,.1f}" for stage in STAGES),
        ]
        for one in found
    ]  # fmt: skip
