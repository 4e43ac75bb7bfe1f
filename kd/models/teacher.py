"""Load a teacher and bring its outputs into the order of the dataset's classes."""

import hashlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from kd.config import NO_TEACHER, SAMPLE
from kd.errors import UserError
from kd.models.class_map import match_classes
from kd.models.framing import read_framing
from kd.models.pretrained import (
    check_is_classifier,
    foreign_files,
    is_local,
    load_checkpoint,
    load_config,
    model_classes,
)
from kd.models.probe import probe_teacher, supported
from kd.models.processor import read_normalization
from kd.system.files import ASSETS
from kd.system.hub import from_hub
from kd.text import some

# The logit of a class that the teacher does not know: its probability is 0, and it is finite in every float type.
UNKNOWN_LOGIT = -1e4


class Teacher(nn.Module):
    """A frozen classifier whose logits are in the order of ``classes``: the dataset's, or its own without a dataset's.

    ``columns`` holds, for each class, the index of the model's own output, ``None`` for a class that the model does not
    know. ``known`` is bool ``[C]``, the classes that it knows, or ``None`` where it knows all; the logit of any other class
    is ``UNKNOWN_LOGIT``. ``warnings`` tell the user how its classes were matched (``kd.models.class_map``).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        columns: list[int | None] | None = None,
        classes: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.columns = columns
        self.classes = classes or model_classes(model.config)
        known = None if columns is None or None not in columns else torch.tensor([c is not None for c in columns])
        self.register_buffer("known", known, persistent=False)
        self.normalization = read_normalization(processor)
        self.framing = read_framing(processor)
        self.warnings: list[str] = []

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """Return ``logits`` ``[B, C]`` for images ``[B, 3, H, W]``."""
        logits = self.model(pixel_values=pixel_values).logits
        if self.columns is not None:
            logits = logits[:, [column or 0 for column in self.columns]]
        if self.known is not None:
            logits = logits.masked_fill(~self.known, UNKNOWN_LOGIT)
        return ImageClassifierOutput(logits=logits)

    def set_size(self, size: tuple[int, int]) -> None:
        """Set the input size (height, width) of a teacher whose processor leaves images at their own."""
        self.normalization = replace(self.normalization, size=size)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode, because dropout would add noise to the targets."""
        return super().train(False)

    def key(self) -> str:
        """Return a hash of all that the logits depend on: weights, architecture, processor and order of classes."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        config = {
            k: v for k, v in self.model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")
        }
        digest.update(repr((config, self.processor.to_dict(), self.columns)).encode())
        return digest.hexdigest()


def load_teacher(
    name: str, classes: list[str] | None, label_map: str | None = None, counts: list[int] | None = None
) -> Teacher:
    """Load a teacher with its outputs in the order of ``classes``, or in its own order where none are given.

    Args:
        name: a Hub id, a folder or ``sample``.
        classes: the dataset's classes.
        label_map: the user's assignment of classes to the teacher's, where their names differ.
        counts: number of training images of each class, for the teacher's ``warnings``.

    Raises ``UserError`` if it does not exist, cannot be reached, has an untrained head, or has other classes.
    """
    source = _teacher_source(name)

    loaded = load_checkpoint("teacher", name, source)
    if loaded.mismatched:
        key, found, _ = loaded.mismatched[0]
        raise UserError(
            f"The teacher {name!r} names {len(loaded.classes)} classes in its config.json (id2label), but its weights have "
            f"{found[0]} outputs ({key}). Name exactly its classes there, in the order of its outputs."
        )
    fresh, model, processor = loaded.missing, loaded.model, loaded.processor
    if fresh:
        raise UserError(
            f"The teacher {name!r} has weights that were never trained ({some(fresh)}): it is a backbone without a "
            "classification head. Fine-tune it on these classes first (`python -m kd teacher --base`), then use the result "
            "as the teacher."
        )
    with supported("teacher", name):
        teacher = Teacher(model, processor)
    probe_teacher(name, model, teacher.normalization.size)
    if not classes:
        return teacher
    match = match_classes(model_classes(model.config), classes, label_map)
    match.check()
    in_order = match.columns == list(range(len(match.teacher_classes)))
    teacher = Teacher(model, processor, None if in_order else match.columns, classes)
    teacher.warnings = match.warnings(counts)
    return teacher


def teacher_classes(name: str) -> list[str]:
    """Return a teacher's classes without loading its weights.

    Raises ``UserError`` if it does not exist, cannot be reached, or is no classifier.
    """
    source = _teacher_source(name)
    with foreign_files("teacher", name, source):
        config = from_hub("teacher", name, lambda: load_config("teacher", source), is_local(source))
    check_is_classifier(config, name)
    return model_classes(config)


def _teacher_source(name: str) -> str:
    """Return a teacher's folder or Hub id."""
    if name == NO_TEACHER:
        raise UserError("The teacher is none, so there is no model to load. Choose a Hub id, a folder, or 'sample'.")
    return str(ASSETS / "sample-teacher") if name == SAMPLE else name
