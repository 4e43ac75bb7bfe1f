"""The Sweep tab and the minutes before the click: words by hand, then the real page. A sweep that is written by hand is
looked at while the default's time is measured; a real one on toys is begun, stopped, and its cell opened."""

import json
import re
import sys

import pytest
from playwright.sync_api import expect

from kd.config import DistillConfig
from kd.data.library.store import Upload, datasets_folder
from kd.errors import UserError
from kd.experiments.grid import Grid, Point
from kd.experiments.halving import ranking, rungs
from kd.experiments.sweep import Sweep, create_sweep, list_sweeps, settings_of
from kd.runs.run import CLOSED
from kd.runs.store import create_run, list_runs, local_owner
from kd.system.cache import Cache
from kd.system.ids import owner_hash
from kd.ui import access, settings, sweep, time_estimate
from kd.ui.progress import roughly
from tests.support.pages import leave, serious, site, something_trains, until, visit

SAMPLE = DistillConfig.preset("sample")

TOKEN = "ab" * 16


def values_of(config: DistillConfig) -> list:
    """The widgets' values of these settings."""
    return [settings.to_widget(name, value) for name, value in config.to_dict().items()]


def measured(one: Sweep, point: Point, epochs: int, accuracy: float | None, seconds: float = 1.0) -> None:
    """A training that has ended, its run with it."""
    run = one.make_run(settings_of(one.config(), point, epochs))
    run.append("failed" if accuracy is None else "done", message="Training diverged")
    one.append(
        "point", **point.to_dict(), epochs=epochs, run=run.id, accuracy=accuracy,
        agreement=accuracy, diverged=accuracy is None, seconds=seconds,
    )  # fmt: skip


def by_hand(folder, owner: str, sentence: str = "Winner: one. Distillation helps.") -> Sweep:
    """A sweep of 5 points and two methods that is done."""
    one = create_sweep(SAMPLE, Grid("1,4", "0,0.5", "kd,dist"), folder, owner)
    points = one.grid().points()
    one.append("started", pid=1)
    one.append("plan", epochs=4, rungs=rungs(5, 4))
    for place, point in enumerate(points):
        measured(one, point, 1, None if place == 4 else 0.5 + place / 10)
    for point, epochs in ((points[3], 2), (points[2], 2), (points[1], 2), (points[3], 4), (points[2], 4)):
        measured(one, point, epochs, 0.9 if point == points[3] else 0.85)
    rows = one.points()
    best = ranking(rows)[0]
    verdict = {"answer": "helps", "sentence": sentence}
    report = {"sweep": one.id, "points": rows, "winner": best, "final": best["run"], "verdict": verdict, "sentence": sentence}  # fmt: skip
    (one.path / "report.json").write_text(json.dumps(report))
    one.close("done", winner=best, final=best["run"], sentence=sentence)
    return one


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    return tmp_path


# --- The minutes, by hand


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (7.4, "7 s"), (43, "45 s"), (60, "1 min"), (77, "1 min 20 s"), (754, "13 min"), (7500, "2 h 5 min")],
)
def test_a_guessed_time_has_no_digits_that_claim_more(seconds, words):
    assert roughly(seconds) == words


def test_the_line_names_targets_training_and_the_rest():
    found = {"seconds": 76.7, "stages": {"targets": 16.0, "training": 42.9, "test": 17.8}, "epochs": 4}
    assert time_estimate.in_words(found, SAMPLE) == "About 1 min 20 s here: targets 15 s, training 45 s, the rest 20 s"
    found["stages"]["targets"] = 0.0
    minutes = DistillConfig.from_dict({**SAMPLE.to_dict(), "minutes": 1})
    assert time_estimate.in_words(found, minutes).startswith("About 1 min 20 s here, 4 epochs: training 45 s, the rest")


@pytest.mark.skipif(sys.platform == "win32", reason="it is a shell's script")
def test_an_error_has_the_commands_own_words(folder, tmp_path, monkeypatch):
    program = tmp_path / "program"  # in the place of Python
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(time_estimate, "_kept", Cache(lambda: 8))
    for script, words in (
        (
            """echo Warning; echo '{"problem": "There is no teacher.", "kind": "", "setting": "teacher"}'""",
            "There is no teacher.",
        ),
        ("echo Traceback >&2; echo MemoryError >&2", "No time could be measured: MemoryError"),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        one = time_estimate.Measurement("key", "me", time_estimate.begin(SAMPLE))
        time_estimate._finish(one)
        assert str(time_estimate._kept.find("key")) == words


def test_what_is_measured_holds_whatever_the_seed_and_the_epochs_until_the_next_run(folder):
    def key(**changes):
        return time_estimate.key_of(DistillConfig.from_dict({**SAMPLE.to_dict(), **changes}))

    assert key() == key(seed=3, temperature=9) == key(epochs=90) != key(batch_size=3)
    assert key(epochs=1) != key(), "fewer views have fewer targets"
    assert key(start_size=16) != key(start_size=16, epochs=90), "how fast the input grows follows the epochs"
    before = key()
    create_run(SAMPLE, folder, "t")
    assert key() != before


def test_one_is_measured_at_a_time_none_while_a_run_trains_and_a_new_wish_replaces_ones_own(folder, monkeypatch):
    begun = []

    begin = time_estimate.begin
    monkeypatch.setattr("kd.ui.time_estimate.begin", lambda config: begun.append(begin(config)) or begun[-1])
    program = folder / "program"  # in the place of Python
    program.write_text("#!/bin/sh\nsleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    def ask(asker, **changes):
        config = DistillConfig.from_dict({**SAMPLE.to_dict(), **changes})
        return time_estimate.expected({"values": values_of(config), "asker": asker})

    assert "Measuring" in ask("me")["wait"] and "Measuring" in ask("you")["wait"] and len(begun) == 1
    assert ask("you", batch_size=3)["wait"] == time_estimate.OTHERS and len(begun) == 1
    assert "Measuring" in ask("me", batch_size=5)["wait"]
    assert begun[0].process.wait(5) != 0 and len(begun) == 2
    create_run(SAMPLE, folder, "t")
    assert ask("me", batch_size=5)["wait"] == time_estimate.TRAINS
    assert begun[1].process.wait(5) != 0 and len(begun) == 2


def test_the_time_of_other_epochs_is_reckoned_from_what_was_measured(folder, monkeypatch):
    monkeypatch.setattr("kd.ui.time_estimate.begin", lambda config: pytest.fail("it was measured again"))
    stages = {"start": 5.0, "pictures": 3.0, "teacher": 2.0, "targets": 8.0, "training": 40.0, "test": 12.0}
    found = {"seconds": 70.0, "epochs": SAMPLE.epochs, "stages": stages}
    monkeypatch.setattr(time_estimate, "_kept", Cache(lambda: 8))
    time_estimate._kept.put(time_estimate.key_of(SAMPLE), found)
    for times, seconds in ((1, 70.0), (10, 430.0)):
        config = DistillConfig.from_dict({**SAMPLE.to_dict(), "epochs": times * SAMPLE.epochs})
        said = time_estimate.expected({"values": values_of(config)})
        assert said["seconds"] == seconds == time_estimate.known(config)["expected"]
        assert f"training {roughly(seconds - 30)}" in said["line"]
    assert time_estimate.estimated(config)["epochs"] == 10 * SAMPLE.epochs and found["epochs"] == SAMPLE.epochs


def test_what_is_no_setting_and_a_path_on_a_shared_server_are_refused_without_a_measurement(folder, monkeypatch):
    monkeypatch.setattr("kd.ui.time_estimate.begin", lambda config: pytest.fail("it was measured"))
    broken = values_of(SAMPLE)
    broken[list(settings.FIELDS).index("epochs")] = 0
    assert "epochs is 0" in time_estimate.expected({"values": broken})["problem"]
    assert "problem" in time_estimate.expected({"values": 3}) and "problem" in time_estimate.expected({})
    monkeypatch.setenv("KD_SHARED", "1")
    path = values_of(DistillConfig.from_dict({**SAMPLE.to_dict(), "teacher": "/etc"}))
    assert "a path" in time_estimate.expected({"values": path})["problem"]


def test_on_a_shared_server_the_time_is_measured_of_a_visitors_own_pictures_and_teacher_and_of_no_others(
    folder, monkeypatch
):
    monkeypatch.setenv("KD_SHARED", "1")
    run = create_run(SAMPLE, folder, TOKEN)
    (run.path / "student").mkdir()
    (run.path / "student" / "config.json").touch()
    run.close("done")
    upload = Upload(datasets_folder(folder) / run.id)
    upload.path.mkdir(parents=True)
    (upload.path / "dataset.json").write_text(json.dumps({"owner": owner_hash(TOKEN)}))
    begun = []

    def begin(config):
        begun.append((config.dataset, config.teacher))
        raise UserError("begun")

    monkeypatch.setattr("kd.ui.time_estimate.begin", begin)
    config = DistillConfig.from_dict({**SAMPLE.to_dict(), "dataset": f"upload:{upload.id}", "teacher": f"run:{run.id}"})
    assert time_estimate.expected({"values": values_of(config), "owner": TOKEN}) == {"problem": "begun"}
    assert begun == [(str(upload.path), str(run.path / "student"))]
    for stranger in ("", "0" * 32, None, {}):
        for changes in ({"teacher": "sample"}, {"dataset": "sample"}):
            values = values_of(DistillConfig.from_dict({**config.to_dict(), **changes}))
            assert "among yours" in time_estimate.expected({"values": values, "owner": stranger})["problem"]
    assert len(begun) == 1


# --- The tab, by hand


def test_the_plan_is_said_before_the_click_and_bad_lists_are_told(monkeypatch):
    def preview(*grid, **changes):
        config = DistillConfig.from_dict({**SAMPLE.to_dict(), "epochs": 4, **changes})
        return sweep.preview({"values": [*grid, *values_of(config)]})

    found = preview("1,2,5,10", "0,0.25,0.5,0.75,1", ["kd"], "", 3)
    assert found["plan"] == (
        "17 points, each for 1 epoch, then the best 9 for 2, then the best 5 for 4; last the winner with 3 fresh seeds, "
        "with the teacher and without."
    )
    assert f"sample teaches {SAMPLE.student} on sample" in found["rest"]
    assert "20 minutes set the epochs" in preview("1", "0.5", ["kd"], "20", 1)["plan"]
    assert "temperatures is '1,x'" in preview("1,x", "0", ["kd"], "", 1)["problem"]
    assert "methods is ''" in preview("1", "0.5", [], "", 1)["problem"]
    assert "trials is 0" in preview("1", "0.5", ["kd"], "", 0)["problem"]
    assert "The teacher is none" in preview("1", "0.5", ["kd"], "", 1, teacher="none", baseline="no")["problem"]
    assert "problem" in sweep.preview({"values": 1}) and "problem" in sweep.preview({})
    monkeypatch.setenv("KD_SHARED", "1")
    path = values_of(DistillConfig.from_dict({**SAMPLE.to_dict(), "dataset": "/etc"}))
    assert "a path" in sweep.preview({"values": ["1", "0.5", ["kd"], "", 1, *path]})["problem"]


def test_the_plan_has_its_minutes_once_a_run_with_these_settings_is_measured(folder, monkeypatch):
    config = DistillConfig.from_dict({**SAMPLE.to_dict(), "epochs": 4, "baseline": "no"})
    found = {
        "seconds": 70.0,
        "epochs": 4,
        "stages": {"start": 5.0, "pictures": 3.0, "teacher": 2.0, "targets": 8.0, "training": 40.0, "test": 12.0},
    }
    values = ["1,2", "0.5", ["kd"], "", 3, *values_of(config)]
    assert "here" not in sweep.preview({"values": values})["plan"]
    monkeypatch.setattr(time_estimate, "_kept", Cache(lambda: 8))
    time_estimate._kept.put(time_estimate.key_of(config), found)
    # 2 trainings of 2 epochs, 1 of 4, 2 x 3 of 4; 3 runs and the pairs'; pictures, teacher and 2 views once
    seconds = (2 * 2 + 4 + 2 * 3 * 4) * 10.0 + 4 * 17.0 + 3.0 + 2.0 + 2 * 4.0
    assert sweep.preview({"values": values})["plan"].endswith(f"without. About {roughly(seconds)} here.")


def test_a_poll_brings_the_cells_that_changed_and_nothing_else(folder):
    one = create_sweep(SAMPLE, Grid("1,4", "0,0.5"), folder, "t")
    labels, warm, _ = one.grid().points()
    assert "each for" in sweep.poll({"sweep": one.id})["plan"]  # before its process has planned
    with one.work():
        one.append("started", pid=1)
        one.append("plan", epochs=2, rungs=rungs(3, 2))
        measured(one, labels, 1, 0.5, seconds=4)
        run = one.make_run(settings_of(one.config(), warm, 1))
        first = sweep.poll({"sweep": one.id})
        assert first["maps"].count("data-point") == 3 and 'colspan="2"' in first["maps"]
        words = {nth: (cell["text"], cell["small"], cell["is"]) for nth, cell in first["cells"].items()}
        assert words == {"0": ("50.0%", ["1 epoch"], ""), "1": ("training", [], "now"), "2": ("waits", [], "")}
        assert first["cells"]["1"]["run"] == run.id and first["line"][0] == "Training 2 of 5: kd, T 1, lambda 0.5"
        again = sweep.poll({"sweep": one.id, "cursor": first["cursor"]})
        assert set(again) == {"status", "line", "share", "cursor"}
        one.append(
            "point", **warm.to_dict(), epochs=1, run=run.id, accuracy=0.6, agreement=1, diverged=False, seconds=4
        )
        assert list(sweep.poll({"sweep": one.id, "cursor": first["cursor"]})["cells"]) == ["1"]
        one.close("stopped", message="Stopped.")
    assert sweep.poll({"sweep": one.id})["line"] == ["Stopped. Resume goes on where it was.", ""]


def test_the_time_that_is_left_follows_the_trainings_so_far(folder):
    one = create_sweep(SAMPLE, Grid("1,4", "0,0.5"), folder, "t")  # one trial: a pair in the end
    labels, warm, _ = one.grid().points()
    one.append("plan", epochs=2, rungs=rungs(3, 2))  # 3 of 1 epoch, 2 of 2
    measured(one, labels, 1, 0.5, seconds=4)
    assert sweep.left_seconds(one, one.events(), 0) is None
    measured(one, warm, 1, 0.6, seconds=4)
    events = one.events()
    begun = {event["run"]: event["time"] for event in events if event["event"] == "run"}
    events = [{**e, "time": begun[e["run"]] + 9} if e["event"] == "point" else e for e in events]  # 5 s besides
    last = events[-1]["time"]
    # 1 + 2 x 2 + the pair's 2 x 2 epochs of 4 s, 3 trainings and the pair with 5 s each
    assert sweep.left_seconds(one, events, last) == pytest.approx(9 * 4 + 4 * 5, abs=0.1)
    assert sweep.left_seconds(one, events, last + 6) == pytest.approx(50, abs=0.1)


def test_a_failed_sweep_says_why_and_offers_its_button_not_the_command(folder):
    one = create_sweep(SAMPLE, Grid("1", "0.5"), folder, "t")
    one.close("failed", message=f"Run 1 failed: no space. {one.goes_on}")
    assert sweep.poll({"sweep": one.id})["line"][0] == "Run 1 failed: no space. Resume goes on with the sweep."


def test_words_from_outside_are_text(folder):
    one = by_hand(folder, "t", "<img src=x onerror=alert(1)>")
    assert "<img" not in sweep.poll({"sweep": one.id})["result"]


def test_a_sweep_is_deleted_when_it_is_over_and_its_runs_stay(folder):
    one = create_sweep(SAMPLE, Grid("1", "0.5"), folder, "t")
    one.append("plan", epochs=1, rungs=[(1, 1)])
    measured(one, one.grid().points()[0], 1, 0.5)
    assert "is queued. Stop it first" in sweep.delete_it({"sweep": one.id})["problem"]  # its process is about to begin
    with one.work():
        one.append("started", pid=1)
        assert "is running. Stop it first" in sweep.delete_it({"sweep": one.id})["problem"]
        one.close("stopped", message="Stopped.")
    assert sweep.poll({"sweep": one.id})["stay"] == "1 run that it has made stays in Runs."
    assert sweep.delete_it({"sweep": one.id}) == {} and not one.path.exists()
    assert len(list_runs(folder)) == 1 and "There is no sweep" in sweep.delete_it({"sweep": one.id})["problem"]


def test_on_a_shared_server_a_sweep_is_its_owners_and_counts_as_one_run(folder, monkeypatch):
    monkeypatch.setenv("KD_SHARED", "1")
    monkeypatch.setenv("KD_OPEN_RUNS", "2")
    one = create_sweep(SAMPLE, Grid("1", "0.5"), folder, TOKEN)
    one.make_run(settings_of(one.config(), one.grid().points()[0], 1))
    with access.admitted(TOKEN):  # the sweep and its run are one
        pass
    create_run(SAMPLE, folder, TOKEN)
    with pytest.raises(UserError, match="You have 2 runs"):
        sweep.start(SAMPLE, Grid("1", "0.5"), TOKEN)
    for stranger in ("", "0" * 32, None, {}):
        asked = {"sweep": one.id, "owner": stranger}
        assert "among yours" in sweep.poll(asked)["refused"] and not sweep.offered(asked)["sweeps"]
        for act in (sweep.stop_it, sweep.resume_it, sweep.delete_it):
            assert "among yours" in act(asked)["problem"]
    assert not one.stop_asked() and sweep.offered({"owner": TOKEN})["sweeps"][0][0] == one.id
    with pytest.raises(UserError, match="a path"):
        sweep.start(DistillConfig(teacher="/etc"), Grid("1", "0.5"), "cd" * 16)


# --- The page


@pytest.fixture(scope="module")
def page(done):
    """A visitor of one's own machine, on which nothing trains."""
    for run in list_runs(site().folder):
        until(lambda run=run: run.status() in CLOSED)
    return visit(f"{site().url}/?__theme=light")


@pytest.fixture(scope="module")
def done():
    return by_hand(site().folder, local_owner(site().folder))


def line(page):
    return page.locator("#expected [role=status]")


def status(page):
    return page.locator("#sweep [role=status]")


def go(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def fill(page, name: str, text: str) -> None:
    page.locator(f"#sweep-{name} :is(input, textarea)").fill(text)


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_on_a_phone_the_heat_map_is_no_wider_than_the_screen(done, theme):
    phone = visit(f"{site().url}/?__theme={theme}&sweep={done.id}", width=390)
    expect(status(phone)).to_have_text("Done")
    expect(phone.locator("#sweep [data-is=best]").first).to_be_visible()
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    assert not serious(phone)
    leave(phone)


def test_the_time_of_the_default_is_measured_when_the_page_is_still(page):
    expect(line(page)).to_have_text(re.compile("^Measuring how long"))


def test_a_sweep_that_is_done_has_its_cells_its_winner_and_its_sentence(page, done):
    go(page, "Sweep")
    expect(status(page)).to_have_text("Done")
    expect(page.locator("#sweep .kd-verdict")).to_contain_text("Distillation helps")
    expect(page.locator("#sweep .kd-map")).to_have_count(2)
    winner = page.locator("#sweep [data-is=best]")
    expect(winner).to_have_text(re.compile(r"90.0%\s+4 epochs\s+★ winner"))
    expect(page.locator("#sweep .kd-map").first.get_by_role("button", name="50.0%")).to_be_visible()
    expect(page.get_by_role("button", name="diverged")).to_be_visible()
    assert not serious(page)


def test_what_would_be_swept_follows_the_lists_and_a_bad_one_is_told(page):
    plan = page.locator("#sweep-plan .kd-plan")
    expect(plan).to_contain_text("17 points")
    fill(page, "temperatures", "1,warm")
    expect(plan).to_contain_text("temperatures is '1,warm'; expected numbers above 0 separated by commas")
    page.get_by_role("button", name="Sweep", exact=True).click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("temperatures is '1,warm'")
    assert len(list_sweeps(site().folder)) == 1
    fill(page, "temperatures", "2")
    fill(page, "lambdas", "0,0.5")
    expect(plan).to_contain_text("2 points")


@pytest.fixture(scope="module")
def first_time(page):
    """What is said of the default."""
    go(page, "Distill")
    said = re.compile(r"^About .* here: .*training .*, the rest")
    expect(line(page)).to_have_text(said, timeout=1000 * time_estimate.SECONDS)  # another test may have the cores
    return line(page).inner_text()


def test_the_time_appears_under_the_button(page, first_time):
    assert not serious(page)
    page.locator("#set-epochs input").fill(str(10 * SAMPLE.epochs))


def test_ten_times_the_epochs_take_longer_and_what_is_known_is_not_measured_again(page, first_time):
    expect(line(page)).to_have_text(re.compile("^About .*training"))
    assert line(page).inner_text() != first_time
    page.locator("#set-epochs input").fill(str(SAMPLE.epochs))
    expect(line(page)).to_have_text(first_time)


def test_a_teacher_that_is_not_there_is_told_before_the_click(page, small):
    def choose(name: str, value: str) -> None:
        page.locator(f"#set-{name.replace('_', '-')} input").fill(value)
        page.keyboard.press("Enter")

    page.locator("#models > button").click()
    choose("teacher", "no/such-teacher")
    expect(line(page)).to_have_text("")  # what it said is of other settings
    expect(line(page)).to_contain_text("The teacher 'no/such-teacher' is not on this machine")
    with something_trains(site().folder):  # what is between the settings is not measured
        for name in ("teacher", "dataset", "student"):
            choose(name, small[name])
        page.get_by_role("button", name="More").click()
        for name, value in {"image_size": 32, "batch_size": 16, "views": 1, "epochs": 1}.items():
            page.locator(f"#set-{name.replace('_', '-')} input").fill(str(value))


def test_a_sweep_is_begun_its_cell_fills_and_stop_is_heard(page):
    go(page, "Sweep")
    page.locator("#sweep-trials input").fill("1")
    expect(page.locator("#sweep-plan .kd-plan")).to_contain_text(
        "2 points, each for 1 epoch; last the winner with 1 fresh"
    )
    page.get_by_role("button", name="Sweep", exact=True).click()
    expect(status(page)).to_have_text("Training 1 of 2: lambda 0, labels alone")
    expect(page.locator("#sweep [data-is=now]")).to_contain_text("training")
    one = list_sweeps(site().folder)[0]
    assert f"sweep={one.id}" in page.url and one.config().teacher != "sample" and one.config().trials == 1
    expect(page.locator("#sweep td").first).to_have_text(re.compile(r"\d+\.\d%\s+1 epoch"))
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(status(page)).to_have_text(re.compile("^Stop"))


def test_a_cell_opens_its_run_by_the_keyboard(page):
    one = list_sweeps(site().folder)[0]
    page.locator("#sweep button.kd-cell").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: f"run={one.points()[0]['run']}" in url and "sweep=" not in url)
    expect(page.locator("#live [role=status]")).to_have_text("Done")


def test_a_reload_and_the_list_of_sweeps_find_it_again(page, done):
    one = list_sweeps(site().folder)[0]
    page.goto(f"{site().url}/?sweep={one.id}")
    expect(status(page)).to_have_text("Stopped. Resume goes on where it was.")
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    page.locator("#sweep select").select_option(done.id)
    expect(status(page)).to_have_text("Done")
    page.reload()
    expect(status(page)).to_have_text("Done")


def test_a_sweep_is_deleted_when_the_question_is_answered(page, done):
    def answer(name: str) -> None:
        page.locator("#sweep header").get_by_role("button", name="Delete").click()
        expect(page.get_by_role("dialog")).to_contain_text("10 runs that it has made stay in Runs.")
        page.get_by_role("dialog").get_by_role("button", name=name).click()

    answer("Keep it")
    assert done.path.exists()
    answer("Delete")
    expect(page.locator("#sweep .kd-message")).to_have_text("Deleted.")
    expect(status(page)).to_have_text("Stopped. Resume goes on where it was.")  # the one that is left
    assert not done.path.exists() and "sweep=" not in page.url
    assert not serious(page)
    leave(page)
