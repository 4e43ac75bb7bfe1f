"""A run's result as HTML."""

import pytest

from kd.evaluation.latency import cost_ratios
from kd.ui.result import against, compared, proof_words, result, sentence
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
        "verdict": answer if baseline else None, "config": {}, "data": {"labels": "dataset"},
    }  # fmt: skip


def test_a_sentence_leads_then_a_verdict_with_a_sign_and_its_words_escaped():
    text = result(report())
    assert text.startswith('<p class="kd-sentence">The student has 80.0%, its teacher 90.0%')
    assert '<div class="kd-verdict kd-helps"><span class="kd-mark" aria-hidden="true">▲' in text
    assert EVIL not in text and "75.00%" in text


def test_the_sentence_is_what_a_person_would_say():
    one = report() | {"speedup": 5.2, "size_ratio": 8.6}
    one["trials"] = [
        {"arm": "distilled", "seed": 0, "accuracy": 0.896},
        {"arm": "baseline", "seed": 0, "accuracy": 0.884},
    ]
    one["teacher"] = one["teacher"] | {"accuracy": 0.9455}
    said = "The student has 89.6%, its teacher 94.6%: five times faster, nine times smaller"
    assert sentence(one) == f"{said}; without the teacher it has 88.4%."
    one["trials"].pop()
    assert sentence(one) == f"{said}."
    one["trials"].append({"arm": "distilled", "seed": 1, "accuracy": 0.906})
    assert sentence(one).startswith("On average over 2 seeds, the student has 90.1%, its")
    assert sentence(one | {"data": {"labels": "teacher"}}).startswith("The student says what its teacher says of 90.0%")
    assert sentence(one | {"teacher": None}) == "On average over 2 seeds, the model has 90.1% on the test pictures."


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(26.4, "26 times faster"), (5.6, "six times faster"), (2.0, "two times faster"), (1.42, "1.4 times faster"),
     (1.02, "as fast"), (0.98, "as fast"), (0.5, "two times slower")],
)  # fmt: skip
def test_a_ratio_is_said_in_words(ratio, words):
    assert compared(ratio, "faster", "slower", "as fast") == words


def test_a_student_hundreds_of_times_larger_than_its_teacher_is_shown_as_that():
    sides = [{"megabytes": m, "latency_ms": {"p50": p}} for m, p in ((0.025, 0.3), (9.05, 5.0))]
    ratios = cost_ratios(*sides)
    assert ratios == {"speedup": 0.06, "size_ratio": 0.0028}
    assert against(ratios["size_ratio"], "smaller", "larger").startswith("357")
    assert against(0.0, "smaller", "larger").endswith("larger")  # as older reports have it
    assert {against(ratio, "smaller", "larger") for ratio in (1.0, 0.96, 1.04)} == {"the same"}
    assert against(1.06, "smaller", "larger") == "1.1\N{MULTIPLICATION SIGN} smaller"
    assert compared(0.0, "smaller", "larger", "as large") == "200 times larger"


def test_a_proof_is_offered_until_there_are_enough_seeds_and_takes_as_long_as_its_trainings_would():
    def timed(seeds: int, baseline: bool = True, seconds: float = 60) -> tuple[dict, list[dict]]:
        one = report(seeds, baseline)
        one["trials"] = [trial | {"seconds": seconds} for trial in one["trials"]]
        ends = 100 + seconds * len(one["trials"])
        return one, [
            {"event": "training", "time": 100.0},
            {"event": "arm", "time": ends},
            {"event": "done", "time": ends + 30},
        ]

    assert proof_words(*timed(1)) == "Prove it: 3 seeds, about 6 minutes"  # six trainings of a minute, and half a one
    assert proof_words(*timed(1, baseline=False)) == "Prove it: 3 seeds, about 6 minutes"
    assert proof_words(*timed(1, seconds=5)) == "Prove it: 3 seeds, about a minute"
    assert proof_words(*timed(3)) == ""
    one, events = timed(1)
    for other in ({"teacher": None}, {"data": {"labels": "teacher"}}):
        assert proof_words(one | other, events) == ""
    events[1]["time"], events[2]["time"] = 160.0, 190.0  # both trainings went on at the same time
    assert proof_words(one, events) == "Prove it: 3 seeds, about 4 minutes"
    assert "Prove it" in result(one, proof_words(one, events)) and "Prove it" not in result(one)


def test_without_a_baseline_there_is_no_verdict():
    text = result(report(baseline=False))
    assert "kd-verdict" not in text and "without the teacher" not in text


def test_several_seeds_are_a_table_with_their_differences_and_mean():
    text = result(report(seeds=3))
    assert text.count("+5.00 points") == 4 and "Mean" in text and "81.00%" in text
    alone = result(report(seeds=3, baseline=False))
    assert "Difference" not in alone and "81.00%" in alone
    assert "Mean" not in result(report(seeds=1))


def test_a_student_that_learned_with_few_labels_is_compared_in_those_words():
    one = report(1) | {"config": {"labels": 500}}
    assert "; without the teacher, learning from 500 labels, it has" in sentence(one)
