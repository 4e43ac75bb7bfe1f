"""Training: the guide's ``ImageDistilTrainer``, the batches it eats, and the callback that writes a run's events."""

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from kd.config import DistillConfig
from kd.models.device import Compute
from kd.training.ema import Average
from kd.training.losses import DistillationLoss, Method, distillation_loss


class Diverged(Exception):
    """The loss is not a number any more."""


class ImageDistilTrainer(Trainer):
    """`Trainer` with the loss of distillation.

    A batch that has ``teacher_logits`` ``[B, C]`` needs no teacher; else ``teacher_model`` answers in every step, from
    ``teacher_pixel_values`` where the batch has them (the same crop at the teacher's own size) or ``pixel_values``.

    The arguments are those of the Transformers guide "Knowledge distillation for computer vision", among them
    ``training_args``, which the guide writes for `Trainer`'s ``args``. ``method`` is another loss than the guide's, which
    then has its own temperature; its weight grows evenly over the first ``warmup_epochs``. ``mixup`` is the parameter of its
    Beta distribution, 0 for none. ``ema`` is the decay of an average of the weights, which is evaluated and saved in their place,
    0 for none (``kd.training.ema``). ``known``, bool ``[C]``, are the classes that the teacher knows, if not all. With
    ``lambda_param`` 0 there need be no teacher.

    Raises:
        ValueError: for a temperature of 0 or less, or a lambda outside 0 to 1.
    """

    def __init__(
        self,
        teacher_model: nn.Module | None = None,
        student_model: nn.Module | None = None,
        temperature: float = 5.0,
        lambda_param: float = 0.5,
        *args: Any,
        method: Method | None = None,
        warmup_epochs: float = 0.0,
        mixup: float = 0.0,
        ema: float = 0.0,
        known: Tensor | None = None,
        training_args: Any = None,
        **kwargs: Any,
    ) -> None:
        if not temperature > 0 or not 0 <= lambda_param <= 1:
            raise ValueError(
                f"temperature is {temperature} and lambda {lambda_param}; expected above 0, and from 0 to 1."
            )
        if training_args is not None:
            kwargs["args"] = training_args
        super().__init__(student_model, *args, **kwargs)
        self.temperature = temperature
        self.lambda_param = lambda_param
        self.method, self.warmup_epochs, self.mixup = method, warmup_epochs, mixup
        self.known = None if known is None else known.to(self.args.device)
        self.teacher = teacher_model and teacher_model.to(self.args.device).eval()
        self.average = Average(ema) if ema else None
        if self.average:
            self.add_callback(self.average)
        # Our loss divides by the number of pictures of the whole accumulated batch, whatever the model's signature.
        self.model_accepts_loss_kwargs = True
        # Sums over the pictures seen since the last look (total, soft, hard, count): read without stopping the device.
        self.sums = torch.zeros(4, device=self.args.device)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch of ``pixel_values`` ``[B, 3, H, W]`` and ``labels`` ``[B]``."""
        share = self._mix(inputs) if model.training and self.mixup else 1.0
        outputs, labels = model(pixel_values=inputs["pixel_values"]), inputs["labels"]
        teacher = self._teacher_logits(inputs)
        loss = self._sums(outputs.logits, teacher, labels)
        if share < 1:
            # Kept answers are mixed as the labels are; a teacher that was asked has seen the mixed pictures themselves.
            theirs = teacher.flip(0) if "teacher_logits" in inputs else teacher
            other = self._sums(outputs.logits, theirs, labels.flip(0))
            loss = DistillationLoss(*(share * a + (1 - share) * b for a, b in zip(loss, other, strict=True)))
        if model.training:
            seen = self.sums.new_tensor(len(labels))
            self.sums += torch.stack([*(part.detach().float() for part in loss), seen])
        total = loss.total / self._share(num_items_in_batch, len(labels))
        return (total, {"logits": outputs.logits}) if return_outputs else total

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self._averaged():
            return super().evaluate(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with self._averaged():
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average and self.args.should_save:
            self.average.save_own(self.model, Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average:
            self.average.resume(self.model, Path(resume_from_checkpoint))

    def _averaged(self) -> AbstractContextManager[None]:
        """The averaged weights in the model, where they are asked for."""
        return self.average.in_place(self.model) if self.average else nullcontext()

    def _sums(self, logits: Tensor, teacher: Tensor | None, labels: Tensor) -> DistillationLoss:
        """The loss summed over a batch's pictures."""
        warmth = min(1.0, (self.state.epoch or 0.0) / self.warmup_epochs) if self.warmup_epochs else 1.0
        return distillation_loss(
            logits, teacher, labels, self.temperature, self.lambda_param, reduction="sum", method=self.method,
            soft_weight=warmth, known=self.known,
        )  # fmt: skip

    def _mix(self, inputs: dict[str, Any]) -> float:
        """Mix each picture of a batch with another, in place, and return its own share: mixup, Zhang et al. (2018,
        arXiv:1710.09412), one share a batch. The other is the one at the same place from the batch's end."""
        share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
        for name in ("pixel_values", "teacher_pixel_values"):
            if name in inputs:
                inputs[name] = inputs[name].lerp(inputs[name].flip(0), 1 - share)
        return share

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay is for matrices and filters, not for norms and biases (He et al. 2019, arXiv:1812.01187, section
        3.1), whatever their shape (ConvNeXtV2's are [1, 1, 1, C]), nor for what a ViT adds to its patches; `Trainer` knows
        the norms of language models only."""
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.squeeze().ndim > 1 and not name.endswith("position_embeddings")
        ]

    @torch.no_grad()
    def _teacher_logits(self, inputs: dict[str, Any]) -> Tensor | None:
        if "teacher_logits" in inputs:
            return inputs["teacher_logits"]
        if self.teacher is None and self.lambda_param == 0:
            return None
        if self.teacher is None:
            raise ValueError("The batch has no teacher_logits, and there is no teacher_model to ask for them.")
        return self.teacher(pixel_values=inputs.get("teacher_pixel_values", inputs["pixel_values"])).logits

    def _share(self, items: Any, batch: int) -> Any:
        """What a batch's sum is divided by, so that the accumulated, averaged gradient is that of the mean.

        ``items`` counts the pictures of all micro-batches. Over several processes `accelerate` averages gradients
        while ``items`` (unless told otherwise) counts all of them; under DataParallel our loss sees the whole batch
        while `Trainer` (then) counts one device's part.
        """
        if items is None:
            return batch
        items = items.flatten()[0] if torch.is_tensor(items) else items
        if self.args.average_tokens_across_devices:
            return items / self.accelerator.num_processes
        return items * max(1, self.args.n_gpu)

    def take_means(self) -> tuple[DistillationLoss, int]:
        """Mean losses over the pictures since the last call, and how many there were. Waits for the device."""
        *sums, count = self.sums.tolist()
        self.sums.zero_()
        return DistillationLoss(*(value / max(count, 1) for value in sums)), int(count)


def training_arguments(
    config: DistillConfig, images: int, compute: Compute, folder: Path, parts: int = 1
) -> TrainingArguments:
    """Return `Trainer`'s own settings: AdamW, one cycle of the learning rate, an evaluation and a checkpoint in ``folder``
    after each epoch, the best by accuracy loaded at the end.

    ``images`` is the size of the training split. Each batch is cut into ``parts``, whose gradients are summed.
    """
    steps = math.ceil(images / config.batch_size)
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size // parts,
        gradient_accumulation_steps=parts,
        per_device_eval_batch_size=max(1, 128 // parts),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=round(config.warmup * steps * config.epochs),
        lr_scheduler_type=config.schedule,
        optim="adamw_torch_fused",
        seed=config.seed,
        bf16=compute.precision == "bf16",
        fp16=compute.precision == "fp16",
        use_cpu=compute.device.type == "cpu",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        logging_steps=max(1, steps // 10),
        logging_nan_inf_filter=False,  # it would hide a loss that is no number, and wait for the device every step
        remove_unused_columns=False,
        dataloader_pin_memory=False,  # batches are on the device already
        disable_tqdm=True,
        report_to="none",
    )
