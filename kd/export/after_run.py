"""Export a run's student at the end of the run, and say for its report how fast and how true it is in ONNX Runtime."""

import logging
from typing import Any

from kd.config import NO_TEACHER
from kd.errors import UserError
from kd.export.bundle import FILES, Material, Progress, build, check_packages
from kd.runs.queue import StopAsked
from kd.runs.run import RunDeleted, RunTaken


def export_after_run(material: Material, progress: Progress) -> dict[str, Any] | None:
    """Export a run's student to ONNX, where its settings ask for it; a failure of it is a warning, never the run's.

    What learned from the labels alone is a baseline, or a teacher to be, and is exported when somebody asks for it.

    Returns:
        ``report.json``'s ``onnx`` (``onnx_summary``) and ``warnings``, sentences; these alone where it failed; ``None``
        where nothing was to be exported.

    Raises:
        StopAsked: as ``progress`` does when the run is asked to stop.
    """
    config = material.run.config()
    if config.export == "no" or config.teacher == NO_TEACHER:
        return None
    try:
        check_packages()
        results = build(material, ("onnx",), progress)
    except (StopAsked, RunDeleted, RunTaken):
        raise
    except (UserError, OSError) as problem:
        return {"warnings": [failed(str(problem))]}
    except Exception as error:  # the run is done but for this: its result must not be lost to what a library raises
        logging.getLogger(__name__).exception("the export failed")
        return {"warnings": [failed(f"{type(error).__name__}: {error}")]}
    return {**onnx_summary(results), "warnings": warnings_of(results)}


def failed(why: str) -> str:
    """Return the warning for a student that was not exported."""
    return f"The student was not exported to ONNX. {why} All else of the run is as it should be."


def onnx_summary(results: dict[str, Any]) -> dict[str, Any]:
    """Return what a report says of an export: ``teacher`` and ``student`` (``latency_ms`` of one picture and thread,
    ``megabytes``), ``speedup``, the student's ``accuracy``, ``agreement`` with itself in PyTorch, ``success``, and ``others``,
    which says where the file that agrees least differs."""
    bare, whole = (results["files"][name] for name in FILES["onnx"])
    worst = min(bare, whole, key=lambda one: one["agreement"])
    teacher = results["teacher"]
    return {
        "teacher": teacher and {"latency_ms": teacher["latency_ms"]["one_thread"], "megabytes": teacher["megabytes"]},
        "student": {"latency_ms": bare["latency_ms"]["one_thread"], "megabytes": bare["megabytes"]},
        "speedup": results["speedup"],
        "accuracy": whole["accuracy"],
        "agreement": worst["agreement"],
        "success": bare["success"] and whole["success"],
        "others": worst["others"],
        "seconds": results["seconds"],
    }


def warnings_of(results: dict[str, Any]) -> list[str]:
    """Say which files do not answer as the student does, and what else is to be known."""
    off = [
        f"{name} gives PyTorch's answer on {one['agreement']:.2%} of the test pictures; at least {one['least_agreement']:.1%} "
        f"are expected. {one['others']}"
        for name, one in results["files"].items()
        if not one["success"]
    ]
    return [*off, *results["notes"]]
