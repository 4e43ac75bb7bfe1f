"""Cut whole batches of views from decoded images, on the device."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from kd.data.pixels import Pixels, Undecoded
from kd.data.views import Views, crop
from kd.models.processor import Normalization


class ViewBatches(torch.utils.data.Dataset):
    """Batches of one view, cut for all pictures at once on the device; ``view`` is changed between epochs.

    `Trainer` hands a whole batch of indices to ``__getitems__``, which answers with the batch itself (``collate``).
    Decoded images that leave a GPU three quarters of its free memory live there. On the CPU nothing is fetched ahead:
    no core is idle while the student computes.

    Args:
        pixels: the decoded images and their labels.
        views: the crops of these images.
        student: the student's normalization and input size.
        device: where the batches are made.
        teacher: the teacher's kept logits, for each view ``[N, C]``, which go with the batch as ``teacher_logits``; or,
            for a teacher that is asked in every step, its normalization, by which ``teacher_pixel_values`` are made.
    """

    def __init__(
        self,
        pixels: Pixels,
        views: Views,
        student: Normalization,
        device: torch.device,
        teacher: list[np.ndarray] | Normalization | None = None,
    ) -> None:
        # Where images are decoded by worker processes, batches stay on the CPU and `Trainer` moves them.
        self.undecoded = isinstance(pixels.values, Undecoded)
        self.device = torch.device("cpu") if self.undecoded else device
        self.views, self.student, self.teacher = views, student, teacher
        self.values = pixels.values
        if self.device.type == "cuda" and self.values.nbytes < torch.cuda.mem_get_info(device)[0] / 4:
            self.values = torch.from_numpy(np.array(self.values)).to(device)
        self.labels = torch.from_numpy(pixels.labels).to(self.device)
        self.show(0)

    def show(self, view: int, size: tuple[int, int] | None = None) -> None:
        """Make ``view`` the one that batches are cut from, for a student's input of ``size`` (default: its own)."""
        self.view = view
        self.student = dataclasses.replace(self.student, size=size or self.student.size)
        self.boxes, self.mirrored = (torch.from_numpy(part).to(self.device) for part in self.views.boxes(view))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        rows = self._to_device(torch.tensor(indices))
        on_device = torch.is_tensor(self.values)
        values = self.values[rows] if on_device else self._to_device(torch.from_numpy(self.values[indices]))
        boxes, mirrored = self.boxes[rows], self.mirrored[rows]

        def seen_by(normalization: Normalization) -> Tensor:
            batch = normalization(crop(values, boxes, mirrored, normalization.size))
            return batch.contiguous(memory_format=torch.channels_last)

        batch = {"pixel_values": seen_by(self.student), "labels": self.labels[rows]}
        if isinstance(self.teacher, Normalization):
            batch["teacher_pixel_values"] = seen_by(self.teacher)
        elif self.teacher is not None:
            batch["teacher_logits"] = self._to_device(torch.from_numpy(self.teacher[self.view][indices]))
        return batch

    def _to_device(self, values: Tensor) -> Tensor:
        """Without waiting for a GPU, so that a batch is gathered while the one before is learned from."""
        if self.device.type == "cuda":
            return values.pin_memory().to(self.device, non_blocking=True)
        return values.to(self.device)

    @staticmethod
    def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch
