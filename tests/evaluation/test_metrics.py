"""Metrics against definitions written out."""

import numpy as np
import pytest

from kd.evaluation.metrics import Agreement, chance_level, classification_metrics


def f1_of(label: int, predictions: np.ndarray, references: np.ndarray) -> float:
    hits = np.sum((predictions == label) & (references == label))
    precision = hits / max(1, np.sum(predictions == label))
    recall = hits / max(1, np.sum(references == label))
    return 2 * precision * recall / (precision + recall) if hits else 0.0


def test_accuracy_and_macro_f1_are_their_definitions():
    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    found = classification_metrics().compute(predictions=predictions, references=references)
    assert found["accuracy"] == pytest.approx(np.mean([p == r for p, r in zip(predictions, references, strict=True)]))
    assert found["f1"] == pytest.approx(np.mean([f1_of(c, predictions, references) for c in range(5)]))


def test_a_class_that_nobody_names_does_not_count():
    found = classification_metrics().compute(predictions=[0, 0, 3, 3], references=[0, 3, 3, 3])
    assert found["f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_agreement_does_not_ask_who_is_right():
    assert Agreement().compute(predictions=[1, 2, 3, 4], references=[1, 2, 0, 0])["agreement"] == 0.5


def test_what_may_be_guessed_is_the_commonest_class_and_noise_but_all_right_never_is():
    assert chance_level(np.repeat([0, 1], 5000)) == pytest.approx(0.515)
    assert chance_level(np.array([0, 0, 1, 2, 3])) == pytest.approx(0.7)
