"""Widgets from settings, and messages in the page's own words."""

import gradio as gr
import pytest

from kd.config import METHODS, PRESETS, RECIPES, DistillConfig
from kd.errors import UserError
from kd.ui import access, settings


def test_every_method_has_words_and_every_setting_a_widget_that_gives_it_back():
    assert list(settings.METHOD_WORDS) == list(METHODS)
    values = tuple(settings.widget(name).value for name in settings.FIELDS)
    assert settings.from_widgets(values) == DistillConfig.preset("sample")


def test_the_baseline_is_a_switch():
    values = {name: settings.widget(name).value for name in settings.FIELDS}
    assert values["baseline"] is (settings.preset_values("sample")["baseline"] == "yes")
    for on, word in ((True, "yes"), (False, "no")):
        assert settings.from_widgets(tuple((values | {"baseline": on}).values())).baseline == word


def test_without_a_teacher_there_is_no_baseline_whatever_the_preset_has_ticked():
    values = {name: settings.widget(name).value for name in settings.FIELDS} | {"teacher": "none", "baseline": True}
    made = settings.from_widgets(tuple(values.values()))
    assert made.teacher == "none" and made.baseline == "no"


@pytest.mark.parametrize("kept", settings.LABELS_KEPT)
def test_the_labels_slider_delivers_a_number_of_pictures_or_none_for_all(kept):
    values = {name: settings.widget(name).value for name in settings.FIELDS} | {"labels": kept}
    assert settings.from_widgets(tuple(values.values())).labels == kept


def test_the_temperature_s_slider_has_room_for_what_every_method_and_preset_sets():
    low, high = settings.ENDS["temperature"]
    set_by = [
        values["temperature"]
        for values in (*METHODS.values(), *RECIPES.values(), *PRESETS.values())
        if "temperature" in values
    ]
    assert set_by and all(low <= one <= high and one % settings.STEPS["temperature"] == 0 for one in set_by)


def test_what_is_said_of_flags_and_commands_is_said_of_the_page():
    said = settings.on_page(
        "Name it with --label-column, or `python -m kd resume 2026-1`. Not --nobody, nor a -- dash."
    )
    assert said == "Name it with “Label column”, or Resume. Not --nobody, nor a -- dash."
    assert settings.on_page("--dataset-config and --dataset") == "“Dataset configuration” and “Dataset”"
    with pytest.raises(gr.Error, match="“Label map”"), access.kind_errors():
        raise UserError("Say it with a label map (--label-map).")
