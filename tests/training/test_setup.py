"""What a run prepares before it trains."""

from transformers import MobileNetV2ImageProcessorPil

from kd.training.plan import trials_of
from kd.training.setup import build_student, load_job_splits, start_job
from tests.support import toys
from tests.support.runs import make_run


def test_every_arm_of_a_pretrained_student_sees_with_its_own_processor(small, tmp_path):
    toys.tiny_resnet(toys.CLASSES).save_pretrained(tmp_path / "base")
    MobileNetV2ImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "base"
    )
    run = make_run(small, tmp_path, student=str(tmp_path / "base"), image_size=None, baseline="yes")
    job = start_job(run)
    splits, trials = load_job_splits(job), trials_of(job.config)
    first, second = (build_student(job.config, splits, trial.seed).processor.to_dict() for trial in trials)
    assert first == second and first["size"]["shortest_edge"] == 40
