"""A study: the same settings with a few changes, over seeds, each compared with one of them on the same test pictures.

``python -m kd study FILE`` reads what to do from a JSON file and appends each training's result to ``FILE.results`` as it
comes; begun again, it goes on where it was. Everything that is said is reckoned from that file alone. A result knows its
settings and its test pictures: one of others is not counted.
"""

import base64
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

KEYS = ("preset", "settings", "vary", "seeds", "against")

APART = ("seed", "device")
"""Settings that a result does not keep among the others: the one is beside them, the other is the machine's."""


@dataclass(frozen=True)
class Study:
    """``vary``: label -> the settings (public names) that it changes; ``against`` is the label that the others are
    compared with, ``None`` for no comparison. ``$NAMES`` in them are of the environment, so that they name no one's
    folders."""

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
        """What is varied has the last word, and before it what comes with its recipe and method. Raises ``ValueError``."""
        own = self.vary[label]
        brought = {**RECIPES.get(str(own.get("recipe")), {}), **METHODS.get(str(own.get("method")), {})}
        return DistillConfig.preset(self.preset, **{**self.settings, **brought, **own, "seed": seed})

    def config(self, label: str, seed: int) -> DistillConfig:
        """``asked`` on this machine. Raises ``UserError`` for a name that the environment has not."""
        asked = self.asked(label, seed).to_dict()
        return DistillConfig.from_dict({name: _expanded(name, value) for name, value in asked.items()})


def load_study(path: Path) -> Study:
    """Read a study. Raises ``UserError`` in words where the file is not there, not JSON, or not a study."""
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
    """Raises ``ValueError`` for one that is another run's student by the time of the next training."""
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


def kept(study: Study) -> list[dict[str, Any]]:
    """All of the file's results; a line that a killed process left half written is not one. Raises ``UserError``."""
    try:
        lines = study.results.read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{study.results} has a line that is not a result: {error}. Mend or remove it.") from error


def rows_of(study: Study) -> list[dict[str, Any]]:
    """The results of what the study asks for today: of its labels and seeds, each with its settings."""
    return [
        row
        for row in kept(study)
        if row["label"] in study.vary and row["seed"] in study.seeds and _is_as_asked(study, row)
    ]


def _is_as_asked(study: Study, row: dict[str, Any]) -> bool:
    """A setting that the row does not know, as it is younger, had its default; an old row knows none, and is of nothing."""
    if not row.keys() >= {"settings", "test"}:
        return False
    asked = settings_of(study.asked(row["label"], row["seed"]))
    return {**settings_of(DistillConfig()), **row["settings"]} == asked


def settings_of(config: DistillConfig) -> dict[str, Any]:
    """What a result must have been trained with to be one of ``config``."""
    return {name: value for name, value in config.to_dict().items() if name not in APART}


def test_pictures(config: DistillConfig) -> str:
    """A hash of the test split, the same wherever it lies."""
    from kd.data.pixels import fingerprint
    from kd.data.splits import load_splits

    return fingerprint(load_splits(config).test)


def keep(study: Study, row: dict[str, Any]) -> None:
    """Add a result, in the place of a line that a killed process has left half written."""
    with study.results.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")


def work_on_study(study: Study, folder: Path, tell: Callable[[str], None]) -> None:
    """Train what is missing, seed by seed, so that comparisons are in pairs early.

    Raises ``UserError`` where the file's results are of other test pictures, before anything is trained, and where a run
    ends before it is done; what came before is kept.
    """
    done = rows_of(study)
    missing = [
        (seed, label)
        for seed in study.seeds
        for label in study.vary
        if not any((row["label"], row["seed"]) == (label, seed) for row in done)
    ]
    if not missing:
        return
    tests: dict[tuple, str] = {}
    for label in study.vary:
        config = resolve(study.config(label, study.seeds[0]), folder, local_owner(folder))
        pictures = tuple(getattr(config, name) for name in OF_PICTURES)
        tests[pictures] = tests.get(pictures) or test_pictures(config)
        if others := [row for row in done if row["label"] == label and row["test"] != tests[pictures]]:
            raise UserError(
                f"{study.results} holds {len(others)} result{'s' * (len(others) > 1)} of {label!r} on other test pictures than "
                f"those that {config.dataset} gives now. Move that file away, or name the pictures that it is of."
            )
    for seed, label in missing:
        run = trained(
            study.config(label, seed), folder, lambda text, at=(label, seed): tell(f"{at[0]}, seed {at[1]}: {text}")
        )
        settings = settings_of(study.asked(label, seed))
        keep(study, {"label": label, "seed": seed, **result_of(run), "settings": settings})


def _has(run: Run, config: DistillConfig) -> bool:
    try:
        return run.config() == config
    except UserError:  # damaged, or another version's
        return False


def _is_of(run: Run, config: DistillConfig) -> bool:
    """Whether a run that is done was measured on the test pictures that ``config`` names today."""
    return run.last("data").get("test_pictures") == test_pictures(config)


def trained(config: DistillConfig, folder: Path, tell: Callable[[str], None]) -> Run:
    """A run of ``config`` that is done: an earlier one, one that is under way, one that was interrupted and goes on, or
    a new one."""
    wanted = resolve(config, folder, local_owner(folder))
    same = {}
    for run in list_runs(folder):
        if _has(run, wanted) and (run.status() != "done" or _is_of(run, wanted)):
            same[run.status()] = run
    if "done" in same:
        return same["done"]
    old = next((same[status] for status in ("running", "queued", "stopped", "died") if status in same), None)
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
            f"Run {run.id} is {status}. {last['message'] if last else ''} The study goes on when begun again."
        )
    return run


def _tell_epoch(event: dict[str, Any], tell: Callable[[str], None]) -> None:
    if event["event"] == "eval":
        tell(f"epoch {event['epoch']:g}, {event['accuracy']:.1%} on validation, {event['seconds']:.0f} s")


def result_of(run: Run) -> dict[str, Any]:
    """A run's scores, and for each test picture whether the student was right (``right``, packed bits in base64)."""
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
    """bool ``[M]`` of a result."""
    return np.unpackbits(np.frombuffer(base64.b64decode(row["right"]), np.uint8), count=row["pictures"]).astype(bool)


def study_table(study: Study) -> list[list[str]]:
    """The results so far, the head first: means over seeds, their spread, minutes, and the comparison over the seeds
    that both sides have, on the same test pictures."""
    head = [
        "",
        "seeds",
        "test accuracy",
        "validation",
        "epochs",
        "minutes",
        f"against {study.against}" if study.against else "",
    ]
    found = rows_of(study)
    lines = [head]
    for label in study.vary:
        rows = {row["seed"]: row for row in found if row["label"] == label}
        if rows:
            lines.append([label, *_means(list(rows.values())), _against(study, label, rows, found)])
    return lines


def _means(rows: list[dict[str, Any]]) -> list[str]:
    scores = [100 * row["accuracy"] for row in rows]
    spread = f" +- {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    mean = {name: statistics.mean(row[name] for row in rows) for name in ("validation", "epochs", "seconds")}
    return [
        str(len(rows)), f"{statistics.mean(scores):.1f}%{spread}", f"{mean['validation']:.1%}", f"{mean['epochs']:.0f}",
        f"{mean['seconds'] / 60:.1f}",
    ]  # fmt: skip


def _against(study: Study, label: str, rows: dict[int, dict[str, Any]], found: list[dict[str, Any]]) -> str:
    other = {row["seed"]: row for row in found if row["label"] == study.against}
    both = sorted(seed for seed in rows.keys() & other.keys() if rows[seed]["test"] == other[seed]["test"])
    if label == study.against or not both:
        return ""
    said = verdict(*(np.stack([right_of(side[seed]) for seed in both]) for side in (rows, other)))
    words = {"helps": "better", "hurts": "worse", "one seed": "no claim"}.get(said["answer"], said["answer"])
    return f"{said['points']:+z.1f} points (95% {said['low']:z.1f} to {said['high']:z.1f}), {len(both)} seed{'s' * (len(both) > 1)}: {words}"
