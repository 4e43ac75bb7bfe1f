"""The whole recipe on many made-up images, streamed: seconds by stage, throughput, and memory, which must not grow.

Each run is a process of its own, as the page starts it; its memory is sampled from outside. No run imports this.
"""

import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
            found.append(figures(run, size, sampled(run)))
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


@dataclass
class Samples:
    """What was seen of a run's process: the most memory that it had of its own, and together with its workers, in MB; and
    at which times it had used how many CPU seconds, workers that have ended included."""

    peak: float = 0.0
    with_workers: float = 0.0
    times: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def take(self, pid: int) -> None:
        """Look at the process ``pid`` once; one that has ended is not seen."""
        try:
            process = psutil.Process(pid)
            used, children = process.cpu_times(), [child.pid for child in process.children(recursive=True)]
        except psutil.Error:
            return
        own = private_megabytes(pid) or 0.0
        self.peak = max(self.peak, own)
        # What a forked worker still shares with its parent counts again.
        self.with_workers = max(self.with_workers, own + sum(private_megabytes(one) or 0.0 for one in children))
        self.times.append(time.time())
        self.cpu.append(used.user + used.system + used.children_user + used.children_system)

    def cpu_at(self, moments: list[float]) -> list[float]:
        """Return the CPU seconds used by each of these moments, read off the samples around it."""
        return np.interp(moments, self.times, self.cpu).tolist()


def sampled(run: Run) -> Samples:
    """Work on a run in its own process, and look at it until it ends. Raises ``UserError`` where the run is not done."""
    process, samples = start_run(run), Samples()
    try:
        while process.poll() is None:
            samples.take(process.pid)
            time.sleep(SAMPLING)
    finally:  # the benchmark itself may be asked to end
        process.kill()
    if run.status() != "done":
        last = run.last("failed", "stopped") or {}
        raise UserError(f"The run of the benchmark has {run.status()}: {last.get('message', 'see its stderr.txt')}")
    return samples


def figures(run: Run, pictures: int, samples: Samples) -> dict[str, Any]:
    """Return ``pictures``; ``seconds`` and ``cpu_seconds``, in all and by stage; images/s of the stream and of training, of
    the clock and of a CPU second; and ``peak_mb``."""
    events = {event["event"]: event for event in run.events()}  # the last of each
    at = {name: event["time"] for name, event in events.items()}
    streamed, read = events["stream"]["seconds"], events["stream"]["read"]
    ends = [
        at["stream"] - streamed, at["stream"], at["models"], at["teacher"], at["targets"], at["eval"], at["arm"], at["done"],
    ]  # fmt: skip
    moments = [at["started"], *ends]
    seconds = dict(zip(STAGES, np.diff(moments).round(1).tolist(), strict=True))
    cpu = dict(zip(STAGES, np.diff(samples.cpu_at(moments)).round(1).tolist(), strict=True))
    return {
        "pictures": pictures,
        "seconds": round(at["done"] - at["started"], 1),
        "stages": seconds,
        "cpu_seconds": round(sum(cpu.values()), 1),
        "cpu_stages": cpu,
        "streamed_per_second": round(read / streamed, 1),
        "streamed_per_cpu_second": round(read / max(cpu["stream"], 0.1), 1),
        "images_per_second": run.report()["train"]["images_per_second"],
        "trained_per_cpu_second": round(pictures / max(cpu["training"], 0.1), 1),
        "accuracy": run.report()["student"]["accuracy"],
        "peak_mb": round(samples.peak),
        "peak_with_workers_mb": round(samples.with_workers),
    }


def rows(found: list[dict[str, Any]]) -> list[list[str]]:
    """Format what ``measure_scale`` returned as a table: the head, then for each number of images a line of seconds by the
    clock and a line of CPU seconds."""
    lines = [["pictures", "", "all", *STAGES, "streamed/s", "trained/s", "peak MB", "with workers"]]
    for one in found:
        for what, all_, stages, streamed, trained in (
            ("s", "seconds", "stages", "streamed_per_second", "images_per_second"),
            ("CPU s", "cpu_seconds", "cpu_stages", "streamed_per_cpu_second", "trained_per_cpu_second"),
        ):
            first = what == "s"
            lines.append([
                f"{one['pictures']:,}" if first else "", what, f"{one[all_]:,.0f}",
                *(f"{one[stages][stage]:,.1f}" for stage in STAGES), f"{one[streamed]:,.0f}", f"{one[trained]:,.0f}",
                *((f"{one['peak_mb']:,}", f"{one['peak_with_workers_mb']:,}") if first else ("", "")),
            ])  # fmt: skip
    return lines
