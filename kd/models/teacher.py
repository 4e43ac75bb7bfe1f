"""Teachers and students: loading, building, healing, and the check of labels before a second is spent."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from kd.config import NO_TEACHER, SAMPLE
from kd.errors import UserError
from kd.models.class_map import match_classes
from kd.models.pretrained import check_is_classifier, is_local, load_config, load_weights, model_classes
from kd.models.processor import load_processor, read_normalization
from kd.system.files import ASSETS
from kd.system.hub import from_hub
from kd.text import some

# --- Teacher


NEVER = -1e4
"""The logit of a class that the teacher does not know: no chance at all, and finite in every type."""


class Teacher(nn.Module):
    """A frozen classifier whose logits come in the order of ``classes``: the dataset's, or its own where that has none.

    ``known`` is bool ``[C]``, which of the classes it knows, or ``None`` for all; the logit of another is ``NEVER``.
    ``warnings`` are what the user should know about how its classes were matched (``kd.models.class_map``).
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
        self.warnings: list[str] = []

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """``[B, 3, H, W]`` to ``logits`` ``[B, C]``."""
        logits = self.model(pixel_values=pixel_values).logits
        if self.columns is not None:
            logits = logits[:, [column or 0 for column in self.columns]]
        if self.known is not None:
            logits = logits.masked_fill(~self.known, NEVER)
        return ImageClassifierOutput(logits=logits)

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in evaluation mode: dropout must not blur the targets."""
        return super().train(False)

    def key(self) -> str:
        """A hash of weights, architecture, processor and order of classes: what the answers depend on."""
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
    """Load a teacher, its outputs in the order of ``classes``, or in its own where none are given.

    ``counts``: the training images of each class, to be named in its ``warnings``.

    Raises ``UserError`` if it is not there, cannot be reached, has an untrained head, or other classes.
    """
    source = _source(name)

    def load() -> tuple[Any, dict[str, Any], Any]:
        check_is_classifier(load_config("teacher", source), name)
        model, info = load_weights("teacher", source, output_loading_info=True)
        return model, info, load_processor(source, "teacher", name)

    model, info, processor = from_hub("teacher", name, load, is_local(source))
    fresh = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if fresh:
        raise UserError(
            f"The teacher {name!r} has weights that were never trained ({some(fresh)}): it is a backbone without a "
            "classification head. Fine-tune it on these classes first (`python -m kd teacher --base`), then use the result "
            "as the teacher."
        )
    if not classes:
        return Teacher(model, processor)
    match = match_classes(model_classes(model.config), classes, label_map)
    match.check()
    in_order = match.columns == list(range(len(match.theirs)))
    teacher = Teacher(model, processor, None if in_order else match.columns, classes)
    teacher.warnings = match.in_words(counts)
    return teacher


def teacher_classes(name: str) -> list[str]:
    """The classes of a teacher, without its weights. Raises ``UserError`` if it is not there, or no classifier."""
    source = _source(name)
    config = from_hub("teacher", name, lambda: load_config("teacher", source), is_local(source))
    check_is_classifier(config, name)
    return model_classes(config)


def _source(name: str) -> str:
    """A teacher's folder or Hub id."""
    if name == NO_TEACHER:
        raise UserError("The teacher is none: nobody can be asked. Choose a Hub id, a folder, or 'sample'.")
    return str(ASSETS / "sample-teacher") if name == SAMPLE else name
