"""A student on the Hub: ``kd push`` and the job of the page, against a Hub on this machine, with the real libraries."""

import io
import json
import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
from filelock import FileLock
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from kd.cli.main import main, parser
from kd.cli.options import given_settings
from kd.config import DistillConfig
from kd.distill import execute
from kd.errors import UserError
from kd.export.bundle import export_student, zipped
from kd.export.card import command_of, hub_id
from kd.export.job import is_exporting, job_of
from kd.export.push import PushSettings, check_push, default_name, push_student
from kd.export.push_job import is_pushing, push_of, start_push
from kd.runs.queue import slot_path
from kd.runs.run import CLOSED, Run
from kd.runs.store import create_run, local_owner
from tests.support.command import kd
from tests.support.hub import Hub, Trouble
from tests.support.hub_writes import Account
from tests.support.pages import until
from tests.support.runs import timed_shortly

TOKEN, READER, VISITOR = "hf_annas_own_token", "hf_may_only_read", "hf_oauth_of_a_visitor"
ACCOUNTS = {
    TOKEN: Account("anna"),
    READER: Account("anna", role="read"),
    VISITOR: Account("vera", role="contribute-repos"),
}
BUSY = {"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}


@pytest.fixture(scope="module")
def made(tmp_path_factory, colours, teacher) -> Run:
    """A run that is done, with a baseline and with the export that a run makes at its end."""
    settings = {
        "teacher": str(teacher), "dataset": str(colours), "student": "resnet_8", "image_size": 32, "epochs": 1,
        "batch_size": 16, "views": 1, "precision": "fp32", "export": "no", "baseline": "yes",
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("runs")
    run = create_run(DistillConfig.from_dict(settings), folder, local_owner(folder))
    execute(run)
    with timed_shortly():
        export_student(run, "onnx")
    run.rename("Fleurs d'été, 2")
    return run


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub"), accounts=ACCOUNTS) as served:
        yield served


@pytest.fixture(autouse=True)
def empty(hub: Hub) -> None:
    """Nothing is on the Hub, and it has no trouble."""
    for kind in ("models", "spaces"):
        for folder in (hub.root / kind).glob("*/*"):
            for file in sorted(folder.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            folder.rmdir()
    for kept in (hub.asked, hub.sent, hub.troubles, hub.written, hub.stored):
        kept.clear()


def pushing(run: Path, repo: str | None, token: str, settings: PushSettings) -> tuple[dict, list[float], list[str]]:
    """Push in this process, without waiting: what comes of it, the waits that there would have been, and its stages."""
    waits, stages = [], []
    with patch("time.sleep", waits.append):
        found = push_student(run, repo, token, settings, lambda stage, done, of: stages.append(stage))
    return found, waits, stages


@pytest.fixture(scope="module")
def process(hub: Hub, tmp_path_factory) -> Iterator[ProcessPoolExecutor]:
    """A process whose Hub is the small one."""
    environment = hub.environment(tmp_path_factory.mktemp("home"))
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        with patch.dict(os.environ, environment, clear=True):
            process.submit(os.getpid).result()  # it starts here, with the environment of this moment
        yield process


@pytest.fixture(scope="module")
def client(process) -> Callable[..., Any]:
    """``pushing`` in that process."""
    return lambda *asked: process.submit(pushing, *asked).result()


@pytest.fixture
def push(client, made) -> Callable[..., dict]:
    """Push ``made``; what comes of it."""
    return lambda repo="anna/student", token=TOKEN, **how: client(made.path, repo, token, PushSettings(**how))[0]


def put(hub: Hub, id: str, files: dict[str, str]) -> Path:
    """A repository that somebody has made."""
    folder = hub.root / "models" / id
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def commits(hub: Hub, id: str = "anna/student") -> list[dict]:
    return hub.written[("models", id)].commits


# --- What arrives


def test_a_push_sends_each_large_file_once_and_all_in_one_commit_to_a_private_repository(client, hub, made):
    found, waits, stages = client(made.path, None, TOKEN, PushSettings())
    id = "anna/distillery-fleurs-d-ete-2"
    assert found["repo"] == id and found["url"] == f"{hub.url}/{id}" and not waits
    assert (found["private"], found["created"]) == (True, True) and hub.written["models", id].private
    folder, export = hub.root / "models" / id, made.path / "export"
    sent = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {".gitattributes"}
    assert sent == set(found["files"]) >= {"model.safetensors", "config.json", "student.onnx", "results.json"}
    assert not [name for name in sent if name.startswith(("demo", "runtime"))]
    assert all((folder / name).read_bytes() == (export / name).read_bytes() for name in sent - {"README.md"})
    assert [line for line in hub.asked if "preupload" not in line and "batch" not in line] == [
        "GET /api/whoami-v2",
        f"GET /api/models/{id}",
        "POST /api/validate-yaml",
        "POST /api/repos/create",
        *[f"PUT /lfs/{oid}" for oid in hub.stored],
        "POST /api/validate-yaml",
        f"POST /api/models/{id}/commit/main",
    ]
    assert len(hub.stored) == 3 and set(hub.written["models", id].large) == {
        "model.safetensors", "onnx/model.onnx", "student.onnx",
    }  # fmt: skip
    assert [one["added"] for one in commits(hub, id)] == [sorted(sent)]
    assert list(dict.fromkeys(stages)) == ["ask", "upload", "commit"]


def test_the_card_has_metadata_that_the_hub_takes_and_says_what_was_measured(push, hub, made):
    push(license="mit")
    card = ModelCard((hub.root / "models/anna/student/README.md").read_text())
    head, text, report = card.data.to_dict(), card.text, made.report()
    assert head["tags"] == ["distillery", "knowledge-distillation", "image-classification", "onnx", "transformers.js"]
    assert (head["library_name"], head["license"]) == ("transformers", "mit")
    assert "base_model" not in head and "datasets" not in head
    name, results = model_index_to_eval_results(head["model-index"])
    assert name == "student" and {one.metric_type: one.metric_value for one in results} == {
        "accuracy": report["student"]["accuracy"], "f1": report["student"]["f1"],
    }  # fmt: skip
    for words in ("| the teacher | 100.00% |", "| **this student** |", "trained without the teacher",
                  report["verdict"]["sentence"], 'pipeline("image-classification", "anna/student"',
                  "hf download anna/student student.onnx", "## What it was measured on", "## Limits", "under `mit`"):  # fmt: skip
        assert words in text, words
    assert "kd distill --preset custom --teacher path/to/teacher" in text
    assert str(made.path.parent.parent) not in card.content and "demo.html" not in text


def test_a_card_without_a_licence_says_so_and_so_does_the_push(push, hub):
    found = push()
    text = (hub.root / "models/anna/student/README.md").read_text()
    assert "license:" not in text.split("---")[1] and "has not said under which licence" in text
    assert any("licence" in note for note in found["notes"])


def test_pushed_again_nothing_is_sent_that_is_there_and_only_what_has_changed_is_committed(push, hub):
    push()
    hub.asked.clear()
    again = push()
    assert not again["created"] and len(commits(hub)) == 1
    assert not [line for line in hub.asked if line.startswith("PUT") or "/commit/" in line]
    push(license="mit", public=True)
    assert commits(hub)[-1]["added"] == ["README.md"]
    assert hub.written["models", "anna/student"].private  # as it was: a push changes no settings


def test_what_an_earlier_push_has_left_of_another_export_is_deleted_and_what_the_owner_has_added_stays(push, hub):
    push()
    folder = put(hub, "anna/student", {"onnx/model_quantized.onnx": "old", "samples/mine.txt": "mine"})
    push(license="mit")
    assert commits(hub)[-1] | {"oid": "", "summary": ""} == {
        "oid": "", "summary": "", "added": ["README.md"], "deleted": ["onnx/model_quantized.onnx"],
    }  # fmt: skip
    assert (folder / "samples/mine.txt").exists()


# --- Whose it is


def test_a_repository_that_a_push_has_not_made_is_left_as_it_is_until_the_user_says_so(push, hub):
    card = "---\ntags: [cats]\n---\n# Cats"
    theirs = put(hub, "anna/student", {"README.md": card, "cats.txt": "cats", "onnx/model_quantized.onnx": "cats"})
    with pytest.raises(UserError, match="Distillery has not made it") as refused:
        push()
    assert refused.value.kind == "taken" and not [line for line in hub.asked if not line.startswith("GET")]
    found = push(overwrite=True)
    assert (
        not found["created"] and not found["private"] and any("is public, as it was" in one for one in found["notes"])
    )
    assert "Distillery" in (theirs / "README.md").read_text() and commits(hub)[-1]["deleted"] == []
    assert {(theirs / name).read_text() for name in ("cats.txt", "onnx/model_quantized.onnx")} == {"cats"}


def test_a_repository_that_has_no_card_and_no_tag_is_not_ours_but_an_empty_one_is(push, hub):
    put(hub, "anna/student", {"weights.bin": "x"})
    with pytest.raises(UserError, match="has not made it"):
        push()
    put(hub, "anna/cut", {".gitattributes": ""})
    assert push("anna/cut")["files"]


def test_a_visitor_can_push_to_what_this_app_has_made_and_nowhere_else(push, hub):
    assert push("vera/student", VISITOR, signed_in=True)["created"]
    assert not push("vera/student", VISITOR, signed_in=True, license="mit")["created"]
    put(hub, "vera/older", {"README.md": "---\ntags: [distillery]\n---\n"})
    with pytest.raises(UserError, match=r"\(403\).*scope 'contribute-repos'.*sign out, sign in again"):
        push("vera/older", VISITOR, signed_in=True)


# --- Trouble


def fails(push, words: str, **how: Any) -> UserError:
    """The error of a push that fails with these words; the token is not in it, nor in what caused it."""
    with pytest.raises(UserError, match=words) as failed:
        push(**how)
    assert not any(token in f"{failed.value!r}{failed.value.__cause__!r}" for token in ACCOUNTS)
    return failed.value


@pytest.mark.parametrize(
    ("trouble", "how", "words"),
    [
        (None, {"token": "hf_revoked"}, r"does not accept your token \(401\).*hf auth login"),
        (None, {"token": "hf_revoked", "signed_in": True}, r"\(401\).*sign in again"),
        (None, {"token": READER}, r"\(403\).*may not write to anna/student.*'write'.*repo\.write"),
        (None, {"repo": "ben/student"}, r"\(403\).*may not write to ben/student.*rights to create a model"),
        (None, {"license": "beer"}, "does not take the metadata of the model card.*license.*Check the licence"),
        (Trouble("/create", 402, body=b'{"error": "Private storage is full"}'), {}, r"\(402\).*Private storage is full"),
        (Trouble("/create", 404, {"X-Error-Code": "RepoNotFound"}), {}, r"does not find anna/student \(404\)"),
        (Trouble("/create", 409), {}, r"conflict at anna/student \(409\).*choose another name"),
        (Trouble("/commit/", 412), {}, r"conflict at anna/student \(412\)"),
        (Trouble("/commit/", 413), {}, r"does not take anna/student \(413\)"),
    ],
)  # fmt: skip
def test_each_refusal_is_said_in_words_with_what_to_do(push, hub, trouble, how, words):
    hub.troubles[:] = [trouble] if trouble else []
    fails(push, words, **how)
    assert not hub.written.get(("models", "anna/student")) or not commits(hub)


@pytest.mark.parametrize(
    ("where", "status", "words"),
    [
        ("/create", 429, r"asks for fewer requests \(429\).*Push again: what was sent is kept"),
        ("/commit/", 500, r"has trouble of its own \(500\).*Push again"),
        ("PUT /lfs/", 503, r"has trouble of its own \(503\)"),
    ],
)
def test_a_hub_that_stays_busy_is_given_up_with_words(push, hub, where, status, words):
    hub.troubles[:] = [Trouble(where, status, BUSY if status == 429 else {})] * 6
    fails(push, words)
    assert not hub.troubles


def test_a_hub_that_is_busy_once_is_asked_again_after_as_long_as_it_says(client, hub, made):
    hub.troubles[:] = [
        Trouble("GET /api/models", 502), Trouble("/create", 429, BUSY), Trouble("/commit/", 503), Trouble("preupload", 429, BUSY),
    ]  # fmt: skip
    found, waits, _ = client(made.path, "anna/student", TOKEN, PushSettings())
    assert waits == [1, 2, 2, 1] and found["files"] and not hub.troubles  # of 1 s in RateLimit, and one more to be sure


def test_an_upload_that_is_cut_is_sent_again_and_a_push_that_broke_off_goes_on_from_there(client, push, hub, made):
    hub.troubles[:] = [Trouble("PUT /lfs/", cut=1000)]
    assert client(made.path, "anna/cut-once", TOKEN, PushSettings())[1] == [1]
    hub.stored.clear()
    hub.troubles[:] = [Trouble("PUT /lfs/"), *[Trouble("PUT /lfs/", cut=1000)] * 6]  # the first file arrives
    fails(push, "broke off.*Push again: what was sent is kept")
    assert len(hub.stored) == 1 and not hub.troubles and not commits(hub)
    hub.asked.clear()
    push()
    assert sum(line.startswith("PUT") for line in hub.asked) == 2 and len(commits(hub)) == 1


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f"{TOKEN} ", "hf_Schlüssel"])
def test_a_token_that_cannot_be_one_is_refused_without_being_shown(hub, made, online, token):
    with pytest.raises(UserError, match="characters in it that no token has") as refused:
        push_student(made, "anna/student", token)
    assert token.strip() not in f"{refused.value!r}" and not hub.asked


def test_a_hub_that_cannot_be_reached_is_said(made, tmp_path):
    environment = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path),
    }
    done = kd("push", made.id, "anna/student", "--runs-dir", made.path.parent, **environment)
    assert done.returncode == 1 and "The Hub cannot be reached. Check the network." in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and TOKEN not in done.stderr


# --- Names, and the command that repeats a run


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("Fleurs d'été", "distillery-fleurs-d-ete"),
        ("a -- b..c", "distillery-a-b.c"),
        (".../x.git.git", "distillery-x"),
        ("x" * 80, f"distillery-{'x' * 69}"),
        ("Öl & Gas_2", "distillery-ol-gas_2"),
    ],
)
def test_a_repository_is_called_as_the_run_is_in_letters_that_the_hub_takes(run, name, repo, online):
    run.rename(name)
    assert default_name(run) == repo
    check_push(default_name(run), PushSettings())


@pytest.mark.parametrize("name", ["", "花", "!?"])
def test_a_run_without_a_name_in_such_letters_is_called_by_its_id(run, name, online):
    run.rename(name)
    assert default_name(run) == f"distillery-{run.id}"
    check_push(default_name(run), PushSettings())


@pytest.fixture
def online(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(
    "name", ["a/b/c", "-x", "a--b", "a b", "x" * 97, "anna/", "a.git", "https://huggingface.co/a/b"]
)
def test_a_name_that_the_hub_would_refuse_is_refused_before_anything_is_asked(name, online):
    with pytest.raises(UserError, match="cannot be the name of a repository") as refused:
        check_push(name, PushSettings())
    assert refused.value.kind == "name"


def test_in_offline_mode_nothing_is_asked():
    with pytest.raises(UserError, match="offline mode is on"):
        check_push("anna/student", PushSettings())


@pytest.mark.parametrize(
    "config",
    [
        DistillConfig.preset("sample"),
        DistillConfig.preset("sample", student="resnet_8", temperature=4, epochs=3),
        DistillConfig.preset("custom", teacher="a/b", dataset="c/d", method="dkd", baseline="yes", trials=3),
        DistillConfig.preset(
            "custom", teacher="a/b", dataset="c/d", student="google/mobilenet_v2_1.0_224", label_map="x=y"
        ),
        DistillConfig.preset("custom", teacher="a/b", dataset="sample", recipe="guide", minutes=5),
    ],
    ids=["sample", "changed", "dkd", "pretrained", "guide"],
)
def test_the_command_in_a_card_repeats_the_run(config):
    options = parser().parse_args(shlex.split(command_of(config))[1:])
    assert DistillConfig.preset(options.preset, **given_settings(options)) == config


def test_only_a_hub_id_is_taken_for_one():
    assert hub_id("google/mobilenet_v2_1.0_224") == "google/mobilenet_v2_1.0_224"
    for name in ("sample", "resnet_8", "/tmp/a/b", "path", "a/b/c", "run:x"):
        assert hub_id(name) is None


# --- The job, and the token


@pytest.fixture
def at_the_hub(hub, monkeypatch, online, tmp_path) -> Hub:
    """Processes that are started here know the small Hub only; this machine has a token of its own, which is not the visitor's."""
    for name, value in {**hub.environment(tmp_path), "HF_TOKEN": "hf_of_the_server"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return hub


def ended(run: Run, seconds: float = 400) -> Run:
    """The push of a run, once it is closed."""
    end = time.monotonic() + seconds
    while is_pushing(run):
        assert time.monotonic() < end, (push_of(run).path / "stderr.txt").read_text()
        time.sleep(0.1)
    return push_of(run)


def process_of(run: Run) -> psutil.Process:
    """The process of a push, once it has begun."""
    end = time.monotonic() + 300
    while not (began := push_of(run).last("started")):
        assert time.monotonic() < end and push_of(run).status() not in CLOSED
        time.sleep(0.1)
    return psutil.Process(began["pid"])


def everywhere(*folders: Path) -> bytes:
    """All that lies in these folders."""
    return b"".join(file.read_bytes() for folder in folders for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("token", [TOKEN, READER], ids=["pushed", "refused"])
def test_the_token_is_on_the_standard_input_of_the_pushing_process_and_nowhere_else(at_the_hub, made, token):
    seen = threading.Event()
    at_the_hub.troubles[:] = [Trouble("GET /api/models/anna/student", until=seen)]
    job = start_push(made, "anna/student", token, PushSettings())
    process = process_of(made)
    told = [*process.cmdline(), *process.environ().values(), *process.environ()]
    assert "push" in told and not [text for text in told if token in text or "hf_of_the_server" in text]
    assert start_push(made, "anna/other", TOKEN, PushSettings()) == job  # a second click finds it
    seen.set()
    ended(made)
    assert job.status() == ("done" if token == TOKEN else "failed"), (job.path / "stderr.txt").read_text()
    assert (job.last("failed") or {}).get("kind") == (None if token == TOKEN else "403")
    zipped(made)
    assert "authorization" not in (job.path / "stderr.txt").read_text().lower()
    assert token.encode() not in everywhere(made.path, at_the_hub.root)
    assert not [line for line in at_the_hub.asked if token in line] and token not in json.dumps(at_the_hub.sent)


def test_a_job_to_which_no_token_came_takes_no_other_that_is_on_this_machine(at_the_hub, made, tmp_path):
    (tmp_path / "token").write_text(TOKEN)  # as `hf auth login` leaves it
    start_push(made, "anna/student", "", PushSettings())
    job = ended(made)
    assert job.status() == "failed" and "No token came" in job.last("failed")["message"] and not at_the_hub.asked


def test_a_push_can_be_cancelled_in_the_middle_of_an_upload_and_be_begun_again(at_the_hub, made):
    cancelled = threading.Event()
    at_the_hub.troubles[:] = [Trouble("PUT /lfs/", until=cancelled)]
    start_push(made, "anna/student", TOKEN, PushSettings())
    end = time.monotonic() + 300
    while not any(line.startswith("PUT") for line in at_the_hub.asked):
        assert time.monotonic() < end and is_pushing(made), (push_of(made).path / "stderr.txt").read_text()
        time.sleep(0.1)
    push_of(made).ask_to_stop()
    assert ended(made).status() == "stopped" and not commits(at_the_hub)
    cancelled.set()
    start_push(made, "anna/student", TOKEN, PushSettings())
    job = ended(made)
    assert job.status() == "done" and job.last("done")["url"] == f"{at_the_hub.url}/anna/student"


def test_without_an_export_the_push_waits_for_one(at_the_hub, made, tmp_path):
    run = create_run(made.config(), tmp_path, local_owner(tmp_path))
    for name in ("student", "arms", "report.json"):
        (run.path / name).symlink_to(made.path / name)
    run.append("done")
    # The export of another process, which this one plays: what it makes is there already, elsewhere.
    export = Run(run.path / "exporting")
    export.path.mkdir()
    shutil.copy(run.path / "config.json", export.path)
    (export.path / "events.jsonl").touch()
    export.append("started", pid=1)
    with export.work():
        start_push(run, "anna/waits", TOKEN, PushSettings())
        until(lambda: push_of(run).last("queued"), 120)
        assert push_of(run).last("queued")["device"] == "export" and push_of(run).last("started") is None
        shutil.copytree(made.path / "export", run.path / "export")
        export.close("done")
    job = ended(run)
    assert job.status() == "done", (job.path / "stderr.txt").read_text()
    assert "student.onnx" in job.last("done")["files"]


def test_without_an_export_one_is_begun(at_the_hub, made, tmp_path):
    run = create_run(made.config(), tmp_path, local_owner(tmp_path))
    (run.path / "student").symlink_to(made.path / "student")
    run.append("done")
    with FileLock(slot_path(tmp_path, "cpu")):  # as a run that trains: the export waits for it
        start_push(run, "anna/waits", TOKEN, PushSettings())
        assert is_exporting(run) and is_pushing(run)
        for job in (job_of(run), push_of(run)):
            job.ask_to_stop()
        assert ended(run).status() == "stopped" and not at_the_hub.asked
        until(lambda: not is_exporting(run), 180)


def test_a_student_that_cannot_be_exported_goes_out_for_transformers_alone_and_its_card_says_so(
    push, client, hub, made, tmp_path
):
    run = create_run(made.config(), tmp_path, "t")
    for name in ("student", "arms", "report.json"):
        (run.path / name).symlink_to(made.path / name)
    (run.path / "exporting").mkdir()
    failed = {
        "event": "failed",
        "time": 0,
        "kind": "not exportable",
        "message": "The student cannot be exported: it is odd.",
    }
    (run.path / "exporting" / "events.jsonl").write_text(json.dumps(failed) + "\n")
    found, _, _ = client(run.path, "anna/odd", TOKEN, PushSettings())
    assert found["files"] == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    card = ModelCard((hub.root / "models/anna/odd/README.md").read_text())
    assert "for transformers only. The student cannot be exported: it is odd." in card.text
    assert "onnx" not in card.data.tags and "transformers.js cannot run it" in card.text


# --- The command line


def commanded(arguments: list[str], token: str) -> tuple[int, str, str]:
    """Run ``kd`` in this process: its exit code, and what it prints on standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with patch.dict(os.environ, HF_TOKEN=token), redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def test_kd_push_prints_the_address_and_with_json_all_that_was_done(process, hub, made):
    arguments = [
        "push",
        "last",
        "student",
        "--license",
        "mit",
        "--public",
        "--json",
        "--runs-dir",
        str(made.path.parent),
    ]
    code, out, err = process.submit(commanded, arguments, TOKEN).result()
    assert code == 0, err
    address, last = out.splitlines()
    assert address == f"{hub.url}/anna/student" and not json.loads(last)["private"]
    assert TOKEN not in out + err and "pushing the student of run" in err


def test_kd_push_names_the_option_where_a_repository_is_anothers_work(process, hub, made):
    put(hub, "anna/student", {"README.md": "# Cats"})
    arguments = ["push", "last", "anna/student", "--runs-dir", str(made.path.parent)]
    code, out, err = process.submit(commanded, arguments, TOKEN).result()
    assert (code, out) == (1, "") and "--overwrite" in err and "Traceback" not in err
    assert (hub.root / "models/anna/student/README.md").read_text() == "# Cats"


def test_kd_push_asks_nothing_without_a_token_and_says_where_to_get_one(process, hub, made):
    code, _, err = process.submit(commanded, ["push", "last", "--runs-dir", str(made.path.parent)], "").result()
    assert code == 1 and "There is no token of yours here" in err and "hf auth login" in err and not hub.asked
