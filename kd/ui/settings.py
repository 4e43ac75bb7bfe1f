"""The widgets of a run's settings, made from ``DistillConfig``'s fields: their types, help and rules."""

import dataclasses
import re
from typing import Any, get_args

import gradio as gr
from gradio.components import Component

from kd.config import METHODS, PRESETS, RECIPES, SAMPLE, DistillConfig, public_name

OFFERED = ("teacher", "dataset", "student")
"""What is chosen among suggestions, or typed."""

LABELS = {
    "lambda": "Lambda",
    "dataset_config": "Dataset configuration",
    "seed": "Random seed",
    "ema": "Average of the weights (EMA)",
    "weight": "Weight of the method's loss",
    "baseline": "Also train without the teacher, to see whether it helps",
    "heal": "Heal the student",
    "dkd_alpha": "Alpha",
    "dkd_beta": "Beta",
    "dkd_warmup": "Warm-up",
    "dist_beta": "Beta",
    "dist_gamma": "Gamma",
}

HELP = {
    "teacher": "Hub id, folder, 'sample', run:ID",
    "dataset": "a Hub id, a folder, a file, or 'sample'",
    "label_map": "class=teacher class, …; else guessed by name",
    "student": "a name, a Hub id or a folder",
    "temperature": "higher is softer",
    "lambda": "the teacher's weight",
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
    "minutes": "sets the epochs: 2, 10, 30, …",
}
"""Where the command line's help is too long for the first screen."""

FINE_STEPS = {"ema": 0.001}
"""Of sliders that move by less than 0.05."""

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
"""Method -> its name, what it is and what came of it in the studies (``assets/studies``)."""

FIELDS = {public_name(field): field for field in dataclasses.fields(DistillConfig)}

OWN = {name: field.metadata["only"] for name, field in FIELDS.items() if "only" in field.metadata}
"""Settings that matter to some methods, and to which."""

SET_BY_METHOD = tuple(dict.fromkeys(name for values in METHODS.values() for name in values))

SET_BY_RECIPE = tuple(dict.fromkeys(name for values in RECIPES.values() for name in values))


def preset_values(preset: str) -> dict[str, Any]:
    """Every setting of a preset, by public name."""
    return DistillConfig.preset(preset).to_dict()


def values_of(names: tuple[str, ...], preset: str, recipe: str, method: str) -> list[Any]:
    """What choosing a recipe or a method fills in for the settings ``names``: what it sets, else the preset's values."""
    values = DistillConfig.preset(preset, recipe=recipe, method=method).to_dict()
    return [to_widget(name, values[name]) for name in names]


def method_info(method: str) -> str:
    """What a method is, and what comes with it."""
    values = ", ".join(f"{'T' if name == 'temperature' else name} {value:g}" for name, value in METHODS[method].items())
    return METHOD_WORDS[method][1] + (f". It sets {values}" if values else "")


def label_of(name: str) -> str:
    """What a setting is called on the page."""
    return LABELS.get(name, name.replace("_", " ").capitalize())


def on_page(text: str) -> str:
    """A message with the page's words for the command line's: a setting's label for its flag, Resume for that command."""
    text = re.sub(r"`python -m kd resume \S+`", "Resume", text)
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda flag: _label_for(flag[1].replace("-", "_")) or flag[0], text)


def _label_for(name: str) -> str | None:
    return f"“{label_of(name)}”" if name in FIELDS else None


def is_switch(name: str) -> bool:
    """Whether a setting is yes or no: a checkbox."""
    return set(FIELDS[name].metadata.get("choices", ())) == {"yes", "no"}


def to_widget(name: str, value: Any) -> Any:
    """A setting as its widget has it."""
    return value == "yes" if is_switch(name) else value


def from_widgets(values: tuple) -> DistillConfig:
    """The widgets' values, in the order of ``FIELDS``. Raises ``ValueError`` in words for a user."""
    switched = {True: "yes", False: "no"}
    named = dict(zip(FIELDS, values, strict=True))
    if not named["teacher"]:
        raise ValueError(
            "Choose a teacher that knows these classes: a Hub id, a folder or one of your runs. There is none? Choose a "
            "pretrained model to begin from, and Make a teacher."
        )
    return DistillConfig.from_dict(
        {name: switched.get(value, value) if is_switch(name) else value for name, value in named.items()}
    )


def widget(name: str, method: str = "kd") -> Component:
    """A widget for one setting: a switch, a slider between two ends, a choice, a number or a line of text. One that does
    not matter to ``method`` is not visible."""
    field = FIELDS[name]
    rules, help = field.metadata, HELP.get(name, field.metadata["help"]).removeprefix(f"{name}: ")
    kind, *none = get_args(field.type) or (field.type,)
    common = {
        "label": label_of(name),
        "info": help[:1].upper() + help[1:] or None,
        "value": to_widget(name, preset_values(SAMPLE)[name]),
        "elem_id": f"set-{name.replace('_', '-')}",
        "visible": method in OWN.get(name, (method,)),
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
    if kind is float and "low" in rules and "high" in rules:
        return gr.Slider(rules["low"], rules["high"], step=FINE_STEPS.get(name, 0.05), **common)
    if kind in (int, float) and not none:
        return gr.Number(min_width=90 if name in (*OWN, "trials") else 120, **common)
    # A number that may be left out is text too: an empty gr.Number turns into 0 when "More" is opened.
    return gr.Textbox(placeholder="automatic" if none else None, max_lines=1, min_width=120, **common)


def suggestions(name: str) -> list[str]:
    """Known good values of a setting: those its field names, and those of the presets."""
    known = [*FIELDS[name].metadata.get("suggestions", ()), *(preset_values(preset)[name] for preset in PRESETS)]
    return list(dict.fromkeys(known))


# --- What follows them


def at_first() -> dict[str, Any]:
    """What a panel that follows the settings begins with: the sample's, and no visitor yet."""
    return {"values": [to_widget(name, value) for name, value in preset_values(SAMPLE).items()], "owner": ""}


def follow(panel: gr.HTML, live: gr.HTML, widgets: list[Component]) -> None:
    """Tell ``panel`` the widgets' values and the visitor's token, whenever one changes."""
    gr.on(
        [live.change, *(widget.change for widget in widgets)], None, [live, *widgets], panel,
        js="(live, ...values) => ({ owner: live?.owner ?? '', values })",
        api_visibility="private", queue=False, show_progress="hidden",
    )  # fmt: skip
