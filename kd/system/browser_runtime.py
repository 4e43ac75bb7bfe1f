"""Find ONNX Runtime Web, which runs a student in a browser. It is fetched with npm (``Makefile``), never from a CDN."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from kd.errors import UserError
from kd.system.files import ROOT

# The version that is fetched and tested.
VERSION = "1.30.0"

# What the folder is called, in a virtual environment or beside the program.
NAME = f"onnxruntime-web-{VERSION}"

# The script and the WebAssembly that it loads: the build for the CPU alone, which needs no isolation headers.
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"

HOW_TO_GET_IT = (
    "Install npm, then start the page with `make app`, which fetches it; or put "
    f"{SCRIPT} and {WASM} of the npm package onnxruntime-web@{VERSION} into a folder, and its path into KD_BROWSER_RUNTIME."
)


# Seconds that npm may take.
NPM_SECONDS = 120


def browser_runtime() -> Path | None:
    """Return the folder with ``SCRIPT`` and ``WASM``: ``KD_BROWSER_RUNTIME``, or that in the virtual environment, or beside
    the program, where `kd deploy` puts it in a Space.

    It is ``None`` where one of the two files is missing.
    """
    own = os.environ.get("KD_BROWSER_RUNTIME")
    return next(filter(_is_whole, [Path(own).resolve()] if own else pinned_folders()), None)


def pinned_folders() -> list[Path]:
    """Return where a runtime of exactly ``VERSION`` may be."""
    return [(Path(place) / NAME).resolve() for place in (sys.prefix, ROOT)]


def pinned_runtime(folder: Path) -> Path:
    """Return a folder with the runtime of exactly ``VERSION``: one that is here, or ``folder``, into which npm fetches it.

    Raises ``UserError`` where npm is missing or fetches nothing.
    """
    if found := next(filter(_is_whole, pinned_folders()), None):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", "--silent", f"onnxruntime-web@{VERSION}"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=NPM_SECONDS)
        packed = next(folder.glob("*.tgz"))
        with tarfile.open(packed) as archive:
            for name in (SCRIPT, WASM):
                with archive.extractfile(f"package/dist/{name}") as source, (folder / name).open("wb") as file:
                    shutil.copyfileobj(source, file)
        packed.unlink()
    except FileNotFoundError as error:
        raise UserError(
            f"ONNX Runtime Web is not here, and npm, which fetches it, is missing. {HOW_TO_GET_IT}"
        ) from error
    except (subprocess.SubprocessError, StopIteration, tarfile.TarError, KeyError, OSError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise UserError(
            f"npm could not fetch onnxruntime-web@{VERSION}: {said[-1] if said else 'it said nothing'}"
        ) from error
    return folder


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (SCRIPT, WASM))
