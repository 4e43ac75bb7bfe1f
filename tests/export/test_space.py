"""`kd deploy` against a small Hub: what it sends, what it leaves alone, and what it says of a refusal."""

import subprocess
from pathlib import Path

import pytest

from tests.support.commands import Commands
from tests.support.hub import Hub, Trouble
from tests.support.hub_writes import Account, Written, card_data

SPACE, TEACHER = "anna/distillery", "merve/beans-vit-224"

ACCOUNTS = {
    "hf_anna": Account("anna"),
    "hf_free": Account("free", is_free=True),
    "hf_read": Account("anna", role="read"),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    teacher = root / "models" / TEACHER
    teacher.mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin"):
        (teacher / name).write_text("x")
    with Hub(root, accounts=ACCOUNTS) as hub:
        yield hub


@pytest.fixture(scope="module")
def kd(hub, checkout, tmp_path_factory):
    commands = Commands(hub, tmp_path_factory.mktemp("home"), checkout)
    yield commands
    commands.end()


@pytest.fixture
def deploy(hub, kd):
    """Run `kd deploy`; what the Hub was asked for meanwhile is in ``hub.asked``."""
    hub.troubles.clear()
    hub.stages[:] = ["BUILDING", "APP_STARTING", "RUNNING"]

    def call(*arguments: str, token: str | None = "hf_anna"):
        hub.asked.clear()
        hub.sent.clear()
        done = kd("deploy", *arguments, HF_TOKEN=token)
        for what in (done.out, done.err, *hub.asked, str(hub.sent)):
            assert token is None or token not in what  # it is in no line, no address and no body
        return done

    return call


@pytest.fixture
def made(hub, deploy) -> Path:
    """The folder of a Space that was deployed."""
    done = deploy(SPACE)
    assert done.code == 0, done.err
    return hub.root / "spaces" / SPACE


def test_a_dry_run_asks_the_hub_nothing_and_prints_all_that_would_be_sent(hub, deploy):
    done = deploy("anna/other", "--dry-run", "--hardware", "zero-a10g", "--bucket", "anna/runs", token=None)
    assert done.code == 0 and hub.asked == []
    for words in ("kd/ui/page.py", "python_version: 3.12.12", "bucket: anna/runs at /data", "Nothing was sent."):
        assert words in done.out
    assert "tests/" not in done.out


def test_a_space_is_created_with_its_settings_and_one_commit(hub, deploy):
    done = deploy("anna/first", "--private", "--bucket", "anna/runs", "--var", "KD_STEPS=100", "--hardware", "t4-small")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == f"{hub.url}/spaces/anna/first"
    written, folder = hub.written["spaces", "anna/first"], hub.root / "spaces" / "anna/first"
    assert written.private and written.space["hardware"] == "t4-small"
    assert written.space["variables"] == {"KD_BUCKET": "/data", "KD_STEPS": "100"}
    assert written.space["volumes"] == [{"type": "bucket", "source": "anna/runs", "mountPath": "/data"}]
    assert len(written.commits) == 1
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {*written.commits[0]["added"], ".gitattributes"}
    assert {"app.py", "kd/ui/page.py", "assets/sample/train.parquet"} <= files
    assert "distillery" in card_data((folder / "README.md").read_text())["tags"]
    assert "building" in done.err and "app starting" in done.err and "running" in done.err


def test_an_update_sends_what_has_changed_and_deletes_what_is_gone(hub, deploy, made):
    (made / "old.py").write_text("from an older version")
    (made / "app.py").write_text("changed there")
    done = deploy(SPACE, "--var", "KD_STEPS=7")
    assert done.code == 0, done.err
    last = hub.written["spaces", SPACE].commits[-1]
    assert (last["added"], last["deleted"]) == (["app.py"], ["old.py"])
    assert hub.written["spaces", SPACE].space["variables"] == {"KD_STEPS": "7"}
    assert not any("/lfs/" in line and "PUT" in line for line in hub.asked)
    commits = len(hub.written["spaces", SPACE].commits)
    assert deploy(SPACE).code == 0
    assert len(hub.written["spaces", SPACE].commits) == commits  # nothing has changed


def test_a_space_on_zero_gpu_stays_fit_for_it_without_being_asked(hub, deploy):
    assert deploy("free/small", "--hardware", "zero-a10g", token="hf_free").code == 0
    assert deploy("free/small", token="hf_free").code == 0
    readme = (hub.root / "spaces" / "free/small" / "README.md").read_text()
    assert card_data(readme)["python_version"] == "3.12.12"


def test_a_secret_comes_from_the_environment_and_is_shown_nowhere(hub, kd, deploy, made):
    done = deploy(SPACE, "--secret", "KD_TEST_SECRET")
    assert done.code == 2 and "takes its value from the variable KD_TEST_SECRET" in done.err
    done = kd("deploy", SPACE, "--secret", "KD_TEST_SECRET", HF_TOKEN="hf_anna", KD_TEST_SECRET="hush")
    assert done.code == 0 and "hush" not in done.out + done.err
    assert hub.written["spaces", SPACE].space["secrets"] == {"KD_TEST_SECRET": "hush"}


def test_a_space_of_somebody_s_own_is_not_overwritten_unless_asked(hub, deploy):
    own = hub.root / "spaces" / "anna/own"
    own.mkdir(parents=True)
    (own / "README.md").write_text("---\nsdk: gradio\n---\n")
    (own / "app.py").write_text("mine")
    hub.written["spaces", "anna/own"] = Written("hf_anna")
    done = deploy("anna/own")
    assert done.code == 1 and "not made by `kd deploy`" in done.err and "--overwrite" in done.err
    assert (own / "app.py").read_text() == "mine" and not any(line.startswith("POST") for line in hub.asked)
    assert deploy("anna/own", "--overwrite").code == 0
    assert (own / "app.py").read_text() != "mine"


def test_after_a_cut_the_same_command_goes_on(hub, deploy):
    hub.troubles.append(Trouble("/commit/main", cut=1000))
    done = deploy("anna/cut")
    assert done.code == 1 and "broke off" in done.err and "run the command again" in done.err
    done = deploy("anna/cut")
    assert done.code == 0, done.err
    assert not any(line.startswith("PUT /lfs/") for line in hub.asked)  # what was sent before is there


def test_a_teacher_that_the_hub_does_not_show_whole_is_not_preloaded(hub, deploy):
    weights = hub.root / "models" / TEACHER / "model.safetensors"
    weights.rename(weights.with_name("moved"))
    try:
        done = deploy("anna/bare")
    finally:
        weights.with_name("moved").rename(weights)
    assert done.code == 0 and "without the teacher merve/beans-vit-224" in done.err and "model.safetensors" in done.err
    readme = hub.root / "spaces" / "anna/bare" / "README.md"
    assert "preload_from_hub" not in card_data(readme.read_text())


# --- The build


@pytest.mark.parametrize(
    ("stage", "log", "words"),
    [("BUILD_ERROR", "build", "could not be built"), ("RUNTIME_ERROR", "run", "its program ended")],
)
def test_the_end_of_the_log_is_shown_where_the_build_fails(hub, deploy, made, stage, log, words):
    hub.stages[:] = ["BUILDING", stage]
    hub.logs = {log: [f"line {n}\n" for n in range(100)]}
    done = deploy(SPACE)
    assert done.code == 1 and words in done.err
    assert "line 99" in done.err and "line 61" in done.err and "line 10\n" not in done.err


def test_a_paused_space_is_said_to_be_paused(hub, deploy, made):
    hub.stages[:] = ["PAUSED"]
    done = deploy(SPACE)
    assert done.code == 1 and "is paused. Start it in its settings." in done.err


# --- Refusals


@pytest.mark.parametrize(
    ("token", "name", "words"),
    [
        (None, "anna/no", "There is no token of yours here"),
        ("hf_Schlüssel", "anna/no", "Your token of the Hub has characters in it that no token has"),
        ("hf_nobody", "anna/no", "does not accept your token"),
        ("hf_read", "anna/no", "right to write to repositories of anna"),
        ("hf_anna", "ben/no", "right to write to repositories of ben"),
        ("hf_free", "free/no", "Gradio Spaces on ZeroGPU only, two at most"),
        ("hf_anna", "distillery", "expected OWNER/NAME"),
    ],
)
def test_who_may_not_is_told_what_to_do(hub, deploy, token, name, words):
    done = deploy(name, token=token)
    assert done.code == 1 and words in done.err
    assert not (hub.root / "spaces" / name).exists()


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (Trouble("/api/repos/create", 409, {"X-Error-Message": "taken"}), "is taken by something"),
        (Trouble("/api/repos/create", 429, {"RateLimit": '"api";r=0;t=55'}), "again in 55 s"),
        (Trouble("/api/repos/create", 503), "trouble of its own"),
        (Trouble("GET /api/spaces/anna/trouble", 500), "trouble of its own"),
    ],
)
def test_troubles_of_the_hub_are_said_in_words(hub, deploy, trouble, words):
    hub.troubles.append(trouble)
    done = deploy("anna/trouble")
    assert done.code == 1 and words in done.err and "Traceback" not in done.err


def test_what_was_committed_meanwhile_is_not_overwritten_unseen(hub, deploy, made):
    (made / "app.py").write_text("changed there")
    hub.troubles.append(Trouble("/commit/main", 412, {"X-Error-Message": "A commit has happened since."}))
    done = deploy(SPACE)
    assert done.code == 1 and "Somebody else has changed the Space" in done.err


def test_a_variable_without_a_value_is_bad_usage(deploy):
    assert deploy(SPACE, "--var", "KD_STEPS").code == 2


def test_ctrl_c_while_it_builds_says_that_the_space_goes_on(hub, checkout, tmp_path, made):
    import os
    import signal
    import sys
    import time

    hub.stages[:] = ["BUILDING"]
    environment = {**hub.environment(tmp_path), "HF_TOKEN": "hf_anna", "PYTHONPATH": str(checkout)}
    process = subprocess.Popen(
        [sys.executable, "-m", "kd", "deploy", SPACE], cwd=checkout, env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's job in the background ignores Ctrl-C
    )  # fmt: skip
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "building" in line:
            break
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "No longer waiting. The Space goes on by itself" in rest and "Traceback" not in "".join(lines) + rest
