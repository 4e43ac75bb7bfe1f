"""Export a run's student into a folder: the formats in which it is deployed, what was measured of them, how to use them.

The folder ``export`` of a run is there as a whole or not at all: it is written beside its place and renamed. torch, onnx
and onnxruntime are imported once there is something to export.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from kd.config import NO_TEACHER
from kd.data.library.store import short_name
from kd.data.streamed import looked_at
from kd.errors import UserError
from kd.runs.run import Run
from kd.runs.store import existing_teacher, lost_teacher, teacher_here
from kd.system.files import cache_folder, try_acquire

if TYPE_CHECKING:
    import numpy as np

    from kd.models.teacher import Teacher

# The folder in a run's own; what is being written begins as PART does, beside it.
FOLDER, PART = "export", ".export-"
# Its zip, as long as somebody has asked for it since.
ZIP = "export.zip"
# What a student can be exported to.
FORMATS = ("onnx", "int8")
# Format -> the file that transformers.js loads, and the one that needs nothing else.
FILES = {"onnx": ("onnx/model.onnx", "student.onnx"), "int8": ("onnx/model_quantized.onnx", "student_int8.onnx")}
KINDS = {"onnx": "fp32", "int8": "int8"}
# The packages that exporting needs, as requirements.txt names them.
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# The packages whose versions are named.
VERSIONS = ("torch", "transformers", "onnx", "onnxruntime")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Material:
    """What an export is made of: the run, its training and test images, its teacher (``None`` where there is none, or none
    any more), and the student's ``answers`` in PyTorch (``logits`` ``[M, C]``, ``labels`` and ``indices`` ``[M]``) on the
    test images."""

    run: Run
    train: Any
    test: Any
    teacher: "Teacher | None"
    answers: "dict[str, np.ndarray]"
    notes: tuple[str, ...] = ()


def export_student(
    run: Run | Path | str,
    to: str | tuple[str, ...] = FORMATS,
    out: Path | str | None = None,
    progress: Progress = lambda done, of: None,
) -> dict[str, Any]:
    """Export a run's student and measure what came of it on the whole test split.

    Args:
        run: a run, or its folder.
        to: ``onnx``, ``int8`` or both; ``onnx`` is always made.
        out: a folder, or a file that ends in ``.zip``, to put a copy into; it must not exist yet.
        progress: is called with the test pictures done, and how many there are; what it raises ends the export.

    Returns:
        ``results.json`` of the export with its ``folder`` (assets/guide/export.md explains the fields).

    Raises:
        UserError: where the run has no student or is at work, the student cannot be exported, a package or the disk's
            space is missing, or ``out`` cannot be written to. What was exported before is still there then.
    """
    run, formats = run if isinstance(run, Run) else Run(Path(run).resolve()), check_formats(to)
    check_out(out)
    check_packages()
    check_has_student(run)
    if run.is_locked():
        raise UserError(f"Run {run.id} is at work. Export its student once it is done or stopped.")
    with _words_for_a_full_disk(run):
        results = build(load_material(run, progress), formats, progress, demo=True)
        if out is not None:
            copy_export(run, Path(out))
    return {**results, "folder": str(run.path / FOLDER)}


def find_export(run: Run) -> dict[str, Any] | None:
    """Return ``results.json`` of a run's export; ``None`` where there is none, or the student has changed since."""
    try:
        path, weights = run.path / FOLDER / "results.json", run.path / "student" / "model.safetensors"
        results = json.loads(path.read_text())
        if weights.stat().st_size != results["weights"]["bytes"]:
            return None
        # A copied run has files of other times.
        is_later = weights.stat().st_mtime > path.stat().st_mtime
        return None if is_later and _hash_of(weights) != results["weights"]["sha256"] else results
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return None


def _hash_of(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


# --- What is refused beforehand


def check_formats(to: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the formats of "onnx,int8", or of a sequence; ``onnx`` is among them always. Raises ``UserError``."""
    asked = [name.strip() for name in to.split(",")] if isinstance(to, str) else list(to)
    if unknown := [name for name in asked if name not in FORMATS]:
        raise UserError(f"There is no format {unknown[0]!r} to export to. The formats are {', '.join(FORMATS)}.")
    return tuple(name for name in FORMATS if name == "onnx" or name in asked)


def check_out(out: Path | str | None) -> None:
    """Raise ``UserError`` where a copy cannot be put to ``out``: something is there already, or its folder is not."""
    if out is None:
        return
    path = Path(out).expanduser()
    if os.path.lexists(path):
        raise UserError(f"{out} exists already. Name a folder, or a .zip file, that does not, or remove it first.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{out} cannot be made: there is no folder {path.absolute().parent}. Make that first.")


def check_packages() -> None:
    """Raise ``UserError`` where a package is missing, with the command that installs it."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(
            f"A student cannot be exported without the package {' and '.join(missing)}, which is not installed here. "
            f"Install it with: pip install {' '.join(missing)}",
            kind="not installed",
        )


def check_has_student(run: Run) -> None:
    """Raise ``UserError`` where a run has no student (yet)."""
    run.settings()
    if not (run.path / "student" / "config.json").exists():
        status = run.status()
        again = f" {run.goes_on}" if status in ("stopped", "paused", "failed", "died") else ""
        raise UserError(
            f"Run {run.id} ({status}) has no student, so there is nothing to export. A run saves one when a training ends or is "
            f"stopped.{again}"
        )


@contextmanager
def hold_export(run: Run) -> Iterator[None]:
    """Hold the lock of a run's export, which nobody changes then. Raises ``UserError`` where another process has it."""
    lock = FileLock(run.path / "export.lock")
    try:
        free = try_acquire(lock)
    except OSError as error:
        raise UserError(
            f"Run {run.id} cannot be exported: nothing can be written to {run.path} ({error.strerror or error}). Make it writable."
        ) from error
    if not free:
        raise UserError(
            f"Run {run.id} is being exported or pushed by another process already. Wait until that is done."
        )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _words_for_a_full_disk(run: Run) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"The disk is full: the export of run {run.id} could not be written. Nothing of it was kept, and an earlier one "
            "is still there. Free some space, then export again."
        ) from error


# --- What it is made of


def load_material(run: Run, progress: Progress) -> Material:
    """Load what the export of a closed run is made of. Raises ``UserError`` where the test images are not those of the run."""
    import numpy as np

    from kd.data.pixels import fingerprint
    from kd.data.splits import load_splits
    from kd.data.stream_files import kept_splits

    config, told, streamed = run.config(), run.last("data"), run.last("stream")
    cache = cache_folder(run.path.parent, config.dataset)
    splits = load_splits(config) if streamed is None else kept_splits(cache / streamed["folder"])
    if told and told.get("test_pictures") not in (None, fingerprint(splits.test)):
        raise UserError(
            f"{config.dataset} has other test pictures now than run {run.id} was measured on, so nothing can be said of what "
            "is exported. Put the pictures back as they were."
        )
    report, (teacher, notes) = run.report(), _teacher_of(run)
    if report:
        with np.load(run.path / "arms" / f"distilled-{report['student']['seed']}" / "test.npz") as file:
            answers = dict(file)
    else:
        answers = _answers_of_student(run, splits, teacher, lambda done, of: progress(0, of))
    return Material(run, splits.train, splits.test, teacher, answers, notes)


def _answers_of_student(
    run: Run, splits: Any, teacher: "Teacher | None", progress: Progress
) -> "dict[str, np.ndarray]":
    """Ask the student of a run that was stopped before it was measured; where the images have no labels, the teacher's
    answers stand for them. Raises ``UserError`` where neither is there."""
    import numpy as np
    import torch

    from kd.evaluation.scoring import load_run_student, score

    model, processor, _ = load_run_student(run)
    found = score(model, processor, splits.test, torch.device("cpu"), progress)
    if splits.labelled:
        labels = np.asarray(splits.test["label"])[found.indices]
    elif teacher is None:
        raise UserError(
            f"The pictures of run {run.id} have no labels and its teacher is gone, so nothing can be said of its student. "
            "Put the teacher back, or resume the run."
        )
    else:
        labels = score(teacher, teacher.processor, splits.test, torch.device("cpu"), progress).logits.argmax(-1)
    return {"logits": found.logits, "labels": labels, "indices": found.indices}


def _teacher_of(run: Run) -> tuple["Teacher | None", tuple[str, ...]]:
    """Load a run's teacher, to be timed; and say why there is none where there was one."""
    from kd.models.teacher import load_teacher

    teacher = teacher_here(run)
    if teacher == NO_TEACHER:
        return None, ()
    if lost := lost_teacher(teacher):
        return None, (f"The teacher is not timed: it was the student of run {lost}, which is gone.",)
    try:
        return load_teacher(existing_teacher(teacher), None), ()
    except UserError:  # whose words may name a folder of this machine; notes go out with the model card
        return None, ("The teacher is not timed: it cannot be loaded any more.",)


# --- The export


def build(material: Material, formats: tuple[str, ...], progress: Progress, demo: bool = False) -> dict[str, Any]:
    """Make ``runs/<id>/export`` of these formats anew, in the place of an earlier one, and return ``results.json``.

    With ``demo`` there is also a page that runs the student, with the engine's files, which are larger than most students.

    Raises ``UserError`` where the student cannot be exported, ``OSError`` where the disk is full; and what ``progress``
    raises. Then an earlier export stays as it is.
    """
    from kd.export.card import write_card

    run = material.run
    with hold_export(run), _words_for_a_full_disk(run):
        clear_parts(run)
        part = run.path / f"{PART}{secrets.token_hex(4)}"
        try:
            part.mkdir()
            results = _fill(part, material, formats, progress)
            if demo:
                add_demo(part, run, results)
            write_card(part / "README.md", run, results)
            (part / "results.json").write_text(json.dumps(results, indent=2))
            _put(part, run.path / FOLDER)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return results


def clear_parts(run: Run) -> None:
    """Remove what exports that were killed have left. Only who has the run, or its export, to himself may."""
    old = run.path / f"{PART}old"
    if old.exists() and not (run.path / FOLDER).exists():  # killed between two renames
        os.replace(old, run.path / FOLDER)
    for left in run.path.glob(f"{PART}*"):
        shutil.rmtree(left, ignore_errors=True)
        left.unlink(missing_ok=True)  # of a zip


def _put(part: Path, place: Path) -> None:
    """Move a whole folder to its place, after renaming away what is there."""
    old = place.with_name(f"{PART}old")
    if place.exists():
        os.replace(place, old)
    os.replace(part, place)
    place.with_name(ZIP).unlink(missing_ok=True)
    shutil.rmtree(old, ignore_errors=True)


def _fill(part: Path, material: Material, formats: tuple[str, ...], progress: Progress) -> dict[str, Any]:
    """Write the files of the student into ``part``; return what was measured of them."""
    from kd.evaluation.scoring import load_run_student

    began, run = time.perf_counter(), material.run
    total = len(material.answers["indices"])
    progress(0, total)
    model, processor, normalization = load_run_student(run)
    for file in (run.path / "student").iterdir():
        if file.is_file():
            shutil.copyfile(file, part / file.name)
    weights = part / "model.safetensors"
    _write_models(part, material, formats, (model, processor, normalization), lambda: progress(0, total))
    results = {
        "run": run.id,
        "created": round(time.time(), 3),
        "weights": {"bytes": weights.stat().st_size, "sha256": _hash_of(weights)},
        "classes": [model.config.id2label[index] for index in range(len(model.config.id2label))],
        "input": list(normalization.size),
        "test_pictures": total,
        "labels": run.labels(),
        "pytorch": {"accuracy": round(float(_accuracy(material.answers)), 5)},
        **_measure(part, material, formats, processor, progress),
        "versions": {name: version(name) for name in VERSIONS},
    }
    shutil.copyfile(Path(__file__).parent / "templates" / "predict.py", part / "predict.py")
    results["seconds"] = round(time.perf_counter() - began, 1)
    return results


def add_demo(part: Path, run: Run, results: dict[str, Any]) -> None:
    """Write ``demo.html`` into an export, or note why it is left out."""
    from kd.export.demo import LEFT_OUT, write_demo
    from kd.system.browser_runtime import browser_runtime

    said = "is right on" if results["labels"] == "dataset" else "gives the teacher's answer on"
    facts = f"It {said} {results['pytorch']['accuracy']:.1%} of {results['test_pictures']:,} test pictures."
    title = f"Student {short_name(run.config().student)}"
    if not write_demo(part, browser_runtime(), title, facts):
        results["notes"] = [*results["notes"], LEFT_OUT]


def _accuracy(answers: "dict[str, np.ndarray]") -> float:
    return (answers["logits"].argmax(-1) == answers["labels"]).mean()


def _write_models(
    part: Path,
    material: Material,
    formats: tuple[str, ...],
    student: tuple[Any, Any, Any],
    check: Callable[[], None],
) -> None:
    """Write the ONNX files of the student. ``check`` is called between, and may raise."""
    import onnx

    from kd.data.images import BadPicture, open_images
    from kd.export.graph import read_preprocessing, self_contained
    from kd.export.onnx import export_model
    from kd.models.processor import run_processor

    model, processor, normalization = student
    preprocessing = read_preprocessing(processor)  # first: it refuses at once
    classes = [model.config.id2label[index] for index in range(len(model.config.id2label))]
    (part / "onnx").mkdir()
    export_model(model, normalization.size, part / FILES["onnx"][0])
    check()
    if "int8" in formats:
        from kd.export.quantize import CALIBRATION_IMAGES, quantize

        train = looked_at(material.train)
        rows = [index * len(train) // CALIBRATION_IMAGES for index in range(CALIBRATION_IMAGES)]
        few = train.select(sorted(set(rows)))
        images = (image for _, image in open_images(few) if not isinstance(image, BadPicture))
        inputs = (run_processor(processor, [image]).numpy() for image in images if check() is None)
        quantize(part / FILES["onnx"][0], part / FILES["int8"][0], inputs)
    for name in formats:
        bare, whole = (part / file for file in FILES[name])
        onnx.save(self_contained(onnx.load(bare), preprocessing, classes), whole)
        check()


def _measure(
    part: Path, material: Material, formats: tuple[str, ...], processor: Any, progress: Progress
) -> dict[str, Any]:
    """Score and time all files, and the teacher in the same runtime: ``files``, ``teacher``, ``speedup``, ``notes``."""
    import numpy as np

    from kd.export.measure import LEAST_AGREEMENT, best_throughput, first_image, score_files, time_files
    from kd.models.processor import run_processor

    total = len(material.answers["indices"])

    def check() -> None:
        progress(total, total)

    files = {file: part / file for name in formats for file in FILES[name]}
    scores = score_files(files, processor, material.test, material.answers, progress)
    image = first_image(material.test)
    values = run_processor(processor, [image]).numpy()
    inputs = {file: np.asarray(image) if "/" not in file else values for file in files}
    theirs = material.teacher and run_processor(material.teacher.processor, [image]).numpy()
    with _teacher_file(part, material.teacher, theirs) as (teacher, notes):
        timed = dict(files)
        if teacher:
            timed["teacher"], inputs["teacher"] = teacher, theirs
        check()
        times = time_files(timed, inputs, check)
        their_megabytes = teacher.stat().st_size / 1e6 if teacher else None
    measured = {}
    for name in formats:
        for file in FILES[name]:
            measured[file] = {
                "kind": KINDS[name],
                "megabytes": round(files[file].stat().st_size / 1e6, 3),
                **scores[file],
                "least_agreement": LEAST_AGREEMENT[KINDS[name]],
                "success": scores[file]["agreement"] >= LEAST_AGREEMENT[KINDS[name]],
                "latency_ms": times[file],
            }
        bare = FILES[name][0]
        measured[bare] |= best_throughput(files[bare], values, check)
    ours = times[FILES["onnx"][0]]["one_thread"]["p50"]
    return {
        "files": measured,
        "teacher": teacher and {"megabytes": round(their_megabytes, 3), "latency_ms": times["teacher"]},
        "speedup": teacher and round(times["teacher"]["one_thread"]["p50"] / ours, 2),
        "notes": [*material.notes, *notes],
    }


@contextmanager
def _teacher_file(
    part: Path, teacher: "Teacher | None", values: "np.ndarray | None"
) -> Iterator[tuple[Path | None, list[str]]]:
    """Give the teacher as an ONNX file for inputs like ``values``, or say why there is none. It is gone afterwards: the
    teacher is somebody else's, and is exported to be timed only."""
    from kd.export.onnx import export_model

    path = part / ".teacher.onnx"
    try:
        if teacher is None:
            yield None, []
            return
        try:
            export_model(teacher, values.shape[2:], path)
            notes = []
        except UserError as problem:
            notes = [f"The teacher is not timed in ONNX Runtime: {problem}"]
        yield (None if notes else path), notes
    finally:
        for left in part.glob(".teacher.onnx*"):
            left.unlink(missing_ok=True)


# --- Copies of it


def copy_export(run: Run, out: Path) -> None:
    """Copy a run's export to ``out``, a folder, or a zip where it ends in ``.zip``; whole or not at all."""
    out = out.expanduser().absolute()
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        if out.suffix.lower() == ".zip":
            write_zip(run, temporary)
        else:
            shutil.copytree(run.path / FOLDER, temporary)
        os.rename(temporary, out)
    except shutil.Error as error:  # a list of what could not be copied, each with its reason in words
        raise OSError(errno.ENOSPC if "No space" in str(error) else errno.EIO, str(error)) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)


def write_zip(run: Run, path: Path) -> None:
    """Write a run's export as a zip, all in one folder that is called as the run is. Weights hardly shrink, so nothing is
    compressed: then its size is known beforehand."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file, name in _files_of(run):
            archive.write(file, name)


def zip_size(run: Run) -> int:
    """Return the bytes that the zip of a run's export has, or will have."""
    entry, end = 30 + 46, 22  # a file has a header before it and one in the directory, each with its name
    return end + sum(entry + 2 * len(name.encode()) + file.stat().st_size for file, name in _files_of(run))


def zipped(run: Run) -> Path:
    """Return the zip of a run's export, ``export.zip`` in its folder, which is written where it is not there yet."""
    path = run.path / ZIP
    if not path.exists():
        with hold_export(run), _words_for_a_full_disk(run):
            part = run.path / f"{PART}{secrets.token_hex(4)}.zip"
            try:
                write_zip(run, part)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
    return path


def _files_of(run: Run) -> list[tuple[Path, str]]:
    """Return the files of a run's export with their names in its zip."""
    source = run.path / FOLDER
    files = sorted(file for file in source.rglob("*") if file.is_file())
    return [(file, f"student-{run.id}/{file.relative_to(source).as_posix()}") for file in files]
