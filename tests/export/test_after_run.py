"""The export at the end of a run: in its report, never its failure; and what settings leave it out."""

import dataclasses
import json

import pytest

from kd.cli.screen import export_table, milliseconds, result_table
from kd.config import DistillConfig
from kd.distill import execute
from kd.errors import UserError
from kd.export import after_run, bundle, measure
from kd.export.after_run import export_after_run
from kd.export.bundle import FOLDER, Material, export_student, find_export
from kd.runs.queue import StopAsked
from kd.runs.run import Run, RunDeleted
from kd.runs.store import create_run
from kd.ui.result import result, sentence
from tests.support.runs import make_run


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 0.03)
    monkeypatch.setattr(measure, "BATCHES", (1, 8))


@pytest.fixture(scope="module")
def done(colours, teacher, tmp_path_factory) -> Run:
    """A run to its end."""
    config = DistillConfig(
        teacher=str(teacher), dataset=str(colours), student="resnet_8", image_size=32, epochs=1, batch_size=16, views=1,
        precision="fp32",
    )  # fmt: skip
    run = create_run(config, tmp_path_factory.mktemp("runs"), "token")
    execute(run)
    return run


def test_a_run_exports_at_its_end_and_its_report_has_the_main_figures(done):
    report, results = done.report(), find_export(done)
    onnx = report["onnx"]
    assert set(results["files"]) == set(bundle.FILES["onnx"])
    assert onnx["success"] and onnx["agreement"] == 1 and onnx["accuracy"] == report["student"]["accuracy"]
    assert onnx["speedup"] == results["speedup"] > 0
    assert onnx["teacher"]["latency_ms"]["threads"] == onnx["student"]["latency_ms"]["threads"] == 1
    assert done.last("result")["onnx"] == onnx
    assert not any("export" in note for note in report["notes"])
    said = [event for event in done.events() if event["event"] == "progress" and event["phase"] == "export"]
    assert said and done.events().index(said[-1]) < done.events().index(done.last("result"))


def test_an_export_of_the_run_scores_int8_too_against_the_answers_that_the_run_has_kept(done):
    found = export_student(done)
    assert found["pytorch"]["accuracy"] == done.report()["student"]["accuracy"]
    assert found["test_pictures"] == done.report()["data"]["test"]
    text = export_table(found)
    for name, one in found["files"].items():
        assert f"{name} " in text and f"{one['accuracy']:.2%}" in text
    assert "than its teacher" in text and milliseconds(found["teacher"]["latency_ms"]["one_thread"]["p50"]) in text


def test_tables_and_sentence_lead_with_onnx_runtime_as_deployed_then_pytorch(done):
    report = done.report()
    report["onnx"]["speedup"], report["speedup"] = 13.2, 1.1
    shown = result_table(report, report["agreement"])
    assert "13.2 times faster in ONNX Runtime, as deployed (1.1 times faster in PyTorch)" in shown
    assert shown.index("ms in ONNX Runtime") < shown.index("PyTorch ms p50")
    assert "13 times faster" in sentence(report)
    html = result(report)
    assert html.index("Latency in ONNX Runtime, as deployed") < html.index("Latency p50 in PyTorch")
    report["onnx"]["success"] = False
    assert "too few" in result(report) and "too few" in result_table(report, report["agreement"])
    del report["onnx"]["others"]  # as reports of before have it
    assert "too few. " in result(report) and "too few. " in result_table(report, report["agreement"])


def test_a_report_of_before_is_shown_as_it_was(done):
    report = done.report()
    del report["onnx"]
    for text in (result_table(report, report["agreement"]), result(report)):
        assert "ONNX" not in text and "as deployed" not in text and "in PyTorch" not in text


# --- What does not export by itself


def material(run: Run) -> Material:
    """Material that nothing can be made of."""
    return Material(run, None, None, None, {})


@pytest.mark.parametrize(
    "changes", [{"export": "no"}, {"export": "onnx", "teacher": "none"}], ids=["--export no", "labels alone"]
)
def test_a_run_that_is_not_to_export_does_not(small, tmp_path, changes):
    run = make_run(small, tmp_path, **changes)
    assert export_after_run(material(run), lambda done, of: None) is None
    assert not (run.path / FOLDER).exists()


def test_the_runs_of_sweeps_and_studies_do_not_export_and_results_of_studies_stay_valid(tmp_path):
    from kd.experiments import study
    from kd.experiments.grid import Grid
    from kd.experiments.sweep import create_sweep

    sweep = create_sweep(DistillConfig.preset("sample"), Grid(temperatures=[1, 2], lambdas=[0.5]), tmp_path, "token")
    assert sweep.make_run({"temperature": 1.0}).config().export == "no"
    (tmp_path / "study.json").write_text(json.dumps({"preset": "sample", "vary": {"one": {}}}))
    one = study.load_study(tmp_path / "study.json")
    assert one.config("one", 0).export == "no"
    before = study.compared_settings(one.asked("one", 0))
    assert "export" not in before
    assert study._has_current_settings(one, {"label": "one", "seed": 0, "settings": before})
    made = create_run(dataclasses.replace(one.config("one", 0), export="onnx"), tmp_path, "token")
    assert study._has_config(made, one.config("one", 0))  # a run of before this setting counts


# --- A failure is a warning


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (UserError("The student cannot be exported: it is odd."), "cannot be exported: it is odd."),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("whatever a library says"), "RuntimeError: whatever a library says"),
    ],
)
def test_an_export_that_fails_is_a_warning_of_the_run(run, monkeypatch, raised, words):
    def fails(*_):
        raise raised

    monkeypatch.setattr(after_run, "build", fails)
    answer = export_after_run(material(run), lambda done, of: None)
    assert list(answer) == ["warnings"] and words in answer["warnings"][0]
    assert answer["warnings"][0].startswith("The student was not exported to ONNX.")


@pytest.mark.parametrize("raised", [StopAsked(), RunDeleted("The folder is gone.")])
def test_a_stop_and_a_deleted_run_are_no_failures_of_the_export(run, monkeypatch, raised):
    def fails(*_):
        raise raised

    monkeypatch.setattr(after_run, "build", fails)
    with pytest.raises(type(raised)):
        export_after_run(material(run), lambda done, of: None)


def test_a_stop_during_the_export_is_obeyed_and_the_run_goes_on_from_there(small, tmp_path, monkeypatch):
    run = make_run(small, tmp_path, student="resnet_8", epochs=1, export="onnx")
    fill = bundle._fill

    def stopped(part, one, formats, progress):
        run.ask_to_stop()
        monkeypatch.setattr("kd.training.setup.PROGRESS_SECONDS", 0)
        return fill(part, one, formats, progress)

    monkeypatch.setattr(bundle, "_fill", stopped)
    execute(run)
    assert run.status() == "stopped" and run.report() is None and not (run.path / FOLDER).exists()
    monkeypatch.setattr(bundle, "_fill", fill)
    run.forget_stop()
    execute(run, resume=True)
    assert run.status() == "done" and run.report()["onnx"]["success"] and find_export(run)


def test_a_run_whose_export_fails_is_done_all_the_same_and_warns(small, tmp_path, monkeypatch):
    def fails(*_):
        raise UserError("The student cannot be exported: it is odd.")

    monkeypatch.setattr(after_run, "build", fails)
    run = make_run(small, tmp_path, student="resnet_8", epochs=1, export="onnx")
    execute(run)
    report = run.report()
    assert run.status() == "done" and report["onnx"] is None
    assert any("it is odd" in note for note in report["notes"])
