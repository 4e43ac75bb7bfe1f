"""A run's line of progress, from its events."""

import time

from kd.runs.summary import TRAINING, Summary
from kd.ui.progress import progress_line


def test_a_run_of_several_trainings_says_which_and_keeps_its_own_students_accuracy():
    def training(nth: int, arm: str) -> dict:
        return {"event": "training", "epochs": 2, "steps": 10, "step": 0, "arm": arm, "seed": 0, "nth": nth, "of": 4}

    events = [
        training(1, "distilled"),
        {
            "event": "step",
            "arm": "distilled",
            "seed": 0,
            "step": 10,
            "epoch": 2.0,
            "seconds": 1.0,
            "images_per_second": 9,
        },
        {"event": "eval", "arm": "distilled", "seed": 0, "accuracy": 0.8, "agreement": 0.9},
        {"event": "progress", "phase": "test: student", "done": 100, "of": 2000},
        training(2, "baseline"),
        {"event": "eval", "arm": "baseline", "seed": 0, "accuracy": 0.1, "agreement": 0.1},
    ]
    found = Summary(lifecycle="started")
    for event in events:
        found = found.after(event)
    assert progress_line(found, "running")[0] == "Training 2 of 4, without the teacher, epoch 1 of 2"
    assert found.accuracy == 0.8
    found = found.after({"event": "arm", "arm": "baseline", "seed": 0, "validation": 0.3, "kept": False})
    assert found.accuracy == 0.8
    found = found.after({"event": "arm", "arm": "distilled", "seed": 1, "validation": 0.9, "kept": True})
    assert found.accuracy == 0.9


def test_of_trainings_side_by_side_the_first_is_followed_until_it_has_ended():
    def training(nth: int, arm: str, seed: int, of: int = 4) -> dict:
        whose = {"arm": arm, "seed": seed, "nth": nth, "of": of, "at_once": 2}
        return {"event": "training", "epochs": 2, "steps": 10, "step": 0, **whose}

    def step(arm: str, seed: int, step: int) -> dict:
        at = {"step": step, "epoch": step / 5, "seconds": float(step), "images_per_second": 9.0}
        return {"event": "step", "arm": arm, "seed": seed, **at}

    def line(*events: dict) -> tuple[str, str]:
        found = Summary(lifecycle="started")
        for event in events:
            found = found.after(event)
        return progress_line(found, "running")

    both = [training(2, "baseline", 3, 2), training(1, "distilled", 3, 2), step("distilled", 3, 4)]
    assert line(*both, step("baseline", 3, 9)) == (
        "Training with and without the teacher, epoch 1 of 2", "9 images/s on the CPU, 6 s left"
    )  # fmt: skip
    first = [training(1, "distilled", 3), training(2, "baseline", 3), step("distilled", 3, 4)]
    assert line(*first) == ("Training 1 and 2 of 4, epoch 1 of 2", "9 images/s on the CPU, 16 s left")
    later = [*first, step("distilled", 3, 10), training(3, "distilled", 4), step("baseline", 3, 7)]
    assert line(*later)[0] == "Training 3 and 4 of 4, epoch 1 of 2"


def test_a_run_that_waits_says_its_place_and_how_long_where_that_is_known():
    told = {"event": "queued", "time": time.time(), "place": 2, "device": "cpu"}
    waits = Summary().after({**told, "wait": 182})
    assert progress_line(waits, "queued")[0] == "Waiting for the CPU: place 2 in the queue, about 3 min"
    for unknown in (told, {**told, "time": told["time"] - 500, "wait": 182}):
        assert progress_line(Summary().after(unknown), "queued")[0] == "Waiting for the CPU: place 2 in the queue"


def test_a_run_that_is_paused_while_it_waits_for_its_next_piece_shows_the_training_that_it_has_reached():
    training = {
        "event": "training",
        "epochs": 2,
        "steps": 10,
        "step": 0,
        "arm": "distilled",
        "seed": 0,
        "nth": 1,
        "of": 1,
    }
    step = {
        "event": "step",
        "arm": "distilled",
        "seed": 0,
        "step": 6,
        "epoch": 1.2,
        "seconds": 1.0,
        "images_per_second": 9,
    }
    queued, paused = (
        {"event": "queued", "device": "gpu", "place": 1},
        {"event": "paused", "reason": "quota", "message": "Used up."},
    )
    found = Summary(lifecycle="started")
    for event in (training, step, queued, paused):
        found = found.after({**event, "time": time.time()})
    assert (found.stage, found.share()) == (TRAINING, 0.6)
    assert Summary().after({**queued, "time": 0}).after({**paused, "time": 0}).stage == 0  # nothing of it was trained


def test_a_wait_for_the_hub_and_a_death_are_said_in_the_run_s_line():
    found = Summary().after({"event": "started", "oom_kills": 0})
    found = found.after({"event": "hub", "message": "The Hub is busy; trying again in 8 s."})
    assert progress_line(found, "running") == ("The Hub is busy; trying again in 8 s.", "") and found.share() == 0.0
    assert (
        "It was killed, or the machine went down" in progress_line(found, "died")[0]
        or "want of memory" in progress_line(found, "died")[0]
    )
    assert "reading" in progress_line(
        found.after({"event": "progress", "phase": "reading", "done": 1, "of": 4}), "running"
    )
    assert (
        progress_line(found.after({"event": "progress", "phase": "throughput", "done": 93, "of": 100}), "running")[1]
        == "93%"
    )
