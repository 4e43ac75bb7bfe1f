"""The average of the weights, against one reckoned by hand."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import DefaultDataCollator, TrainerCallback, TrainingArguments

from kd import ImageDistilTrainer
from kd.config import DistillConfig
from kd.distill import execute
from kd.runs.store import create_run
from kd.training.callback import RunCallback
from tests.support import toys


class Seen(TrainerCallback):
    """The weights before the first step and after each."""

    def __init__(self) -> None:
        self.weights: list[dict] = []

    def note(self, model) -> None:
        self.weights.append({name: value.clone() for name, value in model.state_dict().items()})

    def on_train_begin(self, args, state, control, model, **kwargs) -> None:
        self.note(model)

    def on_step_end(self, args, state, control, model, **kwargs) -> None:
        self.note(model)


def learner(folder, seen=None, **arguments) -> ImageDistilTrainer:
    return ImageDistilTrainer(
        student_model=toys.tiny_resnet(toys.CLASSES),
        lambda_param=0.0,
        ema=0.25,
        args=TrainingArguments(
            output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, remove_unused_columns=False,
            per_device_train_batch_size=4, learning_rate=0.1, **arguments,
        ),
        train_dataset=toys.Items(),
        eval_dataset=toys.Items(),
        data_collator=DefaultDataCollator(),
        compute_metrics=lambda answers: {"logits": answers.predictions.tolist()},
        callbacks=[seen] if seen else [],
    )  # fmt: skip


def average(weights: list[dict], decay: float) -> dict:
    """That of the first weights and those after each step, as the formula has it."""
    found = dict(weights[0])
    for step, now in enumerate(weights[1:], start=1):
        d = min(decay, (1 + step) / (10 + step))
        for name, value in now.items():
            found[name] = d * found[name] + (1 - d) * value if value.is_floating_point() else value
    return found


def same(one: dict, other: dict) -> bool:
    return all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_the_average_is_that_of_the_formula_and_what_a_training_without_a_choice_ends_with(tmp_path):
    seen = Seen()
    one = learner(tmp_path, seen, max_steps=5, save_strategy="no")
    one.train()
    assert len(seen.weights) == 6 and same(one.model.state_dict(), average(seen.weights, 0.25))
    assert not same(one.model.state_dict(), seen.weights[-1])
    one.evaluate()
    one.save_model(_internal_call=True)  # as `push_to_hub` does
    assert same(load_file(tmp_path / "model.safetensors"), one.model.state_dict())
    assert not (tmp_path / "own.safetensors").exists()
    assert same(one.model.state_dict(), average(seen.weights, 0.25))


def test_what_is_validated_and_saved_is_the_average_and_training_goes_on_from_its_own_weights(tmp_path):
    seen = Seen()
    one = learner(tmp_path, seen, max_steps=4, eval_strategy="steps", eval_steps=2, save_steps=2)
    one.train()
    (look,) = [row for row in one.state.log_history if "eval_logits" in row and row["step"] == 2]
    expected = average(seen.weights[:3], 0.25)
    checkpoint = tmp_path / "checkpoint-2"
    assert same(load_file(checkpoint / "model.safetensors"), expected)
    assert same(load_file(checkpoint / "own.safetensors"), seen.weights[2])
    twin = toys.tiny_resnet(toys.CLASSES)
    twin.load_state_dict(expected)
    with torch.inference_mode():
        answers = twin.eval()(toys.Items().values).logits
    torch.testing.assert_close(torch.tensor(look["eval_logits"]), answers, atol=1e-4, rtol=1e-4)

    again = learner(tmp_path / "again", max_steps=4, save_strategy="no")
    again.train(resume_from_checkpoint=str(checkpoint))
    assert same(again.model.state_dict(), one.model.state_dict())


def test_a_run_keeps_the_average_of_its_best_epoch_and_a_stopped_one_goes_on_to_the_same_end(
    small, tmp_path, monkeypatch
):
    config = DistillConfig.from_dict({**small, "ema": 0.5, "learning_rate": 0.01})
    unbroken, stopped = create_run(config, tmp_path, "t"), create_run(config, tmp_path, "t")
    execute(unbroken)
    with monkeypatch.context() as patched:
        end = RunCallback.on_evaluate

        def stop(self, args, state, control, metrics, **kwargs):
            end(self, args, state, control, metrics, **kwargs)
            self.run.ask_to_stop()

        patched.setattr(RunCallback, "on_evaluate", stop)
        execute(stopped)
    assert stopped.status() == "stopped"
    (best,) = stopped.path.glob("checkpoints/*/checkpoint-6")  # of the first epoch; it was stopped a step later
    student = load_file(stopped.path / "student" / "model.safetensors")
    assert same(student, load_file(best / "model.safetensors")) and not same(
        student, load_file(best / "own.safetensors")
    )
    execute(stopped, resume=True)
    first, last = ([e["loss"] for e in run.events() if e["event"] == "eval"] for run in (unbroken, stopped))
    assert last[-1] == pytest.approx(first[-1], rel=0.01) and first[-1] != pytest.approx(first[0], rel=0.01)


def test_a_checkpoint_whose_own_weights_are_cut_short_is_not_gone_on_from(tmp_path):
    from kd.training.checkpoints import last_checkpoint

    learner(tmp_path, max_steps=4, save_steps=2).train()
    for name in ("checkpoint-2", "checkpoint-4"):
        assert (tmp_path / name / "own.safetensors").exists()
    assert last_checkpoint(tmp_path, averaged=True).endswith("checkpoint-4")
    whole = (tmp_path / "checkpoint-4" / "own.safetensors").read_bytes()
    (tmp_path / "checkpoint-4" / "own.safetensors").write_bytes(whole[:-10])
    assert last_checkpoint(tmp_path, averaged=True).endswith("checkpoint-2")
    (tmp_path / "checkpoint-4" / "own.safetensors").unlink()
    assert last_checkpoint(tmp_path, averaged=True).endswith("checkpoint-2")


@pytest.mark.parametrize("ema", [-0.1, 1.0])
def test_a_decay_that_makes_no_average_is_refused(ema):
    with pytest.raises(ValueError, match="ema is"):
        DistillConfig(ema=ema)
