"""Soften a teacher's answer and say in words what it knows beyond its first choice."""

from collections.abc import Sequence

import numpy as np

NEARLY_UNIFORM = 0.03  # bits that an answer says more than none: about 60% of two classes, 17% of ten

SURE = 0.99

EVEN = 1.5  # the other classes share the rest evenly where the most likely has less than this times the least


def softened(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities of logits ``[C]`` or ``[M, C]`` at a temperature T: softmax(logits / T), float64.

    Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network* (2015, arXiv:1503.02531). Raises
    ``ValueError`` where T is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"The temperature is {temperature}. It must be above 0.")
    return np.exp(log_softmax(np.asarray(logits, dtype=np.float64) / temperature))


def standardised_logits(logits: np.ndarray) -> np.ndarray:
    """Logits ``[C]`` with mean 0 and standard deviation 1 (of C - 1), as ``kd.training.losses.standardised`` of a batch; logits that
    are all the same become 0. What a student of a ``+std`` method sees (Sun et al., CVPR 2024, arXiv:2403.01427)."""
    logits = np.asarray(logits, dtype=np.float64)
    return (logits - logits.mean()) / (logits.std(ddof=1) + 1e-7)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def dark_knowledge(logits: np.ndarray, names: Sequence[str], label_index: int, temperature: float) -> str:
    """What a student learns from the teacher's softened answer to one picture beyond its label, in a sentence or two.

    Args:
        logits: the teacher's, ``[C]``, two classes or more.
        names: of the classes.
        label_index: the picture's class.
        temperature: T > 0.

    Raises:
        ValueError: where there is not a name for each logit, or T is not above 0.
    """
    if len(names) != len(logits):
        raise ValueError(f"There are {len(logits)} logits and {len(names)} names. Pass one name for each class.")
    p = softened(logits, temperature)
    order = np.argsort(-p, kind="stable")
    first, second, last = order[0], order[1], order[-1]
    at, top = f"At T = {temperature:g} the teacher", names[first]
    if _bits_beyond_uniform(p) < NEARLY_UNIFORM:
        span = f"{_percent(p[last])} to {_percent(p[first])}"
        return f"{at}'s answer is almost the same for every class ({span}): the order is left, hardly more."
    if first != label_index:
        label = f"{names[label_index]} ({_percent(p[label_index])})"
        return f"{at} says {top} ({_percent(p[first])}), the label says {label}: the student is pulled both ways."
    if p[first] >= SURE:
        return f"{at} is sure: {top} {_percent(p[first])}. The student learns little more than the label."
    if len(p) > 2 and p[second] < EVEN * p[last]:
        return (
            f"{at} says {top} ({_percent(p[first])}) and shares the rest evenly among the others: the student learns "
            "how sure to be, hardly what it looks like."
        )
    others = [index for index in order[1:3] if p[index] >= p[second] / 4]  # a distant third is not a likeness
    named = " and ".join(f"{names[index]} ({_percent(p[index])})" for index in others)
    like = "those" if len(others) > 1 else names[second]
    unlike = ""
    if p[last] < p[others[-1]] / 2:
        unlike = f", and {'not at all' if p[last] < 0.01 else 'least'} like {names[last]}"
    return (
        f"{at} says {top} ({_percent(p[first])}), but also {named}: "
        f"the student learns that this {top} looks like {like}{unlike}."
    )


def _bits_beyond_uniform(p: np.ndarray) -> float:
    """KL(p || uniform) in bits."""
    return float(np.sum(p * np.log2(np.maximum(p, 1e-300) * len(p))))


def _percent(p: float) -> str:
    if p > 0.9995:
        return "over 99.9%"
    if p < 0.0005:
        return "under 0.1%"
    return f"{p:.1%}" if p < 0.01 or p > 0.99 else f"{p:.0%}"
