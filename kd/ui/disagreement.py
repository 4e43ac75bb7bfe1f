"""Where teacher and student differ: the part of a finished run that a page asks for once, when it comes into view."""

import base64
import json
import re
from typing import Any

from kd.config import NO_TEACHER
from kd.errors import UserError
from kd.runs.run import Run
from kd.ui.access import served, shown
from kd.ui.figures import MOST_CLASSES, analysis_figures
from kd.ui.rendering import render

IMAGE_NAME = re.compile(r"gallery/\d+\.webp")

# All images of a gallery take no more than this; those on which the models differ most come first.
MOST_BYTES = 1_000_000

# So many images of the gallery are shown at once; a click shows the others.
FIRST = 6

# (the teacher is right, the student is right) -> what is said of an image whose label is known
RIGHT = {
    (True, True): "Both are right",
    (True, False): "Only the teacher is right",
    (False, True): "Only the student is right",
    (False, False): "Both are wrong",
}


@served
def analysis(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the section of the run ``asked["run"]`` as ``html``, and the ``figures`` of its charts; empty for a run without
    a teacher, and ``problem`` where this visitor may not read such a run.

    A visitor is known by the token ``owner``, or by ``view``, the key of a read-only link.
    """
    try:
        run = shown(asked.get("run", ""), asked.get("owner", ""), asked.get("view", ""))
        if run.config().teacher == NO_TEACHER:
            return {"html": "", "figures": {}}
        found = load_analysis(run)
    except (UserError, PermissionError) as problem:
        return {"problem": str(problem)}
    figures = {name: figure.to_plotly_json() for name, figure in analysis_figures(found).items()}
    return {"html": render_analysis(found, run), "figures": figures}


def load_analysis(run: Run) -> dict[str, Any]:
    """Read a run's ``analysis.json``. Raises ``UserError`` where there is none, or it is damaged."""
    try:
        return json.loads((run.path / "analysis.json").read_text())
    except FileNotFoundError:
        raise UserError(f"Run {run.id} is not done yet.") from None
    except ValueError as error:
        raise UserError(f"{run.path.name}/analysis.json is damaged: {error}") from error


def render_analysis(found: dict[str, Any], run: Run) -> str:
    """Render the section as HTML; the page's script draws the charts into it."""
    return render(
        "disagreement",
        labelled=found["labels"] == "dataset",
        cards=gallery(found, run),
        first=FIRST,
        lost=most_lost_words(found),
        classes=len(found["classes"]),
        drawn=MOST_CLASSES,
        sureness=" ".join(calibration_words(side, found[side]["calibration"]) for side in ("teacher", "student")),
    )


def most_lost_words(found: dict[str, Any]) -> str:
    """Return the classes whose F1 fell most, in a sentence."""
    named = [f"{row['label']} ({row['points']:.1f})" for row in found["lost_most"] if row["points"] >= 0.05]
    if not named:
        return "No class lost F1 from teacher to student."
    several = f"{', '.join(named[:-1])} and {named[-1]}" if len(named) > 1 else named[0]
    return f"From teacher to student, {several} lost most, in points of F1."


def calibration_words(side: str, calibration: dict[str, Any]) -> str:
    """Return a model's calibration error in a sentence, and whether it is mostly too sure or too unsure."""
    bins = zip(calibration["confidence"], calibration["accuracy"], calibration["count"], strict=True)
    excess = sum(count * (confidence - accuracy) for confidence, accuracy, count in bins if count)
    wrong = "sure" if excess > 0 else "unsure"
    return f"The {side}'s calibration error (ECE) is {calibration['ece']:.1%}, mostly too {wrong}."


# --- The gallery


def gallery(found: dict[str, Any], run: Run) -> list[dict[str, Any]]:
    """Return a card for each test image on which the two differ, those that differ most first."""
    left, cards = MOST_BYTES, []
    for row in found["disagreements"]:
        image, size = image_url(row, run, left)
        left -= size
        cards.append(row | title_of(row, found["labels"]) | {"image": image})
    return cards


def image_url(row: dict[str, Any], run: Run, most: int) -> tuple[str, int]:
    """Return an image of the run's folder as a data URL, and its size in bytes; nothing where it is gone, or larger than
    ``most``."""
    name = row["picture"]
    if not IMAGE_NAME.fullmatch(name):  # the run's folder may have been brought from elsewhere
        return "", 0
    try:
        data = (run.path / name).read_bytes()
    except OSError:
        return "", 0
    if len(data) > most:
        return "", 0
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}", len(data)


def title_of(row: dict[str, Any], labels: str) -> dict[str, str]:
    """Return a card's ``title`` (the truth, where it is known), a ``remark`` under it, and its image's ``description``."""
    teacher, student, truth = row["teacher"][0]["label"], row["student"][0]["label"], row["truth"]
    if labels == "teacher":
        title = "They agree" if teacher == student else "They differ"
        return {"title": title, "remark": "", "description": "A test picture"}
    remark = RIGHT[teacher == truth, student == truth]
    return {"title": truth, "remark": remark, "description": f"A test picture of the class {truth}"}
