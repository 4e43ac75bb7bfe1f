"""The column "In this browser" in real Chromium: the student's answers are those of the server; the camera; what is refused."""

import base64
import json
import re
import shutil
import time
from threading import Thread

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from kd.config import DistillConfig
from kd.data.images import open_picture
from kd.distill import execute
from kd.evaluation import worker
from kd.export.bundle import export_student
from kd.runs.run import Run
from kd.runs.store import create_run, local_owner
from kd.system.browser_runtime import SCRIPT, WASM, browser_runtime
from kd.ui import in_browser
from kd.ui.access import view_key
from tests.support.in_browser import INSECURE, as_text, needs_runtime, odd_pictures, pixels_of, with_camera
from tests.support.pages import Site, leave, serious, something_trains, until, visit
from tests.support.runs import timed_shortly

pytestmark = needs_runtime


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(folder, colours, teacher) -> Run:
    """A run that is done, and exported as fp32 and int8."""
    config = DistillConfig.preset(
        "custom", teacher=str(teacher), dataset=str(colours), student="resnet_8", image_size=32, epochs=1,
        batch_size=16, views=2, export="no",
    )  # fmt: skip
    made = create_run(config, folder, local_owner(folder))
    execute(made)
    with timed_shortly():
        export_student(made)
    return made


@pytest.fixture(scope="module")
def site(folder, run, tmp_path_factory) -> Site:
    """One's own machine, with a copy of the engine that a test can take away."""
    engine = tmp_path_factory.mktemp("engine")
    for name in (SCRIPT, WASM):
        shutil.copyfile(browser_runtime() / name, engine / name)
    made = Site(folder, KD_BROWSER_RUNTIME=str(engine))
    made.engine = engine
    with something_trains(folder):
        made.start()
        yield made
        made.stop()


@pytest.fixture
def shared(folder, run, tmp_path, monkeypatch) -> None:
    """The same runs on a server for strangers, which has no engine."""
    monkeypatch.setenv("KD_RUNS_DIR", str(folder))
    monkeypatch.setenv("KD_SHARED", "1")
    monkeypatch.setenv("KD_BROWSER_RUNTIME", str(tmp_path))


@pytest.fixture
def page(site):
    page = visit(f"{site.url}/?__theme=light", width=1366, height=768, chromium=with_camera())
    on_compare(page)
    yield page
    leave(page)


def on_compare(page: Page) -> Page:
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#compare-run input")).not_to_have_value("")
    return page


def compare(page: Page, pictures: list) -> None:
    page.locator("#pictures input[type=file]").set_input_files(pictures)
    expect(page.locator("#pictures .thumbnail-item")).to_have_count(len(pictures))
    page.evaluate("document.querySelector('#comparison [data-run]')?.setAttribute('data-old', '')")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator("#comparison [data-run]:not([data-old])").wait_for()


def open_column(page: Page) -> None:
    page.get_by_role("button", name="Open this column").click()


def words(page: Page):
    """What the panel says of opening."""
    return page.locator("#in-browser .kd-opened")


def answers(bars) -> dict[str, float]:
    """Class -> percent, as bars show them."""
    names, figures = (bars.locator(f"span:nth-child({nth})").all_inner_texts() for nth in (1, 2))
    return {name: float(figure.removesuffix("%")) for name, figure in zip(names, figures, strict=True)}


# --- Beside the server's answers


def test_nothing_is_loaded_before_the_column_is_opened(page, colours):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url + (request.post_data or "")))
    compare(page, [colours / "red brick" / "000.png"])
    expect(page.locator("#comparison .kd-here").last).to_be_hidden()
    assert not [one for one in asked if WASM in one or SCRIPT in one or '"offered"' in one or '"part"' in one]
    open_column(page)
    expect(page.locator("#comparison .kd-here .kd-bars")).to_be_visible()
    assert [one for one in asked if WASM in one] and [one for one in asked if '"part"' in one]


def test_the_student_says_here_what_it_says_on_the_server_of_odd_pictures_too(page, tmp_path):
    pictures = odd_pictures(tmp_path)
    open_column(page)
    expect(words(page)).to_have_text(
        re.compile(r"^ONNX Runtime Web [\d.]+, WebAssembly, one thread; .* MB of fp32 weights")
    )
    for few in (pictures[:3], pictures[3:]):
        compare(page, few)
        cards = page.locator("#comparison .kd-card")
        expect(page.locator(".kd-here-p50")).to_have_text(re.compile(r"^\d+\.\d+ ms$"))
        expect(page.locator("#in-browser .kd-compared")).to_have_text(re.compile("^On 3 of 3 pictures the same"))
        for card in cards.all():
            ours, theirs = (answers(bars) for bars in card.locator(".kd-student").all())
            assert ours.keys() == theirs.keys()
            assert max(abs(ours[name] - theirs[name]) for name in ours) < 0.3, card.inner_text()
        page.locator("#pictures").get_by_role("button", name="Clear").click()
    assert not serious(page)


def test_many_pictures_get_a_column_of_their_table_and_int8_can_be_chosen(page, colours):
    compare(page, [colours / "red brick" / f"00{n}.png" for n in range(5)])
    open_column(page)
    page.get_by_label("Weights").select_option("int8")
    expect(words(page)).to_contain_text("MB of int8 weights")
    cells = page.locator("#comparison td.kd-here")
    expect(cells).to_have_count(5)
    expect(page.locator("#in-browser .kd-compared")).to_have_text(re.compile(r"^On \d of 5 pictures the same"))
    expect(page.get_by_role("columnheader", name="In this browser")).to_be_visible()
    cells.first.get_by_text("top five").click()
    expect(cells.first.locator("li").first).to_be_visible()
    assert not serious(page)


def test_the_browser_reads_the_same_pixels_as_the_server(page, tmp_path):
    for path in odd_pictures(tmp_path):
        found = page.evaluate(
            """async (text) => {
                const { data, width, height } = await studentInBrowser.decode(await (await fetch(`data:;base64,${text}`)).blob());
                return [[height, width, 3], Array.from(data)];
            }""",
            as_text(path),
        )
        expected = pixels_of(path)
        assert tuple(found[0]) == expected.shape, path.name
        assert np.abs(np.array(found[1]).reshape(found[0]) - expected.astype(int)).max() <= 1, path.name


# --- Live


@pytest.fixture
def filmed(page):
    """The column with the camera on."""
    page.context.grant_permissions(["camera"])
    open_column(page)
    page.get_by_role("button", name="Use the camera").click()
    expect(page.locator(".kd-rate")).to_contain_text("frames a second")
    return page


def is_filming(page: Page) -> bool:
    return page.evaluate("document.querySelector('#in-browser video').srcObject !== null")


def test_the_camera_s_frames_move_the_bars_the_teacher_is_asked_about_one_and_stop_ends_it(filmed):
    bars = filmed.locator("#in-browser .kd-moving li")
    expect(bars).to_have_count(3)

    def widths() -> list[str]:
        return bars.locator("i").evaluate_all("all => all.map(bar => bar.style.width)")

    before = widths()
    until(lambda: widths() != before)
    assert int(filmed.locator(".kd-rate").inner_text().split()[0]) >= 2
    assert not serious(filmed)
    filmed.get_by_role("button", name="Ask the teacher").click()
    expect(filmed.locator(".kd-asked")).to_contain_text("Of the frame that you sent")
    found = answers(filmed.locator("#in-browser .kd-live .kd-teacher"))
    assert len(found) == 3 and sum(found.values()) == pytest.approx(100, abs=0.2)
    filmed.get_by_role("button", name="Stop the camera").click()
    expect(filmed.locator("#in-browser video")).to_be_hidden()
    assert not is_filming(filmed)


def test_the_camera_is_stopped_when_the_tab_is_left(filmed):
    filmed.get_by_role("tab", name="Runs").click()
    expect(filmed.locator("#in-browser video")).to_be_hidden()
    filmed.wait_for_function("document.querySelector('#in-browser video').srcObject === null")
    filmed.get_by_role("tab", name="Compare").click()
    expect(filmed.locator(".kd-compared")).to_have_text("The camera was stopped: you left this tab.")


def refused_camera(page: Page, expected: str) -> None:
    open_column(page)
    page.get_by_role("button", name="Use the camera").click()
    expect(page.locator(".kd-compared")).to_contain_text(expected)
    expect(page.locator("#in-browser video")).to_be_hidden()
    expect(page.get_by_role("button", name="Use the camera")).to_be_enabled()


def test_a_refused_camera_is_said_in_words(page):
    refused_camera(page, "The camera was refused. Allow it")


@pytest.mark.slow
def test_no_camera_is_said_in_words(site):
    page = on_compare(visit(site.url))
    page.context.grant_permissions(["camera"])
    refused_camera(page, "There is no camera.")
    page.context.close()


@pytest.mark.slow
def test_a_page_that_gets_no_camera_for_want_of_https_says_so(site):
    page = on_compare(visit(site.url.replace("127.0.0.1", INSECURE), context=with_camera().new_context()))
    refused_camera(page, "only to pages from https or from localhost")
    page.context.close()


def test_on_a_phone_by_the_keyboard_alone(site):
    page = on_compare(visit(f"{site.url}/?__theme=dark", width=390, height=844, chromium=with_camera()))
    page.context.grant_permissions(["camera"])
    page.locator("#compare").focus()
    for name in ("Open this column", "Use the camera", "Stop the camera"):
        expect(page.get_by_role("button", name=name)).to_be_visible()
        for _ in range(8):
            if page.evaluate("document.activeElement.textContent") == name:
                break
            page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == name
        if name == "Stop the camera":
            expect(page.locator(".kd-rate")).to_contain_text("frames a second")
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            assert not serious(page)
        page.keyboard.press("Enter")
    expect(page.locator(".kd-compared")).to_have_text("The camera is off.")
    leave(page)


# --- What cannot be opened


def test_without_the_engine_s_files_the_column_says_what_to_run(page, site):
    (site.engine / WASM).rename(site.engine / "away")
    try:
        open_column(page)
        expect(words(page)).to_contain_text("is not on this server. Install npm, then start the page with `make app`")
    finally:
        (site.engine / "away").rename(site.engine / WASM)
    open_column(page)
    expect(words(page)).to_contain_text("loaded in")


def test_a_run_without_an_export_says_what_makes_one(page, run):
    export = run.path / "export"
    export.rename(run.path / "away")
    try:
        open_column(page)
        expect(words(page)).to_contain_text(f"`python -m kd export {run.id}` does")
    finally:
        (run.path / "away").rename(export)


def test_a_file_that_answers_too_differently_is_marked(site, run):
    path = run.path / "export" / "results.json"
    whole = path.read_text()
    results = json.loads(whole)
    results["files"]["student_int8.onnx"] |= {
        "success": False, "agreement": 0.978, "others": "It gives another class on 3 pictures.",
    }  # fmt: skip
    path.write_text(json.dumps(results))
    try:
        found = site.call("in-browser", "offered", {"run": run.id})["files"]
        assert [one["words"] for one in found] == ["fp32", "int8 (agrees on 97.8% only)"]
        html = site.call("live", "export_state", {"run": run.id})["html"]
        assert "97.80%: too few<" in html and "student_int8.onnx: It gives another class on 3 pictures" in html
    finally:
        path.write_text(whole)


def test_a_file_that_is_no_model_is_said_in_words(page, run):
    file = run.path / "export" / "student.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    try:
        open_column(page)
        expect(words(page)).to_contain_text("This browser could not load the student")
    finally:
        file.write_bytes(whole)


def test_a_browser_without_simd_is_told_so(page):
    page.evaluate("WebAssembly.validate = () => false")
    open_column(page)
    expect(words(page)).to_contain_text("no WebAssembly with SIMD")


def test_a_picture_that_this_browser_cannot_read_is_named_and_the_others_are_answered(page, colours, tmp_path):
    path = colours / "red brick" / "000.png"
    open_picture(path).save(tmp_path / "scan.tiff")
    open_column(page)
    compare(page, [path, tmp_path / "scan.tiff"])
    expect(page.locator("#in-browser .kd-compared")).to_have_text(
        "On 1 of 1 picture the same first choice as the student on the server."
    )
    expect(
        page.locator("#comparison .kd-here .kd-problem", has_text="cannot read this kind of picture")
    ).to_be_visible()


# --- Strangers


ASKED = {"offered": in_browser.offered, "part": in_browser.part, "ask_teacher": in_browser.ask_teacher}


def test_another_visitor_s_student_is_refused_whatever_is_asked(shared, run):
    for owner in ("", "0" * 32, None, {}):
        for function in ASKED.values():
            asked = {"run": run.id, "owner": owner, "name": "student.onnx", "start": 0}
            assert function(asked).keys() == {"problem"}


def test_a_read_only_link_shows_the_run_and_does_not_give_its_student_away(shared, run):
    asked = {"run": run.id, "owner": "0" * 32, "view": view_key(run), "name": "student.onnx", "start": 0}
    for function in ("offered", "part"):
        assert "only they can run it" in ASKED[function](asked)["problem"]


def test_only_the_files_of_an_export_are_sent_and_in_parts(site, run):
    whole = (run.path / "export" / "student.onnx").read_bytes()
    asked = {"run": run.id, "name": "student.onnx"}
    found = site.call("in-browser", "part", {**asked, "start": len(whole) - 7})
    assert found["bytes"] == len(whole) and base64.b64decode(found["data"]) == whole[-7:]
    for wrong in (
        {"name": "../config.json"},
        {"name": "config.json"},
        {"start": -1},
        {"start": "0"},
        {"name": None},
        {},
    ):
        assert (
            "no such part"
            in site.call("in-browser", "part", {**asked, **wrong} if wrong else {"run": run.id})["problem"]
        )


def test_a_file_of_the_server_s_own_is_not_shown_to_the_teacher(site, run, colours):
    path = colours / "red brick" / "000.png"
    found = site.call("in-browser", "ask_teacher", {"run": run.id, "path": str(path)})
    assert "must be uploaded" in found["problem"] and path.exists()


def test_the_teacher_is_not_asked_while_the_server_answers_somebody_else(run, folder, colours, tmp_path, monkeypatch):
    monkeypatch.setenv("KD_RUNS_DIR", str(folder))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    frame = tmp_path / "frame.png"
    shutil.copyfile(colours / "red brick" / "000.png", frame)
    busy = Thread(target=worker.ask, args=(time.sleep, 3))
    busy.start()
    while not worker.ask.is_busy():
        time.sleep(0.01)
    found = in_browser.ask_teacher({"run": run.id, "path": str(frame)})
    assert "busy" in found["problem"]
    assert not frame.exists(), "a frame is not kept"
    busy.join()
    worker.ask.end()
