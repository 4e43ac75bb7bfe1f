"""Metrics as `evaluate` modules that work offline, where `evaluate.load` would download a script from the Hub."""

import math
from collections.abc import Sequence

import datasets
import evaluate
import numpy as np


class _ClassMetric(evaluate.Metric):
    """A metric of class indices."""

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description=self.__doc__, citation="", inputs_description="", features=features)


class Accuracy(_ClassMetric):
    """The share of predictions that equal their reference."""

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.equal(predictions, references)))}


class MacroF1(_ClassMetric):
    """The mean F1 of the classes that occur in predictions or references, as scikit-learn's ``f1_score(average="macro")``."""

    def _compute(self, predictions, references) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        size = max(predictions.max(), references.max()) + 1
        hits = np.bincount(references[predictions == references], minlength=size)
        total = np.bincount(predictions, minlength=size) + np.bincount(references, minlength=size)
        occurs = total > 0
        return {"f1": float(np.mean(2 * hits[occurs] / total[occurs]))}


class Agreement(_ClassMetric):
    """The share of images for which two models predict the same class; ``references`` are the teacher's predictions."""

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"agreement": float(np.mean(np.equal(predictions, references)))}


def is_lower_than_chance_allows(shares: Sequence[float], counts: Sequence[int]) -> bool:
    """Return whether the first of two ``shares`` of ``counts`` images is lower than the second by over three standard
    errors of their difference, as if both were the same (the two-proportion z-test): once in 700 times by chance."""
    pooled = sum(share * count for share, count in zip(shares, counts, strict=True)) / sum(counts)
    error = math.sqrt(pooled * (1 - pooled) * sum(1 / count for count in counts))
    return shares[1] - shares[0] > 3 * error


def chance_level(labels: np.ndarray) -> float:
    """Return the accuracy on ``labels`` ``[N]`` up to which a model may only be guessing.

    It is the accuracy of always predicting the most frequent class plus three standard deviations, but at most halfway
    from there to 100%, since with few images the deviations alone would reach 100%.
    """
    chance = np.bincount(labels).max() / len(labels)
    return float(min(chance + 3 * (chance * (1 - chance) / len(labels)) ** 0.5, (1 + chance) / 2))


def classification_metrics() -> evaluate.CombinedEvaluations:
    """Return accuracy and macro F1 as one metric."""
    return evaluate.combine([Accuracy(), MacroF1()])
