"""The page in real Chromium, as a visitor sees it. One story, told in order: a run on the sample is watched, reloaded,
survives the server and is stopped; a small one waits behind it, ends, is compared, overlaid and deleted."""

import re
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect

from kd.config import DistillConfig
from kd.data.images import open_picture
from kd.data.library.store import list_uploads
from kd.devtools.sample import CLASSES as SAMPLE_CLASSES
from kd.evaluation.dark_knowledge import dark_knowledge, softened
from kd.experiments.grid import Grid
from kd.experiments.sweep import create_sweep
from kd.models.processor import run_processor
from kd.models.teacher import load_teacher
from kd.runs.process import start_run
from kd.runs.run import CLOSED
from kd.runs.store import create_run, delete_run, list_runs, local_owner
from kd.ui import settings
from kd.ui.access import view_key
from kd.ui.theme import EXAMPLES
from tests.support.pages import AXE, points, serious, shared_site, site, until, visit

pytestmark = pytest.mark.xdist_group("page")


@pytest.fixture(scope="module")
def page():
    """The first visitor, who has one's own machine, with no runs yet."""
    for run in list_runs(site().folder):
        until(lambda run=run: run.status() in CLOSED)
        delete_run(run)
    return visit(f"{site().url}/?__theme=light")


@pytest.fixture(scope="module")
def small_run(colours, teacher):
    """A run of a few seconds, which waits behind the one that is training."""
    config = DistillConfig.preset(
        "custom", teacher=str(teacher), dataset=str(colours), student="mobilenet_v2_0.35", image_size=32, epochs=2,
        batch_size=16, views=1, baseline="yes",
    )  # fmt: skip
    run = create_run(config, site().folder, local_owner(site().folder))
    start_run(run)
    return run


def status(page):
    return page.locator("#live [role=status]")


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


# --- One run on the sample


def test_the_page_answers_before_torch_could_be_imported():
    assert site().seconds < 12  # 4 s on two quiet cores


def test_before_the_first_run_there_is_an_example_that_says_that_it_is_one_and_what_will_happen(page):
    example = page.locator("#live .kd-example")
    expect(example).to_be_visible()
    expect(example).to_contain_text("This is an example, recorded on")
    expect(example).to_contain_text("Click Distill")
    assert re.search(r"CPU \(\d+ core|GPU", example.inner_text())
    expect(page.locator("#live .kd-sentence")).to_contain_text("The student has")
    assert page.locator("#distill").bounding_box()["y"] < 900, "the button is on the first screen"


def test_a_methods_own_settings_appear_only_when_it_is_chosen(page):
    def choose(method: str) -> None:
        page.locator("#set-method input").click()
        page.get_by_role("option", name=method, exact=True).click()

    temperature = page.locator("#set-temperature input[type=number]")
    page.locator("#models > button").click()
    page.locator("#more > button").click()
    expect(page.locator("#set-method input")).to_be_visible()
    expect(page.locator("#set-dkd-alpha")).to_be_hidden()
    choose("DKD (2022)")
    expect(page.locator("#set-dkd-alpha")).to_be_visible()
    expect(temperature).to_have_value("4")  # as its paper sets it
    choose("DIST (2022)")
    expect(page.locator("#set-dist-beta")).to_be_visible()
    expect(page.locator("#set-dkd-alpha")).to_be_hidden()
    expect(temperature).to_have_value("1")
    page.get_by_role("radio", name="Custom").click()
    expect(page.locator("#set-dist-beta")).to_be_hidden()
    expect(page.locator("#set-student input")).to_have_value("mobilenet_v2_1.0")
    page.get_by_role("radio", name="Sample").click()
    expect(page.locator("#set-student input")).to_have_value(DistillConfig.preset("sample").student)
    expect(page.locator("#models > button")).to_contain_text(
        f"sample → {DistillConfig.preset('sample').student} on sample"
    )
    for part in ("more", "models"):
        page.locator(f"#{part} > button").click()  # closed again
    expect(temperature).to_have_value(f"{DistillConfig.preset('sample').temperature:g}")


def test_a_list_that_is_left_as_it_was_takes_back_no_setting(page):
    asked: list[str] = []
    page.locator("#set-epochs input").fill("3")
    page.locator("#more > button").click()
    page.on("request", lambda request: asked.append(request.post_data or ""))
    page.locator("#set-image-size").locator("input, textarea").press("Tab")
    expect(page.locator("#set-recipe input")).to_be_focused()
    page.locator("#models > button").click()
    page.locator("#set-teacher input").click()
    page.wait_for_timeout(300)
    assert not [body for body in asked if "fn_index" in body]
    page.locator("#set-recipe input").click()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")  # chosen by the keyboard, a recipe fills in its own
    expect(page.locator("#set-recipe input")).to_have_value("pretrained")
    expect(page.locator("#set-epochs input")).to_have_value(
        str(DistillConfig.preset("sample", recipe="pretrained").epochs)
    )
    page.reload()  # the other tests begin with what the page begins with
    expect(page.locator("#distill")).to_be_visible()


def test_a_bad_setting_is_an_error_with_the_same_words_as_on_the_command_line(page):
    page.locator("#set-epochs input").fill("0")
    page.get_by_role("button", name="Distill", exact=True).click()
    with pytest.raises(ValueError) as problem:
        DistillConfig(epochs=0)
    expect(page.get_by_text(str(problem.value))).to_be_visible()
    assert not list_runs(site().folder)
    page.locator("#set-temperature input[type=number]").fill("4")


def test_a_click_on_distill_draws_curves_that_grow(page):
    page.get_by_role("button", name="More").click()
    for name, value in (("epochs", 40), ("views", 1)):
        page.locator(f"#set-{name} input").fill(str(value))
    page.get_by_role("button", name="Distill", exact=True).click()
    expect(status(page)).to_have_text(re.compile("Training.*, epoch 1 of 40"), timeout=120_000)
    assert re.search(r"[\d,]+ images/s on the [CG]PU, .* left", until(lambda: page.locator(".kd-figures").inner_text()))
    first = until(lambda: points(page))
    until(lambda: points(page) > first + 1)
    assert "run=" in page.url
    config = list_runs(site().folder)[0].config()
    assert (config.temperature, config.epochs, config.views, config.dataset) == (4, 40, 1, "sample")


def test_zoom_survives_updates(page):
    chart = page.locator("#live [data-figure=losses]")
    page.evaluate("Plotly.relayout(document.querySelector('#live [data-figure=losses]'), {'xaxis.range': [0.1, 0.3]})")
    before = points(page)
    until(lambda: points(page) > before + 1)
    assert chart.evaluate("chart => chart._fullLayout.xaxis.range") == [0.1, 0.3]


def test_a_poll_is_small(page):
    sizes = []
    for _ in range(4):
        with page.expect_response(lambda response: "component_server" in response.url) as response:
            pass
        sizes.append(len(response.value.body()))
    assert sorted(sizes)[1] < 400, sizes


def test_a_run_behind_it_says_its_place(page, small_run):
    second = visit(f"{site().url}/?run={small_run.id}", context=page.context)
    expect(status(second)).to_have_text(re.compile("^Waiting for the CPU: place 1 in the queue"))
    second.close()


def test_a_reload_and_a_second_tab_find_the_run_again(page):
    run = list_runs(site().folder)[-1]
    page.reload()
    expect(status(page)).to_have_text(re.compile("Training.*, epoch"))
    until(lambda: points(page) > 3)
    second = visit(site().url, context=page.context)  # no ?run=: the browser remembers
    expect(status(second)).to_have_text(re.compile("Training.*, epoch"))
    assert run.status() == "running"
    second.close()


def test_the_server_can_restart_in_mid_run(page):
    site().stop()
    expect(status(page)).to_have_text(re.compile("Reconnecting"))
    site().start()
    expect(status(page)).to_have_text(re.compile("Training.*, epoch"))
    before = points(page)
    until(lambda: points(page) > before)


def test_stop_ends_it_and_resume_is_offered(page):
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(status(page)).to_have_text(re.compile("Stopped in epoch"))
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    assert (list_runs(site().folder)[-1].path / "student" / "model.safetensors").exists()


# --- Before training


def test_the_teacher_s_answer_moves_with_the_temperature_and_says_what_is_learned(page):
    page.get_by_role("button", name="Another picture").click()
    page.get_by_role("button", name="Ask about ankle-boot-1").click()
    panel, bars = page.locator("#dark"), page.locator("#dark .kd-bars li")
    expect(panel.locator(".kd-label")).to_have_text("Its label: Ankle boot")
    expect(bars).to_have_count(7)
    path = EXAMPLES[0]
    teacher = load_teacher("sample", SAMPLE_CLASSES)
    with torch.inference_mode():
        logits = teacher(run_processor(teacher.processor, [open_picture(path)])).logits[0].double().numpy()
    said = set()
    for stop in (1, 5, 20):
        page.locator("#set-temperature input[type=range]").fill(str(stop))
        label = SAMPLE_CLASSES.index("Ankle boot")
        expect(panel.locator(".kd-explanation")).to_have_text(dark_knowledge(logits, SAMPLE_CLASSES, label, stop))
        said.add(panel.locator(".kd-explanation").inner_text())
        expected = dict(zip(SAMPLE_CLASSES, softened(logits, stop), strict=True))
        *named, others = bars.all()
        for bar in named:
            name, shown = (bar.locator("> span").nth(nth).inner_text() for nth in (0, 2))
            width = float(bar.locator("i").first.evaluate("bar => bar.style.width").removesuffix("%"))
            share = expected.pop(name)
            assert abs(width / 100 - share) < 1e-4, (stop, name)
            assert shown.startswith("<") or abs(float(shown.removesuffix("%")) / 100 - share) < 6e-4
        assert others.locator("> span").first.inner_text() == "4 others"
        width = float(others.locator("i").first.evaluate("bar => bar.style.width").removesuffix("%"))
        assert abs(width / 100 - sum(expected.values())) < 1e-4
    assert len(said) == 3
    assert not serious(page)


def test_the_teacher_s_answer_to_an_upload_and_an_error_in_words(page, teacher, colours):
    page.locator("#models > button").click()
    fill_choice(page, "teacher", str(teacher))
    fill_choice(page, "dataset", str(colours))
    panel = page.locator("#dark")
    expect(panel.locator(".kd-asking")).to_contain_text("Upload a picture like those of your dataset")
    page.locator("#another-picture input[type=file]").set_input_files(colours / "red brick" / "000.png")
    expect(panel.locator(".kd-label")).to_contain_text("first choice, red brick")
    expect(panel.locator(".kd-bars li")).to_have_count(3)
    fill_choice(page, "teacher", "no/such-teacher")
    expect(panel.locator(".kd-asking")).to_contain_text("The teacher 'no/such-teacher' is not on this machine")


def fill_choice(page, name: str, value: str) -> None:
    """Type what is not among the suggestions."""
    page.locator(f"#set-{name} input").fill(value)
    page.keyboard.press("Enter")


# --- A run that ends


def test_the_next_run_ends_with_a_table_of_both(page, small_run):
    page.goto(f"{site().url}/?__theme=light&run={small_run.id}")
    expect(status(page)).to_have_text("Done")
    table = page.locator("#live table.kd-versus")
    for name in ("Test accuracy", "Macro F1", "Agreement", "Parameters", "Size", "FLOPs", "Latency p50"):
        expect(table.get_by_role("rowheader", name=name)).to_be_visible()
    assert f"{small_run.report()['student']['accuracy']:.2%}" in table.inner_text()


def test_with_a_baseline_it_ends_with_a_verdict_and_both_curves(page, small_run):
    report = small_run.report()
    expect(page.locator("#live .kd-verdict")).to_contain_text(report["verdict"]["sentence"])
    expect(page.locator("#live table.kd-versus")).to_contain_text(f"{report['baseline']['accuracy']:.2%}")
    names = until(
        lambda: page.evaluate("document.querySelector('#live [data-figure=accuracy]').data?.map(t => t.name)")
    )
    assert names == ["student", "agreement", "no teacher", "teacher"]


def test_where_teacher_and_student_differ_is_asked_for_once_and_shown(page):
    asked = []
    page.on("request", lambda request: asked.append(request) if '"analysis"' in (request.post_data or "") else None)
    page.locator("#live .kd-analysis").scroll_into_view_if_needed()
    pictures = page.locator("#live .kd-test img")
    expect(pictures.first).to_be_visible()
    assert all(pictures.evaluate_all("all => all.map(one => one.naturalWidth)"))
    for name, words in (
        ("f1", "F1"),
        ("confusion_teacher", "Teacher"),
        ("confusion_student", "Student"),
        ("reliability", "right"),
    ):
        chart = page.locator(f"#live [data-figure={name}]")
        expect(chart.locator(".gtitle")).to_contain_text(words)
    for words in ("points of F1", "ECE", "Teacher", "Student"):
        expect(page.locator("#live .kd-analysis")).to_contain_text(words)
    page.locator("#live header").first.scroll_into_view_if_needed()
    page.locator("#live .kd-analysis").scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    assert len(asked) <= 1
    assert not serious(page)


def test_compare_shows_two_pictures_side_by_side(page, colours, tmp_path):
    page.get_by_role("button", name="Compare on pictures").click()
    page.locator("#pictures input[type=file]").set_input_files(
        [colours / "red brick" / "000.png", colours / "blue sky" / "001.png"]
    )
    expect(page.locator("#pictures .thumbnail-item")).to_have_count(2)
    page.get_by_role("button", name="Compare", exact=True).click()
    cards = page.locator("#comparison .kd-card")
    expect(cards).to_have_count(2)
    assert {"red brick", "blue sky"} <= set(
        page.locator(".kd-teacher li:first-child span:first-child").all_inner_texts()
    )
    for words in ("Agreement", "Speed-up", "Size ratio", "Latency p50", "Latency p95"):
        expect(page.locator("#comparison")).to_contain_text(words)
    assert not serious(page)
    assert "libtorch" not in Path(f"/proc/{site().process.pid}/maps").read_text()  # another process asks the models


def test_many_pictures_are_a_table_with_a_csv_and_a_bomb_is_named_and_not_decoded(page, tmp_path):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_of(13_000))
    page.locator("#pictures input[type=file]").first.set_input_files(bomb)
    expect(page.locator("#pictures .thumbnail-item")).to_have_count(3)
    for n in (0, 1, 2):
        page.locator("#examples button").nth(n).click()
        expect(page.locator("#pictures .thumbnail-item")).to_have_count(4 + n)
    before = site().memory()
    page.get_by_role("button", name="Compare", exact=True).click()
    rows = page.locator("#comparison .kd-many tbody tr")
    expect(rows).to_have_count(6)
    expect(rows.last).to_contain_text("bomb.png")
    assert site().memory() - before < 100e6
    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV").click()
    lines = download.value.path().read_text().splitlines()
    assert len(lines) == 7 and lines[0].startswith("picture,teacher,")


def png_of(side: int) -> bytes:
    """A PNG of side x side black pixels, small as a file and large in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(side * (3 * side + 1)), 9)) + chunk(b"IEND", b"")  # fmt: skip


def test_runs_are_overlaid(page):
    tab(page, "Runs")
    boxes = page.locator("#runs input[type=checkbox]")
    expect(boxes).to_have_count(3)  # the last is the example's
    for box in boxes.all():
        box.check()
    until(lambda: page.evaluate("document.querySelector('#runs [data-figure=losses]').data?.length") == 3)
    assert not serious(page)


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_on_a_phone_nothing_is_wider_than_the_screen_or_serious_to_axe(small_run, theme):
    phone = visit(f"{site().url}/?__theme={theme}&run={small_run.id}", width=390)
    expect(status(phone)).to_have_text("Done")
    expect(phone.locator("#dark .kd-bars li")).to_have_count(7)
    phone.locator("#live .kd-analysis").scroll_into_view_if_needed()
    expect(phone.locator("#live [data-figure=reliability] .gtitle")).to_be_visible()
    for name in ("Distill", "Pictures", "Sweep", "Compare", "Runs"):
        tab(phone, name)
        phone.wait_for_timeout(700)
        assert phone.evaluate("document.documentElement.scrollWidth") == 390, name
        assert not serious(phone), name
    phone.context.close()
    if not AXE.exists():
        pytest.skip("The widths are right; axe-core is not there: `make test` fetches it with npm")


def test_everything_on_the_way_to_distill_is_reached_by_the_keyboard(page):
    page.goto(site().url)
    page.locator("#live .kd-run:visible").wait_for()  # what comes late would take the focus away
    page.get_by_role("tab", name="Distill").focus()
    reached = []
    while "distill" not in reached and len(reached) < 60:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.outerHTML.slice(0, 80)"))
    assert reached[-1] == "distill", reached


# --- Strangers


def test_a_second_visitor_of_a_shared_server_is_refused_by_page_and_by_raw_post(small_run):
    theirs = visit(f"{shared_site().url}/?run={small_run.id}")
    expect(status(theirs)).to_have_text(re.compile("There is no run .* among yours"))
    tab(theirs, "Runs")
    expect(theirs.get_by_text("Your runs will be here")).to_be_visible()
    for owner in ("", "0" * 32, None, {}):
        asked = {"run": small_run.id, "owner": owner}
        assert "refused" in shared_site().call("live", "poll", asked)
        assert "problem" in shared_site().call("live", "stop_it", asked)
        assert "problem" in shared_site().call("live", "resume_it", asked)
        assert shared_site().call("live", "analysis", asked).keys() == {"problem"}
        assert "problem" in shared_site().call("runs", "act", {**asked, "do": "delete"})
        assert "problem" in shared_site().call("runs", "curves", {**asked, "runs": [small_run.id]})
        assert shared_site().call("runs", "rows", asked)["html"].count("<tr") == 1  # the example
    path = {"teacher": small_run.config().teacher, "example": 0}
    assert "a path" in shared_site().call("dark", "teacher_says", path)["problem"]
    values = [settings.to_widget(name, value) for name, value in small_run.config().to_dict().items()]
    assert "a path" in shared_site().call("expected", "expected", {"values": values})["problem"]
    assert small_run.status() == "done"
    theirs.context.close()


def test_a_sweep_is_refused_to_a_second_visitor_by_page_and_by_raw_post(small_run):
    one = create_sweep(small_run.config(), Grid("1", "0.5"), site().folder, local_owner(site().folder))
    one.close("stopped", message="Stopped.")
    theirs = visit(f"{shared_site().url}/?sweep={one.id}")
    expect(theirs.locator("#sweep [role=status]")).to_have_text(re.compile("There is no sweep .* among yours"))
    assert not serious(theirs)
    theirs.context.close()
    for owner in ("", "0" * 32, None, {}):
        asked = {"sweep": one.id, "owner": owner}
        assert shared_site().call("sweep", "poll", asked).keys() == {"refused"}
        assert shared_site().call("sweep", "offered", asked) == {"sweeps": []}
        assert "problem" in shared_site().call("sweep", "stop_it", asked)
        assert "problem" in shared_site().call("sweep", "resume_it", asked)
    assert not one.stop_asked() and one.last("stopped")
    delete_run(one)


def test_a_link_that_is_shared_on_purpose_shows_the_run_and_changes_nothing(small_run):
    theirs = visit(f"{shared_site().url}/?run={small_run.id}&view={view_key(small_run)}")
    expect(status(theirs)).to_have_text("Done")
    expect(theirs.get_by_role("button", name="Compare on pictures")).to_be_visible()
    expect(theirs.get_by_role("button", name="Copy read-only link")).to_be_hidden()
    theirs.locator("#live .kd-analysis").scroll_into_view_if_needed()
    expect(theirs.locator("#live [data-figure=confusion_student] .gtitle")).to_be_visible()
    key = {"run": small_run.id, "owner": view_key(small_run), "view": view_key(small_run)}
    assert "problem" in shared_site().call("runs", "act", {**key, "do": "delete"})
    assert "refused" in shared_site().call("live", "poll", {**key, "view": view_key(small_run)[:-1] + "x"})
    theirs.context.close()


def test_the_link_to_share_is_copied(page, small_run):
    page.goto(f"{site().url}/?run={small_run.id}")
    page.get_by_role("button", name="Copy read-only link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert f"view={view_key(small_run)}" in page.evaluate("navigator.clipboard.readText()")


def test_a_run_gets_a_name_in_the_list_and_as_its_title_and_it_is_text(page):
    run = create_run(DistillConfig(), site().folder, local_owner(site().folder))
    run.append("stopped", message="Stopped.")
    tab(page, "Runs")
    row = page.locator(f"#runs tr[data-run='{run.id}']")
    row.get_by_role("button", name="Rename").click()
    page.get_by_role("textbox", name="Name").fill("<b>coats</b> & hats")
    page.keyboard.press("Enter")
    expect(row.locator("b")).to_have_text("<b>coats</b> & hats")
    row.get_by_role("button", name="Rename").click()
    expect(page.get_by_role("textbox", name="Name")).to_have_value("<b>coats</b> & hats")
    page.get_by_role("textbox", name="Name").fill("other")
    page.get_by_role("button", name="Cancel").click()
    assert run.name() == "<b>coats</b> & hats" and not serious(page)
    row.get_by_role("button", name="Open").click()
    expect(page.locator("#live .kd-title")).to_have_text("<b>coats</b> & hats")
    delete_run(run)


# --- The end


def test_a_zip_of_class_folders_is_brought_used_and_deleted(page, colours, tmp_path):
    name = "<b>pets</b> & co"
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for path in sorted(colours.glob("*/00*.png")):
            file.write(path, f"photos/train/{path.relative_to(colours)}")
        file.writestr("photos/train/notes.txt", "x")
    tab(page, "Pictures")
    page.locator("#data [data-file=archive]").set_input_files(tmp_path / "photos.zip")
    page.get_by_label("Name of the dataset").fill(name)
    page.get_by_role("button", name="Import", exact=True).click()
    found = page.locator("#data .kd-datasets > li")
    expect(found.get_by_role("heading")).to_have_text(name)
    expect(found.locator("details").first).to_have_attribute("open", "")
    expect(found.get_by_role("row", name="red brick")).to_contain_text("10")
    expect(found).to_contain_text("30 pictures, 3 classes")
    assert "notes.txt" in found.text_content() and "is no picture" in found.text_content()
    assert serious(page) == []
    found.get_by_role("button", name="Use").click()
    (upload,) = list_uploads(site().folder)
    expect(page.get_by_label("Dataset", exact=True)).to_have_value(name)
    assert page.locator("#set-preset input:checked").get_attribute("value") == "custom"
    assert upload.info()["skipped"] == 1
    tab(page, "Pictures")
    found.get_by_role("button", name="Delete").click()
    page.locator("#data dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#data .kd-none")).to_be_visible()
    assert list_uploads(site().folder) == []


def test_a_run_is_deleted_when_the_question_is_answered(page):
    tab(page, "Runs")
    run = list_runs(site().folder)[-1]
    row = page.locator(f"#runs tr[data-run='{run.id}']")
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep it").click()
    assert run.path.exists()
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0)
    assert not run.path.exists()
