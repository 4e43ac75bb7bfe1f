"""Depthwise convolutions whose gradients are computed by a fast kernel on the CPU.

oneDNN, which PyTorch uses there, has fast kernels for depthwise convolutions, but not for every gradient: of some shapes
it picks one that is 10 to 150 times slower, and a MobileNet's step then spends half its time in four layers. Those
gradients are computed here as the same sums in another way. ``python -m kd bench`` measures what that gives.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALL_MAP = 4
"""On maps smaller than this the gradient of the weight has no fast kernel."""


class _Depthwise(torch.autograd.Function):
    """A convolution with one filter a channel: ``values`` ``[B, C, H, W]``, ``weight`` ``[C, 1, K, K]``."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx: Any, values: Tensor, weight: Tensor, stride: tuple, padding: tuple, dilation: tuple) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.settings = stride, padding, dilation
        return F.conv2d(values, weight, None, stride, padding, dilation, len(weight))

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        values, weight = ctx.saved_tensors
        needs_values, needs_weight, *_ = ctx.needs_input_grad
        of_values = _of_values(gradient, values, weight, *ctx.settings) if needs_values else None
        of_weight = _of_weight(gradient, values, weight, *ctx.settings) if needs_weight else None
        return of_values, of_weight, None, None, None


def _of_values(
    gradient: Tensor, values: Tensor, weight: Tensor, stride: tuple, padding: tuple, dilation: tuple
) -> Tensor:
    """With a stride, in bfloat16: the gradient spread over a map of zeros, then convolved with the mirrored filter at
    stride 1, as the transposed convolution is defined (Dumoulin and Visin 2016, arXiv:1603.07285, section 4.6)."""
    if max(stride) == 1 or gradient.dtype != torch.bfloat16:
        return _pytorch(gradient, values, weight, stride, padding, dilation, (True, False, False))[0]
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    size = [n - r + 2 * p for n, r, p in zip(values.shape[2:], reach, padding, strict=True)]
    spread = torch.empty((*values.shape[:2], *size), dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
    spread[:, :, :: stride[0], :: stride[1]][:, :, : gradient.shape[2], : gradient.shape[3]] = gradient
    padding = [r - p for r, p in zip(reach, padding, strict=True)]
    return F.conv2d(spread, weight.flip(2, 3), None, 1, padding, dilation, len(weight))


def _of_weight(
    gradient: Tensor, values: Tensor, weight: Tensor, stride: tuple, padding: tuple, dilation: tuple
) -> Tensor:
    """On a small map: a sum of products for each of the filter's taps, without those that see nothing but padding."""
    if min(gradient.shape[2:]) >= SMALL_MAP:
        return _pytorch(gradient, values, weight, stride, padding, dilation, (False, True, False))[1]
    answer, gradient, values = torch.zeros_like(weight, dtype=torch.float32), gradient.float(), values.float()
    rows, columns = (
        [_overlap(tap * dilation[i] - padding[i], stride[i], values.shape[2 + i], gradient.shape[2 + i])
         for tap in range(weight.shape[2 + i])]
        for i in (0, 1)
    )  # fmt: skip
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            if row and column:
                seen = values[:, :, row[0], column[0]] * gradient[:, :, row[1], column[1]]
                answer[:, 0, y, x] = seen.sum((0, 2, 3))
    return answer.to(weight.dtype)


def _overlap(shift: int, stride: int, inputs: int, outputs: int) -> tuple[slice, slice] | None:
    """Along one axis, which inputs a tap sees and at which outputs: output ``o`` sees input ``o * stride + shift``."""
    first = max(0, -(shift // stride))
    last = min(outputs - 1, (inputs - 1 - shift) // stride)
    if first > last:
        return None
    start = first * stride + shift
    return slice(start, start + (last - first) * stride + 1, stride), slice(first, last + 1)


def _pytorch(
    gradient: Tensor, values: Tensor, weight: Tensor, stride: tuple, padding: tuple, dilation: tuple,
    mask: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """PyTorch's own gradients of the values, the weight and the bias, where ``mask`` wants them."""
    return torch.ops.aten.convolution_backward(
        gradient, values, weight, None, stride, padding, dilation, False, (0, 0), len(weight), mask
    )


class DepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d`` with one filter a channel and these gradients; the same parameters under the same names."""

    def forward(self, values: Tensor) -> Tensor:
        if values.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(values)
        return _Depthwise.apply(values, self.weight, self.stride, self.padding, self.dilation)


def speed_up_depthwise(model: nn.Module) -> nn.Module:
    """Let a model's depthwise convolutions compute their gradients so; its weights and answers stay as they are."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _is_depthwise(module):
            module.padding = _padding(module)
            module.__class__ = DepthwiseConv2d
    return model


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """One filter a channel, and nothing that ``_Depthwise`` leaves out."""
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return (
        type(conv).forward is nn.Conv2d.forward  # a family's own subclass may only set it up (EfficientNet's does)
        and conv.groups == conv.in_channels == conv.out_channels > 1
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and not (conv.padding == "same" and any(r % 2 for r in reach))
        and all(p <= r for p, r in zip(_padding(conv), reach, strict=True))
    )


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    """In pixels, where it may be a word."""
    if conv.padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return (0, 0) if conv.padding == "valid" else conv.padding
