"""ImageDistilTrainer against loops written by hand."""

import copy
import os

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, DefaultDataCollator, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

from kd import DistillConfig, ImageDistilTrainer, distillation_loss
from kd.models.device import Compute
from kd.models.student import load_student
from kd.training.losses import Method
from kd.training.trainer import training_arguments
from tests.support import architectures, toys


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.losses, self.gradients = [], []

    def on_log(self, args, state, control, logs, **kwargs) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))


OUTER = ("method", "warmup_epochs", "mixup", "lambda_param")
"""Arguments of our trainer's own; the others are those of ``TrainingArguments``."""


def trainer(tmp_path, student, teacher=None, data=None, note=None, **arguments) -> ImageDistilTrainer:
    own = {"lambda_param": 0.3, **{name: arguments.pop(name) for name in OUTER if name in arguments}}
    settings = {"per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": 1e-2, "max_grad_norm": 0.0}
    return ImageDistilTrainer(
        teacher_model=teacher,
        student_model=student,
        temperature=4.0,
        **own,
        args=TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, logging_steps=1, report_to="none", disable_tqdm=True,
            save_strategy="no", remove_unused_columns=False, lr_scheduler_type="constant", optim="sgd",
            **{**settings, **arguments},
        ),
        train_dataset=data or toys.Items(),
        data_collator=DefaultDataCollator(),
        callbacks=[note] if note else [],
    )  # fmt: skip


def test_three_steps_are_those_of_a_loop_written_by_hand(tmp_path):
    teacher = toys.tiny_resnet(toys.CLASSES, seed=7).eval()
    student, twin = toys.tiny_resnet(toys.CLASSES), toys.tiny_resnet(toys.CLASSES)
    note, seen = Losses(), []
    one = trainer(tmp_path, student, teacher, note=note)
    collate = one.data_collator
    one.data_collator = lambda rows: seen.append(collate(rows)) or seen[-1]
    one.train()

    expected = []
    optimizer = torch.optim.SGD(twin.train().parameters(), 1e-2)
    for batch in seen[:3]:
        values, labels = batch["pixel_values"], batch["labels"]
        logits = twin(values).logits
        with torch.no_grad():
            answers = teacher(values).logits
        p = (answers / 4).softmax(-1)
        soft = 16 * (p * (p.log() - (logits / 4).log_softmax(-1))).sum(-1).mean()
        loss = 0.7 * F.cross_entropy(logits, labels) + 0.3 * soft
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert note.losses == pytest.approx(expected, rel=1e-4)


def test_cached_logits_train_as_the_live_teacher_does(tmp_path):
    teacher = toys.tiny_resnet(toys.CLASSES, seed=7).eval()
    with torch.inference_mode():
        logits = teacher(toys.Items().values).logits.clone()
    live, cached = Losses(), Losses()
    trainer(tmp_path, toys.tiny_resnet(toys.CLASSES), teacher, note=live).train()
    trainer(tmp_path, toys.tiny_resnet(toys.CLASSES), None, toys.Items(logits), note=cached).train()
    assert cached.losses == pytest.approx(live.losses, abs=1e-5)


def still(module: torch.nn.Module) -> None:
    """Batch statistics and chance depend on how pictures are batched; the loss's scale must not."""
    if isinstance(module, torch.nn.BatchNorm2d):
        module.train = lambda mode=True: module
        torch.nn.Module.train(module, False)
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0


@pytest.mark.parametrize(
    "name",
    [
        "resnet",
        "convnextv2_atto",
        "mobilenet_v2_0.35",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("deit_tiny", "efficientnet_b0")),
    ],
)
def test_8x1_and_2x4_accumulate_the_same_gradient(tmp_path, name):
    def student():
        model = toys.tiny_resnet(toys.CLASSES) if name == "resnet" else load_student(name, toys.CLASSES, 32, 0).model
        return model.apply(still)

    logits = torch.randn(16, 3, generator=torch.Generator().manual_seed(3))
    gradients = []
    for batch, accumulated in ((8, 1), (2, 4), (4, 2)):
        note = Losses()
        trainer(
            tmp_path, student(), None, toys.Items(logits), note, max_steps=1,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated,
        ).train()  # fmt: skip
        gradients.append(note.gradients[0])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-3, atol=1e-5 * gradients[0].abs().max().item() + 1e-7)


def test_the_hard_loss_that_is_shown_is_the_mean_over_the_images_that_have_a_label(tmp_path):
    data = toys.Items(torch.randn(16, 3, generator=torch.Generator().manual_seed(3)))
    data.labels = torch.where(torch.arange(16) % 8 == 0, data.labels, -1)  # two of sixteen: most batches have none
    one = trainer(tmp_path, toys.tiny_resnet(toys.CLASSES).apply(still), None, data, max_steps=4, learning_rate=0.0)
    one.train()
    means, count = one.take_means()
    rows = data.labels >= 0
    with torch.no_grad():
        answers = one.model.train()(pixel_values=data.values).logits
    assert count == 16 and means.hard > 0
    expected = torch.nn.functional.cross_entropy(answers[rows], data.labels[rows]).item()
    assert means.hard == pytest.approx(expected, rel=0.35)  # BatchNorm sees other batches


def test_a_last_batch_that_is_smaller_weighs_each_picture_the_same(tmp_path):
    # 7 pictures as 4 + 3 accumulated: the mean over 7, not the mean of two means
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(3))
    student, note = toys.tiny_resnet(toys.CLASSES).apply(still), Losses()
    trainer(tmp_path, student, None, toys.Items(logits, 7), note, max_steps=1, gradient_accumulation_steps=2).train()
    twin, items = toys.tiny_resnet(toys.CLASSES).eval(), toys.Items(count=7)
    answers = twin(items.values).logits
    p = (logits / 4).softmax(-1)
    soft = 16 * (p * (p.log() - (answers / 4).log_softmax(-1))).sum(-1).mean()
    (0.7 * F.cross_entropy(answers, items.labels) + 0.3 * soft).backward()
    expected = torch.cat([p.grad.flatten() for p in twin.parameters()])
    torch.testing.assert_close(note.gradients[0], expected, rtol=1e-3, atol=1e-6)


def test_the_teacher_stays_as_it_is(tmp_path):
    teacher = toys.tiny_resnet(toys.CLASSES, seed=7)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer(tmp_path, toys.tiny_resnet(toys.CLASSES), teacher).train()
    assert not teacher.training
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_without_a_teacher_or_its_logits_the_message_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="no teacher_logits, and there is no teacher_model"):
        trainer(tmp_path, toys.tiny_resnet(toys.CLASSES)).train()


def test_a_temperature_of_0_is_refused(tmp_path):
    with pytest.raises(ValueError, match="temperature is 0"):
        ImageDistilTrainer(None, toys.tiny_resnet(toys.CLASSES), temperature=0, lambda_param=0.5)


def test_the_guide_s_own_cell_runs(tmp_path, teacher):
    """Transformers' "Knowledge distillation for computer vision", its code as it stands but for what it downloads,
    three arguments that need a GPU, the Hub or an older version, and the class itself, which is ours."""
    rng = np.random.default_rng(0)
    names = [toys.CLASSES[i % 3] for i in range(24)]
    features = Features({"image": ImageFeature(), "labels": ClassLabel(names=toys.CLASSES)})
    rows = {"image": [toys.picture(name, rng) for name in names], "labels": [toys.CLASSES.index(n) for n in names]}
    dataset = Dataset.from_dict(rows, features=features)
    teacher_processor = toys.processor()
    processed_datasets = dataset.map(lambda examples: teacher_processor(examples["image"]), batched=True)
    teacher_model = AutoModelForImageClassification.from_pretrained(
        teacher, num_labels=len(processed_datasets.features["labels"].names), ignore_mismatched_sizes=True
    )
    student_model = load_student("mobilenet_v2_0.35", toys.CLASSES, 32, 0).model

    def compute_metrics(eval_pred):
        predictions, labels = eval_pred
        return {"accuracy": float(np.mean(np.argmax(predictions, axis=1) == labels))}

    training_args = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=1,
        logging_strategy="epoch",
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    one = ImageDistilTrainer(
        student_model=student_model,
        teacher_model=teacher_model,
        training_args=training_args,
        train_dataset=processed_datasets,
        eval_dataset=processed_datasets,
        data_collator=DefaultDataCollator(),
        processing_class=teacher_processor,
        compute_metrics=compute_metrics,
        temperature=5,
        lambda_param=0.5,
    )
    one.train()
    assert 0 <= one.evaluate(processed_datasets)["eval_accuracy"] <= 1


def one_step_on_eight_pictures(folder) -> torch.Tensor:
    """The gradient of one step on the same eight pictures, however many processes share them."""
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(3))
    student, note = toys.tiny_resnet(toys.CLASSES).apply(still), Losses()
    processes = int(os.environ.get("WORLD_SIZE", 1))
    settings = {"ddp_backend": "gloo", "ddp_timeout": 60} if processes > 1 else {}
    trainer(
        folder, student, None, toys.Items(logits, 8), note,
        max_steps=1, per_device_train_batch_size=8 // processes, **settings,
    ).train()  # fmt: skip
    return note.gradients[0]


def one_of_two(folder) -> list[float]:
    gradient = one_step_on_eight_pictures(folder)
    torch.distributed.destroy_process_group()  # else its threads may abort the process as it ends
    return gradient.tolist()


def test_two_processes_average_to_the_gradient_of_one(tmp_path):
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1", start_method="spawn" if torch.cuda.is_available() else "fork",  # forked, they need not import torch again
    )  # fmt: skip
    together = torch.tensor(elastic_launch(config, one_of_two)(tmp_path)[0])
    torch.testing.assert_close(together, one_step_on_eight_pictures(tmp_path), rtol=1e-4, atol=1e-7)


# --- Mixup, warm-up, weight decay


class Recorded(torch.nn.Module):
    """A linear student that remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.norm, self.seen = torch.nn.Linear(3 * 8 * 8, 3), torch.nn.BatchNorm2d(3), []

    def forward(self, pixel_values, labels=None):
        self.seen.append(pixel_values)
        return ImageClassifierOutput(logits=self.head(self.norm(pixel_values).flatten(1)))


def batch() -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(4, 3, 8, 8, generator=generator),
        "teacher_logits": torch.randn(4, 3, generator=generator),
        "labels": torch.tensor([0, 1, 2, 0]),
    }


@pytest.mark.parametrize("method", ["kd", "dkd"])
def test_mixup_mixes_pictures_and_both_losses_by_one_share(tmp_path, method):
    learner = trainer(tmp_path, Recorded(), mixup=0.4, method=Method(method, 4.0))
    model = learner.model.train()
    torch.manual_seed(5)
    loss, outputs = learner.compute_loss(model, batch(), return_outputs=True)
    torch.manual_seed(5)
    share = torch.distributions.Beta(0.4, 0.4).sample().item()
    plain = batch()
    mixed = share * plain["pixel_values"] + (1 - share) * plain["pixel_values"].flip(0)
    torch.testing.assert_close(model.seen[0], mixed)
    settings = {"temperature": 4.0, "lambda_": 0.3, "method": Method(method, 4.0)}
    own = distillation_loss(outputs["logits"], plain["teacher_logits"], plain["labels"], **settings).total
    other = distillation_loss(
        outputs["logits"], plain["teacher_logits"].flip(0), plain["labels"].flip(0), **settings
    ).total
    torch.testing.assert_close(loss, share * own + (1 - share) * other)


def test_mixed_labels_are_cross_entropy_with_a_mixed_distribution(tmp_path):
    learner = trainer(tmp_path, Recorded(), mixup=1.0, lambda_param=0.0)
    torch.manual_seed(6)
    share = torch.distributions.Beta(1.0, 1.0).sample().item()
    torch.manual_seed(6)
    inputs = {name: value for name, value in batch().items() if name != "teacher_logits"}
    loss, outputs = learner.compute_loss(learner.model.train(), inputs, return_outputs=True)
    soft = share * F.one_hot(batch()["labels"], 3) + (1 - share) * F.one_hot(batch()["labels"].flip(0), 3)
    torch.testing.assert_close(loss, -(soft * outputs["logits"].log_softmax(-1)).sum(-1).mean())


def test_nothing_is_mixed_in_evaluation(tmp_path):
    learner = trainer(tmp_path, Recorded(), mixup=1.0)
    learner.compute_loss(learner.model.eval(), batch())
    torch.testing.assert_close(learner.model.seen[0], batch()["pixel_values"])


def test_the_warm_up_raises_the_teachers_weight_evenly(tmp_path):
    learner = trainer(tmp_path, Recorded(), warmup_epochs=4.0)
    learner.state.epoch = 1.0
    loss, outputs = learner.compute_loss(learner.model.eval(), batch(), return_outputs=True)
    parts = distillation_loss(outputs["logits"], batch()["teacher_logits"], batch()["labels"], 4.0, 0.3)
    torch.testing.assert_close(loss, 0.7 * parts.hard + 0.25 * 0.3 * parts.soft)
    learner.state.epoch = 0.0
    assert learner.compute_loss(learner.model, batch()).item() == pytest.approx(0.7 * parts.hard.item())
    learner.state.epoch = 4.5
    assert learner.compute_loss(learner.model, batch()).item() == pytest.approx(parts.total.item())


def test_weight_decay_leaves_norms_and_biases_alone(tmp_path):
    learner = trainer(tmp_path, Recorded(), weight_decay=0.1)
    learner.create_optimizer()
    decayed, free = learner.optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0
    assert [p.shape for p in decayed["params"]] == [(3, 192)]
    assert len(free["params"]) == 3


@pytest.mark.parametrize(
    ("name", "free"),
    [("convnextv2_atto", ["grn.weight", "grn.bias"]), ("deit_tiny", ["cls_token", "position_embeddings"])],
)
def test_weight_decay_leaves_alone_what_is_no_matrix_whatever_its_shape(tmp_path, name, free):
    student = load_student(name, toys.CLASSES, 32, seed=0).model
    decayed = trainer(tmp_path, student).get_decay_parameter_names(student)
    assert any(name.endswith(("q_proj.weight", "pwconv1.weight")) for name in decayed)
    for ending in free:
        every = [name for name, _ in student.named_parameters() if name.endswith(ending)]
        assert every and not set(every) & set(decayed)


def test_without_weight_for_the_teacher_none_is_needed(tmp_path):
    learner = trainer(tmp_path, Recorded(), lambda_param=0.0)
    inputs = {name: value for name, value in batch().items() if name != "teacher_logits"}
    loss, outputs = learner.compute_loss(learner.model.eval(), inputs, return_outputs=True)
    torch.testing.assert_close(loss, F.cross_entropy(outputs["logits"], inputs["labels"]))


@pytest.mark.parametrize(("images", "steps"), [(9, 2), (10, 3)])
def test_a_last_batch_of_one_picture_is_left_out_where_there_is_batch_norm(tmp_path, images, steps):
    seen = []

    class Watched(ImageDistilTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.append(inputs["pixel_values"].flatten(1).sum(1).tolist())
            return super().compute_loss(model, inputs, *args, **kwargs)

    config = DistillConfig(epochs=2, batch_size=4, seed=1)
    arguments = training_arguments(config, images, Compute(torch.device("cpu")), tmp_path)
    arguments.set_evaluate("no").set_save("no")
    arguments.load_best_model_at_end = False
    items = toys.Items(torch.zeros(images, 3), images)
    trainer = Watched(student_model=toys.tiny_resnet(toys.CLASSES), args=arguments, train_dataset=items)
    trainer.train()
    assert trainer.state.max_steps == len(seen) == 2 * steps and min(map(len, seen)) > 1
    epochs = [{value for batch in seen[start : start + steps] for value in batch} for start in (0, steps)]
    assert [len(epoch) for epoch in epochs] == [images - (images == 9)] * 2
    assert len(epochs[0] | epochs[1]) == images  # another one each time


def test_a_step_that_is_tried_changes_nothing_and_says_that_memory_runs_out(tmp_path, monkeypatch):
    class Batches(toys.Items):
        def __getitems__(self, indices: list[int]) -> dict:
            return DefaultDataCollator()([self[index] for index in indices])

    student = toys.tiny_resnet(toys.CLASSES)
    one, before = trainer(tmp_path, student, data=Batches(), lambda_param=0.0), copy.deepcopy(student.state_dict())
    drawn = torch.random.get_rng_state()
    one.check_memory()
    assert torch.equal(torch.random.get_rng_state(), drawn) and not one.sums.any()
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())

    def short(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(one, "compute_loss", short)
    with pytest.raises(torch.OutOfMemoryError, match="one of the processes"):
        one.check_memory()
    assert one.ran_out_together


def test_a_checkpoint_whose_file_names_the_weights_as_older_versions_did_is_loaded_whole(tmp_path):
    saved, fresh = (architectures.tiny("DeiTForImageClassification") for _ in range(2))
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(1)
    saved.save_pretrained(tmp_path / "checkpoint-1")
    names = set(load_file(tmp_path / "checkpoint-1" / "model.safetensors"))
    assert not names.issuperset(fresh.state_dict())  # else this test shows nothing
    one = trainer(tmp_path, fresh)
    for load in (one._load_from_checkpoint, lambda path: one._load_best_model()):
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter.zero_()
        one.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
        load(str(tmp_path / "checkpoint-1"))
        assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in saved.state_dict().items())
