"""The page as a Space starts it, and Sign in with Hugging Face: gradio's own OAuth, against a small OpenID provider."""

import base64
import functools
import hashlib
import json
import os
import re
import urllib.request
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path

import itsdangerous
import pytest

from kd.config import DistillConfig
from kd.data.library.store import Upload
from kd.experiments.grid import Grid
from kd.experiments.sweep import create_sweep
from kd.runs.run import Run
from kd.runs.store import create_run, delete_run, find_run
from kd.system.ids import owner_hash
from kd.ui import login, settings, theme
from kd.ui.api.public import FUNCTIONS
from tests.support.openid import Account, Provider
from tests.support.pages import AS_USER_1000, Site, until

ANNA, BEN = Account("64a0", "anna"), Account("64b1", "ben")

TOKEN = re.compile(r"[0-9a-f]{32}")


@pytest.fixture(scope="module")
def provider():
    with Provider() as served:
        yield served


IS_ROOT = os.geteuid() == 0


def belongs_to_server(path: Path) -> Path:
    """A folder that a test has made, as the server would have made it."""
    for one in (path, *path.rglob("*")) if IS_ROOT else ():
        os.chown(one, 1000, 1000)
    return path


class Space(Site):
    """``app.py`` as a Space with ``hf_oauth: true`` runs it: where only root can become another user, as user 1000."""

    def __init__(self, folder: Path, provider: Provider) -> None:
        (folder / "home").mkdir()
        if IS_ROOT:
            for part in (folder, *folder.parents[:2]):
                part.chmod(0o755)
            belongs_to_server(folder)
        super().__init__(
            folder, AS_USER_1000 if IS_ROOT else (), HOME=str(folder / "home"), GRADIO_SERVER_NAME="0.0.0.0",
            GRADIO_TEMP_DIR=str(folder / "uploads"), **provider.environment(),
        )  # fmt: skip
        self.provider = provider

    @functools.cached_property
    def page(self) -> dict:
        return super().config()

    def config(self) -> dict:
        return self.page


@pytest.fixture(scope="module")
def space(provider, tmp_path_factory) -> Space:
    made = Space(tmp_path_factory.mktemp("space"), provider)
    made.start()
    yield made
    made.stop()


class Browser:
    """One browser: its cookies, and what the page keeps in it. As a browser does for 127.0.0.1, it sends ``Secure`` cookies."""

    def __init__(self, space: Space) -> None:
        self.space, self.saved = space, None
        self.jar = CookieJar(DefaultCookiePolicy(secure_protocols=("http",)))
        self.opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self.jar), urllib.request.ProxyHandler({})
        )

    def get(self, path: str) -> str:
        """Where it is after all redirects."""
        with self.opener.open(self.space.url + path, timeout=30) as answer:
            return answer.url

    def sign_in(self, account: Account) -> str:
        self.space.provider.user = account
        return self.get("/login/huggingface?_target_url=/")

    def post(self, route: str, handler: str, data: list, headers: dict[str, str]) -> dict:
        id = next(one["id"] for one in self.space.config()["dependencies"] if one["api_name"] == handler)
        body = {"data": data, "fn_index": id, "session_hash": "raw"}
        headers = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(f"{self.space.url}/gradio_api/{route}", json.dumps(body).encode(), headers)
        with self.opener.open(request, timeout=30) as answer:
            return json.loads(answer.read())

    def ask(self, handler: str, data: list, headers: dict[str, str]) -> list:
        return self.post("run/predict", handler, data, headers)["data"]

    def click(self, handler: str, data: list) -> list:
        """What comes of a handler that takes its place in the queue."""
        self.post("queue/join", handler, data, {})
        with self.opener.open(f"{self.space.url}/gradio_api/queue/data?session_hash=raw", timeout=60) as answer:
            events = [json.loads(line[6:]) for line in answer.read().decode().splitlines() if line.startswith("data: ")]
        return next(one["output"]["data"] for one in events if one["msg"] == "process_completed")

    def open(self, headers: dict[str, str] | None = None) -> dict:
        """Open the page: what it is given, the run and the token; what it keeps in the browser is ``saved``."""
        headers = {"Sec-Fetch-Site": "same-origin"} if headers is None else headers
        self.saved, live, *_ = self.ask("arrive", [self.saved], headers)
        return live

    def listed(self, token: str | None = None) -> str:
        """The ids of the runs on the Runs tab, without the example, which everybody sees."""
        token = self.open()["owner"] if token is None else token
        return re.findall(
            r'<tr data-run="(?!example")([^"]+)"', self.space.call("runs", "rows", {"owner": token})["html"]
        )


@pytest.fixture
def browser(space):
    return Browser(space)


@pytest.fixture
def other(space):
    return Browser(space)


def finished(space: Space, token: str) -> Run:
    run = create_run(DistillConfig(), space.folder, token)
    run.append("done")
    belongs_to_server(run.path)
    return run


def test_it_starts_as_a_space_starts_it_and_who_is_signed_in_can_start_a_run(space, browser, other):
    browser.sign_in(ANNA)
    live = browser.open()
    values = {name: settings.widget(name).value for name in settings.FIELDS}
    saved, shown = browser.click("on_distill", [browser.saved, live, *values.values()])
    (id,) = browser.listed(live["owner"])
    assert shown == {"run": id, "owner": live["owner"], "new": True}
    assert saved == {**browser.saved, "run": id}
    run = find_run(space.folder, id)
    until(lambda: run.last("started"))
    assert "problem" in space.call("live", "stop_it", {"run": id, "owner": other.open()["owner"]})
    assert space.call("live", "stop_it", {"run": id, "owner": live["owner"]}) == {}
    until(lambda: run.status() == "stopped")
    delete_run(run)


# --- Where one can sign in


def on_a_space(monkeypatch, **variables: str) -> None:
    there = {"SYSTEM": "spaces", "SPACE_ID": "a/b", **dict.fromkeys(login.VARIABLES, "x"), **variables}
    for name, value in there.items():
        monkeypatch.setenv(name, value)


def test_there_is_no_button_without_oauth_and_none_where_gradio_would_let_in_everybody(monkeypatch):
    assert not login.is_offered() and "distillery.login" not in theme.head()
    on_a_space(monkeypatch)
    assert login.is_offered() and "distillery.login" in theme.head()
    for name, value in (("OAUTH_CLIENT_ID", ""), ("SYSTEM", ""), ("SPACE_ID", "")):
        with monkeypatch.context() as without:
            without.setenv(name, value)
            without.setenv("KD_SHARED", "1")
            assert not login.is_offered(), name


def test_a_server_with_half_of_oauth_says_what_is_missing(monkeypatch):
    on_a_space(monkeypatch, OAUTH_CLIENT_SECRET="", OAUTH_SCOPES="")
    with pytest.raises(ValueError, match="OAUTH_CLIENT_ID is set, OAUTH_CLIENT_SECRET and OAUTH_SCOPES not"):
        login.is_offered()


def test_the_button_says_who_is_signed_in(space, browser):
    own = {"Sec-Fetch-Site": "same-origin"}
    assert browser.ask("on_load", [], own)[0]["value"] == login.SIGN_IN
    assert browser.sign_in(ANNA) == f"{space.url}/"
    assert browser.ask("on_load", [], own)[0]["value"] == "Sign out (anna)"
    assert browser.ask("on_load", [], {"Sec-Fetch-Site": "cross-site"})[0]["value"] == login.SIGN_IN
    public = {one["api_name"] for one in space.config()["dependencies"] if one["api_visibility"] == "public"}
    assert public == {function.__name__ for function in FUNCTIONS}


# --- Whose runs one sees


def test_two_browsers_with_one_login_see_the_same_runs_and_another_login_none(space, browser, other):
    browser.sign_in(ANNA)
    token = browser.open()["owner"]
    run = finished(space, token)
    other.sign_in(ANNA)
    assert other.listed() == browser.listed() == [run.id]
    assert browser.saved["owner"] != other.saved["owner"]
    other.get("/logout")
    other.sign_in(BEN)
    assert other.listed() == []
    theirs = other.open()["owner"]
    assert "refused" in space.call("live", "poll", {"run": run.id, "owner": theirs})
    assert "problem" in space.call("runs", "act", {"run": run.id, "owner": theirs, "do": "delete"})
    delete_run(run)


def test_another_account_that_takes_a_given_up_name_does_not_take_the_runs(browser, other):
    browser.sign_in(ANNA)
    other.sign_in(Account("ffff", ANNA.name))
    assert browser.open()["owner"] != other.open()["owner"]


def test_what_the_browser_made_before_comes_along_and_nobody_finds_it_there_after_signing_out(space, browser, other):
    before = browser.open()["owner"]
    run, kept = finished(space, before), finished(space, "cd" * 16)
    sweep = create_sweep(DistillConfig(), Grid(), space.folder, before)
    belongs_to_server(sweep.path)
    dataset = space.folder / ".datasets" / run.id
    dataset.mkdir(parents=True)
    (dataset / "dataset.json").write_text(json.dumps({"id": run.id, "name": "coats", "owner": owner_hash(before)}))
    belongs_to_server(dataset)
    browser.saved["run"] = run.id
    browser.sign_in(BEN)
    live = browser.open()
    assert live["run"] == run.id and live["owner"] != before and browser.saved["owner"] == before
    other.sign_in(BEN)
    assert other.listed() == [run.id]
    mine = {run.owner(), sweep.owner(), Upload(dataset).owner()}
    assert mine == {owner_hash(live["owner"])} and kept.owner() == owner_hash("cd" * 16)
    browser.get("/logout")
    assert browser.open() == {"run": None, "owner": before, "view": ""} and browser.listed() == []
    assert "refused" in space.call("live", "poll", {"run": run.id, "owner": before})
    assert other.listed() == [run.id]


def test_after_signing_out_nothing_of_the_login_is_left_in_the_browser(browser):
    own = browser.open()["owner"]
    browser.sign_in(ANNA)
    token = browser.open()["owner"]
    assert token != own and token not in json.dumps(browser.saved)
    browser.get("/logout")
    assert browser.open()["owner"] == own and token not in json.dumps(browser.saved)
    assert b"anna" not in b"".join(base64.b64decode(one.value.split(".")[0] + "==") for one in browser.jar)


# --- What does not make one another's login


def test_nobody_makes_the_token_of_a_name(space, browser):
    browser.sign_in(ANNA)
    token = browser.open()["owner"]
    run = finished(space, token)
    assert TOKEN.fullmatch(token) and browser.listed(token) == [run.id]
    altered = token[:-1] + ("0" if token[-1] != "0" else "1")
    digests = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in (ANNA.name, ANNA.sub, f"login {ANNA.sub}")]
    for forged in (
        altered,
        ANNA.name,
        ANNA.sub,
        f"login {ANNA.sub}",
        *digests,
        owner_hash(token),
        run.owner(),
        [token],
    ):
        assert browser.listed(forged) == [], forged
    delete_run(run)


def test_a_forged_or_altered_cookie_is_nobodys(space, browser):
    browser.sign_in(ANNA)
    real = next(one for one in browser.jar if one.name == "session")
    token, value, info = (
        browser.open()["owner"],
        real.value,
        json.loads(base64.b64decode(real.value.split(".")[0] + "==")),
    )
    signer = itsdangerous.TimestampSigner(hashlib.sha256(b"-v4").hexdigest())
    body = base64.b64encode(json.dumps(info).encode())
    other = base64.b64encode(json.dumps(info).replace("64a0", "64b1").encode()).decode()
    for forged in (signer.sign(body).decode(), ".".join([other, *value.split(".")[1:]]), value[:-2], ""):
        real.value = forged
        assert browser.open()["owner"] == browser.saved["owner"] != token
    real.value = value
    assert browser.open()["owner"] == token


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "{url}"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {},
    ],
)
def test_another_site_that_asks_with_ones_cookie_gets_no_login(space, browser, headers):
    browser.sign_in(ANNA)
    run = finished(space, browser.open()["owner"])
    before = browser.saved["owner"]
    mine = finished(space, before)
    answer = browser.open({name: value.format(url=space.url) for name, value in headers.items()})
    assert answer["owner"] == before and mine.owner() == owner_hash(before)
    assert browser.open({"Origin": space.url})["owner"] != before  # a browser too old to say more
    assert mine.owner() == run.owner()
    delete_run(run)
    delete_run(mine)


class Still(urllib.request.HTTPRedirectHandler):
    """Stays where it is."""

    def redirect_request(self, *asked: object) -> None:
        return None


def redirect(url: str) -> str:
    """Where it would send one."""
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.build_opener(Still, urllib.request.ProxyHandler({})).open(url, timeout=30)
    return answer.value.headers["Location"]


def test_a_link_that_ends_anothers_login_does_not_sign_one_in_as_them(space, browser):
    space.provider.user = ANNA
    link = redirect(redirect(f"{space.url}/login/huggingface?_target_url=/"))
    assert "/login/callback?" in link and "code=" in link
    space.provider.user = BEN
    browser.get(link.removeprefix(space.url))
    assert browser.ask("on_load", [], {"Sec-Fetch-Site": "same-origin"})[0]["value"] == "Sign out (ben)"
