"""Which seed's students are kept."""

from kd.training.checkpoints import student_folder
from kd.training.plan import trials_of
from kd.training.report import TrialResult, is_better, keep_students
from tests.support.runs import make_run


def test_a_later_seed_that_is_better_on_validation_takes_the_place_of_the_first(small, tmp_path):
    run = make_run(small, tmp_path, baseline="yes", trials=4, seed=3)
    results, places = [], []
    for trial, validation in zip(trials_of(run.config()), (0.7, 0.9, 0.8, 0.7, 0.8, 0.7, 0.75, 0.9), strict=True):
        student_folder(run, trial).mkdir(parents=True)
        (student_folder(run, trial) / "model").write_text(f"{trial.name} {trial.seed}")
        kept = is_better([result.scores for result in results], trial, validation)
        scores = {"arm": trial.name, "seed": trial.seed, "validation": validation, "kept": kept}
        results.append(TrialResult(trial, scores, {}))
        for _ in range(2):  # the second time it finds what a killed run had done
            keep_students(run, results)
        places.append({str(path.relative_to(run.path)): path.read_text() for path in run.path.rglob("model")})
    assert places[1] == {"student/model": "distilled 3", "arms/baseline-3/student/model": "baseline 3"}
    assert places[2] == {"student/model": "distilled 4"}
    assert places[3:] == [{"student/model": "distilled 4", "arms/baseline-4/student/model": "baseline 4"}] * 5
