"""The students that the page offers: pretrained ones first, where the Hub answers that keeps them; else only ours.

The Hub is asked once, by a thread, when the page is started: nobody waits for it.
"""

from threading import Thread
from typing import Any

import gradio as gr

from kd.errors import UserError
from kd.system.hub import explained
from kd.ui import settings

# Hub id -> millions of parameters with the 1,000 classes of ImageNet, which all of these have learned
PRETRAINED = {
    "google/mobilenet_v2_1.0_224": 3.5,
    "microsoft/resnet-18": 11.7,
    "facebook/deit-tiny-patch16-224": 5.7,
    "google/efficientnet-b0": 5.3,
    "facebook/convnextv2-atto-1k-224": 3.7,
    "google/mobilenet_v2_0.35_96": 1.7,
    "apple/mobilevit-xx-small": 1.3,
}

# Seconds that the Hub may take to answer.
TIMEOUT = 3

_hub_answers = False


def ask_hub() -> Thread:
    """Find out in the background whether the Hub answers, and return the thread that does so."""

    def ask() -> None:
        global _hub_answers
        _hub_answers = answers()

    thread = Thread(target=ask, daemon=True)
    thread.start()
    return thread


def answers() -> bool:
    """Tell whether the Hub answers when it is asked for the first of ``PRETRAINED``."""
    from huggingface_hub import HfApi

    name = next(iter(PRETRAINED))
    try:
        with explained("model", name, is_local=True):  # it is asked here, and not for as long as a download may take
            HfApi().model_info(name, timeout=TIMEOUT)
    except UserError:
        return False
    return True


def offer() -> Any:
    """Put the pretrained students first in the list when a page is opened; leave it as it is where the Hub is away."""
    return gr.Dropdown(choices=choices()) if _hub_answers else gr.skip()


def choices() -> list[tuple[str, str]]:
    """Return all students as (words, name), the pretrained ones with their size."""
    pretrained = [(f"{name}: pretrained, {millions:g} M parameters", name) for name, millions in PRETRAINED.items()]
    ours = [(name, name) for name in settings.suggestions("student") if name not in PRETRAINED]
    return [*pretrained, *ours]
