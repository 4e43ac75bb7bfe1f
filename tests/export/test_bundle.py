"""The export of a run: its files and what is measured of them; whole or not at all; bad input in words."""

import errno
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from kd.config import DistillConfig
from kd.distill import execute
from kd.errors import UserError
from kd.export import bundle, measure
from kd.export.bundle import FOLDER, check_formats, export_student, find_export
from kd.runs.run import Run
from kd.runs.store import create_run
from kd.system.browser_runtime import SCRIPT, WASM, browser_runtime
from tests.support import toys

WHOLE = {
    "README.md", "config.json", "model.safetensors", "onnx/model.onnx", "onnx/model_quantized.onnx", "predict.py",
    "preprocessor_config.json", "results.json", "student.onnx", "student_int8.onnx",
}  # fmt: skip
# The page that runs the student, where the engine for it was installed.
WHOLE |= {"demo.html", *(f"runtime/{name}" for name in (SCRIPT, WASM, "LICENSE.txt"))} if browser_runtime() else set()


@pytest.fixture(scope="module", autouse=True)
def short():
    """Timings of a moment: what they say is not tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SECONDS", 0.03)
        patch.setattr(measure, "BATCHES", (1, 8))
        yield


@pytest.fixture(scope="module")
def made(colours, teacher, tmp_path_factory) -> Run:
    """A run that was stopped with a student, a good one: the teacher's own weights."""
    config = DistillConfig(teacher=str(teacher), dataset=str(colours), image_size=32)
    run = create_run(config, tmp_path_factory.mktemp("runs"), "token")
    shutil.copytree(teacher, run.path / "student")
    with run.work():
        run.close("stopped", message="Stopped.")
    return run


@pytest.fixture(scope="module")
def found(made) -> dict:
    """What was measured of its export."""
    return export_student(made)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def copy_of(run: Run, folder: Path) -> Run:
    shutil.copytree(run.path, folder / run.id)
    return Run(folder / run.id)


# --- What is in it


def test_the_folder_has_every_file_and_no_other_and_nothing_is_left_beside_it(made, found):
    assert files_in(made.path / FOLDER) == WHOLE
    assert not list(made.path.glob(".export-*"))
    assert found["folder"] == str(made.path / FOLDER) and find_export(made)["run"] == made.id


def test_every_file_is_scored_on_the_whole_test_split_and_timed(made, found):
    assert found["test_pictures"] == 12 and set(found["files"]) == set(bundle.FILES["onnx"] + bundle.FILES["int8"])
    for name, one in found["files"].items():
        assert one["success"] and one["agreement"] == 1 and one["accuracy"] == found["pytorch"]["accuracy"] > 0.9
        assert one["difference"] < (1e-4 if one["kind"] == "fp32" else 1), name
        assert one["megabytes"] == pytest.approx((made.path / FOLDER / name).stat().st_size / 1e6, abs=1e-3)
        for latency in one["latency_ms"].values():
            assert 0 < latency["p50"] <= latency["p95"]
        assert ("images_per_second" in one) == name.startswith("onnx/")
    assert found["files"]["student.onnx"]["latency_ms"]["one_thread"]["threads"] == 1


def test_the_teacher_is_timed_in_the_same_runtime_and_not_kept(made, found):
    theirs = found["teacher"]["latency_ms"]["one_thread"]["p50"]
    assert found["speedup"] == pytest.approx(
        theirs / found["files"]["onnx/model.onnx"]["latency_ms"]["one_thread"]["p50"], abs=0.01
    )
    assert not [name for name in files_in(made.path) if "teacher" in name]


def test_transformers_loads_the_folder_as_it_is(made, found):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder = made.path / FOLDER
    assert AutoModelForImageClassification.from_pretrained(folder).config.id2label[0] == toys.CLASSES[0]
    assert AutoImageProcessor.from_pretrained(folder).size == {"height": 32, "width": 32}


def test_the_card_says_what_was_measured_how_it_was_made_and_how_it_is_used(made, found):
    text = (made.path / FOLDER / "README.md").read_text()
    head = text.split("---")[1]
    assert "library_name: transformers" in head and "knowledge-distillation" in head and "base_model" not in head
    for words in ("`red brick`", "| `student_int8.onnx` | 100.00% |", "python predict.py", "@huggingface/transformers",
                  "temperature 5.0", "## Limits"):  # fmt: skip
        assert words in text


# --- predict.py


def predict(folder: Path, picture: Path, *more: str) -> str:
    """What ``predict.py`` of an export prints, from another folder, with nothing of ours on the path."""
    command = [sys.executable, "-I", folder / "predict.py", picture, *more]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", timeout=60).stdout


def test_predict_is_short_needs_three_packages_and_gives_the_five_most_likely_classes(made, found, colours):
    source = (made.path / FOLDER / "predict.py").read_text()
    assert len(source.splitlines()) < 25 and "kd" not in source.split() and "torch" not in source
    for name in toys.CLASSES:
        picture = next((colours / name).iterdir())
        for file in ("student.onnx", "student_int8.onnx"):
            first, *rest = predict(made.path / FOLDER, picture, file).splitlines()
            assert first.split("  ")[-1] == name and len(rest) == 2


def test_predict_turns_a_phone_s_picture_upright_and_puts_what_is_transparent_on_white(made, found, tmp_path):
    half = Image.new("RGB", (60, 40), toys.COLOURS["red brick"])
    half.paste(toys.COLOURS["blue sky"], (0, 0, 30, 40))
    half.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 8  # a viewer turns it by 90 degrees
    half.save(tmp_path / "turned.png", exif=exif)
    clear = Image.new("RGBA", (30, 30), (*toys.COLOURS["red brick"], 0))
    clear.save(tmp_path / "clear.png")
    Image.new("RGB", (30, 30), "white").save(tmp_path / "white.png")
    folder = made.path / FOLDER
    assert predict(folder, tmp_path / "turned.png") == predict(folder, tmp_path / "upright.png")
    assert predict(folder, tmp_path / "clear.png") == predict(folder, tmp_path / "white.png")


# --- A file that is not the same model


def test_a_file_that_answers_otherwise_is_marked_and_is_no_success(made, found, tmp_path, monkeypatch):
    run = copy_of(made, tmp_path)
    quantize = importlib.import_module("kd.export.quantize")
    real = quantize.quantize
    # Calibrated on pictures that are all of one value, every other value is cut off.
    monkeypatch.setattr(
        quantize, "quantize", lambda source, target, inputs: real(source, target, [0 * next(iter(inputs))])
    )
    again = export_student(run)
    marked, card = again["files"]["onnx/model_quantized.onnx"], (run.path / FOLDER / "README.md").read_text()
    assert not marked["success"] and marked["others"].endswith("Try it on pictures of your own before you use it.")
    assert "`onnx/model_quantized.onnx` does not reach its mark" in card and marked["others"] in card


@pytest.mark.parametrize(
    ("found", "others"),
    [
        ([[2.0, 1.0], [0.0, 3.0]], ""),
        ([[2.0, 1.0], [3.0, 0.0]], "It gives another class on 1 picture, where the student's first two classes in PyTorch are "
         "up to 90.5 points apart. Try it on pictures of your own before you use it."),
        ([[1.0, 2.0], [3.0, 0.0]], "It gives another class on 2 pictures; there the student's first two classes in PyTorch are "
         "up to 90.5 points apart. Try it on pictures of your own before you use it."),
    ],
)  # fmt: skip
def test_where_a_file_gives_another_class_it_says_how_sure_the_student_was(found, others):
    answers = {"logits": np.array([[2.0, 1.0], [0.0, 3.0]]), "labels": np.array([0, 1])}
    assert measure._scores(np.array(found), "pixel_values", answers)["others"] == others


def test_near_ties_are_called_so():
    answers = {"logits": np.array([[2.0, 1.9], [0.0, 3.0]]), "labels": np.array([0, 1])}
    said = measure._scores(np.array([[1.9, 2.0], [0.0, 3.0]]), "pixel_values", answers)["others"]
    assert "up to 5.0 points apart. Those are near ties" in said


def test_scores_are_of_what_a_file_answers(made, found, tmp_path):
    """A student whose last layer has its outputs in another order agrees with itself never, or by chance."""
    model = onnx.load(made.path / FOLDER / "onnx" / "model.onnx")
    bias = next(one for one in model.graph.initializer if one.dims == [3])
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 100
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "off.onnx")
    material = bundle.load_material(made, lambda done, of: None)
    processor = toys.processor()
    scores = measure.score_files(
        {"off": tmp_path / "off.onnx"}, processor, material.test, material.answers, lambda done, of: None
    )["off"]
    share = (material.answers["logits"].argmax(-1) == 0).mean()
    assert scores["agreement"] == pytest.approx(share, abs=1e-5) and scores["difference"] == pytest.approx(100, abs=0.1)


# --- Whole or not at all


class Killed(BaseException):
    """The process ends."""


@pytest.mark.parametrize("after", [0, *(pytest.param(nth, marks=pytest.mark.slow) for nth in (1, 2)), 3])
def test_an_export_that_is_ended_leaves_the_one_before_as_it_was(made, found, tmp_path, after):
    run = copy_of(made, tmp_path)
    before = find_export(run)
    count = 0

    def progress(done: int, of: int) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise Killed

    with pytest.raises(Killed):
        export_student(run, progress=progress)
    assert find_export(run) == before and files_in(run.path / FOLDER) == WHOLE
    assert not list(run.path.glob(".export-*"))


def test_a_full_disk_in_the_middle_is_said_and_leaves_nothing_half_written(made, tmp_path, monkeypatch):
    run = copy_of(made, tmp_path)
    shutil.rmtree(run.path / FOLDER, ignore_errors=True)
    save = onnx.save

    def full(model, path, *rest, **more):
        if "student" in Path(path).name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(model, path, *rest, **more)

    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(UserError, match=r"The disk is full: .* Free some space, then export again"):
        export_student(run)
    assert find_export(run) is None and not (run.path / FOLDER).exists() and not list(run.path.glob(".export-*"))


def test_what_a_killed_export_has_left_is_removed_by_the_next(made, tmp_path):
    run = copy_of(made, tmp_path)
    (run.path / ".export-dead").mkdir()
    (run.path / ".export-dead" / "student.onnx").write_bytes(b"half")
    export_student(run, "onnx")
    assert not list(run.path.glob(".export-*"))
    assert files_in(run.path / FOLDER) == WHOLE - {"onnx/model_quantized.onnx", "student_int8.onnx"}


def test_an_export_of_an_earlier_student_is_not_offered(made, found, tmp_path):
    run = copy_of(made, tmp_path)
    assert find_export(run)
    weights = run.path / "student" / "model.safetensors"
    later = (run.path / FOLDER / "results.json").stat().st_mtime + 5
    os.utime(weights, (later, later))
    assert find_export(run)  # a copy of a run has files of other times
    weights.write_bytes(weights.read_bytes()[::-1])
    os.utime(weights, (later, later))
    assert find_export(run) is None
    weights.write_bytes(b"shorter")
    os.utime(weights, (later - 10, later - 10))
    assert find_export(run) is None


def test_two_exports_of_a_run_do_not_go_on_at_the_same_time(made, found):
    with bundle.hold_export(made), pytest.raises(UserError, match="is being exported or pushed by another process"):
        export_student(made)


# --- Copies


def test_a_copy_is_a_folder_or_a_zip(made, found, tmp_path):
    bundle.copy_export(made, tmp_path / "copy")
    assert files_in(tmp_path / "copy") == WHOLE
    bundle.copy_export(made, tmp_path / "copy.zip")
    names = zipfile.ZipFile(tmp_path / "copy.zip").namelist()
    assert {name.split("/", 1)[1] for name in names} == WHOLE and len({name.split("/")[0] for name in names}) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "copy.zip"}


def test_a_copy_to_where_something_is_or_into_no_folder_is_refused_before_anything_is_done(made, tmp_path):
    (tmp_path / "there.zip").touch()
    for out, words in (("there.zip", "exists already"), ("no/such/folder", "there is no folder")):
        with pytest.raises(UserError, match=words):
            export_student(made, out=tmp_path / out)


# --- Bad input


def test_a_run_without_a_student_has_nothing_to_export(run):
    with pytest.raises(UserError, match="has no student, so there is nothing to export"):
        export_student(run)


def test_a_run_at_work_is_not_exported(made):
    with made.work(), pytest.raises(UserError, match=r"is at work. Export its student once it is done or stopped"):
        export_student(made)


def test_without_onnxruntime_the_command_that_installs_it_is_named(made, monkeypatch):
    monkeypatch.setattr(
        bundle, "find_spec", lambda name: None if name == "onnxruntime" else importlib.util.find_spec(name)
    )
    with pytest.raises(UserError, match="Install it with: pip install onnxruntime"):
        export_student(made)


def test_a_student_whose_processor_no_graph_can_do_cannot_be_exported_and_says_why(made, tmp_path):
    run = copy_of(made, tmp_path)
    path = run.path / "student" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "resample": 1}))
    with pytest.raises(UserError, match=r"The student cannot be exported: its ViTImageProcessor.* the filter Lanczos"):
        export_student(run)


def test_pictures_that_have_changed_since_are_refused(made, tmp_path):
    run = copy_of(made, tmp_path)
    with run.work():
        run.append("data", test_pictures="others", labels="dataset")
    with pytest.raises(UserError, match="has other test pictures now"):
        export_student(run)


def test_a_teacher_that_is_gone_is_not_timed_and_the_export_says_so(made, tmp_path):
    run = copy_of(made, tmp_path)
    settings = run.settings()
    settings["config"]["teacher"] = str(tmp_path / "20260101-000000000000-0000" / "student")
    (run.path / "config.json").write_text(json.dumps(settings))
    found = export_student(run, "onnx")
    assert found["teacher"] is None and found["speedup"] is None
    assert "The teacher is not timed: it was the student of run 20260101" in found["notes"][0]
    assert found["notes"][0] in (run.path / FOLDER / "README.md").read_text()


@pytest.mark.parametrize(
    ("to", "formats"), [("onnx", ("onnx",)), ("int8", ("onnx", "int8")), (" int8 , onnx", ("onnx", "int8"))]
)
def test_onnx_is_always_among_the_formats(to, formats):
    assert check_formats(to) == formats
    with pytest.raises(UserError, match=r"no format 'fp16' to export to. The formats are onnx, int8"):
        check_formats(f"{to},fp16")


def test_whatever_names_hold_the_card_stays_a_card():
    from kd.export.card import as_code

    assert as_code("a`b|c\nd <img src=x>") == "`a'b/c d <img src=x>`"


def test_of_a_stopped_run_without_labels_the_teachers_answers_are_what_it_is_compared_with(colours, teacher, tmp_path):
    heap = tmp_path / "heap"
    heap.mkdir()
    for nth, picture in enumerate(sorted(colours.rglob("*.png"))):
        shutil.copyfile(picture, heap / f"{nth}.png")
    settings = {"teacher": str(teacher), "dataset": str(heap), "student": "resnet_8", "image_size": 32, "epochs": 50,
                "batch_size": 16, "views": 1, "precision": "fp32"}  # fmt: skip
    run = create_run(DistillConfig.from_dict(settings), tmp_path / "runs", "t")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kd.training.callback.RunCallback.on_step_begin", lambda *_, **__: run.ask_to_stop())
        execute(run)
    assert run.status() == "stopped"
    found = export_student(run, "onnx")
    assert found["labels"] == "teacher" and found["pytorch"]["accuracy"] < 0.9  # one step: it cannot know them all
    text = (run.path / FOLDER / "README.md").read_text()
    assert "stopped in epoch 1 of 50" in text and "agreement with the teacher" in text
