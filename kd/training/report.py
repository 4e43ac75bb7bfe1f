"""Score the students on the test split, compute the verdict, time both models, write report.json."""

import json
import shutil
import sys
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from kd.runs.queue import is_any_run_training
from kd.runs.run import Run
from kd.system.files import write_whole
from kd.training.checkpoints import move_student, student_folder
from kd.training.loop import Trained, forget_checkpoints
from kd.training.plan import Plan, Trial
from kd.training.setup import Job, rounded, run_threads

if TYPE_CHECKING:
    import numpy as np

    from kd.data.splits import Splits
    from kd.models.teacher import Teacher
    from kd.training.targets import Targets

# The packages whose versions a report names.
PACKAGES = ("torch", "transformers", "datasets", "accelerate")


class TestSplit:
    """The test split, which nothing has looked at before the last epoch, and the teacher's logits on it."""

    def __init__(self, job: Job, splits: "Splits", targets: "Targets") -> None:
        self.job, self.splits, self.targets = job, splits, targets

    @property
    def teacher(self) -> "Teacher | None":
        return self.targets.teacher

    @cached_property
    def fingerprint(self) -> str:
        from kd.data.pixels import fingerprint

        return fingerprint(self.splits.test)

    def teacher_logits(self, size: int) -> "np.ndarray":
        """Return the teacher's logits ``[size, C]`` on the test images that can be read, asked for once for all runs."""
        from kd.evaluation.scoring import load_scores, score

        job, teacher, test = self.job, self.teacher, self.splits.test

        def ask() -> "np.ndarray":
            return score(teacher, teacher.processor, test, job.device, job.progress("test: teacher")).logits

        return load_scores(f"{teacher.key()}-{self.fingerprint}", job.cache, size, ask)

    def known_rows(self, labels: "np.ndarray") -> "np.ndarray":
        """Tell which test images, bool ``[M]``, are of classes that the teacher knows; all where there is no teacher."""
        import numpy as np

        from kd.training.labels import known_rows

        return known_rows(self.teacher, labels) if self.teacher else np.ones(len(labels), bool)


@dataclass(frozen=True)
class TrialResult:
    """One training's ``scores`` (``scores.json``) and its student's ``answers`` on the test split (``test.npz``):
    ``logits`` ``[M, C]`` on the images that can be read, their ``labels`` and ``indices`` ``[M]``, and why the others
    are ``unreadable``."""

    trial: Trial
    scores: dict[str, Any]
    answers: dict[str, "np.ndarray"]


def load_result(run: Run, trial: Trial) -> TrialResult:
    """Load the result of a training that was done before the run was resumed."""
    import numpy as np

    folder = trial.folder(run)
    with np.load(folder / "test.npz") as answers:
        return TrialResult(trial, json.loads((folder / "scores.json").read_text()), dict(answers))


def evaluate_on_test(job: Job, trained: Trained, test: TestSplit, before: list[TrialResult]) -> TrialResult:
    """Measure a trial's student on the test split and keep the result; the ``arm`` event.

    Of several seeds the run keeps the student that is best on validation: ``before`` are the results of the trials before.
    """
    run, trial = job.run, trained.trial
    measured, answers = score_student(job, trial, test)
    scores = {
        "arm": trial.name,
        "seed": trial.seed,
        **measured,
        "validation": trained.validation,
        "kept": is_better([result.scores for result in before], trial, trained.validation),
        "best_epoch": trained.best_epoch,
        "epochs": trained.epochs,
        "seconds": trained.seconds,
        "images_per_second": trained.images_per_second,
    }
    write_whole(trial.folder(run) / "scores.json", json.dumps(scores))
    job.tell("arm", **scores)
    result = TrialResult(trial, scores, answers)
    keep_students(run, [*before, result])
    forget_checkpoints(run, trial)
    return result


def score_student(job: Job, trial: Trial, test: TestSplit) -> tuple[dict[str, float], dict[str, "np.ndarray"]]:
    """Load a trial's student as anyone would and score it on the test split: ``accuracy``, ``f1`` and, if there is a
    teacher, their ``agreement``; and its answers, which are kept in ``test.npz``."""
    import numpy as np

    from kd.evaluation.scoring import agreement, load_saved_student, quality, score

    model, processor, _ = load_saved_student(student_folder(job.run, trial))
    found = score(model, processor, test.splits.test, job.device, job.progress("test: student"))
    labels = np.asarray(test.splits.test["label"])[found.indices]
    agreed = {}
    if test.teacher:
        teacher, rows = test.teacher_logits(len(labels)), test.known_rows(labels)
        agreed = {"agreement": agreement(found.logits[rows], teacher[rows])}
    if not test.splits.labelled:
        labels = teacher.argmax(-1)
    unreadable = np.array(found.unreadable, dtype=str)
    answers = {"logits": found.logits, "labels": labels, "indices": found.indices, "unreadable": unreadable}
    np.savez(trial.folder(job.run) / "test.npz", **answers)
    return rounded({**quality(found.logits, labels), **agreed}), answers


def kept_result(results: list[TrialResult]) -> TrialResult:
    """Return the result of the training whose student is the run's own."""
    seed = kept_seed([result.scores for result in results])
    return next(result for result in results if result.trial.is_distilled and result.trial.seed == seed)


def write_report(
    job: Job, plan: Plan, test: TestSplit, results: list[TrialResult], onnx: dict[str, Any] | None = None
) -> None:
    """Compare both models and time them, compute the verdict, write the report, close the run.

    ``onnx`` is what the export has measured, with its ``warnings``; ``None`` where nothing was exported.
    """
    from kd.evaluation.latency import cost_ratios

    run, targets = job.run, test.targets
    trials = [result.scores for result in results]
    seed = kept_seed(trials)
    keep_students(run, results)
    kept = {result.trial.name: result for result in results if result.trial.seed == seed}
    own, baseline = kept["distilled"].scores, kept["baseline"].scores if "baseline" in kept else None
    sides, notes = measure_models(job, plan, test, kept["distilled"])
    sides["student"]["seed"] = seed
    deployed = {name: value for name, value in (onnx or {}).items() if name != "warnings"}
    notes += (onnx or {}).get("warnings", [])
    report = {
        "run": run.id,
        "config": plan.config.to_dict(),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
        "data": {**test.splits.sizes(), "classes": plan.classes, "labels": test.splits.labels},
        **sides,
        "baseline": baseline and {name: baseline[name] for name in ("accuracy", "f1", "agreement")},
        "trials": trials,
        "verdict": verdict_of(test, results),
        "notes": notes,
        "agreement": own.get("agreement"),
        "onnx": deployed or None,
        **(cost_ratios(sides["teacher"], sides["student"]) if test.teacher else {"speedup": None, "size_ratio": None}),
        "train": {name: own[name] for name in ("seconds", "images_per_second", "epochs", "best_epoch")},
        "targets": {"seconds": round(targets.seconds, 2), "cache": targets.cache},
    }
    if test.teacher:
        write_disagreement(run, plan, test, kept["distilled"])
    write_whole(run.path / "report.json", json.dumps(report, indent=2))
    shown = ("teacher", "student", "agreement", "speedup", "size_ratio", "train", "verdict", "onnx")
    run.append("result", **{name: report[name] for name in shown}, warnings=notes)
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)  # before the end, after which nobody comes to do it
    run.close("done")


def kept_seed(trials: list[dict[str, Any]]) -> int:
    """Return the seed whose student is the run's own: the last that was better on validation than those before it."""
    return next((trial["seed"] for trial in reversed(trials) if trial["kept"]), trials[0]["seed"])


def is_better(trials: list[dict[str, Any]], trial: Trial, validation: float) -> bool:
    """Tell whether a trial's student is to be the run's own: it learned from the teacher, and is better on validation than
    the one that was kept of the ``trials`` before."""
    if not trial.is_distilled:
        return False
    kept = [t for t in trials if t["arm"] == "distilled" and t["seed"] == kept_seed(trials)]
    return not kept or validation > kept[0]["validation"]


def keep_students(run: Run, results: list[TrialResult]) -> None:
    """Keep the students of one seed, the distilled one as the run's own. It may have been done before, in part or whole."""
    seed = kept_seed([result.scores for result in results])
    for trial in [result.trial for result in results][1:]:
        folder = student_folder(run, trial)
        if trial.is_distilled and trial.seed == seed and folder.exists():
            move_student(folder, run.path / "student")
        elif trial.seed != seed:
            shutil.rmtree(folder, ignore_errors=True)


def kept_seed_words(report: dict[str, Any]) -> str:
    """Say which of several seeds' students was kept, as part of a sentence."""
    one = "student" if report["teacher"] else "model"
    return f"the {one} is seed {report['student']['seed']}'s, the best on validation"


def write_disagreement(run: Run, plan: Plan, test: TestSplit, result: TrialResult) -> None:
    """Keep for the page where teacher and student differ on the test split (``kd.evaluation.disagreement``)."""
    from kd.evaluation.disagreement import analyse, save_analysis

    labels = result.answers["labels"]
    found = analyse(test.teacher_logits(len(labels)), result.answers["logits"], labels, plan.classes)
    found["labels"] = test.splits.labels
    save_analysis(found, test.splits.test, result.answers["indices"], run.path)


def verdict_of(test: TestSplit, results: list[TrialResult]) -> dict[str, Any] | None:
    """Say whether the teacher helped on the test images of the classes that it knows; ``None`` without a baseline."""
    import numpy as np

    from kd.evaluation.significance import verdict

    right: dict[str, list[np.ndarray]] = {"distilled": [], "baseline": []}
    for result in results:
        right[result.trial.name].append(result.answers["logits"].argmax(-1) == result.answers["labels"])
    if not right["baseline"]:
        return None
    sides = [np.stack(answers) for answers in right.values()]
    rows = test.known_rows(results[0].answers["labels"])
    found = verdict(*(side[:, rows] for side in sides))
    if not rows.all():
        points = 100 * (sides[0].mean() - sides[1].mean())
        found["sentence"] += (
            f" These are the pictures of the classes that the teacher knows; over all {len(rows):,} the difference is "
            f"{points:+z.1f} points."
        )
    return found


def measure_models(
    job: Job, plan: Plan, test: TestSplit, result: TrialResult
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Score ``teacher`` (``None`` where there is none) and ``student`` on the test split in the same way, with what they
    cost, timed in turns; and list what a reader of the figures should know."""
    from kd.data.images import BadPicture, open_images
    from kd.evaluation.latency import BUSY_NOTE, measure_latency, model_cost
    from kd.evaluation.scoring import load_run_student, quality
    from kd.training.labels import accuracy_on_known_classes

    model, processor, normalization = load_run_student(job.run)
    answers, splits = result.answers, test.splits
    logits, timed = {"student": answers["logits"]}, {"student": (model, processor)}
    costs = {"student": model_cost(model, normalization.size)}
    if teacher := test.teacher:
        logits = {"teacher": test.teacher_logits(len(answers["labels"])), **logits}
        timed = {"teacher": (teacher, teacher.processor), **timed}
        costs["teacher"] = model_cost(teacher.model, teacher.normalization.size)
    image = next(image for _, image in open_images(splits.test) if not isinstance(image, BadPicture))
    with run_threads(job):
        latency = measure_latency(timed, image, job.device)
    sides: dict[str, Any] = {"teacher": None} | {
        name: {
            "name": getattr(plan.config, name),
            **rounded(quality(logits[name], answers["labels"])),
            **costs[name],
            **latency[name],
        }
        for name in logits
    }
    if not splits.labelled:  # it agrees with itself
        del sides["teacher"]["accuracy"], sides["teacher"]["f1"]
    notes = [
        *accuracy_on_known_classes(splits, teacher, logits, answers["labels"]),
        *answers["unreadable"].tolist(),
        *([BUSY_NOTE] if is_any_run_training(job.run.path.parent, but=job.run) else []),
    ]
    return sides, notes
