"""The files that a call names: a ``data:`` URL, what was uploaded to this server, or its address here. Nothing is fetched."""

import base64
import mimetypes
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

from gradio.utils import get_upload_folder

from kd.errors import UserError
from kd.ui.access import uploaded

DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<more>(;[\w.+-]+=[^;,]*)*)(?P<base64>;base64)?,")

# How gradio's address of an uploaded file goes on after the server's own.
FILE = "/gradio_api/file="

HOW = (
    "Send it as a data: URL (data:image/png;base64,...), or upload it first: POST it to /gradio_api/upload of this server "
    "(multipart, field files), or use gradio's upload tool or gradio_client's handle_file, and give what that answers."
)

LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0")


@contextmanager
def received(files: Sequence[Any], request: Any, most_mb: float, what: str) -> Iterator[list[str]]:
    """Give the paths of the files that a call names (``what`` each is, in words); those made of ``data:`` URLs are removed
    at the end.

    Raises ``UserError`` for a file of another server, one that was not uploaded here, and one of more than ``most_mb`` MB.
    """
    with TemporaryDirectory(prefix="kd-received-") as folder:
        paths = []
        for nth, file in enumerate(files, start=1):
            name = f"{what} {nth}" if len(files) > 1 else what
            is_content = is_data_url(file)
            paths.append(
                from_data_url(file, name, most_mb, Path(folder)) if is_content else from_upload(file, name, request)
            )
        yield [str(path) for path in paths]


def kept(file: Any, request: Any, most_mb: float, what: str) -> Path:
    """Return the path of the one file that a call names, in the folder of uploads: whoever reads it removes it.

    Raises ``UserError`` as ``received`` does.
    """
    if not is_data_url(file):
        return from_upload(file, what, request)
    folder = Path(get_upload_folder()).resolve() / secrets.token_hex(32)
    folder.mkdir(parents=True)
    try:
        return from_data_url(file, what, most_mb, folder)
    except UserError:
        folder.rmdir()
        raise


def is_data_url(file: Any) -> bool:
    return isinstance(file, str) and file[:5].lower() == "data:"


def from_data_url(url: str, what: str, most_mb: float, folder: Path) -> Path:
    """Store the content of a ``data:`` URL in a folder, under a name that says ``what`` it is.

    Raises ``UserError`` for one that is no such URL, is not in base64, is empty, or has more than ``most_mb`` MB.
    """
    head = DATA_URL.match(url[:300])
    if not head or not head["base64"]:
        raise UserError(f"The {what} is a data: URL that cannot be read; expected data:TYPE;base64,CONTENT.")
    if (size := (len(url) - head.end()) * 3 / 4e6) > most_mb:
        raise UserError(f"The {what} has {size:,.1f} MB; the most is {most_mb:,g} MB.")
    try:
        content = base64.b64decode(url[head.end() :], validate=True)
    except ValueError:
        raise UserError(f"The {what} is a data: URL whose content is not in base64.") from None
    if not content:
        raise UserError(f"The {what} is a data: URL without content.")
    kind = mimetypes.guess_extension(head["type"] or "") or ""
    path = folder / f"{what.replace(' ', '-')}{kind}"
    path.write_bytes(content)
    return path


def from_upload(file: Any, what: str, request: Any) -> Path:
    """Return the path of a file that was uploaded here, which ``file`` names: gradio's address of it, its path, or what
    gradio_client makes of ``handle_file``. Raises ``UserError`` for any other, and for one that is gone."""
    if isinstance(file, str) and "://" in file[:12]:
        file = _path_in(file, what, request)
    elif isinstance(file, str) and file.startswith(FILE):
        file = unquote(file.removeprefix(FILE))
    try:
        path = Path(uploaded(file))
        there = path.is_file()
    except (UserError, ValueError, OSError):  # a null byte, a name that is too long
        raise UserError(f"The {what} was not uploaded to this server. {HOW}") from None
    if not there:
        raise UserError(f"The {what} is not on this server any more. {HOW}")
    return path


def _path_in(url: str, what: str, request: Any) -> str:
    """Return the path in gradio's address of an uploaded file. Raises ``UserError`` for another address."""
    try:
        parts = urlsplit(url)
        named = parts.hostname or "", parts.port
    except ValueError:
        raise UserError(f"The {what} is an address that cannot be read. {HOW}") from None
    if parts.scheme not in ("http", "https") or not _is_here(named, request):
        raise UserError(
            f"The {what} is at {parts.netloc[:80] or parts.scheme[:20]!r}, which is another server, and this one fetches nothing from others. {HOW}"
        )
    _, found, path = parts.path.partition(FILE)
    if not found:
        raise UserError(f"The {what} is an address of this server, but not of an uploaded file. {HOW}")
    return unquote(path)


def _is_here(named: tuple[str, int | None], request: Any) -> bool:
    """Tell whether an address is that by which the caller reached this server."""
    headers = request.headers if request is not None else {}
    here = urlsplit(f"//{headers.get('x-forwarded-host') or headers.get('host') or ''}")
    host, port = named
    same = host == here.hostname or (host in LOOPBACK and here.hostname in LOOPBACK)
    return same and (port or 0) in (here.port or 0, *((80, 443, 0) if not here.port else ()))
