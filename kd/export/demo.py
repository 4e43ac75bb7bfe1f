"""Make ``demo.html``: a page that runs the student in whatever browser opens it, on pictures and on what a camera sees.

It has the model inside and the engine's files beside it, so that any web server of static files can serve it.
"""

import base64
import json
import shutil
from pathlib import Path

from markupsafe import Markup

from kd.system.browser_runtime import HOW_TO_GET_IT, SCRIPT, WASM
from kd.system.files import write_whole
from kd.system.templates import Templates

HERE = Path(__file__).parent

# What the demo shares with the page's Compare tab: it runs a student in a browser.
STUDENT_SCRIPT = HERE / "static" / "student.js"

RUNTIME = "runtime"

LEFT_OUT = f"demo.html is left out: ONNX Runtime Web, which runs a student in a browser, is not on this machine. {HOW_TO_GET_IT}"

_render = Templates(HERE / "templates").render


def write_demo(folder: Path, runtime: Path | None, title: str = "Student", facts: str = "") -> bool:
    """Write ``demo.html`` into an export's ``folder``, which has ``student.onnx``, and the engine's files into ``runtime/``.

    Args:
        folder: The export's folder.
        runtime: The folder of ONNX Runtime Web (``kd.system.browser_runtime``).
        title: What the page is called, for example the student's name.
        facts: A sentence below the title, for example how accurate the student is and on what.

    Returns:
        Whether it was written. It is left out where there is no ``runtime``; ``LEFT_OUT`` says so in words.
    """
    if runtime is None:
        return False
    model = (folder / "student.onnx").read_bytes()
    (folder / RUNTIME).mkdir(exist_ok=True)
    for name in (SCRIPT, WASM):
        shutil.copyfile(runtime / name, folder / RUNTIME / name)
    shutil.copyfile(HERE / "templates" / "runtime_license.txt", folder / RUNTIME / "LICENSE.txt")
    page = _render(
        "demo",
        title=title,
        facts=facts,
        classes=classes_in(model),
        settings=_json(
            {"classes": classes_in(model), "engine": {"script": f"{RUNTIME}/{SCRIPT}", "wasm": f"{RUNTIME}/{WASM}"}}
        ),
        model=base64.b64encode(model).decode(),
        megabytes=f"{len(model) / 1e6:.2f}",
        scripts=Markup(STUDENT_SCRIPT.read_text() + (HERE / "static" / "demo.js").read_text()),
    )
    write_whole(folder / "demo.html", page)
    return True


def classes_in(model: bytes) -> list[str]:
    """Return the names of the classes that an exported file has in its metadata."""
    import onnx

    properties = {one.key: one.value for one in onnx.load_from_string(model).metadata_props}
    return json.loads(properties["classes"])


def _json(value: object) -> Markup:
    """Return JSON that can stand in a page: no text in it can end the element that it stands in."""
    return Markup(json.dumps(value).replace("<", "\\u003c"))
