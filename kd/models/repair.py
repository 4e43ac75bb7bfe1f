"""Repair training settings that transformers carries over from TensorFlow."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.efficientnet.modeling_efficientnet import EfficientNetFinalBlockLayer


def repair_training_settings(model: PreTrainedModel, random_weights: bool = True) -> list[str]:
    """Correct a model's BatchNorm momentum, dropout and, where it has ``random_weights``, their size; return the changes.

    transformers takes over TensorFlow's numbers, which mean something else in PyTorch:

    - BatchNorm ``momentum=0.997`` (EfficientNet: 0.99) is the weight of the *old* average in TensorFlow, but of the *new*
      batch in PyTorch. The running statistics are then those of the last batch alone, which makes evaluation noisy. It
      becomes PyTorch's default of 0.1, because 1 - 0.997 would need a thousand steps to forget the initial statistics.
    - ``classifier_dropout_prob=0.8`` is the probability to *keep* a value in TensorFlow (Sandler et al. 2018,
      arXiv:1801.04381). It becomes 0.2.
    - EfficientNet was trained with stochastic depth, which drops a block's whole output for an image. transformers drops
      single values instead. ``StochasticDepth`` takes their place.

    None of this changes what the weights compute in evaluation. MobileNetV2's momentum is not part of its config, so a
    saved and reloaded model has the wrong momentum again and must be repaired before it trains further.
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
    if random_weights and (small := _small_convolutions(model)):
        changes.append(f"initial weights of {len(small)} convolutions: normal(0, 0.02) -> Kaiming's")
        for convolution in small:
            nn.init.normal_(convolution.weight, 0, _kaiming_deviation(convolution))
    return changes


class StochasticDepth(nn.Dropout):
    """A layer that drops a residual block's whole output ``[B, C, H, W]`` for an image with probability ``p``.

    Huang et al. (2016, arXiv:1603.09382); EfficientNet was trained with it (Tan and Le 2019, arXiv:1905.11946, section 5.2).
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * super().forward(values.new_ones(len(values), 1, 1, 1))


def _small_convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions whose initial weights have less than half of Kaiming's deviation, if the model has BatchNorm.

    At a deviation of 0.02 a depthwise filter is 25 times too small: its output is no larger than BatchNorm's epsilon (0.001).
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return []
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return [
        convolution for convolution in convolutions if convolution.weight.std() < _kaiming_deviation(convolution) / 2
    ]


def _kaiming_deviation(convolution: nn.Conv2d) -> float:
    """Return the standard deviation of initial weights by fan-out (He et al. 2015, arXiv:1502.01852, section 2.2).

    The fan-out counts the outputs of one group. ``nn.init.kaiming_normal_`` would count those of all groups.
    """
    return math.sqrt(2 / (convolution.out_channels // convolution.groups * math.prod(convolution.kernel_size)))
