"""The public API, as a program calls it: ``gradio_client`` and raw requests against the real server."""

import ast
import base64
import functools
import io
import json
import re
import urllib.parse
import urllib.request
from contextlib import chdir, redirect_stdout
from pathlib import Path

import httpx
import pytest
from gradio.utils import get_function_description
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from kd.config import PRESETS, STUDENT_NAMES, DistillConfig
from kd.experiments.grid import Grid
from kd.experiments.sweep import create_sweep
from kd.runs.run import CLOSED
from kd.runs.store import create_run, delete_run, find_run, list_runs, local_owner
from kd.system.ids import owner_hash
from kd.ui.access import view_key
from kd.ui.api.public import FUNCTIONS
from tests.support.pages import shared_site, site, taken_device, until
from tests.support.paths import ROOT
from tests.support.uploads import packed


@pytest.fixture(scope="module")
def client():
    return Client(site().url, verbose=False)


@pytest.fixture(scope="module")
def settings(colours, teacher) -> dict:
    return {
        "teacher": str(teacher), "dataset": str(colours), "student": "resnet_8", "image_size": 32,
        "epochs": 2, "batch_size": 16, "views": 1, "export": "no",
    }  # fmt: skip


@pytest.fixture(scope="module")
def printed(colours, teacher, settings, tmp_path_factory) -> list[str]:
    """What the lines of the guide print, as they stand. Only the names in them are put in place: of the server, of the
    teacher, and settings that suit toys."""
    lines = re.search(r"```\n(from gradio_client.*?)\n```", (ROOT / "assets/guide/agents.md").read_text(), re.DOTALL)[1]
    assert len(lines.splitlines()) == 10
    folder = tmp_path_factory.mktemp("guide")
    packed(folder / "photos.zip", {f"{p.parent.name}/{p.name}": p.read_bytes() for p in sorted(colours.rglob("*.png"))})
    (folder / "picture.png").write_bytes((colours / "red brick" / "000.png").read_bytes())
    toys = {name: value for name, value in settings.items() if name not in ("teacher", "dataset")}
    for shown, here in (
        ("http://127.0.0.1:7860", site().url), ("google/vit-base-patch16-224", str(teacher)), ('"epochs": 5', f"**{toys}"),
    ):  # fmt: skip
        assert lines.count(shown) == 1
        lines = lines.replace(shown, here)
    with chdir(folder), redirect_stdout(io.StringIO()) as output:
        exec(lines, {})
    return output.getvalue().splitlines()


@pytest.fixture(scope="module")
def finished(client, printed) -> dict:
    """The run that the guide starts and waits for: its whole record."""
    return client.predict(list_runs(site().folder)[0].id, api_name="/get_run")


def ended(client, run: str, token: str = "") -> dict:
    """What ``wait_for_run`` says once the run has ended."""
    return until(
        lambda: (now := client.predict(run, token, 20, api_name="/wait_for_run"))["status"] in CLOSED and now, 600
    )


def test_a_run_is_started_and_followed_to_its_report(client, finished):
    names = [event["event"] for event in finished["events"]]
    assert names[0] == "created" and names[-1] == "done" and names.count("eval") == 2
    assert finished["status"] == "done" and finished["config"]["epochs"] == 2
    assert {"teacher", "student", "agreement", "speedup"} <= finished["report"].keys()
    later = client.predict(finished["run"], "", finished["cursor"], api_name="/get_run")
    assert later["events"] == [] and later["cursor"] == finished["cursor"]


def test_waiting_answers_a_short_summary_with_figures_and_what_to_do(client, finished):
    state = client.predict(finished["run"], "", 0, api_name="/wait_for_run")
    assert (state["line"], state["stage"], state["epochs"], state["share"]) == ("Done", "Test", 2, 1)
    assert state["result"]["accuracy"]["student"] == finished["report"]["student"]["accuracy"]
    assert state["loss"].keys() == {"total", "soft", "hard"} and "export_student" in state["next"]
    assert len(json.dumps(state)) < 2500 < len(json.dumps(finished))


def test_runs_are_listed_newest_first_with_what_they_are_of(client, finished):
    row = next(one for one in client.predict(api_name="/list_runs")["runs"] if one["run"] == finished["run"])
    assert (row["status"], row["accuracy_on"], row["student"]) == ("done", "test", "resnet_8")
    assert row["accuracy"] == finished["report"]["student"]["accuracy"] and row["dataset"].startswith("photos")


def test_compare_answers_for_each_form_of_a_picture_and_names_the_bad_one(client, finished, colours, tmp_path):
    (tmp_path / "notes.jpg").write_text("hello")
    red = colours / "red brick" / "000.png"
    path = upload(red)
    images = [
        handle_file(str(red)), handle_file(str(tmp_path / "notes.jpg")), path, f"/gradio_api/file={path}",
        f"{site().url.replace('127.0.0.1', 'localhost')}/gradio_api/file={urllib.parse.quote(path)}", data_url(red),
    ]  # fmt: skip
    found = client.predict(finished["run"], images, api_name="/compare")
    *good, bad = found["pictures"]
    assert [one["teacher"][0]["label"] for one in good] == ["red brick"] * 5 and len(good[0]["student"]) == 3
    assert {one["name"] for one in good} == {"000.png", "picture-6.png"}
    assert sorted(one["number"] for one in found["pictures"]) == [1, 2, 3, 4, 5, 6] and bad["number"] == 2
    assert 0 <= good[0]["disagreement"] <= 1
    assert bad["name"] == "notes.jpg" and "is not a picture" in bad["error"]
    assert found["teacher"]["latency_ms"]["p95"] >= found["teacher"]["latency_ms"]["p50"] > 0


def upload(path: Path) -> str:
    """Upload a file as any program does; return its path on the server."""
    return httpx.post(f"{site().url}/gradio_api/upload", files={"files": (path.name, path.read_bytes())}).json()[0]


def data_url(path: Path, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ("https://example.com/cat.png", "'example.com', which is another server, and this one fetches nothing"),
        ("http://127.0.0.1:1/gradio_api/file=/tmp/x", "another server"),
        ("ftp://example.com/cat.png", "another server"),
        ("http://[::1/x", "an address that cannot be read"),
        ("SITE/config", "not of an uploaded file"),
        ("SITE/gradio_api/file=/etc/hostname", "was not uploaded to this server"),
        ("SITE/gradio_api/file=/tmp/gradio/../../etc/hostname", "was not uploaded to this server"),
        ("/tmp/gradio/gone.png", "not on this server any more|was not uploaded"),
        ("/etc/hostname", "was not uploaded to this server"),
        ("\0", "was not uploaded to this server"),
        ("x" * 10_000, "was not uploaded to this server"),
        ("data:image/png;base64,####", "content is not in base64"),
        ("data:image/png;base64,", "without content"),
        ("data:image/png,hello", "cannot be read; expected data:TYPE;base64"),
        ("data:" + "x" * 1000, "cannot be read"),
        ("data:image/png;base64," + "A" * 90_000_000, "longer than 64 MB"),
        ({"path": "/etc/hostname"}, "was not uploaded to this server"),
        (7, "was not uploaded to this server"),
        (None, "was not uploaded to this server"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_picture_from_elsewhere_is_refused_in_words_and_nothing_is_fetched(finished, picture, words):
    picture = picture.replace("SITE", site().url) if isinstance(picture, str) else picture
    response = httpx.post(
        f"{site().url}/gradio_api/call/compare", json={"data": [finished["run"], [picture], ""]}, timeout=60
    )
    if response.status_code == 413:
        assert words in response.text
        return
    answer = httpx.get(f"{site().url}/gradio_api/call/compare/{response.json()['event_id']}", timeout=60).text
    said = json.loads(answer.split("data: ", 1)[1])["error"]
    assert "event: error" in answer and re.search(words, said), said


def test_a_file_of_the_server_is_not_taken_for_an_upload(client, finished):
    for path in (str(ROOT / "assets" / "examples" / "coat-1.png"), "/etc/hostname"):
        with pytest.raises(AppError, match="was not uploaded to this server"):
            client.predict(finished["run"], [{"path": path}], api_name="/compare")


def test_a_run_is_stopped_resumed_and_deleted(client, settings):
    run = client.predict("custom", {**settings, "epochs": 500}, api_name="/start_run")["run"]
    until(lambda: client.predict(run, "", 0, api_name="/wait_for_run")["status"] == "running", 120)
    with pytest.raises(AppError, match="Stop it first, then delete it"):
        client.predict(run, api_name="/delete")
    with pytest.raises(AppError, match="there is nothing to resume"):
        client.predict(run, api_name="/resume_run")
    client.predict(run, api_name="/stop_run")
    stopped = ended(client, run)
    assert stopped["status"] == "stopped" and "resume_run" in stopped["next"]
    with pytest.raises(AppError, match="is not running: it is stopped"):
        client.predict(run, api_name="/stop_run")
    with taken_device(site().folder):  # it waits, and is stopped before it has loaded anything
        client.predict(run, api_name="/resume_run")
        client.predict(run, api_name="/stop_run")
        assert ended(client, run)["status"] == "stopped"
    assert client.predict(run, api_name="/delete") == {"deleted": run}
    with pytest.raises(AppError, match="There is no run"):
        client.predict(run, api_name="/get_run")


def test_an_archive_becomes_a_dataset_that_is_checked_listed_and_deleted(client, colours, tmp_path):
    files = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in sorted(colours.rglob("*.png"))[::4]}
    archive = packed(tmp_path / "colours.zip", files)
    found = imported(client, handle_file(str(archive)))
    assert found["name"] == "colours" and sum(found["pictures"]["train"].values()) == len(files)
    assert imported(client, data_url(archive, "application/zip"))["dataset"] == found["dataset"]  # the same archive
    assert found["dataset"] in [one["dataset"] for one in client.predict(api_name="/list_datasets")["datasets"]]
    checked = until(
        lambda: (
            (now := client.predict(found["dataset"], None, "", 20, api_name="/check_dataset"))["status"] == "done"
            and now
        ),
        600,
    )
    assert "30 pictures" in checked["line"] and len(checked["counts"]) == 3
    assert all({"rank", "what", "why", "do"} == one.keys() for one in checked["problems"])
    assert client.predict(found["dataset"], api_name="/delete") == {"deleted": found["dataset"]}
    with pytest.raises(AppError, match="There is no dataset"):
        client.predict(found["dataset"], api_name="/delete")


def imported(client, file) -> dict:
    """What ``import_pictures`` says of a file once it has read it."""
    found = client.predict(file, "", "", 20, api_name="/import_pictures")
    return until(
        lambda: (
            found
            if found["status"] == "done"
            else found.update(client.predict("", "", "", 20, api_name="/import_pictures"))
        ),
        600,
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("", "", "", 0, "/import_pictures"), "No import is under way|nothing was stored|"),
        (("/etc/hostname", "", "", 0, "/import_pictures"), "The archive was not uploaded to this server"),
        (("data:application/zip;base64,aGVsbG8=", "", "", 50, "/import_pictures"), "."),
        (("x", "", "", -1, "/wait_for_run"), "."),
        (("upload:none", None, "", 0, "/check_dataset"), "There is no dataset"),
        (("sample", {"epochs": 3}, "", 0, "/check_dataset"), "'epochs' does not matter to a check"),
        (("sample", None, "", 51, "/check_dataset"), "timeout is 51; expected seconds from 0 to 50"),
        (("sample", "upload:x", {}, "", "/make_teacher"), "The model to fine-tune is 'sample'"),
        (("none", "", 0, "/export_student"), "There is no run"),
        (("none", "", "/get_student"), "There is no run"),
        ((["none"], "", "/delete"), "There is no run"),
    ],
)
def test_a_wrong_question_is_answered_with_a_sentence(client, call, words):
    with pytest.raises(AppError, match=words) as refusal:
        client.predict(*call[:-1], api_name=call[-1])
    assert "Traceback" not in str(refusal.value) and len(str(refusal.value)) < 500


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


def test_the_lines_of_the_guide_work_as_they_stand(printed):
    (said,) = ast.literal_eval(printed[-1])
    assert said["name"] == "picture.png" and said["teacher"][0]["label"] == "red brick"
    assert len(said["student"]) == 3


def test_the_options_are_those_of_the_settings_with_ranges_defaults_and_help(client):
    found = client.predict(api_name="/list_options")
    settings = {one["setting"]: one for one in found["settings"]}
    assert settings.keys() == DistillConfig().to_dict().keys()
    assert settings["lambda"]["expected"] == "a number from 0 to 1" and settings["lambda"]["default"] == 0.9
    assert settings["minutes"]["expected"].endswith("or null") and settings["dkd_beta"]["only"] == ["dkd", "dkd+std"]
    assert {one["preset"] for one in found["presets"]} == set(PRESETS) and found["shared"] is False
    assert [one["student"] for one in found["students"]] == list(STUDENT_NAMES)


def test_all_public_functions_say_what_they_do_and_what_each_argument_is(client):
    info = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(info) == {f"/{function.__name__}" for function in FUNCTIONS}
    for function in FUNCTIONS:
        description, arguments, returns = get_function_description(function)
        assert description and returns
        shown = [one["parameter_name"] for one in info[f"/{function.__name__}"]["parameters"]]
        assert shown == [name for name in arguments if name != "request"] and all(arguments[name] for name in shown)


# --- On a shared server


@pytest.fixture(scope="module")
def stranger():
    return Client(shared_site().url, verbose=False)


def test_a_stranger_cannot_read_stop_or_compare_a_run(stranger, finished):
    for token in ("", "0" * 32, "x"):
        for call in (
            (finished["run"], token, 0, "/get_run"), (finished["run"], token, 0, "/wait_for_run"),
            (finished["run"], token, "/stop_run"), (finished["run"], token, "/resume_run"), (finished["run"], token, "/delete"),
            (finished["run"], token, 0, "/export_student"), (finished["run"], token, "/get_student"),
        ):  # fmt: skip
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
        calls = (
            ("get_run", run.id, token, 0), ("stop_run", run.id, token), ("compare", run.id, [], token),
            ("wait_for_run", run.id, token, 0), ("resume_run", run.id, token), ("delete", run.id, token),
            ("export_student", run.id, token, 0), ("get_student", run.id, token),
        )  # fmt: skip
        for name, *data in calls:
            answer = called(name, *data)
            assert "error" in answer and says_nothing(answer), (kind, name, answer)
        for name in ("list_runs", "list_datasets"):
            answer = called(name, token)
            assert says_nothing(answer) and run.id not in answer, (kind, name, answer)


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
            assert "error" in called("delete", id, VICTIM)
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
