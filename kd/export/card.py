"""Write the model card of an export: what the student is, how it was made, what was measured, how to use it."""

import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kd.config import NO_TEACHER, SAMPLE, STUDENT_NAMES, DistillConfig
from kd.data.library.store import short_name
from kd.runs.run import Run

# How many classes a card lists by name.
MOST_CLASSES = 50

# By this tag in its card a repository is known to be one of ours.
OURS = "distillery"

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Published:
    """Where a card is to be read on the Hub, and the ``license`` (its id there) that the user has given, if any."""

    repo: str
    license: str = ""


def write_card(path: Path, run: Run, results: dict[str, Any]) -> None:
    """Write ``README.md`` from what an export has measured (``results.json``)."""
    path.write_text(card(run, results, has_demo=(path.parent / "demo.html").exists()), encoding="utf-8")


def card(run: Run, results: dict[str, Any], has_demo: bool = False, published: Published | None = None) -> str:
    """Return the model card in Markdown; its head is metadata in YAML, as the Hub takes it.

    Args:
        run: whose student it is of.
        results: what its export has measured, with ``files`` empty where there is none.
        has_demo: whether ``demo.html`` is among the files.
        published: where it is to be read, if not beside the files of an export.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = as_code
    config, report = run.config(), run.report()
    step, training = run.last("step"), run.last("training")
    stopped = f"stopped in epoch {math.ceil(step['epoch'])} of {training['epochs']}" if step and not report else ""
    return environment.get_template("README.md").render(
        head=Markup(metadata(config, results, report, published)),
        config=config,
        results=results,
        report=report,
        demo=has_demo,
        stopped=stopped,
        published=published,
        place=published.repo if published else "path/to/this/folder",
        teacher=None if config.teacher == NO_TEACHER else shown_name(config.teacher, "teacher"),
        dataset=shown_name(config.dataset, "dataset"),
        student=short_name(config.student),
        command=command_of(config),
        is_local=any(one.startswith("path/to/") for one in shlex.split(command_of(config))),
        classes=results["classes"][:MOST_CLASSES],
        more=max(0, len(results["classes"]) - MOST_CLASSES),
        models=model_rows(config, results, report),
        rows=table_rows(results),
        failed=[name for name, one in results["files"].items() if not one["success"]],
    )


def as_code(text: Any) -> str:
    """Return text as Markdown's code, on one line: names come from users and may hold anything."""
    return f"`{' '.join(str(text).replace('`', chr(39)).replace('|', '/').split())}`"


def shown_name(name: str, kind: str) -> str:
    """Return how a card calls a ``teacher`` or a ``dataset``: strangers do not know what the sample is."""
    if name != SAMPLE:
        return short_name(name)
    return "the sample of Distillery, part of Fashion-MNIST" if kind == "dataset" else "the sample's teacher"


def hub_id(name: str) -> str | None:
    """Return a setting's Hub id; ``None`` for a folder (whose path is absolute in a run), random weights or the sample."""
    return name if HUB_ID.fullmatch(name) and name not in (*STUDENT_NAMES, SAMPLE) else None


# --- Its metadata


def metadata(
    config: DistillConfig, results: dict[str, Any], report: dict[str, Any] | None, published: Published | None
) -> str:
    """Return what stands in the head of a card, in YAML without its marks, as ``huggingface_hub`` writes it.

    ``base_model`` is there only where the *student* began with a checkpoint of the Hub: the Hub knows no relation of a
    student to its teacher.
    """
    from huggingface_hub import ModelCardData

    values: dict[str, Any] = {}
    if base := hub_id(config.student):
        values |= {"base_model": base, "base_model_relation": "finetune"}
    if dataset := hub_id(config.dataset):
        values["datasets"] = [dataset]
    if published and published.license:
        values["license"] = published.license
    if scores := _scores(config, results, report):
        name = published.repo.split("/")[-1] if published else f"student-{results['run']}"
        values |= {"model_name": name, "eval_results": scores, "metrics": [one.metric_type for one in scores]}
    formats = ["onnx", "transformers.js"] if results["files"] else []
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=[OURS, "knowledge-distillation", "image-classification", *formats],
        **values,
    ).to_yaml()


def _scores(config: DistillConfig, results: dict[str, Any], report: dict[str, Any] | None) -> list[Any]:
    """Return what the student reached on the test split, as the Hub's results; nothing where there are no labels to reach."""
    from huggingface_hub import EvalResult

    if results["labels"] != "dataset" or not results["pytorch"]:
        return []
    found = [("accuracy", "Accuracy", results["pytorch"]["accuracy"])]
    if report:
        found.append(("f1", "Macro F1", report["student"]["f1"]))
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=hub_id(config.dataset) or "imagefolder",
            dataset_name=shown_name(config.dataset, "dataset"),
            dataset_config=config.dataset_config if hub_id(config.dataset) else None,
            dataset_split=config.test_split or "test",
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for kind, name, value in found
    ]


# --- Its tables


def model_rows(config: DistillConfig, results: dict[str, Any], report: dict[str, Any] | None) -> list[list[str]]:
    """Return the table of teacher, student, and the student without the teacher: name, accuracy, macro F1, parameters, MB,
    ms in PyTorch and in ONNX Runtime. It is empty for a run that was stopped before it was measured."""
    if not report:
        return []
    teacher, onnx = results["teacher"], results["files"].get("onnx/model.onnx")
    rows = []
    if report["teacher"] and config.teacher != NO_TEACHER:
        rows.append(["the teacher", *_cells(report["teacher"], teacher and teacher["latency_ms"])])
    rows.append(["**this student**", *_cells(report["student"], onnx and onnx["latency_ms"])])
    if report.get("baseline"):
        rows.append(["the same student, trained without the teacher", *_cells(report["baseline"], None)])
    return rows


def _cells(side: dict[str, Any], onnx: dict[str, Any] | None) -> list[str]:
    """Return the cells of a model; those for what was not measured of it are empty."""
    return [
        f"{side['accuracy']:.2%}" if side.get("accuracy") is not None else "",
        f"{side['f1']:.2%}" if side.get("f1") is not None else "",
        f"{side['parameters']:,}" if "parameters" in side else "",
        f"{side['megabytes']:.2f}" if "megabytes" in side else "",
        f"{side['latency_ms']['p50']:.3f}" if "latency_ms" in side else "",
        f"{onnx['one_thread']['p50']:.3f}" if onnx else "",
    ]


def table_rows(results: dict[str, Any]) -> list[list[str]]:
    """Return the table of the files: name, accuracy, agreement, greatest difference, MB, ms with one thread and with all."""
    rows = []
    for name, one in results["files"].items():
        single, every = one["latency_ms"]["one_thread"], one["latency_ms"]["all_threads"]
        per_second = f"{one['images_per_second']:,.0f} at {one['batch']}" if "batch" in one else ""
        rows.append([
            f"`{name}`", f"{one['accuracy']:.2%}", f"{one['agreement']:.2%}", f"{one['difference']:.1g}",
            f"{one['megabytes']:.2f}", f"{single['p50']:.3f} / {single['p95']:.3f}",
            f"{every['p50']:.3f} / {every['p95']:.3f}", per_second,
        ])  # fmt: skip
    if teacher := results["teacher"]:
        single, every = teacher["latency_ms"]["one_thread"], teacher["latency_ms"]["all_threads"]
        rows.append([
            "the teacher, for comparison", "", "", "", f"{teacher['megabytes']:.2f}",
            f"{single['p50']:.3f} / {single['p95']:.3f}", f"{every['p50']:.3f} / {every['p95']:.3f}", "",
        ])  # fmt: skip
    return rows


# --- The command that repeats it


def command_of(config: DistillConfig) -> str:
    """Return the ``kd distill`` that repeats a run. What lies on this machine is called ``path/to/...``: its folders are
    nobody's business, and mean nothing elsewhere."""
    is_sample = (config.teacher, config.dataset) == (SAMPLE, SAMPLE)
    preset, values = SAMPLE if is_sample else "custom", config.to_dict()
    named = ("student",) if is_sample else ("teacher", "dataset", "student")
    chosen = {name: values[name] for name in named}
    # A method and a recipe bring settings of their own, so those are named first that are not the preset's.
    basic = DistillConfig.preset(preset, **chosen).to_dict()
    chosen |= {name: values[name] for name in ("method", "recipe") if values[name] != basic[name]}
    usual = DistillConfig.preset(preset, **chosen).to_dict()
    chosen |= {name: value for name, value in values.items() if value != usual[name] and value is not None}
    words = [text for name, value in chosen.items() for text in (f"--{name.replace('_', '-')}", str(_anywhere(value)))]
    command = shlex.join(["kd", "distill", *([] if is_sample else ["--preset", preset]), *words])
    return " ".join(command.replace("`", "'").split())  # it stands in a block of code, on one line


def _anywhere(value: Any) -> Any:
    """Return a setting as it is, and for a folder of this machine a name that shows none."""
    if not (isinstance(value, str) and Path(value).is_absolute()):
        return value
    return f"path/to/{' '.join(short_name(value).replace('/', '-').split())}"
