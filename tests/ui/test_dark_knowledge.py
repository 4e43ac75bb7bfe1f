"""The teacher's answer for one picture, as the page asks for it."""

import pytest

from kd.ui import dark_knowledge, theme


@pytest.fixture(autouse=True)
def nothing_recorded(monkeypatch):
    """No answer is known beforehand: the teacher is asked."""
    monkeypatch.setattr("kd.ui.dark_knowledge.recorded_answers", dict)


def test_a_teacher_is_asked_once_for_a_picture(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "kd.ui.dark_knowledge.ask", lambda says, name, path: asked.append(name) or (["Coat", "Bag"], [2.0, 1.0])
    )
    dark_knowledge._asked.cache_clear()
    coat = next(nth for nth, path in enumerate(theme.EXAMPLES) if path.stem == "coat-1")
    for _ in range(2):
        answer = dark_knowledge.teacher_says({"teacher": "sample", "example": coat})
    assert asked == ["sample"] and answer["labelled"] and answer["label"] == 0
    assert len(answer["sentences"]) == len(dark_knowledge.STOPS) and "At T = 2 the teacher" in answer["sentences"]["2"]
    dark_knowledge._asked.cache_clear()


def test_a_label_that_the_teacher_does_not_know_is_replaced_by_its_first_choice(monkeypatch):
    monkeypatch.setattr("kd.ui.dark_knowledge.ask", lambda says, name, path: (["cat", "dog"], [1.0, 2.0]))
    dark_knowledge._asked.cache_clear()
    plain = [
        dark_knowledge.teacher_says({"teacher": "sample", "example": 0, "method": name})["logits"]
        for name in ("kd", "kd+std")
    ]
    assert plain[0] == [1.0, 2.0] and plain[1] == pytest.approx([-(0.5**0.5), 0.5**0.5])
    answer = dark_knowledge.teacher_says({"teacher": "sample", "example": 0})
    assert not answer["labelled"] and answer["label"] == 1
    dark_knowledge._asked.cache_clear()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"teacher": "", "example": 0}, "teacher is ''"),
        ({"teacher": {"a": 1}, "example": 0}, "teacher is {'a': 1}"),
        ({"teacher": "sample", "path": "/etc/hostname"}, "must be uploaded"),
        ({"teacher": "sample", "example": 99}, "must be uploaded"),
        ({"teacher": "/tmp", "example": 0}, "has no config.json"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(asked, words):
    assert words in dark_knowledge.teacher_says(asked)["problem"]


def test_on_a_shared_server_a_teacher_is_no_path(monkeypatch, teacher):
    monkeypatch.setenv("KD_SHARED", "1")
    assert "a path" in dark_knowledge.teacher_says({"teacher": str(teacher), "example": 0})["problem"]
