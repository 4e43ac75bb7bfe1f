"""Load the configuration and the weights of a checkpoint, from a folder or from the Hub."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageClassification

from kd.errors import UserError

# Without this, transformers asks a Space to convert pickled weights, which opens a pull request on their repository.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"


def is_local(source: str) -> bool:
    """Whether a source names a folder or file of this machine, not a repository of the Hub."""
    return Path(os.path.expanduser(source)).exists()


def model_classes(config: Any) -> list[str]:
    """The classes that a model's config names, in their order."""
    return [str(config.id2label[index]) for index in sorted(config.id2label)]


def check_is_classifier(config: Any, name: str) -> None:
    if type(config) not in AutoModelForImageClassification._model_mapping:
        raise UserError(
            f"{name!r} is a {config.model_type} model, which transformers cannot use for image classification. "
            "Choose a checkpoint of an image classifier, such as a ViT, ResNet or EfficientNet."
        )


def load_config(kind: str, source: str) -> Any:
    """The checkpoint's config; of a local folder, one that is there at all."""
    path = Path(os.path.expanduser(source))
    if path.is_dir() and not (path / "config.json").exists():
        raise UserError(f"The {kind} folder {source} has no config.json. Expected a folder saved with save_pretrained.")
    try:
        return AutoConfig.from_pretrained(source)
    except ValueError as error:
        if "model_type" in str(error) or "model type" in str(error):
            raise UserError(
                f"The {kind} {source!r} is of a kind that this version of transformers does not know."
            ) from error
        raise


def load_weights(kind: str, source: str, **options: Any) -> Any:
    """Weights in float32. Only safetensors: a pickle can run anything when it is loaded."""
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
