"""What the small Hub of ``tests/support/hub.py`` does when a client writes: repositories, files, and a Space's settings."""

import base64
import hashlib
import json
import re
import secrets
import shutil
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}

WRITE = re.compile(r"/api/(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)/(?P<action>[a-z-]+)(?:/(?P<rest>.+))?")

LFS = re.compile(r"/(?:(?P<kind>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch")

LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0", "openrail", "gpl-3.0", "other")

COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")

# Files over this, in bytes, and those that are no text are stored by their hash, as on the real Hub.
REGULAR_BYTES = 10_000_000


@dataclass(frozen=True)
class Account:
    """Who a token belongs to, and what it may do.

    ``role``: ``read``, ``write``, or ``contribute-repos``, which may make repositories in the account's own name and write
    into those that it has made; ``none`` is a token that was signed in without any of these. A free account may have
    ZeroGPU Spaces only.
    """

    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()
    is_free: bool = False


@dataclass
class Written:
    """What the Hub knows of a repository that a client has made, beside its files."""

    made_with: str
    """The token."""
    private: bool = False
    commits: list[dict[str, Any]] = field(default_factory=list)
    """Each: ``oid``, ``summary``, ``added`` and ``deleted`` (paths)."""
    large: dict[str, str] = field(default_factory=dict)
    """Path -> sha256 of the files that are stored by their hash."""
    space: dict[str, Any] = field(default_factory=dict)
    """A Space's ``sdk``, ``hardware``, ``variables``, ``secrets``, ``volumes``, and how often it was ``restarted``."""


class Writes(BaseHTTPRequestHandler):
    """The routes of writing. Each says which library call it serves. ``self.server`` is a ``Hub``."""

    body: bytes = b""

    def do_POST(self) -> None:
        """Read what is sent, and answer; ``Hub.sent`` keeps what was sent as JSON."""
        path = unquote(urlsplit(self.path).path)
        trouble = self.next_trouble()
        if trouble and trouble.cut is not None:
            self.rfile.read(trouble.cut)
            self.close_connection = True  # without an answer
            return None
        self.body = self.read_body()
        if self.headers.get("Content-Type", "").endswith("json"):
            self.server.sent.append((f"{self.command} {self.path}", self.lines()))
        if self.was_answered(trouble):
            return None
        if path.startswith("/lfs/"):
            return self.store(path.removeprefix("/lfs/"))
        if path == "/api/validate-yaml":
            return self.validate_yaml()
        if self.token() and self.account() is None:
            return self.say_no(401, "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            return self.create()
        if path == "/api/repos/delete":
            return self.delete()
        if found := LFS.fullmatch(path):
            return self.with_right_to_write(found, self.lfs_batch)
        found = WRITE.fullmatch(path)
        actions = {
            "preupload": self.preupload, "commit": self.commit, "settings": self.settings, "variables": self.pairs,
            "secrets": self.pairs, "hardware": self.hardware, "restart": self.restart, "volumes": self.volumes,
        }  # fmt: skip
        if found is None or found["action"] not in actions:
            return self.refuse(404, "NotFound")
        return self.with_right_to_write(found, actions[found["action"]])

    do_PUT = do_DELETE = do_POST

    # --- Who asks

    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def account(self) -> Account | None:
        return self.server.accounts.get(self.token())

    def may_see(self, kind: str, id: str) -> bool:
        """Whether the client may know that a repository exists."""
        written = self.server.written.get((kind, id))
        account = self.account()
        return not (written and written.private) or bool(account and self.owns(account, id))

    @staticmethod
    def owns(account: Account, id: str) -> bool:
        return id.split("/")[0] in (account.name, *account.organizations)

    def with_right_to_write(self, found: re.Match, action: Any) -> None:
        """Call ``action`` with the kind and the id of a repository that the client may write into."""
        kind, id, account = found["kind"] or "models", found["id"], self.account()
        if not (self.server.root / kind / id).is_dir() or not self.may_see(kind, id):
            return self.refuse(404 if account else 401, "RepoNotFound")
        if account is None:
            return self.say_no(401, "Invalid username or password.")
        written = self.server.written.setdefault((kind, id), Written(""))
        may = account.role == "write" or (account.role == "contribute-repos" and written.made_with == self.token())
        if not (self.owns(account, id) and may):
            return self.say_no(403, f"Authorization error: your token may not write to {id}")
        return action(kind, id)

    def whoami(self) -> None:
        """``HfApi.whoami``."""
        account = self.account()
        if account is None:
            return self.say_no(401, "Invalid credentials in Authorization header")
        organizations = [{"type": "org", "name": name} for name in account.organizations]
        return self.send_json(
            {
                "type": "user", "id": hashlib.sha1(account.name.encode()).hexdigest()[:24], "name": account.name,
                "fullname": account.name.title(), "isPro": not account.is_free, "orgs": organizations,
                "auth": {"type": "access_token", "accessToken": {"displayName": "a token", "role": account.role}},
            }
        )  # fmt: skip

    # --- Repositories

    def create(self) -> None:
        """``HfApi.create_repo``."""
        asked, account = json.loads(self.body), self.account()
        if account is None:
            return self.say_no(401, "Invalid username or password.")
        kind, owner = KINDS[asked.get("type") or "model"], asked.get("organization") or account.name
        id = f"{owner}/{asked['name']}"
        if account.role not in ("write", "contribute-repos") or not self.owns(account, id):
            return self.say_no(403, f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{owner}"')
        url = f"{self.server.url}/{'' if kind == 'models' else kind + '/'}{id}"
        folder = self.server.root / kind / id
        if folder.exists():
            return self.send_json({"error": f"You already created this {kind[:-1]} repo", "url": url}, 409)
        has_zero_gpu = asked.get("hardware") == "zero-a10g"
        if kind == "spaces" and asked.get("sdk") != "static" and account.is_free and not has_zero_gpu:
            return self.say_no(402, "Payment required: subscribe to PRO to create this Space")
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        names = ("sdk", "hardware", "variables", "secrets", "volumes")
        space = {name: asked[name] for name in names if name in asked}
        for name in ("variables", "secrets"):
            space[name] = {one["key"]: one["value"] for one in asked.get(name, [])}
        self.server.written[kind, id] = Written(
            self.token(), asked.get("visibility") == "private", space=space if kind == "spaces" else {}
        )
        return self.send_json({"url": url, "name": id, "id": secrets.token_hex(12)})

    def delete(self) -> None:
        """``HfApi.delete_repo``."""
        asked, account = json.loads(self.body), self.account()
        kind = KINDS[asked.get("type") or "model"]
        id = f"{asked.get('organization') or (account and account.name)}/{asked['name']}"
        if account is None or account.role != "write" or not self.owns(account, id):
            return self.say_no(403, "You may not delete it")
        shutil.rmtree(self.server.root / kind / id)
        self.server.written.pop((kind, id), None)
        return self.send_json({})

    def settings(self, kind: str, id: str) -> None:
        """``HfApi.update_repo_settings``."""
        asked = json.loads(self.body)
        if "visibility" in asked:
            self.server.written[kind, id].private = asked["visibility"] == "private"
        self.send_json({"private": self.server.written[kind, id].private})

    # --- Files

    def preupload(self, kind: str, id: str) -> None:
        """``HfApi.preupload_lfs_files``: which files are stored by their hash, and which are there already."""
        folder, large = self.server.root / kind / id, self.server.written[kind, id].large
        answer = []
        for file in json.loads(self.body)["files"]:
            is_text = b"\0" not in (sample := base64.b64decode(file["sample"])) and _is_text(sample)
            mode = "regular" if is_text and file["size"] <= REGULAR_BYTES else "lfs"
            there = folder / file["path"]
            oid = large.get(file["path"]) or (git_hash(there.read_bytes()) if there.is_file() else None)
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send_json({"files": answer, "commitOid": self.server.commit_of(kind, id)})

    def lfs_batch(self, kind: str, id: str) -> None:
        """The LFS batch API: where each file goes that is not there yet."""
        objects = []
        for one in json.loads(self.body)["objects"]:
            place = {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}", "header": {}}}
            objects.append({**one, **({} if one["oid"] in self.server.stored else {"actions": place})})
        self.send_json({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        """The PUT of a file to the address that ``lfs_batch`` gave, which needs no token."""
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.send(400, b"the content does not have this hash", {})
        self.server.stored[oid] = self.body
        return self.send(200, b"", {})

    def commit(self, kind: str, id: str) -> None:
        """``HfApi.create_commit``: a line of JSON for each change."""
        folder, written = self.server.root / kind / id, self.server.written[kind, id]
        header, *changes = self.lines()
        added, deleted = [], []
        expected = header["value"].get("parentCommit")
        if expected not in (None, self.server.commit_of(kind, id)):
            return self.say_no(412, "A commit has happened since. Please refresh and try again.")
        missing = [
            c["value"]["oid"] for c in changes if c["key"] == "lfsFile" and c["value"]["oid"] not in self.server.stored
        ]
        if missing:
            return self.say_no(400, f"LFS pointer pointed to a file that does not exist: {missing[0]}")
        for change in changes:
            value, path = change["value"], folder / change["value"]["path"]
            if change["key"] == "deletedFolder":
                gone = [file for file in path.rglob("*") if file.is_file()]
            else:
                gone = [path] if change["key"] == "deletedFile" else []
            for file in gone:
                file.unlink()
                written.large.pop(str(file.relative_to(folder)), None)
                deleted.append(str(file.relative_to(folder)))
            if change["key"] in ("file", "lfsFile"):
                path.parent.mkdir(parents=True, exist_ok=True)
                is_large = change["key"] == "lfsFile"
                path.write_bytes(self.server.stored[value["oid"]] if is_large else base64.b64decode(value["content"]))
                written.large.pop(value["path"], None)
                written.large |= {value["path"]: value["oid"]} if is_large else {}
                added.append(value["path"])
        oid = secrets.token_hex(20)
        written.commits.append({"oid": oid, "summary": header["value"]["summary"], "added": added, "deleted": deleted})
        url = f"{self.server.url}/{'' if kind == 'models' else kind + '/'}{id}/commit/{oid}"
        return self.send_json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def validate_yaml(self) -> None:
        """``ModelCard.validate``, and what ``create_commit`` asks beforehand."""
        asked = json.loads(self.body)
        errors, warnings = problems_of_card(asked["content"], asked["repoType"])
        answer = {"errors": [{"message": one} for one in errors], "warnings": [{"message": one} for one in warnings]}
        self.send_json(answer, 400 if errors else 200)

    # --- A Space

    def runtime(self, id: str) -> None:
        """``HfApi.get_space_runtime``: the next of ``Hub.stages``, of which the last stays."""
        stages = self.server.stages
        stage = stages.pop(0) if len(stages) > 1 else stages[0]
        self.send_json(self.runtime_of(id, stage))

    def runtime_of(self, id: str, stage: str) -> dict[str, Any]:
        hardware = self.server.written["spaces", id].space.get("hardware", "cpu-basic")
        return {"stage": stage, "hardware": {"current": hardware, "requested": hardware}, "gcTimeout": 172800}

    def logs(self, which: str) -> None:
        """``HfApi.fetch_space_logs``: the lines of ``Hub.logs["build"]`` or ``["run"]``."""
        events = [
            f"data: {json.dumps({'data': line, 'timestamp': '2026-01-01T00:00:00.000Z'})}\n\n"
            for line in self.server.logs.get(which, [])
        ]
        self.send(200, "".join(events).encode(), {"Content-Type": "text/event-stream"})

    def pairs(self, kind: str, id: str) -> None:
        """``add_space_variable``, ``add_space_secret`` and what takes them away. A secret's value is not read back."""
        name, asked = urlsplit(self.path).path.rsplit("/", 1)[1], json.loads(self.body)
        values = self.server.written[kind, id].space.setdefault(name, {})
        if self.command == "DELETE":
            values.pop(asked["key"], None)
        else:
            values[asked["key"]] = asked["value"]
        self.send_json(self.pairs_of(id, name))

    def pairs_of(self, id: str, name: str) -> dict[str, Any]:
        values = self.server.written["spaces", id].space.get(name, {})
        shown = {} if name == "secrets" else values
        return {key: {"key": key, **({"value": shown[key]} if key in shown else {})} for key in values}

    def hardware(self, kind: str, id: str) -> None:
        """``request_space_hardware``."""
        flavor = json.loads(self.body)["flavor"]
        if self.account().is_free and flavor != "zero-a10g":
            return self.say_no(402, "Payment required: add a payment method to use this hardware")
        self.server.written[kind, id].space["hardware"] = flavor
        return self.send_json(self.runtime_of(id, "BUILDING"))

    def volumes(self, kind: str, id: str) -> None:
        """``set_space_volumes``."""
        self.server.written[kind, id].space["volumes"] = json.loads(self.body)["volumes"]
        self.send_json({})

    def restart(self, kind: str, id: str) -> None:
        """``restart_space``."""
        space = self.server.written[kind, id].space
        space["restarted"] = space.get("restarted", 0) + 1
        self.send_json(self.runtime_of(id, "BUILDING"))

    # --- Bytes

    def lines(self) -> list[Any]:
        """What was sent as JSON, or as a line of JSON after another."""
        return [json.loads(line) for line in self.body.splitlines() if line.strip()]

    def read_body(self) -> bytes:
        """What the client sends, whole or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def say_no(self, status: int, words: str) -> None:
        """An error with the Hub's own words, in the body and in a header."""
        headers = {"Content-Type": "application/json", "X-Error-Message": words}
        self.send(status, json.dumps({"error": words}).encode(), headers)


def git_hash(data: bytes) -> str:
    """The name that git has for a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _is_text(sample: bytes) -> bool:
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return len(sample) - error.start < 4  # the sample ends within a letter
    return True


def card_data(text: str) -> dict[str, Any]:
    """The metadata of a card; empty where it has none. Raises ``yaml.YAMLError``."""
    found = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", text, re.DOTALL)
    return (yaml.safe_load(found[1]) if found else None) or {}


def problems_of_card(text: str, kind: str) -> tuple[list[str], list[str]]:
    """What the Hub refuses of a card's metadata, and what it warns of, as its documentation has it."""
    try:
        data = card_data(text)
    except yaml.YAMLError as error:
        return [f"YAML: {error}"], []
    if not data:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = []
    for name, allowed in (
        ("license", LICENSES),
        ("base_model_relation", ("adapter", "merge", "quantized", "finetune")),
    ):
        if data.get(name, allowed[0]) not in allowed:
            errors.append(f'"{name}" must be one of [{", ".join(allowed)}]')
    for name in ("tags", "datasets", "models", "hf_oauth_scopes"):
        value = data.get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            errors.append(f'"{name}" must be an array of strings')
    errors += _of_space(data) if kind == "space" else _of_model(data)
    return errors, []


def _of_model(data: dict[str, Any]) -> list[str]:
    if "model-index" not in data:
        return []
    try:
        model_index_to_eval_results(data["model-index"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f'"model-index" is not valid: {error!r}']
    values = [m["value"] for one in data["model-index"] for r in one["results"] for m in r["metrics"]]
    return (
        []
        if all(isinstance(one, int | float | str) for one in values)
        else ['"model-index" has a result that is no value']
    )


def _of_space(data: dict[str, Any]) -> list[str]:
    errors = []
    if data.get("sdk") not in ("gradio", "docker", "static"):
        errors.append('"sdk" must be one of [gradio, docker, static]')
    if len(data.get("short_description", "")) > 60:
        errors.append('"short_description" length must be less than or equal to 60 characters long')
    for name in ("colorFrom", "colorTo"):
        if data.get(name, COLOURS[0]) not in COLOURS:
            errors.append(f'"{name}" must be one of [{", ".join(COLOURS)}]')
    return errors
