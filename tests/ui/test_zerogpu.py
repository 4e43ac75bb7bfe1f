"""The page on a ZeroGPU Space, with a stand-in for the package ``spaces`` and the CPU as the GPU."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kd.distill import execute
from kd.errors import UserError
from kd.runs.pieces import WORDS
from kd.runs.queue import LENT, device_slot
from kd.runs.run import Run
from kd.runs.store import list_runs
from kd.runs.summary import summarize
from kd.ui.access import admitted
from kd.ui.distill import poll, stop
from kd.ui.progress import progress_line
from kd.ui.runs import actions, delete
from tests.support.lent import STAND_IN, calls, in_request, prepared, zerogpu
from tests.support.pages import Site, browser, clean_up, until, visit
from tests.support.paths import ROOT
from tests.support.runs import make_run


@pytest.fixture
def space(tmp_path, monkeypatch) -> Path:
    """A ZeroGPU Space, whose runs and device API are in a folder, and a request of a visitor."""
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setenv("KD_ZEROGPU_FOLDER", str(tmp_path))
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    with in_request():
        yield tmp_path
    for worker in zerogpu.spaces.workers:  # the next test's is forked anew
        worker.process.kill()
        worker.process.join()


@pytest.fixture
def waiting(small, space) -> Run:
    """A run that waits for its first piece, but was not prepared: no piece of it can be worked on."""
    run = make_run(small, space)
    run.append("paused", reason="gpu", message=WORDS["gpu"])
    return run


def lend(run: Run, signed_in: bool = False) -> dict:
    """Ask for one piece; the event that ended it."""
    zerogpu.go_on(run, "", signed_in)
    return run.last("paused", "stopped", "failed")


def asking(run: Run) -> tuple[list[dict], threading.Thread]:
    """Ask for a piece in a request of its own; what comes of it, once the thread has ended."""
    answers = []

    def ask() -> None:
        with in_request():
            answers.append(lend(run))

    thread = threading.Thread(target=ask)
    thread.start()
    return answers, thread


def test_a_run_goes_through_pieces_in_requests_to_the_end(small, space, monkeypatch):
    run, started = prepared(small, space, student="resnet_8", epochs=4), []
    monkeypatch.setattr(zerogpu, "start_run", lambda run, **how: started.append(how))
    monkeypatch.setenv("KD_ZEROGPU_LOOKS", "8")
    reasons = []
    while lend(run)["event"] == "paused" and run.last("paused")["reason"] == "time":
        reasons.append("time")
        assert len(reasons) < 40 and not started
    assert run.last("paused")["reason"] == "cpu" and started == [{"resume": True, "behind": True}]
    asked = calls(space)
    assert len(asked) == len(reasons) + 1 == 3 and all(call["in_request"] for call in asked)
    assert [event["device"] for event in run.events() if event["event"] == "queued"] == [LENT] * len(asked)
    execute(run, resume=True)
    assert run.status() == "done" and run.report()["train"]["epochs"] == 4


def test_the_time_that_is_asked_for_depends_on_the_visitor_and_on_what_is_left_to_do(waiting):
    assert list(zerogpu.amounts(waiting, False)) == [80, 40, 20, 15]
    assert list(zerogpu.amounts(waiting, True)) == [200, 100, 50, 25, 15]
    time = waiting.last("created")["time"]

    def write(event: str, after: float, **data) -> None:
        line = json.dumps({"event": event, "time": time + after, **data}) + "\n"
        with (waiting.path / "events.jsonl").open("a") as file:
            file.write(line)

    write("resumed", 10, pid=1, oom_kills=None)
    write("training", 14, epochs=10, steps=1000, step=0, arm="distilled", seed=0, nth=1, of=1)
    write("saved", 15, saving=1.0, evaluating=3.0)
    write("step", 54, step=600, seconds=40.0)
    # 400 steps of 40 / 600 s, 4 s to begin and 4 to save, and a quarter more
    assert zerogpu.expected(waiting) == pytest.approx(1.25 * (400 * 40 / 600 + 8))
    assert next(zerogpu.amounts(waiting, True)) == 44


def test_the_owner_of_a_space_says_how_long_a_gpu_is_lent_and_learns_at_the_start_what_cannot_be_read(
    waiting, monkeypatch
):
    monkeypatch.setenv("KD_ZEROGPU_SECONDS", "30, 60")
    assert (next(zerogpu.amounts(waiting, False)), next(zerogpu.amounts(waiting, True))) == (30, 60)
    for text in ("", "80", "80,x", "0,200"):
        monkeypatch.setenv("KD_ZEROGPU_SECONDS", text)
        with pytest.raises(UserError, match="expected two whole numbers of seconds"):
            zerogpu.prepare()


def test_a_quota_that_is_used_up_pauses_the_run_and_is_no_failure(waiting, space):
    (space / "quota").write_text("9")
    paused = lend(waiting)
    assert [call["seconds"] for call in calls(space)] == [80, 40, 20, 15]  # less might have been left
    assert (paused["event"], paused["reason"]) == ("paused", "quota")
    assert waiting.status() == "paused" and "Resume tomorrow, or sign in" in paused["message"]
    words, _ = progress_line(summarize(waiting), "paused")
    assert words == f"Paused. {paused['message']}"
    assert actions("paused", True)[-1] == "delete"
    assert "sign in" not in lend(waiting, signed_in=True)["message"]
    told = poll({"run": waiting.id})
    assert told["status"] == "paused" and told["asks"] and not told["goes_on"]


def test_a_call_outside_a_request_has_no_quota(small, space):
    run = make_run(small, space)
    run.append("paused", reason="gpu", message="")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(lend(run)))  # which has no request of its own
    thread.start()
    thread.join()
    assert answers[0]["reason"] == "quota" and not any(call["in_request"] for call in calls(space))


@pytest.mark.parametrize(
    ("title", "reason", "asked"),
    [
        ("ZeroGPU queue timeout", "queue", 1),
        ("ZeroGPU client error", "queue", 1),
        ("ZeroGPU pending credits exceeded", "pending", 1),
        ("ZeroGPU illegal duration", "duration", 4),
        ("ZeroGPU worker error", "worker", 1),
    ],
)
def test_a_refusal_is_told_by_its_title(waiting, space, title, reason, asked):
    (space / "refusals").write_text("\n".join([title] * asked))
    assert lend(waiting)["reason"] == reason and len(calls(space)) == asked
    assert not waiting.is_locked()


def test_a_server_of_zerogpu_that_does_not_answer_pauses_the_run_and_is_in_its_log(waiting, monkeypatch):
    def broken(run: Run, seconds: int) -> None:
        raise RuntimeError("ZeroGPU API /schedule error: 500")

    monkeypatch.setattr(zerogpu, "chunk", broken)
    assert lend(waiting)["reason"] == "queue"
    assert "/schedule error: 500" in (waiting.path / "stderr.txt").read_text()


def test_a_piece_that_fails_says_so_in_words_and_in_the_log(waiting, colours):
    settings = json.loads((waiting.path / "config.json").read_text())
    settings["config"]["dataset"] = str(colours / "nowhere")
    (waiting.path / "config.json").write_text(json.dumps(settings))
    assert lend(waiting)["event"] == "failed" and waiting.status() == "failed"
    assert "Traceback" in (waiting.path / "stderr.txt").read_text()


def test_a_piece_that_was_killed_goes_on_from_the_last_checkpoint(small, space, monkeypatch):
    run = prepared(small, space, student="resnet_8", epochs=400)
    with monkeypatch.context() as patch:
        patch.setenv("KD_ZEROGPU_SECONDS", "1,1")
        patch.setattr("kd.runs.pieces.CLOSING_SECONDS", -1000.0)  # it does not see the end come
        assert lend(run)["reason"] == "worker"  # as ZeroGPU does, when the time is over
    answers, thread = asking(run)
    until(lambda: list(run.path.glob("checkpoints/*/checkpoint-6/trainer_state.json")) or answers, 120)
    (worker,) = zerogpu.spaces.workers
    worker.process.kill()
    thread.join(60)
    assert answers[0]["reason"] == "worker" and not run.is_locked()
    monkeypatch.setenv("KD_ZEROGPU_LOOKS", "3")
    assert lend(run)["reason"] == "time" and run.last("training")["step"] >= 6


def test_a_visitor_stops_a_run_in_the_middle_of_a_piece_and_may_resume_or_delete_it(small, space, monkeypatch):
    run = prepared(small, space, student="resnet_8", epochs=400)
    answers, thread = asking(run)
    until(lambda: run.last("eval") or answers, 120)
    assert run.status() == "running" and run.is_locked()
    with pytest.raises(UserError, match="is running"):
        delete(run.id, "")
    stop(run.id, "")
    thread.join(60)
    assert answers[0]["event"] == "stopped" and (run.path / "student" / "config.json").exists()
    zerogpu.go_on(run, "", False)  # it is not paused: nobody asks for a GPU
    assert len(calls(space)) == 1
    delete(run.id, "")
    assert not run.path.exists()


def test_of_two_pages_of_a_visitor_one_asks_and_others_may_start_runs_meanwhile(waiting, space, monkeypatch):
    monkeypatch.setenv("KD_SHARED", "1")
    begun, end = threading.Event(), threading.Event()

    def chunk(run: Run, seconds: int) -> None:
        begun.set()
        end.wait(60)
        run.append("paused", reason="time", message="")

    monkeypatch.setattr(zerogpu, "chunk", chunk)
    first = threading.Thread(target=lend, args=(waiting,))
    first.start()
    begun.wait(60)
    assert waiting.status() == "queued"
    lend(waiting)  # at once
    with admitted("0" * 32):
        pass
    end.set()
    first.join(60)
    assert [event["event"] for event in waiting.events()].count("queued") == 1


def test_a_page_that_was_closed_while_its_run_waited_asks_for_no_gpu(waiting, space, monkeypatch):
    monkeypatch.setattr(zerogpu, "is_page_open", lambda: False)
    assert lend(waiting)["reason"] == "closed" and not calls(space)


def test_the_slot_is_taken_before_the_gpu_is_asked_for(waiting, small, space):
    other = make_run(small, space)
    with other.work(), device_slot(other, LENT):
        other.append("resumed", pid=1, oom_kills=None)
        thread = threading.Thread(target=lend, args=(waiting,))
        thread.start()
        queued = until(lambda: waiting.last("queued"))
        assert queued["device"] == LENT and waiting.status() == "queued" and not calls(space)
        assert "Waiting for the GPU" in progress_line(summarize(waiting), "queued")[0]
        waiting.ask_to_stop()
        thread.join(60)
    assert waiting.status() == "stopped" and not calls(space)


# --- In a browser


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    """A server as on a ZeroGPU Space, where a GPU is lent for ten steps."""
    folder, runs = tmp_path_factory.mktemp("zerogpu"), tmp_path_factory.mktemp("runs")
    made = Site(
        runs, PYTHONPATH=f"{ROOT}:{STAND_IN}", SPACES_ZERO_GPU="true", KD_ZEROGPU_FOLDER=str(folder),
        KD_ZEROGPU_LOOKS="10", OMP_NUM_THREADS="1",
    )  # fmt: skip
    made.api = folder
    made.start()
    yield made
    made.stop()
    clean_up(runs)


def distil(page, settings: dict, **changes) -> None:
    """Fill in the settings and click Distill."""
    page.locator("#set-preset").get_by_text("Custom").click()
    page.locator("#models").get_by_role("button").first.click()
    values = {**settings, **changes}
    for name in ("teacher", "dataset", "student", "epochs"):
        box = page.get_by_label(name.capitalize(), exact=True).first
        box.fill(str(values[name]))
        box.press("Enter")
    page.locator("#distill").click()
    page.locator("#live .kd-run:not([data-example]) .kd-title").filter(has_text=values["student"]).wait_for()


def status(page) -> str | None:
    run = page.locator("#live .kd-run")
    return None if run.get_attribute("data-example") is not None else run.get_attribute("data-status")


@pytest.mark.slow
def test_a_click_on_distill_goes_through_several_pieces_to_the_end(site, small):
    page = visit(site.url)
    assert "Closing the page pauses the run" in page.locator("#lent-gpu").inner_text()
    distil(page, small, student="resnet_8", epochs=4)
    until(lambda: status(page) == "done", 600)
    (run,) = list_runs(site.folder)
    reasons = [event["reason"] for event in run.events() if event["event"] == "paused"]
    assert reasons[0] == "gpu" and reasons[-1] == "cpu" and "time" in reasons and set(reasons) <= {"gpu", "time", "cpu"}
    assert len(calls(site.api)) == len(reasons) - 1
    assert all(call["in_request"] and not call["refused"] for call in calls(site.api))
    page.context.close()


@pytest.mark.slow
def test_a_closed_page_pauses_its_run_and_the_next_one_resumes_it_at_a_click(site, small):
    page = visit(site.url)
    distil(page, small, student="resnet_8", epochs=40)
    run, before = list_runs(site.folder)[0], len(calls(site.api))
    until(lambda: len(calls(site.api)) > before, 600)
    context = browser().new_context(viewport={"width": 1280, "height": 900})
    page.context.close()
    until(lambda: run.status() == "paused" and run.last("paused")["reason"] == "time", 120)
    asked = len(calls(site.api))
    page = visit(f"{site.url}/?run={run.id}", context=context)
    resume = page.get_by_role("button", name="Resume")
    resume.wait_for()
    assert status(page) == "paused" and len(calls(site.api)) == asked  # opening a page spends nothing
    second = visit(f"{site.url}/?run={run.id}", context=context)
    (site.api / "refusals").write_text("ZeroGPU quota exceeded\n" * 4)
    resume.click()
    page.get_by_text("Resume tomorrow, or sign in").wait_for()
    (site.api / "refusals").unlink()
    resume.click()
    until(lambda: run.status() == "running", 120)
    page.get_by_role("button", name="Stop").first.click()
    until(lambda: run.status() == "stopped", 120)
    until(lambda: status(second) in ("paused", "stopped"))
    context.close()


def test_elsewhere_nothing_of_it_is_imported_nor_torch(tmp_path):
    source = "import sys, kd.ui.page as p; p.build(); print([m for m in ('spaces', 'kd.ui.zerogpu', 'torch') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{STAND_IN}", "KD_RUNS_DIR": str(tmp_path)}
    made = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=300)
    assert made.stdout.splitlines()[-1:] == ["[]"], made.stderr
