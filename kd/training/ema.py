"""A moving average of a student's weights, which is validated, saved and kept in the place of the last ones."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import TrainerCallback

OWN = "own.safetensors"
"""In a checkpoint: the weights with which training goes on; its model is the average."""


class Average(TrainerCallback):
    """The exponential moving average of the weights of `Trainer`'s model and of its norms' statistics.

    After step n of the optimiser the average goes from a to d a + (1 - d) w, with d = min(``decay``, (1 + n) / (10 + n)): the
    random weights at the beginning are soon forgotten (as in TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``).
    It costs a copy of the model in memory.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: nn.Module | None = None

    def on_train_begin(self, args, state, control, model, **kwargs) -> None:
        if self.average is None:  # a resumed one has it from its checkpoint
            self.average = copy.deepcopy(model)

    @torch.no_grad()
    def on_step_end(self, args, state, control, model, **kwargs) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        averages, values = tensors(self.average), tensors(model)
        floating = [nth for nth, value in enumerate(values) if value.is_floating_point()]
        torch._foreach_lerp_([averages[nth] for nth in floating], [values[nth] for nth in floating], 1 - decay)
        for nth in set(range(len(values))) - set(floating):
            averages[nth].copy_(values[nth])

    @torch.no_grad()
    def on_train_end(self, args, state, control, model, **kwargs) -> None:
        if not args.load_best_model_at_end or state.best_model_checkpoint is None:
            swap(self.average, model)
        self.average = None

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The average in ``model``, while there is one."""
        if self.average is None:
            yield
            return
        swap(self.average, model)
        try:
            yield
        finally:
            swap(self.average, model)

    def save_own(self, model: nn.Module, checkpoint: Path) -> None:
        """Put the weights with which training goes on into a checkpoint whose model is the average."""
        save_model(model, str(checkpoint / OWN))

    def resume(self, model: nn.Module, checkpoint: Path) -> None:
        """Take the average from ``model``, which was loaded from ``checkpoint``, and put the weights of training there."""
        self.average = copy.deepcopy(model)
        load_model(model, str(checkpoint / OWN))


def tensors(model: nn.Module) -> list[Tensor]:
    """Weights and statistics."""
    return [*model.parameters(), *model.buffers()]


@torch.no_grad()
def swap(one: nn.Module, other: nn.Module) -> None:
    """Exchange the weights and statistics of two models, one tensor after the other: on a GPU a copy of all may not fit."""
    for mine, theirs in zip(tensors(one), tensors(other), strict=True):
        kept = mine.clone()
        mine.copy_(theirs)
        theirs.copy_(kept)
