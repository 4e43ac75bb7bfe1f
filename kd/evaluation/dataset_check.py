"""The check of a dataset before anything is trained on it: what is wrong, ranked by what it will do to the result."""

import base64
import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from kd import limits
from kd.config import NO_TEACHER, STUDENT_NAMES, DistillConfig
from kd.data.duplicates import (
    NEAR_MOST,
    WORDS,
    Pair,
    Progress,
    Thumbnails,
    class_counts,
    groups,
    joined,
    known_pairs,
    load_thumbnails,
    without_duplicates,
)
from kd.data.images import BadPicture, open_row
from kd.data.library.store import short_name
from kd.data.pixels import fingerprint
from kd.data.splits import Splits, load_splits
from kd.errors import UserError
from kd.models.class_map import label_table, match_classes
from kd.runs.store import existing_teacher
from kd.text import some

FEW = 10
"""A class with fewer training pictures is tiny."""

IMBALANCE = 10
"""Times that the largest class may be as large as the smallest."""

EACH, TILE, PAIR_TILE = 8, 72, 112
"""Pictures of each class on the contact sheet, their side in pixels, and that of the pairs."""

MOST_CLASSES, MOST_PAIRS, MOST_NAMED = 60, 24, 200
"""What is shown at most of each kind; the figures count all."""

GREY = "#8a8f98"

Phase = Callable[[str], Progress]


@dataclass(frozen=True)
class Problem:
    """``what`` was found, ``why`` it matters, what to ``do``; ``points``, about how many points of the score it may cost or
    falsify, is its rank."""

    points: float
    what: str
    why: str
    do: str

    def to_dict(self) -> dict[str, Any]:
        return {"points": round(self.points, 1), "what": self.what, "why": self.why, "do": self.do}


@dataclass(frozen=True)
class Seen:
    """A dataset once its pictures have been looked at. ``labels`` ``[N]``, ``split`` ``[N]`` (0, 1, 2: train, validation,
    test) and ``group`` ``[N]`` (``duplicates.groups``) go through the splits' pictures in that order."""

    splits: Splits
    looks: Thumbnails
    labels: np.ndarray
    split: np.ndarray
    pairs: list[Pair]
    group: np.ndarray

    @property
    def parts(self) -> dict[str, Any]:
        return {name: getattr(self.splits, name) for name in WORDS}

    def row(self, index: int) -> dict[str, Any]:
        """The row of the picture ``index``."""
        start = np.searchsorted(self.split, self.split[index])
        return list(self.parts.values())[self.split[index]][int(index - start)]

    def about(self, index: int) -> dict[str, Any]:
        """A picture in words: ``split``, ``name`` of its file, or its place in the split, and ``label``."""
        path, start = self.row(index)["image"]["path"], np.searchsorted(self.split, self.split[index])
        label = self.splits.classes[self.labels[index]] if self.labels[index] >= 0 else ""
        name = Path(path).name if path else f"number {index - start + 1}"
        return {"split": list(WORDS)[self.split[index]], "name": name, "label": label}


def check(
    config: DistillConfig,
    cache: Path,
    ask_teacher: bool = False,
    phase: Phase = lambda name: lambda done, of: None,
) -> dict[str, Any]:
    """Look at all pictures of ``config``'s dataset, and with ``ask_teacher`` at its teacher's answers to validation.

    Returns, ready for JSON: ``dataset``, ``classes``, ``counts`` (split -> pictures of each class), ``sizes``,
    ``unreadable``, ``duplicates``, ``teacher`` (or ``None``), ``problems`` (the worst first: ``points, what, why, do``), and
    ``pictures``, JPEG as ``data:`` addresses: ``sheet`` (class -> a strip) and ``pairs`` (in the order of ``duplicates``).

    Raises ``UserError`` where ``load_splits`` does.
    """
    seen = look(config, cache, phase)
    found: dict[str, Any] = {
        "dataset": short_name(config.dataset),
        "classes": seen.splits.classes,
        "counts": {name: class_counts(part, seen.splits.classes).tolist() for name, part in seen.parts.items()},
        "pictures_in_all": seen.splits.sizes(),
        "notes": [*seen.splits.warnings, *_limits(seen)],
        "sizes": _sizes(seen, config),
        "unreadable": [
            {**seen.about(index), "reason": reason} for index, reason in sorted(seen.looks.unreadable.items())
        ],
        "duplicates": _duplicates(seen),
        "teacher": _teacher(config, seen, cache, phase) if ask_teacher and config.teacher != NO_TEACHER else None,
    }
    problems = [*_of_classes(found), *_of_duplicates(seen), *_of_pictures(found), *_of_teacher(found)]
    found["problems"] = [problem.to_dict() for problem in sorted(problems, key=lambda one: -one.points)]
    found["pictures"] = {"sheet": _sheet(seen), "pairs": [_strip(seen, [d["one"]["index"], d["other"]["index"]], True) for d in found["duplicates"][:MOST_PAIRS]]}  # fmt: skip
    return found


def look(config: DistillConfig, cache: Path, phase: Phase) -> Seen:
    """Every picture once, or what is kept of an earlier look."""
    splits = load_splits(config)
    parts = [getattr(splits, name) for name in WORDS]
    seen = joined([load_thumbnails(part, cache, phase("looking at the pictures")) for part in parts])
    pairs = known_pairs(splits, cache, phase)
    labels = np.concatenate([np.asarray(part["label"], dtype=np.int64) for part in parts])
    split = np.repeat(range(len(parts)), [len(part) for part in parts])
    return Seen(splits, seen, labels, split, pairs, groups(len(labels), pairs))


def _limits(seen: Seen) -> list[str]:
    if len(seen.labels) <= NEAR_MOST:
        return []
    return [f"Of more than {NEAR_MOST:,} pictures only equal files are taken for duplicates."]


# --- What is found


def _sizes(seen: Seen, config: DistillConfig) -> dict[str, Any]:
    """``smallest``, ``median`` and ``largest`` (width, height) by area; the student's ``input`` side where it is known
    already, and how many pictures are ``below`` it; how many are ``grey``."""
    readable = np.setdiff1d(np.arange(len(seen.labels)), list(seen.looks.unreadable))
    if not len(readable):
        raise UserError(f"None of the pictures can be read. The first: {next(iter(seen.looks.unreadable.values()))}")
    sizes = seen.looks.sizes[readable]
    by_area = sizes[np.argsort(sizes.prod(1, dtype=np.int64), kind="stable")]
    side = _input_side(config, int(np.median(sizes.min(1))))
    thumbs = seen.looks.thumbs[readable].astype(np.int16)
    return {
        "smallest": by_area[0].tolist(),
        "median": by_area[len(by_area) // 2].tolist(),
        "largest": by_area[-1].tolist(),
        "readable": len(readable),
        "input": side,
        "below": int((sizes.min(1) < side).sum()) if side else 0,
        "grey": int((np.ptp(thumbs, axis=-1).max((1, 2)) <= 8).sum()),
    }


def _input_side(config: DistillConfig, picture_side: int) -> int | None:
    if config.image_size or config.student not in STUDENT_NAMES:
        return config.image_size
    from kd.models.zoo import student_side

    return student_side(config.student, None, picture_side)


def _duplicates(seen: Seen) -> list[dict[str, Any]]:
    """Every pair, those with two labels first, then those across splits."""

    def rank(pair: Pair) -> tuple:
        return _agree(seen, pair), seen.split[pair.one] == seen.split[pair.other], pair.difference

    return [
        {
            "kind": pair.kind, "difference": pair.difference, "conflict": not _agree(seen, pair),
            "one": {**seen.about(pair.one), "index": pair.one}, "other": {**seen.about(pair.other), "index": pair.other},
        }
        for pair in sorted(seen.pairs, key=rank)
    ]  # fmt: skip


def _agree(seen: Seen, pair: Pair) -> bool:
    return bool(seen.labels[pair.one] == seen.labels[pair.other])


def _teacher(config: DistillConfig, seen: Seen, cache: Path, phase: Phase) -> dict[str, Any]:
    """The teacher on the validation pictures that a run would have, its answers kept as a run's: ``accuracy``, ``chance``
    (always the commonest class, with its noise) and ``confused`` (truth, answer, count, of); or ``problem``. ``labels`` is
    the table of what its classes were matched with (``kd.models.class_map.tabulated``)."""
    classes, name, matched = seen.splits.classes, short_name(config.teacher), []
    try:
        from kd.evaluation.disagreement import confusion
        from kd.evaluation.metrics import guessing
        from kd.evaluation.scoring import load_scores, quality, score
        from kd.models.device import pick_device
        from kd.models.teacher import load_teacher, teacher_classes

        part = without_duplicates(seen.splits, config, cache, phase).validation
        if classes:
            match = match_classes(teacher_classes(existing_teacher(config.teacher)), classes, config.label_map)
            matched = label_table(match, class_counts(seen.splits.train, classes).tolist())
        teacher = load_teacher(existing_teacher(config.teacher), classes or None, config.label_map)
        said = teacher.warnings
        if not classes:
            return {"name": name, "problem": None, "said": said, "accuracy": None, "confused": [], "labels": matched}
        keep = np.setdiff1d(np.arange(len(part)), list(load_thumbnails(part, cache).unreadable))
        device, labels = pick_device(config.device), np.asarray(part["label"])[keep]
        tell = phase("asking the teacher")
        logits = load_scores(
            f"{teacher.key()}-{fingerprint(part)}", cache, len(keep),
            lambda: score(teacher, teacher.processor, part, device, tell).logits,
        )  # fmt: skip
    except UserError as problem:
        return {"name": name, "problem": str(problem), "labels": matched}
    matrix = np.asarray(confusion(logits.argmax(-1), labels, len(classes)))
    return {
        "name": name, "problem": None, "said": said,
        "accuracy": round(float(quality(logits, labels)["accuracy"]), 4),
        "chance": round(guessing(labels), 4),
        "confused": _confused(matrix, classes),
        "labels": matched,
    }  # fmt: skip


def _confused(matrix: np.ndarray, classes: list[str], most: int = 5) -> list[dict[str, Any]]:
    """The pairs of classes that are mixed up most often: ``truth, answer, count, of``."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=int))
    worst = [np.unravel_index(place, wrong.shape) for place in np.argsort(-wrong, axis=None, kind="stable")[:most]]
    return [
        {"truth": classes[t], "answer": classes[a], "count": int(wrong[t, a]), "of": int(matrix[t].sum())}
        for t, a in worst
        if wrong[t, a]
    ]


# --- What that will do


def _of_classes(found: dict[str, Any]) -> list[Problem]:
    """Classes that are missing, tiny, or much smaller than others; too few test pictures."""
    classes, counts, problems = found["classes"], {k: np.array(v) for k, v in found["counts"].items()}, []
    for name, use in (
        ("test", "The score says nothing of them"),
        ("validation", "The best epoch is chosen without them"),
    ):
        if empty := [label for label, count in zip(classes, counts[name], strict=True) if not count]:
            problems.append(Problem(
                100 * len(empty) / len(classes) / (1 if name == "test" else 3),
                f"No {WORDS[name]} picture of {some(empty)}.", f"{use}.",
                f"Add {WORDS[name]} pictures of {'it' if len(empty) == 1 else 'each'}, or let both splits be cut from train.",
            ))  # fmt: skip
    train = counts["train"]
    if tiny := [f"{label} ({count})" for label, count in zip(classes, train, strict=True) if 0 < count < FEW]:
        problems.append(Problem(
            50 * len(tiny) / len(classes), f"Fewer than {FEW} training pictures of {some(tiny)}.",
            "A student cannot learn a class from so few; it will mostly answer with the others.",
            "Add pictures of them, or leave the classes out.",
        ))  # fmt: skip
    if len(train) and train.max() > IMBALANCE * train.min() > 0:
        most, least = classes[train.argmax()], classes[train.argmin()]
        problems.append(Problem(
            100 * train.min() / train.sum() + 2,
            f"{most} has {train.max():,} training pictures, {least} {train.min():,}: {train.max() / train.min():.0f} times as many.",
            "The student will prefer the large classes, and accuracy hides it. Look at macro F1 as well.",
            f"Add pictures of {least}, or take fewer of {most}.",
        ))  # fmt: skip
    tested = found["pictures_in_all"]["test"]
    noise = 164 * (0.9 * 0.1 / tested) ** 0.5
    if noise > 3:
        problems.append(Problem(
            noise, f"{tested:,} test picture{'s' * (tested != 1)}.",
            f"One picture is {100 / tested:.1f} points: a score of 90% is known to about ± {noise:.0f} points only.",
            "Set more pictures aside for test before you trust a small difference.",
        ))  # fmt: skip
    return problems


def _of_duplicates(seen: Seen) -> list[Problem]:
    """Duplicates across splits, with different labels, and within train."""
    train, validation, test = (seen.group[seen.split == nth] for nth in range(3))
    problems = []
    left_out = "A run leaves the copies out of training by itself (duplicates: one side). "
    for name, part, before in (("test", test, np.concatenate([train, validation])), ("validation", validation, train)):
        if count := int(np.isin(part, before).sum()):
            points = 100 * count / len(part)
            problems.append(Problem(
                points if name == "test" else points / 3,
                f"{count:,} of {len(part):,} {WORDS[name]} pictures {'is' if count == 1 else 'are'} in "
                f"{'train or validation' if name == 'test' else 'train'} too.",
                f"What was learned by heart counts as understood: the {name} score is up to {points:.1f} points too good.",
                f"{left_out}Better remove them from {name} or train yourself.",
            ))  # fmt: skip
    if mixed := _conflicting(seen):
        problems.append(Problem(
            100 * mixed / len(seen.labels) + 1,
            f"{mixed:,} picture{'s have' if mixed > 1 else ' has'} a duplicate with another label.",
            "One of the two labels is wrong: it teaches the student, and measures it, falsely.",
            "Look at the pairs below and correct the labels, or remove both.",
        ))  # fmt: skip
    if spare := len(train) - len(set(train)):
        problems.append(Problem(
            20 * spare / len(train), f"{spare:,} of {len(train):,} training pictures repeat{'s' * (spare == 1)} another one of train.",
            "They add time and weight to one picture, no knowledge.", "Remove the copies, unless you mean it.",
        ))  # fmt: skip
    return problems


def _conflicting(seen: Seen) -> int:
    """Pictures in groups of duplicates that have more than one label."""
    order = np.lexsort((seen.labels, seen.group))
    group, labels = seen.group[order], seen.labels[order]
    differs = (group[1:] == group[:-1]) & (labels[1:] != labels[:-1])
    return int(np.isin(group, group[1:][differs]).sum())


def _of_pictures(found: dict[str, Any]) -> list[Problem]:
    """Files that cannot be read, pictures that must be enlarged, a few grey ones among colours."""
    problems, sizes = [], found["sizes"]
    count = len(found["unreadable"])
    share = count / (count + sizes["readable"])
    if count:
        most = limits.current().unreadable_share
        refused = count > max(1, most * (count + sizes["readable"]))  # as a run does
        problems.append(Problem(
            100 if refused else 100 * share, f"{count:,} file{'s' * (count > 1)} cannot be read.",
            f"More than {most:.0%} is unreadable: a run refuses that." if refused else "A run leaves them out.",
            "They are named below with the reason. Export them anew, or remove them.",
        ))  # fmt: skip
    if below := sizes["below"]:
        problems.append(Problem(
            5 * below / sizes["readable"],
            f"{below:,} picture{'s are' if below > 1 else ' is'} smaller than the student's input of {sizes['input']} px.",
            "They are enlarged: it costs the time of a large input and shows no more.",
            "Choose a smaller image size, or use larger originals.",
        ))  # fmt: skip
    grey = sizes["grey"] / sizes["readable"]
    if 0 < grey < 0.2 or 0.8 < grey < 1:
        few = sizes["grey"] if grey < 0.5 else sizes["readable"] - sizes["grey"]
        problems.append(Problem(
            min(grey, 1 - grey), f"{few:,} of {sizes['readable']:,} pictures are {'grey' if grey < 0.5 else 'in colour'}, unlike the others.",
            "If these are mostly of one class, the student learns the colour instead of the thing.",
            "See that every class has both, or make all alike.",
        ))  # fmt: skip
    return problems


def _of_teacher(found: dict[str, Any]) -> list[Problem]:
    """A teacher that cannot be asked, or knows nothing of these pictures."""
    teacher = found["teacher"]
    if teacher is None:
        return []
    if teacher["problem"]:
        return [Problem(100, "The teacher cannot be asked.", teacher["problem"], "Choose a teacher of these classes.")]
    if teacher["accuracy"] is not None and teacher["accuracy"] <= teacher["chance"]:
        return [Problem(
            100, f"The teacher is right on {teacher['accuracy']:.1%} of validation, no better than chance.",
            "A student learns its teacher's mistakes.", "Are these its classes, in its order? Choose another teacher.",
        )]  # fmt: skip
    return []


# --- Pictures of pictures


def _sheet(seen: Seen) -> dict[str, str]:
    """For each class (the first ones, where there are many) a strip of a few of its training pictures."""
    train = seen.labels[seen.split == 0]
    names = seen.splits.classes[:MOST_CLASSES] or ["no label"]
    strips = {}
    for label, name in enumerate(names):
        members = np.flatnonzero(train == (label if seen.splits.classes else -1))
        members = np.setdiff1d(members, list(seen.looks.unreadable))
        if len(members):
            strips[name] = _strip(seen, members[np.linspace(0, len(members) - 1, min(EACH, len(members)), dtype=int)])
    return strips


def _strip(seen: Seen, indices: Any, whole: bool = False) -> str:
    """Pictures side by side, their middles or ``whole``, as the ``data:`` address of a JPEG; what cannot be read is grey."""
    side = PAIR_TILE if whole else TILE
    strip = Image.new("RGB", (len(indices) * side, side), GREY)
    for place, index in enumerate(indices):
        with suppress(BadPicture):
            picture = open_row(seen.row(int(index)), least=side)
            fitted = (
                ImageOps.pad(picture, (side - 2, side), color=GREY) if whole else ImageOps.fit(picture, (side, side))
            )
            strip.paste(fitted, (place * side, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
