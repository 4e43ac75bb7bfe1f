"""Dark knowledge: what the chosen teacher predicts for a picture at each temperature, before anything is trained.

The teacher is asked once for a picture. The script softens its logits as the sliders move; the sentences for all
temperatures at which the slider can stand come with the logits.
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
from kd.ui import settings, theme
from kd.ui.access import check_names, served, shared, uploaded, with_own
from kd.ui.compare import png
from kd.ui.example import recorded, recorded_answers
from kd.ui.rendering import render

# The temperatures at which the slider can stand.
STOPS = tuple(nth * settings.STEPS["temperature"] for nth in range(1, 41))

# A process of its own: a teacher may have to come from the Hub first, and comparisons need not wait for that. The script
# waits a little longer.
ask = worker.Inference(seconds=150)

# Few may wait for an answer: the polls of all visitors share the threads.
_waiting = BoundedSemaphore(4)


@served
def teacher_says(asked: dict[str, Any]) -> dict[str, Any]:
    """Return what ``teacher`` predicts for the example number ``example``, or for the uploaded file ``path``.

    The answer has the ``names`` and ``logits`` of the classes (standardised where ``method`` does that), the ``label`` (the
    picture's class, or the teacher's first choice where it is not ``labelled``) and the ``sentences``, one for each of
    ``STOPS``; or a ``problem``.
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
    return {
        "names": names, "logits": logits, "label": label, "labelled": labelled,
        "sentences": dict(zip(map("{:g}".format, STOPS), sentences, strict=True)),
    }  # fmt: skip


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
    """Return the teacher's class names, and its logits for the picture: those that were recorded, where the sample's teacher
    is asked about an example, so that the page has them at once and without torch.

    Raises ``UserError`` or ``ValueError``, in words, where it cannot be asked.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise UserError(f"{path.name} is not on this server any more. Choose it again.") from None
    if name == SAMPLE and digest in (known := recorded_answers()):
        return recorded()["classes"], known[digest]
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


# The settings that the panel follows, beside the chosen picture.
FOLLOWED = ("teacher", "dataset", "method", "temperature", "lambda", "labels")

# The example that is asked about first: the teacher is not sure of it, so that its answer has something to soften.
FIRST = "shirt-2"


def build(pictures: gr.HTML, widgets: dict[str, gr.components.Component]) -> gr.HTML:
    """Return the panel that stands beside the sliders. It follows them, the other settings and the chosen picture.

    It is HTML of ours and no gr.Label: that rounds to whole percents (0.3% reads "0%"), but the small probabilities of the
    wrong classes are what this panel shows; and each of its bars is a button that does nothing.
    """
    preset = DistillConfig.preset(SAMPLE).to_dict()
    panel = gr.HTML(
        value={**{name: preset[name] for name in FOLLOWED}, "picture": pictures.value},
        html_template=render("dark_knowledge"),
        js_on_load="distillery.darkKnowledge({ element, props, server, watch })",
        server_functions=[teacher_says],
        apply_default_css=False,
        elem_id="dark",
    )
    followed = [*(widgets[name] for name in FOLLOWED), pictures]
    gr.on(
        [one.change for one in followed], None, followed, panel,
        js=f"({', '.join((*FOLLOWED, 'picture'))}) => ({{ {', '.join((*FOLLOWED, 'picture'))} }})",
        api_visibility="private", queue=False, show_progress="hidden",
    )  # fmt: skip
    return panel


def chooser() -> gr.HTML:
    """Return the sample's examples as buttons, and a field for a picture of one's own; its value is the chosen one."""
    first = next(nth for nth, path in enumerate(theme.EXAMPLES) if path.stem == FIRST)
    return gr.HTML(
        value={"example": first, "source": examples()[first]["source"], "name": f"The example {FIRST}"},
        html_template=render("dark_knowledge_pictures", examples=examples(), first=first),
        js_on_load="distillery.choosePicture({ element, props, upload, trigger })",
        apply_default_css=False,
        elem_id="another-picture-of",
    )


def examples() -> list[dict[str, str]]:
    """Return the name and the image (a data URL) of each of the sample's examples."""
    return [{"name": path.stem, "source": png(str(path))} for path in theme.EXAMPLES]
