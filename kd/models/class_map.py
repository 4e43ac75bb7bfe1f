"""Which of the teacher's classes is which of the dataset's: told by the user, or guessed by name.

Classes that the teacher does not know are allowed: their pictures learn from the labels alone (``kd.training.losses``).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kd.config import label_pairs
from kd.errors import UserError
from kd.text import some

WORDNET_ID = re.compile(r"^n\d{8}[\s_]+")
"""What stands before the names of ImageNet's classes in some checkpoints."""

TOLD, ORDER = "as told", "by its place"


def plain_name(name: str) -> str:
    """A name without case, spaces, underscores and hyphens."""
    return "".join(c for c in name.casefold() if c not in " _-")


def synonyms(name: str) -> set[str]:
    """The plain names in "n02123045 tabby, tabby cat", as ImageNet's classes have several, or in "T-shirt/top"."""
    return {plain_name(part) for part in re.split("[,/]", WORDNET_ID.sub("", name)) if plain_name(part)}


def singulars(name: str) -> set[str]:
    """What each of a name's synonyms may be the simple plural of, and itself."""
    found = synonyms(name)
    for word in list(found):
        if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
            found |= {
                word[:-1],
                *([word[:-2]] if word.endswith("es") else []),
                *([word[:-3] + "y"] if word.endswith("ies") else []),
            }
    return found


GUESSES: tuple[tuple[str, Callable[[str], set[str]]], ...] = (
    ("the same name", lambda name: {plain_name(name)}),
    ("a synonym", synonyms),
    ("singular and plural", singulars),
)
"""How two names can mean the same class, the surest first."""


@dataclass(frozen=True)
class Match:
    """The dataset's ``classes``, the teacher's (``theirs``), and for each of the former: the latter's index or ``None``
    (``columns``), and ``how`` that was found."""

    classes: list[str]
    theirs: list[str]
    columns: list[int | None]
    how: list[str]

    def known(self) -> list[str]:
        """The dataset's classes that the teacher knows."""
        return [name for name, column in zip(self.classes, self.columns, strict=True) if column is not None]

    def rows(self) -> list[tuple[str, str, str]]:
        """Class, the teacher's, how it was found."""
        names = ["" if column is None else self.theirs[column] for column in self.columns]
        return list(zip(self.classes, names, self.how, strict=True))

    def check(self) -> None:
        """Raises ``UserError`` where the two have fewer than two classes in common."""
        known = self.known()
        if len(known) > 1:
            return
        example = ", ".join(f"{ours}={theirs}" for ours, theirs in zip(self.classes[:2], self.theirs[:2], strict=False))
        raise UserError(
            f"The teacher predicts {len(self.theirs)} classes ({some(self.theirs)}), the dataset has {len(self.classes)} "
            f"({some(self.classes)}), and {f'only {known[0]} is' if known else 'none is'} in both. Pick a teacher fine-tuned on "
            f'these classes, or say which is which with a label map (--label-map), for example "{example}".'
        )

    def in_words(self, counts: list[int] | None = None) -> list[str]:
        """What the user should know. ``counts``: the training pictures of each of the dataset's classes."""
        said, known = [], self.known()
        if ORDER in self.how:
            whose, names = ("teacher", self.theirs) if nameless(self.theirs) else ("dataset", self.classes)
            said.append(
                f"The {whose} has no class names ({some(names, 3)}), so classes are matched by their order. If the "
                "teacher's accuracy below is near chance, the order is wrong."
            )
        guesses = [
            f"{ours} = {theirs} ({how})" for ours, theirs, how in self.rows() if how in (GUESSES[1][0], GUESSES[2][0])
        ]
        if guesses:
            said.append(
                f"Classes were matched by guessing: {some(guesses)}. Where one is wrong, say it with a label map (--label-map)."
            )
        if len(known) == len(self.classes) < len(self.theirs):
            said.append(
                f"The teacher knows {len(self.theirs)} classes: its answers are narrowed to these {len(known)}."
            )
        if len(known) < len(self.classes):
            said.append(self._unknown(counts))
        return said

    def _unknown(self, counts: list[int] | None) -> str:
        places = [nth for nth, column in enumerate(self.columns) if column is None]
        names = [self.classes[nth] + (f": {self.how[nth]}" if self.how[nth] else "") for nth in places]
        many = f" {sum(counts[nth] for nth in places):,} of {sum(counts):,}" if counts else ""
        return (
            f"The teacher does not know {len(places)} of {len(self.classes)} classes ({some(names)}). Their{many} training "
            f"pictures learn from the labels alone; of the others the student copies the teacher's answers among the "
            f"{len(self.known())} classes that both know, and agreement is measured on those. A label map (--label-map) can match more."
        )


def nameless(names: list[str]) -> bool:
    """Whether a model or a dataset was told no names for its classes, only numbers."""
    numbers = range(len(names))
    return names in ([f"LABEL_{n}" for n in numbers], [str(n) for n in numbers])


def match_classes(theirs: list[str], classes: list[str], label_map: str | None = None) -> Match:
    """Match the dataset's ``classes`` with the teacher's: first what ``label_map`` tells, then by name, the surest guess
    first, each of the teacher's classes once. What could be several stays unmatched. Where one side has no names at all
    and both have as many classes, they are matched by their order.

    Raises ``UserError`` for a ``label_map`` that names what is not there, or two classes that differ only in writing.
    """
    if theirs == classes and not label_map:
        return Match(classes, theirs, list(range(len(classes))), [GUESSES[0][0]] * len(classes))
    if len({plain_name(name) for name in classes}) < len(classes):
        raise UserError(
            f"Two classes of the dataset differ only in case, spaces or underscores: {some(sorted(classes))}."
        )
    told = _told(label_pairs(label_map or ""), theirs, classes)
    columns: list[int | None] = [told.get(nth) for nth in range(len(classes))]
    how = [TOLD if nth in told else "" for nth in range(len(classes))]
    for word, forms in GUESSES:
        taken = {column for column in columns if column is not None}
        names = {nth: forms(name) for nth, name in enumerate(theirs) if nth not in taken}
        for nth in [nth for nth, said in enumerate(how) if not said]:
            found = [column for column, others in names.items() if others & forms(classes[nth])]
            if len(found) == 1:
                columns[nth], how[nth] = found[0], word
                del names[found[0]]
            elif found:
                how[nth] = "could be " + " or ".join(f"{theirs[column]} ({column})" for column in found[:3])
    if not any(how) and len(theirs) == len(classes) and (nameless(theirs) or nameless(classes)):
        return Match(classes, theirs, list(range(len(classes))), [ORDER] * len(classes))
    return Match(classes, theirs, columns, how)


def _told(pairs: dict[str, str], theirs: list[str], classes: list[str]) -> dict[int, int | None]:
    """The dataset's class -> the teacher's, as indices; ``None`` for one that is said to have none."""
    told: dict[int, int | None] = {}
    for ours, name in pairs.items():
        place = _place(ours, classes, "dataset")
        if place in told:
            raise UserError(f"label_map has {ours!r} twice. Leave one out.")
        column = _place(name, theirs, "teacher") if name else None
        if column is not None and column in told.values():
            raise UserError(f"label_map gives the teacher's {theirs[column]!r} to two classes. It can only be one's.")
        told[place] = column
    return told


def _place(name: str, names: list[str], whose: str) -> int:
    """Where a name is among others: by the name itself, a synonym, or its number from 0."""
    for forms in (lambda n: {plain_name(n)}, synonyms):
        found = [nth for nth, other in enumerate(names) if forms(other) & forms(name)]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = " or ".join(map(str, found[:3]))
            raise UserError(
                f"label_map has {name!r}, which {len(found)} of the {whose}'s classes are called: say {numbers}."
            )
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise UserError(f"label_map has {name!r}, which is no class of the {whose}: {some(names)}.")


def label_table(match: Match, counts: list[int]) -> list[dict[str, Any]]:
    """The table of a match, a row a class: ``class, pictures, teacher, found``."""
    names = ("class", "teacher", "found")
    return [dict(zip(names, row, strict=True)) | {"pictures": n} for row, n in zip(match.rows(), counts, strict=True)]
