"""The first screen in a real browser: what is on it, that nothing covers anything, and that it moves as the sliders do."""

import pytest
from playwright.sync_api import expect

from kd.runs.run import CLOSED
from kd.runs.store import list_runs
from tests.support.pages import leave, serious, site, taken_device, until, visit

# All that is before "More"
CONTROLS = (
    "#set-preset", "#models > button", "#set-temperature", "#set-lambda", "#set-labels", "#set-epochs", "#set-minutes",
    "#distill",
)  # fmt: skip

# Whether the middle of an element can be clicked: nothing else lies over it.
UNCOVERED = """element => {
    element.scrollIntoView({block: 'nearest'});
    const box = element.getBoundingClientRect();
    return element.contains(document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2));
}"""


@pytest.fixture
def page():
    """A page that a new visitor has just opened."""
    opened = visit(f"{site().url}/?__theme=light")
    expect(opened.locator("#live [data-example]")).to_be_visible()
    expect(opened.locator("#dark .kd-bars li").first).to_be_visible()
    yield opened
    leave(opened)


def test_at_1366_x_768_all_is_visible_without_scrolling_and_there_are_eight_controls(page):
    page.set_viewport_size({"width": 1366, "height": 768})
    expect(page.locator("#expected p")).not_to_be_empty()
    for element in (*CONTROLS, "#dark", "#expected", "#live .kd-sentence"):
        box = page.locator(element).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 768, element
    shown = page.locator(
        "#settings :is(fieldset, button, input:not([type=radio]):not([type=number]), textarea):visible, "
        "#settings #set-epochs input:visible"
    )
    before_more = page.locator("#more > button").bounding_box()["y"]
    boxes = [one.bounding_box()["y"] for one in shown.all()]
    assert sum(y < before_more for y in boxes) == len(CONTROLS)


def test_nothing_covers_anything_and_nothing_is_wider_than_the_screen(page):
    for width, height in ((1366, 768), (1920, 1080), (390, 844), (844, 390)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(300)
        for element in (*CONTROLS, "#more > button"):
            assert page.locator(element).evaluate(UNCOVERED), (width, element)
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_bars_move_with_the_sliders_and_the_server_is_not_asked(page):
    bars, asked = page.locator("#dark .kd-bars"), []
    page.wait_for_timeout(500)
    page.on("request", lambda request: asked.append(request.post_data or ""))
    before = bars.inner_text()
    page.locator("#set-temperature input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    until(lambda: bars.inner_text() != before)
    softer = bars.inner_text()
    page.locator("#set-lambda input[type=range]").focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    until(lambda: bars.inner_text() != softer)
    expect(page.locator("#dark .kd-key")).to_be_visible()
    label = page.locator("#dark .kd-bars li").first.locator(".kd-of-label")
    expect(label).to_have_attribute("style", "width: 20%;")
    page.locator("#set-labels input").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#set-labels output")).to_have_text("5,000")
    expect(page.locator("#dark .kd-explanation")).to_contain_text(
        "Pictures without a label are learned from the teacher alone"
    )
    assert not [body for body in asked if "teacher_says" in body or "fn_index" in body]


def test_a_preset_moves_the_sliders_and_the_line(page):
    page.locator("#set-labels input").fill("0")
    expect(page.locator("#set-labels output")).to_have_text("50")
    page.get_by_role("radio", name="Beans").click()
    expect(page.locator("#models > button")).to_contain_text(
        "merve/beans-vit-224 → mobilenet_v2_1.0 on AI-Lab-Makerere/beans"
    )
    expect(page.locator("#set-labels output")).to_have_text("all")
    expect(page.locator("#set-temperature input[type=number]")).to_have_value("5")
    expect(page.locator("#dark .kd-asking")).to_contain_text("Upload a picture like those of your dataset")


def test_a_file_that_is_dropped_is_taken_and_one_beside_the_field_does_not_leave_the_page(page):
    page.get_by_role("tab", name="Pictures").click()
    drop = """(element, names) => {
        const files = new DataTransfer();
        for (const name of names) files.items.add(new File([new Uint8Array(1.5e6)], name));
        return element.dispatchEvent(new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true }));
    }"""
    assert page.locator("#data .kd-datasets").evaluate(drop, ["lost.zip"]) is False  # the browser does nothing itself
    page.locator("#data .kd-drop").first.evaluate(drop, ["pets.zip", "second.zip"])
    expect(page.locator("#data .kd-dropped").first).to_have_text("pets.zip, 1.5 MB")
    page.get_by_label("Pictures in named classes").check()
    page.locator("#data .kd-classes .kd-drop").first.evaluate(drop, ["a.png", "b.png"])
    expect(page.locator("#data .kd-count").first).to_have_text("2 pictures")
    assert not serious(page)


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_the_first_screen_and_the_empty_tabs_have_nothing_serious_for_axe(theme):
    opened = visit(f"{site().url}/?__theme={theme}")
    expect(opened.locator("#dark .kd-bars li").first).to_be_visible()
    for name in ("Distill", "Pictures", "Sweep", "Compare", "Runs"):
        opened.get_by_role("tab", name=name).click()
        opened.wait_for_timeout(500)
        assert not serious(opened), name
    leave(opened)


# --- The click


@pytest.fixture
def waiting():
    """Runs that are started wait for the CPU: what they train is tried elsewhere."""
    with taken_device(site().folder):
        yield


def test_distill_replaces_the_example_with_a_run_of_what_the_sliders_say(waiting, page):
    page.locator("#set-labels input").fill("3")
    page.locator("#set-temperature input[type=range]").fill("3.5")
    page.get_by_role("button", name="Distill", exact=True).click()
    expect(page.locator("#live .kd-example")).to_be_hidden()
    expect(page.locator("#live .kd-detail")).to_contain_text("T 3.5, lambda 1, 500 labels")
    expect(page.locator("#live .kd-sentence")).to_have_count(0)
    run = list_runs(site().folder)[0]
    assert (run.config().labels, run.config().temperature) == (500, 3.5)
    run.ask_to_stop()
    until(lambda: run.status() in CLOSED)


def test_prove_it_starts_the_same_with_three_seeds_and_shows_that_run(waiting, page):
    page.get_by_role("button", name="Prove it: 3 seeds, about").click()
    expect(page.locator("#live .kd-detail")).to_contain_text("3 seeds, with a baseline")
    run = list_runs(site().folder)[0]
    assert f"run={run.id}" in page.url and run.config().trials == 3
    run.ask_to_stop()
    until(lambda: run.status() in CLOSED)
