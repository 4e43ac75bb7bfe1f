"""Crop whole batches of views from decoded images, on the device."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from kd.data.pixels import Pixels, Undecoded
from kd.data.views import Views, crop
from kd.models.processor import Normalization


class ViewBatches(torch.utils.data.Dataset):
    """A dataset that crops all images of a batch at once, on the device; ``show`` sets the view between epochs.

    `Trainer` passes the indices of a whole batch to ``__getitems__``, which returns the finished batch; ``collate`` hands
    it on unchanged. Decoded images are kept on the GPU where they take less than a quarter of its free memory. On the CPU
    no batch is prefetched, because the student's computation leaves no core idle.

    Args:
        pixels: the decoded images and their labels.
        views: the crops of these images.
        student: the student's normalization and input size.
        device: the device on which batches are made.
        rows: int64 ``[N]``, the image that each index stands for, where that is another than the image of that number.
        teacher: the teacher's cached logits, ``[N, C]`` for each view, which the batch holds as ``teacher_logits``; or the
            normalization of a teacher that is called in every step, with which ``teacher_pixel_values`` are made.
    """

    def __init__(
        self,
        pixels: Pixels,
        views: Views,
        student: Normalization,
        device: torch.device,
        teacher: list[np.ndarray] | Normalization | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        # Worker processes that decode images make their batches on the CPU, and `Trainer` moves them to the device.
        self.undecoded = isinstance(pixels.values, Undecoded)
        self.device = torch.device("cpu") if self.undecoded else device
        self.views, self.student, self.teacher, self.rows = views, student, teacher, rows
        self.values = pixels.values
        # Of images that are decoded anew in each epoch, and whose files are far away, which of them lie together.
        self.blocks = self.values.blocks() if self.undecoded and rows is None else None
        if self.device.type == "cuda" and self.values.nbytes < torch.cuda.mem_get_info(device)[0] / 4:
            self.values = torch.from_numpy(np.array(self.values)).to(device)
        self.labels = torch.from_numpy(pixels.labels).to(self.device)
        self.show(0)

    def show(self, view: int, size: tuple[int, int] | None = None) -> None:
        """Crop the following batches from ``view``, for a student's input of ``size`` (default: unchanged)."""
        self.view = view
        self.student = dataclasses.replace(self.student, size=size or self.student.size)
        self.boxes, self.mirrored = (torch.from_numpy(part).to(self.device) for part in self.views.boxes(view))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Return the batch of the images at ``indices``."""
        if self.rows is not None:
            indices = self.rows[indices].tolist()
        rows = self._to_device(torch.tensor(indices))
        on_device = torch.is_tensor(self.values)
        values = self.values[rows] if on_device else self._to_device(torch.from_numpy(self.values[indices]))
        boxes, mirrored = self.boxes[rows], self.mirrored[rows]

        def inputs_for(normalization: Normalization) -> Tensor:
            batch = normalization(crop(values, boxes, mirrored, normalization.size))
            return batch.contiguous(memory_format=torch.channels_last)

        batch = {"pixel_values": inputs_for(self.student), "labels": self.labels[rows]}
        if isinstance(self.teacher, Normalization):
            batch["teacher_pixel_values"] = inputs_for(self.teacher)
        elif self.teacher is not None:
            batch["teacher_logits"] = self._to_device(torch.from_numpy(self.teacher[self.view][indices]))
        return batch

    def _to_device(self, values: Tensor) -> Tensor:
        """Copy values to the device; a GPU is not waited for, so that it trains on the batch before in the meantime."""
        if self.device.type == "cuda":
            return values.pin_memory().to(self.device, non_blocking=True)
        return values.to(self.device)

    @staticmethod
    def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch of ``__getitems__`` as it is."""
        return batch


class BlockOrder(torch.utils.data.Sampler[int]):
    """A random order, another in each epoch, in which images that lie together stay near each other.

    Blocks of images come in random order, and within stretches of at least ``MIXED`` images, these do. Where a whole block
    has to be read for one of its images, as a row group of a parquet file has, it is then read once in an epoch by each
    process.

    Args:
        blocks: the block of each image, int64 ``[N]``, those of one block one after the other.
        seed: of the order; with it and the epoch the order is always the same, so that a training can be resumed.
        left_out: how many images of each epoch are left out, others each time.
    """

    MIXED = 4096

    def __init__(self, blocks: np.ndarray, seed: int, left_out: int = 0) -> None:
        self.edges = np.concatenate([[0], np.flatnonzero(np.diff(blocks)) + 1, [len(blocks)]])
        self.seed, self.left_out, self.epoch = seed, left_out, 0

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be that of ``epoch``."""
        self.epoch = epoch

    def __len__(self) -> int:
        return int(self.edges[-1]) - self.left_out

    def __iter__(self) -> Iterator[int]:
        rng, left, stretch, size = np.random.default_rng([self.seed, self.epoch]), len(self), [], 0
        order = rng.permutation(len(self.edges) - 1)
        for nth, block in enumerate(order, start=1):
            stretch.append(np.arange(self.edges[block], self.edges[block + 1]))
            size += len(stretch[-1])
            if size >= self.MIXED or nth == len(order):
                rows = rng.permutation(np.concatenate(stretch))[:left]
                left -= len(rows)
                yield from rows.tolist()
                stretch, size = [], 0
