"""Match the dataset's classes with the teacher's, by the user's label map or by their names.

The dataset may have classes that the teacher does not know: the student learns those from the labels alone
(``kd.training.losses``).
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kd.config import joined_classes, label_pairs
from kd.errors import UserError
from kd.text import some

# The WordNet number before the names of ImageNet's classes in some checkpoints.
WORDNET_ID = re.compile(r"^n\d{8}[\s_]+")

# How a class was matched, in words for users; the other ways are those of ``GUESSES``.
BY_LABEL_MAP, BY_POSITION = "label map", "position"


def plain_name(name: str) -> str:
    """Return a name in lower case, without spaces, underscores and hyphens."""
    return "".join(c for c in name.casefold() if c not in " _-")


def synonyms(name: str) -> set[str]:
    """Return the plain names in one with several, such as ImageNet's "n02123045 tabby, tabby cat", or "T-shirt/top"."""
    return {plain_name(part) for part in re.split("[,/]", WORDNET_ID.sub("", name)) if plain_name(part)}


def singulars(name: str) -> set[str]:
    """Return a name's synonyms, and for each that may be a regular plural, its possible singulars."""
    found = synonyms(name)
    for word in list(found):
        if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
            found |= {
                word[:-1],
                *([word[:-2]] if word.endswith("es") else []),
                *([word[:-3] + "y"] if word.endswith("ies") else []),
            }
    return found


# The ways to tell from two names that they mean the same class, the most reliable first.
GUESSES: tuple[tuple[str, Callable[[str], set[str]]], ...] = (
    ("the same name", lambda name: {name}),
    ("the same name", lambda name: {plain_name(name)}),
    ("a synonym", synonyms),
    ("singular and plural", singulars),
)


@dataclass(frozen=True)
class Match:
    """The dataset's ``classes`` matched with the teacher's.

    For each of the dataset's classes, ``columns`` holds the index of the teacher's class, ``None`` where it has none, and
    ``how`` says how it was matched.
    """

    classes: list[str]
    teacher_classes: list[str]
    columns: list[int | None]
    how: list[str]

    def known(self) -> list[str]:
        """Return the dataset's classes that the teacher knows."""
        return [name for name, column in zip(self.classes, self.columns, strict=True) if column is not None]

    def rows(self) -> list[tuple[str, str, str]]:
        """Return for each class its name, the teacher's name for it, and how they were matched."""
        names = ["" if column is None else self.teacher_classes[column] for column in self.columns]
        return list(zip(self.classes, names, self.how, strict=True))

    def check(self) -> None:
        """Raise ``UserError`` where the two have fewer than two classes in common."""
        known, theirs = self.known(), self.teacher_classes
        if len(known) > 1:
            return
        example = ", ".join(f"{ours}={other}" for ours, other in zip(self.classes[:2], theirs[:2], strict=False))
        raise UserError(
            f"The teacher predicts {len(theirs)} classes ({some(theirs)}), the dataset has {len(self.classes)} "
            f"({some(self.classes)}), and {f'only {known[0]} is' if known else 'none is'} in both. Pick a teacher fine-tuned on "
            f'these classes, or say which is which with a label map (--label-map), for example "{example}".'
        )

    def warnings(self, counts: list[int] | None = None) -> list[str]:
        """Return what the user should know; ``counts`` are the numbers of training images of the dataset's classes."""
        found, known, theirs = [], self.known(), self.teacher_classes
        if BY_POSITION in self.how:
            owner, names = ("teacher", theirs) if has_no_names(theirs) else ("dataset", self.classes)
            found.append(
                f"The {owner} has no class names ({some(names, 3)}), so classes are matched by their order. If the "
                "teacher's accuracy below is near chance, the order is wrong."
            )
        uncertain = (GUESSES[2][0], GUESSES[3][0])
        guesses = [f"{ours} = {other} ({how})" for ours, other, how in self.rows() if how in uncertain]
        if guesses:
            found.append(
                f"Classes were matched by guessing: {some(guesses)}. Correct a wrong one with a label map (--label-map)."
            )
        if len(known) == len(self.classes) < len(theirs):
            found.append(f"The teacher knows {len(theirs)} classes: its answers are narrowed to these {len(known)}.")
        if len(known) < len(self.classes):
            found.append(self._unknown_warning(counts))
        return found

    def _unknown_warning(self, counts: list[int] | None) -> str:
        """Say which classes the teacher does not know and what that means for training and agreement."""
        unknown = [index for index, column in enumerate(self.columns) if column is None]
        names = [self.classes[index] + (f": {self.how[index]}" if self.how[index] else "") for index in unknown]
        share = f" {sum(counts[index] for index in unknown):,} of {sum(counts):,}" if counts else ""
        return (
            f"The teacher does not know {len(unknown)} of {len(self.classes)} classes ({some(names)}). Their{share} "
            "training pictures are learned from the labels alone. On the others the student copies the teacher's answers "
            f"among the {len(self.known())} classes that both know, and agreement is measured on those. A label map "
            "(--label-map) can match more."
        )


def has_no_names(names: list[str]) -> bool:
    """Return whether the classes of a model or a dataset are only numbered."""
    numbers = range(len(names))
    return names in ([f"LABEL_{n}" for n in numbers], [str(n) for n in numbers])


def match_classes(theirs: list[str], classes: list[str], label_map: str | None = None) -> Match:
    """Match the dataset's ``classes`` with the teacher's (``theirs``), each of which is matched at most once.

    Classes in ``label_map`` are matched first, the others by name, the most reliable way first. A class that could be
    several of the teacher's stays unmatched. Where one side has no names and both have the same number of classes, they
    are matched by position.

    Classes that differ only in case, spaces or underscores (A and a) are different classes: each is matched with the
    teacher's of exactly its name, or else not at all. Raises ``UserError`` for a ``label_map`` with an unknown name.
    """
    if theirs == classes and not label_map:
        return Match(classes, theirs, list(range(len(classes))), [GUESSES[0][0]] * len(classes))
    joined = joined_classes(label_map)
    pairs = {ours: name for ours, name in label_pairs(label_map or "").items() if ours not in joined or ours in classes}
    mapped = _mapped(pairs, theirs, classes)
    columns: list[int | None] = [mapped.get(index) for index in range(len(classes))]
    how = [BY_LABEL_MAP if index in mapped else "" for index in range(len(classes))]
    for way, forms in GUESSES:
        taken = {column for column in columns if column is not None}
        names = {column: forms(name) for column, name in enumerate(theirs) if column not in taken}
        unmatched = [index for index, found_by in enumerate(how) if not found_by]
        alike = Counter(plain_name(classes[index]) for index in unmatched)
        for index in unmatched:
            if forms is not GUESSES[0][1] and alike[plain_name(classes[index])] > 1:
                continue
            found = [column for column, others in names.items() if others & forms(classes[index])]
            if len(found) == 1:
                columns[index], how[index] = found[0], way
                del names[found[0]]
            elif found:
                how[index] = "could be " + " or ".join(f"{theirs[column]} ({column})" for column in found[:3])
    if not any(how) and len(theirs) == len(classes) and (has_no_names(theirs) or has_no_names(classes)):
        return Match(classes, theirs, list(range(len(classes))), [BY_POSITION] * len(classes))
    return Match(classes, theirs, columns, how)


def _mapped(pairs: dict[str, str], theirs: list[str], classes: list[str]) -> dict[int, int | None]:
    """Return a label map as indices, the dataset's -> the teacher's; ``None`` where the user says that there is none."""
    mapped: dict[int, int | None] = {}
    for ours, name in pairs.items():
        index = _index_of(ours, classes, "dataset")
        if index in mapped:
            raise UserError(f"label_map has {ours!r} twice. Leave one out.")
        column = _index_of(name, theirs, "teacher") if name else None
        if column is not None and column in mapped.values():
            raise UserError(
                f"label_map gives the teacher's {theirs[column]!r} to two classes, under two names. Write it alike for both, and "
                "they become one class; or leave one out."
            )
        mapped[index] = column
    return mapped


def _index_of(name: str, names: list[str], owner: str) -> int:
    """Return the index of a class given by its name, a synonym, or its number from 0; ``owner`` is for error messages."""
    for forms in (lambda n: {n}, lambda n: {plain_name(n)}, synonyms):
        found = [index for index, other in enumerate(names) if forms(other) & forms(name)]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = " or ".join(map(str, found[:3]))
            raise UserError(
                f"label_map has {name!r}, which {len(found)} of the {owner}'s classes are called: say {numbers}."
            )
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise UserError(f"label_map has {name!r}, which is no class of the {owner}: {some(names)}.")


def label_table(match: Match, counts: list[int]) -> list[dict[str, Any]]:
    """Return the table of a match with a row for each class: ``class``, ``pictures``, ``teacher``, ``found``."""
    names = ("class", "teacher", "found")
    return [dict(zip(names, row, strict=True)) | {"pictures": n} for row, n in zip(match.rows(), counts, strict=True)]
