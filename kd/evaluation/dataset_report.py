"""Render what ``kd.evaluation.dataset_check`` has found: as one HTML page without scripts, and as lines of text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd.evaluation.dataset_check import MOST_CLASSES, MOST_NAMED, MOST_PAIRS
from kd.system.templates import Templates

FOLDER = Path(__file__).parent / "templates"

TEMPLATES = Templates(FOLDER)

# The style sheet of ``body``. The colours of text and lines are gradio's variables, which ``page`` sets by itself.
CSS = (FOLDER / "dataset_report.css").read_text()

# A problem that may cost so many points of the score, or more -> its rank, and the word for it
RANKS = ((5.0, "high", "Serious"), (1.0, "middle", "Worth a look"), (0.0, "low", "Minor"))

# kind of a pair of duplicates -> the words for it
KINDS = {"exact": "The same file", "near": "The same photo"}


def page(found: dict[str, Any]) -> str:
    """Return the findings as a whole HTML page, which loads nothing else."""
    return TEMPLATES.render("dataset_report_page", title=found["dataset"], **_values(found, str))


def body(found: dict[str, Any], rename: Callable[[str], str] = str) -> str:
    """Return the findings as a part of an HTML page, the worst problem first.

    ``rename`` puts other names of settings in the place of flags. It is applied to advice alone, not to names of classes and
    files, which may look like flags.
    """
    return TEMPLATES.render("dataset_report", **_values(found, rename))


def _values(found: dict[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """Return what the template ``dataset_report`` shows."""
    pairs, unreadable = found["duplicates"], found["unreadable"]
    return {
        "lead": lead(found),
        "notes": map(rename, found["notes"]),
        "problems": [_problem(one, rename) for one in found["problems"]],
        "splits": list(found["counts"]),
        "counts": counts_table(found),
        "more_classes": _more(found["classes"], MOST_CLASSES),
        "sheet": found["pictures"]["sheet"],
        "pair_count": f"{len(pairs):,} pair{'s' * (len(pairs) > 1)}",
        "pairs": [_pair(*each) for each in zip(pairs, found["pictures"]["pairs"], strict=False)],
        "more_pairs": _more(pairs, MOST_PAIRS),
        "teacher": found["teacher"] and _teacher(found["teacher"], rename),
        "unreadable": [f"{place(one)}: {one['reason']}" for one in unreadable[:MOST_NAMED]],
        "more_unreadable": _more(unreadable, MOST_NAMED),
    }


def counts_table(found: dict[str, Any]) -> list[tuple]:
    """Return a row for each class: its name and its images in each split; and one for images without a label among them."""
    rows = list(zip(found["classes"], *found["counts"].values(), strict=True))
    rest = [found["pictures_in_all"][name] - sum(counts) for name, counts in found["counts"].items()]
    return [*rows, ("no label", *rest)] if found["classes"] and any(rest) else rows


def _problem(one: dict[str, Any], rename: Callable[[str], str]) -> dict[str, str]:
    """Return a problem with its rank and the word for it."""
    rank, word = ranked(one["points"])
    return {"rank": rank, "word": word, **{name: rename(one[name]) for name in ("what", "why", "do")}}


def _pair(pair: dict[str, Any], image: str) -> dict[str, Any]:
    """Return a pair of duplicates in words, with the image that shows both."""
    images = {side: image_words(pair[side]) for side in ("one", "other")}
    return {**images, "kind": KINDS[pair["kind"]], "conflict": pair["conflict"], "image": image}


def _teacher(one: dict[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """Return the teacher's accuracy, the classes that it mixes up and, where names differ, which class is which."""
    labels = {"labels": one["labels"], "renamed": any(row["teacher"] != row["class"] for row in one["labels"])}
    if one["problem"] or one["accuracy"] is None:
        return {"accuracy": "", **labels}
    return {"accuracy": accuracy(one), "confused": confused(one), "warnings": map(rename, one["said"]), **labels}


def _more(items: list[Any], most: int) -> str:
    """Return how many of ``items`` are not shown; nothing where all are."""
    return f"{len(items) - most:,}" if len(items) > most else ""


# --- In words


def ranked(points: float) -> tuple[str, str]:
    """Return a problem's rank, and the word for it."""
    return next((name, word) for least, name, word in RANKS if points >= least)


def lead(found: dict[str, Any]) -> str:
    """Return how many images there are and their sizes, in two sentences."""
    sizes, splits = found["sizes"], found["pictures_in_all"]
    each = ", ".join(f"{count:,} {name}" for name, count in splits.items())
    small, middle, large = (" x ".join(map(str, sizes[name])) for name in ("smallest", "median", "largest"))
    classes = f"{len(found['classes'])} classes" if found["classes"] else "no labels"
    return (
        f"{sum(splits.values()):,} pictures ({each}), {classes}. Sizes: {small} to {large}, median {middle} pixels; "
        f"{sizes['grey']:,} are grey."
    )


def place(image: dict[str, Any]) -> str:
    """Return the split and, if there is one, the class that an image is in: "train, coat"."""
    return f"{image['split']}, {image['label']}" if image["label"] else image["split"]


def image_words(image: dict[str, Any]) -> str:
    """Return where an image is and what it is called: "train, coat: 17.jpg"."""
    return f"{place(image)}: {image['name']}"


def accuracy(one: dict[str, Any]) -> str:
    """Return the teacher's accuracy in a sentence."""
    return f"{one['name']} is right on {one['accuracy']:.1%} of the validation pictures."


def confused(one: dict[str, Any]) -> list[str]:
    """Return the pairs of classes that the teacher mixes up, a line each."""
    return [f"{row['count']} of {row['of']} {row['truth']} taken for {row['answer']}" for row in one["confused"]]


def lines(found: dict[str, Any]) -> list[str]:
    """Return the findings as lines of text, without the table of counts."""
    said = [lead(found), *found["notes"], ""]
    for nth, one in enumerate(found["problems"], start=1):
        word = ranked(one["points"])[1].lower()
        said += [f"{nth}. {one['what']} ({word})", f"   {one['why']}", f"   {one['do']}"]
    said += [] if found["problems"] else ["No problems were found."]
    for pair in found["duplicates"][:MOST_PAIRS]:
        kind = "same file " if pair["kind"] == "exact" else "same photo"
        conflict = "  two labels" if pair["conflict"] else ""
        said.append(f"{kind}  {image_words(pair['one'])}  =  {image_words(pair['other'])}{conflict}")
    said += [f"unreadable  {one['split']}: {one['reason']}" for one in found["unreadable"][:MOST_NAMED]]
    if (one := found["teacher"]) and not one["problem"] and one["accuracy"] is not None:
        said += [accuracy(one), *(f"  {line}" for line in confused(one))]
    return said


def as_json(found: dict[str, Any]) -> dict[str, Any]:
    """Return the findings without the images."""
    return {name: value for name, value in found.items() if name != "pictures"}
