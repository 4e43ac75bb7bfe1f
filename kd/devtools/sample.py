"""Remake the embedded sample and its teacher: ``python -m kd sample build``; and the example run that the page shows at
first: ``python -m kd sample example``.

The images are Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017, arXiv:1708.07747; MIT licence) as Debian's
package ``dataset-fashion-mnist`` installs them. Everything is seeded: the splits are the same on every machine.
"""

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torch.nn.functional import cross_entropy, interpolate
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

from kd.config import SAMPLE, DistillConfig
from kd.data.images import open_picture
from kd.data.splits import load_splits
from kd.devtools.server import temporary_folder
from kd.devtools.speed import machine
from kd.errors import UserError
from kd.evaluation.scoring import quality, score
from kd.models.processor import run_processor
from kd.models.teacher import load_teacher
from kd.runs.run import Run
from kd.runs.store import list_runs
from kd.system.files import folder_size

SOURCE = Path("/usr/share/datasets/fashion-mnist")

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]

SIZES = {"train": 8000, "validation": 1000, "test": 2000}

SEED = 0

LICENSE_TEXT = """MIT License

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def read_idx(path: Path) -> np.ndarray:
    """Read the array in a gzipped IDX file (http://yann.lecun.com/exdb/mnist): uint8, ``[N, 28, 28]`` or ``[N]``."""
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def stratified(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``size`` indices, as many of each class, sorted. Raises ``ValueError`` if that is not a whole number."""
    classes = np.unique(labels)
    share, rest = divmod(size, len(classes))
    if rest:
        raise ValueError(f"{size} pictures do not divide into {len(classes)} equal classes.")
    picks = [rng.choice(np.flatnonzero(labels == c), share, replace=False) for c in classes]
    return np.sort(np.concatenate(picks))


def split(source: Path = SOURCE) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return images and labels of ``train``, ``validation``, ``test`` and ``teacher``.

    ``teacher`` is the official training set without ``validation``. ``test`` is part of the official test set, on which
    nothing is trained.

    Raises ``FileNotFoundError`` where the Debian package is not installed.
    """
    if not source.is_dir():
        raise FileNotFoundError(
            f"Fashion-MNIST is not at {source}. Install it with `apt-get install dataset-fashion-mnist`, "
            "or name its folder with --source."
        )
    images, labels = (read_idx(source / f"train-{kind}.gz") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    test = [read_idx(source / f"t10k-{kind}.gz") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    rng = np.random.default_rng(SEED)
    validation = stratified(labels, SIZES["validation"], rng)
    rest = np.setdiff1d(np.arange(len(labels)), validation)
    train = rest[stratified(labels[rest], SIZES["train"], rng)]
    picked = stratified(test[1], SIZES["test"], rng)
    return {
        "train": (images[train], labels[train]),
        "validation": (images[validation], labels[validation]),
        "test": (test[0][picked], test[1][picked]),
        "teacher": (images[rest], labels[rest]),
    }


def png(pixels: np.ndarray) -> bytes:
    """Return the PNG file of a grey image, ``[28, 28]`` uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_dataset(splits: dict, folder: Path) -> None:
    """Write ``folder/{train,validation,test}.parquet`` with the features of ``datasets``, the licence and a card."""
    folder.mkdir(parents=True, exist_ok=True)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=CLASSES)})
    for name in SIZES:
        pixels, labels = splits[name]
        rows = {"image": [{"bytes": png(p), "path": None} for p in pixels], "label": labels.tolist()}
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{name}.parquet")
    (folder / "LICENSE").write_text(LICENSE_TEXT)
    (folder / "README.md").write_text(
        "---\nlicense: mit\ntask_categories: [image-classification]\npretty_name: Fashion-MNIST, a sample\n---\n\n"
        "# Fashion-MNIST, a sample\n\n"
        + "".join(f"- `{name}.parquet`: {size:,} pictures, {size // 10:,} a class\n" for name, size in SIZES.items())
        + "\n28 x 28 grey PNG, ten classes, stratified, seed 0. `train` and `validation` are disjoint parts of the "
        "official training set, `test` is part of the official test set.\n\n"
        "Source: Fashion-MNIST (Xiao, Rasul and Vollgraf, Zalando Research, 2017, arXiv:1708.07747), MIT licence "
        "(see LICENSE), as packaged by Debian in `dataset-fashion-mnist`. Remade by `python -m kd sample build`.\n"
    )


def write_examples(splits: dict, folder: Path) -> None:
    """Write a dozen test images as PNG: one of each class, and a second of the two that are confused most often."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels, labels = splits["test"]
    for nth, label in [*((0, c) for c in range(10)), (1, CLASSES.index("Shirt")), (1, CLASSES.index("Coat"))]:
        name = CLASSES[label].lower().replace("/", "-").replace(" ", "-")
        image = pixels[np.flatnonzero(labels == label)[nth]]
        (folder / f"{name}-{nth + 1}.png").write_bytes(png(image))


def teacher_model():
    """Build a ResNet of 1.6 M parameters for 56 px: at 28 px its stem, of stride four, would leave 7 x 7 pixels."""
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=64, hidden_sizes=[64, 128, 256], depths=[2, 2, 1], layer_type="basic",
            id2label=dict(enumerate(CLASSES)), label2id={name: i for i, name in enumerate(CLASSES)},
        )
    )  # fmt: skip


def teacher_processor(pixels: np.ndarray):
    """Return the processor: 56 px, bilinear, mean and standard deviation of ``pixels`` (``[N, 28, 28]`` uint8)."""
    mean, std = round(float(pixels.mean()) / 255, 4), round(float(pixels.std()) / 255, 4)
    return ViTImageProcessorPil(
        size={"height": 56, "width": 56}, resample=2, image_mean=[mean] * 3, image_std=[std] * 3
    )


def jitter(batch, generator):
    """Shift images ``[B, 1, 28, 28]`` by up to two pixels, mirror half of them, blank an 8 px square in half."""
    b, _, h, w = batch.shape
    dy, dx = torch.randint(0, 5, (2, b, 1), generator=generator)
    rows, cols = dy + torch.arange(h), dx + torch.arange(w)
    mirrored = torch.rand(b, 1, generator=generator) < 0.5
    cols = torch.where(mirrored, cols.flip(1), cols)
    padded = torch.nn.functional.pad(batch, (2, 2, 2, 2))
    moved = padded[torch.arange(b)[:, None, None], 0, rows[:, :, None], cols[:, None, :]]
    y, x = torch.randint(0, h - 7, (2, b, 1), generator=generator)
    inside_y, inside_x = (torch.arange(h) - y).clamp(-1, 8), (torch.arange(w) - x).clamp(-1, 8)
    hole = ((inside_y >= 0) & (inside_y < 8))[:, :, None] & ((inside_x >= 0) & (inside_x < 8))[:, None, :]
    blanked = torch.rand(b, 1, 1, generator=generator) < 0.5
    return moved.masked_fill(hole & blanked, 0)[:, None]


def train_teacher(splits: dict, folder: Path, epochs: int, tell=print) -> list[dict]:
    """Train the teacher on ``splits["teacher"]`` and save it to ``folder``; return a row for each epoch.

    A row is ``epoch, seconds, loss, validation``. The last epoch is kept: nothing is chosen on any split.
    """
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = teacher_model().to(memory_format=torch.channels_last)
    images, labels = (torch.from_numpy(a.copy()) for a in splits["teacher"])
    processor = teacher_processor(splits["teacher"][0])
    mean, std = processor.image_mean[0], processor.image_std[0]

    def prepare(batch, side=56):
        grey = interpolate((batch / 255 - mean) / std, size=side, mode="bilinear")
        return grey.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)

    def accuracy(pixels, truth) -> float:
        model.eval()
        with torch.inference_mode():
            batches = torch.from_numpy(pixels.copy())[:, None].float().split(500)
            guesses = torch.cat([model(prepare(batch)).logits.argmax(-1) for batch in batches])
        model.train()
        return (guesses.numpy() == truth).mean().item()

    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, fused=True)
    steps = epochs * (len(labels) // 256)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.2)
    log, started = [], time.perf_counter()
    for epoch in range(1, epochs + 1):
        losses = []
        for index in torch.randperm(len(labels), generator=generator).split(256)[: len(labels) // 256]:
            batch = prepare(jitter(images[index][:, None].float(), generator), 40 if epoch <= epochs // 2 else 56)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch).logits
            loss = cross_entropy(logits.float(), labels[index].long())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.detach())
        row = {
            "epoch": epoch,
            "seconds": round(time.perf_counter() - started),
            "loss": round(torch.stack(losses).mean().item(), 4),
            "validation": accuracy(*splits["validation"]),
        }
        log.append(row)
        tell(json.dumps(row), flush=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return log


def measure_teacher(assets: Path) -> float:
    """Return the accuracy of the saved teacher on the saved test split, scored as every run scores its models."""
    splits = load_splits(DistillConfig(dataset=str(assets / "sample")))
    teacher = load_teacher(str(assets / "sample-teacher"), splits.classes)
    found = score(teacher, teacher.processor, splits.test, torch.device("cpu"))
    return quality(found.logits, np.asarray(splits.test["label"]))["accuracy"]


def write_teacher_card(folder: Path, log: list[dict], test: float) -> None:
    """Write the teacher's README: what it is, its accuracy, and the log of its training."""
    rows = "".join(f"| {r['epoch']} | {r['seconds']} | {r['loss']:.4f} | {r['validation']:.1%} |\n" for r in log)
    (folder / "README.md").write_text(
        "---\nlicense: mit\npipeline_tag: image-classification\nlibrary_name: transformers\n---\n\n"
        "# The sample's teacher\n\n"
        "A ResNet of 1.6 M parameters, 56 px, trained from random weights on the 59,000 pictures of Fashion-MNIST's "
        "official training set that are not in `../sample/validation.parquet`. AdamW, one-cycle to 3e-3, weight decay "
        "0.05, batch 256, bf16 autocast; shifts, mirroring, an 8 px square of half of the pictures blanked; no label "
        "smoothing (it would flatten what a student can learn from the wrong classes). The first half of the epochs "
        "trains at 40 px, for speed; the table measures at 56 px throughout, so it is low there.\n\n"
        f"Accuracy on `../sample/test.parquet` (2,000 pictures, fp32): **{test:.2%}**.\n\n"
        f"Remade by `python -m kd sample build`, which printed, on {torch.get_num_threads()} thread(s):\n\n"
        f"| epoch | seconds | loss | validation |\n|---|---|---|---|\n{rows}"
    )


def build(assets: Path, source: Path = SOURCE, epochs: int = 20, tell=print) -> None:
    """Write ``assets/sample`` and ``assets/examples``, and train ``assets/sample-teacher``."""
    splits = split(source)
    write_dataset(splits, assets / "sample")
    write_examples(splits, assets / "examples")
    tell(f"Wrote {assets / 'sample'} and {assets / 'examples'}.", flush=True)
    log = train_teacher(splits, assets / "sample-teacher", epochs, tell)
    write_teacher_card(assets / "sample-teacher", log, measure_teacher(assets))
    tell(f"Wrote {assets / 'sample-teacher'}.", flush=True)


# --- The example run

# The page carries the example to everyone who installs it.
MOST_EXAMPLE_BYTES = 300_000

# Of the ``step`` events of each training so many are kept, evenly spread: a curve as wide as half a screen shows no more.
MOST_STEPS = 100

# The files of a run that the page reads.
OF_EXAMPLE = ("config.json", "report.json", "analysis.json")


def record_example(assets: Path) -> None:
    """Distil the sample as ``kd distill`` does, and keep what the page shows of that run in ``assets/example``.

    Raises ``UserError`` where the run fails, or what is to be kept is too large.
    """
    with temporary_folder() as folder:
        command = [sys.executable, "-m", "kd", "distill", "--preset", SAMPLE, "--runs-dir", str(folder)]
        if subprocess.run(command).returncode:
            raise UserError("The run did not end as it should. Its last lines say why; the example is as it was.")
        (run,) = list_runs(folder)
        made = folder / "example"
        keep_example(run, made)
        (made / "recorded.json").write_text(json.dumps(recorded(assets), indent=1))
        if (size := folder_size(made)) > MOST_EXAMPLE_BYTES:
            raise UserError(f"The example has {size:,} bytes; {MOST_EXAMPLE_BYTES:,} are allowed. It is as it was.")
        shutil.rmtree(assets / "example", ignore_errors=True)
        shutil.copytree(made, assets / "example")


def keep_example(run: Run, folder: Path) -> None:
    """Copy what the page reads of a finished run, with fewer ``step`` events and without those of progress."""
    shutil.copytree(run.path / "gallery", folder / "gallery")
    for name in OF_EXAMPLE:
        shutil.copy(run.path / name, folder)
    events, trial, steps = run.events(), None, {}
    for event in events:  # two trainings may go on at the same time
        if event["event"] in ("training", "step"):
            trial = (event["seed"], event["arm"]) if "arm" in event else trial
        if event["event"] == "step":
            steps.setdefault(trial, []).append(event)
    dropped = {
        id(event) for some in steps.values() for nth, event in enumerate(some) if nth % -(-len(some) // MOST_STEPS)
    }
    lines = [json.dumps(e) + "\n" for e in events if e["event"] != "progress" and id(e) not in dropped]
    (folder / "events.jsonl").write_text("".join(lines))


def recorded(assets: Path) -> dict:
    """Return this machine, and the logits of the sample's teacher for each of ``assets/examples``, with the keys by which
    the page knows that they still hold."""
    teacher = load_teacher(str(assets / "sample-teacher"), CLASSES)
    pictures = sorted((assets / "examples").glob("*.png"))
    with torch.inference_mode():
        logits = [
            teacher(run_processor(teacher.processor, [open_picture(path)])).logits[0].tolist() for path in pictures
        ]
    return {
        "machine": machine(),
        "teacher": sha256(assets / "sample-teacher" / "model.safetensors"),
        "classes": CLASSES,
        "logits": {sha256(path): [round(one, 5) for one in row] for path, row in zip(pictures, logits, strict=True)},
    }


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
