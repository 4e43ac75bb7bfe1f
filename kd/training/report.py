"""What came of a run: its students on the test split, the verdict, both models timed, and the report of it all."""

import json
import shutil
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from kd.runs.queue import is_any_run_training
from kd.runs.run import Run
from kd.system.files import write_whole
from kd.training.checkpoints import move_student, student_folder
from kd.training.plan import Trial
from kd.training.setup import Work, rounded

if TYPE_CHECKING:
    import numpy as np

PACKAGES = ("torch", "transformers", "datasets", "accelerate")


def score_student(run: Run, work: Work) -> dict[str, float]:
    """Load the arm's student as anyone would and measure it on the test split, which nothing has looked at before:
    ``accuracy``, ``f1`` and its ``agreement`` with the teacher, if there is one. Its answers are kept in ``test.npz``."""
    import numpy as np

    from kd.evaluation.scoring import agreement, load_saved_student, quality, score
    from kd.training.labels import known_rows

    model, processor, _ = load_saved_student(student_folder(run, work.arm))
    found = score(model, processor, work.splits.test, work.device, work.progress.phase("test: student"))
    labels = np.asarray(work.splits.test["label"])[found.indices]
    agreed = {}
    if work.teacher:
        teacher, rows = score_teacher(run, work, len(labels)), known_rows(work.teacher, labels)
        agreed = {"agreement": agreement(found.logits[rows], teacher[rows])}
    if not work.splits.labelled:
        labels = teacher.argmax(-1)
    np.savez(
        work.arm.folder(run) / "test.npz",
        logits=found.logits, labels=labels, indices=found.indices, unreadable=np.array(found.unreadable, dtype=str),
    )  # fmt: skip
    return rounded({**quality(found.logits, labels), **agreed})


def score_teacher(run: Run, work: Work, size: int) -> "np.ndarray":
    """The teacher's logits ``[size, C]`` on the test pictures that can be read, asked for once and kept for all runs."""
    from kd.data.pixels import fingerprint
    from kd.evaluation.scoring import load_scores, score

    teacher, test = work.teacher, work.splits.test

    def ask() -> "np.ndarray":
        return score(teacher, teacher.processor, test, work.device, work.progress.phase("test: teacher")).logits

    return load_scores(f"{teacher.key()}-{fingerprint(test)}", work.cache, size, ask)


def write_report(run: Run, work: Work, arms: list[Trial]) -> None:
    """Gather what was measured, time both models, write the report, close the run."""
    from kd.evaluation.latency import cost_ratios

    trials = scores_of(run, arms)
    seed, targets = kept_seed(trials), work.targets
    keep_students(run, arms, seed)
    mine = {arm.name: arm for arm in arms if arm.seed == seed}
    own, baseline = (trials[mine[name].nth - 1] if name in mine else None for name in ("distilled", "baseline"))
    sides, said = measure_models(run, work, mine["distilled"])
    sides["student"]["seed"] = seed
    report = {
        "run": run.id,
        "config": work.config.to_dict(),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
        "data": {**work.splits.sizes(), "classes": work.splits.classes, "labels": work.splits.labels},
        **sides,
        "baseline": baseline and {name: baseline[name] for name in ("accuracy", "f1", "agreement")},
        "trials": trials,
        "verdict": verdict_of(run, work, arms),
        "notes": said,
        "agreement": own.get("agreement"),
        **(cost_ratios(sides["teacher"], sides["student"]) if work.teacher else {"speedup": None, "size_ratio": None}),
        "train": {name: own[name] for name in ("seconds", "images_per_second", "epochs", "best_epoch")},
        "targets": {"seconds": round(targets.seconds, 2), "cache": targets.cache}
        if targets
        else {"seconds": 0, "cache": "online" if work.teacher else "none"},
    }
    if work.teacher:
        write_disagreement(run, work, mine["distilled"])
    write_whole(run.path / "report.json", json.dumps(report, indent=2))
    shown = ("teacher", "student", "agreement", "speedup", "size_ratio", "train", "verdict")
    run.append("result", **{name: report[name] for name in shown}, warnings=said)
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)  # before the end, after which nobody comes to do it
    run.close("done")


def scores_of(run: Run, arms: list[Trial]) -> list[dict[str, Any]]:
    """What the arms that are done came to."""
    return [json.loads((arm.folder(run) / "scores.json").read_text()) for arm in arms]


def kept_seed(trials: list[dict[str, Any]]) -> int:
    """The seed whose student is the run's own: the last that was better on validation than those before it (``kept``)."""
    return next((trial["seed"] for trial in reversed(trials) if trial.get("kept")), trials[0]["seed"])


def is_better(trials: list[dict[str, Any]], arm: Trial, validation: float) -> bool:
    """Whether an arm's student is to be the run's own: it has the teacher, and beats the one that was kept of ``trials``."""
    if arm.name != "distilled":
        return False
    kept = [t for t in trials if t["arm"] == "distilled" and t["seed"] == kept_seed(trials)]
    return not kept or validation > kept[0]["validation"]


def keep_students(run: Run, arms: list[Trial], seed: int) -> None:
    """Of the students of ``arms`` keep those of one seed, the distilled one as the run's own. It may have been done before,
    in part or whole."""
    for arm in arms[1:]:
        folder = student_folder(run, arm)
        if (arm.name, arm.seed) == ("distilled", seed) and folder.exists():
            move_student(folder, run.path / "student")
        elif arm.seed != seed:
            shutil.rmtree(folder, ignore_errors=True)


def kept_seed_words(report: dict[str, Any]) -> str:
    """Which of several seeds' students was kept, as part of a sentence."""
    one = "student" if report["teacher"] else "model"
    seed = report["student"].get("seed")  # until November 2026 it was always the first's
    return f"the {one} is " + ("the first seed's" if seed is None else f"seed {seed}'s, the best on validation")


def answers_of(run: Run, arm: Trial) -> dict[str, "np.ndarray"]:
    """An arm's ``logits`` ``[M, C]`` on the test pictures that can be read, their ``labels`` and ``indices`` ``[M]``, and
    why the others are ``unreadable``."""
    import numpy as np

    with np.load(arm.folder(run) / "test.npz") as file:
        return dict(file)


def write_disagreement(run: Run, work: Work, arm: Trial) -> None:
    """Where teacher and student differ on the test split, kept for the page (``kd.evaluation.disagreement``)."""
    from kd.evaluation.disagreement import analyse, save_analysis

    answers = answers_of(run, arm)
    labels, classes = answers["labels"], work.splits.classes
    found = analyse(score_teacher(run, work, len(labels)), answers["logits"], labels, classes)
    save_analysis({**found, "labels": work.splits.labels}, work.splits.test, answers["indices"], run.path)


def verdict_of(run: Run, work: Work, arms: list[Trial]) -> dict[str, Any] | None:
    """Whether the teacher helped on the test pictures of the classes that it knows; ``None`` without a baseline."""
    import numpy as np

    from kd.evaluation.significance import verdict
    from kd.training.labels import known_rows

    right: dict[str, list[np.ndarray]] = {"distilled": [], "baseline": []}
    for arm in arms:
        answers = answers_of(run, arm)
        right[arm.name].append(answers["logits"].argmax(-1) == answers["labels"])
    if not right["baseline"]:
        return None
    sides = [np.stack(answers) for answers in right.values()]
    rows = known_rows(work.teacher, answers_of(run, arms[0])["labels"])
    found = verdict(*(side[:, rows] for side in sides))
    if not rows.all():
        points = 100 * (sides[0].mean() - sides[1].mean())
        found["sentence"] += (
            f" These are the pictures of the classes that the teacher knows; over all {len(rows):,} the difference is "
            f"{points:+z.1f} points."
        )
    return found


def measure_models(run: Run, work: Work, arm: Trial) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """``teacher`` (``None`` where there is none) and ``student``, which is the arm's, on the test split by the same ruler,
    with what they cost, timed in turns; and what a reader of the figures should know."""
    from kd.data.images import BadPicture, open_images
    from kd.evaluation.latency import BUSY_NOTE, measure_latency, model_cost
    from kd.evaluation.scoring import load_run_student, quality
    from kd.training.labels import accuracy_on_known_classes

    model, processor, normalization = load_run_student(run)
    answers = answers_of(run, arm)
    logits, raced = {"student": answers["logits"]}, {"student": (model, processor)}
    costs = {"student": model_cost(model, normalization.size)}
    if teacher := work.teacher:
        logits = {"teacher": score_teacher(run, work, len(answers["labels"])), **logits}
        raced = {"teacher": (teacher, teacher.processor), **raced}
        costs["teacher"] = model_cost(teacher.model, teacher.normalization.size)
    picture = next(picture for _, picture in open_images(work.splits.test) if not isinstance(picture, BadPicture))
    timed = measure_latency(raced, picture, work.device)
    sides: dict[str, Any] = {"teacher": None} | {
        name: {
            "name": getattr(work.config, name),
            **rounded(quality(logits[name], answers["labels"])),
            **costs[name],
            **timed[name],
        }
        for name in logits
    }
    if not work.splits.labelled:  # it agrees with itself
        del sides["teacher"]["accuracy"], sides["teacher"]["f1"]
    said = [
        *accuracy_on_known_classes(work.splits, work.teacher, logits, answers["labels"]),
        *answers["unreadable"].tolist(),
        *([BUSY_NOTE] if is_any_run_training(run.path.parent, but=run) else []),
    ]
    return sides, said
