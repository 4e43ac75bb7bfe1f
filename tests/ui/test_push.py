"""Push to the Hub from the page: on one's own machine in a real browser, on a Space with the visitor's own sign-in."""

import json
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from kd.config import DistillConfig
from kd.export.bundle import export_student
from kd.export.push_job import push_of
from kd.runs.run import CLOSED, Run
from kd.runs.store import create_run, local_owner
from kd.ui import push
from tests.support.hub import Hub, Trouble
from tests.support.hub_writes import Account
from tests.support.openid import Account as Person
from tests.support.openid import Provider
from tests.support.pages import Site, leave, serious, something_trains, until, visit
from tests.support.runs import timed_shortly
from tests.ui.test_login import Browser, Space, belongs_to_server

TOKEN = "hf_annas_own_token"

OWN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, colours, teacher) -> Run:
    """A run that was stopped with a student, and exported."""
    folder = tmp_path_factory.mktemp("runs")
    config = DistillConfig(teacher=str(teacher), dataset=str(colours), image_size=32)
    run = create_run(config, folder, local_owner(folder))
    shutil.copytree(teacher, run.path / "student")
    run.append("started")
    with run.work():
        run.close("stopped")
    with timed_shortly():
        export_student(run, "onnx")
    run.rename("Two flowers")
    return run


def copied(run: Run, folder: Path, owner: str) -> Run:
    """The same run, somebody's, in another folder of runs."""
    mine = create_run(run.config(), folder, owner)
    for name in ("student", "export"):
        shutil.copytree(run.path / name, mine.path / name)
    mine.rename(run.name())
    mine.append("started")
    with mine.work():
        mine.close("stopped")
    return mine


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub"), accounts={TOKEN: Account("anna")}) as served:
        yield served


def with_hub(site: Site, hub: Hub) -> Site:
    """A server that is to know the small Hub only, before it is started."""
    (site.folder / "hub-home").mkdir()
    site.environment |= hub.environment(site.folder / "hub-home")
    site.environment.pop("HF_HUB_OFFLINE", None)
    return site


# --- On one's own machine, in a browser


@pytest.fixture(scope="module")
def site(hub, tmp_path_factory) -> Iterator[Site]:
    made = with_hub(Site(tmp_path_factory.mktemp("site"), HF_TOKEN=TOKEN), hub)
    made.environment["HF_TOKEN"] = TOKEN  # the Hub's environment is without
    with something_trains(made.folder):
        made.start()
        yield made
        made.stop()


@pytest.fixture
def run(site, exported) -> Run:
    return copied(exported, site.folder, local_owner(site.folder))


def opened(site: Site, run: Run, width: int = 1280) -> Page:
    page = visit(f"{site.url}/?run={run.id}", width)
    expect(page.locator(".kd-push")).to_be_visible()
    return page


def test_a_student_is_pushed_by_keyboard_followed_through_a_reload_and_found_at_its_address(site, hub, run):
    seen = threading.Event()
    hub.troubles[:] = [Trouble("PUT /lfs/", until=seen)]
    page = opened(site, run)
    name = page.get_by_label("Repository, OWNER/NAME")
    expect(name).to_have_value("distillery-two-flowers")
    name.focus()
    name.fill("anna/by-keyboard")
    page.keyboard.press("Tab")
    page.keyboard.type("mit")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Push to the Hub")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".kd-pushing")).to_contain_text("Sending, 0.0 of")
    expect(page.get_by_role("button", name="Cancel the push")).to_be_focused()
    expect(name).to_be_disabled()
    expect(page.get_by_role("progressbar", name="Progress of the push")).to_be_visible()
    assert serious(page) == []
    page.reload()
    expect(page.get_by_role("button", name="Cancel the push")).to_be_visible()
    seen.set()
    address = page.get_by_role("link", name=f"{hub.url}/anna/by-keyboard")
    expect(address).to_be_visible()
    expect(page.locator(".kd-pushing")).to_have_text("Pushed.")
    assert address.get_attribute("href") == f"{hub.url}/anna/by-keyboard"
    assert hub.written["models", "anna/by-keyboard"].private
    assert "license: mit" in (hub.root / "models/anna/by-keyboard/README.md").read_text()
    assert page.locator("#live [role=status]").count() == 1 and serious(page) == []
    assert TOKEN not in page.content()
    leave(page)


def test_what_is_anothers_work_is_written_over_by_a_second_click_only_and_not_under_another_name(site, hub, run):
    theirs = hub.root / "models/anna/cats"
    theirs.mkdir(parents=True)
    (theirs / "README.md").write_text("# Cats")
    page = opened(site, run)
    name = page.get_by_label("Repository, OWNER/NAME")
    name.fill("anna/cats")
    page.get_by_role("button", name="Push to the Hub").click()
    over = page.get_by_role("button", name="Write over what is there")
    expect(over).to_be_visible()
    expect(page.locator(".kd-pushing")).to_contain_text("Distillery has not made it")
    assert (theirs / "README.md").read_text() == "# Cats" and serious(page) == []
    name.fill("anna/dogs")
    expect(over).to_be_hidden()
    name.fill("anna/cats")
    page.get_by_role("button", name="Push again").click()
    expect(over).to_be_visible()
    over.click()
    expect(page.get_by_role("link", name=f"{hub.url}/anna/cats")).to_be_visible()
    expect(page.locator(".kd-pushing")).to_contain_text("is public, as it was")
    assert "Distillery" in (theirs / "README.md").read_text()
    leave(page)


def test_on_a_phone_a_refusal_is_read_without_scrolling_sideways_and_a_push_is_cancelled(site, hub, run):
    page = opened(site, run, width=390)
    page.get_by_label("Repository, OWNER/NAME").fill("ben/flowers")
    page.get_by_role("button", name="Push to the Hub").click()
    expect(page.locator(".kd-pushing")).to_contain_text("(403): your token may not write to ben/flowers")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and serious(page) == []
    cancelled = threading.Event()
    hub.troubles[:] = [Trouble("PUT /lfs/", until=cancelled)] * 2
    shutil.rmtree(hub.root / "models/anna", ignore_errors=True)
    hub.stored.clear()
    page.get_by_label("Repository, OWNER/NAME").fill("flowers")
    page.get_by_role("button", name="Push again").click()
    expect(page.locator(".kd-pushing")).to_contain_text("Sending")
    page.get_by_role("button", name="Cancel the push").click()
    expect(page.locator(".kd-pushing")).to_contain_text("Cancelled")
    leave(page)
    hub.troubles.clear()
    cancelled.set()


def scripted(site: Site, function: str, data: dict, headers: dict[str, str], open=urllib.request.urlopen) -> dict:
    """What a function of the panel's script answers to a raw POST."""
    component = next(c["id"] for c in site.config()["components"] if c["props"].get("elem_id") == "live")
    body = {"session_hash": "raw", "component_id": component, "fn_name": function, "data": data}
    request = urllib.request.Request(
        f"{site.url}/gradio_api/component_server",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **headers},
    )
    with open(request, timeout=60) as answer:
        return json.loads(answer.read())


@pytest.mark.parametrize(
    "headers",
    [{}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "same-site"}],
)
def test_another_sites_page_cannot_push_with_this_machines_token(site, run, headers):
    asked = {"run": run.id, "owner": "", "repo": "anna/evil", "license": "", "public": True}
    assert "and from no other" in scripted(site, "push_it", asked, headers)["problem"]
    assert push_of(run) is None


@pytest.mark.parametrize("repo", [7, None, ["anna/x"], "x" * 97, "a/b/c"])
def test_what_is_no_name_is_refused_at_once(site, run, repo):
    asked = {"run": run.id, "owner": "", "repo": repo, "license": "", "public": False}
    assert "name" in scripted(site, "push_it", asked, OWN)["problem"] and push_of(run) is None


# --- On a Space


SCOPES = "openid profile contribute-repos"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider(SCOPES) as served:
        yield served


@pytest.fixture(scope="module")
def space(hub, provider, tmp_path_factory) -> Iterator[Space]:
    made = with_hub(Space(tmp_path_factory.mktemp("space"), provider), hub)
    belongs_to_server(made.folder / "hub-home")
    made.environment["HF_TOKEN"] = TOKEN  # the owner's, who is Anna
    made.start()
    yield made
    made.stop()


def signed_in(space: Space, name: str, scopes: str = SCOPES) -> tuple[Browser, str]:
    """A browser that is signed in, and the token by which it owns its runs."""
    space.provider.scopes = scopes
    browser = Browser(space)
    browser.sign_in(Person(name, name))
    space.provider.scopes = SCOPES
    return browser, browser.open()["owner"]


def test_on_a_space_a_student_goes_to_the_account_that_is_signed_in_and_its_token_to_nobody(space, hub, exported):
    browser, owner = signed_in(space, "vera")
    token = space.provider.issued[-1]
    hub.accounts[token] = Account("vera", role="contribute-repos")
    run = copied(exported, space.folder, owner)
    belongs_to_server(run.path)
    asked = {"run": run.id, "owner": owner}
    state = scripted(space, "push_state", asked, OWN, browser.opener.open)
    assert state["repo"] == "vera/distillery-two-flowers" and not state["missing"]
    answers = [scripted(space, "push_it", {**asked, "repo": "", "license": "mit"}, OWN, browser.opener.open)]
    assert answers == [{}]

    def is_closed() -> bool:
        answers.append(scripted(space, "push_state", asked, OWN, browser.opener.open))
        return answers[-1]["status"] in CLOSED

    until(is_closed, 180, every=0.5)
    assert answers[-1]["url"] == f"{hub.url}/vera/distillery-two-flowers", answers[-1]
    assert hub.written["models", "vera/distillery-two-flowers"].made_with == token
    everything = [file.read_bytes() for file in run.path.rglob("*") if file.is_file()]
    assert token not in json.dumps([answers, space.config()]) and token.encode() not in b"".join(everything)


def test_who_is_not_signed_in_or_did_not_allow_it_is_told_what_to_do(space, exported):
    stranger = Browser(space)
    owner = stranger.open()["owner"]
    run = copied(exported, space.folder, owner)
    belongs_to_server(run.path)
    asked = {"run": run.id, "owner": owner, "repo": "", "license": ""}
    assert "Sign in" in scripted(space, "push_state", asked, OWN, stranger.opener.open)["missing"]
    assert "Sign in with Hugging Face first" in scripted(space, "push_it", asked, OWN, stranger.opener.open)["problem"]
    browser, owner = signed_in(space, "carl", "openid profile")
    run = copied(exported, space.folder, owner)
    belongs_to_server(run.path)
    asked |= {"run": run.id, "owner": owner}
    words = scripted(space, "push_it", asked, OWN, browser.opener.open)["problem"]
    assert "Sign out, sign in again and allow it" in words and "contribute-repos" in words and push_of(run) is None


def test_another_visitors_run_is_not_pushed_and_another_site_cannot_use_a_sign_in(space, exported):
    (anna, owner), (vera, other) = signed_in(space, "anna"), signed_in(space, "vera")
    run = copied(exported, space.folder, owner)
    belongs_to_server(run.path)
    asked = {"run": run.id, "repo": "", "license": ""}
    for function in ("push_state", "push_it", "cancel_push"):
        problem = scripted(space, function, {**asked, "owner": other}, OWN, vera.opener.open)["problem"]
        assert "There is no run" in problem
    answer = scripted(space, "push_it", {**asked, "owner": owner}, {"Sec-Fetch-Site": "cross-site"}, anna.opener.open)
    assert "and from no other" in answer["problem"] and push_of(run) is None


def test_a_shared_server_that_is_no_space_offers_no_push(monkeypatch):
    assert push.is_offered()
    monkeypatch.setenv("KD_SHARED", "1")
    assert not push.is_offered()
