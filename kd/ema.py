"""A moving average of a student's weights, which is validated, saved and kept in the place of the last ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
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
        self.decay, self.now = decay, decay
        self.average: AveragedModel | None = None

    def on_train_begin(self, args, state, control, model, **kwargs) -> None:
        if self.average is None:  # a resumed one has it from its checkpoint
            self._begin(model)

    def on_step_end(self, args, state, control, model, **kwargs) -> None:
        self.now = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        self.average.update_parameters(model)

    def on_train_end(self, args, state, control, model, **kwargs) -> None:
        if not args.load_best_model_at_end or state.best_model_checkpoint is None:
            model.load_state_dict(self.average.module.state_dict())
        self.average = None

    def _begin(self, model: nn.Module) -> None:
        self.average = AveragedModel(model, multi_avg_fn=self._move, use_buffers=True)
        self.average.n_averaged += 1  # it would take the first step's weights whole

    def _move(self, averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
        with torch.no_grad():
            if averages[0].is_floating_point():
                torch._foreach_lerp_(averages, values, 1 - self.now)
            else:
                torch._foreach_copy_(averages, values)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The average in ``model``, while there is one."""
        if self.average is None:
            yield
            return
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            model.load_state_dict(own)

    def save_own(self, model: nn.Module, checkpoint: Path) -> None:
        """Put the weights with which training goes on into a checkpoint whose model is the average."""
        save_model(model, str(checkpoint / OWN))

    def resume(self, model: nn.Module, checkpoint: Path) -> None:
        """Take the average from ``model``, which was loaded from ``checkpoint``, and put the weights of training there."""
        self._begin(model)
        load_model(model, str(checkpoint / OWN))
