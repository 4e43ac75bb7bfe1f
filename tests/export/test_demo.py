"""demo.html in real Chromium, from a server of static files: the student in it answers as it does in PyTorch."""

import base64
import re

import numpy as np
import onnx
import pytest
import torch
from playwright.sync_api import expect

from kd.config import DistillConfig
from kd.data.images import file_bytes, open_row
from kd.data.splits import load_splits
from kd.devtools.sample import CLASSES as SAMPLE_CLASSES
from kd.export.demo import LEFT_OUT, write_demo
from kd.export.graph import read_preprocessing, self_contained
from kd.export.onnx import export_model
from kd.models.processor import read_normalization, run_processor
from kd.models.teacher import load_teacher
from kd.system.browser_runtime import HOW_TO_GET_IT, SCRIPT, WASM, browser_runtime
from tests.support import toys
from tests.support.in_browser import needs_runtime, odd_pictures, pixels_of, served, with_camera
from tests.support.pages import serious

NAMES = ["blue </script><b>sky", "green & leaf", toys.EVIL]


def export(folder, model, processor, classes):
    """Write ``student.onnx`` of any classifier."""
    export_model(model, read_normalization(processor).size, folder / "bare.onnx")
    made = self_contained(onnx.load(folder / "bare.onnx"), read_preprocessing(processor), classes)
    onnx.save(made, folder / "student.onnx")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """An export of a toy, whose classes have names that must stay text."""
    folder = tmp_path_factory.mktemp("export")
    export(folder, toys.tiny_resnet(NAMES), toys.processor(), NAMES)
    if browser_runtime():
        assert write_demo(folder, browser_runtime(), "Coats & <hats>", "88.2% of 2,000 test pictures are right.")
    with served(folder) as address:
        yield folder, address


@pytest.fixture
def page(demo):
    context = with_camera().new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{demo[1]}/demo.html")
    expect(page.locator(".state")).to_have_text(re.compile(r"^ONNX Runtime Web [\d.]+, one thread\.$"))
    yield page
    context.close()


def test_without_the_engine_it_is_left_out_and_the_words_say_how_to_get_it(demo, tmp_path):
    (tmp_path / "student.onnx").write_bytes((demo[0] / "student.onnx").read_bytes())
    assert write_demo(tmp_path, None) is False
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]
    assert HOW_TO_GET_IT in LEFT_OUT


@needs_runtime
def test_it_has_the_engine_beside_it_with_its_licence_and_needs_no_other_address(page, demo):
    assert sorted(path.name for path in (demo[0] / "runtime").iterdir()) == sorted([SCRIPT, WASM, "LICENSE.txt"])
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    expect(page.locator(".state")).to_contain_text("one thread")
    assert asked and all(url.startswith((demo[1], "data:", "blob:")) for url in asked)


@needs_runtime
def test_names_and_title_are_text(page):
    expect(page.get_by_role("heading")).to_have_text("Coats & <hats>")
    expect(page.locator("main")).to_contain_text("88.2% of 2,000 test pictures are right.")
    page.get_by_text("3 classes").click()
    expect(page.get_by_text(", ".join(NAMES))).to_be_visible()


@needs_runtime
def test_a_picture_gets_the_student_s_answer(page, demo, tmp_path):
    path = next(path for path in odd_pictures(tmp_path) if path.name == "sideways.jpg")
    page.locator("input[type=file]").set_input_files(path)
    expect(page.locator(".state")).to_contain_text("It takes")
    found = {
        item.locator("span").nth(0).inner_text(): float(item.locator("span").nth(1).inner_text().removesuffix("%"))
        for item in page.locator(".answer li").all()
    }
    model = toys.tiny_resnet(NAMES).eval()
    with torch.inference_mode():
        logits = model(run_processor(toys.processor(), [pixels_of(path)])).logits[0]
    expected = dict(zip(NAMES, (100 * logits.softmax(-1)).tolist(), strict=True))
    assert found == pytest.approx(expected, abs=0.15)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert not serious(page)


@needs_runtime
def test_a_file_that_is_no_picture_is_said_in_words(page, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    page.locator("input[type=file]").set_input_files(tmp_path / "notes.png")
    expect(page.locator(".state")).to_contain_text("cannot read this kind of picture")


@needs_runtime
def test_the_camera_is_asked_for_and_stopped(page):
    page.get_by_role("button", name="Use the camera").click()
    expect(page.locator(".state")).to_contain_text("The camera was refused")
    page.context.grant_permissions(["camera"])
    page.get_by_role("button", name="Use the camera").click()
    expect(page.locator(".rate")).to_contain_text("frames a second")
    expect(page.locator(".answer li")).to_have_count(3)
    assert not serious(page)
    page.get_by_role("button", name="Stop the camera").click()
    expect(page.locator("video")).to_be_hidden()
    assert page.evaluate("document.querySelector('video').srcObject") is None


@needs_runtime
def test_opened_from_the_disk_it_says_that_it_needs_a_server(demo):
    context = with_camera().new_context()
    page = context.new_page()
    page.goto(f"file://{demo[0]}/demo.html")
    expect(page.locator(".state")).to_contain_text("python -m http.server")
    context.close()


# How many pictures travel to the browser at once
FEW = 100

ASK = """async ({ texts, classes, engine }) => {
    window.sampleStudent ??= await studentInBrowser.open(engine, new Uint8Array(await (await fetch("student.onnx")).arrayBuffer()), classes);
    const answers = [];
    for (const text of texts) {
        const picture = await studentInBrowser.decode(await (await fetch(`data:;base64,${text}`)).blob());
        answers.push(Array.from(await window.sampleStudent.ask(picture)));
    }
    return answers;
}"""


@needs_runtime
@pytest.mark.parametrize("count", [3, pytest.param(2000, marks=pytest.mark.slow)])
def test_in_the_browser_the_sample_s_test_pictures_get_pytorch_s_answers(tmp_path, count):
    teacher, test = load_teacher("sample", SAMPLE_CLASSES), load_splits(DistillConfig.preset("sample")).test
    export(tmp_path, teacher.model, teacher.processor, SAMPLE_CLASSES)
    write_demo(tmp_path, browser_runtime())
    engine = {"script": f"runtime/{SCRIPT}", "wasm": f"runtime/{WASM}"}
    rows = test.select(range(count))
    found = []
    with served(tmp_path) as address:
        page = with_camera().new_page()
        page.goto(f"{address}/demo.html")
        for start in range(0, count, FEW):
            few = rows.select(range(start, min(start + FEW, count)))
            texts = [base64.b64encode(file_bytes(row)).decode() for row in few]
            found += page.evaluate(ASK, {"texts": texts, "classes": SAMPLE_CLASSES, "engine": engine})
        page.close()
    with torch.inference_mode():
        expected = [
            teacher(run_processor(teacher.processor, [open_row(row)])).logits[0].softmax(-1).numpy() for row in rows
        ]
    assert np.abs(np.array(found) - np.stack(expected)).max() < 1e-4
