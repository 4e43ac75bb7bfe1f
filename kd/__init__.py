"""Distillery: turn a big image classifier into a small, fast one, and prove it.

Names are imported when they are first used, so that ``import kd`` and ``python -m kd --help`` load nothing heavy.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd.config import DistillConfig
    from kd.distill import distill
    from kd.errors import UserError
    from kd.evaluation.compare import compare
    from kd.export.bundle import export_student
    from kd.export.push import PushSettings, push_student
    from kd.training.losses import distillation_loss
    from kd.training.trainer import ImageDistilTrainer

__version__ = "0.1.0"
__all__ = [
    "DistillConfig",
    "ImageDistilTrainer",
    "PushSettings",
    "UserError",
    "compare",
    "distill",
    "distillation_loss",
    "export_student",
    "push_student",
]

_HOMES = {
    "DistillConfig": "kd.config",
    "ImageDistilTrainer": "kd.training.trainer",
    "PushSettings": "kd.export.push",
    "UserError": "kd.errors",
    "compare": "kd.evaluation.compare",
    "distill": "kd.distill",
    "distillation_loss": "kd.training.losses",
    "export_student": "kd.export.bundle",
    "push_student": "kd.export.push",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kd' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """A package whose ``distill`` is the function, also after the module ``kd.distill`` was imported: Python would set the
    module over the function of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "distill" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
