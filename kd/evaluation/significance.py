"""Test whether distillation helps, by how much, and with what confidence, from the predictions on the test split.

*Distilled* students are compared with *baseline* students trained without the teacher, in pairs. The two students of a
pair share the seed, and with it the initial weights, the batches and the views.
"""

import math
from typing import Any

import numpy as np

# Bootstrap samples drawn at a time, so that a matrix takes at most 40 MB for 10,000 images.
CHUNK = 500


def paired_bootstrap(
    distilled: np.ndarray, baseline: np.ndarray, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> dict[str, Any]:
    """Return the difference of accuracies, distilled minus baseline, in percentage points, with a percentile interval.

    Both the pairs and the test images are resampled with replacement: Owen, *The pigeonhole bootstrap* (2007,
    arXiv:0712.1111), whose intervals are rather too wide than too narrow over images. A single pair cannot be resampled:
    with n = 1 the interval covers the sampling of images only.

    Args:
        distilled: bool ``[n, M]``, whether the student of each seed classifies each test image correctly.
        baseline: the same for the students without the teacher, in the same order of seeds.
        samples: number of bootstrap samples.
        seed: of the random generator.
        level: confidence level of the interval.

    Returns:
        ``points``, ``low``, ``high``, ``level``, ``seeds`` (n) and ``pictures`` (M).

    Raises:
        ValueError: where the two are not bool of one shape, or there are fewer than two images.
    """
    difference = _difference(distilled, baseline, ndim=2)
    n, images = difference.shape
    # Images with the same outcome for every pair are interchangeable: draw how many of each kind, not which ones.
    kinds, counts = np.unique(difference, axis=1, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, samples, CHUNK):
        size = min(CHUNK, samples - start)
        of_seeds = rng.multinomial(n, np.full(n, 1 / n), size) / n
        of_kinds = rng.multinomial(images, counts / images, size) / images
        drawn.append(np.einsum("sk,sk->s", of_seeds @ kinds, of_kinds))
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return _interval(difference, low, high, level)


def crossed_t(distilled: np.ndarray, baseline: np.ndarray, level: float = 0.95) -> dict[str, Any]:
    """Return the same difference with Student's t interval over seeds and images, for two seeds or more.

    The model is difference_ij = mean + seed_i + image_j + rest_ij for pair i and image j (crossed random effects). The
    variance of the mean, s_seed^2 / n + s_image^2 / M + s_rest^2 / nM, is estimated from the mean squares of the two-way
    layout, with no component below zero. The degrees of freedom follow Satterthwaite, *An approximate distribution of
    estimates of variance components* (1946, Biometrics Bulletin 2): they are near n - 1 where the seeds contribute most
    of the variance, and larger where the images do. Arguments, results and errors are those of ``paired_bootstrap``.
    """
    difference = _difference(distilled, baseline, ndim=2)
    n, images = difference.shape
    if n < 2:
        raise ValueError("One pair shows no spread over seeds. Pass two or more, or use paired_bootstrap and mcnemar.")
    mean = difference.mean()
    by_seed, by_image = difference.mean(1, keepdims=True), difference.mean(0, keepdims=True)
    freedom = np.array([n - 1, images - 1, (n - 1) * (images - 1)])
    rest = np.sum((difference - by_seed - by_image + mean) ** 2) / freedom[2]
    seed = max(rest, images * np.sum((by_seed - mean) ** 2) / freedom[0])
    image = max(rest, n * np.sum((by_image - mean) ** 2) / freedom[1])
    total = seed + image - rest
    half_width = 0.0
    if total > 0:
        df = total**2 / np.sum(np.array([seed, image, rest]) ** 2 / freedom)
        # A sum of mean squares never has fewer degrees of freedom; subtracting the rest breaks that in tiny layouts.
        df = max(df, min(n, images) - 1)
        half_width = t_quantile(level, df) * math.sqrt(total / (n * images))
    return _interval(difference, mean - half_width, mean + half_width, level)


def t_quantile(level: float, df: float) -> float:
    """Return the value that Student's |t| with ``df`` degrees of freedom stays below with probability ``level``."""
    from scipy import stats  # half a second to import, so only where it is used

    return float(stats.t.ppf((1 + level) / 2, df))


def mcnemar(distilled: np.ndarray, baseline: np.ndarray) -> float:
    """Return the two-sided p-value of McNemar's exact test (1947, Psychometrika 12) for one pair, bool ``[M]`` each.

    Under the null hypothesis, an image that only one of the two students gets right is equally likely to be either's.
    The p-value is 1 where there are no such images. Raises ``ValueError`` as ``paired_bootstrap`` does.
    """
    from scipy import stats

    difference = _difference(distilled, baseline, ndim=1)
    wins, losses = int(np.sum(difference > 0)), int(np.sum(difference < 0))
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def verdict(
    distilled: np.ndarray, baseline: np.ndarray, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> dict[str, Any]:
    """Decide whether distillation helps, hurts, or shows no difference with these seeds and test images.

    The interval is the union of those of ``paired_bootstrap`` and ``crossed_t``. Percentile intervals over a handful of
    seeds are too narrow (Hesterberg, *What Teachers Should Know about the Bootstrap*, 2014, arXiv:1411.5279): with 3
    seeds, 5,000 images and a standard deviation of 2 points over seeds, 95% percentile intervals covered the true
    difference in 82% of simulated studies, these intervals in 94%. With few images and many seeds the bootstrap interval
    is the wider one. A single pair has no spread over seeds, so its interval is the bootstrap over images only. A
    difference must then pass McNemar's test too, and the answer is about that pair, never about the teacher.

    Returns:
        What ``paired_bootstrap`` returns, with ``p`` (McNemar's for a single pair, else None), ``answer`` (``helps``,
        ``hurts``, ``no difference shown``, or ``one seed`` where a single pair differs) and ``sentence``, which states
        the result in words. Arguments and errors are those of ``paired_bootstrap``.
    """
    found = paired_bootstrap(distilled, baseline, samples, seed, level)
    if found["seeds"] == 1:
        p = mcnemar(distilled[0], baseline[0])
    else:
        p, t_interval = None, crossed_t(distilled, baseline, level)
        found |= {"low": min(found["low"], t_interval["low"]), "high": max(found["high"], t_interval["high"])}
    answer = "helps" if found["low"] > 0 else "hurts" if found["high"] < 0 else "no difference shown"
    if p is not None and answer != "no difference shown":
        answer = "one seed" if p < 1 - level else "no difference shown"
    found |= {"p": p, "answer": answer}
    return found | {"sentence": _sentence(found)}


def _sentence(found: dict[str, Any]) -> str:
    """State a verdict in words."""
    claims = {"no difference shown": "No difference shown", "one seed": "No claim"}
    claim = claims.get(found["answer"], f"Distillation {found['answer']}")
    points, pictures = f"{found['points']:+z.1f} points", f"{found['pictures']:,} test pictures"
    interval = f"{100 * found['level']:g}% {found['low']:z.1f} to {found['high']:z.1f}"
    if found["seeds"] == 1:
        p = "p < 0.001" if found["p"] < 0.001 else f"p = {found['p']:.2g}"
        return (
            f"{claim} from this one pair: {points} ({interval}, McNemar's {p}), one seed, {pictures}. One seed cannot "
            "tell the teacher's effect from the luck of the seed; three trials or more can."
        )
    few = " Two seeds are few: more would narrow the interval." if found["seeds"] == 2 else ""
    return f"{claim}: {points} ({interval}), {found['seeds']} seeds, {pictures}.{few}"


def _difference(distilled: np.ndarray, baseline: np.ndarray, ndim: int) -> np.ndarray:
    """Return 1 where only the distilled student is right, -1 where only the baseline is, else 0.

    Raises ``ValueError`` unless both are bool of one shape with ``ndim`` axes and two images or more.
    """
    distilled, baseline = np.asarray(distilled), np.asarray(baseline)
    shaped = distilled.shape == baseline.shape and distilled.ndim == ndim and distilled.size and distilled.shape[-1] > 1
    if not shaped or distilled.dtype != bool or baseline.dtype != bool:
        raise ValueError(
            f"The distilled students' results are {distilled.dtype} {list(distilled.shape)}, the baselines' "
            f"{baseline.dtype} {list(baseline.shape)}. Both must be bool {'[seeds, pictures]' if ndim == 2 else '[pictures]'}, "
            "correct or not, for the same seeds and pictures, of which there must be two or more."
        )
    return distilled.astype(np.int8) - baseline.astype(np.int8)


def _interval(difference: np.ndarray, low: float, high: float, level: float) -> dict[str, Any]:
    """Return a mean difference and its interval, given as fractions, in percentage points."""
    points = {"points": 100 * float(difference.mean()), "low": 100 * float(low), "high": 100 * float(high)}
    return {**points, "level": level, "seeds": difference.shape[0], "pictures": difference.shape[1]}
