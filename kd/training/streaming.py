"""Read a stream once, from beginning to end, into the files that a run trains from: decoded images and targets.

Whatever is needed of an image's file is made while it is here: what the frame keeps of it, and the teacher's answer to the
whole image (view 0), through the teacher's own processor. The files of validation and test images are kept, so that scores
are of originals. What is made lies where the ordinary way would have put it (``kd.data.pixels``, ``kd.training.targets``),
under the same keys, so everything after it is the same. A pass that was interrupted goes on after the last chunk of rows.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kd import limits
from kd.config import NO_TEACHER, OF_PICTURES, DistillConfig
from kd.data.duplicates import WORDS
from kd.data.stream import Row, Source, Stream, cut_shares, open_source, split_of
from kd.data.stream_files import (
    KEPT,
    PROGRESS,
    RESULT,
    Progress,
    drop_chunks_after,
    features_of,
    kept_splits,
    read_rows,
    write_rows,
)
from kd.data.streamed import StreamedRows
from kd.data.views import Frame, Views
from kd.errors import UserError
from kd.system.files import npy_writer, write_whole
from kd.text import pictures_were, some
from kd.training import setup
from kd.training.setup import (
    Job,
    build_student,
    check_labels,
    frame_of,
    frame_size,
    open_teacher,
    with_classes,
)

if TYPE_CHECKING:
    import torch

    from kd.data.splits import Splits
    from kd.models.device import Compute
    from kd.models.student import Student
    from kd.models.teacher import Teacher

# The first of several processes tells the others under this name in which folder of the cache a stream is kept.
STREAMED = "stream"

# Validation and test images may take this share of the disk that is free when the stream begins.
HELD_OUT_SHARE = 0.5

ONLY_FILES = (
    "The pictures were streamed, so only equal files were looked for as duplicates, among all of them; copies that were resized "
    "or encoded anew were not."
)


@dataclass(frozen=True)
class Opened:
    """A source, and what its images are for: the models that see them, and the frame of each that is kept.

    ``splits`` are made of a sample alone.
    """

    source: Source
    splits: "Splits"
    teacher: "Teacher | None"
    student: "Student"
    frame: Frame
    compute: "Compute | None"

    def key(self, config: DistillConfig) -> str:
        """Return a hash of all that the files of a pass depend on."""
        names = [*OF_PICTURES, "label_map", "duplicates", "targets"]
        if not self.source.splits[
            "train"
        ].files:  # then the first view cannot be filed again under another recipe of views
            names.append("crop_area")
        settings = [value for name, value in config.to_dict().items() if name in names]
        teacher = self.teacher and (self.teacher.key(), self.compute.precision, self.compute.device.type)
        taught = config.teacher != NO_TEACHER and config.lambda_ > 0
        parts = (self.source.identity, settings, taught, self.frame.key(), teacher, self.source.classes)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def stream_splits(job: Job) -> "Splits":
    """Return the splits of a streamed dataset, read now unless they were before; the ``stream`` event. Of several processes
    the first reads them, and the others take what it has kept.

    Raises ``UserError`` for what cannot be streamed, and for what the ordinary way refuses too.
    """
    if not job.ranks.is_first:
        return kept_splits(job.cache / job.ranks.wait(STREAMED))
    opened = open_stream(job.config, job.device, job.cache)
    folder = job.cache / "streams" / opened.key(job.config)
    folder.mkdir(parents=True, exist_ok=True)
    from filelock import FileLock

    with FileLock(folder / "lock"):
        before = is_kept(folder, job.cache)
        found = json.loads((folder / RESULT).read_text()) if before else Pass(job, opened, folder).read()
    part = "hit" if before else "partial" if found["resumed"] else "miss"
    job.ranks.tell(STREAMED, f"streams/{folder.name}")
    job.tell(
        "stream", folder=f"streams/{folder.name}", read=found["read"], seconds=round(found["seconds"], 2), cache=part,
        pixels=found["pixels"],
    )  # fmt: skip
    return kept_splits(folder)


def load_job_splits(job: Job) -> "Splits":
    """Load the three splits of a run, or stream them, where it asks for that."""
    return stream_splits(job) if job.config.streaming == "yes" else setup.load_job_splits(job)


def is_kept(folder: Path, cache: Path) -> bool:
    """Tell whether a stream was read to its end, and all that was made of it is still in the cache."""
    try:
        made = json.loads((folder / RESULT).read_text())["made"]
    except (FileNotFoundError, ValueError):
        return False
    return all((cache / path).exists() for path in made)


def open_stream(config: DistillConfig, device: "torch.device", cache: Path) -> Opened:
    """Open a stream, look at some images, and load the models that will see all. Nothing else is read.

    Raises ``UserError`` for what can be refused before.
    """
    from datasets import Dataset

    from kd.data.depth import deep_notes
    from kd.data.splits import Splits
    from kd.models.device import Compute, pick_precision

    source = open_source(config)
    check_labels(config, len(source.classes))
    if counts := source.expected(config):
        limits.check_pictures(sum(counts.values()), len(source.classes))
    shares = cut_shares(config, list(source.splits))
    rows = source.splits["train"].sample()
    rows = [row for row in rows if split_of(row.digest, shares, config.split_seed) == "train"] or rows
    columns = {"image": [row.image for row in rows], "label": [row.label for row in rows]}
    sample = Dataset.from_dict(columns, features=features_of(source.classes))
    source.said.extend(deep_notes([sample]))
    splits = Splits(sample, sample, sample, source.classes, [], source.labelled)
    teacher = open_teacher(config, splits, None)
    splits = with_classes(splits, teacher, config)
    student = build_student(config, splits, config.seed, teacher)
    frame, compute = frame_of(teacher, student, frame_size(splits, teacher, student)), None
    if teacher:
        precision = pick_precision(config.precision, device, teacher.model, teacher.normalization.size, cache)
        compute = Compute(device, precision)
    return Opened(source, splits, teacher, student, frame, compute)


@dataclass(frozen=True)
class Seen:
    """Some rows as a pass sees them, decoded by worker processes.

    A batch is why each image cannot be read (``None`` where it can), what the frame keeps of those that can, uint8
    ``[R, 3, H, W]``, and what the teacher's processor makes of them, float32 ``[R, 3, S, S]``, or ``None``.
    """

    rows: list[Row]
    frame: Frame
    processor: Any

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> "tuple[list[str | None], torch.Tensor, torch.Tensor | None]":
        import torch

        from kd.data.images import BadPicture, open_row
        from kd.data.pixels import framed
        from kd.models.processor import run_processor

        reasons, kept, wholes = [], [], []
        for index in indices:
            row = {"image": self.rows[index].image}
            try:
                pixels = framed(row, self.frame)
                wholes += [open_row(row)] if self.processor is not None else []
            except BadPicture as problem:
                reasons.append(str(problem))
                continue
            kept.append(np.ascontiguousarray(pixels))
            reasons.append(None)
        inputs = run_processor(self.processor, wholes) if wholes else None
        values = np.stack(kept) if kept else np.empty((0, 3, *self.frame.size), np.uint8)
        return reasons, torch.from_numpy(values), inputs


class Pass:
    """One pass over a source, begun or gone on with, that writes to ``folder`` and then to where each file belongs."""

    def __init__(self, job: Job, opened: Opened, folder: Path) -> None:
        self.job, self.opened, self.folder, self.config = job, opened, folder, job.config
        self.shares = cut_shares(job.config, list(opened.source.splits))
        self.expected = opened.source.expected(job.config)
        self.tell = job.progress("streaming")
        self.asks = opened.teacher is not None and job.config.targets == "cached"
        self.given: dict[bytes, str] = {}
        self.budget = self.room = 0.0

    def parts(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Return the files that grow with the training images: name -> shape and type of a row."""
        found = {**KEPT, "pixels": ((3, *self.opened.frame.size), np.uint8)}
        if self.asks:
            found["logits"] = ((len(self.opened.teacher.classes),), np.float32)
        return found

    def read(self) -> dict[str, Any]:
        """Read what has not been read before, put every file in its place, and return what is written to ``RESULT``."""
        progress = Progress.load(self.folder, self.parts())
        if (self.folder / RESULT).exists():  # all was put in its place once, and is not there any more
            progress = None
        resumed = progress is not None and progress.chunks > 0
        if progress is None:
            progress = self._begin()
        if not progress.streamed:
            self._budgets()
            drop_chunks_after(self.folder, progress.chunks)
            self._remember_given()
            self._stream(progress)
            progress.streamed = True
            progress.save(self.folder)
        found = {**self._finish(progress), "resumed": resumed}
        write_whole(self.folder / RESULT, json.dumps(found))
        (self.folder / PROGRESS).unlink()
        return found

    # --- Before

    def _begin(self) -> Progress:
        """Empty the folder, keep the sample, and decide whether there is room for decoded images."""
        from kd.data.pixels import too_large

        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()
        sample = self.opened.splits.train
        rows = [Row(row["image"], row["label"], b"", 0) for row in sample]
        write_rows(self.folder / "sample-000000.arrow", rows, self.opened.source.classes)
        progress = Progress()
        if self.expected and too_large(self.expected["train"], self.opened.frame, self.folder):
            self._give_up_pixels(progress)
        return progress

    def _budgets(self) -> None:
        """See how much of the disk decoded images, and validation and test images, may take, in bytes."""
        from kd.data.pixels import pixel_budget

        self.budget = pixel_budget(self.folder) * 1e9
        self.room = HELD_OUT_SHARE * shutil.disk_usage(self.folder).free

    def _give_up_pixels(self, progress: Progress) -> None:
        """Go on without keeping decoded images. Raises ``UserError`` where they could not be read again."""
        progress.pixels = False
        part = self.folder / "pixels.part"
        if part.exists():
            os.truncate(part, 0)  # it is still open, so the disk would have its room back at the end only
            part.unlink()
        if not self.opened.source.splits["train"].files:
            height, width = self.opened.frame.size
            raise UserError(
                f"There is no room on the disk for the decoded pictures ({height} x {width} px; KD_PIXELS_GB, or half of the free "
                "disk), and shards of this kind are read from beginning to end only, so they cannot be decoded anew in each epoch. "
                "Free some space, choose a smaller image size, or use a copy in parquet.",
                setting="image_size",
            )

    def _remember_given(self) -> None:
        """Remember the hashes of the validation and test images that were given and kept before an interruption."""
        if self.config.duplicates == "keep":
            return
        from kd.data.images import file_digest

        for name in ("test", "validation"):
            if name in self.opened.source.splits and (kept := read_rows(self.folder, name)) is not None:
                self.given |= {file_digest(row): name for row in kept if file_digest(row) not in self.given}

    # --- The pass

    def _stream(self, progress: Progress) -> None:
        """Read every split of the source, the training split last, chunk by chunk."""
        began = time.perf_counter() - progress.seconds
        for name in ("test", "validation", "train"):
            if name not in self.opened.source.splits or name in progress.ended:
                continue
            stream = self.opened.source.splits[name]
            with ExitStack() as files:
                write = self._open_parts(files, progress) if name == "train" else {}
                for rows, state in stream.chunks(progress.state, progress.done):
                    if name == "train":
                        self._take_train(rows, progress, write)
                    else:
                        self._hold_out(name, self._labelled(rows, name, progress), progress)
                    progress.state, progress.done, progress.chunks = (
                        state,
                        progress.done + len(rows),
                        progress.chunks + 1,
                    )
                    progress.count("read", len(rows))
                    limits.check_pictures(progress.counts["read"], len(self.opened.source.classes))
                    progress.seconds = time.perf_counter() - began
                    progress.save(self.folder)
                    self._report(stream, progress)
            progress.state, progress.done, progress.ended = None, 0, [*progress.ended, name]
            progress.save(self.folder)

    def _report(self, stream: Stream, progress: Progress, more: int = 0) -> None:
        self.tell(progress.done + more, stream.count or 0)

    def _open_parts(self, files: ExitStack, progress: Progress) -> dict[str, Callable[[np.ndarray], None]]:
        """Open the files that grow with the training images, each cut to what is known to be there."""
        return {
            name: files.enter_context(
                npy_writer(self.folder / f"{name}.part", shape, kind, progress.rows_of(name))
            )
            for name, (shape, kind) in self.parts().items()
            if name != "pixels" or progress.pixels
        }  # fmt: skip

    def _labelled(self, rows: list[Row], name: str, progress: Progress) -> list[Row]:
        """Return rows of a held-out split without those that have no label, where others have."""
        if not self.opened.source.labelled:
            return rows
        kept = [row for row in rows if row.label >= 0]
        progress.count(f"{name} without label", len(rows) - len(kept))
        return kept

    def _hold_out(self, name: str, rows: list[Row], progress: Progress) -> None:
        """Keep images of validation or test, which were given as such, with their files."""
        if self.config.duplicates != "keep":
            kept = [row for row in rows if self.given.get(row.digest, name) == name]
            progress.count(f"{name} in test", len(rows) - len(kept))
            rows = kept
            self.given |= {row.digest: name for row in rows}
        self._keep(name, rows, progress)

    def _keep(self, name: str, rows: list[Row], progress: Progress) -> None:
        if not rows:
            return
        write_rows(self.folder / f"{name}-{progress.chunks:06}.arrow", rows, self.opened.source.classes)
        progress.count(name, len(rows))
        progress.count("bytes", sum(len(row.image["bytes"]) for row in rows))
        if progress.counts["bytes"] > self.room:
            raise UserError(
                f"The validation and test pictures take more than {self.room / 1e9:.1f} GB, half of the disk that was free. They are "
                "kept, so that scores are of the pictures themselves. Choose a smaller --test-fraction and --validation-fraction, "
                "name a smaller split with --test-split, or free some space."
            )

    def _take_train(self, rows: list[Row], progress: Progress, write: dict[str, Callable]) -> None:
        """Keep the rows of a chunk that are cut for other splits, and take in the training images."""
        train: list[Row] = []
        held: dict[str, list[Row]] = {name: [] for name in self.shares}
        for row in rows:
            no_label = self.opened.source.labelled and row.label < 0
            name = "train" if no_label else split_of(row.digest, self.shares, self.config.split_seed)
            if no_label and not self._learns_without_label():
                progress.count("train without label")
            elif row.digest in self.given:
                progress.count(f"train in {self.given[row.digest]}")
            elif name == "train":
                train.append(row)
                progress.count("unlabelled", int(no_label))
            else:
                held[name].append(row)
        for name, some_rows in held.items():
            self._keep(name, some_rows, progress)
        self._decode(train, progress, write)

    def _learns_without_label(self) -> bool:
        return self.config.teacher != NO_TEACHER and self.config.lambda_ > 0

    def _decode(self, rows: list[Row], progress: Progress, write: dict[str, Callable]) -> None:
        """Decode training images, ask the teacher about each, and write what came of it."""
        from kd.data.pixels import in_batches

        size = batch_size(self.opened.compute)
        processor = self.opened.teacher.processor if self.asks else None
        seen, stream = 0, self.opened.source.splits["train"]
        for reasons, values, inputs in in_batches(Seen(rows, self.opened.frame, processor), size):
            progress.unreadable += [
                {"index": progress.train + seen + nth, "reason": why} for nth, why in enumerate(reasons) if why
            ]
            if progress.pixels:
                write["pixels"](values.numpy())
            if inputs is not None:
                write["logits"](ask_whole(self.opened.teacher, self.opened.compute, inputs))
            progress.readable += len(values)
            seen += len(reasons)
            self._report(stream, progress, seen)
        write["labels"](np.array([row.label for row in rows], np.int64))
        write["digests"](np.frombuffer(b"".join(row.digest for row in rows), np.uint8))
        write["places"](np.array([row.place for row in rows], np.int64))
        progress.train += len(rows)
        self._check_readable(progress, at_end=False)
        if progress.pixels and progress.readable * 3 * np.prod(self.opened.frame.size) > self.budget:
            self._give_up_pixels(progress)

    def _check_readable(self, progress: Progress, at_end: bool) -> None:
        """Raise ``UserError`` where more images cannot be read than may be."""
        share = limits.current().unreadable_share
        count = progress.train if at_end else max(progress.train, (self.expected or {}).get("train", 1000))
        if len(progress.unreadable) > max(1, share * count):
            reasons = " ".join(entry["reason"] for entry in progress.unreadable[:5])
            raise UserError(f"More than {share:.0%} of the pictures cannot be read. The first: {reasons}")

    # --- After

    def _finish(self, progress: Progress) -> dict[str, Any]:
        """Put each file in its place, and return what is to be known of the stream. It may have been begun before."""
        self._check_readable(progress, at_end=True)
        source, cache = self.opened.source, self.job.cache
        for name in KEPT:
            move(self.folder / f"{name}.part", self.folder / f"{name}.npy")
        kept = {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in KEPT}
        self._check_splits(kept["labels"], progress)
        fingerprint = StreamedRows(**kept, sample=None).fingerprint()
        files = source.splits["train"].files
        if files:
            np.save(self.folder / "groups.npy", source.splits["train"].parquet_rows().groups)
        made = self._place_products(fingerprint, progress)
        return {
            "classes": source.classes, "labelled": source.labelled, "said": self._said(progress), "files": files,
            "column": source.splits["train"].column, "made": [str(path.relative_to(cache)) for path in made],
            "read": progress.counts.get("read", 0), "seconds": progress.seconds, "pixels": progress.pixels,
        }  # fmt: skip

    def _place_products(self, fingerprint: str, progress: Progress) -> list[Path]:
        """Put decoded images and targets where the ordinary way looks for them; return these files."""
        from kd.data.pixels import pixels_folder
        from kd.training.targets import TargetCache

        folder = pixels_folder(fingerprint, self.opened.frame, self.job.cache)
        folder.mkdir(parents=True, exist_ok=True)
        made = [folder / "unreadable.json"]
        if progress.pixels:
            move(self.folder / "pixels.part", folder / "pixels.npy")
            made.append(folder / "pixels.npy")
        else:
            (self.folder / "pixels.part").unlink(missing_ok=True)
        write_whole(made[0], json.dumps(progress.unreadable))
        if self.asks:
            views = Views(fingerprint, progress.readable, self.config.crop_area)
            cache = TargetCache(self.opened.teacher, views, self.job.cache, self.opened.compute)
            place = cache.place((progress.readable, 3, *self.opened.frame.size))
            place.mkdir(parents=True, exist_ok=True)
            move(self.folder / "logits.part", place / "view-0.npy")
            made.append(place / "view-0.npy")
        return made

    def _check_splits(self, labels: np.ndarray, progress: Progress) -> None:
        """Raise ``UserError`` where a split is empty, or a class has no training image."""
        classes = self.opened.source.classes
        for name in ("train", "validation", "test"):
            if not (progress.train if name == "train" else progress.counts.get(name)):
                raise UserError(
                    f"The stream has left no {WORDS[name]} picture ({progress.counts.get('read', 0):,} were read). Give a {name} "
                    "split, or a larger dataset."
                )
        if self.opened.source.labelled:
            counts = np.bincount(labels[labels >= 0], minlength=len(classes))
            if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
                raise UserError(f"No training picture of {some(empty)}. Add some, or remove the class.")

    def _said(self, progress: Progress) -> list[str]:
        """Return what a user should know of the splits."""
        counts, said = progress.counts, list(self.opened.source.said)
        for name in self.shares:
            said.append(f"No {name} split: {pictures_were(counts.get(name, 0))} cut from train.")
        for name in WORDS:
            if count := counts.get(f"{name} without label"):
                said.append(f"{pictures_were(count)} left out of the {name} split, without a label.")
        if count := counts.get("unlabelled"):
            said.append(f"{count:,} of the training pictures have no label: they are learned from the teacher alone.")
        if self.config.duplicates != "keep":
            said.append(ONLY_FILES)
        for name, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
            if count := counts.get(f"{name} in {other}"):
                use = "training" if name == "train" else "validation"
                said.append(f"{pictures_were(count)} left out of {use}, equal to a {other} picture.")
        return said


def move(part: Path, place: Path) -> None:
    """Move a finished file to its place, where that has not happened before an interruption."""
    if part.exists():
        os.replace(part, place)
    if not place.exists():
        raise UserError(f"{place} is missing: the cache was deleted meanwhile. Start again.")


def batch_size(compute: "Compute | None") -> int:
    """Return how many images a teacher is asked about at once."""
    from kd.training.targets import GPU_BATCH, TARGET_BATCH

    return GPU_BATCH if compute is not None and compute.device.type == "cuda" else TARGET_BATCH


def ask_whole(teacher: "Teacher", compute: "Compute", inputs: "torch.Tensor") -> np.ndarray:
    """Return a teacher's logits ``[B, C]`` for its own processor's ``inputs``, in halves where a GPU's memory runs out."""
    import torch

    from kd.system import memory

    try:
        values = inputs.to(compute.device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), compute.autocast():
            return teacher.to(compute.device)(values).logits.float().cpu().numpy()
    except RuntimeError as error:
        if len(inputs) == 1 or not memory.ran_out_on_gpu(error):
            raise
    torch.cuda.empty_cache()
    return np.concatenate([ask_whole(teacher, compute, half) for half in inputs.tensor_split(2)])


def expected_splits(opened: Opened, config: DistillConfig) -> "tuple[Splits, dict[str, int]]":
    """Return the sample as all three splits, and how many images each will have. Raises ``UserError`` where that is not
    known beforehand."""
    counts = opened.source.expected(config)
    if counts is None:
        raise UserError(
            "How many pictures the stream has is known only at its end, so no time can be told before.",
            setting="streaming",
        )
    return opened.splits, counts
