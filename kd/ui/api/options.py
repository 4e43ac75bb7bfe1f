"""What can be asked for: presets, students, settings with their ranges, and the limits of this server."""

import dataclasses
import math
from typing import Any, get_args

from kd import limits
from kd.config import METHODS, PRESETS, PRETRAINED, STUDENT_NAMES, DistillConfig, expected, public_name
from kd.ui.access import shared
from kd.ui.settings import OWN

PRESET_WORDS = {
    "sample": "clothes at 28 px with their teacher, built in and offline: about 90 s on two CPU cores",
    "beans": "photos of bean leaves and a fine-tuned ViT, both fetched from the Hub",
    "custom": "your own pictures: give at least dataset and teacher in settings",
}

STEPS = (
    "1. import_pictures takes a zip of class folders and answers dataset, for example upload:20261126-101500-ab12.",
    "2. check_dataset says what is wrong with the pictures before anything is trained on them.",
    "3. A teacher has to know these classes. If there is none, make_teacher fine-tunes a model of the Hub; it is a run like any other, and run:ID names it as a teacher.",
    '4. start_run("custom", {"dataset": ..., "teacher": ...}), then wait_for_run until its status is done.',
    "5. compare asks both models about pictures; export_student makes ONNX files; get_student says where the student is.",
)


def list_options() -> dict[str, Any]:
    """List what there is to choose from: presets, students and settings with ranges, defaults and help. Call it first.

    Returns:
        steps (how to distil your own pictures), presets (name, what, settings), students (name, pretrained: the Hub id of the same with weights of ImageNet, to give as student instead), settings (name, default of the preset custom, expected, help, only: the methods it matters to), methods, limits of this server for a visitor, shared (whether calls need a token).
    """
    defaults = DistillConfig.preset("custom").to_dict()
    return {
        "steps": list(STEPS),
        "presets": [
            {"preset": name, "what": PRESET_WORDS[name], "settings": values} for name, values in PRESETS.items()
        ],
        "students": [{"student": name, "pretrained": PRETRAINED.get(name)} for name in STUDENT_NAMES],
        "settings": [setting_words(field, defaults) for field in dataclasses.fields(DistillConfig)],
        "methods": [{"method": name, "sets": values} for name, values in METHODS.items()],
        "limits": {
            field.name: {"most": value, "of": field.metadata["help"]}
            for field in dataclasses.fields(limits.Limits)
            if (value := getattr(limits.current(), field.name)) < math.inf
        },
        "shared": shared(),
    }


def setting_words(field: dataclasses.Field, defaults: dict[str, Any]) -> dict[str, Any]:
    """Return a setting's name, default, what it takes in words, and help."""
    name = public_name(field)
    optional = type(None) in get_args(field.type)
    words = expected(field) + (", or null" if optional else "")
    own = {"only": list(OWN[name])} if name in OWN else {}
    return {
        "setting": name,
        "default": defaults[name],
        "expected": words,
        "help": field.metadata["help"].removeprefix(f"{name}: "),
        **own,
    }
