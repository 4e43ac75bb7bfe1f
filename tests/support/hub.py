"""A small Hugging Face Hub for tests: a plain folder of repositories, served on 127.0.0.1 to the real libraries."""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.hub_writes import Account, Writes, Written, card_data, git_hash

ROUTE = re.compile(
    r"/(?:api/)?(?:(?P<kind>models|datasets|spaces)/)?(?P<id>[^/]+/[^/]+)"
    r"(?:/(?P<action>resolve|revision|tree)/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?"
)

OF_SPACE = re.compile(r"/api/spaces/(?P<id>[^/]+/[^/]+)/(?P<what>runtime|variables|secrets|logs/build|logs/run)")


@dataclass(frozen=True)
class Trouble:
    """What becomes of the next request whose line has ``where`` in it: an answer after ``delay`` seconds, with another
    ``status`` (and ``body``), or cut after so many bytes: a download's answer, or what a client sends."""

    where: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    body: bytes = b""


class Hub(ThreadingHTTPServer):
    """Serves ``root/models/owner/name/*``, ``root/datasets/...`` and ``root/spaces/...`` to clients without a token. The ids
    in ``gated`` can be seen, but not their files. Clients read ``HF_ENDPOINT`` when they import the libraries, so each is
    a process of its own::

        with Hub(root, gated={"owner/secret"}) as hub:
            subprocess.run([...], env=hub.environment(home))

    ``accounts`` (token -> account) may write: what they make is in ``root`` too, and ``written`` knows the rest of it.
    """

    def __init__(self, root: Path, gated: Collection[str] = (), accounts: Mapping[str, Account] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.root, self.gated, self.accounts = root, gated, dict(accounts or {})
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        """What was asked for so far: ``HEAD /owner/name/resolve/main/config.json``."""
        self.sent: list[tuple[str, list[Any]]] = []
        """What was sent to it as JSON, with the request's line: of a commit each line is a value, else there is one."""
        self.troubles: list[Trouble] = []
        """Those to come, in order; each is served once."""
        self.written: dict[tuple[str, str], Written] = {}
        """``("models", "owner/name")`` -> what is known of a repository that a client has made or written into."""
        self.stored: dict[str, bytes] = {}
        """Files that are stored by their sha256."""
        self.stages: list[str] = ["RUNNING"]
        """The stages of a Space that are still to come; the last one stays."""
        self.logs: dict[str, list[str]] = {}
        """``build`` and ``run`` -> the lines of a Space's log."""

    def commit_of(self, kind: str, id: str) -> str:
        """Which commit ``main`` of a repository is."""
        written = self.written.get((kind, id))
        return (
            written.commits[-1]["oid"]
            if written and written.commits
            else hashlib.sha1(f"{kind}/{id}".encode()).hexdigest()
        )

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a client that knows this Hub only and keeps its downloads in ``home``."""
        others = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        return {**others, **quiet, "HF_ENDPOINT": self.url, "HF_HOME": str(home)}

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class Request(Writes):
    """One request of a client. Each route says which library call it serves."""

    protocol_version = "HTTP/1.1"
    server: Hub
    cut: int | None = None

    def do_GET(self) -> None:
        """Find the repository and answer from its folder."""
        trouble = self.next_trouble()
        self.cut = trouble and trouble.cut
        if self.was_answered(trouble):
            return None
        url = urlsplit(self.path)
        path = unquote(url.path)
        if path == "/api/whoami-v2":
            return self.whoami()
        if (found := OF_SPACE.fullmatch(path)) and ("spaces", found["id"]) in self.server.written:
            return self.of_space(found["id"], found["what"])
        route = ROUTE.fullmatch(path)
        if route is None:
            return self.refuse(404, "NotFound")
        kind, id = route["kind"] or "models", route["id"]
        folder, commit = self.server.root / kind / id, self.server.commit_of(kind, id)
        if self.token() and self.account() is None:
            self.say_no(401, "Invalid credentials in Authorization header")
        elif not folder.is_dir() or not self.may_see(kind, id):
            # not 404: a client without a token is not told what is private
            self.refuse(404 if self.account() else 401, "RepoNotFound")
        elif route["revision"] not in (None, "main", commit):
            self.refuse(404, "RevisionNotFound")
        elif route["action"] == "resolve":
            self.file(folder / route["path"], commit, is_gated=id in self.server.gated)
        elif route["action"] == "tree":
            self.tree(folder, route["path"] or "", recursive=parse_qs(url.query).get("recursive") == ["true"])
        else:
            self.repository(folder, kind, id)
        return None

    do_HEAD = do_GET

    def next_trouble(self) -> Trouble | None:
        """Write down what is asked for, and take the trouble that it meets."""
        line = f"{self.command} {self.path}"
        self.server.asked.append(line + (f" {self.headers['Range']}" if "Range" in self.headers else ""))
        trouble = next((one for one in self.server.troubles if one.where in line), None)
        if trouble:
            self.server.troubles.remove(trouble)
            time.sleep(trouble.delay)
        return trouble

    def was_answered(self, trouble: Trouble | None) -> bool:
        """Answer with the status that a trouble has, if it has one."""
        if trouble and trouble.status:
            self.send(trouble.status, trouble.body, trouble.headers)
        return bool(trouble and trouble.status)

    def of_space(self, id: str, what: str) -> None:
        """``get_space_runtime``, ``get_space_variables``, ``get_space_secrets`` and ``fetch_space_logs``."""
        if what == "runtime":
            self.runtime(id)
        elif what.startswith("logs/"):
            self.logs(what.removeprefix("logs/"))
        else:
            self.send_json(self.pairs_of(id, what))

    def repository(self, folder: Path, kind: str, id: str) -> None:
        """``HfApi.model_info``, ``dataset_info`` and ``space_info``: which commit ``main`` is, which files there are, and
        what its card says."""
        files = [{"rfilename": str(file.relative_to(folder))} for file in sorted(folder.rglob("*")) if file.is_file()]
        written, card = self.server.written.get((kind, id)), folder / "README.md"
        data = card_data(card.read_text()) if card.exists() else {}
        answer = {"id": id, "sha": self.server.commit_of(kind, id), "private": bool(written and written.private)}
        self.send_json({**answer, "tags": data.get("tags", []), "cardData": data, "siblings": files})

    def tree(self, folder: Path, path: str, recursive: bool) -> None:
        """``HfApi.list_repo_tree``: how ``datasets`` finds the data files."""
        if not (folder / path).is_dir():
            return self.refuse(404, "EntryNotFound")
        self.send_json(
            [
                {
                    "type": "file" if entry.is_file() else "directory",
                    "path": str(entry.relative_to(folder)),
                    "size": entry.stat().st_size,
                    "oid": git_hash(entry.read_bytes() if entry.is_file() else b""),
                }
                for entry in sorted((folder / path).glob("**/*" if recursive else "*"))
            ]
        )

    def file(self, path: Path, commit: str, is_gated: bool) -> None:
        """``hf_hub_download``: HEAD for the commit and the hash (the file's name in the cache), then GET."""
        if is_gated:
            return self.refuse(401, "GatedRepo")
        if not path.is_file():
            return self.refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        data = path.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if begin is None:
            return self.send(200, data, headers)
        headers["Content-Range"] = f"bytes {begin[1]}-{len(data) - 1}/{len(data)}"
        self.send(206, data[int(begin[1]) :], headers)

    def send_json(self, value: Any, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        """What ``huggingface_hub`` raises as the exception that belongs to ``code``."""
        self.send(status, b"", {"X-Error-Code": code, **(headers or {})})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        with suppress(ConnectionError):  # a client that was stopped reads no answer
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: self.cut])
        self.close_connection = self.close_connection or self.cut is not None

    def log_message(self, *words: object) -> None:
        """Nothing on standard error: ``Hub.asked`` is the log."""
