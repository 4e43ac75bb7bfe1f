"""A Chromium with a camera that shows a turning pie, and a web server of static files."""

import base64
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kd.data.images import open_picture
from kd.devtools.page import CHROMIUM, FLAGS
from kd.system.browser_runtime import browser_runtime
from tests.support.pages import playwright

# Another name for this machine, which is not localhost: a page from there is in no secure context.
INSECURE = "insecure.test"

needs_runtime = pytest.mark.skipif(
    browser_runtime() is None, reason="ONNX Runtime Web is not there: `make test` fetches it with npm"
)


@functools.cache
def with_camera():
    """A Chromium with a camera. A page may use it once its context has been granted that."""
    flags = [*FLAGS, "--use-fake-device-for-media-stream", f"--host-resolver-rules=MAP {INSECURE} 127.0.0.1"]
    return playwright().chromium.launch(executable_path=CHROMIUM, args=flags)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of the files in a folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def odd_pictures(folder: Path) -> list[Path]:
    """Pictures that are easily read wrongly: on its side, grey, half transparent, with a palette, of one colour only."""
    rng = np.random.default_rng(5)
    colours = np.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3) * 0.7 + rng.normal(0, 20, (40, 60, 3)) + 40
    picture = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its left side
    picture.save(folder / "sideways.jpg", quality=85, exif=exif)
    picture.convert("L").save(folder / "grey.png")
    picture.convert("L").save(folder / "grey.jpg", quality=80)
    alpha = rng.integers(0, 256, (40, 60, 1)).astype(np.uint8)
    alpha[:10] = 0  # wholly transparent, with colours below
    Image.fromarray(np.concatenate([np.asarray(picture), alpha], -1)).save(folder / "glass.png")
    picture.quantize(16).save(folder / "palette.png", transparency=3)
    picture.resize((301, 217)).save(folder / "photo.webp", lossless=True)
    return sorted(folder.iterdir())


def pixels_of(path: Path) -> np.ndarray:
    """What the server reads: uint8 ``[height, width, 3]``."""
    return np.asarray(open_picture(path))


def as_text(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
