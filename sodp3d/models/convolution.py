"""Convolutions along the steps of a plan, channels last, fast for the short lengths that plans have.

A plan has 4 to 16 steps, and inside the U-Net 1 to 8. A convolution library pays for padding there: with width 5
and length 1, four of five taps multiply zeros. Here each output step is one matrix product of the input steps it
sees with the taps it uses; with channels last both are slices of contiguous memory, so nothing is copied or padded.

Shape letters: B batch, L length, C channels, W width (taps). Weights are (C_out, W, C_in).
"""

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Spans = tuple[tuple[int, int, int, int], ...]


def output_length(length: int, width: int, stride: int, padding: int) -> int:
    """Number of output steps of a convolution."""
    return (length + 2 * padding - width) // stride + 1


@lru_cache
def spans(length: int, width: int, stride: int, padding: int) -> Spans:
    """For each output step: the range of input steps it sees and the range of taps that meet them."""
    found = []
    for step in range(output_length(length, width, stride, padding)):
        start = step * stride - padding
        first, last = max(0, -start), min(width, length - start)
        found.append((start + first, start + last, first, last))
    return tuple(found)


def _gather(wide: Tensor, weight: Tensor, ranges: Spans, narrow: Tensor, bias: Tensor | None) -> Tensor:
    """narrow[:, i] = bias + wide[:, range i] @ weight[:, taps i]^T. wide (B, L, C_in), narrow (B, L', C_out)."""
    for step, (start, end, first, last) in enumerate(ranges):
        left, right = wide[:, start:end].flatten(1), weight[:, first:last].flatten(1).t()
        if bias is None:
            torch.mm(left, right, out=narrow[:, step])
        else:
            torch.addmm(bias, left, right, out=narrow[:, step])
    return narrow


def _scatter(narrow: Tensor, weight: Tensor, ranges: Spans, wide: Tensor) -> Tensor:
    """wide[:, range i] += narrow[:, i] @ weight[:, taps i]: the adjoint of _gather."""
    size = len(wide)
    for step, (start, end, first, last) in enumerate(ranges):
        wide[:, start:end].view(size, -1).addmm_(narrow[:, step], weight[:, first:last].flatten(1))
    return wide


def _weight_gradient(narrow: Tensor, wide: Tensor, ranges: Spans, weight: Tensor) -> Tensor:
    """Gradient of <narrow, _gather(wide, weight)> in weight."""
    gradient = torch.zeros_like(weight)
    for step, (start, end, first, last) in enumerate(ranges):
        gradient[:, first:last].view(len(weight), -1).addmm_(narrow[:, step].t(), wide[:, start:end].flatten(1))
    return gradient


class _Convolution(torch.autograd.Function):
    """x (B, L, C_in) -> (B, L', C_out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        ctx.ranges = spans(x.shape[1], weight.shape[1], stride, padding)
        ctx.save_for_backward(x, weight)
        return _gather(x, weight, ctx.ranges, x.new_empty(len(x), len(ctx.ranges), len(weight)), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        grad_x = _scatter(gradient, weight, ctx.ranges, torch.zeros_like(x)) if ctx.needs_input_grad[0] else None
        grad_weight = _weight_gradient(gradient, x, ctx.ranges, weight) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, gradient.sum((0, 1)), None, None


class _TransposedConvolution(torch.autograd.Function):
    """x (B, L, C_in) -> (B, L', C_out) with weight (C_in, W, C_out): the adjoint of _Convolution, plus a bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        width = weight.shape[1]
        length = (x.shape[1] - 1) * stride - 2 * padding + width
        ctx.ranges = spans(length, width, stride, padding)
        ctx.save_for_backward(x, weight)
        return _scatter(x, weight, ctx.ranges, bias.expand(len(x), length, -1).contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        grad_x = _gather(gradient, weight, ctx.ranges, torch.empty_like(x), None) if ctx.needs_input_grad[0] else None
        grad_weight = _weight_gradient(x, gradient, ctx.ranges, weight) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, gradient.sum((0, 1)), None, None


class Convolution(nn.Module):
    """torch's Conv1d (or ConvTranspose1d) with channels last: (B, L, C_in) -> (B, L', C_out).

    Any device but the CPU, and any length above `longest`, goes to torch's own convolution.
    """

    def __init__(
        self, size_in: int, size_out: int, width: int, stride: int = 1, padding: int = 0, transposed: bool = False
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.transposed, self.longest = stride, padding, transposed, 32
        outer, inner = (size_in, size_out) if transposed else (size_out, size_in)
        bound = 1 / math.sqrt(inner * width)  # as torch initialises its own
        self.weight = nn.Parameter(torch.empty(outer, width, inner).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(size_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, L, C_in) -> (B, L', C_out)."""
        if x.device.type == "cpu" and x.shape[1] <= self.longest:
            function = _TransposedConvolution if self.transposed else _Convolution
            return function.apply(x.contiguous(), self.weight, self.bias, self.stride, self.padding)
        convolve = functional.conv_transpose1d if self.transposed else functional.conv1d
        weight = self.weight.transpose(1, 2)
        return convolve(x.transpose(1, 2), weight, self.bias, self.stride, self.padding).transpose(1, 2)


class GroupNorm(nn.GroupNorm):
    """GroupNorm with channels last: (B, L, C) -> (B, L, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, L, C) -> the same shape."""
        # As an image of L x 1 in channels-last order: torch has a fast kernel for that, and nothing is copied.
        image = super().forward(x.unsqueeze(2).permute(0, 3, 1, 2))
        return image.permute(0, 2, 3, 1).squeeze(2)
