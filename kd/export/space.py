"""Put the app on a Space of the Hugging Face Hub: create or update it, send the files in one commit, wait for the build."""

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kd.errors import UserError
from kd.export.push import check_token, own_token
from kd.export.staging import TAG, TEACHER_FILES, ZERO_GPU, Staged, stage, without_preload
from kd.system import hub

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

# Owner and name, as the Hub has them.
NAME = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}")

# Where a bucket is mounted, and the variable that tells the app.
MOUNT, BUCKET = "/data", "KD_BUCKET"

# How often a Space is asked for its stage, and for how long at most. A first build installs torch.
POLL_SECONDS = 5.0
BUILD_SECONDS = 45 * 60

# After a commit a Space may still be called what it was before: for so long where the Hub does not say which commit it is
# of, and for so long where it names another.
SETTLE_SECONDS, OTHER_SECONDS = 20.0, 180.0

# How many lines of the log of a failed build are shown.
LOG_LINES = 40

# Stages in which a Space goes on by itself.
ON_THE_WAY = ("BUILDING", "RUNNING_BUILDING", "APP_STARTING", "RUNNING_APP_STARTING")

# What to do about stages that are an end, but not a running Space.
ENDED = {
    "BUILD_ERROR": "could not be built. The end of the build's log is above.",
    "RUNTIME_ERROR": "was built, and its program ended. The end of its log is above.",
    "CONFIG_ERROR": "was refused for its README's front matter.",
    "NO_APP_FILE": "has no app.py.",
    "PAUSED": "is paused. Start it in its settings.",
    "STOPPED": "is stopped. Start it in its settings.",
    "SLEEPING": "sleeps. It wakes up when somebody opens it.",
    "DELETING": "is being deleted.",
}

FREE = (
    "A free account can have Gradio Spaces on ZeroGPU only, two at most, and only once it is 30 days old: give "
    f"--hardware {ZERO_GPU}. All other hardware, cpu-basic too, needs a PRO or Team subscription, or a way to pay: "
    "https://huggingface.co/settings/billing"
)


@dataclass(frozen=True)
class Wanted:
    """What a Space is to be: ``name`` (``owner/name``); ``None`` and nothing leave a Space that exists as it is."""

    name: str
    hardware: str | None = None
    private: bool = False
    bucket: str | None = None
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/spaces/{self.name}"

    def all_variables(self) -> dict[str, str]:
        """Return the variables, with the one that names the bucket's folder."""
        return {**({BUCKET: MOUNT} if self.bucket else {}), **self.variables}

    def check(self) -> None:
        """Raise ``UserError`` for names that the Hub would refuse."""
        if not NAME.fullmatch(self.name):
            raise UserError(f"{self.name!r} is not the name of a Space; expected OWNER/NAME, such as anna/distillery.")
        if self.bucket is not None and not NAME.fullmatch(self.bucket):
            raise UserError(f"{self.bucket!r} is not the name of a bucket; expected OWNER/NAME, such as anna/runs.")
        for key in (*self.variables, *self.secrets):
            if not re.fullmatch(r"[A-Za-z_]\w*", key):
                raise UserError(f"{key!r} cannot be the name of a variable; expected letters, digits and _.")


Tell = Callable[[str], None]


def api() -> "HfApi":
    """Return the Hub's API with the token of ``HF_TOKEN`` or ``hf auth login``. Raises ``UserError`` where there is none, or
    what is there cannot be one."""
    # Read when the library is imported. The Hub's own store for large files is not needed for 25 MB, and where a network
    # keeps it out of reach an upload would hang without a word.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # one for each of some 280 files
    return HfApi(token=check_token(own_token()))


def deploy(wanted: Wanted, tell: Tell, is_dirty_allowed: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Create or update a Space, and return its ``address``, the ``commit`` there and what was ``staged``.

    Its build goes on: ``wait_for`` follows it. ``tell`` is called with each line of progress. Run again after an error, it
    goes on: files that are there are not sent again.

    Raises ``UserError``: what the Hub refuses, in words; a Space that we have not made, unless ``overwrite``.
    """
    wanted.check()
    staged = stage(wanted.name, wanted.hardware, is_dirty_allowed)
    hub_api = api()
    with explained(wanted.name):
        there = find_space(hub_api, wanted.name)
    if there and not overwrite and not is_ours(there):
        raise UserError(
            f"There is a Space {wanted.name} already, and it was not made by `kd deploy` (its README lacks the tag {TAG}). "
            "Nothing was sent. Name another, or replace all of its files with --overwrite."
        )
    if there and wanted.hardware is None:
        with explained(wanted.name):
            staged = stage(wanted.name, hardware_of(hub_api, wanted.name), is_dirty_allowed)
    staged.files["README.md"] = checked_readme(hub_api, staged, tell)
    with explained(wanted.name):
        if there is None:
            create(hub_api, wanted)
            tell(f"Created {wanted.address}")
            there = hub_api.space_info(wanted.name)
        else:
            update(hub_api, wanted, tell)
        commit = send(hub_api, wanted.name, staged, there, tell)
    tell(f"The Space is at {commit[:10]}; now it is built")
    return {"address": wanted.address, "commit": commit, "staged": staged}


def find_space(hub_api: "HfApi", name: str) -> Any:
    """Return what the Hub knows of a Space, ``None`` where there is none that the token may see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return hub_api.space_info(name)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:  # a token that is not valid
            raise
        return None


def is_ours(there: Any) -> bool:
    """Tell whether `kd deploy` has made a Space: by its tag, or where it is still as empty as a new one, by that."""
    return TAG in (there.tags or []) or {one.rfilename for one in there.siblings or []} <= {
        ".gitattributes",
        "README.md",
    }


def hardware_of(hub_api: "HfApi", name: str) -> str | None:
    """Return the hardware that a Space has, or has asked for."""
    runtime = hub_api.get_space_runtime(name)
    return runtime.requested_hardware or runtime.hardware


def create(hub_api: "HfApi", wanted: Wanted) -> None:
    """Create the Space with all its settings, so that it is built once."""
    pairs = [[{"key": k, "value": v} for k, v in one.items()] for one in (wanted.all_variables(), wanted.secrets)]
    hub_api.create_repo(
        wanted.name,
        repo_type="space",
        space_sdk="gradio",
        private=wanted.private,
        space_hardware=wanted.hardware,
        space_variables=pairs[0] or None,
        space_secrets=pairs[1] or None,
        space_volumes=[_volume(wanted.bucket)] if wanted.bucket else None,
    )


def update(hub_api: "HfApi", wanted: Wanted, tell: Tell) -> None:
    """Change the settings of a Space that is there; what is not asked for stays."""
    if wanted.private:
        hub_api.update_repo_settings(wanted.name, repo_type="space", private=True)
    if wanted.hardware and wanted.hardware != hardware_of(hub_api, wanted.name):
        hub_api.request_space_hardware(wanted.name, wanted.hardware)
        tell(f"Asked for the hardware {wanted.hardware}")
    if wanted.bucket:
        others = [one for one in hub_api.get_space_runtime(wanted.name).volumes or [] if one.mount_path != MOUNT]
        hub_api.set_space_volumes(wanted.name, [*others, _volume(wanted.bucket)])
        tell(f"Mounted the bucket {wanted.bucket} at {MOUNT}")
    there = hub_api.get_space_variables(wanted.name)
    for key, value in wanted.all_variables().items():
        if key not in there or there[key].value != value:
            hub_api.add_space_variable(wanted.name, key, value)
            tell(f"Set the variable {key}")
    for key, value in wanted.secrets.items():
        hub_api.add_space_secret(wanted.name, key, value)
        tell(f"Set the secret {key}")


def _volume(bucket: str) -> Any:
    from huggingface_hub import Volume

    return Volume(type="bucket", source=bucket, mount_path=MOUNT)


def checked_readme(hub_api: "HfApi", staged: Staged, tell: Tell) -> bytes:
    """Return the staged README, without the files to preload where the Hub does not have all of them: a build would fail."""
    from huggingface_hub.errors import HfHubHTTPError

    readme, preloaded = staged.files["README.md"], staged.preloaded()
    try:
        names = {one.rfilename for one in hub_api.model_info(preloaded).siblings or []}
        if names.issuperset(TEACHER_FILES):
            return readme
        reason = f"it lacks {', '.join(sorted(set(TEACHER_FILES) - names))}"
    except HfHubHTTPError as error:
        reason = f"the Hub answers {error.response.status_code}"
    tell(f"The Space is built without the teacher {preloaded}, which its first run will fetch: {reason}.")
    return without_preload(readme)


def send(hub_api: "HfApi", name: str, staged: Staged, there: Any, tell: Tell) -> str:
    """Make one commit that leaves exactly the staged files in the Space, and return its hash.

    Files that have not changed since the last commit are not sent.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    keep = {*staged.files, ".gitattributes"}
    gone = sorted(one.rfilename for one in there.siblings or [] if one.rfilename not in keep)
    operations = [
        *(CommitOperationAdd(path, source if isinstance(source, bytes) else str(source)) for path, source in staged.files.items()),
        *(CommitOperationDelete(path) for path in gone),
    ]  # fmt: skip
    tell(f"Sending {len(staged.files)} files, {staged.total() / 1e6:,.1f} MB; what is there already is not sent again")
    dirty = " with changes that are not committed" if staged.is_dirty else ""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "It seems that you are about to commit a data file"
        )  # the sample; it is meant
        done = hub_api.create_commit(
            name,
            operations,
            repo_type="space",
            commit_message=f"Distillery {staged.commit[:10]}{dirty}",
            parent_commit=there.sha,
        )
    return done.oid


# --- The build


def wait_for(name: str, commit: str, tell: Tell, seconds: float = BUILD_SECONDS) -> str:
    """Wait until a Space runs ``commit``, with a line for each new stage; return its last stage, one that is an end.

    The end of the log is told where it fails. Raises ``UserError`` after ``seconds``, and where the Hub stops answering.
    """
    hub_api, began, before = api(), time.monotonic(), ""
    while True:
        runtime = hub.from_hub("Space", name, lambda: hub_api.get_space_runtime(name), is_local=True)
        stage_now = str(getattr(runtime.stage, "value", runtime.stage))
        passed = time.monotonic() - began
        if stage_now != before:
            tell(f"{passed:4.0f} s  {stage_now.lower().replace('_', ' ')}")
        if stage_now not in ON_THE_WAY and not _is_of_before(runtime, stage_now, before, (commit, passed)):
            break
        if passed > seconds:
            raise UserError(f"The Space {name} is not built after {seconds / 60:.0f} minutes; it goes on by itself.")
        before = stage_now
        time.sleep(POLL_SECONDS)
    if stage_now in ("BUILD_ERROR", "RUNTIME_ERROR"):
        for line in log_end(hub_api, name, build=stage_now == "BUILD_ERROR"):
            tell(f"  {line}")
    if message := runtime.raw.get("errorMessage"):
        tell(f"  {message}")
    return stage_now


def _is_of_before(runtime: Any, stage_now: str, before: str, since: tuple[str, float]) -> bool:
    """Tell whether a Space is called what it was before our commit: the Hub takes some seconds to begin with the build."""
    commit, passed = since
    if (sha := runtime.raw.get("sha")) and stage_now == "RUNNING":
        return sha != commit and passed < OTHER_SECONDS
    return before in ("", stage_now) and passed < SETTLE_SECONDS


def log_end(hub_api: "HfApi", name: str, build: bool) -> list[str]:
    """Return the last lines of a Space's log; where it cannot be read, a line that says so."""
    try:
        with explained(name):
            lines = [line.rstrip("\n") for line in hub_api.fetch_space_logs(name, build=build)]
    except UserError as problem:
        return [f"Its log cannot be read: {problem}"]
    return lines[-LOG_LINES:]


# --- What the Hub refuses


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what the Hub refuses of whoever writes to the Space ``name`` into a ``UserError`` that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError as error:
        raise UserError(refusal(name, error)) from error
    except OfflineModeIsEnabled as error:
        raise UserError("Offline mode is on (HF_HUB_OFFLINE), so the Hub is not asked. Unset it to deploy.") from error
    except Exception as error:
        if "TransportError" not in {base.__name__ for base in type(error).__mro__}:  # of the HTTP library that it uses
            raise
        raise UserError(
            f"The connection to the Hub failed or broke off ({type(error).__name__}). Check the network, then run the command "
            "again: it goes on where it was."
        ) from error


def refusal(name: str, error: "HfHubHTTPError") -> str:
    """Say what the Hub's refusal means for whoever writes to the Space ``name``, and what to do."""
    from huggingface_hub.utils import parse_ratelimit_headers

    status, wait = error.response.status_code, parse_ratelimit_headers(error.response.headers)
    owner = name.split("/")[0]
    words = {
        401: "The Hub does not accept your token. Log in anew with one that may write: `hf auth login`.",
        402: f"The Hub asks for payment. {FREE}",
        403: f"Your token may not do this to the Space {name}. It needs the right to write to repositories of {owner}: make "
        "one at https://huggingface.co/settings/tokens, then `hf auth login`.",
        404: f"There is no Space {name}, or your token may not see it.",
        409: f"The name {name} is taken by something that your token may not see. Choose another.",
        412: f"Somebody else has changed the Space {name} in this moment. Run the command again.",
        429: f"The Hub asks for fewer requests. Run the command again in {wait.reset_in_seconds if wait else 300} s.",
    }  # fmt: skip
    trouble = "The Hub has trouble of its own. Run the command again in some minutes: it goes on where it was."
    said = f": {error.server_message}" if error.server_message else ""
    return f"{words.get(status, trouble if status >= 500 else 'The Hub refuses it.')} ({status}{said})"
