"""Tiny pictures and tiny models: three colours, a teacher that knows them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

from kd.config import DistillConfig

# A name that must stay text wherever it is shown as HTML.
EVIL = "<img src=x onerror=alert(1)>"

CLASSES = ["blue sky", "green leaf", "red brick"]

COLOURS = {"blue sky": (60, 90, 200), "green leaf": (60, 180, 70), "red brick": (200, 70, 50)}


def picture(name: str, rng: np.random.Generator, size: int = 32) -> Image.Image:
    """A noisy square of a class's colour."""
    noise = rng.normal(0, 50, (size, size, 3)) + rng.normal(0, 25, 3)
    return Image.fromarray((np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8))


def class_folders(folder: Path, each: int, seed: int = 0, size: int = 32) -> Path:
    """``folder/<class>/<n>.png``."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for n in range(each):
            picture(name, rng, size).save(folder / name / f"{n:03}.png")
    return folder


def dataset_config(path: Path, **changes) -> DistillConfig:
    """The settings for a dataset at this path."""
    return DistillConfig(dataset=str(path), **changes)


def tiny_resnet(classes: list[str], seed: int = 0) -> ResNetForImageClassification:
    torch.manual_seed(seed)
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
            id2label=dict(enumerate(classes)), label2id={name: i for i, name in enumerate(classes)},
        )
    )  # fmt: skip


def processor(size: int = 32) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(
        size={"height": size, "width": size}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def teacher_folder(folder: Path, classes: list[str] = CLASSES, steps: int = 40) -> Path:
    """A teacher that has learned the colours, saved; its outputs are in the order of ``classes``."""
    model, rng = tiny_resnet(classes), np.random.default_rng(1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(steps):
        labels = torch.from_numpy(rng.integers(0, len(classes), 32))
        images = [picture(classes[i], rng) for i in labels]
        values = processor()(images, return_tensors="pt")["pixel_values"]
        torch.nn.functional.cross_entropy(model(values).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


class Items(torch.utils.data.Dataset):
    """Sixteen noisy pictures, as `Trainer` likes them; with ``logits``, the teacher's answers too."""

    def __init__(self, logits: torch.Tensor | None = None, count: int = 16) -> None:
        generator = torch.Generator().manual_seed(0)
        self.values = torch.randn(count, 3, 32, 32, generator=generator)
        self.labels = torch.arange(count) % 3
        self.logits = logits

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        row = {"pixel_values": self.values[index], "labels": self.labels[index]}
        return row if self.logits is None else {**row, "teacher_logits": self.logits[index]}
