"""An exponential moving average of a student's weights, which is evaluated and saved in place of the weights themselves."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import TrainerCallback

# The file in a checkpoint with the weights from which training continues; the checkpoint's model is their average.
OWN = "own.safetensors"


# torch's own `AveragedModel` is not used: it copies its counter to the GPU in every step, so that the CPU waits for the
# GPU; its first update copies instead of averaging; and it averages integer counters (``num_batches_tracked``), which are
# copied here. Working around these takes more lines than it saves.
class WeightAverage(TrainerCallback):
    """The exponential moving average of the parameters of `Trainer`'s model and of its norm layers' statistics.

    After step n of the optimiser the average a becomes d a + (1 - d) w, with d = min(``decay``, (1 + n) / (10 + n)), so
    that the random weights of the beginning are soon forgotten (as in TensorFlow's ``ExponentialMovingAverage`` with
    ``num_updates``). It takes the memory of a second model.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: nn.Module | None = None

    def on_train_begin(self, args, state, control, model, **kwargs) -> None:
        if self.average is None:  # a resumed training has loaded it from its checkpoint
            self.average = copy.deepcopy(model)

    @torch.no_grad()
    def on_step_end(self, args, state, control, model, **kwargs) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        averages, values = _tensors(self.average), _tensors(model)
        floating = [nth for nth, value in enumerate(values) if value.is_floating_point()]
        torch._foreach_lerp_([averages[nth] for nth in floating], [values[nth] for nth in floating], 1 - decay)
        for nth in set(range(len(values))) - set(floating):
            averages[nth].copy_(values[nth])

    @torch.no_grad()
    def on_train_end(self, args, state, control, model, **kwargs) -> None:
        if not args.load_best_model_at_end or state.best_model_checkpoint is None:
            _swap(self.average, model)
        self.average = None

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Put the average into ``model`` for the time of the context, if there is an average already."""
        if self.average is None:
            yield
            return
        _swap(self.average, model)
        try:
            yield
        finally:
            _swap(self.average, model)

    def save_own(self, model: nn.Module, checkpoint: Path) -> None:
        """Save the weights from which training continues into a checkpoint whose model is the average."""
        save_model(model, str(checkpoint / OWN))

    def resume(self, model: nn.Module, checkpoint: Path) -> None:
        """Take the average from ``model``, as loaded from ``checkpoint``, and load the weights of training into ``model``."""
        self.average = copy.deepcopy(model)
        load_model(model, str(checkpoint / OWN))


def _tensors(model: nn.Module) -> list[Tensor]:
    """Return a model's parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


@torch.no_grad()
def _swap(one: nn.Module, other: nn.Module) -> None:
    """Exchange the parameters and buffers of two models, tensor by tensor: a third model may not fit into a GPU."""
    for first, second in zip(_tensors(one), _tensors(other), strict=True):
        copied = first.clone()
        first.copy_(second)
        second.copy_(copied)
