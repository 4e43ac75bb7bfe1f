"""Metrics as `evaluate` modules that need no network: `evaluate.load` would fetch a script from the Hub."""

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
    """Share of predictions that equal their reference."""

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.equal(predictions, references)))}


class MacroF1(_ClassMetric):
    """F1 of each class that occurs in the predictions or references, averaged with equal weights (as scikit-learn's
    ``f1_score(average="macro")``)."""

    def _compute(self, predictions, references) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        size = max(predictions.max(), references.max()) + 1
        hits = np.bincount(references[predictions == references], minlength=size)
        total = np.bincount(predictions, minlength=size) + np.bincount(references, minlength=size)
        occurs = total > 0
        return {"f1": float(np.mean(2 * hits[occurs] / total[occurs]))}


class Agreement(_ClassMetric):
    """Share of pictures on which two models choose the same class (``references``: the teacher's choices)."""

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"agreement": float(np.mean(np.equal(predictions, references)))}


def guessing(labels: np.ndarray) -> float:
    """Up to this accuracy on ``labels`` ``[N]`` one may be guessing: that of always saying the commonest class, and three
    standard deviations; of few pictures at most halfway to all right, for more would be no guess."""
    chance = np.bincount(labels).max() / len(labels)
    return float(min(chance + 3 * (chance * (1 - chance) / len(labels)) ** 0.5, (1 + chance) / 2))


def classification() -> evaluate.CombinedEvaluations:
    """Accuracy and macro F1 in one call."""
    return evaluate.combine([Accuracy(), MacroF1()])
