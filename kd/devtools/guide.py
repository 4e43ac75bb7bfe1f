"""The code of the Transformers guide "Knowledge distillation for computer vision", with which ours is compared.

It is docs/source/en/tasks/knowledge_distillation_for_image_classification.md of the repository of transformers: pixel
lists by ``dataset.map``, float32, the teacher in every step and in every evaluation, and the student as transformers
makes it. Changed are names that are gone, grey images, which become RGB, and the batch size of 8, which is the
benchmark's own here and faster.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Image
from transformers import (
    AutoModelForImageClassification,
    DefaultDataCollator,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from kd.data.splits import Splits
from kd.devtools.workload import Plan
from kd.models.student import load_student


class ImageDistilTrainer(Trainer):
    def __init__(self, teacher_model=None, student_model=None, temperature=None, lambda_param=None, **kwargs):
        super().__init__(model=student_model, **kwargs)
        self.teacher = teacher_model.to(self.args.device).eval()
        self.temperature, self.lambda_param = temperature, lambda_param
        self.loss_function = torch.nn.KLDivLoss(reduction="batchmean")

    def compute_loss(self, student, inputs, return_outputs=False, **kwargs):
        student_output = student(**inputs)
        with torch.no_grad():
            teacher_output = self.teacher(**inputs)
        soft_teacher = F.softmax(teacher_output.logits / self.temperature, dim=-1)
        soft_student = F.log_softmax(student_output.logits / self.temperature, dim=-1)
        distillation_loss = self.loss_function(soft_student, soft_teacher) * (self.temperature**2)
        loss = (1.0 - self.lambda_param) * student_output.loss + self.lambda_param * distillation_loss
        return (loss, student_output) if return_outputs else loss


def process(splits: Splits, processor: Any, folder: Path) -> dict[str, Any]:
    """Turn each split into lists of pixel values with the teacher's processor."""

    def process_batch(examples: dict[str, Any]) -> dict[str, Any]:
        return processor([image.convert("RGB") for image in examples["image"]])

    return {
        name: getattr(splits, name).cast_column("image", Image()).map(
            process_batch, batched=True, remove_columns="image", cache_file_name=str(folder / f"guide-{name}.arrow")
        )
        for name in splits.sizes()
    }  # fmt: skip


def build_trainer(
    plan: Plan, classes: list[str], processor: Any, processed: dict[str, Any], folder: Path
) -> ImageDistilTrainer:
    """Build the guide's trainer; where only a part of the recipe is measured, it neither evaluates nor saves."""
    if plan.student == "mobilenet_v2_1.0":
        student = MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=len(classes)))
    else:
        student = load_student(plan.student, classes, plan.image_size, 0, repair=False).model
    each_epoch = "epoch" if plan.full else "no"
    trainer = ImageDistilTrainer(
        student_model=student,
        teacher_model=AutoModelForImageClassification.from_pretrained(folder / "teacher", trust_remote_code=False),
        args=TrainingArguments(
            output_dir=str(folder / "guide"), num_train_epochs=plan.epochs if plan.full else 10**6,
            per_device_train_batch_size=plan.batch_size, per_device_eval_batch_size=plan.batch_size,
            logging_strategy="epoch", eval_strategy=each_epoch, save_strategy=each_epoch, save_total_limit=2,
            metric_for_best_model="accuracy", load_best_model_at_end=plan.full, report_to="none", disable_tqdm=True,
            use_cpu=plan.device == "cpu",
        ),
        train_dataset=processed["train"],
        eval_dataset=processed["validation"],
        data_collator=DefaultDataCollator(),
        processing_class=processor,
        compute_metrics=lambda answers: {"accuracy": float((answers[0].argmax(-1) == answers[1]).mean())},
        temperature=5,
        lambda_param=0.5,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer
