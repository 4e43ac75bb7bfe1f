"""Depthwise convolutions with fast gradients on the CPU.

oneDNN, which PyTorch uses on the CPU, has fast kernels for depthwise convolutions but not for all of their gradients. For
some shapes it falls back to a kernel that is 10 to 150 times slower, and a MobileNet then spends half of each training
step in four layers. This module computes those gradients as the same sums by other operations. ``python -m kd bench``
measures the gain.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Below this side of the feature map, oneDNN has no fast kernel for the gradient of the weight.
SMALL_MAP = 4
# Nor has it one for filters of other sides than this.
FAST_FILTER = 3


# Not a NamedTuple: `custom_fwd` rebuilds tuples from a generator, which a NamedTuple's constructor does not take.
@dataclass(frozen=True)
class _Geometry:
    """How a convolution moves its filter, in pixels (vertical, horizontal)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class _Depthwise(torch.autograd.Function):
    """A convolution with one filter per channel: ``values`` ``[B, C, H, W]``, ``weight`` ``[C, 1, K, K]``."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx: Any, values: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.geometry = geometry
        return F.conv2d(values, weight, None, geometry.stride, geometry.padding, geometry.dilation, len(weight))

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        values, weight = ctx.saved_tensors
        needs_values, needs_weight, *_ = ctx.needs_input_grad
        of_values = _gradient_of_values(gradient, values, weight, ctx.geometry) if needs_values else None
        of_weight = _gradient_of_weight(gradient, values, weight, ctx.geometry) if needs_weight else None
        return of_values, of_weight, None


def _gradient_of_values(gradient: Tensor, values: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """Return the gradient of the input from ``gradient``, that of the output.

    PyTorch is slow with a stride in bfloat16. There the gradient is spread over a map of zeros and convolved with the
    mirrored filter at stride 1, which is how the transposed convolution is defined (Dumoulin and Visin 2016,
    arXiv:1603.07285, section 4.6).
    """
    if max(geometry.stride) == 1 or gradient.dtype != torch.bfloat16:
        return _pytorch_gradients(gradient, values, weight, geometry, (True, False, False))[0]
    down, right = geometry.stride
    reach = [d * (k - 1) for d, k in zip(geometry.dilation, weight.shape[2:], strict=True)]
    size = [n - r + 2 * p for n, r, p in zip(values.shape[2:], reach, geometry.padding, strict=True)]
    spread = torch.empty((*values.shape[:2], *size), dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
    spread[:, :, ::down, ::right][:, :, : gradient.shape[2], : gradient.shape[3]] = gradient
    padding = [r - p for r, p in zip(reach, geometry.padding, strict=True)]
    return F.conv2d(spread, weight.flip(2, 3), None, 1, padding, geometry.dilation, len(weight))


def _gradient_of_weight(gradient: Tensor, values: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """Return the gradient of the filters from ``gradient``, that of the output.

    PyTorch is slow with large filters and on small feature maps. On small maps each element of the filter gets its sum of
    products, except the elements that only ever meet padding, whose gradient is 0.
    """
    if min(gradient.shape[2:]) >= SMALL_MAP:
        if min(weight.shape[2:]) > FAST_FILTER:
            return _gradient_of_large_weight(gradient, values, weight, geometry)
        return _pytorch_gradients(gradient, values, weight, geometry, (False, True, False))[1]
    answer, gradient, values = torch.zeros_like(weight, dtype=torch.float32), gradient.float(), values.float()
    rows, columns = (
        [_overlap(k * geometry.dilation[i] - geometry.padding[i], geometry.stride[i], values.shape[2 + i],
                  gradient.shape[2 + i]) for k in range(weight.shape[2 + i])]
        for i in (0, 1)
    )  # fmt: skip
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            if row and column:
                products = values[:, :, row[0], column[0]] * gradient[:, :, row[1], column[1]]
                answer[:, 0, y, x] = products.sum((0, 2, 3))
    return answer.to(weight.dtype)


def _gradient_of_large_weight(gradient: Tensor, values: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """Return the gradient of filters larger than 3 x 3, block of 3 x 3 by block.

    A block's gradient is that of a small filter which meets the same values, so far to the right and down as the block lies.
    """
    (down, right), (dilate_y, dilate_x) = geometry.padding, geometry.dilation
    values = F.pad(values, (right, right, down, down))
    answer, block = torch.empty_like(weight), weight[:, :, :FAST_FILTER, :FAST_FILTER].contiguous()
    small = _Geometry(geometry.stride, (0, 0), geometry.dilation)
    height, width = (
        (n - 1) * stride + (FAST_FILTER - 1) * dilation + 1
        for n, stride, dilation in zip(gradient.shape[2:], geometry.stride, geometry.dilation, strict=True)
    )
    for y in _block_starts(weight.shape[2]):
        for x in _block_starts(weight.shape[3]):
            top, left = y * dilate_y, x * dilate_x
            met = values[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
            answer[:, :, y : y + FAST_FILTER, x : x + FAST_FILTER] = _pytorch_gradients(
                gradient, met, block, small, (False, True, False)
            )[1]
    return answer


def _block_starts(side: int) -> list[int]:
    """Return where blocks of ``FAST_FILTER`` begin that cover a filter's side; the last two may overlap."""
    return [*range(0, side - FAST_FILTER, FAST_FILTER), side - FAST_FILTER]


def _overlap(shift: int, stride: int, inputs: int, outputs: int) -> tuple[slice, slice] | None:
    """Return, along one axis, the inputs that a filter element meets and the outputs at which it meets them.

    Output ``o`` meets input ``o * stride + shift``; None where every such input is padding.
    """
    first = max(0, -(shift // stride))
    last = min(outputs - 1, (inputs - 1 - shift) // stride)
    if first > last:
        return None
    start = first * stride + shift
    return slice(start, start + (last - first) * stride + 1, stride), slice(first, last + 1)


def _pytorch_gradients(
    gradient: Tensor, values: Tensor, weight: Tensor, geometry: _Geometry, mask: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return PyTorch's own gradients of the input, the filters and the bias; ``mask`` says which of them to compute."""
    settings = geometry.stride, geometry.padding, geometry.dilation
    return torch.ops.aten.convolution_backward(
        gradient, values, weight, None, *settings, False, (0, 0), len(weight), mask
    )


class DepthwiseConv2d(nn.Conv2d):
    """An ``nn.Conv2d`` with one filter per channel and fast gradients, with the same parameters under the same names."""

    def forward(self, values: Tensor) -> Tensor:
        if values.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(values)
        return _Depthwise.apply(values, self.weight, _Geometry(self.stride, self.padding, self.dilation))


def speed_up_depthwise(model: nn.Module) -> nn.Module:
    """Give a model's depthwise convolutions the fast gradients; its weights and outputs stay as they are."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _is_depthwise(module):
            module.padding = _padding(module)
            module.__class__ = DepthwiseConv2d
    return model


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Return whether a convolution has one filter per channel and no setting that ``_Depthwise`` does not support."""
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return (
        type(conv).forward is nn.Conv2d.forward  # subclasses such as EfficientNet's may only change the constructor
        and conv.groups == conv.in_channels == conv.out_channels > 1
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and not (conv.padding == "same" and any(r % 2 for r in reach))
        and all(p <= r for p, r in zip(_padding(conv), reach, strict=True))
    )


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    """Return the padding in pixels where it may be given as a word."""
    if conv.padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return (0, 0) if conv.padding == "valid" else conv.padding
