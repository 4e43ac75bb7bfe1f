"""Check a dataset before training: find its problems and rank them by their effect on the result."""

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

# Number of training images below which a class is reported as too small.
FEW = 10

# Ratio of the largest to the smallest class above which the imbalance is reported.
IMBALANCE = 10

# Images of each class on the contact sheet, the side in pixels of these images, and of those of duplicates.
EACH, TILE, PAIR_TILE = 8, 72, 112

# The most classes, pairs of duplicates and file names that a report shows; its numbers count all of them.
MOST_CLASSES, MOST_PAIRS, MOST_NAMED = 60, 24, 200

# The background of the contact sheet.
GREY = "#8a8f98"

# Takes the name of a phase that begins and returns the function that reports its progress.
Phase = Callable[[str], Progress]


@dataclass(frozen=True)
class Problem:
    """A problem of a dataset: ``what`` was found, ``why`` it matters, and what to ``do``.

    ``points`` is its rank: about how many points of the score it may cost or falsify.
    """

    points: float
    what: str
    why: str
    do: str

    def to_dict(self) -> dict[str, Any]:
        """Return the problem ready for JSON."""
        return {"points": round(self.points, 1), "what": self.what, "why": self.why, "do": self.do}


@dataclass(frozen=True)
class Scan:
    """A dataset whose images have all been read once.

    ``labels`` ``[N]``, ``split`` ``[N]`` (0, 1, 2: train, validation, test) and ``group`` ``[N]`` (``duplicates.groups``)
    number the images of train, validation and test one after the other, as does ``images``.
    """

    splits: Splits
    images: Thumbnails
    labels: np.ndarray
    split: np.ndarray
    pairs: list[Pair]
    group: np.ndarray

    @property
    def parts(self) -> dict[str, Any]:
        """Return the datasets of the three splits by name."""
        return {name: getattr(self.splits, name) for name in WORDS}

    def row(self, index: int) -> dict[str, Any]:
        """Return the dataset's row of the image ``index``."""
        start = np.searchsorted(self.split, self.split[index])
        return list(self.parts.values())[self.split[index]][int(index - start)]

    def about(self, index: int) -> dict[str, Any]:
        """Describe an image for people: ``split``, ``name`` of its file or else its number in the split, and ``label``."""
        path, start = self.row(index)["image"]["path"], np.searchsorted(self.split, self.split[index])
        label = self.splits.classes[self.labels[index]] if self.labels[index] >= 0 else ""
        name = Path(path).name if path else f"number {index - start + 1}"
        return {"split": list(WORDS)[self.split[index]], "name": name, "label": label}


def check_dataset(
    config: DistillConfig,
    cache: Path,
    ask_teacher: bool = False,
    phase: Phase = lambda name: lambda done, of: None,
) -> dict[str, Any]:
    """Check all images of ``config``'s dataset and, with ``ask_teacher``, its teacher's accuracy on the validation split.

    Returns:
        A dictionary ready for JSON: ``dataset``, ``classes``, ``counts`` (split -> number of images of each class),
        ``sizes``, ``unreadable``, ``duplicates``, ``teacher`` (or ``None``), ``problems`` (``points, what, why, do``, the
        worst first), and ``pictures``, JPEGs as ``data:`` URLs: ``sheet`` (class -> a strip of images) and ``pairs`` (in the
        order of ``duplicates``).

    Raises:
        UserError: as ``load_splits`` does, and where no image can be read.
    """
    scan = scan_dataset(config, cache, phase)
    found: dict[str, Any] = {
        "dataset": short_name(config.dataset),
        "classes": scan.splits.classes,
        "counts": {name: class_counts(part, scan.splits.classes).tolist() for name, part in scan.parts.items()},
        "pictures_in_all": scan.splits.sizes(),
        "notes": [*scan.splits.warnings, *_limit_notes(scan)],
        "sizes": _sizes(scan, config),
        "unreadable": [
            {**scan.about(index), "reason": reason} for index, reason in sorted(scan.images.unreadable.items())
        ],
        "duplicates": _duplicates(scan),
        "teacher": _teacher(config, scan, cache, phase) if ask_teacher and config.teacher != NO_TEACHER else None,
    }
    problems = [*_class_problems(found), *_duplicate_problems(scan), *_image_problems(found), *_teacher_problems(found)]
    found["problems"] = [problem.to_dict() for problem in sorted(problems, key=lambda one: -one.points)]
    shown = [[pair["one"]["index"], pair["other"]["index"]] for pair in found["duplicates"][:MOST_PAIRS]]
    found["pictures"] = {"sheet": _sheet(scan), "pairs": [_strip(scan, indices, whole=True) for indices in shown]}
    return found


def scan_dataset(config: DistillConfig, cache: Path, phase: Phase) -> Scan:
    """Read every image once, or return the results of an earlier scan from ``cache``.

    Raises ``UserError`` for a stream, of which no image can be looked at twice.
    """
    if config.streaming == "yes":
        raise UserError(
            "A streamed dataset cannot be checked: a check looks at every picture, and at pairs of them again. What a stream is "
            "searched for (equal files on both sides, pictures that cannot be read or have no label) its run says. To check a part, "
            "name one of its files and leave out --streaming.",
            setting="streaming",
        )
    splits = load_splits(config)
    parts = [getattr(splits, name) for name in WORDS]
    images = joined([load_thumbnails(part, cache, phase("looking at the pictures")) for part in parts])
    pairs = known_pairs(splits, cache, phase)
    labels = np.concatenate([np.asarray(part["label"], dtype=np.int64) for part in parts])
    split = np.repeat(range(len(parts)), [len(part) for part in parts])
    return Scan(splits, images, labels, split, pairs, groups(len(labels), pairs))


def _limit_notes(scan: Scan) -> list[str]:
    """Return a note where the dataset is too large to search it for near duplicates."""
    if len(scan.labels) <= NEAR_MOST:
        return []
    return [f"With more than {NEAR_MOST:,} pictures, only equal files are found as duplicates."]


# --- Findings


def _sizes(scan: Scan, config: DistillConfig) -> dict[str, Any]:
    """Summarize the sizes of the readable images.

    Returns ``smallest``, ``median`` and ``largest`` (width, height) by area, the number of ``readable`` images, the side of
    the student's ``input`` (``None`` where it is not known yet), and the numbers of images ``below`` it and of ``grey`` ones.
    """
    readable = np.setdiff1d(np.arange(len(scan.labels)), list(scan.images.unreadable))
    if not len(readable):
        raise UserError(f"None of the pictures can be read. The first: {next(iter(scan.images.unreadable.values()))}")
    sizes = scan.images.sizes[readable]
    by_area = sizes[np.argsort(sizes.prod(1, dtype=np.int64), kind="stable")]
    side = _input_side(config, int(np.median(sizes.min(1))))
    thumbs = scan.images.thumbs[readable].astype(np.int16)
    return {
        "smallest": by_area[0].tolist(),
        "median": by_area[len(by_area) // 2].tolist(),
        "largest": by_area[-1].tolist(),
        "readable": len(readable),
        "input": side,
        "below": int((sizes.min(1) < side).sum()) if side else 0,
        "grey": int((np.ptp(thumbs, axis=-1).max((1, 2)) <= 8).sum()),
    }


def _input_side(config: DistillConfig, image_side: int) -> int | None:
    """Return the side of the student's input, or ``None`` where only a pretrained student's processor knows it."""
    if config.image_size or config.student not in STUDENT_NAMES:
        return config.image_size
    from kd.models.zoo import student_side

    return student_side(config.student, None, image_side)


def _duplicates(scan: Scan) -> list[dict[str, Any]]:
    """Return all pairs of duplicates: first those with different labels, then those across splits."""

    def rank(pair: Pair) -> tuple:
        return _have_same_label(scan, pair), scan.split[pair.one] == scan.split[pair.other], pair.difference

    return [
        {
            "kind": pair.kind, "difference": pair.difference, "conflict": not _have_same_label(scan, pair),
            "one": {**scan.about(pair.one), "index": pair.one}, "other": {**scan.about(pair.other), "index": pair.other},
        }
        for pair in sorted(scan.pairs, key=rank)
    ]  # fmt: skip


def _have_same_label(scan: Scan, pair: Pair) -> bool:
    return bool(scan.labels[pair.one] == scan.labels[pair.other])


def _teacher(config: DistillConfig, scan: Scan, cache: Path, phase: Phase) -> dict[str, Any]:
    """Score the teacher on the validation split that a run would have; the logits are cached for the run.

    Returns ``accuracy``, ``chance`` (``chance_level``) and ``confused`` (``_confused``), or else ``problem``; in both cases
    ``labels``, the table of how its classes were matched (``label_table``).
    """
    classes, name, matched = scan.splits.classes, short_name(config.teacher), []
    try:
        from kd.evaluation.disagreement import confusion
        from kd.evaluation.metrics import chance_level
        from kd.evaluation.scoring import load_scores, quality, score
        from kd.models.device import pick_device
        from kd.models.teacher import load_teacher, teacher_classes

        part = without_duplicates(scan.splits, config, cache, phase).validation
        if classes:
            match = match_classes(teacher_classes(existing_teacher(config.teacher)), classes, config.label_map)
            matched = label_table(match, class_counts(scan.splits.train, classes).tolist())
        teacher = load_teacher(existing_teacher(config.teacher), classes or None, config.label_map)
        if not classes:
            return {
                "name": name,
                "problem": None,
                "said": teacher.warnings,
                "accuracy": None,
                "confused": [],
                "labels": matched,
            }
        readable = np.setdiff1d(np.arange(len(part)), list(load_thumbnails(part, cache).unreadable))
        device, labels = pick_device(config.device), np.asarray(part["label"])[readable]
        progress = phase("asking the teacher")
        logits = load_scores(
            f"{teacher.key()}-{fingerprint(part)}", cache, len(readable),
            lambda: score(teacher, teacher.processor, part, device, progress).logits,
        )  # fmt: skip
    except UserError as problem:
        return {"name": name, "problem": str(problem), "labels": matched}
    matrix = np.asarray(confusion(logits.argmax(-1), labels, len(classes)))
    return {
        "name": name, "problem": None, "said": teacher.warnings,
        "accuracy": round(float(quality(logits, labels)["accuracy"]), 4),
        "chance": round(chance_level(labels), 4),
        "confused": _confused(matrix, classes),
        "labels": matched,
    }  # fmt: skip


def _confused(matrix: np.ndarray, classes: list[str], most: int = 5) -> list[dict[str, Any]]:
    """Return the most frequent confusions in a confusion matrix.

    Each is ``truth`` (the true class), ``answer`` (the predicted class), ``count``, and ``of``, the true class's images.
    """
    wrong = matrix * (1 - np.eye(len(matrix), dtype=int))
    worst = [np.unravel_index(place, wrong.shape) for place in np.argsort(-wrong, axis=None, kind="stable")[:most]]
    return [
        {"truth": classes[t], "answer": classes[a], "count": int(wrong[t, a]), "of": int(matrix[t].sum())}
        for t, a in worst
        if wrong[t, a]
    ]


# --- Problems


def _class_problems(found: dict[str, Any]) -> list[Problem]:
    """Report classes that are missing, tiny or much smaller than others, and a test split that is too small."""
    classes, counts, problems = found["classes"], {k: np.array(v) for k, v in found["counts"].items()}, []
    for name, use in (
        ("test", "The score says nothing about them"),
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
            "A student cannot learn a class from so few; it will mostly predict the others.",
            "Add pictures of them, or leave the classes out.",
        ))  # fmt: skip
    if len(train) and train.max() > IMBALANCE * train.min() > 0:
        most, least = classes[train.argmax()], classes[train.argmin()]
        problems.append(Problem(
            100 * train.min() / train.sum() + 2,
            f"{most} has {train.max():,} training pictures, {least} {train.min():,}: {train.max() / train.min():.0f} times as many.",
            "The student will prefer the large classes, and accuracy hides that. Look at macro F1 as well.",
            f"Add pictures of {least}, or take fewer of {most}.",
        ))  # fmt: skip
    tested = found["pictures_in_all"]["test"]
    noise = 164 * (0.9 * 0.1 / tested) ** 0.5  # points: half of a 90% interval around an accuracy of 90%
    if noise > 3:
        problems.append(Problem(
            noise, f"{tested:,} test picture{'s' * (tested != 1)}.",
            f"One picture is {100 / tested:.1f} points: a score of 90% is known to about ± {noise:.0f} points only.",
            "Set more pictures aside for test before you trust a small difference.",
        ))  # fmt: skip
    return problems


def _duplicate_problems(scan: Scan) -> list[Problem]:
    """Report duplicates across splits, with different labels, and within train."""
    train, validation, test = (scan.group[scan.split == nth] for nth in range(3))
    problems = []
    left_out = "A run leaves the copies out of training by itself (duplicates: one side). "
    for name, part, before in (("test", test, np.concatenate([train, validation])), ("validation", validation, train)):
        if count := int(np.isin(part, before).sum()):
            points = 100 * count / len(part)
            problems.append(Problem(
                points if name == "test" else points / 3,
                f"{count:,} of {len(part):,} {WORDS[name]} pictures {'is' if count == 1 else 'are'} in "
                f"{'train or validation' if name == 'test' else 'train'} too.",
                f"A student that memorizes its training pictures gets these right: the {name} score may be up to {points:.1f} "
                "points too good.",
                f"{left_out}Better remove them from {name} or train yourself.",
            ))  # fmt: skip
    if mixed := _conflicting(scan):
        problems.append(Problem(
            100 * mixed / len(scan.labels) + 1,
            f"{mixed:,} picture{'s have' if mixed > 1 else ' has'} a duplicate with another label.",
            "One of the two labels is wrong, and a wrong label harms both training and scores.",
            "Look at the pairs below and correct the labels, or remove both.",
        ))  # fmt: skip
    if spare := len(train) - len(set(train)):
        problems.append(Problem(
            20 * spare / len(train), f"{spare:,} of {len(train):,} training pictures repeat{'s' * (spare == 1)} another one of train.",
            "Copies cost training time and give one picture more weight, but add no information.",
            "Remove the copies, unless they are intended.",
        ))  # fmt: skip
    return problems


def _conflicting(scan: Scan) -> int:
    """Count the images in groups of duplicates that have more than one label."""
    order = np.lexsort((scan.labels, scan.group))
    group, labels = scan.group[order], scan.labels[order]
    differs = (group[1:] == group[:-1]) & (labels[1:] != labels[:-1])
    return int(np.isin(group, group[1:][differs]).sum())


def _image_problems(found: dict[str, Any]) -> list[Problem]:
    """Report unreadable files, images smaller than the student's input, and a few grey images among coloured ones."""
    problems, sizes = [], found["sizes"]
    count = len(found["unreadable"])
    share = count / (count + sizes["readable"])
    if count:
        most = limits.current().unreadable_share
        refused = count > max(1, most * (count + sizes["readable"]))  # the rule by which a run refuses them
        problems.append(Problem(
            100 if refused else 100 * share, f"{count:,} file{'s' * (count > 1)} cannot be read.",
            f"More than {most:.0%} is unreadable: a run refuses that." if refused else "A run leaves them out.",
            "They are named below with the reason. Export them again, or remove them.",
        ))  # fmt: skip
    if below := sizes["below"]:
        problems.append(Problem(
            5 * below / sizes["readable"],
            f"{below:,} picture{'s are' if below > 1 else ' is'} smaller than the student's input of {sizes['input']} px.",
            "They are enlarged, which costs the time of a large input and adds no detail.",
            "Choose a smaller image size, or use larger originals.",
        ))  # fmt: skip
    grey = sizes["grey"] / sizes["readable"]
    if 0 < grey < 0.2 or 0.8 < grey < 1:
        few = sizes["grey"] if grey < 0.5 else sizes["readable"] - sizes["grey"]
        problems.append(Problem(
            min(grey, 1 - grey), f"{few:,} of {sizes['readable']:,} pictures are {'grey' if grey < 0.5 else 'in colour'}, unlike the others.",
            "If these are mostly of one class, the student learns the colour instead of the object.",
            "Make sure that every class has both, or convert all to the same.",
        ))  # fmt: skip
    return problems


def _teacher_problems(found: dict[str, Any]) -> list[Problem]:
    """Report a teacher that cannot be loaded, or that is no better than chance on these images."""
    teacher = found["teacher"]
    if teacher is None:
        return []
    if teacher["problem"]:
        return [Problem(100, "The teacher cannot be asked.", teacher["problem"], "Choose a teacher of these classes.")]
    if teacher["accuracy"] is not None and teacher["accuracy"] <= teacher["chance"]:
        return [Problem(
            100, f"The teacher is right on {teacher['accuracy']:.1%} of validation, no better than chance.",
            "A student learns its teacher's mistakes.",
            "Check whether its classes are these, in this order, or choose another teacher.",
        )]  # fmt: skip
    return []


# --- Thumbnails for the report


def _sheet(scan: Scan) -> dict[str, str]:
    """Return a strip with a few training images for each of the first ``MOST_CLASSES`` classes."""
    train = scan.labels[scan.split == 0]
    names = scan.splits.classes[:MOST_CLASSES] or ["no label"]
    strips = {}
    for label, name in enumerate(names):
        members = np.flatnonzero(train == (label if scan.splits.classes else -1))
        members = np.setdiff1d(members, list(scan.images.unreadable))
        if len(members):
            strips[name] = _strip(scan, members[np.linspace(0, len(members) - 1, min(EACH, len(members)), dtype=int)])
    return strips


def _strip(scan: Scan, indices: Any, whole: bool = False) -> str:
    """Return images side by side as the ``data:`` URL of a JPEG: ``whole`` or cropped to squares, grey where unreadable."""
    side = PAIR_TILE if whole else TILE
    strip = Image.new("RGB", (len(indices) * side, side), GREY)
    for place, index in enumerate(indices):
        with suppress(BadPicture):
            image = open_row(scan.row(int(index)), least=side)
            fitted = ImageOps.pad(image, (side - 2, side), color=GREY) if whole else ImageOps.fit(image, (side, side))
            strip.paste(fitted, (place * side, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
