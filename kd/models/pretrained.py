"""Load the configuration and the weights of a checkpoint, from a folder or from the Hub."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageClassification

from kd.errors import UserError

# Without this, transformers asks a Space to convert pickled weights, which opens a pull request on the model's repository.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"


def is_local(source: str) -> bool:
    """Return whether a source is a folder or file of this machine rather than a repository of the Hub."""
    return Path(os.path.expanduser(source)).exists()


def model_classes(config: Any) -> list[str]:
    """Return the class names in a model's config, in the order of its outputs."""
    return [str(config.id2label[index]) for index in sorted(config.id2label)]


def check_is_classifier(config: Any, name: str) -> None:
    """Raise ``UserError`` where transformers cannot classify images with a model of this config."""
    if type(config) not in AutoModelForImageClassification._model_mapping:
        raise UserError(
            f"{name!r} is a {config.model_type} model, which transformers cannot use for image classification. "
            "Choose a checkpoint of an image classifier, such as a ViT, ResNet or EfficientNet."
        )


def load_config(kind: str, source: str) -> Any:
    """Load a checkpoint's config; ``kind`` (teacher or student) is for error messages.

    Raises ``UserError`` where a folder has no config, or transformers does not know the model's architecture.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir() and not (path / "config.json").exists():
        raise UserError(f"The {kind} folder {source} has no config.json. Expected a folder saved with save_pretrained.")
    try:
        return AutoConfig.from_pretrained(source)
    except ValueError as error:
        if "model_type" in str(error) or "model type" in str(error):
            raise UserError(
                f"The {kind} {source!r} has an architecture that this version of transformers does not know."
            ) from error
        raise


def load_weights(kind: str, source: str, **options: Any) -> Any:
    """Load a classifier's weights in float32, from safetensors only, because loading a pickle can run any code."""
    try:
        return AutoModelForImageClassification.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, **options
        )
    except OSError as error:
        if "safetensors" in str(error):
            raise UserError(
                f"The {kind} {source!r} has no safetensors weights. Pickled weights are refused, since loading them can "
                "run any code. Convert it with save_pretrained and use that."
            ) from error
        raise
