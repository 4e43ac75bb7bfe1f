"""The public API, as a program calls it: ``gradio_client`` and raw requests against the real server."""

import json
import os
import time
import urllib.request

import pytest
from conftest import ROOT
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from pages import AS_USER_1000, Site, shared_site, site, until

from kd import runs
from kd.config import DistillConfig
from kd.ui.owners import view_key

pytestmark = pytest.mark.xdist_group("page")


@pytest.fixture(scope="module")
def client():
    return Client(site().url, verbose=False)


@pytest.fixture(scope="module")
def settings(colours, teacher) -> dict:
    return {
        "teacher": str(teacher), "dataset": str(colours), "student": "mobilenet_v2_0.35", "image_size": 32,
        "epochs": 2, "batch_size": 16, "views": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(client, settings) -> dict:
    """A run that was started and followed to its end: the last answer, with all its events."""
    run = client.predict("custom", settings, api_name="/start_run")["run"]
    cursor, events, deadline = 0, [], time.monotonic() + 120
    while True:
        found = client.predict(run, "", cursor, api_name="/get_run")
        events, cursor = events + found["events"], found["cursor"]
        if found["status"] not in ("queued", "running"):
            return {**found, "events": events}
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_a_run_is_started_and_followed_to_its_report(finished):
    names = [event["event"] for event in finished["events"]]
    assert names[0] == "created" and names[-1] == "done" and names.count("eval") == 2
    assert finished["status"] == "done" and finished["line"] == "Done"
    assert {"teacher", "student", "agreement", "speedup"} <= finished["report"].keys()


def test_compare_answers_for_uploaded_pictures_and_names_the_bad_one(client, finished, colours, tmp_path):
    (tmp_path / "notes.jpg").write_text("hello")
    images = [handle_file(str(path)) for path in (colours / "red brick" / "000.png", tmp_path / "notes.jpg")]
    found = client.predict(finished["run"], images, api_name="/compare")
    good, bad = found["pictures"]
    assert good["teacher"][0]["label"] == "red brick" and len(good["student"]) == 3
    assert 0 <= good["disagreement"] <= 1
    assert bad["name"] == "notes.jpg" and "is not a picture" in bad["error"]
    assert found["teacher"]["latency_ms"]["p95"] >= found["teacher"]["latency_ms"]["p50"] > 0


def test_a_file_of_the_server_is_not_taken_for_an_upload(client, finished):
    for path in (str(ROOT / "assets" / "examples" / "coat-1.png"), "/etc/hostname"):
        with pytest.raises(AppError, match="must be uploaded files"):
            client.predict(finished["run"], [{"path": path}], api_name="/compare")


def test_a_run_is_stopped(client, settings):
    run = client.predict("custom", {**settings, "epochs": 500}, api_name="/start_run")["run"]
    until(lambda: client.predict(run, api_name="/get_run")["status"] == "running")
    client.predict(run, api_name="/stop_run")
    until(lambda: client.predict(run, api_name="/get_run")["status"] == "stopped")
    with pytest.raises(AppError, match="is not running: it is stopped"):
        client.predict(run, api_name="/stop_run")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("custom", {"temperature": 0}), "temperature is 0"),
        (("custom", {"warmth": 1}), "Unknown setting warmth"),
        (("nothing", {}), "There is no preset 'nothing'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_the_command_lines_words(client, call, words):
    with pytest.raises(AppError, match=words):
        client.predict(*call, api_name="/start_run")


def test_the_four_functions_are_all_that_is_public_and_say_what_they_do(client):
    info = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(info) == {"/start_run", "/get_run", "/stop_run", "/compare"}
    assert all(endpoint["description"] for endpoint in info.values())


# --- On a shared server


@pytest.fixture(scope="module")
def stranger():
    return Client(shared_site().url, verbose=False)


def test_a_stranger_cannot_read_stop_or_compare_a_run(stranger, finished):
    for token in ("", "0" * 32, "x"):
        for call in ((finished["run"], token, 0, "/get_run"), (finished["run"], token, "/stop_run")):
            with pytest.raises(AppError, match="among yours"):
                stranger.predict(*call[:-1], api_name=call[-1])
        with pytest.raises(AppError, match="among yours"):
            stranger.predict(finished["run"], [], token, api_name="/compare")
    with pytest.raises(AppError, match="There is no run 'last' among yours"):
        stranger.predict("last", api_name="/get_run")


def test_a_read_only_key_reads_and_does_not_stop(stranger, finished):
    key = view_key(runs.find(site().folder, finished["run"]))
    assert stranger.predict(finished["run"], key, api_name="/get_run")["status"] == "done"
    with pytest.raises(AppError, match="among yours"):
        stranger.predict(finished["run"], key, api_name="/stop_run")


def test_the_token_that_a_start_returns_owns_the_run_and_no_other(stranger):
    started = stranger.predict("sample", {"epochs": 1}, api_name="/start_run")
    token = started["token"]
    assert len(token) == 32 and stranger.predict(started["run"], token, api_name="/get_run")["run"] == started["run"]
    stranger.predict(started["run"], token, api_name="/stop_run")
    run = runs.find(site().folder, started["run"])
    until(lambda: run.status() == "stopped")
    assert token not in (run.path / "config.json").read_text()


def test_a_shared_server_takes_no_paths_and_no_more_than_two_runs_of_one_visitor(stranger, settings):
    with pytest.raises(AppError, match="a path"):
        stranger.predict("custom", settings, api_name="/start_run")
    token = "ab" * 16
    for _ in range(2):  # created now, so they count as waiting, though nothing works on them
        runs.create(DistillConfig(), site().folder, token)
    with pytest.raises(AppError, match="You have 2 runs waiting or running"):
        stranger.predict("sample", {}, token, api_name="/start_run")
    for run in runs.list_runs(site().folder)[:2]:
        run.delete()


def test_a_private_handler_answers_a_raw_post_for_its_owner_only(finished):
    """Each handler of the page that takes a run, asked without its token."""
    config = shared_site().config()
    private = [d for d in config["dependencies"] if d["api_visibility"] == "private" and d["backend_fn"]]
    assert private
    for dependency in private:
        if "on_compare" not in str(dependency["api_name"]):
            continue
        data = [{"owner": "0" * 32}, {}, finished["run"], None]
        body = {"data": data, "fn_index": dependency["id"], "session_hash": "raw"}
        request = urllib.request.Request(
            f"{shared_site().url}/gradio_api/queue/join",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).read()
        answer = (
            urllib.request.urlopen(f"{shared_site().url}/gradio_api/queue/data?session_hash=raw", timeout=30)
            .read()
            .decode()
        )
        assert "among yours" in answer and "confidence" not in answer
        return
    pytest.fail("The page has no handler for Compare")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_starts_as_a_space_starts_it_and_a_visitor_can_start_a_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    for part in (folder, *folder.parents[:2]):
        part.chmod(0o755)
    (folder / "home").mkdir()
    os.chown(folder, 1000, 1000)
    os.chown(folder / "home", 1000, 1000)
    space = Site(
        folder, AS_USER_1000, HOME=str(folder / "home"), SPACE_ID="someone/distillery", SYSTEM="spaces",
        GRADIO_SERVER_NAME="0.0.0.0", GRADIO_TEMP_DIR=str(folder / "uploads"),
    )  # fmt: skip
    space.start()
    visitor = Client(space.url, verbose=False)
    started = visitor.predict("sample", {"epochs": 1}, api_name="/start_run")
    assert started["token"]
    run = runs.find(folder, started["run"])
    until(lambda: run.last("started"))
    visitor.predict(started["run"], started["token"], api_name="/stop_run")
    until(lambda: run.status() == "stopped")
    space.stop()
