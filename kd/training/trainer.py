"""`Trainer` with the loss of distillation, and its settings for a run."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from kd.config import DistillConfig
from kd.models.device import Compute
from kd.system import memory
from kd.training.batches import BlockOrder
from kd.training.distributed import ALONE, Ranks, SharedBatches
from kd.training.ema import WeightAverage
from kd.training.losses import DistillationLoss, Method, distillation_loss


class Diverged(Exception):
    """The loss or the weights are no longer finite numbers."""


class ImageDistilTrainer(Trainer):
    """`Trainer` with the loss of distillation.

    A batch with ``teacher_logits`` ``[B, C]`` needs no teacher. For any other batch ``teacher_model`` is called in every
    step, with ``teacher_pixel_values`` where the batch has them (the same crop at the teacher's input size), otherwise
    with ``pixel_values``.

    The positional arguments are those of the Transformers guide "Knowledge distillation for computer vision". All
    arguments of `Trainer` can be given too.

    Args:
        teacher_model: the teacher; not needed where batches have ``teacher_logits`` or ``lambda_param`` is 0.
        student_model: the model to train.
        temperature: T > 0 of the guide's loss.
        lambda_param: weight of the soft loss, 0 to 1.
        method: a soft loss other than the guide's, with its own temperature.
        warmup_epochs: epochs over which the weight of the soft loss grows linearly from 0.
        mixup: parameter of mixup's Beta distribution; 0 turns mixup off.
        ema: decay of the average of the weights that is evaluated and saved (``kd.training.ema``); 0 turns it off.
        known: bool ``[C]``, the classes that the teacher knows, where it does not know all.
        ranks: this process's place among those of a run that train together; with the default `Trainer` does what it does
            by itself.
        training_args: the guide's name for `Trainer`'s ``args``.

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
        ranks: Ranks = ALONE,
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
        self.method, self.warmup_epochs, self.mixup, self.ranks = method, warmup_epochs, mixup, ranks
        # What several processes have agreed on in the last step: whether to stop, and to write a ``step`` event.
        self.agreed: list[bool] | None = None
        # Whether several processes have agreed that the memory of one has run out.
        self.ran_out_together = False
        self.known = None if known is None else known.to(self.args.device)
        self.teacher = teacher_model and teacher_model.to(self.args.device).eval()
        # In which arithmetic the teacher is asked: the student's, unless it is set to another.
        self.teacher_autocast: Callable[[], AbstractContextManager] = self.accelerator.autocast
        # Where images are best read together, which lie together: int64 ``[N]``, set before training.
        self.blocks: np.ndarray | None = None
        self.average = WeightAverage(ema) if ema else None
        if self.average:
            self.add_callback(self.average)
        # `_divisor` averages over the images of the whole accumulated batch, so `Trainer` must not divide once more.
        self.model_accepts_loss_kwargs = True
        # Sums over the images since `take_means` was last called (total, soft, hard, count, count with a label). They stay on
        # the device, so that no training step waits for it.
        self.sums = torch.zeros(5, device=self.args.device)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch of ``pixel_values`` ``[B, 3, H, W]`` and ``labels`` ``[B]``."""
        share = self._mix(inputs) if model.training and self.mixup else 1.0
        outputs, labels = model(pixel_values=inputs["pixel_values"]), inputs["labels"]
        teacher = self._teacher_logits(inputs)
        loss = self._summed_loss(outputs.logits, teacher, labels)
        if share < 1:
            # Stored logits belong to the unmixed images, so the second loss takes those of the second image, as it takes its
            # label. A teacher that was called just now has seen the mixed images.
            other_teacher = teacher.flip(0) if "teacher_logits" in inputs else teacher
            other = self._summed_loss(outputs.logits, other_teacher, labels.flip(0))
            loss = DistillationLoss(*(share * a + (1 - share) * b for a, b in zip(loss, other, strict=True)))
        if model.training:
            count, labelled = self.sums.new_tensor(len(labels)), (labels >= 0).sum().float()
            total, soft, hard = (part.detach().float() for part in loss)
            self.sums += torch.stack([total, soft, hard * labelled / count, count, labelled])
        total = loss.total / self._divisor(num_items_in_batch, len(labels))
        return (total, {"logits": outputs.logits}) if return_outputs else total

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Compute a batch's gradients; those of several processes are averaged once all have got through.

        DistributedDataParallel would average them as they come. Then a process whose memory runs out would leave the others
        waiting for it, and they could not agree to go on with smaller parts. Students are small: this takes few milliseconds.
        """
        if self.ranks.count == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        loss = None
        model.forward_sync_buffers = False  # which would be an operation of all processes too
        with self.accelerator.no_sync(model):
            try:
                loss = super().training_step(model, inputs, num_items_in_batch)
            except RuntimeError as error:
                # The others may wait for this one's statistics, and cannot agree on anything: ``check_memory`` was to find
                # this out before, and ``kd.training.loop`` ends the run in words.
                if not memory.ran_out_on_gpu(error) or shared_batch_norms(self.model):
                    raise
        ran_out, *self.agreed = self.ranks.agree(loss is None, *self.run_callback.asks())
        if ran_out:
            self.ran_out_together = True
            raise torch.OutOfMemoryError("out of memory in one of the processes")
        if self.accelerator.sync_gradients:
            self.ranks.average(parameter.grad for parameter in model.parameters() if parameter.grad is not None)
        return loss

    def check_memory(self) -> None:
        """Try a step before the first where several processes share BatchNorm's statistics. One whose memory ran out within a
        step would leave the others waiting for them for ever; here each takes those of its own part. Nothing is changed.

        Raises ``torch.OutOfMemoryError`` in all processes where the memory of one runs out.
        """
        layers, size = shared_batch_norms(self.model), self.args.per_device_train_batch_size
        if self.ranks.count > 1 and not layers:
            return
        before, fits = [buffer.clone() for buffer in self.model.buffers()], True
        for layer in layers:
            layer.process_group = self.ranks.own_group
        try:
            batch = self.train_dataset.__getitems__(list(range(min(size, len(self.train_dataset)))))
            devices = [self.args.device] if self.args.device.type == "cuda" else []
            with torch.random.fork_rng(devices), self.accelerator.autocast():
                loss = self.compute_loss(self.model.train(), self._prepare_inputs(batch))
            loss.backward()
        except RuntimeError as error:
            if not memory.ran_out_on_gpu(error):
                raise
            fits = False
        for layer in layers:
            layer.process_group = None
        self.model.zero_grad()
        self.sums.zero_()
        for buffer, value in zip(self.model.buffers(), before, strict=True):
            buffer.data.copy_(value)
        (self.ran_out_together,) = self.ranks.agree(not fits)
        if self.ran_out_together:
            raise torch.OutOfMemoryError("out of memory in one of the processes")

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches of training; of several processes, this one's parts of them."""
        if self.ranks.count == 1:
            return super().get_train_dataloader()
        from accelerate.data_loader import prepare_data_loader

        size, dataset = self.ranks.count * self.args.per_device_train_batch_size, self.train_dataset
        least = 2 if has_batch_norm(self.model) and self.args.device.type == "cpu" else 1
        batches = SharedBatches(self._get_train_sampler(dataset), size, self.ranks, least)
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        # One process, as far as `accelerate` knows: the batches are parts already. Its order is that of one process.
        return prepare_data_loader(loader, self.args.device, 1, 0, put_on_device=True, use_seedable_sampler=True)

    def _get_train_sampler(self, *args: Any) -> Any:
        """Leave out one image of each epoch, drawn anew, where the last batch would have a single one and there is BatchNorm.

        The statistics of one image are those of no batch, and of a feature map of a single pixel there are none.
        """
        if self.blocks is not None:
            return BlockOrder(self.blocks, self.args.seed, self._left_over())
        sampler = super()._get_train_sampler(*args)
        if isinstance(sampler, RandomSampler) and self._left_over():
            return RandomSampler(sampler.data_source, num_samples=len(sampler) - 1, generator=sampler.generator)
        return sampler

    def _left_over(self) -> int:
        """Return how many images of an epoch are left out: one, where the last batch would be that one and there is
        BatchNorm. Of several processes ``SharedBatches`` leaves it out."""
        count, size = len(self.train_dataset), self.args.per_device_train_batch_size
        return int(self.ranks.count == 1 and count > size > 1 == count % size and has_batch_norm(self.model))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the averaged weights, where an average is kept."""
        self._share_statistics()
        with self._averaged():
            return super().evaluate(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the batches of evaluation; of several processes, those of this one's rows."""
        if self.ranks.count == 1:
            return super().get_eval_dataloader(eval_dataset)
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        rows, size = self.ranks.rows(len(dataset)), self.args.per_device_eval_batch_size
        batches = [list(range(rows.stop)[start : start + size]) for start in range(rows.start, rows.stop, size)]
        return DataLoader(
            dataset, batch_sampler=batches, collate_fn=self.data_collator, num_workers=self.args.dataloader_num_workers
        )

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate this process's rows, and return the figures of all rows. `Trainer` itself would fill up the last batches with
        images that it has seen, and count them in the loss."""
        if self.ranks.count == 1:
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        model, found = self.model.eval(), []
        for batch in dataloader:
            # Not ``prediction_step``, which counts the images of all processes, each time that one has a batch.
            with torch.no_grad(), self.compute_loss_context_manager():
                loss, outputs = self.compute_loss(model, self._prepare_inputs(batch), return_outputs=True)
            labels = batch["labels"].cpu().numpy()
            found.append((loss.item() * len(labels), outputs["logits"].float().cpu().numpy(), labels))
        every = [part for parts in self.ranks.gather(found) for part in parts]
        losses, logits, labels = zip(*every, strict=True)
        answers = EvalPrediction(np.concatenate(logits), np.concatenate(labels))
        metrics = {**self.compute_metrics(answers), "loss": sum(losses) / len(answers.label_ids)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(*answers, metrics, len(answers.label_ids))

    def _share_statistics(self) -> None:
        """Average what each of several processes knows of the images it has seen: BatchNorm's statistics. The others are alike."""
        for model in (self.model, self.average and self.average.average) if self.ranks.count > 1 else ():
            if model is not None:
                self.ranks.average(buffer for buffer in model.buffers() if buffer.is_floating_point())

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the state of the random numbers, before the first of several processes makes the checkpoint whole."""
        super()._save_rng_state(output_dir)
        self.ranks.agree(False)  # all have come so far

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the averaged weights, where an average is kept."""
        with self._averaged():
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average and self.args.should_save:
            self.average.save_own(self.model, Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._load_weights(resume_from_checkpoint)
        if self.average:
            self.average.resume(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self._load_weights(self.state.best_model_checkpoint)

    def _load_weights(self, checkpoint: str) -> None:
        """Load a checkpoint into the model, as ``from_pretrained`` does.

        Files name the weights of some models (DeiT, ViT) as older versions of transformers did. `Trainer` itself compares
        names, and passes over those that it does not find.
        """
        saved = type(self.model).from_pretrained(checkpoint, trust_remote_code=False)
        self.model.load_state_dict(saved.state_dict())

    def _averaged(self) -> AbstractContextManager[None]:
        """Return a context with the averaged weights in the model, where an average is kept."""
        return self.average.in_place(self.model) if self.average else nullcontext()

    def _summed_loss(self, logits: Tensor, teacher: Tensor | None, labels: Tensor) -> DistillationLoss:
        """Return the loss summed over the images of a batch."""
        soft_weight = min(1.0, (self.state.epoch or 0.0) / self.warmup_epochs) if self.warmup_epochs else 1.0
        return distillation_loss(
            logits, teacher, labels, self.temperature, self.lambda_param, reduction="sum", method=self.method,
            soft_weight=soft_weight, known=self.known,
        )  # fmt: skip

    def _mix(self, inputs: dict[str, Any]) -> float:
        """Mix each image with the one at the same place from the batch's end, and return the weight of the former.

        This is mixup, Zhang et al. (2018, arXiv:1710.09412), with one weight for the whole batch. ``inputs`` is changed.
        """
        share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
        for name in ("pixel_values", "teacher_pixel_values"):
            if name in inputs:
                inputs[name] = inputs[name].lerp(inputs[name].flip(0), 1 - share)
        return share

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the parameters with weight decay: matrices and filters, but no norms, biases and position embeddings.

        He et al. (2019, arXiv:1812.01187, section 3.1). Axes of length 1 do not count, since ConvNeXtV2's norms
        are ``[1, 1, 1, C]``. `Trainer` itself recognizes the norms of language models only.
        """
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.squeeze().ndim > 1 and not name.endswith("position_embeddings")
        ]

    @torch.no_grad()
    def _teacher_logits(self, inputs: dict[str, Any]) -> Tensor | None:
        """Return the batch's stored logits ``[B, C]``, else the teacher's; None where no teacher is needed."""
        if "teacher_logits" in inputs:
            return inputs["teacher_logits"]
        if self.teacher is None and self.lambda_param == 0:
            return None
        if self.teacher is None:
            raise ValueError("The batch has no teacher_logits, and there is no teacher_model to compute them.")
        # transformers' own context does nothing on a CPU, and covers the student alone.
        with self.teacher_autocast():
            logits = self.teacher(pixel_values=inputs.get("teacher_pixel_values", inputs["pixel_values"])).logits
        return logits.float()

    def _divisor(self, items: Any, batch: int) -> Any:
        """Return the number to divide a batch's summed loss by, so that the final gradient is that of the mean loss.

        ``items`` is the number of images in all micro-batches of a step, None outside training. Over several processes it
        counts the images of all of them (by default), while `accelerate` averages their gradients, so it is divided by
        the number of processes. Under DataParallel it counts one device's images, while the loss covers the whole batch.
        """
        if items is None:
            return batch
        items = items.flatten()[0] if torch.is_tensor(items) else items
        if self.args.average_tokens_across_devices:
            return items / self.accelerator.num_processes
        return items * max(1, self.args.n_gpu)

    def take_means(self) -> tuple[DistillationLoss, int]:
        """Return the mean losses over the images since the last call, and the number of images, of all processes; this waits
        for the device."""
        total, soft, hard, count, labelled = self.ranks.sum(self.sums.clone()).tolist()
        self.sums.zero_()
        return DistillationLoss(total / max(count, 1), soft / max(count, 1), hard / max(labelled, 1)), int(count)


def shared_batch_norms(model: nn.Module) -> list[nn.SyncBatchNorm]:
    """Return the layers of a model that take the statistics of all processes' images."""
    return [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether a model normalizes by the statistics of a batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def with_shared_batch_norm(model: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Return a model whose BatchNorm takes the statistics of the whole batch where several GPUs have a part of it each.

    PyTorch can do this on GPUs only; on the CPU each process takes those of its own part.
    """
    if ranks.count == 1 or device.type != "cuda":
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def training_arguments(
    config: DistillConfig, images: int, compute: Compute, folder: Path, parts: int = 1
) -> TrainingArguments:
    """Return `Trainer`'s settings for a run: AdamW, the configured learning rate schedule, and checkpoints in ``folder``.

    After each epoch the model is evaluated and saved; at the end the one with the best accuracy is loaded. ``images`` is the
    size of the training split. Each batch is split into ``parts`` micro-batches, whose gradients are accumulated.
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
        logging_nan_inf_filter=False,  # the filter would hide a diverged loss and wait for the device in every step
        remove_unused_columns=False,
        label_names=["labels"],  # else it takes them from the model's own arguments, and DeiT's with two heads has none
        dataloader_pin_memory=False,  # the batches are on the device already
        ddp_find_unused_parameters=False,
        log_level_replica="passive",
        disable_tqdm=True,
        report_to="none",
    )
