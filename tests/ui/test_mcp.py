"""The page as an agent's tool: the MCP package's own client, from "distil this zip" to "what does it say of this picture"."""

import base64
import json
import re
from contextlib import asynccontextmanager

import httpx
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from kd.system.ids import owner_hash
from kd.ui import page
from kd.ui.api.public import FUNCTIONS
from tests.support.loops import run_apart
from tests.support.pages import shared_site, site
from tests.support.uploads import packed

# A transcript of the session is in the guide; these are its settings.
SETTINGS = {
    "student": "resnet_8", "image_size": 32, "epochs": 1, "batch_size": 16, "views": 1, "export": "no",
}  # fmt: skip


class Agent:
    """A client that reads JSON out of the answers, and remembers what was said."""

    def __init__(self, session: ClientSession) -> None:
        self.session = session

    async def call(self, tool: str, **arguments) -> dict:
        answer = await self.session.call_tool(tool, arguments)
        (content,) = answer.content
        assert not answer.isError, content.text
        return json.loads(content.text)

    async def ended(self, tool: str, **arguments) -> dict:
        """Call a tool again and again until it does not say that it is at work; an import is asked for by its token."""
        for _ in range(20):
            found = await self.call(tool, **arguments, timeout=20)
            if found["status"] not in ("queued", "running"):
                return found
            if tool == "import_pictures":
                arguments = {"token": found["token"]}
        raise AssertionError(f"{tool} goes on and on: {found}")

    async def refused(self, tool: str, **arguments) -> str:
        answer = await self.session.call_tool(tool, arguments)
        assert answer.isError and "Traceback" not in answer.content[0].text
        return answer.content[0].text


@asynccontextmanager
async def agent(url: str):
    async with (
        streamable_http_client(f"{url}/gradio_api/mcp/") as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        yield Agent(session)


@pytest.fixture(scope="module")
def archive(colours, tmp_path_factory):
    """A zip of class folders, twenty pictures of each."""
    files = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in colours.glob("*/0[01]?.png")}
    return packed(tmp_path_factory.mktemp("zip") / "colours.zip", files)


def data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_an_agent_distils_a_zip_and_asks_what_the_student_says_of_a_picture(archive, colours, teacher):
    picture = (colours / "red brick" / "039.png").read_bytes()
    red = data_url(picture, "image/png")

    async def session() -> None:
        async with agent(site().url) as its:
            options = await its.call("list_options")
            assert options["steps"][0].startswith("1. import_pictures")
            zipped = data_url(archive.read_bytes(), "application/zip")
            brought = await its.ended("import_pictures", file=zipped, name="Colours")
            assert brought["pictures"] == {"train": {"blue sky": 20, "green leaf": 20, "red brick": 20}}
            # It has the lowest priority of all; tests/ui/test_api.py waits for one.
            assert (await its.call("check_dataset", dataset=brought["dataset"], timeout=0))["status"] in (
                "running",
                "done",
            )
            # What it would find is not asked for here.
            assert site().call("check", "cancel", {"asker": f"api {owner_hash('')[:32]}"}) == {}
            settings = {**SETTINGS, "dataset": brought["dataset"], "teacher": str(teacher)}
            run = (await its.call("start_run", preset="custom", settings=settings))["run"]
            state = await its.ended("wait_for_run", run=run)
            assert state["status"] == "done" and 0 <= state["result"]["accuracy"]["student"] <= 1, state
            assert run in [one["run"] for one in (await its.call("list_runs"))["runs"]]
            sent = httpx.post(f"{site().url}/gradio_api/upload", files={"files": ("brick.png", picture)}).json()[0]
            address = f"{site().url}/gradio_api/file={sent}"
            found = (await its.call("compare", run=run, pictures=[red, address, sent]))["pictures"]
            assert {(one["number"], one["name"]) for one in found} == {
                (1, "picture-1.png"),
                (2, "brick.png"),
                (3, "brick.png"),
            }
            assert all(one["teacher"][0]["label"] == "red brick" and len(one["student"]) == 3 for one in found)
            refusal = await its.refused("compare", run=run, pictures=["https://example.com/brick.png"])
            assert "'example.com', which is another server" in refusal
            exported = await its.ended("export_student", run=run)
            assert exported["status"] == "done" and len(exported["files"]) == 4
            assert (await its.call("get_student", run=run))["download"] == exported["download"]
            taken = httpx.get(exported["download"])
            assert taken.headers["content-type"] == "application/zip" and int(taken.headers["content-length"]) > 1e5
            assert (await its.call("delete", what=run)) == {"deleted": run}

    run_apart(session())


def test_a_tool_says_what_it_does_and_takes_what_gradio_s_upload_tool_answers(archive):
    async def session() -> None:
        async with agent(site().url) as its:
            tools = {tool.name: tool for tool in (await its.session.list_tools()).tools}
            assert tools.keys() == {function.__name__ for function in FUNCTIONS}
            for tool in tools.values():
                assert "Returns: " in tool.description
                assert all(one["description"] for one in tool.inputSchema["properties"].values())
            assert tools["compare"].inputSchema["properties"]["pictures"]["items"] == {"type": "string"}
            path = httpx.post(f"{site().url}/gradio_api/upload", files={"files": archive.open("rb")}).json()[0]
            brought = await its.ended("import_pictures", file=f"{site().url}/gradio_api/file={path}")
            assert brought["name"].lower() == "colours" and brought["skipped"]["count"] == 0

    run_apart(session())


WRONG = [
    ("start_run", {"preset": "custom", "settings": {"temperature": 0}}, "^temperature is 0; expected a number above 0"),
    ("start_run", {"preset": "custom", "settings": {"warmth": 1}}, "^Unknown setting warmth"),
    ("start_run", {"preset": "nothing"}, "^There is no preset 'nothing'"),
    ("wait_for_run", {"run": "x"}, "^There is no run 'x'"),
    ("wait_for_run", {"run": 7}, "not of type 'string'"),
    ("wait_for_run", {}, "'run' is a required property"),
    ("compare", {"run": "x", "pictures": ["https://example.com/a.png"]}, "There is no run 'x'"),
    ("import_pictures", {"file": "https://example.com/a.zip"}, "example.com', which is another server"),
    ("import_pictures", {"file": "/etc/passwd"}, "was not uploaded to this server"),
    ("import_pictures", {"file": "data:application/zip;base64,!"}, "not in base64"),
    ("check_dataset", {"dataset": "upload:x"}, "There is no dataset 'x'"),
    ("make_teacher", {"base": "sample", "dataset": "sample"}, "^The model to fine-tune is 'sample'"),
    ("delete", {"what": "upload:x"}, "There is no dataset 'x'"),
    ("export_student", {"run": "x"}, "There is no run 'x'"),
    ("no_such_tool", {}, "Unknown tool"),
]


def test_wrong_input_is_answered_with_a_sentence_that_is_an_error():
    async def session() -> None:
        async with agent(site().url) as its:
            for tool, arguments, words in WRONG:
                said = await its.refused(tool, **arguments)
                assert re.search(words, said) and len(said) < 700, (tool, said)

    run_apart(session())


def test_a_message_of_more_than_four_megabytes_is_refused_before_it_is_read():
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "compare", "arguments": {"run": "x" * 5_000_000}},
    }
    headers = {"Accept": "application/json, text/event-stream"}
    assert httpx.post(f"{shared_site().url}/gradio_api/mcp/", json=body, headers=headers).status_code == 413


def test_on_a_shared_server_an_answer_s_token_owns_what_was_made_and_no_other_sees_it(archive):
    async def session() -> None:
        async with agent(shared_site().url) as its:
            zipped = data_url(archive.read_bytes(), "application/zip")
            brought = await its.ended("import_pictures", file=zipped)
            mine = {"token": brought["token"]}
            assert re.fullmatch("[0-9a-f]{32}", mine["token"])
            assert len((await its.call("list_datasets", **mine))["datasets"]) == 1
            started = await its.call("start_run", preset="sample", settings={"epochs": 1, "export": "no"}, **mine)
            run, other = started["run"], {"token": "0" * 32}
            assert started["token"] == mine["token"]
            assert "There is no dataset" in await its.refused("check_dataset", dataset=brought["dataset"], **other)
            for tool in ("wait_for_run", "get_student", "export_student", "stop_run", "resume_run", "get_run"):
                assert "among yours" in await its.refused(tool, run=run, **other), tool
                assert "among yours" in await its.refused(tool, run=run), tool
            assert "among yours" in await its.refused("delete", what=run, **other)
            assert (await its.call("list_runs", **other))["runs"] == []
            assert "is none of this server's" in await its.refused("start_run", token="mine")
            await its.call("stop_run", run=run, **mine)
            assert (await its.ended("wait_for_run", run=run, **mine))["status"] in ("stopped", "done")
            assert httpx.get(f"{shared_site().url}/student/{run}.zip?key={'0' * 32}").status_code == 404
            await its.call("delete", what=brought["dataset"], **mine)
            await its.call("delete", what=run, **mine)

    run_apart(session())


def test_without_the_package_the_page_is_offered_without_mcp_and_says_how_to_get_it(monkeypatch, capsys):
    def version(name: str) -> str:
        raise page.PackageNotFoundError(name)

    monkeypatch.setattr(page, "version", version)
    assert page.launch_options()["mcp_server"] is False
    page.tell_mcp()
    assert "pip install 'mcp" in capsys.readouterr().err
