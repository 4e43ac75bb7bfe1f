"""Softened answers, and the sentence that says what a student learns from one."""

import numpy as np
import pytest

from kd.evaluation.dark_knowledge import dark_knowledge, softened

CLOTHES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot"]


def says(chances, label: int, temperature: float = 5, names=CLOTHES) -> str:
    """The sentence for logits that this temperature softens to these chances."""
    return dark_knowledge(temperature * np.log(chances), names, label, temperature)


SHIRT = np.array([21, 2, 14, 5, 8, 0.4, 48, 0.5, 0.6, 0.5]) / 100


def test_softening_is_the_softmax_of_divided_logits():
    logits = np.random.default_rng(11).normal(0, 4, (7, 5))
    assert softened(logits, 3.0) == pytest.approx(np.exp(logits / 3) / np.exp(logits / 3).sum(1, keepdims=True))
    assert softened(logits[0], 3.0) == pytest.approx(softened(logits, 3.0)[0])
    assert softened(np.array([1e6, 0.0], dtype=np.float32), 0.01).tolist() == [1, 0]
    with pytest.raises(ValueError, match="above 0"):
        softened(logits, 0)


def test_a_softened_answer_tells_what_the_picture_looks_like():
    assert says(SHIRT, label=6) == (
        "At T = 5 the teacher says Shirt (48%), but also T-shirt/top (21%) and Pullover (14%): "
        "the student learns that this Shirt looks like those, and not at all like Sandal."
    )


def test_a_distant_third_is_not_a_likeness():
    chances = np.array([0.16, 0.01, 0.02, 0.81])
    assert says(chances, label=3, names="abcd") == (
        "At T = 5 the teacher says d (81%), but also a (16%): the student learns that this d looks like a, and least like b."
    )


def test_a_sure_teacher_teaches_little_more_than_the_label():
    logits = 5 * np.log(SHIRT) * 2
    assert dark_knowledge(logits, CLOTHES, 6, temperature=1) == (
        "At T = 1 the teacher is sure: Shirt over 99.9%. The student learns little more than the label."
    )
    assert "is sure: b 99.8%." in says([0.002, 0.998], label=1, names="ab")


def test_a_temperature_too_high_leaves_the_order():
    assert dark_knowledge(5 * np.log(SHIRT), CLOTHES, 6, temperature=100) == (
        "At T = 100 the teacher's answer is almost the same for every class (9% to 11%): the order is left, hardly more."
    )


def test_a_teacher_who_contradicts_the_label_pulls_both_ways():
    assert says(SHIRT, label=4) == (
        "At T = 5 the teacher says Shirt (48%), the label says Coat (8%): the student is pulled both ways."
    )


def test_a_rest_that_is_shared_evenly_tells_how_sure_to_be():
    assert says([0.7, 0.1, 0.1, 0.1], label=0, names="abcd") == (
        "At T = 5 the teacher says a (70%) and shares the rest evenly among the others: "
        "the student learns how sure to be, hardly what it looks like."
    )


def test_two_classes_have_dark_knowledge_too():
    cats = ["cat", "dog"]
    assert says([0.7, 0.3], label=0, names=cats) == (
        "At T = 5 the teacher says cat (70%), but also dog (30%): the student learns that this cat looks like dog."
    )
    assert "(45% to 55%)" in says([0.55, 0.45], label=0, names=cats)
    assert "pulled both ways" in says([0.7, 0.3], label=1, names=cats)


def test_every_class_needs_its_name():
    with pytest.raises(ValueError, match="2 logits and 3 names"):
        dark_knowledge(np.zeros(2), "abc", 0, 1.0)
