"""Dark knowledge: what the chosen teacher predicts for a picture at each temperature, before anything is trained.

The teacher is asked once for a picture. The script softens its logits as the slider moves; the sentences for all positions
of the slider come with the logits.
"""

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import gradio as gr

from kd.config import RUN_TEACHER, SAMPLE, DistillConfig
from kd.errors import UserError
from kd.evaluation import worker
from kd.evaluation.dark_knowledge import dark_knowledge, standardised_logits
from kd.system.cache import folder_stamp
from kd.ui import theme
from kd.ui.access import check_names, served, shared, uploaded, with_own
from kd.ui.compare import png
from kd.ui.rendering import render

# The temperatures at which the slider can stand.
STOPS = (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20)

# A process of its own: a teacher may have to come from the Hub first, and comparisons need not wait for that. The script
# waits a little longer.
ask = worker.Inference(seconds=150)

# Few may wait for an answer: the polls of all visitors share the threads.
_waiting = BoundedSemaphore(4)


@served
def teacher_says(asked: dict[str, Any]) -> dict[str, Any]:
    """Return what ``teacher`` predicts for the example number ``example``, or for the uploaded file ``path``.

    The answer has the ``names`` and ``logits`` of the classes (standardised where ``method`` does that), the ``label`` (the
    picture's class, or the teacher's first choice where it is not ``labelled``) and the ``sentences`` for all ``STOPS``; or
    a ``problem``.
    """
    try:
        config = DistillConfig(teacher=asked.get("teacher"), method=asked.get("method") or "kd")
        check_names(config)
        if shared() and config.teacher.startswith(RUN_TEACHER):  # its owner is not known here
            raise UserError(
                "A teacher that a run has made is not asked here. Its answers are in Compare, after a run that has used it."
            )
        name = with_own(config, "").teacher
        path, class_name = chosen(asked)
        names, logits = answer(name, path)
    except (UserError, ValueError, OSError, RuntimeError) as problem:  # torch's are RuntimeErrors
        return {"problem": str(problem)}
    if config.method.endswith("+std"):
        logits = standardised_logits(logits).tolist()
    label = next((index for index, other in enumerate(names) if plain(other) == class_name), None)
    labelled = label is not None
    label = label if labelled else max(range(len(logits)), key=logits.__getitem__)
    sentences = [dark_knowledge(logits, names, label, stop) for stop in STOPS]
    return {"names": names, "logits": logits, "label": label, "labelled": labelled, "sentences": sentences}


def chosen(asked: dict[str, Any]) -> tuple[Path, str | None]:
    """Return the picture that is asked about and its plain class name, or ``None`` for an upload. Raises ``UserError``."""
    nth = asked.get("example")
    if isinstance(nth, int) and 0 <= nth < len(theme.EXAMPLES):
        path = theme.EXAMPLES[nth]
        return path, plain(class_of(path))
    return Path(uploaded(asked.get("path"))), None


def class_of(path: Path) -> str:
    """Return the class in the file name of an example: "coat" of ``coat-1.png``."""
    return re.sub(r"-\d+$", "", path.stem)


def plain(name: str) -> str:
    """Return a class name as file names have it, in lower case and with letters and digits only."""
    return "".join(c for c in name.casefold() if c.isalnum())


def answer(name: str, path: Path) -> tuple[list[str], list[float]]:
    """Return the teacher's class names, and its logits for the picture.

    Raises ``UserError`` or ``ValueError``, in words, where it cannot be asked.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise UserError(f"{path.name} is not on this server any more. Choose it again.") from None
    return _asked(name, folder_stamp(Path(os.path.expanduser(name))), path, digest)


# Not ``kd.system.cache``: that lets others wait while one value is loaded, here for a download from the Hub. The teacher's
# files and the picture's content (``state``, ``digest``) are in the key, so an answer about earlier ones is not taken.
@lru_cache(maxsize=64)
def _asked(name: str, state: tuple, path: Path, digest: str) -> tuple[list[str], list[float]]:
    if not _waiting.acquire(blocking=False):
        raise UserError("Several others are asking a teacher just now. Try again in a moment.")
    try:
        return ask(worker.teacher_says, name, path)
    finally:
        _waiting.release()


# --- The panel


def build(teacher: gr.Dropdown, dataset: gr.Dropdown, temperature: gr.Number, method: gr.Dropdown) -> gr.HTML:
    """Return the panel. It follows the settings, and asks for nothing before it is visible.

    It is HTML of ours and not gr.Slider and gr.Label. A gr.Label rounds to whole percents (0.3% reads "0%"), but the small
    probabilities of the wrong classes are what this panel shows; and each of its bars is a button that does nothing. A
    gr.Slider has equal steps: the temperatures up to 5, which matter most and are half of our slider, would be less than a
    quarter of it, too close together for a finger on a phone.
    """
    preset = DistillConfig.preset(SAMPLE).to_dict()
    panel = gr.HTML(
        value={name: preset[name] for name in ("teacher", "dataset", "temperature", "method")},
        html_template=render("dark_knowledge", examples=examples()),
        js_on_load=f"""distillery.darkKnowledge({{
            element, props, server, watch, upload, stops: {list(STOPS)}, use: temperature => trigger('use', {{temperature}}),
        }})""",
        server_functions=[teacher_says],
        apply_default_css=False,
        elem_id="dark",
    )  # fmt: skip
    gr.on(
        [widget.change for widget in (teacher, dataset, temperature, method)], None,
        [teacher, dataset, temperature, method], panel,
        js="(teacher, dataset, temperature, method) => ({ teacher, dataset, temperature, method })",
        api_visibility="private", queue=False, show_progress="hidden",
    )  # fmt: skip
    panel.use(take, None, temperature, api_visibility="private", queue=False, show_progress="hidden")
    return panel


def take(event: gr.EventData) -> float:
    """Return the slider's temperature, which becomes the run's."""
    return event.temperature if event.temperature in STOPS else DistillConfig().temperature


def examples() -> list[dict[str, str]]:
    """Return the name and the image (a data URL) of each of the sample's examples."""
    return [{"name": path.stem, "image": png(str(path))} for path in theme.EXAMPLES]
