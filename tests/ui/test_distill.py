"""The Distill tab without a browser: what a preset, a recipe, a method or a student fills in."""

from types import SimpleNamespace

import gradio as gr

from kd.config import DistillConfig
from kd.ui import settings
from kd.ui.distill import on_make, on_method, on_models, on_preset, on_recipe, on_student


def test_a_method_shows_its_own_settings_and_fills_in_what_its_paper_sets():
    _, row, temperature, share, weight, *own = on_method("sample", "scratch", "dist")
    assert row["visible"] and (temperature["value"], share["value"], weight["value"]) == (1, 0.5, 2)
    shown = {name for name, update in zip(settings.OWN, own, strict=True) if update["visible"]}
    assert shown == {"dist_beta", "dist_gamma"}
    _, row, temperature, share, weight, *own = on_method("sample", "scratch", "kd")
    sample = DistillConfig.preset("sample", method="kd")
    filled = (temperature["value"], share["value"], weight["value"])
    assert not row["visible"] and filled == (sample.temperature, sample.lambda_, sample.weight)
    assert not any(update["visible"] for update in own)


def test_a_recipe_fills_in_its_settings_and_a_pretrained_student_has_its_own():
    filled = dict(zip(settings.SET_BY_RECIPE, on_recipe("custom", "guide", "kd"), strict=True))
    assert (filled["learning_rate"], filled["batch_size"], filled["heal"]) == (5e-5, 8, False)
    recipe, *values = on_student("google/mobilenet_v2_1.0_224", "custom", "scratch", "kd")
    assert recipe == "pretrained" and values == on_recipe("custom", "pretrained", "kd")
    assert on_student("mobilenet_v2_0.5", "custom", "scratch", "kd") == gr.skip()


def test_a_preset_sets_every_widget():
    *updates, row = on_preset("beans")
    assert len(updates) == len(settings.FIELDS) and not row["visible"]
    assert dict(zip(settings.FIELDS, updates, strict=True))["teacher"]["value"] == "merve/beans-vit-224"


def test_a_teacher_is_made_from_the_pictures_that_the_page_shows_and_as_it_treats_their_duplicates(monkeypatch):
    made = []
    monkeypatch.setattr("kd.ui.distill.start", lambda config, token: made.append(config) or SimpleNamespace(id="1"))
    monkeypatch.setattr(gr, "Info", lambda text: None)
    chosen = {name: settings.widget(name).value for name in settings.FIELDS}
    chosen |= {"duplicates": "keep", "test_fraction": 0.3, "teacher": "owner/base", "dataset": "owner/pictures"}
    on_make(None, None, *chosen.values())
    assert (made[0].duplicates, made[0].test_fraction, made[0].dataset) == ("keep", 0.3, "owner/pictures")


def test_one_line_says_who_learns_what_from_whom_and_calls_a_brought_dataset_by_its_name(monkeypatch):
    pets = SimpleNamespace(info=lambda: {"name": "Pets"})
    monkeypatch.setattr("kd.ui.distill.own_upload", lambda id, token: pets)
    said = on_models({"owner": ""}, "google/vit-base-patch16-224", "upload:2026-1", "resnet_8")["label"]
    assert said == "google/vit-base-patch16-224 → resnet_8 on Pets"
    assert on_models(None, None, "sample", "/runs/my-student/")["label"] == "? → my-student on sample"
