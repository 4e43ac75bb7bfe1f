"""What a run prepares before it trains."""

from transformers import MobileNetV2ImageProcessorPil

from kd.training.plan import trials_of
from kd.training.setup import Progress, for_trial, prepare
from tests.support import toys
from tests.support.runs import make_run


def test_every_arm_of_a_pretrained_student_sees_with_its_own_processor(small, tmp_path):
    toys.tiny_resnet(toys.CLASSES).save_pretrained(tmp_path / "base")
    MobileNetV2ImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "base"
    )
    run = make_run(small, tmp_path, student=str(tmp_path / "base"), image_size=None, baseline="yes")
    work = prepare(run, Progress(run))
    first, second = (for_trial(work, arm).student.processor.to_dict() for arm in trials_of(work.config))
    assert first == second and first["size"]["shortest_edge"] == 40
