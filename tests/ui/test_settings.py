"""The page's parts without a browser: widgets from settings, results and analyses as HTML, the teacher's answers."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import gradio as gr
import pytest
from PIL import Image

from kd.config import METHODS, DistillConfig
from kd.distill import distill
from kd.errors import UserError
from kd.runs.store import create_run, delete_dataset, local_owner, lost_teacher
from kd.system.ids import new_id
from kd.ui import access, compare, dark_knowledge, settings, theme
from kd.ui.disagreement import analysis, picture
from kd.ui.distill import on_make, on_method, on_preset, on_recipe, on_student
from kd.ui.page import blocked_paths, to_dataset
from kd.ui.progress import Summary
from kd.ui.result import result, seeds_table

EVIL = "<img src=x onerror=alert(1)>"


def report(seeds: int = 1, baseline: bool = True) -> dict:
    """What a run that is done has measured."""
    cost = {"parameters": 2e6, "megabytes": 8.0, "flops": 4e6}
    latency = {"p50": 1.0, "p95": 2.0, "dtype": "fp32", "device": "cpu", "threads": 1, "n": 50}
    side = {"accuracy": 0.9, "f1": 0.9, **cost, "latency_ms": latency}
    arms = ("distilled", "baseline") if baseline else ("distilled",)
    trials = [{"arm": arm, "seed": seed, "accuracy": 0.8 + 0.01 * seed - 0.05 * (arm == "baseline")} for seed in range(seeds) for arm in arms]  # fmt: skip
    answer = {"answer": "helps", "sentence": f"Distillation helps {EVIL}"}
    return {
        "teacher": side, "student": side, "agreement": 0.9, "size_ratio": 1.0, "speedup": 1.0, "trials": trials,
        "baseline": {"accuracy": 0.75, "f1": 0.7, "agreement": 0.7} if baseline else None,
        "verdict": answer if baseline else None,
    }  # fmt: skip


def test_the_page_is_built_without_torch_transformers_or_what_a_login_needs():
    code = "import sys; from kd.ui import build; build(); print([m for m in ('torch', 'transformers', 'authlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_runs_that_are_kept_among_the_uploads_are_not_served(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    for folder, blocked in (("runs", False), ("uploads/runs", True), (".", False)):
        monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path / folder))
        assert blocked_paths() == ([str(tmp_path / folder)] if blocked else [])


# --- Settings


def test_every_method_has_words_and_every_setting_a_widget_that_gives_it_back():
    assert list(settings.METHOD_WORDS) == list(METHODS)
    values = tuple(settings.widget(name).value for name in settings.FIELDS)
    assert settings.from_widgets(values) == DistillConfig.preset("sample")


def test_with_one_s_own_pictures_the_teacher_is_still_to_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    folder = tmp_path / ".datasets" / new_id(0)
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"name": "Mushrooms", "owner": "", "pictures": {}}))
    _, preset, *updates, _ = to_dataset(None, SimpleNamespace(dataset=folder.name))
    chosen = {name: update["value"] for name, update in zip(settings.FIELDS, updates, strict=True)}
    assert preset == "custom" and chosen["dataset"] == f"upload:{folder.name}" and chosen["teacher"] is None
    with pytest.raises(ValueError, match="Choose a teacher that knows these classes"):
        settings.from_widgets(tuple(chosen.values()))


def test_the_baseline_is_a_switch():
    values = {name: settings.widget(name).value for name in settings.FIELDS}
    assert values["baseline"] is False
    assert settings.from_widgets(tuple((values | {"baseline": True}).values())).baseline == "yes"


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


# --- A run's line and its result


def test_a_run_of_several_trainings_says_which_and_keeps_its_own_students_accuracy():
    def training(nth: int, arm: str) -> dict:
        return {"event": "training", "epochs": 2, "steps": 10, "step": 0, "arm": arm, "seed": 0, "nth": nth, "of": 4}

    events = [
        training(1, "distilled"),
        {"event": "eval", "accuracy": 0.8, "agreement": 0.9},
        {"event": "progress", "phase": "test: student", "done": 100, "of": 2000},
        training(2, "baseline"),
        {"event": "eval", "accuracy": 0.1, "agreement": 0.1},
    ]
    found = Summary(lifecycle="started")
    for event in events:
        found = found.after(event)
    assert found.line("running")[0] == "Training 2 of 4, without the teacher, epoch 1 of 2"
    assert found.accuracy == 0.8
    found = found.after({"event": "arm", "arm": "baseline", "seed": 0, "validation": 0.3, "kept": False})
    assert found.accuracy == 0.8
    found = found.after({"event": "arm", "arm": "distilled", "seed": 1, "validation": 0.9, "kept": True})
    assert found.accuracy == 0.9


def test_a_teacher_is_made_from_the_pictures_that_the_page_shows_and_as_it_treats_their_duplicates(monkeypatch):
    made = []
    monkeypatch.setattr("kd.ui.distill.start", lambda config, token: made.append(config) or SimpleNamespace(id="1"))
    monkeypatch.setattr(gr, "Info", lambda text: None)
    chosen = {name: settings.widget(name).value for name in settings.FIELDS}
    chosen |= {"duplicates": "keep", "test_fraction": 0.3, "teacher": "owner/base", "dataset": "owner/pictures"}
    on_make(None, None, *chosen.values())
    assert (made[0].duplicates, made[0].test_fraction, made[0].dataset) == ("keep", 0.3, "owner/pictures")


def test_a_run_that_waits_says_its_place_and_how_long_where_that_is_known():
    told = {"event": "queued", "time": time.time(), "place": 2, "device": "cpu"}
    waits = Summary().after({**told, "wait": 182})
    assert waits.line("queued")[0] == "Waiting for the CPU: place 2 in the queue, about 3 min"
    for unknown in (told, {**told, "time": told["time"] - 500, "wait": 182}):
        assert Summary().after(unknown).line("queued")[0] == "Waiting for the CPU: place 2 in the queue"


def test_a_verdict_comes_first_with_a_sign_and_its_words_escaped():
    text = result(report())
    assert text.startswith('<p class="kd-verdict kd-helps"><span class="kd-mark" aria-hidden="true">▲')
    assert EVIL not in text and "75.00%" in text


def test_without_a_baseline_there_is_no_verdict():
    text = result(report(baseline=False))
    assert "kd-verdict" not in text and "without the teacher" not in text
    assert "verdict" not in result({k: v for k, v in report().items() if k not in ("trials", "verdict")})


def test_several_seeds_are_a_table_with_their_differences_and_mean():
    text = seeds_table(report(seeds=3))
    assert text.count("+5.00 points") == 4 and "Mean" in text and "81.00%" in text
    alone = seeds_table(report(seeds=3, baseline=False))
    assert "Difference" not in alone and "81.00%" in alone
    assert not seeds_table(report(seeds=1))


# --- An analysis


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    made = create_run(DistillConfig(), tmp_path, local_owner(tmp_path))
    made.append("done")
    return made


def found() -> dict:
    """An analysis of two classes, one picture."""
    side = {"confusion": [[1, 1], [0, 2]], "f1": [0.7, 0.8], "calibration": {"ece": 0.1, "confidence": [0.9], "accuracy": [0.75], "count": [4]}}  # fmt: skip
    top = [{"label": EVIL, "confidence": 0.9}, {"label": "sky", "confidence": 0.1}]
    row = {"place": 0, "divergence": 0.5, "truth": EVIL, "teacher": top, "student": top[::-1], "picture": "gallery/0.webp"}  # fmt: skip
    lost = [{"label": EVIL, "points": 12.0}]
    return {"classes": [EVIL, "sky"], "teacher": side, "student": side, "lost_most": lost, "disagreements": [row]}


def test_class_names_are_text_in_an_analysis(run):
    (run.path / "analysis.json").write_text(json.dumps(found()))
    answer = analysis({"run": run.id})
    assert "<img src=x" not in json.dumps(answer) and "&lt;img" in answer["html"]
    assert "Only the teacher is right" in answer["html"] and "12.0" in answer["html"]
    assert "mostly too sure" in answer["html"]


def test_an_older_run_says_that_it_kept_nothing(run):
    assert "Distill once more" in analysis({"run": run.id})["problem"]


def test_a_gallery_shows_its_own_pictures_and_no_more_than_fit(run, monkeypatch):
    (run.path / "gallery").mkdir()
    Image.new("RGB", (8, 8)).save(run.path / "gallery" / "0.webp")
    row = found()["disagreements"][0]
    assert picture(row, run, 10_000)[0].startswith("data:image/webp;base64,")
    assert picture(row, run, 10) == ("", 0)
    for name in ("../config.json", "gallery/../../x.webp", "gallery/9.webp"):
        assert picture({"picture": name}, run, 10_000) == ("", 0)


# --- Words


def test_what_is_said_of_flags_and_commands_is_said_of_the_page():
    said = settings.on_page(
        "Name it with --label-column, or `python -m kd resume 2026-1`. Not --nobody, nor a -- dash."
    )
    assert said == "Name it with “Label column”, or Resume. Not --nobody, nor a -- dash."
    with pytest.raises(gr.Error, match="“Label map”"), access.kind_errors():
        raise UserError("Say it with a label map (--label-map).")


# --- Dark knowledge


def test_a_teacher_is_asked_once_for_a_picture(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "kd.ui.dark_knowledge.ask", lambda says, name, path: asked.append(name) or (["Coat", "Bag"], [2.0, 1.0])
    )
    dark_knowledge._asked.cache_clear()
    coat = next(nth for nth, path in enumerate(theme.EXAMPLES) if path.stem == "coat-1")
    for _ in range(2):
        answer = dark_knowledge.teacher_says({"teacher": "sample", "example": coat})
    assert asked == ["sample"] and answer["labelled"] and answer["label"] == 0
    assert len(answer["sentences"]) == len(dark_knowledge.STOPS) and "Coat" in answer["sentences"][1]
    dark_knowledge._asked.cache_clear()


def test_a_label_that_the_teacher_does_not_know_is_replaced_by_its_first_choice(monkeypatch):
    monkeypatch.setattr("kd.ui.dark_knowledge.ask", lambda says, name, path: (["cat", "dog"], [1.0, 2.0]))
    dark_knowledge._asked.cache_clear()
    plain = [
        dark_knowledge.teacher_says({"teacher": "sample", "example": 0, "method": name})["logits"]
        for name in ("kd", "kd+std")
    ]
    assert plain[0] == [1.0, 2.0] and plain[1] == pytest.approx([-(0.5**0.5), 0.5**0.5])
    answer = dark_knowledge.teacher_says({"teacher": "sample", "example": 0})
    assert not answer["labelled"] and answer["label"] == 1
    dark_knowledge._asked.cache_clear()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"teacher": "", "example": 0}, "teacher is ''"),
        ({"teacher": {"a": 1}, "example": 0}, "teacher is {'a': 1}"),
        ({"teacher": "sample", "path": "/etc/hostname"}, "must be uploaded"),
        ({"teacher": "sample", "example": 99}, "must be uploaded"),
        ({"teacher": "/tmp", "example": 0}, "has no config.json"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(asked, words):
    assert words in dark_knowledge.teacher_says(asked)["problem"]


def test_on_a_shared_server_a_teacher_is_no_path(monkeypatch, teacher):
    monkeypatch.setenv("KD_SHARED", "1")
    assert "a path" in dark_knowledge.teacher_says({"teacher": str(teacher), "example": 0})["problem"]


def test_on_a_shared_server_only_an_own_run_can_teach(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_SHARED", "1")
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    mine, theirs = access.new_token(), access.new_token()
    run = create_run(DistillConfig(), tmp_path, mine)
    (run.path / "student").mkdir()
    (run.path / "student" / "config.json").touch()
    run.close("done")
    asked = DistillConfig(teacher=f"run:{run.id}")
    assert access.with_own(asked, mine).teacher == str(run.path / "student")
    for config, token in ((asked, theirs), (asked, ""), (DistillConfig(teacher="run:last"), mine)):
        with pytest.raises(UserError, match="among yours"):
            access.with_own(config, token)
    begun = DistillConfig(teacher=str(run.path / "student"))
    with pytest.raises(UserError, match="a path"):
        access.check_names(begun)
    assert "is not asked here" in dark_knowledge.teacher_says({"teacher": asked.teacher, "example": 0})["problem"]


def test_an_archive_is_no_dataset_before_it_is_imported(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"photos.zip is an archive.*Bring it in Pictures"):
        access.with_own(DistillConfig(dataset=str(tmp_path / "photos.zip")), "")
    with pytest.raises(UserError, match="Bring it in Pictures"):
        distill(DistillConfig(dataset=str(tmp_path / "photos.zip")), tmp_path)


def test_a_teacher_whose_run_was_deleted_is_said_to_be_gone_and_what_still_works(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    first = create_run(DistillConfig(), tmp_path, local_owner(tmp_path))
    (first.path / "student").mkdir()
    (first.path / "student" / "config.json").write_text("{}")
    first.close("done")
    second = create_run(DistillConfig(teacher=f"run:{first.id}"), tmp_path, local_owner(tmp_path))
    second.close("done")
    delete_dataset(first)
    with pytest.raises(
        UserError, match=rf"student of run {first.id}, .* deleted.*student alone still works.*distil from"
    ):
        compare.side_by_side(second, [str(theme.EXAMPLES[0])])
    kept = second.config().teacher
    for teacher in (f"run:{first.id}", kept):
        said = dark_knowledge.teacher_says({"teacher": teacher, "example": 0})["problem"]
        assert first.id in said and "hoose another teacher" in said and "stay as they are" in said
    assert "no such folder" not in said and lost_teacher("sample") is lost_teacher("/no/student") is None


def test_a_wait_for_the_hub_and_a_death_are_said_in_the_run_s_line():
    found = Summary().after({"event": "started", "oom_kills": 0})
    found = found.after({"event": "hub", "message": "The Hub is busy; trying again in 8 s."})
    assert found.line("running") == ("The Hub is busy; trying again in 8 s.", "") and found.share() == 0.0
    assert (
        "It was killed, or the machine went down" in found.line("died")[0] or "want of memory" in found.line("died")[0]
    )
    assert "reading" in found.after({"event": "progress", "phase": "reading", "done": 1, "of": 4}).line("running")
    assert found.after({"event": "progress", "phase": "pace", "done": 93, "of": 100}).line("running")[1] == "93%"
