"""Find ONNX Runtime Web, which runs a student in a browser. It is fetched with npm (``Makefile``), never from a CDN."""

import os
import sys
from pathlib import Path

# The version that is fetched and tested.
VERSION = "1.30.0"

# The script and the WebAssembly that it loads: the build for the CPU alone, which needs no isolation headers.
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"

HOW_TO_GET_IT = (
    "Install npm, then start the page with `make app`, which fetches it; or put "
    f"{SCRIPT} and {WASM} of the npm package onnxruntime-web@{VERSION} into a folder, and its path into KD_BROWSER_RUNTIME."
)


def browser_runtime() -> Path | None:
    """Return the folder with ``SCRIPT`` and ``WASM``: ``KD_BROWSER_RUNTIME``, or that in the virtual environment.

    It is ``None`` where one of the two files is missing.
    """
    folder = Path(os.environ.get("KD_BROWSER_RUNTIME") or Path(sys.prefix) / f"onnxruntime-web-{VERSION}").resolve()
    return folder if all((folder / name).is_file() for name in (SCRIPT, WASM)) else None
