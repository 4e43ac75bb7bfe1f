"""The public API, as a program calls it: ``gradio_client`` and raw requests against the real server."""

import functools
import json
import time
import urllib.request

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from kd.config import DistillConfig
from kd.experiments.grid import Grid
from kd.experiments.sweep import create_sweep
from kd.runs.store import create_run, delete_run, find_run, list_runs, local_owner
from kd.system.ids import owner_hash
from kd.ui.access import view_key
from tests.support.pages import shared_site, site, until
from tests.support.paths import ROOT

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
        with pytest.raises(AppError, match="must be uploaded"):
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
        ((["custom"], {}), "There is no preset"),
        (("custom", [1]), r"settings are \[1\]; expected names and values"),
        (("custom", {"method": ["kd"], "recipe": {}}), "method is|recipe is"),
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
    key = view_key(find_run(site().folder, finished["run"]))
    assert stranger.predict(finished["run"], key, api_name="/get_run")["status"] == "done"
    with pytest.raises(AppError, match="among yours"):
        stranger.predict(finished["run"], key, api_name="/stop_run")


def test_the_token_that_a_start_returns_owns_the_run_and_no_other(stranger):
    started = stranger.predict("sample", {"epochs": 1}, api_name="/start_run")
    token = started["token"]
    assert len(token) == 32 and stranger.predict(started["run"], token, api_name="/get_run")["run"] == started["run"]
    stranger.predict(started["run"], token, api_name="/stop_run")
    run = find_run(site().folder, started["run"])
    until(lambda: run.status() == "stopped")
    assert token not in (run.path / "config.json").read_text()


def test_a_shared_server_takes_no_paths_and_no_more_than_two_runs_of_one_visitor(stranger, settings):
    with pytest.raises(AppError, match="a path"):
        stranger.predict("custom", settings, api_name="/start_run")
    token = "ab" * 16
    for _ in range(2):  # created now, so they count as waiting, though nothing works on them
        create_run(DistillConfig(), site().folder, token)
    with pytest.raises(AppError, match="You have 2 runs waiting or running"):
        stranger.predict("sample", {}, token, api_name="/start_run")
    for run in list_runs(site().folder)[:2]:
        delete_run(run)


def test_a_private_handler_answers_a_raw_post_for_its_owner_only(finished):
    """Each handler of the page that takes a run, asked without its token."""
    config = shared_site().config()
    private = [d for d in config["dependencies"] if d["api_visibility"] == "private" and d["backend_fn"]]
    assert private
    for dependency in private:
        if "on_compare" not in str(dependency["api_name"]):
            continue
        data = [{"owner": "0" * 32}, finished["run"], None]
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


# --- Another visitor attacks a run and a sweep

VICTIM, STRANGER = "5e" * 16, "0" * 32

SECRETS = ("the secret name", "secret class", "0.8125", "61.25%", "secretsauce")


@pytest.fixture(scope="module")
def theirs():
    """A visitor's finished run and a sweep on the shared server, with all that a run leaves."""
    config = DistillConfig(dataset="secretsauce/data")
    run = create_run(config, site().folder, VICTIM)
    run.rename("the secret name")
    run.append("started")
    run.append("data", classes=["secret class"], labels="dataset")
    run.append("done")
    latency = {"p50": 2.0, "p95": 3.0, "n": 30, "dtype": "float32", "device": "cpu", "threads": 1}
    side = {"accuracy": 0.8125, "f1": 0.8, "parameters": 9, "megabytes": 1.0, "flops": 8, "latency_ms": latency}
    report = {"teacher": side, "student": side, "agreement": 0.6125, "speedup": 1.0, "size_ratio": 1.0}
    report |= {"data": {"labels": "dataset"}, "trials": [{"arm": "distilled", "seed": 0, "accuracy": 0.8125}]}
    report |= {"baseline": None, "verdict": None}
    (run.path / "report.json").write_text(json.dumps(report))
    (run.path / "analysis.json").write_text('["secret class')
    (run.path / "student").mkdir()
    (run.path / "student" / "config.json").write_text('{"id2label": {"0": "secret class"}}')
    sweep = create_sweep(config, Grid(), site().folder, VICTIM)
    yield run, sweep
    delete_run(run)
    delete_run(sweep)


@pytest.fixture
def unchanged(theirs):
    """Whatever is tried, the run and the sweep stay as they are."""

    def files() -> dict:
        return {p: p.stat().st_mtime_ns for one in theirs for p in one.path.rglob("*") if p.name != "lock"}

    before = files()
    yield
    assert files() == before


def tokens() -> dict:
    """What is tried for a token. The right one inside another type is not the right one."""
    return {
        "none": "", "another": STRANGER, "its hash": owner_hash(VICTIM), "in a list": [VICTIM],
        "in an object": {"owner": VICTIM}, "a number": 7, "null": None, "true": True, "huge": "5e" * 100_000,
        "with a line's end": VICTIM + "\n", "in capitals": VICTIM.upper(), "half a character": "\ud800" * 32,
    }  # fmt: skip


SCRIPT = {
    ("live", "poll"): lambda run, sweep: {"run": run},
    ("live", "stop_it"): lambda run, sweep: {"run": run},
    ("live", "resume_it"): lambda run, sweep: {"run": run},
    ("live", "analysis"): lambda run, sweep: {"run": run},
    ("live", "export_state"): lambda run, sweep: {"run": run},
    ("live", "export_it"): lambda run, sweep: {"run": run},
    ("live", "cancel_it"): lambda run, sweep: {"run": run},
    ("live", "zip_part"): lambda run, sweep: {"run": run, "start": 0},
    ("live", "push_state"): lambda run, sweep: {"run": run},
    ("live", "push_it"): lambda run, sweep: {"run": run, "repo": "", "license": ""},
    ("live", "cancel_push"): lambda run, sweep: {"run": run},
    ("in-browser", "offered"): lambda run, sweep: {"run": run},
    ("in-browser", "part"): lambda run, sweep: {"run": run, "name": "student.onnx", "start": 0},
    ("in-browser", "ask_teacher"): lambda run, sweep: {"run": run, "path": "frame.png"},
    ("runs", "rows"): lambda run, sweep: {},
    ("runs", "curves"): lambda run, sweep: {"runs": [run]},
    ("runs", "act"): lambda run, sweep: {"run": run, "do": "delete"},
    ("runs", "act "): lambda run, sweep: {"run": run, "do": "rename", "name": "mine now"},
    ("runs", "act  "): lambda run, sweep: {"run": run, "do": "stop"},
    ("sweep", "poll"): lambda run, sweep: {"sweep": sweep},
    ("sweep", "offered"): lambda run, sweep: {},
    ("sweep", "stop_it"): lambda run, sweep: {"sweep": sweep},
    ("sweep", "resume_it"): lambda run, sweep: {"sweep": sweep},
    ("sweep", "delete_it"): lambda run, sweep: {"sweep": sweep},
}
"""What a page's script asks of a run or a sweep."""

HARMLESS = {
    ("expected", "expected"), ("sweep-plan", "preview"), ("dark", "teacher_says"), ("check", "checked"), ("check", "cancel"),
    ("data", "offered"), ("data", "begin"), ("data", "act"),
}  # fmt: skip
"""What it asks of settings, of a teacher and of pictures: nobody's run. ``test_uploads`` attacks the pictures."""


def posted(path: str, body: dict) -> str:
    """The text that the shared server answers to a raw POST, whatever its status below 500."""
    request = urllib.request.Request(
        f"{shared_site().url}/gradio_api/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        return urllib.request.urlopen(request, timeout=30).read().decode()
    except urllib.error.HTTPError as error:
        assert error.code < 500, (path, body, error.read())
        return error.read().decode()


def got(path: str) -> tuple[int, str]:
    """Status and text of a raw GET."""
    try:
        with urllib.request.urlopen(f"{shared_site().url}/{path}", timeout=30) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def called(name: str, *data) -> str:
    """What a public endpoint answers to ``/call``."""
    event = json.loads(posted(f"call/{name}", {"data": data}))["event_id"]
    return got(f"gradio_api/call/{name}/{event}")[1]


@functools.cache
def components() -> dict:
    """The components of the page that its scripts ask through, by their element's id."""
    return {c["props"].get("elem_id"): c for c in shared_site().config()["components"] if c["props"].get("server_fns")}


def scripted(element: str, function: str, data) -> str:
    """What a function of the page's script answers to a raw POST."""
    body = {"component_id": components()[element]["id"], "fn_name": function.strip(), "session_hash": "raw"}
    return posted("component_server", {**body, "data": data})


def says_nothing(answer: str) -> bool:
    return not any(secret in answer for secret in SECRETS)


def test_every_function_of_the_pages_scripts_is_attacked_here():
    there = {(element, name) for element, c in components().items() for name in c["props"]["server_fns"]}
    assert there == {(element, name.strip()) for element, name in SCRIPT} | HARMLESS


def lists_nothing(answer: str) -> bool:
    """Whether an answer is a list of runs or sweeps without anybody's; the example is nobody's."""
    found = json.loads(answer)
    html = found.get("html", "<tr")
    return found == {"sweeps": []} or html.count("<tr") == html.count('<tr data-run="example"')


@pytest.mark.parametrize(("element", "function"), SCRIPT)
def test_a_script_gets_nothing_of_anothers_with_any_token(theirs, unchanged, element, function):
    """List, watch, stop, resume, rename, delete, overlay, analysis, sweep: by the route of the page's scripts."""
    run, sweep = theirs
    for kind, token in tokens().items():
        asked = SCRIPT[element, function](run.id, sweep.id)
        for extra in ({"owner": token}, {"owner": token, "view": token}):
            answer = scripted(element, function, {**asked, **extra})
            assert says_nothing(answer), kind
            found = json.loads(answer)
            refused = found.get("problem", found.get("refused", ""))
            assert "among yours" in refused or lists_nothing(answer), (kind, found)


@pytest.mark.parametrize(("element", "function"), [*SCRIPT, *sorted(HARMLESS)])
def test_a_script_that_asks_nonsense_is_answered_in_words(element, function):
    huge = {
        "run": "x" * 10_000,
        "sweep": 10**40,
        "cursor": 10**40,
        "runs": [{}] * 9,
        "values": [[]] * 99,
        "teacher": [],
    }
    for nonsense in (None, [], "text", 7, {"run": None, "runs": None, "values": "x", "do": []}, huge):
        assert isinstance(json.loads(scripted(element, function, nonsense)), dict)


def test_the_public_api_gives_nothing_of_anothers_with_any_token(theirs, unchanged):
    run, _ = theirs
    for kind, token in tokens().items():
        for name, *data in (("get_run", run.id, token, 0), ("stop_run", run.id, token), ("compare", run.id, [], token)):
            answer = called(name, *data)
            assert "error" in answer and says_nothing(answer), (kind, name, answer)


def test_an_id_that_is_a_path_or_a_part_finds_nothing_even_for_the_owner(theirs, unchanged):
    run, sweep = theirs
    ids = [
        f"../{run.path.parent.name}/{run.id}", str(run.path), f"./{run.id}", f"{run.id}/", f"{run.id}\n", f"{run.id}\0",
        run.id[:13], "last", "", "..", ".owner", ".sweeps", f".sweeps/{sweep.id}", sweep.id, [run.id], {"id": run.id}, None,
    ]  # fmt: skip
    for id in ids:
        assert "among yours" in scripted("live", "poll", {"run": id, "owner": VICTIM})
        assert "among yours" in scripted("runs", "act", {"run": id, "owner": VICTIM, "do": "delete"})
        if isinstance(id, str):
            assert says_nothing(called("get_run", id, VICTIM, 0))
    for id in (f"../{sweep.id}", str(sweep.path), run.id, "last", sweep.id[:13], [sweep.id]):
        assert "among yours" in scripted("sweep", "poll", {"sweep": id, "owner": VICTIM})


def test_no_file_of_the_runs_folder_is_served(theirs):
    run, sweep = theirs
    inside = ("config.json", "events.jsonl", "report.json", "analysis.json", "student/config.json", "name", "lock")
    paths = [*(run.path / name for name in inside), sweep.path / "config.json", run.path.parent / ".owner", run.path]
    owners = [owner_hash(VICTIM), local_owner(run.path.parent)]
    for path in map(str, paths):
        for way in (
            path,
            f"/{path}",
            f"/tmp/gradio/..{path.removeprefix('/tmp')}",
            f"file://{path}",
            f"assets/../{path}",
        ):
            for route in ("gradio_api/file=", "gradio_api/file/", "file=", "gradio_api/proxy=", "static/", "assets/"):
                status, text = got(route + urllib.parse.quote(way))
                assert status >= 400 or "<!doctype html>" in text, (route, way)
                assert says_nothing(text) and not any(owner in text for owner in owners)


def test_the_pages_own_handlers_say_nothing_of_anothers_run(theirs, unchanged):
    """Raw POSTs to the queue: the comparison of another's run, and the list of what can be compared."""
    run, _ = theirs
    handlers = {d["api_name"]: d["id"] for d in shared_site().config()["dependencies"] if d["backend_fn"]}
    for kind, token in tokens().items():
        live = {"run": run.id, "owner": token, "view": token}
        for name, data in (("on_compare", [live, run.id, None]), ("offer", [live, run.id])):
            session = f"{name} {kind}".replace(" ", "-").replace("'", "")
            posted("queue/join", {"data": data, "fn_index": handlers[name], "session_hash": session})
            answer = got(f"gradio_api/queue/data?session_hash={session}")[1]
            assert "process_completed" in answer and says_nothing(answer), (kind, answer)
            assert name == "offer" or "among yours" in answer
    image = {"image": {"path": str(run.path / "config.json")}}
    posted(
        "queue/join",
        {"data": [{"owner": VICTIM}, run.id, [image]], "fn_index": handlers["on_compare"], "session_hash": "file"},
    )
    assert says_nothing(got("gradio_api/queue/data?session_hash=file")[1])


def test_a_read_only_link_reads_one_run_and_nothing_more(theirs, finished, unchanged):
    run, sweep = theirs
    key = view_key(run)
    seen = json.loads(scripted("live", "poll", {"run": run.id, "view": key}))
    assert seen["title"][0] == "the secret name" and seen["mine"] is False and "view" not in seen
    assert "is damaged" in scripted("live", "analysis", {"run": run.id, "view": key})  # it is read, as it is
    assert "0.8125" in called("get_run", run.id, key, 0)
    for way in ({"view": key}, {"owner": key}, {"owner": key, "view": key}):
        assert "among yours" in scripted("live", "poll", {"run": finished["run"], **way})
        for element, function in SCRIPT:
            if function in ("poll", "analysis") and element == "live":
                continue
            answer = scripted(element, function, {**SCRIPT[element, function](run.id, sweep.id), **way})
            refused = ("among yours", "Its student stays with its owner", "Pictures must be uploaded")
            assert says_nothing(answer) and (any(words in answer for words in refused) or lists_nothing(answer))
    assert "error" in called("stop_run", run.id, key)


@pytest.mark.parametrize(
    "name",
    ["../runs", "/etc", "~", "~root/x", "file:///etc", "http://127.0.0.1/x", "a/b/c", "a" * 5000, "\0", ".owner"],
)
def test_a_shared_server_takes_no_path_for_a_dataset_a_teacher_or_a_student(name):
    for setting in ("dataset", "teacher", "student"):
        answer = called("start_run", "custom", {setting: name}, STRANGER)
        assert "error" in answer and ("a path" in answer or setting in answer), answer


def test_the_owner_lists_names_and_deletes_a_run_whose_name_is_no_html(theirs):
    run = create_run(DistillConfig(), site().folder, VICTIM)
    run.append("stopped", message="")
    who = {"owner": VICTIM, "run": run.id}
    assert json.loads(scripted("runs", "act", {**who, "do": "rename", "name": ' <b>mine</b>\n & "yours" '})) == {}
    listed = json.loads(scripted("runs", "rows", {"owner": VICTIM}))["html"]
    assert "&lt;b&gt;mine&lt;/b&gt; &amp; &#34;yours&#34;" in listed and "<b>mine" not in listed
    for bad in ("x" * 81, "\u202e", "\0", 7, None, ["a"]):
        assert json.loads(scripted("runs", "act", {**who, "do": "rename", "name": bad}))["problem"]
    assert run.name() == '<b>mine</b> & "yours"'
    assert json.loads(scripted("runs", "act", {**who, "do": "delete"})) == {} and not run.path.exists()
