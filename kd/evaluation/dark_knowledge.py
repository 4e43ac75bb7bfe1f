"""Soften a teacher's logits and describe in words what they tell a student beyond the most likely class.

The page imports this module, so `scipy` is imported only in the functions that use it.
"""

import math
from collections.abc import Sequence

import numpy as np

# KL divergence from the uniform distribution, in bits, below which the probabilities count as uniform. It is reached by a
# largest probability of about 60% with two classes, 17% with ten.
NEARLY_UNIFORM = 0.03

# Probability of the most likely class from which the teacher counts as sure.
SURE = 0.99

# The other classes count as equally likely where the most likely of them has less than this times the least likely.
EVEN = 1.5


def softened(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities softmax(logits / T) of logits ``[C]`` or ``[M, C]`` at a temperature T, in float64.

    Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network* (2015, arXiv:1503.02531). Raises
    ``ValueError`` where T is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"The temperature is {temperature}. It must be above 0.")
    from scipy.special import softmax

    return softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)


def standardised_logits(logits: np.ndarray) -> np.ndarray:
    """Return logits ``[C]`` with mean 0 and standard deviation 1, which a ``+std`` method compares (arXiv:2403.01427).

    ``kd.training.losses.standardise`` does the same to a batch, with torch, which the page must not import.
    """
    logits = np.asarray(logits, dtype=np.float64)
    return (logits - logits.mean()) / (logits.std(ddof=1) + 1e-7)


def dark_knowledge(logits: np.ndarray, names: Sequence[str], label_index: int, temperature: float) -> str:
    """Describe in a sentence or two what a student learns beyond the label from the teacher's logits of one image.

    Args:
        logits: the teacher's logits ``[C]``, for two classes or more.
        names: the names of the classes.
        label_index: the index of the image's class.
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
    # The third class counts as similar only where it is not far less likely than the second.
    others = [index for index in order[1:3] if p[index] >= p[second] / 4]
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
    """Return KL(p || uniform) in bits."""
    from scipy.special import rel_entr

    return float(rel_entr(p, 1 / len(p)).sum() / math.log(2))


def _percent(p: float) -> str:
    """Return a probability as a percentage for people, with a digit more near 0% and 100%."""
    if p > 0.9995:
        return "over 99.9%"
    if p < 0.0005:
        return "under 0.1%"
    return f"{p:.1%}" if p < 0.01 or p > 0.99 else f"{p:.0%}"
