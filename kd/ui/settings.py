"""The widgets of a run's settings, made from the types, help and rules of ``DistillConfig``'s fields."""

import dataclasses
import json
import re
from typing import Any, get_args

import gradio as gr
from gradio.components import Component

from kd.config import METHODS, NO_TEACHER, PRESETS, RECIPES, SAMPLE, DistillConfig, public_name
from kd.runs.queue import gpu_count
from kd.ui.rendering import render

# Settings that are chosen from a list of suggestions, or typed
OFFERED = ("teacher", "dataset", "student")

# Setting -> its label, where that is not its name
LABELS = {
    "lambda": "Lambda",
    "dataset_config": "Dataset configuration",
    "seed": "Random seed",
    "ema": "Average of the weights (EMA)",
    "weight": "Weight of the method's loss",
    "streaming": "Stream the pictures",
    "baseline": "Also train without the teacher, to see whether it helps",
    "heal": "Heal the student",
    "dkd_alpha": "Alpha",
    "dkd_beta": "Beta",
    "dkd_warmup": "Warm-up",
    "dist_beta": "Beta",
    "dist_gamma": "Gamma",
}

# Setting -> its help, where the command line's is too long for the first screen
HELP = {
    "teacher": "Hub id, folder, 'sample', run:ID",
    "dataset": "a Hub id, a folder, a file, or 'sample'",
    "streaming": "a Hub id, parquet files or tar shards that are more than the disk holds: read once, in one pass",
    "label_map": "class=teacher class, …; else guessed by name",
    "student": "a name, a Hub id or a folder",
    "temperature": "higher is softer",
    "lambda": "the teacher's share",
    "labels": "of how many pictures",
    "weight": "inside its share lambda",
    "heal": "BatchNorm momentum, dropout and random weights as PyTorch means them",
    "dkd_alpha": "the label's weight",
    "dkd_beta": "the others' weight",
    "dkd_warmup": "epochs of growing",
    "dist_beta": "of classes",
    "dist_gamma": "of pictures",
    "baseline": "one seed makes no claim: take 3 trials",
    "trials": "seeds",
    "ema": "decay; the average is what is kept. 0 for none",
    "epochs": "over the pictures",
    "minutes": "instead of epochs",
}

# Setting -> the step of its slider, where that is not 0.05
STEPS = {"ema": 0.001, "temperature": 0.5}

# The ends of the slider of a setting that has no highest value, or no lowest
ENDS = {"temperature": (0.5, 20)}

# Where the slider of the labels can stand; the last is all. How many there are is not known before the pictures are read.
LABELS_KEPT = (50, 100, 200, 500, 1_000, 2_000, 5_000, None)

# Method -> its name, and what it is and how it did in the studies (``assets/studies``)
METHOD_WORDS = {
    "kd": ("KD (Hinton 2015)", "The teacher's answers, softened. Try it first"),
    "dkd": (
        "DKD (2022)",
        "The wrong classes count by themselves, even where the teacher is sure. It hurt in our sample's 8 epochs; longer was not "
        "tried",
    ),
    "dist": (
        "DIST (2022)",
        "Which classes and pictures are alike, not how sure the teacher is. As good as KD on our sample; behind "
        "in short training on photos",
    ),
    "kd+std": (
        "KD, standardised (2024)",
        "The order and proportions of the answers, not their size. No gain on our sample",
    ),
    "dkd+std": (
        "DKD, standardised (2024)",
        "DKD on the proportions of the answers, not their size. No gain on our sample",
    ),
}

FIELDS = {public_name(field): field for field in dataclasses.fields(DistillConfig)}

# Settings that matter to some methods only -> those methods
OWN = {name: field.metadata["only"] for name, field in FIELDS.items() if "only" in field.metadata}

SET_BY_METHOD = tuple(dict.fromkeys(name for values in METHODS.values() for name in values))

SET_BY_RECIPE = tuple(dict.fromkeys(name for values in RECIPES.values() for name in values))


def preset_values(preset: str) -> dict[str, Any]:
    """Return every setting of a preset, by public name."""
    return DistillConfig.preset(preset).to_dict()


def values_of(names: tuple[str, ...], preset: str, recipe: str, method: str) -> list[Any]:
    """Return what the widgets of the settings ``names`` show once a recipe or a method is chosen: the values that come with
    it, else the preset's."""
    values = DistillConfig.preset(preset, recipe=recipe, method=method).to_dict()
    return [to_widget(name, values[name]) for name in names]


def method_info(method: str) -> str:
    """Describe a method, and the settings that come with it."""
    values = ", ".join(f"{'T' if name == 'temperature' else name} {value:g}" for name, value in METHODS[method].items())
    return METHOD_WORDS[method][1] + (f". It sets {values}" if values else "")


def label_of(name: str) -> str:
    """Return a setting's label on the page."""
    return LABELS.get(name, name.replace("_", " ").capitalize())


# Messages call a setting by its flag. Flag -> the setting's label in quotes
FLAG_LABELS = {f"--{name.replace('_', '-')}": f"“{label_of(name)}”" for name in FIELDS}

FLAG = re.compile(rf"({'|'.join(FLAG_LABELS)})(?![\w-])")

RESUME = re.compile(r"`python -m kd resume \S+`")


def on_page(message: str) -> str:
    """Return a message with the page's own names: the labels of settings for their flags, Resume for that command."""
    return FLAG.sub(lambda flag: FLAG_LABELS[flag[0]], RESUME.sub("Resume", message))


def is_switch(name: str) -> bool:
    """Tell whether a setting is yes or no, and its widget a checkbox."""
    return set(FIELDS[name].metadata.get("choices", ())) == {"yes", "no"}


def to_widget(name: str, value: Any) -> Any:
    """Return a setting's value in the form that its widget takes."""
    return value == "yes" if is_switch(name) else value


def from_widgets(values: tuple) -> DistillConfig:
    """Return the configuration that the widgets' values, in the order of ``FIELDS``, stand for. Raises ``ValueError`` in words
    for a user."""
    switched = {True: "yes", False: "no"}
    named = dict(zip(FIELDS, values, strict=True))
    if not named["teacher"]:
        raise ValueError(
            "Choose a teacher that knows these classes: a Hub id, a folder or one of your runs. There is none? Choose a "
            "pretrained model to begin from, and Make a teacher."
        )
    if named["teacher"] == NO_TEACHER:  # what a baseline is compared with, the presets' own included
        named["baseline"] = False
    return DistillConfig.from_dict(
        {name: switched.get(value, value) if is_switch(name) else value for name, value in named.items()}
    )


def widget(name: str, method: str = "kd") -> Component:
    """Return the widget of one setting: a checkbox, a slider, a list, a number or a line of text. It is visible only if the
    setting matters to ``method``."""
    field = FIELDS[name]
    rules, help = field.metadata, HELP.get(name, field.metadata["help"]).removeprefix(f"{name}: ")
    kind, *none = get_args(field.type) or (field.type,)
    common = {
        "label": label_of(name),
        "info": help[:1].upper() + help[1:] or None,
        "value": to_widget(name, preset_values(SAMPLE)[name]),
        "elem_id": f"set-{name.replace('_', '-')}",
        "visible": method in OWN.get(name, (method,)) and (name != "processes" or gpu_count() > 1),
    }
    if name == "method":
        return gr.Dropdown(
            [(words, key) for key, (words, _) in METHOD_WORDS.items()], **common | {"info": method_info(method)}
        )
    if is_switch(name):
        return gr.Checkbox(**common)
    if "choices" in rules:
        return gr.Dropdown(list(rules["choices"]), **common)
    if name in OFFERED:
        return gr.Dropdown(suggestions(name), allow_custom_value=True, **common)
    if name == "labels":
        return labels_slider(common)
    ends = ENDS.get(name, (rules.get("low"), rules.get("high")))
    if kind is float and None not in ends:
        return gr.Slider(*ends, step=STEPS.get(name, 0.05), buttons=[], **common)
    if kind in (int, float) and not none:
        return gr.Number(min_width=90 if name in (*OWN, "trials") else 120, **common)
    # A number that may be left out is text too: an empty gr.Number turns into 0 when "More" is opened.
    return gr.Textbox(placeholder="automatic" if none else None, max_lines=1, min_width=120, **common)


def labels_slider(common: dict[str, Any]) -> gr.HTML:
    """Return the slider of the labels, whose value is a number of pictures, or ``None`` for all.

    It is no ``gr.Slider``: that has equal steps and a box with a number, and "all" is none.
    """
    stops = [{"value": stop, "words": "all" if stop is None else f"{stop:,}"} for stop in LABELS_KEPT]
    return gr.HTML(
        value=common["value"],
        html_template=render("labels", label=common["label"], info=common["info"], last=len(stops) - 1),
        js_on_load=f"distillery.labels({{ element, props, trigger, watch, stops: {json.dumps(stops)} }})",
        apply_default_css=False,
        elem_id=common["elem_id"],
        elem_classes="block kd-slider",
    )


def suggestions(name: str) -> list[str]:
    """Return known good values of a setting: those that its field names, and those of the presets."""
    known = [*FIELDS[name].metadata.get("suggestions", ()), *(preset_values(preset)[name] for preset in PRESETS)]
    return list(dict.fromkeys(known))


# --- Panels that follow the settings


def at_first() -> dict[str, Any]:
    """Return the first value of a panel that follows the settings: the sample's settings, and no visitor yet."""
    return {"values": [to_widget(name, value) for name, value in preset_values(SAMPLE).items()], "owner": ""}


def follow(panel: gr.HTML, live: gr.HTML, widgets: list[Component]) -> None:
    """Give ``panel`` the widgets' values and the visitor's token whenever one of them changes."""
    gr.on(
        [live.change, *(widget.change for widget in widgets)], None, [live, *widgets], panel,
        js="(live, ...values) => ({ owner: live?.owner ?? '', values })",
        api_visibility="private", queue=False, show_progress="hidden",
    )  # fmt: skip
