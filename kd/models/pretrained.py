"""Load a checkpoint from a folder or from the Hub, and say in words why one cannot be loaded."""

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel

from kd.errors import UserError
from kd.models.processor import load_processor
from kd.models.zoo import label_config
from kd.system import memory
from kd.system.hub import from_hub
from kd.text import some

# Without this, transformers asks a Space to convert pickled weights, which opens a pull request on the model's repository.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"

# How a file begins that Git has put in the place of a large one, which `git lfs pull` fetches.
LFS_POINTER = b"version https://git-lfs"

# Problem types of configs for which one picture does not have exactly one class, and what their outputs are.
OTHER_PROBLEMS = {
    "multi_label_classification": "a score for each label by itself, of which several can hold for one picture",
    "regression": "numbers, not scores of classes",
}


@dataclass(frozen=True)
class Checkpoint:
    """A model and its processor as they were loaded, and what was not in the files.

    ``classes`` are the names in the files. ``head`` are the tensors whose sizes depend on the number of classes. ``missing``
    are the tensors that the files do not have, and ``mismatched`` those of other sizes there: all of them are random.
    ``changes`` say in words what beside its head is not as the files have it.
    """

    model: PreTrainedModel
    processor: Any
    classes: list[str]
    head: set[str]
    missing: list[str]
    mismatched: list[tuple[str, Any, Any]]
    changes: list[str]


def is_local(source: str) -> bool:
    """Return whether a source is a folder or file of this machine rather than a repository of the Hub."""
    return Path(os.path.expanduser(source)).exists()


def model_classes(config: Any) -> list[str]:
    """Return the class names in a model's config, in the order of its outputs."""
    return [str(config.id2label[index]) for index in sorted(config.id2label)]


def load_checkpoint(kind: str, name: str, source: str, classes: list[str] | None = None) -> Checkpoint:
    """Load a classifier in float32 and its processor.

    Args:
        kind: teacher or student, for error messages.
        name: what the user calls it, for error messages.
        source: a folder or a Hub id.
        classes: the classes that its outputs shall have; default: those in its config.

    Raises ``UserError`` for whatever is wrong with the files.
    """

    def load() -> Checkpoint:
        config = load_config(kind, source)
        check_config(kind, name, config)
        own, changes = model_classes(config), []
        if config.problem_type in OTHER_PROBLEMS:
            changes.append(f"problem_type {config.problem_type} -> single_label_classification")
        for key, value in (label_config(classes) if classes else {}).items():
            setattr(config, key, value)
        # PVT's config has a number of classes beside the names: 1000, unless it is told.
        config.num_labels = len(classes or own)
        config.return_dict = True
        model, info = load_weights(kind, source, config=config, ignore_mismatched_sizes=True, output_loading_info=True)
        missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
        processor = load_processor(source, kind, name, config.model_type)
        return Checkpoint(model, processor, own, head_tensors(model), missing, mismatched, changes)

    with foreign_files(kind, name, source):
        loaded = from_hub(kind, name, load, is_local(source))
    _check_fit(kind, name, loaded)
    return loaded


def _check_fit(kind: str, name: str, loaded: Checkpoint) -> None:
    """Raise ``UserError`` where a checkpoint's weights are not those of the model that its config describes."""
    if wrong := [key for key, *_ in loaded.mismatched if key not in loaded.head]:
        raise UserError(
            f"The {kind} {name!r} has weights of other sizes than its config.json says ({some(wrong)}), so one of the two is "
            "another model's. Put the config.json of these weights beside them, or download both again."
        )
    if not loaded.model.state_dict().keys() - loaded.head - {*loaded.missing}:
        raise UserError(
            f"The {kind} {name!r} has no weights of a {type(loaded.model).__name__}, which its config.json asks for. Put the "
            "config.json of these weights beside them, or download both again."
        )
    if random := [key for key in loaded.missing if key not in loaded.head]:
        loaded.changes.append(f"not in the checkpoint, so these weights begin at random: {some(random)}")


def load_config(kind: str, source: str) -> Any:
    """Load a checkpoint's config; ``kind`` (teacher or student) is for error messages.

    Raises ``UserError`` where a folder has no config, transformers does not know the model's architecture, or it is code
    of its own, which is never run.
    """
    path = Path(os.path.expanduser(source))
    if path.is_file():
        raise UserError(f"The {kind} {source} is a file. Expected a folder saved with save_pretrained, or a Hub id.")
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        raise UserError(
            f"The {kind} folder {source} is an adapter (LoRA), not a whole model. Merge it into its base model with peft's "
            "merge_and_unload, then save that with save_pretrained."
        )
    if path.is_dir() and not (path / "config.json").exists():
        raise UserError(f"The {kind} folder {source} has no config.json. Expected a folder saved with save_pretrained.")
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error) and ("model_type" in str(error) or "model type" in str(error)):
            raise UserError(
                f"The {kind} {source!r} has an architecture (model_type in its config.json) that this version of transformers does "
                "not know. Choose another model."
            ) from error
        raise


def check_is_classifier(config: Any, name: str) -> None:
    """Raise ``UserError`` where transformers cannot classify images with a model of this config."""
    if type(config) not in AutoModelForImageClassification._model_mapping:
        raise UserError(
            f"{name!r} is a {config.model_type} model, which transformers cannot use for image classification. "
            "Choose a checkpoint of an image classifier, such as a ViT, ResNet or EfficientNet."
        )


def check_config(kind: str, name: str, config: Any) -> None:
    """Raise ``UserError`` for a model that its config shows to be no classifier of colour pictures, or not in float32."""
    check_is_classifier(config, name)
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"The {kind} {name!r} is not supported: its weights are quantised (quantization_config in config.json). Use "
            "the model that it was made of."
        )
    channels = next(
        (
            part.num_channels
            for part in (config, getattr(config, "vision_config", None))
            if hasattr(part, "num_channels")
        ),
        3,
    )
    if channels != 3:
        raise UserError(
            f"The {kind} {name!r} is not supported: it takes pictures of {channels} channel{'s' * (channels != 1)} "
            "(num_channels in config.json), and colour pictures, of 3, are what models get here. Train one of 3 channels; "
            "grey pictures are converted for it."
        )
    if kind == "teacher" and config.problem_type in OTHER_PROBLEMS:
        raise UserError(
            f"The teacher {name!r} is not supported: its problem_type is {config.problem_type}, so its outputs are "
            f"{OTHER_PROBLEMS[config.problem_type]}; here each picture has one class. If it was trained with one class a "
            "picture all the same, write single_label_classification into its config.json."
        )


def load_weights(kind: str, source: str, **options: Any) -> Any:
    """Load a classifier's weights in float32, from safetensors only, because loading a pickle can run any code."""
    try:
        return AutoModelForImageClassification.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, **options
        )
    except OSError as error:
        if "named model.safetensors" in str(error):  # not one of several parts, as an index lists them
            raise UserError(
                f"The {kind} {source!r} has no safetensors weights. Pickled weights are refused, since loading them can "
                "run any code. Convert it with save_pretrained and use that."
            ) from error
        raise


def head_tensors(model: PreTrainedModel) -> set[str]:
    """Return the names of a model's tensors whose sizes depend on the number of classes: its output layer.

    A model of one class more is compared with it; on the device ``meta`` that takes no memory.
    """
    config = copy.deepcopy(model.config)
    more = [*model_classes(config), "one more"]
    config.num_labels = len(more)
    config.id2label = dict(enumerate(more))
    with torch.device("meta"):
        larger = type(model)(config).state_dict()
    return {name for name, tensor in model.state_dict().items() if tensor.shape != larger[name].shape}


def renew_head(model: PreTrainedModel, head: set[str]) -> None:
    """Give new random weights to the tensors of ``head``, as the architecture initializes them, and to no other.

    transformers does the same for the tensors that a checkpoint does not have: its functions leave alone what is marked
    as initialized.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor._is_hf_initialized = name not in head
    for module in model.modules():
        module._is_hf_initialized = False
    model.initialize_weights()


@contextmanager
def foreign_files(kind: str, name: str, source: str) -> Iterator[None]:
    """Turn whatever the libraries raise for files that they cannot load into a ``UserError``; a full memory stays one."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if memory.ran_out(error):
            raise
        raise UserError(_why_not_loaded(kind, name, Path(os.path.expanduser(source)), error)) from error


def _why_not_loaded(kind: str, name: str, folder: Path, error: Exception) -> str:
    """Say why a checkpoint cannot be loaded and what to do about it."""
    start, text = f"The {kind} {name!r}", str(error)
    if pointers := _lfs_pointers(folder):
        return (
            f"{start} cannot be loaded: its files were not downloaded, only Git LFS pointers to them ({some(pointers)} in "
            f"{folder}). Run `git lfs install` and `git lfs pull` in that folder, or download it again with `hf download`."
        )
    if isinstance(error, SafetensorError):
        again = "Download them again" if folder.is_dir() else f"Run `hf download {name} --force-download`"
        return f"{start} has weights that are cut off or damaged ({first_line(error)}). {again}."
    if "trust_remote_code" in text:
        return (
            f"{start} is not supported: it brings Python code of its own (auto_map in its files), which is never run here. "
            "Use a checkpoint of an architecture that transformers has itself."
        )
    if isinstance(error, ImportError):
        packages = list(dict.fromkeys(re.findall(r"requires the (\S+) library", text)))
        return (
            f"{start} needs {' and '.join(packages) or 'a package'}, not installed here"
            f"{'' if packages else f' ({first_line(error)})'}. "
            + (f"Install with `pip install {' '.join(packages)}`, or choose" if packages else "Install it, or choose")
            + " another model."
        )
    return (
        f"{start} cannot be loaded: {first_line(error)} ({type(error).__name__}). Its files are damaged or incomplete, or "
        "not what transformers expects. Download them again, or save the model again with save_pretrained."
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something, shortened, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0][:300] if lines else type(error).__name__).rstrip(".")


def _lfs_pointers(folder: Path) -> list[str]:
    """Return the names of the files in a folder that are pointers of Git LFS."""
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(LFS_POINTER):
            found.append(path.name)
    return found
