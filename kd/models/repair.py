"""Repair training settings that transformers carries over from TensorFlow."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.efficientnet.modeling_efficientnet import EfficientNetFinalBlockLayer


def heal(model: PreTrainedModel, random: bool = True) -> list[str]:
    """Give a model that will train PyTorch's meaning of two numbers and, where its weights are ``random``, initial ones of
    a sensible size; return what was changed.

    transformers carries TensorFlow's values over as they are. BatchNorm ``momentum=0.997`` (EfficientNet: 0.99) is
    TensorFlow's share of the *old* average; to PyTorch it is the share of the *new* batch, so the running statistics
    are those of the last batch and the model is evaluated on noise. It becomes 0.1, PyTorch's default (1 - 0.997
    would need a thousand steps to forget its start). ``classifier_dropout_prob=0.8`` is TensorFlow's *keep*
    probability (Sandler et al. 2018, arXiv:1801.04381); it becomes 0.2. Where EfficientNet drops a picture's whole block
    (``StochasticDepth``), transformers drops single numbers. All of this is of training alone: what the weights compute
    stays. A MobileNetV2's momentum is not in its config, so one that was healed is ill again once it is loaded.
    """
    changes = []
    norms = [
        module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and (module.momentum or 0) > 0.5
    ]
    if norms:
        changes.append(f"BatchNorm momentum {norms[0].momentum} -> 0.1 in {len(norms)} layers")
        for norm in norms:
            norm.momentum = 0.1
        if hasattr(model.config, "batch_norm_momentum"):
            model.config.batch_norm_momentum = 0.1
    if getattr(model.config, "classifier_dropout_prob", 0) > 0.5:
        keep = model.config.classifier_dropout_prob
        changes.append(f"classifier dropout {keep} -> {1 - keep:.1f}")
        model.config.classifier_dropout_prob = round(1 - keep, 3)
        model.dropout.p = round(1 - keep, 3)
    blocks = [module for module in model.modules() if isinstance(module, EfficientNetFinalBlockLayer)]
    if dropping := [
        b for b in blocks if b.apply_dropout and b.dropout.p and not isinstance(b.dropout, StochasticDepth)
    ]:
        changes.append(f"dropout of single numbers -> of whole blocks in {len(dropping)} layers")
        for block in dropping:
            block.dropout = StochasticDepth(block.dropout.p)
    if random and (small := _small_convolutions(model)):
        changes.append(f"initial weights of {len(small)} convolutions: normal(0, 0.02) -> Kaiming's")
        for convolution in small:
            nn.init.normal_(convolution.weight, 0, _kaiming(convolution))
    return changes


class StochasticDepth(nn.Dropout):
    """Drops what a block adds to a picture, ``[B, C, H, W]``, as a whole, with probability ``p``: Huang et al. (2016,
    arXiv:1603.09382), as EfficientNet was trained with (Tan and Le 2019, arXiv:1905.11946, section 5.2)."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * super().forward(values.new_ones(len(values), 1, 1, 1))


def _small_convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """The convolutions of a network with BatchNorm that start at less than half of Kaiming's size. At 0.02 a depthwise
    filter is 25 times smaller: what comes out of it is no larger than BatchNorm's epsilon (0.001)."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return []
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return [convolution for convolution in convolutions if convolution.weight.std() < _kaiming(convolution) / 2]


def _kaiming(convolution: nn.Conv2d) -> float:
    """The deviation of initial weights by what goes out of a unit (He et al. 2015, arXiv:1502.01852, section 2.2), of
    its own group, which ``nn.init.kaiming_normal_`` takes for all."""
    return math.sqrt(2 / (convolution.out_channels // convolution.groups * math.prod(convolution.kernel_size)))
