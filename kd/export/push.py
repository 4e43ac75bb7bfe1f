"""Push what ``kd export`` has made to the Hugging Face Hub: a repository of the user's own, with a model card.

A token is an argument of these functions and goes into the head of requests, nowhere else: it is in no error and no event.
Running a push again is safe: what is there already is not sent again, and a repository that was not made by a push is left
as it is unless the user says otherwise.

Large files go over plain HTTP (LFS) and not through Xet, the Hub's newer store, unless ``HF_HUB_DISABLE_XET=0`` asks for that:
a student is a few megabytes, for which Xet gains nothing, and where its store cannot be reached an upload hangs for minutes
without a word, while each failure of an HTTP request can be told.
"""

import io
import json
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd.errors import UserError
from kd.export.bundle import (
    FILES,
    FOLDER,
    VERSIONS,
    check_has_student,
    check_packages,
    export_student,
    find_export,
    hold_export,
)
from kd.export.card import OURS, Published, card
from kd.export.job import job_of
from kd.runs.run import Run
from kd.system.hub import HubBusy, busy_with, chain_of, patiently, refused_with

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

# How a repository is called that the user has given no name: this, then the run's name.
PREFIX = "distillery-"
# Characters of a repository's name at most, without its owner.
LONGEST = 80
# The scope of a sign-in on a Space that a push needs: to make repositories, and to write into those.
SCOPE = "contribute-repos"
# What an export has that no reader of a repository can use: the Hub serves no pages of a model, and the engine is 14 MB.
LEFT_AT_HOME = ("demo.html", "runtime")
# Files of these kinds are stored by their hash, and sent one after another before the rest.
LARGE = (".safetensors", ".onnx")
# What an earlier push may have left that a later one lacks.
OF_EXPORT = {name for names in FILES.values() for name in names} | {"predict.py", "results.json"}
# The licences that the page offers, by the ids that they have on the Hub; any other id can be given on the command line.
LICENSES = (
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc0-1.0",
    "openrail",
    "other",
)
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,59}")
# Seconds that the Hub may take to be reached, and to say or take something more.
CONNECT_SECONDS, SILENCE_SECONDS = 10.0, 120.0

TOKENS = "https://huggingface.co/settings/tokens"

Progress = Callable[[str, int, int], None]
"""What it is at (``export``, ``ask``, ``upload``, ``commit``), what is done of it, and of how much: pictures, or bytes."""


@dataclass(frozen=True)
class PushSettings:
    """How to push: for everybody to see or ``public=False``; over a repository that is another's work (``overwrite``); under
    which ``license``, an id of the Hub's; with the token of a sign-in on a Space (``signed_in``), which changes the advice."""

    public: bool = False
    overwrite: bool = False
    license: str = ""
    signed_in: bool = False


def push_student(
    run: Run | Path | str,
    repo: str | None = None,
    token: str | None = None,
    settings: PushSettings | None = None,
    progress: Progress = lambda stage, done, of: None,
) -> dict[str, Any]:
    """Push a run's student to the Hub; export it first where it has no export, or has changed since.

    Args:
        run: a run, or its folder.
        repo: ``OWNER/NAME``, or ``NAME`` alone for the token's owner; by default ``distillery-`` and the run's name.
        token: by default that of ``HF_TOKEN`` or ``hf auth login``.
        settings: by default private, and over nothing that a push has not made.
        progress: is called with what it is at; what it raises ends the push.

    Returns:
        ``url``, ``repo``, ``commit`` (its address), ``private``, ``created`` (whether the repository is new), ``files``
        (their names), ``bytes``, and ``notes``, sentences.

    Raises:
        UserError: where the Hub refuses, cannot be reached or breaks off, or the student cannot be exported; its ``kind``
            is ``taken`` where ``overwrite`` would help. What was sent is kept, so that running it again goes on from there.
    """
    run, settings = run if isinstance(run, Run) else Run(Path(run).resolve()), settings or PushSettings()
    check_has_student(run)
    check_push(repo, settings)
    token = check_token(token or own_token())
    results = exported(run, lambda done, of: progress("export", done, of))
    with _plain_http(), hold_export(run):
        return _Push(run, results, settings, token, progress).to(repo)


def exported(run: Run, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Return ``results.json`` of a run's export, made now where there is none.

    Where a student cannot be exported to ONNX, ``files`` is empty and ``notes`` say why; what else goes wrong is raised.
    """
    if results := find_export(run):
        return results
    tried = job_of(run)
    if (last := tried and tried.last("failed")) and last.get("kind") == "not exportable":
        return without_onnx(run, last["message"])
    check_packages()
    try:
        return export_student(run, progress=progress)
    except UserError as problem:
        if problem.kind != "not exportable":
            raise
        return without_onnx(run, str(problem))


def without_onnx(run: Run, why: str) -> dict[str, Any]:
    """Return what is known of a student that cannot be exported, in the form of an export's ``results.json``."""
    report = run.report()
    student = json.loads((run.path / "student" / "config.json").read_text())
    names = student["id2label"]
    side = student.get("image_size") or (run.config().image_size or 224)
    return {
        "run": run.id,
        "classes": [names[key] for key in sorted(names, key=int)],
        "input": list(side) if isinstance(side, list) else [side, side],
        "test_pictures": report["data"]["test"] if report else 0,
        "labels": run.labels(),
        "pytorch": {"accuracy": report["student"]["accuracy"]} if report else None,
        "files": {},
        "teacher": None,
        "speedup": None,
        "notes": [f"It is here for transformers only. {why}"],
        "versions": {name: version(name) for name in VERSIONS[:2]},
    }


# --- What is refused beforehand


def default_name(run: Run) -> str:
    """Return the name of the repository for a run, without an owner: ``distillery-`` and what the user calls the run."""
    plain = unicodedata.normalize("NFKD", run.name().lower()).encode("ascii", "ignore").decode()  # "ö" to "o"
    words = re.sub(r"[^a-z0-9_.]+", "-", plain)
    words = re.sub(r"([-.])[-.]+", r"\1", words)[: LONGEST - len(PREFIX)].strip("-.")
    words = re.sub(r"(\.git)+$", "", words)  # by which the address of its files ends
    return f"{PREFIX}{words or run.id}"


def check_push(repo: str | None, settings: PushSettings) -> None:
    """Raise ``UserError`` for a name or a licence that the Hub would refuse, and where nothing may be asked of it."""
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if is_offline_mode():
        raise UserError("Nothing can be pushed: offline mode is on (HF_HUB_OFFLINE). Unset it, then push again.")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"{str(repo)[:100]!r} cannot be the name of a repository. A name is OWNER/NAME, or NAME alone for your own: letters, "
            "digits, '-', '_' and '.', at most 96, no '--' or '..', and none of '-' and '.' at an end.",
            kind="name",
        ) from error
    if settings.license and not LICENSE.fullmatch(settings.license):
        raise UserError(
            f"The licence is {settings.license[:60]!r}; expected its id on the Hub, such as {', '.join(LICENSES[:3])} "
            "(https://huggingface.co/docs/hub/repositories-licenses)."
        )


def own_token() -> str:
    """Return the token of this machine's user. Raises ``UserError`` where there is none."""
    from huggingface_hub import get_token

    if token := get_token():
        return token
    raise UserError(
        f"There is no token of yours here, without which the Hub takes nothing. Make one that may write at {TOKENS}, then log in "
        "with `hf auth login`, or set HF_TOKEN.",
        kind="no token",
    )


def check_token(token: str) -> str:
    """Return a token as it is. Raises ``UserError`` for what cannot be one: the HTTP library would show it in its error."""
    if re.fullmatch(r"[!-~]+", token):
        return token
    raise UserError(
        "Your token of the Hub has characters in it that no token has, such as a space or the end of a line. Copy it anew from "
        f"{TOKENS}.",
        kind="no token",
    )


# --- The push


@dataclass(frozen=True)
class _Push:
    """A push that has been checked: what, how, whose, and whom to tell."""

    run: Run
    results: dict[str, Any]
    settings: PushSettings
    token: str = field(repr=False)
    progress: Progress

    def to(self, repo: str | None) -> dict[str, Any]:
        """Push to a repository, which is made where there is none, in one commit."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api = HfApi(token=self.token)
        self.progress("ask", 0, 0)
        name = repo or default_name(self.run)
        if "/" not in name:
            name = f"{self._owner(api, name)}/{name}"
        there = self._find(api, name)
        text = card(self.run, self.results, published=Published(name, self.settings.license))
        self._check_card(name, text)
        if there is None:
            self._create(api, name)
        with ExitStack() as opened:
            files = [CommitOperationAdd("README.md", text.encode())]
            files += [CommitOperationAdd(path, opened.enter_context(_Counted(file))) for path, file in self._files()]
            size = self._upload(api, name, files)
            paths = {one.path_in_repo for one in files}
            left = there["files"] & OF_EXPORT - paths if there and there["ours"] else set()
            gone = [CommitOperationDelete(path) for path in sorted(left)]
            self.progress("commit", size, size)
            message = f"Push the student of run {self.run.id}"
            commit = self._ask(name, lambda: api.create_commit(name, [*files, *gone], commit_message=message))
        private = there["private"] if there else not self.settings.public
        return {
            "url": f"{api.endpoint}/{name}",
            "repo": name,
            "commit": commit.commit_url,
            "private": private,
            "created": there is None,
            "files": sorted(paths),
            "bytes": size,
            "notes": _notes(private, self.settings),
        }

    def _owner(self, api: "HfApi", name: str) -> str:
        return self._ask(name, api.whoami)["name"]

    def _find(self, api: "HfApi", name: str) -> dict[str, Any] | None:
        """Return what is known of a repository: whether it is ``ours`` and ``private``, and its ``files``; ``None`` where there
        is none to be seen.

        Raises ``UserError`` where it is not one of ours. One without a file was made by a push that was cut short.
        """
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            found = self._ask(name, lambda: api.model_info(name), passed=(RepositoryNotFoundError,))
        except RepositoryNotFoundError:
            return None
        files = {one.rfilename for one in found.siblings or []}
        tags = (found.card_data and found.card_data.get("tags")) or []
        ours = OURS in tags or not files - {".gitattributes"}
        if not ours and not self.settings.overwrite:
            raise UserError(
                f"There is a repository {name} already, and Distillery has not made it: its card has no tag {OURS!r}. Choose another "
                "name, or say that the student may be written over what is in it; files of other names stay.",
                kind="taken",
            )
        return {"ours": ours, "private": bool(found.private), "files": files}

    def _check_card(self, name: str, text: str) -> None:
        """Ask the Hub whether it takes the card's metadata, of which the licence is all that a user gives, before anything is
        made or sent. Raises ``UserError`` where it does not."""
        from huggingface_hub import ModelCard

        try:
            self._ask(name, lambda: ModelCard(text).validate("model"), passed=(ValueError,))
        except ValueError as error:
            raise UserError(
                f"The Hub does not take the metadata of the model card: {_plain(str(error))}. Check the licence: it is an id of "
                "https://huggingface.co/docs/hub/repositories-licenses."
            ) from error

    def _create(self, api: "HfApi", name: str) -> None:
        private = not self.settings.public
        self._ask(name, lambda: api.create_repo(name, private=private, repo_type="model"))

    def _files(self) -> list[tuple[str, Path]]:
        """Return the files to push but for the card, with their paths in the repository."""
        source = self.run.path / (FOLDER if self.results["files"] else "student")
        found = [(file.relative_to(source).as_posix(), file) for file in sorted(source.rglob("*")) if file.is_file()]
        return [(path, file) for path, file in found if path.split("/")[0] not in (*LEFT_AT_HOME, "README.md")]

    def _upload(self, api: "HfApi", name: str, files: "list[CommitOperationAdd]") -> int:
        """Send the large files, one after another; return how many bytes all files have. The small ones go with the commit,
        which needs to know that they are small."""
        total, done = sum(one.upload_info.size for one in files), 0
        for one in sorted(files, key=lambda file: file.path_in_repo.endswith(LARGE)):
            if not one.path_in_repo.endswith(LARGE):
                done += one.upload_info.size
                continue
            content, begin = one.path_or_fileobj, done
            content.on_read = lambda read, begin=begin: self.progress("upload", begin + read, total)
            content.on_read(0)
            self._ask(name, lambda one=one: api.preupload_lfs_files(name, [one], free_memory=False), again=False)
            done += one.upload_info.size
        return total

    def _ask(
        self, name: str, call: Callable[[], Any], again: bool = True, passed: tuple[type[Exception], ...] = ()
    ) -> Any:
        """Ask the Hub, with its refusals in words; one that may pass is asked for ``again``. What is ``passed`` is raised as
        it is."""

        def attempt() -> Any:
            try:
                return call()
            except passed:
                raise
            except Exception as error:
                problem = self._in_words(name, error)
                if problem is None:
                    raise
                raise problem from error

        return patiently(attempt) if again else attempt()

    def _in_words(self, name: str, error: Exception) -> UserError | None:
        """Return what the Hub's libraries have raised as words for a person; ``None`` for what is no answer of the Hub."""
        chain = chain_of(error)
        if any(isinstance(link, UserError) for link in chain):
            return None
        names = {base.__name__ for link in chain for base in type(link).__mro__}
        again = "Push again: what was sent is kept, and it goes on from there."
        if busy := busy_with(chain):
            what = "broke off" if busy[0] == "broke off a download" else busy[0]
            return HubBusy(
                f"The Hub {what} when {name} was pushed, and did so when asked again. {again}", what, busy[1]
            )
        if status := refused_with(chain):
            return _refused(status, name, self.settings.signed_in, _words_of_hub(chain))
        if "ConnectError" in names or "ConnectTimeout" in names:
            return UserError(f"The Hub cannot be reached. Check the network. {again}", kind="unreachable")
        if names & {"NetworkError", "TimeoutException", "RemoteProtocolError"}:
            return UserError(f"The upload to {name} broke off. {again}", kind="broke off")
        return None


def _notes(private: bool, settings: PushSettings) -> list[str]:
    """Return what the user should know of a push that went through."""
    notes = []
    if private and settings.public:
        notes.append(
            "The repository was there already and is private, as it was: make it public in its settings on the Hub."
        )
    if not private and not settings.public:
        notes.append(
            "The repository was there already and is public, as it was: make it private in its settings on the Hub."
        )
    if not settings.license:
        notes.append("Nobody knows under which licence it may be used: push again with one.")
    return notes


def _refused(status: int, name: str, signed_in: bool, said: str) -> UserError:
    """Return what it means that the Hub has answered a push with a status, and what to do."""
    owner = name.split("/")[0]
    said = f" It says: {said}" if said else ""
    if status == 401:
        what = (
            "sign out and sign in again."
            if signed_in
            else f"make one that may write at {TOKENS}, then `hf auth login`."
        )
        return UserError(
            f"The Hub does not accept your token (401). It may have expired or been revoked: {what}", "401"
        )
    if status == 402:
        return UserError(
            f"The Hub asks for payment (402) before it takes {name}: what your account has for free is used up.{said} Free some "
            "space, push it to be public, or see https://huggingface.co/pricing.",
            "402",
        )
    if status == 403 and signed_in:
        return UserError(
            f"The Hub forbids it (403). Your sign-in lets this page make repositories in your own name and write into those that "
            f"it has made (scope {SCOPE!r}), and {name} is not one of them, or you have not allowed it: sign out, sign in again "
            f"and allow it, or choose a name in your own account that is not taken.{said}",
            "403",
        )
    if status == 403:
        return UserError(
            f"The Hub forbids it (403): your token may not write to {name}. It needs the role 'write', or, if it is a "
            f"fine-grained one, the scope 'Write access to contents/settings of all repos' of {owner} (repo.write). Make one at "
            f"{TOKENS}, then `hf auth login`; or choose a name in your own account.{said}",
            "403",
        )
    if status == 404:
        return UserError(
            f"The Hub does not find {name} (404): there is no account {owner!r}, your token may not see the repository, or it was "
            "deleted meanwhile. Check the spelling of the owner, then push again.",
            "404",
        )
    if status in (409, 412):
        return UserError(
            f"There is a conflict at {name} ({status}): the name is taken, or somebody else has changed it at the same moment. Push "
            "again, or choose another name.",
            str(status),
        )
    return UserError(
        f"The Hub does not take {name} ({status}).{said} Push again later, or choose another name.", str(status)
    )


def _words_of_hub(chain: list[BaseException]) -> str:
    """Return what the Hub itself has said of a refusal, on one line and not too long."""
    said = next((link.server_message for link in chain if getattr(link, "server_message", None)), "")
    return _plain(said)


def _plain(said: str) -> str:
    """Return words of the Hub's on one line, and not too many of them."""
    return " ".join(said.split())[:200]


class _Counted(io.BufferedReader):
    """A file that tells ``on_read`` up to which byte it has been read."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.on_read: Callable[[int], None] = lambda read: None

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.on_read(self.tell())
        return data


@contextmanager
def _plain_http() -> Iterator[None]:
    """Speak with the Hub over plain HTTP that gives up on silence: its library would wait for an answer for ever. Nor does it
    print what ``listening`` says in words, with addresses that are good for an upload."""
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils import _http, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    def client() -> Any:
        made = factory()
        made.timeout = (CONNECT_SECONDS, SILENCE_SECONDS, SILENCE_SECONDS, None)  # the last: for a free connection
        return made

    factory = _http._GLOBAL_CLIENT_FACTORY  # whoever calls us may have set one of their own
    library, had_bars, had_xet = (
        logging.getLogger("huggingface_hub"),
        not are_progress_bars_disabled(),
        constants.HF_HUB_DISABLE_XET,
    )
    printers = [one for one in library.handlers if type(one) is logging.StreamHandler]
    for one in printers:
        library.removeHandler(one)
    constants.HF_HUB_DISABLE_XET = os.environ.get("HF_HUB_DISABLE_XET", "1").upper() not in ("0", "NO", "FALSE", "OFF")
    set_client_factory(client)
    if had_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        for one in printers:
            library.addHandler(one)
        constants.HF_HUB_DISABLE_XET = had_xet
        set_client_factory(factory)
        if had_bars:
            enable_progress_bars()
