"""The list of students: pretrained ones come first where the Hub answers."""

import time

import gradio as gr
import httpx
import pytest

from kd.config import STUDENT_NAMES
from kd.ui import students


@pytest.fixture
def hub(monkeypatch):
    """What the Hub does when it is asked for a model."""

    def set(answer):
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, timeout: answer(name, timeout))

    monkeypatch.setattr(students, "_hub_answers", False)
    return set


def test_where_the_hub_answers_pretrained_students_come_first_with_their_size_and_ours_follow(hub):
    hub(lambda name, timeout: name)
    students.ask_hub().join()
    offered = students.offer().choices
    words, name = offered[0]
    assert name == "google/mobilenet_v2_1.0_224" and "3.5 M" in words and "pretrained" in words
    names = [name for _, name in offered]
    assert names[len(students.PRETRAINED) :][: len(STUDENT_NAMES)] == list(STUDENT_NAMES)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("error", [httpx.ConnectError("no route"), httpx.ConnectTimeout("too slow")])
def test_where_the_hub_is_away_the_list_stays_as_it_is(hub, error):
    def refuse(name, timeout):
        raise error

    hub(refuse)
    students.ask_hub().join()
    assert students.offer() == gr.skip()


def test_offline_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(students, "_hub_answers", False)
    assert not students.answers()  # the tests are offline


def test_nobody_waits_for_the_hub(hub):
    hub(lambda name, timeout: time.sleep(0.5))
    begun = time.monotonic()
    thread = students.ask_hub()
    assert students.offer() == gr.skip() and time.monotonic() - begun < 0.3
    thread.join()
