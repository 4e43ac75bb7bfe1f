"""Ask the Hugging Face Hub: wait for troubles that pass, and say all of them in words."""

import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from kd.errors import UserError

# Seconds before each further try.
WAITS = (1, 2, 4, 8, 16)

# The longest wait, in seconds, that the Hub may ask for.
PATIENCE = 300

# How often a wait checks whether it is to be ended.
POLL_SECONDS = 0.25

# HTTP status -> what the Hub does, where it may pass.
BUSY = {429: "asks for fewer requests (429)", 408: "did not answer in time (408)"} | dict.fromkeys(
    (500, 502, 503, 504), "has trouble of its own ({status})"
)

T = TypeVar("T")

log = logging.getLogger("kd.system.hub")


class HubBusy(UserError):
    """The Hub has a trouble that may pass: ``what`` it does, and how many ``seconds`` it asks to wait."""

    def __init__(self, message: str, what: str = "", seconds: float = 0.0) -> None:
        super().__init__(message)
        self.what, self.seconds = what, seconds


def from_hub(kind: str, name: str, load: Callable[[], T], is_local: bool = False) -> T:
    """Return what ``load`` returns, asking a Hub that is busy again, later each time and never sooner than it says.

    A download goes on where it broke off. ``is_local``: the name stands for a folder here, so the Hub is not asked first.
    Raises ``UserError``.
    """

    def attempt() -> T:
        with explained(kind, name, is_local):
            return load()

    return patiently(attempt)


def patiently(attempt: Callable[[], T]) -> T:
    """Return what ``attempt`` returns, calling it again after each ``HubBusy``, later each time and never sooner than that
    asks for. Raises what ``attempt`` does, the last ``HubBusy`` among it."""
    for nth in range(len(WAITS) + 1):
        try:
            return attempt()
        except HubBusy as busy:
            if nth == len(WAITS) or busy.seconds > PATIENCE:
                raise
            wait = max(WAITS[nth], busy.seconds)
            log.warning("The Hub %s; trying again in %g s.", busy.what, wait)
        time.sleep(wait)
    raise AssertionError


class _WaitHandler(logging.Handler):
    """Pass on what this module and the Hub's libraries log about waiting."""

    def __init__(self, on_message: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.on_message = on_message

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name != log.name:
            text = in_words(text)
        if text:
            self.on_message(text)


def in_words(text: str) -> str | None:
    """Return what ``huggingface_hub`` logs before it waits in our own words; ``None`` for what else it logs."""
    if "Trying to resume download" in text:
        return "A download from the Hub broke off; going on from there."
    found = re.search(r"(Rate limited. Waiting|Retrying in) ([\d.]+)s", text)
    if not found:
        return None
    what = "asks for fewer requests" if found[1].startswith("Rate") else "is busy"
    return f"The Hub {what}; trying again in {float(found[2]):g} s."


@contextmanager
def listening(on_message: Callable[[str], None], stop_asked: Callable[[], bool]) -> Iterator[None]:
    """Report each wait for the Hub to ``on_message``, and end it with ``KeyboardInterrupt`` once ``stop_asked()``.

    The libraries sleep and read without asking whether to stop: a thread asks, and interrupts the main thread, as Ctrl-C
    would. In another thread than the main one, where Python takes no signals, they wait on.
    """
    handler, over = _WaitHandler(on_message), threading.Event()
    loggers = [log, logging.getLogger("huggingface_hub")]
    main = threading.main_thread()

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            if stop_asked():
                return signal.pthread_kill(main.ident, signal.SIGUSR1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for one in loggers:
        one.addHandler(handler)
    before = signal.signal(signal.SIGUSR1, interrupt) if threading.current_thread() is main else None
    watcher = threading.Thread(target=watch, daemon=True)
    if before is not None:
        watcher.start()
    try:
        yield
    finally:
        over.set()
        if before is not None:
            watcher.join()
            signal.signal(signal.SIGUSR1, before)
        for one in loggers:
            one.removeHandler(handler)


@contextmanager
def explained(kind: str, name: str, is_local: bool = False) -> Iterator[None]:
    """Turn the errors of the Hub's libraries into a ``UserError`` that says the reason, ``HubBusy`` where it may pass."""
    try:
        if not is_local:
            _ask_hub(kind, name)
        yield
    except Exception as error:
        chain = chain_of(error)
        if busy := busy_with(chain):
            raise HubBusy(
                f"The Hub {busy[0]} when it was asked for the {kind} {name!r}, and did so when asked again. Try in some "
                "minutes; what was downloaded is kept.",
                *busy,
            ) from error
        if isinstance(error, UserError):
            raise
        reason = _hub_reason(error, chain)
        if reason is None:
            raise
        raise UserError(reason.format(kind=kind, name=name)) from error


def _ask_hub(kind: str, name: str) -> None:
    """Ask the Hub for a repository of which nothing is in the cache, so that a failure comes at once.

    The libraries would try six times, which takes 23 s, or 7 minutes where nothing answers at all.
    """
    from huggingface_hub import HfApi, constants, is_offline_mode
    from huggingface_hub.file_download import repo_folder_name

    if is_offline_mode():
        return
    repo_type = "dataset" if kind == "dataset" else "model"
    if not (Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=repo_type)).exists():
        HfApi().repo_info(name, repo_type=repo_type, timeout=10)


def chain_of(error: BaseException) -> list[BaseException]:
    """Return an error and all that caused it."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def busy_with(chain: list[BaseException]) -> tuple[str, float] | None:
    """Return what the Hub does, if it may pass, and the seconds that it asks to wait."""
    from huggingface_hub.errors import HfHubHTTPError

    for link in chain:
        if isinstance(link, HfHubHTTPError) and (status := link.response.status_code) in BUSY:
            return BUSY[status].format(status=status), _seconds_asked(link.response.headers)
    names = {base.__name__ for link in chain for base in type(link).__mro__}
    if names & {"RemoteProtocolError", "ReadError"} or any("Consistency check failed" in str(link) for link in chain):
        return "broke off a download", 0.0
    return ("did not answer in time", 0.0) if "ReadTimeout" in names else None


def _seconds_asked(headers: Mapping[str, str]) -> float:
    """Return the seconds that an answer asks to wait: in ``Retry-After``, or in ``RateLimit``, which is in each of the Hub's
    answers and counts where nothing remains."""
    from huggingface_hub.utils import parse_ratelimit_headers

    asked = headers.get("Retry-After", "")
    if asked.isdigit():
        return float(asked)
    limit = parse_ratelimit_headers(headers)
    return limit.reset_in_seconds + 1.0 if limit and not limit.remaining else 0.0  # a second, because it is rounded


def refused_with(chain: list[BaseException]) -> int | None:
    """Return the HTTP status with which the Hub has refused, if it has."""
    from huggingface_hub.errors import HfHubHTTPError

    return next((link.response.status_code for link in chain if isinstance(link, HfHubHTTPError)), None)


def _hub_reason(error: BaseException, chain: list[BaseException]) -> str | None:
    """Return which of the usual reasons an error of the Hub's libraries has; ``None`` for another error.

    It is a message with places for ``kind`` and ``name``.
    """
    from huggingface_hub import is_offline_mode

    names = {base.__name__ for link in chain for base in type(link).__mro__}
    text = " ".join(str(link) for link in chain)
    unreachable = names & {"ConnectError", "LocalEntryNotFoundError", "ConnectionError", "TimeoutException"}
    unknown = names & {"RepositoryNotFoundError", "DatasetNotFoundError", "HFValidationError"}
    if "GatedRepoError" in names or "is a gated dataset" in text:
        return "The {kind} {name!r} is gated: accept its terms on the Hub, then log in with `hf auth login`."
    if is_offline_mode() and (unreachable or "OfflineModeIsEnabled" in names):
        return (
            "The {kind} {name!r} is not on this machine, and offline mode is on (HF_HUB_OFFLINE). Unset it, or name a "
            "folder."
        )
    if refused_with(chain) == 401 and not unknown:
        return "The Hub does not accept your token (401), asked for the {kind} {name!r}. Log in anew: `hf auth login`."
    if refused_with(chain) == 403:
        return "The Hub forbids it (403): your token has no right to the {kind} {name!r}. Use one that has: `hf auth login`."
    if unreachable:
        return (
            "The {kind} {name!r} is not a folder here, and the Hub cannot be reached. Check the network, or name a "
            "folder. The embedded sample needs no network."
        )
    if unknown or "not a valid model identifier" in text:
        return (
            "There is no {kind} {name!r}: no such folder here, no such id on the Hub (or it is private). Check the "
            "spelling; ids look like owner/name."
        )
    if "Config name is missing" in text or "BuilderConfig" in text:
        return "The {kind} {name!r} has several configurations; choose one with --dataset-config. " + _plain(str(error))
    if names & {"EmptyDatasetError", "DataFilesNotFoundError"}:
        return "The {kind} {name!r} has no data files that can be read."
    if "scripts are no longer supported" in text:
        return "The {kind} {name!r} is a loading script, which current `datasets` refuses. Use a copy of it in parquet."
    return None


def _plain(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
