"""Which seed's students are kept."""

from kd.training.checkpoints import student_folder
from kd.training.plan import trials_of
from kd.training.report import is_better, keep_students, kept_seed
from tests.support.runs import make_run


def test_a_later_seed_that_is_better_on_validation_takes_the_place_of_the_first(small, tmp_path):
    run = make_run(small, tmp_path, baseline="yes", trials=4, seed=3)
    arms, trials, places = trials_of(run.config()), [], []
    for arm, validation in zip(arms, (0.7, 0.9, 0.8, 0.7, 0.8, 0.7, 0.75, 0.9), strict=True):
        student_folder(run, arm).mkdir(parents=True)
        (student_folder(run, arm) / "model").write_text(f"{arm.name} {arm.seed}")
        kept = is_better(trials, arm, validation)
        trials.append({"arm": arm.name, "seed": arm.seed, "validation": validation, "kept": kept})
        for _ in range(2):  # the second time it finds what a killed run had done
            keep_students(run, arms[: arm.nth], kept_seed(trials))
        places.append({str(path.relative_to(run.path)): path.read_text() for path in run.path.rglob("model")})
    assert places[1] == {"student/model": "distilled 3", "arms/baseline-3/student/model": "baseline 3"}
    assert places[2] == {"student/model": "distilled 4"}
    assert places[3:] == [{"student/model": "distilled 4", "arms/baseline-4/student/model": "baseline 4"}] * 5


def test_a_run_that_an_older_version_began_keeps_its_first_seeds_student_unless_a_new_one_is_better(small, tmp_path):
    arms = trials_of(make_run(small, tmp_path, trials=3).config())
    older = [{"arm": "distilled", "seed": seed, "validation": value} for seed, value in ((0, 0.7), (1, 0.9))]
    assert kept_seed(older) == 0  # the better one's student was deleted
    assert is_better(older, arms[2], 0.8) and not is_better(older, arms[2], 0.7)
