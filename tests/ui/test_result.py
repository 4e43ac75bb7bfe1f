"""A run's result as HTML."""

from kd.ui.result import result
from tests.support.toys import EVIL


def report(seeds: int = 1, baseline: bool = True) -> dict:
    """What a run that is done has measured."""
    cost = {"parameters": 2e6, "megabytes": 8.0, "flops": 4e6}
    latency = {"p50": 1.0, "p95": 2.0, "dtype": "fp32", "device": "cpu", "threads": 1, "n": 50}
    side = {"accuracy": 0.9, "f1": 0.9, **cost, "latency_ms": latency, "seed": 0}
    arms = ("distilled", "baseline") if baseline else ("distilled",)
    trials = [{"arm": arm, "seed": seed, "accuracy": 0.8 + 0.01 * seed - 0.05 * (arm == "baseline")} for seed in range(seeds) for arm in arms]  # fmt: skip
    answer = {"answer": "helps", "sentence": f"Distillation helps {EVIL}"}
    return {
        "teacher": side, "student": side, "agreement": 0.9, "size_ratio": 1.0, "speedup": 1.0, "trials": trials,
        "baseline": {"accuracy": 0.75, "f1": 0.7, "agreement": 0.7} if baseline else None,
        "verdict": answer if baseline else None, "data": {"labels": "dataset"},
    }  # fmt: skip


def test_a_verdict_comes_first_with_a_sign_and_its_words_escaped():
    text = result(report())
    assert text.startswith('<p class="kd-verdict kd-helps"><span class="kd-mark" aria-hidden="true">▲')
    assert EVIL not in text and "75.00%" in text


def test_without_a_baseline_there_is_no_verdict():
    text = result(report(baseline=False))
    assert "kd-verdict" not in text and "without the teacher" not in text


def test_several_seeds_are_a_table_with_their_differences_and_mean():
    text = result(report(seeds=3))
    assert text.count("+5.00 points") == 4 and "Mean" in text and "81.00%" in text
    alone = result(report(seeds=3, baseline=False))
    assert "Difference" not in alone and "81.00%" in alone
    assert "Mean" not in result(report(seeds=1))
