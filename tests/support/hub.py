"""A small Hugging Face Hub for tests: a plain folder of repositories, served on 127.0.0.1 to the real libraries."""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

ROUTE = re.compile(
    r"/(?:api/)?(?:(?P<kind>models|datasets)/)?(?P<id>[^/]+/[^/]+)"
    r"(?:/(?P<action>resolve|revision|tree)/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?"
)


@dataclass(frozen=True)
class Trouble:
    """What becomes of the next request whose line has ``where`` in it: an answer after ``delay`` seconds, with another
    ``status``, or cut after so many bytes."""

    where: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None


class Hub(ThreadingHTTPServer):
    """Serves ``root/models/owner/name/*`` and ``root/datasets/owner/name/*``, each at one commit, to clients without a
    token. The ids in ``gated`` can be seen, but not their files. Clients read ``HF_ENDPOINT`` when they import the
    libraries, so each is a process of its own::

        with Hub(root, gated={"owner/secret"}) as hub:
            subprocess.run([...], env=hub.environment(home))
    """

    def __init__(self, root: Path, gated: Collection[str] = ()) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.root, self.gated = root, gated
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        """What was asked for so far: ``HEAD /owner/name/resolve/main/config.json``."""
        self.troubles: list[Trouble] = []
        """Those to come, in order; each is served once."""

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


class Request(BaseHTTPRequestHandler):
    """One request of a client. Each route says which library call it serves."""

    protocol_version = "HTTP/1.1"
    server: Hub
    cut: int | None = None

    def do_GET(self) -> None:
        """Find the repository and answer from its folder."""
        line = f"{self.command} {self.path}"
        line += f" {self.headers['Range']}" if "Range" in self.headers else ""
        self.server.asked.append(line)
        trouble = next((one for one in self.server.troubles if one.where in line), None)
        self.cut = trouble and trouble.cut
        if trouble:
            self.server.troubles.remove(trouble)
            time.sleep(trouble.delay)
            if trouble.status:
                return self.send(trouble.status, b"", trouble.headers)
        url = urlsplit(self.path)
        route = ROUTE.fullmatch(unquote(url.path))
        if route is None:
            return self.refuse(404, "NotFound")
        folder = self.server.root / (route["kind"] or "models") / route["id"]
        commit = hashlib.sha1(str(folder.relative_to(self.server.root)).encode()).hexdigest()
        if not folder.is_dir():
            self.refuse(401, "RepoNotFound")  # not 404: a client without a token is not told what is private
        elif route["revision"] not in (None, "main", commit):
            self.refuse(404, "RevisionNotFound")
        elif route["action"] == "resolve":
            self.file(folder / route["path"], commit, is_gated=route["id"] in self.server.gated)
        elif route["action"] == "tree":
            self.tree(folder, route["path"] or "", recursive=parse_qs(url.query).get("recursive") == ["true"])
        else:
            self.repository(folder, route["id"], commit)

    do_HEAD = do_GET

    def repository(self, folder: Path, id: str, commit: str) -> None:
        """``HfApi.model_info`` and ``dataset_info``: which commit ``main`` is, which files there are."""
        files = [{"rfilename": str(file.relative_to(folder))} for file in sorted(folder.rglob("*")) if file.is_file()]
        self.send_json({"id": id, "sha": commit, "private": False, "tags": [], "siblings": files})

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
                    "oid": hashlib.sha1(entry.read_bytes() if entry.is_file() else b"").hexdigest(),
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
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return self.send(200, data, headers)
        begin, end = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
        self.send(206, data[begin : end + 1], headers)

    def send_json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        """What ``huggingface_hub`` raises as the exception that belongs to ``code``."""
        self.send(status, b"", {"X-Error-Code": code, **(headers or {})})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: self.cut])
            self.close_connection = self.close_connection or self.cut is not None

    def log_message(self, *words: object) -> None:
        """Nothing on standard error: ``Hub.asked`` is the log."""
