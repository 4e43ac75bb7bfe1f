"""A study: variants of the same settings, trained with several seeds and compared on the same test images.

``python -m kd study FILE`` reads the study from a JSON file and adds the result of each training to ``FILE.results``;
when it is started again, it goes on from there. Its table is computed from that file alone. A result has its settings
and the fingerprint of its test split: those of other settings or another split are not counted.
"""

import base64
import dataclasses
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd.config import METHODS, OF_PICTURES, RECIPES, RUN_TEACHER, DistillConfig
from kd.errors import UserError
from kd.evaluation.significance import verdict
from kd.runs.process import finish_run
from kd.runs.run import Run
from kd.runs.store import create_run, list_runs, local_owner, resolve
from kd.system.ids import ID
from kd.text import count_of

# What the JSON file of a study can have.
KEYS = ("preset", "settings", "vary", "seeds", "against")
# Settings that are not among the settings of a result: the seed is a field of its own, the device is the machine's, and an
# export comes after everything that a result is made of.
NOT_COMPARED = ("seed", "device", "export")


@dataclass(frozen=True)
class Study:
    """The JSON file of a study.

    ``vary`` has the settings (by their public names) that each label changes; ``against`` is the label with which the
    others are compared, ``None`` for no comparison. Values may contain environment variables, such as ``$PHOTOS``, so
    that the file needs to name nobody's folders.
    """

    path: Path
    preset: str
    settings: dict[str, Any]
    vary: dict[str, dict[str, Any]]
    seeds: list[int]
    against: str | None

    @property
    def results(self) -> Path:
        return self.path.with_name(self.path.name + ".results")

    def asked(self, label: str, seed: int) -> DistillConfig:
        """Return the settings of one training as the file gives them. Raises ``ValueError``.

        The settings of the label come first, then those of its recipe and method, then those that all labels share.
        """
        own = self.vary[label]
        implied = {**RECIPES.get(str(own.get("recipe")), {}), **METHODS.get(str(own.get("method")), {})}
        return DistillConfig.preset(self.preset, **{**self.settings, **implied, **own, "seed": seed})

    def config(self, label: str, seed: int) -> DistillConfig:
        """Return ``asked`` as a study trains it: with environment variables replaced, and without an export.

        Raises ``UserError`` for a variable that is not set.
        """
        asked = self.asked(label, seed).to_dict()
        expanded = {name: _expanded(name, value) for name, value in asked.items()}
        return DistillConfig.from_dict({**expanded, "export": "no"})


def load_study(path: Path) -> Study:
    """Read a study. Raises ``UserError`` if the file cannot be read, is not JSON, or is not a study."""
    try:
        asked = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"The study {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"The study {path} is not JSON: {error}.") from error
    if not isinstance(asked, dict) or not isinstance(asked.get("vary"), dict) or not asked["vary"]:
        raise UserError(
            f'The study {path} varies nothing. Expected {{"vary": {{"label": {{"setting": value}}}}, ...}}.'
        )
    settings, vary, seeds = asked.get("settings", {}), asked["vary"], asked.get("seeds", [0, 1, 2])
    whole = isinstance(seeds, list) and seeds and all(isinstance(seed, int) for seed in seeds)
    if not all(isinstance(one, dict) for one in (settings, *vary.values())) or not whole:
        raise UserError(
            f"The study {path}: settings and each of vary are objects, seeds are whole numbers, one or more."
        )
    if unknown := sorted(set(asked) - set(KEYS)):
        raise UserError(f"The study {path} has {', '.join(unknown)}; it can have {', '.join(KEYS)}.")
    if asked.get("against") not in (None, *asked["vary"]):
        raise UserError(f"The study {path} compares with {asked['against']!r}, which it does not vary.")
    study = Study(
        Path(path), asked.get("preset", "custom"), settings, vary, list(dict.fromkeys(seeds)), asked.get("against")
    )  # fmt: skip
    try:
        for label in study.vary:
            for seed in study.seeds:
                check_study_teacher(study.asked(label, seed).teacher)
    except ValueError as error:
        raise UserError(f"The study {path}: {error}") from error
    return study


def check_study_teacher(teacher: str) -> None:
    """Raise ``ValueError`` for a teacher that may be another run by the time of the next training (``run:last``)."""
    if teacher.startswith(RUN_TEACHER) and not ID.fullmatch(teacher.removeprefix(RUN_TEACHER)):
        raise ValueError(
            f"the teacher {teacher} is not always the same run. Give the whole id, as `python -m kd runs` has it."
        )


def _expanded(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    if "$" in expanded:
        raise UserError(f"{name} is {value!r}, and the environment has no such variable. Set it and try again.")
    return expanded


def read_results(study: Study) -> list[dict[str, Any]]:
    """Read all results of the file, except for a line that a killed process left half written. Raises ``UserError``."""
    try:
        lines = study.results.read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{study.results} has a line that is not a result: {error}. Correct or remove it.") from error


def current_results(study: Study) -> list[dict[str, Any]]:
    """Return the results that belong to the study as it is now: to its labels, its seeds and their settings."""
    return [
        row
        for row in read_results(study)
        if row["label"] in study.vary and row["seed"] in study.seeds and _has_current_settings(study, row)
    ]


def _has_current_settings(study: Study, row: dict[str, Any]) -> bool:
    """Tell whether a result was trained with what the study asks for now.

    A setting that did not exist yet when the result was written counts with its default.
    """
    now = compared_settings(study.asked(row["label"], row["seed"]))
    return {**compared_settings(DistillConfig()), **row["settings"]} == now


def compared_settings(config: DistillConfig) -> dict[str, Any]:
    """Return the settings by which results of a study are told apart."""
    return {name: value for name, value in config.to_dict().items() if name not in NOT_COMPARED}


def fingerprint_of_test_split(config: DistillConfig) -> str:
    """Return a hash of the images and labels of the test split, the same in any folder."""
    from kd.data.pixels import fingerprint
    from kd.data.splits import load_splits

    return fingerprint(load_splits(config).test)


def add_result(study: Study, row: dict[str, Any]) -> None:
    """Add a result to the file, in place of a line that a killed process left half written."""
    with study.results.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")


def work_on_study(study: Study, folder: Path, tell: Callable[[str], None]) -> None:
    """Train what is missing, all labels for one seed after the other, so that they can be compared early.

    Raises ``UserError``, before anything is trained, if the results in the file are of other test images; and if a run
    ends before it is done: the results so far are in the file.
    """
    done = current_results(study)
    missing = [
        (seed, label)
        for seed in study.seeds
        for label in study.vary
        if not any((row["label"], row["seed"]) == (label, seed) for row in done)
    ]
    if not missing:
        return
    check_test_splits(study, folder, done)
    for seed, label in missing:
        run = train_to_the_end(
            study.config(label, seed), folder, lambda text, at=(label, seed): tell(f"{at[0]}, seed {at[1]}: {text}")
        )
        settings = compared_settings(study.asked(label, seed))
        add_result(study, {"label": label, "seed": seed, **result_of(run), "settings": settings})


def check_test_splits(study: Study, folder: Path, done: list[dict[str, Any]]) -> None:
    """Raise ``UserError`` if results are of other test images than those that their label's dataset has now."""
    fingerprints: dict[tuple, str] = {}
    for label in study.vary:
        config = resolve(study.config(label, study.seeds[0]), folder, local_owner(folder))
        images = tuple(getattr(config, name) for name in OF_PICTURES)
        fingerprints[images] = fingerprints.get(images) or fingerprint_of_test_split(config)
        if others := [row for row in done if row["label"] == label and row["test"] != fingerprints[images]]:
            raise UserError(
                f"{study.results} holds {count_of(len(others), 'result')} of {label!r} on other test pictures than those that "
                f"{config.dataset} has now. Move that file away, or name the dataset from which its results are."
            )


def train_to_the_end(config: DistillConfig, folder: Path, tell: Callable[[str], None]) -> Run:
    """Return a run of ``config`` that is done.

    It is an earlier run, one at work, one that was interrupted and goes on, or a new one.
    """
    wanted = resolve(config, folder, local_owner(folder))
    same = {}
    for run in list_runs(folder):
        if _has_config(run, wanted) and (run.status() != "done" or _has_test_split(run, wanted)):
            same[run.status()] = run
    if "done" in same:
        return same["done"]
    old = next((same[status] for status in ("running", "queued", "stopped", "paused", "died") if status in same), None)
    run = old or create_run(wanted, folder, local_owner(folder))
    tell(f"run {run.id}")
    try:
        status = finish_run(run, lambda event: _tell_epoch(event, tell), new=old is None)
    except KeyboardInterrupt:
        run.ask_to_stop()
        raise
    if status != "done":
        last = run.last("failed", "stopped")
        raise UserError(
            f"Run {run.id} is {status}. {last['message'] if last else ''} The study goes on when it is started again."
        )
    return run


def _has_config(run: Run, config: DistillConfig) -> bool:
    try:
        return dataclasses.replace(run.config(), export=config.export) == config
    except UserError:  # damaged, or of another version
        return False


def _has_test_split(run: Run, config: DistillConfig) -> bool:
    """Tell whether a run that is done was measured on the test images that ``config`` names now."""
    return run.last("data")["test_pictures"] == fingerprint_of_test_split(config)


def _tell_epoch(event: dict[str, Any], tell: Callable[[str], None]) -> None:
    if event["event"] == "eval":
        tell(f"epoch {event['epoch']:g}, {event['accuracy']:.1%} on validation, {event['seconds']:.0f} s")


def result_of(run: Run) -> dict[str, Any]:
    """Return the scores of a run, and for each test image whether the student was right (``right``: bits in base64)."""
    report = run.report()
    own = report["trials"][0]
    with np.load(run.path / "arms" / f"distilled-{own['seed']}" / "test.npz") as file:
        right = file["logits"].argmax(-1) == file["labels"]
    names = ("accuracy", "f1", "agreement", "validation", "epochs", "best_epoch", "seconds", "images_per_second")
    return {
        **{name: own.get(name) for name in names},
        "teacher": (report["teacher"] or {}).get("accuracy"),
        "test": run.last("data")["test_pictures"],
        "pictures": len(right),
        "right": base64.b64encode(np.packbits(right)).decode(),
        "versions": report["versions"],
    }


def right_of(row: dict[str, Any]) -> np.ndarray:
    """Unpack ``right`` of a result: bool ``[M]``, one value for each test image."""
    return np.unpackbits(np.frombuffer(base64.b64decode(row["right"]), np.uint8), count=row["pictures"]).astype(bool)


def study_table(study: Study) -> list[list[str]]:
    """Return the results so far as a table, the head first.

    It has means over seeds, standard deviations, minutes, and the comparison over those seeds that both sides have on
    the same test images.
    """
    compared = f"against {study.against}" if study.against else ""
    head = ["", "seeds", "test accuracy", "validation", "epochs", "minutes", compared]
    found = current_results(study)
    lines = [head]
    for label in study.vary:
        rows = {row["seed"]: row for row in found if row["label"] == label}
        if rows:
            lines.append([label, *_means(list(rows.values())), _comparison(study, label, rows, found)])
    return lines


def _means(rows: list[dict[str, Any]]) -> list[str]:
    scores = [100 * row["accuracy"] for row in rows]
    spread = f" +- {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    mean = {name: statistics.mean(row[name] for row in rows) for name in ("validation", "epochs", "seconds")}
    return [
        str(len(rows)), f"{statistics.mean(scores):.1f}%{spread}", f"{mean['validation']:.1%}", f"{mean['epochs']:.0f}",
        f"{mean['seconds'] / 60:.1f}",
    ]  # fmt: skip


def _comparison(study: Study, label: str, rows: dict[int, dict[str, Any]], found: list[dict[str, Any]]) -> str:
    other = {row["seed"]: row for row in found if row["label"] == study.against}
    both = sorted(seed for seed in rows.keys() & other.keys() if rows[seed]["test"] == other[seed]["test"])
    if label == study.against or not both:
        return ""
    result = verdict(*(np.stack([right_of(side[seed]) for seed in both]) for side in (rows, other)))
    words = {"helps": "better", "hurts": "worse", "one seed": "no claim"}.get(result["answer"], result["answer"])
    interval = f"95% {result['low']:z.1f} to {result['high']:z.1f}"
    return f"{result['points']:+z.1f} points ({interval}), {count_of(len(both), 'seed')}: {words}"
