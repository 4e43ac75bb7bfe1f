"""Verdicts against enumeration, formulas written out another way, and simulated studies whose truth is known."""

import itertools
import math

import numpy as np
import pytest

from kd.evaluation.significance import crossed_t, mcnemar, paired_bootstrap, t_quantile, verdict


def coins(rng: np.random.Generator, seeds: int, pictures: int, chance: float = 0.8) -> np.ndarray:
    return rng.random((seeds, pictures)) < chance


def study(rng: np.random.Generator, seeds: int, pictures: int, effect: float, luck: float) -> tuple:
    """Answers of a distilled student and a baseline whose true accuracies differ by ``effect`` points on average and by
    ``luck`` points of standard deviation from seed to seed; pictures differ in how hard they are and in whom they suit.

    A margin ~ N(1.5, s^2) above zero is a right answer, so that a small shift of it moves the accuracy by its density at
    zero; each student gets half of the difference, which makes no effect exactly none.
    """
    spread = math.sqrt(1.2**2 + 0.6**2)
    slope = 100 * math.exp(-((1.5 / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi))
    easy = rng.normal(1.5, 1.2, pictures)
    shift = (rng.normal(effect, luck, (seeds, 1)) / slope + rng.normal(0, 0.3, pictures)) / 2
    noise = rng.normal(0, 0.6, (2, seeds, pictures))
    return easy + shift + noise[0] > 0, easy - shift + noise[1] > 0


def studies(interval=verdict, **kinds) -> list[dict]:
    """What an interval says of two hundred simulated studies."""
    rng = np.random.default_rng(0)
    return [interval(*study(rng, **kinds), samples=400) for _ in range(200)]


def coverage(found: list[dict]) -> float:
    """In which share of studies the interval covers no effect."""
    return np.mean([one["low"] <= 0 <= one["high"] for one in found])


# --- The interval


def test_the_bootstrap_is_that_of_every_draw_of_seeds_and_pictures():
    distilled = np.array([[1, 1, 0, 1, 1], [1, 0, 1, 1, 1]], dtype=bool)
    baseline = np.array([[0, 1, 0, 1, 0], [1, 0, 0, 0, 1]], dtype=bool)
    difference = distilled.astype(int) - baseline
    means = [
        difference[list(rows)][:, list(columns)].mean()
        for rows in itertools.product(range(2), repeat=2)
        for columns in itertools.product(range(5), repeat=5)
    ]
    found = paired_bootstrap(distilled, baseline, samples=20_000, level=0.9)
    assert found["points"] == pytest.approx(40)
    assert [found["low"], found["high"]] == pytest.approx(100 * np.quantile(means, [0.05, 0.95]))
    assert (found["level"], found["seeds"], found["pictures"]) == (0.9, 2, 5)


def test_with_one_seed_the_bootstrap_is_the_normal_interval_over_pictures():
    rng = np.random.default_rng(1)
    distilled, baseline = coins(rng, 1, 4000, 0.85), coins(rng, 1, 4000)
    reach = 1.96 * 100 * np.std(distilled.astype(int) - baseline) / math.sqrt(4000)
    found = paired_bootstrap(distilled, baseline)
    assert found["low"] == pytest.approx(found["points"] - reach, abs=0.1)
    assert found["high"] == pytest.approx(found["points"] + reach, abs=0.1)


def test_luck_of_the_seed_widens_the_bootstrap():
    rng = np.random.default_rng(2)
    baseline = np.repeat(coins(rng, 1, 1000), 4, axis=0)
    distilled = baseline.copy()
    distilled[:2, :100], distilled[2:, :100] = True, False
    alike = baseline.copy()
    alike[:, :50], alike[:, 50:100] = True, False
    widths = [found["high"] - found["low"] for found in (paired_bootstrap(s, baseline) for s in (distilled, alike))]
    assert widths[0] > 2 * widths[1]


def test_the_same_seed_draws_the_same_interval_and_another_seed_another():
    distilled, baseline = study(np.random.default_rng(3), seeds=3, pictures=400, effect=2, luck=1)
    first, again, other = (paired_bootstrap(distilled, baseline, samples=700, seed=seed) for seed in (0, 0, 1))
    assert first == again and first != other


def test_the_t_quantile_is_the_one_in_the_tables():
    table = {1: 12.7062, 2: 4.30265, 3: 3.18245, 5: 2.57058, 10: 2.22814, 30: 2.04227, 1000: 1.96234}
    assert [t_quantile(0.95, df) for df in table] == pytest.approx(list(table.values()), rel=1e-5)
    assert t_quantile(0.99, 4) == pytest.approx(4.60409, rel=1e-5)
    assert t_quantile(0.8, 1) == pytest.approx(math.tan(0.4 * math.pi), rel=1e-5)  # Cauchy


def test_where_only_the_seeds_differ_the_t_interval_is_that_of_their_means():
    shares = [0.10, 0.30, 0.05]  # of 20,000 pictures, each seed's share that it alone gets right: all luck of the seed
    distilled = np.random.default_rng(4).random((3, 20_000)) < np.array(shares)[:, None]
    found = crossed_t(distilled, np.zeros_like(distilled))
    means = distilled.mean(1)
    reach = 100 * 4.30265 * means.std(ddof=1) / math.sqrt(3)
    assert found["high"] - found["points"] == pytest.approx(reach, rel=0.01)
    assert found["points"] - found["low"] == pytest.approx(reach, rel=0.01)


def test_where_all_seeds_answer_alike_the_t_interval_is_that_of_the_pictures():
    rng = np.random.default_rng(5)
    distilled, baseline = (np.repeat(coins(rng, 1, 800), 3, axis=0) for _ in range(2))
    difference = distilled[0].astype(int) - baseline[0]
    reach = 100 * 1.963 * difference.std(ddof=1) / math.sqrt(800)
    found = crossed_t(distilled, baseline)
    assert found["high"] - found["points"] == pytest.approx(reach, rel=1e-3)


@pytest.mark.parametrize("seeds_alike", [False, True])
def test_the_t_interval_is_that_of_variance_components(seeds_alike):
    rng = np.random.default_rng(12)
    distilled, baseline = study(rng, seeds=4, pictures=30, effect=5, luck=12)
    if seeds_alike:  # the same answers in another order: means that differ less than chance alone would have it
        distilled, baseline = (rng.permuted(np.repeat(one[:1], 4, axis=0), axis=1) for one in (distilled, baseline))
    d = distilled.astype(int) - baseline
    rows, columns, mean = d.mean(1), d.mean(0), d.mean()
    rest = sum((d[i, j] - rows[i] - columns[j] + mean) ** 2 for i in range(4) for j in range(30)) / (3 * 29)
    of_seeds = max(0, rows.var(ddof=1) - rest / 30)
    of_pictures = max(0, columns.var(ddof=1) - rest / 4)
    assert (of_seeds == 0) == seeds_alike and of_pictures > 0
    variance = of_seeds / 4 + of_pictures / 30 + rest / 120
    squares = (30 * of_seeds + rest, 4 * of_pictures + rest, rest)
    df = (120 * variance) ** 2 / sum(square**2 / f for square, f in zip(squares, (3, 29, 3 * 29), strict=True))
    found = crossed_t(distilled, baseline)
    assert found["high"] - found["points"] == pytest.approx(100 * t_quantile(0.95, df) * math.sqrt(variance))
    assert found["points"] - found["low"] == pytest.approx(100 * t_quantile(0.95, df) * math.sqrt(variance))


def test_one_pair_has_no_t_interval():
    with pytest.raises(ValueError, match="no spread over seeds"):
        crossed_t(np.ones((1, 5), dtype=bool), np.zeros((1, 5), dtype=bool))


def test_mcnemar_counts_the_ways_that_coins_fall():
    for wins, losses in [(0, 0), (1, 0), (5, 5), (3, 7), (9, 1), (0, 10)]:
        distilled = np.array([True] * (wins + 4) + [False] * (losses + 3))
        baseline = np.array([False] * wins + [True] * 4 + [True] * losses + [False] * 3)
        falls = [abs(sum(fall)) >= abs(wins - losses) for fall in itertools.product([1, -1], repeat=wins + losses)]
        assert mcnemar(distilled, baseline) == pytest.approx(np.mean(falls)), (wins, losses)


def test_mcnemar_holds_for_thousands_of_pictures():
    distilled = np.arange(10_000) < 5_100
    z = (200 - 1) / math.sqrt(10_000)  # the normal approximation with its continuity correction
    assert mcnemar(distilled, ~distilled) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)
    assert mcnemar(np.ones(10_000, dtype=bool), np.zeros(10_000, dtype=bool)) == pytest.approx(0, abs=1e-300)


@pytest.mark.parametrize(
    ("distilled", "baseline"),
    [
        (np.ones((2, 5), dtype=bool), np.ones((3, 5), dtype=bool)),
        (np.ones((2, 5), dtype=int), np.ones((2, 5), dtype=bool)),
        (np.ones(5, dtype=bool), np.ones(5, dtype=bool)),
        (np.ones((0, 5), dtype=bool), np.ones((0, 5), dtype=bool)),
        (np.ones((2, 1), dtype=bool), np.ones((2, 1), dtype=bool)),
    ],
)
def test_answers_that_are_not_pairs_of_right_or_wrong_are_refused(distilled, baseline):
    with pytest.raises(ValueError, match=r"must be bool \[seeds, pictures\]"):
        verdict(distilled, baseline)


# --- The verdict


def test_three_seeds_cover_no_effect_and_find_a_large_one():
    kinds = {"seeds": 3, "pictures": 500, "luck": 1.5}
    assert coverage(studies(effect=0, **kinds)) >= 0.9
    assert np.mean([found["answer"] == "helps" for found in studies(effect=6, **kinds)]) >= 0.7
    assert np.mean([found["answer"] == "hurts" for found in studies(effect=-6, **kinds)]) >= 0.7


def test_where_luck_of_the_seed_is_large_percentiles_are_too_narrow_and_the_verdict_is_not():
    kinds = {"seeds": 3, "pictures": 5000, "effect": 0, "luck": 2}
    assert coverage(studies(paired_bootstrap, **kinds)) < 0.9 <= coverage(studies(**kinds))


def test_the_verdicts_interval_holds_both_of_its_sources():
    for seeds in (2, 3, 12):
        distilled, baseline = study(np.random.default_rng(seeds), seeds, pictures=600, effect=3, luck=1)
        found, *sources = (kind(distilled, baseline) for kind in (verdict, paired_bootstrap, crossed_t))
        assert found["low"] == min(source["low"] for source in sources)
        assert found["high"] == max(source["high"] for source in sources)


def test_a_verdict_is_a_sentence():
    distilled, baseline = study(np.random.default_rng(6), seeds=5, pictures=1500, effect=6, luck=1)
    helps, hurts, same = verdict(distilled, baseline), verdict(baseline, distilled), verdict(baseline, baseline)
    assert [found["answer"] for found in (helps, hurts, same)] == ["helps", "hurts", "no difference shown"]
    points, low, high = (f"{helps[key]:.1f}" for key in ("points", "low", "high"))
    assert (
        helps["sentence"]
        == f"Distillation helps: +{points} points (95% {low} to {high}), 5 seeds, 1,500 test pictures."
    )
    assert hurts["sentence"].startswith(f"Distillation hurts: -{points} points (95% -")
    assert same["sentence"] == "No difference shown: +0.0 points (95% 0.0 to 0.0), 5 seeds, 1,500 test pictures."
    assert helps["p"] is None


def test_a_difference_that_rounds_to_nothing_has_no_sign():
    baseline = np.ones((2, 4000), dtype=bool)
    distilled = baseline.copy()
    distilled[0, 0] = False
    assert verdict(distilled, baseline)["sentence"].startswith("No difference shown: +0.0 points")


def test_one_pair_is_never_more_than_one_pair():
    baseline = np.arange(500)[None] < 300
    found = verdict(np.arange(500)[None] < 360, baseline)
    assert found["answer"] == "one seed" and found["p"] == mcnemar(np.arange(500) < 360, baseline[0])
    assert found["sentence"].startswith("No claim from this one pair: +12.0 points (95% ")
    assert ", McNemar's p < 0.001), one seed, 500 test pictures. One seed cannot tell" in found["sentence"]


def test_one_pair_needs_mcnemar_as_well_as_the_interval():
    distilled, baseline = np.arange(100)[None] < 55, np.arange(100)[None] < 50  # five wins, no loss: p = 2 / 2^5
    found = verdict(distilled, baseline)
    assert found["low"] > 0 and found["p"] == pytest.approx(1 / 16)
    assert found["answer"] == "no difference shown"
    assert found["sentence"].startswith("No difference shown from this one pair: +5.0 points")


def test_two_seeds_are_said_to_be_few():
    distilled, baseline = study(np.random.default_rng(7), seeds=2, pictures=300, effect=6, luck=1)
    assert "2 seeds, 300 test pictures. Two seeds are few" in verdict(distilled, baseline)["sentence"]
