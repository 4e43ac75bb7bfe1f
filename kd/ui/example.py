"""The example: a finished run of the sample and the teacher's answers to the examples, recorded by ``kd sample example``.

It is a run's folder like any other, without its student. It is nobody's: it can be read by all, and changed by none.
"""

import hashlib
import json
import re
import time
from functools import cache
from typing import Any

from kd.runs.run import Run
from kd.system.files import ASSETS

EXAMPLE = Run(ASSETS / "example")


@cache
def recorded() -> dict[str, Any]:
    """Return what was recorded beside the run: ``machine``, ``teacher`` (the SHA-256 of the weights that answered), the
    ``classes``, and the ``logits`` by the SHA-256 of the picture."""
    return json.loads((EXAMPLE.path / "recorded.json").read_text())


@cache
def recorded_answers() -> dict[str, list[float]]:
    """Return the ``logits`` of the sample's teacher, none where its weights are not those that were asked."""
    with (ASSETS / "sample-teacher" / "model.safetensors").open("rb") as weights:
        asked = hashlib.file_digest(weights, "sha256").hexdigest()
    return recorded()["logits"] if asked == recorded()["teacher"] else {}


def where_and_when() -> str:
    """Say on which day and on which machine the example was recorded."""
    machine, day = recorded()["machine"], time.gmtime(EXAMPLE.settings()["created"])
    cores = f"{machine['cores']} core{'s' if machine['cores'] > 1 else ''}"
    cpu = re.sub(r"\((R|TM)\)", "", machine["cpu"] or "a CPU")
    return f"{day.tm_mday} {time.strftime('%B %Y', day)} on {cpu} ({cores})"
