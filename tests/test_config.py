"""Settings: ranges, words, and the one name that Python reserves."""

import pytest

from kd import DistillConfig


def test_without_a_teacher_lambda_is_0_and_a_baseline_makes_no_sense():
    assert DistillConfig(teacher="none", lambda_=0.9).lambda_ == 0
    with pytest.raises(ValueError, match="baseline is yes, but the teacher is none"):
        DistillConfig(teacher="none", baseline="yes")


@pytest.mark.parametrize("base", ["sample", "none", "run:last"])
def test_a_teacher_is_made_from_pretrained_weights_with_their_recipe(base):
    made = DistillConfig.finetune("owner/model", dataset="owner/pictures")
    assert (made.teacher, made.student, made.dataset) == ("none", "owner/model", "owner/pictures")
    assert made.recipe == "pretrained" and made.lambda_ == 0
    with pytest.raises(ValueError, match="The model to fine-tune is"):
        DistillConfig.finetune(base)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("temperature", 0, "temperature is 0; expected a number above 0"),
        ("temperature", -1, "temperature is -1"),
        ("temperature", float("nan"), "temperature is nan"),
        ("temperature", float("inf"), "temperature is inf"),
        ("temperature", "hot", "temperature is 'hot'"),
        ("lambda", 1.5, "lambda is 1.5; expected a number from 0 to 1"),
        ("lambda", -0.1, "lambda is -0.1"),
        ("epochs", 0, "epochs is 0; expected a whole number, 1 or more"),
        ("epochs", 2.5, "epochs is 2.5"),
        ("batch_size", None, "batch_size is None"),
        ("targets", "later", "expected one of cached, online"),
        ("image_size", 4, "expected a whole number from 16 to 1024"),
        ("teacher", "", "teacher is ''"),
        ("lamda", 0.5, "Unknown setting lamda"),
        ("teacher", "  ", "expected text, for example sample"),
        ("device", "../../elsewhere", "expected auto, cpu, mps, cuda or cuda:N"),
        ("device", "banana", "device is 'banana'"),
        ("seed", 10**12, "expected a whole number from 0 to 4294967295"),
    ],
)
def test_a_bad_setting_is_refused_with_what_was_found_and_expected(setting, value, words):
    with pytest.raises(ValueError) as error:
        DistillConfig.from_dict({setting: value})
    assert words in str(error.value)


def test_settings_survive_json_and_lambda_has_its_own_name_there():
    config = DistillConfig(lambda_=0.25, temperature="3")
    assert config.to_dict()["lambda"] == 0.25 and config.temperature == 3.0
    assert DistillConfig.from_dict(config.to_dict()) == config


def test_the_home_of_nobody_is_no_path():
    config = DistillConfig(teacher="~nosuchuser/x")
    assert config.with_absolute_paths() == config


def test_the_beans_preset_is_the_guide():
    config = DistillConfig.preset("beans")
    assert (config.teacher, config.dataset) == ("merve/beans-vit-224", "AI-Lab-Makerere/beans")
    assert (config.student, config.temperature, config.lambda_, config.epochs) == ("mobilenet_v2_1.0", 5, 0.5, 30)


def test_with_a_method_comes_what_its_paper_sets_and_what_is_asked_for_wins():
    assert DistillConfig.preset("custom", method="dist").temperature == 1
    assert DistillConfig.preset("custom", method="kd+std").weight == 9
    assert DistillConfig.preset("sample", method="dkd", temperature=3).temperature == 3


def test_the_guide_s_recipe_is_the_guide_s_and_weights_that_know_something_are_moved_with_care():
    guide = DistillConfig.preset("custom", recipe="guide")
    assert (guide.learning_rate, guide.batch_size, guide.schedule, guide.warmup) == (5e-5, 8, "linear", 0)
    assert (guide.heal, guide.views, guide.temperature, guide.lambda_) == ("no", 1, 5, 0.5)
    ours, theirs = DistillConfig.preset("custom"), DistillConfig.preset("custom", student="owner/model")
    assert (ours.recipe, theirs.recipe) == ("scratch", "pretrained") and theirs.learning_rate < ours.learning_rate
    assert DistillConfig.preset("custom", student="owner/model", recipe="scratch").learning_rate == ours.learning_rate


@pytest.mark.parametrize("changes", [{"teacher": "none"}, {"dataset": "photos"}, {"teacher": "run:last"}])
def test_the_sample_s_baseline_is_not_forced_on_other_teachers_and_pictures(changes):
    assert DistillConfig.preset("sample").baseline == "yes"
    assert DistillConfig.preset("sample", **changes).baseline == "no"
    if changes != {"teacher": "none"}:
        assert DistillConfig.preset("sample", **changes, baseline="yes").baseline == "yes"
