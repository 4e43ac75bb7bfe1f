"""The widgets of a run's settings, made from ``DistillConfig``'s fields: their types, help and rules."""

import dataclasses
from typing import Any, get_args

import gradio as gr
from gradio.components import Component

from kd.config import PRESETS, SAMPLE, DistillConfig, public_name

OFFERED = ("teacher", "dataset", "student")
"""What is chosen among suggestions, or typed."""
LABELS = {"lambda": "Lambda", "dataset_config": "Dataset configuration", "seed": "Random seed"}
FIELDS = {public_name(field): field for field in dataclasses.fields(DistillConfig)}


def preset_values(preset: str) -> dict[str, Any]:
    """Every setting of a preset, by public name."""
    return DistillConfig.preset(preset).to_dict()


def from_widgets(values: tuple) -> DistillConfig:
    """The widgets' values, in the order of ``FIELDS``. Raises ``ValueError`` in words for a user."""
    return DistillConfig.from_dict(dict(zip(FIELDS, values, strict=True)))


def widget(name: str) -> Component:
    """A widget for one setting: a slider between two ends, a choice, a number or a line of text."""
    field = FIELDS[name]
    rules, help = field.metadata, field.metadata["help"].removeprefix(f"{name}: ")
    kind, *none = get_args(field.type) or (field.type,)
    common = {
        "label": LABELS.get(name, name.replace("_", " ").capitalize()),
        "info": help[0].upper() + help[1:],
        "value": preset_values(SAMPLE)[name],
        "elem_id": f"set-{name.replace('_', '-')}",
    }
    if "choices" in rules:
        return gr.Dropdown(list(rules["choices"]), **common)
    if name in OFFERED:
        return gr.Dropdown(suggestions(name), allow_custom_value=True, **common)
    if kind is float and "low" in rules and "high" in rules:
        return gr.Slider(rules["low"], rules["high"], step=0.05, **common)
    if kind in (int, float) and not none:
        return gr.Number(min_width=120, **common)
    # A number that may be left out is text too: an empty gr.Number turns into 0 when "More" is opened.
    return gr.Textbox(placeholder="automatic" if none else None, max_lines=1, **common)


def suggestions(name: str) -> list[str]:
    """Known good values of a setting: those its field names, and those of the presets."""
    known = [*FIELDS[name].metadata.get("suggestions", ()), *(preset_values(preset)[name] for preset in PRESETS)]
    return list(dict.fromkeys(known))
