"""Try a model once where it is loaded, so that whatever does not work is refused before anything is computed."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kd.errors import UserError
from kd.models.pretrained import first_line
from kd.system import memory


@contextmanager
def supported(kind: str, name: str) -> Iterator[None]:
    """Turn whatever a model or its processor raises when it is tried into a ``UserError``: "X is not supported: ...\"."""
    try:
        yield
    except Exception as error:  # an architecture that is not known here can raise anything
        if memory.ran_out(error):
            raise
        reason = (
            str(error).rstrip(".") if isinstance(error, UserError) else f"{first_line(error)} ({type(error).__name__})"
        )
        raise UserError(f"The {kind} {name!r} is not supported: {reason}.") from error


def probe_teacher(name: str, model: PreTrainedModel, size: tuple[int, int]) -> None:
    """Have a teacher answer one picture of ``size`` (height, width); raise ``UserError`` where it cannot."""
    _probe("teacher", name, model.eval(), size)


def probe_student(name: str, model: PreTrainedModel, size: tuple[int, int]) -> None:
    """Evaluate and train a copy of a student once on pictures of ``size`` (height, width), its random numbers apart.

    A copy, because a step changes running statistics, and because some models keep tensors from one call to the next.

    Raises ``UserError`` where it cannot be evaluated or trained.
    """
    duplicate = copy.deepcopy(model)
    with torch.random.fork_rng():
        _probe("student", name, duplicate.eval(), size)
        _probe("student", name, duplicate.train(), size, batch=2)


def takes_single_images(model: PreTrainedModel, size: tuple[int, int]) -> bool:
    """Return whether a model can be trained on a batch of one image.

    BatchNorm cannot where the feature map is a single pixel: one value has no variance.
    """
    duplicate = copy.deepcopy(model).train()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            duplicate(pixel_values=torch.zeros(1, 3, *size))
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            return False
        raise
    return True


def _probe(kind: str, name: str, model: PreTrainedModel, size: tuple[int, int], batch: int = 1) -> None:
    """Call a model with blank pictures, and take a gradient where it is in training mode; check what it answers."""
    device = next(model.parameters()).device
    with supported(kind, name):
        try:
            with torch.set_grad_enabled(model.training):
                output = model(pixel_values=torch.zeros(batch, 3, *size, device=device))
                logits = _checked_logits(output, len(model.config.id2label), batch)
                if model.training:
                    logits.sum().backward()
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
            if memory.ran_out(error):
                raise
            raise UserError(
                f"{type(model).__name__} does not take pictures of {size[0]} x {size[1]} pixels"
                f"{' in training' * model.training} ({first_line(error)}). Choose another size or another model"
            ) from error


def _checked_logits(output: Any, classes: int, batch: int) -> Tensor:
    """Return a model's logits; raise ``UserError`` where they are not a finite number for each class."""
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise UserError("its output has no logits, which are what is distilled. Choose another model")
    if tuple(logits.shape) != (batch, classes):
        raise UserError(
            f"it makes {' x '.join(map(str, logits.shape[1:]))} outputs, and its config.json names {classes} classes. Name "
            "as many as there are, or choose another model"
        )
    if not logits.isfinite().all():
        raise UserError("its outputs are not finite numbers, so its weights are damaged. Download them again")
    return logits
