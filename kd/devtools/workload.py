"""What the benchmark works on: its plan, and the teacher and images of that plan as files."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd.config import DistillConfig, checked, setting
from kd.runs.queue import device_name

# The default teacher: ViT-B/16 with random weights, which takes the same time as a trained one.
VIT_B = "vit_b_16"
# The default images: generated JPEGs of 500 x 500 pixels, like those of the Transformers guide.
PHOTOS = "photos"
PHOTO_CLASSES = 3
# At least so many training images are measured, where the recipe has as many.
MIN_MEASURED_IMAGES = 128
MIN_HELD_OUT_IMAGES = 32


@dataclass(frozen=True)
class Plan:
    """What is measured: the recipe of ``epochs`` on ``images`` images, all of it (``full``) or a part that is scaled up.

    Raises ``ValueError``, with a message for the user, on a value out of range. A row's turn lasts ``turn_seconds``, and
    at least one step.
    """

    teacher: str = setting(VIT_B, "teacher: a Hub id, a folder, 'sample', or 'vit_b_16' with random weights")
    dataset: str = setting(PHOTOS, "pictures: a Hub id, a folder, 'sample', or 'photos', which are made up")
    student: str = setting("mobilenet_v2_1.0", "student: a name from `python -m kd students`, a Hub id or a folder")
    device: str = setting("auto", "auto, cpu or cuda", choices=("auto", "cpu", "cuda"))
    image_size: int = setting(224, "side of the student's input in pixels", low=16, high=1024)
    batch_size: int = setting(32, "pictures a step", low=1)
    epochs: int = setting(30, "epochs of the recipe", low=1)
    images: int = setting(1000, "training pictures of the recipe", low=32)
    validation: int = setting(100, "validation pictures of the recipe, and as many test pictures", low=32)
    views: int = setting(1, "crops of each picture that the teacher sees", low=1)
    rounds: int = setting(5, "turns of each row; the median counts", low=1)
    full: bool = False
    turn_seconds: float = 3.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.metadata:
                object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))
        if self.batch_size > self.images:
            raise ValueError(f"A batch of {self.batch_size} is more than the {self.images} pictures of the recipe.")

    @property
    def on_gpu(self) -> bool:
        return device_name(self.device) != "cpu"

    @property
    def measured_images(self) -> int:
        """Return how many training images are worked on: enough for a few steps, or for many on a fast device."""
        enough = max(MIN_MEASURED_IMAGES, (32 if self.on_gpu else 4) * self.batch_size)
        return self.images if self.full else min(enough, self.images)

    def config(self, folder: Path, **changes: Any) -> DistillConfig:
        """Return the settings of our own runs, with the teacher and images that ``prepare`` has written to ``folder``."""
        settings = {
            "teacher": str(folder / "teacher"), "dataset": str(folder / "pictures"), "student": self.student,
            "image_size": self.image_size, "batch_size": self.batch_size, "epochs": self.epochs, "views": self.views,
            "device": self.device, "duplicates": "keep",
        }  # fmt: skip
        return DistillConfig.preset("custom", **{**settings, **changes})


def prepare(plan: Plan, folder: Path) -> None:
    """Write the teacher and as many images as are measured to ``folder``."""
    from kd.data.splits import load_splits

    source = plan.dataset
    if source == PHOTOS:
        source = folder / "photos"
        _write_photos(source, plan.measured_images, plan.validation)
    splits = load_splits(DistillConfig.preset("custom", dataset=str(source)))
    held_out = plan.validation if plan.full else max(len(splits.classes), MIN_HELD_OUT_IMAGES)
    for name, size in {"train": plan.measured_images, "validation": held_out, "test": held_out}.items():
        _write_split(getattr(splits, name), size, folder / "pictures" / f"{name}.parquet")
    _save_teacher(plan.teacher, splits.classes, folder / "teacher")


def _write_split(dataset: Any, size: int, file: Path) -> None:
    """Write ``size`` random images of a split, with every class among them, to a parquet file.

    Class folders would not do: not every class name can be the name of a folder.
    """
    from datasets import Dataset

    from kd.data.images import file_bytes

    names, labels = dataset.features["label"].names, np.asarray(dataset["label"])
    order = np.random.default_rng(0).permutation(len(dataset))
    firsts = [order[labels[order] == label][0] for label in range(len(names))]
    chosen = dataset.select(list(dict.fromkeys([*firsts, *order]))[:size])
    rows = {"image": [{"bytes": file_bytes(row), "path": None} for row in chosen], "label": chosen["label"]}
    file.parent.mkdir(exist_ok=True)
    Dataset.from_dict(rows, features=dataset.features).to_parquet(file)


def _write_photos(folder: Path, train: int, held_out: int) -> None:
    """Generate JPEGs with as much detail as photos of their size: about 60 KB each."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, size in (("train", train), ("validation", held_out), ("test", held_out)):
        for nth in range(max(size, 4 * PHOTO_CLASSES)):
            coarse = rng.normal(128, 60, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize((500, 500), Image.Resampling.BICUBIC), np.float32)
            noisy = (smooth + rng.normal(0, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
            path = folder / split / f"class {nth % PHOTO_CLASSES}" / f"{nth:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy).save(path, quality=85)


def _save_teacher(name: str, classes: list[str], folder: Path) -> None:
    """Save the teacher to a folder that a run can be pointed to."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    from kd.models.teacher import load_teacher

    if name == VIT_B:
        labels = {"id2label": dict(enumerate(classes)), "label2id": {label: i for i, label in enumerate(classes)}}
        model = ViTForImageClassification(ViTConfig(**labels))  # the defaults of its configuration are ViT-B/16
        processor = ViTImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    else:
        teacher = load_teacher(name, classes)
        model, processor = teacher.model, teacher.processor
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
