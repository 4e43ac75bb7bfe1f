"""Where teacher and student differ: the part of a finished run that is asked for once, when it comes into view."""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

from kd.config import NO_TEACHER
from kd.errors import UserError
from kd.runs.run import Run
from kd.ui import figures
from kd.ui.access import readable, served
from kd.ui.compare import bars
from kd.ui.figures import analysis_figures

PICTURE = re.compile(r"gallery/\d+\.webp")

MOST_BYTES = 1_000_000
"""What all pictures of a gallery may take; those that differ most come first."""

FIRST = 6
"""So many pictures are seen at once."""

RIGHT = {
    (True, True): "Both are right",
    (True, False): "Only the teacher is right",
    (False, True): "Only the student is right",
    (False, False): "Both are wrong",
}

AGREED = {True: "They agree", False: "They differ"}
"""What is said of a picture without a label."""

NONE_KEPT = (
    "This run kept no answers to its test pictures: it is from before Distillery did. Distill once more to see where its "
    "teacher and student differ."
)


@served
def analysis(asked: dict[str, Any]) -> dict[str, Any]:
    """For ``owner`` or whoever has the key ``view``: ``html``, and ``figures`` for its charts, none where there was no
    teacher. ``problem`` where there is no such run for this visitor."""
    try:
        run = readable(asked.get("run", ""), asked.get("owner", ""), asked.get("view", ""))
        if run.config().teacher == NO_TEACHER:
            return {"html": "", "figures": {}}
        found = kept(run)
    except (UserError, PermissionError) as problem:
        return {"problem": str(problem)}
    figures = {name: figure.to_plotly_json() for name, figure in analysis_figures(found).items()}
    return {"html": shown_analysis(found, run), "figures": figures}


def kept(run: Run) -> dict[str, Any]:
    """A run's ``analysis.json``. Raises ``UserError`` where there is none."""
    try:
        return json.loads((run.path / "analysis.json").read_text())
    except FileNotFoundError:
        raise UserError(NONE_KEPT if run.status() == "done" else f"Run {run.id} is not done yet.") from None
    except ValueError as error:
        raise UserError(f"{run.path.name}/analysis.json is damaged: {error}") from error


def shown_analysis(found: dict[str, Any], run: Run) -> str:
    """The section as HTML; the script draws the charts into it."""
    if found.get("labels") == "teacher":
        return (
            "<h3>Where teacher and student differ</h3>"
            f"{gallery(found, run)}"
            "<h4>What is taken for what</h4>"
            "<p>Test pictures by the teacher's answer (row) and the student's (column): in teal they agree, in copper they "
            f"differ. The pictures have no labels, so who is right is not known.</p>{chart('confusion_student')}"
        )
    classes, drawn = len(found["classes"]), figures.MOST_CLASSES
    few = f" Of {classes} classes, the {drawn} that lost most are drawn." if classes > drawn else ""
    return (
        "<h3>Where teacher and student differ</h3>"
        f"{gallery(found, run)}"
        f"<h4>Classes</h4><p>{html.escape(lost(found) + few)}</p>{chart('f1')}"
        "<h4>What is taken for what</h4>"
        "<p>Test pictures of each class (row) by answer (column): teal is right, copper is wrong.</p>"
        f'<div class="kd-charts">{chart("confusion_teacher")}{chart("confusion_student")}</div>'
        f"<h4>How sure each is</h4><p>{html.escape(sureness(found))}</p>{chart('reliability')}"
    )


def chart(name: str) -> str:
    return f'<div class="kd-chart" data-figure="{name}"></div>'


def lost(found: dict[str, Any]) -> str:
    """The classes whose F1 fell most, in a sentence."""
    named = [f"{row['label']} ({row['points']:.1f})" for row in found["lost_most"] if row["points"] >= 0.05]
    if not named:
        return "No class lost F1 from teacher to student."
    several = f"{', '.join(named[:-1])} and {named[-1]}" if len(named) > 1 else named[0]
    return f"From teacher to student, {several} lost most, in points of F1."


def sureness(found: dict[str, Any]) -> str:
    """Both calibration errors, and to which side they err."""
    return " ".join(_sureness(side, found[side]["calibration"]) for side in ("teacher", "student")) + (
        " 0% would be as sure as it is right."
    )


def _sureness(side: str, sure: dict[str, Any]) -> str:
    bins = zip(sure["confidence"], sure["accuracy"], sure["count"], strict=True)
    over = sum(count * (confidence - accuracy) for confidence, accuracy, count in bins if count)
    return f"The {side}'s calibration error (ECE) is {sure['ece']:.1%}, mostly too {'sure' if over > 0 else 'unsure'}."


# --- Pictures


def gallery(found: dict[str, Any], run: Run) -> str:
    """The test pictures on which the two differ, the farthest apart first."""
    rows = found["disagreements"]
    if not rows:
        return "<p>On no test picture do their answers differ notably.</p>"
    left, cards = MOST_BYTES, []
    for row in rows:
        image, size = picture(row, run, left)
        left -= size
        cards.append(card(row, image, found.get("labels", "dataset")))
    many = f"{len(rows)} test pictures" if len(rows) > 1 else "one test picture"
    rest = "".join(cards[FIRST:])
    more = f'<details><summary>Show {len(rows) - FIRST} more</summary><div class="kd-gallery">{rest}</div></details>'
    return (
        f"<h4>Pictures</h4><p>The {many} on which their answers are farthest apart.</p>"
        f'<div class="kd-gallery">{"".join(cards[:FIRST])}</div>{more if rest else ""}'
    )


def picture(row: dict[str, Any], run: Run, most: int) -> tuple[str, int]:
    """A picture of the run's folder as a data URL, and its bytes; nothing where it is gone, or larger than ``most``."""
    name = row.get("picture", "")
    if not PICTURE.fullmatch(name):
        return "", 0
    try:
        data = (Path(run.path) / name).read_bytes()
    except OSError:
        return "", 0
    if len(data) > most:
        return "", 0
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}", len(data)


def card(row: dict[str, Any], image: str, labels: str) -> str:
    """One test picture: the truth, where that is known, and both top threes."""
    teacher, student = (row[side][0]["label"] for side in ("teacher", "student"))
    if labels == "teacher":
        head, alt = f"<b>{AGREED[teacher == student]}</b>", "A test picture"
    else:
        truth = html.escape(row["truth"])
        right = RIGHT[teacher == row["truth"], student == row["truth"]]
        head, alt = f"<b>{truth}</b><br><small>{right}</small>", f"A test picture of the class {truth}"
    seen = f'<img src="{image}" alt="{alt}">' if image else ""
    both = "".join(bars(side, row[side.lower()], "p") for side in ("Teacher", "Student"))
    return f'<figure class="kd-test">{seen}<figcaption>{head}</figcaption><div class="kd-pair">{both}</div></figure>'
