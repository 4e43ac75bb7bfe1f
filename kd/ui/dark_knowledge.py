"""Dark knowledge: what the chosen teacher says of a picture at each temperature, before anything is trained.

The teacher is asked once for a picture; the script softens its answer as the slider moves, and the sentences for the
slider's stops come along.
"""

import hashlib
import os
import re
from collections import OrderedDict
from pathlib import Path
from threading import BoundedSemaphore, Lock
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

FILES = Path(__file__).parent / "templates"

STOPS = (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20)
"""Where the slider can stand."""

MOST_KEPT = 64

_kept: OrderedDict[tuple, tuple[list[str], list[float]]] = OrderedDict()
"""(teacher, picture) -> class names and logits, the last ones that were asked for."""

_keeping = Lock()

ask = worker.Inference(seconds=150)
"""A process of its own: a teacher may have to come from the Hub first, and comparisons need not wait for that. The script
waits a little longer."""

_waiting = BoundedSemaphore(4)
"""Few may wait for an answer: the polls of all visitors share the threads."""


@served
def teacher_says(asked: dict[str, Any]) -> dict[str, Any]:
    """What ``teacher`` says of the example number ``example`` or of the uploaded file ``path``, as ``method`` has it.

    ``names`` and ``logits`` of its classes; ``label``, the picture's class, or the teacher's first where it has none
    (``labelled``); ``sentences``, for each of ``STOPS``. ``problem`` where it cannot be asked.
    """
    try:
        config = DistillConfig(teacher=asked.get("teacher"), method=asked.get("method") or "kd")
        check_names(config)
        if shared() and config.teacher.startswith(RUN_TEACHER):  # whose it is is not known here
            raise UserError(
                "A teacher that a run has made is not asked here. Its answers are in Compare, once it has taught."
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
    """The picture that is asked about, and its class's plain name. Raises ``UserError``."""
    nth = asked.get("example")
    if isinstance(nth, int) and 0 <= nth < len(theme.EXAMPLES):
        path = theme.EXAMPLES[nth]
        return path, plain(class_of(path))
    return Path(uploaded(asked.get("path"))), None


def class_of(path: Path) -> str:
    """The class in an example's name, "coat" of ``coat-1.png``."""
    return re.sub(r"-\d+$", "", path.stem)


def plain(name: str) -> str:
    """A class name without case and signs: those of files have none."""
    return "".join(c for c in name.casefold() if c.isalnum())


def answer(name: str, path: Path) -> tuple[list[str], list[float]]:
    """The teacher's class names, and its logits for the picture. Raises ``UserError``, or ``ValueError``, in words."""
    try:
        with path.open("rb") as file:
            key = name, folder_stamp(Path(os.path.expanduser(name))), hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise UserError(f"{path.name} is not on this server any more. Choose it again.") from None
    with _keeping:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    if not _waiting.acquire(blocking=False):
        raise UserError("Several others are asking a teacher just now. Try again in a moment.")
    try:
        found = ask(worker.teacher_says, name, path)
    finally:
        _waiting.release()
    with _keeping:
        _kept[key] = found
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    return found


# --- The panel


def build(teacher: gr.Dropdown, dataset: gr.Dropdown, temperature: gr.Number, method: gr.Dropdown) -> gr.HTML:
    """The panel; it follows the settings, and asks for nothing before it is seen."""
    preset = DistillConfig.preset(SAMPLE).to_dict()
    panel = gr.HTML(
        value={name: preset[name] for name in ("teacher", "dataset", "temperature", "method")},
        html_template=(FILES / "dark.html").read_text().replace("@@examples", examples()),
        js_on_load=f"distillery.dark(element, props, server, watch, upload, {list(STOPS)}, temperature => trigger('use', {{temperature}}))",
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
    """The slider's temperature becomes the run's."""
    return event.temperature if event.temperature in STOPS else DistillConfig().temperature


def examples() -> str:
    """The sample's examples as buttons with their pictures."""
    return "".join(
        f'<button type="button" data-nth="{nth}" aria-pressed="false" aria-label="Ask about {path.stem}">'
        f'<img alt="" src="{png(str(path))}"></button>'
        for nth, path in enumerate(theme.EXAMPLES)
    )
