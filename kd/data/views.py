"""Crop views of images: a pure function of dataset, image index, view index and seed."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Frame:
    """The part of each image that is kept decoded, and its ``size`` (height, width) in pixels.

    It is what the teacher's processor shows it: ``height`` and ``width`` of the image's middle, as shares of its own
    height and width (``relative_to`` is ``image``), or both of its ``short side``.
    """

    size: tuple[int, int]
    relative_to: str = "image"
    height: float = 1.0
    width: float = 1.0

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of the part that is kept of an image of this size, in pixels."""
        sides = (width, height) if self.relative_to == "image" else (min(width, height),) * 2
        across, down = min(width, self.width * sides[0]), min(height, self.height * sides[1])
        left, top = (width - across) / 2, (height - down) / 2
        return left, top, left + across, top + down

    def least(self) -> int:
        """Return the side in pixels that an image should have at least to be scaled down to this frame without loss."""
        return round(2 * max(self.size[0] / self.height, self.size[1] / self.width))

    def key(self) -> str:
        """Return a name for it that can be part of a file's."""
        part = (
            "" if (self.height, self.width) == (1, 1) and self.relative_to == "image" else self.relative_to[:5].strip()
        )
        shares = f"-{part}-{self.height:.4f}-{self.width:.4f}" if part else ""
        return f"{self.size[0]}x{self.size[1]}{shares}"


@dataclass(frozen=True)
class Views:
    """The crops of a split: a pure function of (fingerprint, image, view, ``seed``).

    View 0 is the whole image. Other views are crops of ``crop_area`` to 1 of the area and aspect 3/4 to 4/3 of the image's
    own (Szegedy et al. 2015, arXiv:1409.4842, section 6), half of them mirrored. Where ``crop_area`` is 1 nothing is cut
    away: view 1, and every second one after it, is the whole image mirrored.
    """

    fingerprint: str
    count: int
    crop_area: float
    seed: int = 0

    def boxes(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes float32 ``[N, 4]`` (left, top, width, height, as shares of the image) and mirrored, bool ``[N]``."""
        if view == 0 or self.crop_area == 1:
            whole = np.tile(np.array([0, 0, 1, 1], np.float32), (self.count, 1))
            return whole, np.full(self.count, view % 2 == 1)
        rng = np.random.default_rng([int(self.fingerprint, 16), self.seed, view])
        area, aspect, left, top, mirror = rng.random((self.count, 5)).T
        area = self.crop_area + (1 - self.crop_area) * area
        aspect = np.exp(np.log(3 / 4) + np.log(16 / 9) * aspect)
        width, height = np.minimum(np.sqrt(area * aspect), 1), np.minimum(np.sqrt(area / aspect), 1)
        boxes = np.stack([left * (1 - width), top * (1 - height), width, height], axis=1)
        return boxes.astype(np.float32), mirror < 0.5


def crop(values: Any, boxes: Any, mirrored: Any, size: tuple[int, int]) -> Any:
    """Cut a box from each image and scale it: ``[B, 3, S, S]`` (uint8 or float) to float ``[B, 3, *size]``.

    ``boxes`` ``[B, 4]`` and ``mirrored`` ``[B]`` are what ``Views.boxes`` returns, as tensors. Sampling is bilinear; where
    an image shrinks by more than 1.5, several points are averaged for each pixel, so that fine patterns do not alias.
    """
    import torch
    from torch.nn.functional import avg_pool2d, grid_sample

    points = max(1, round(max(values.shape[-2:]) / max(size)))
    height, width = size[0] * points, size[1] * points
    left, top, across, down = (part[:, None] for part in boxes.unbind(1))
    middles = [(torch.arange(n, device=boxes.device) + 0.5) / n for n in (width, height)]
    along = torch.where(mirrored[:, None], 1 - middles[0], middles[0])
    # Where each point lies in the image, -1 to 1. This takes a quarter of affine_grid's time.
    grid = boxes.new_empty(len(boxes), height, width, 2)
    grid[..., 0] = (2 * (left + across * along) - 1)[:, None, :]
    grid[..., 1] = (2 * (top + down * middles[1]) - 1)[:, :, None]
    cropped = grid_sample(values.float(), grid, padding_mode="border", align_corners=False)
    return avg_pool2d(cropped, points) if points > 1 else cropped
