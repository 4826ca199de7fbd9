"""A shared MLP over points and the maximum over them, with an exact backward that touches only the winners.

The gradient of a maximum goes to the point that attains it. Of a cloud's N points about a third win some channel; the
others need no activations kept and no backward. So the forward pass keeps nothing but the winners' indices, working
cloud by cloud in buffers that stay in cache, and the backward pass recomputes the winners alone.

Shape letters: C clouds, N points, D channels of the last layer. Parameters: for each layer its linear weight and bias
and its norm's weight and bias, in this order; each layer is Linear, LayerNorm, ReLU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import layer_norm, linear

FORWARD_ROWS = 512  # points per pass: their widest activations (0.5 MB) fit a core's second-level cache
BACKWARD_ROWS = 2048  # points, of which a third are winners
GROUP = 16


def shared_mlp(x: Tensor, parameters: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """(..., 3) -> (..., D), differentiable."""
    for weight, bias, scale, shift in zip(*(parameters[i::4] for i in range(4)), strict=True):
        x = layer_norm(linear(x, weight, bias), bias.shape, scale, shift).relu_()
    return x


def first_maximum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over dimension 1 and the first index that attains it: (C, N, D) -> (C, D), (C, D) int64.

    The same as `x.max(dim=1)`, in two rounds: the maximum of groups vectorizes, finding an index does not.
    """
    clouds, size, channels = x.shape
    if size % GROUP:
        values, indices = x.max(dim=1)
        return values, indices
    start = x.view(clouds, size // GROUP, GROUP, channels).amax(dim=2).max(dim=1).indices * GROUP
    members = start[:, None] + torch.arange(GROUP, device=x.device)[:, None]
    values, indices = x.gather(1, members).max(dim=1)
    return values, start + indices


@torch.no_grad()
def pool(clouds: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Maximum over the points of the shared MLP, and the winners: (C, N, 3) -> (C, D), (C, D) int64."""
    size = clouds.shape[1]
    step = max(1, FORWARD_ROWS // size)
    layers = list(zip(*(parameters[i::4] for i in range(4)), strict=True))
    buffers = [clouds.new_empty(step * size, len(bias)) for _, bias, _, _ in layers]
    found = []
    for chunk in clouds.split(step):
        x = chunk.reshape(-1, 3)
        for index, (weight, bias, scale, shift) in enumerate(layers):
            x = torch.addmm(bias, x, weight.t(), out=buffers[index][: len(x)])
            x = layer_norm(x, bias.shape, scale, shift)
            if index < len(layers) - 1:  # the last ReLU commutes with the maximum
                x.relu_()
        found.append(first_maximum(x.view(len(chunk), size, -1)))
    return torch.cat([values for values, _ in found]).relu_(), torch.cat([indices for _, indices in found])


class SharedMaximum(torch.autograd.Function):
    """`pool` with a gradient in the parameters (not in the points): apply(clouds, *parameters) -> (C, D)."""

    @staticmethod
    def forward(ctx: Any, clouds: Tensor, *parameters: Tensor) -> Tensor:
        values, winners = pool(clouds, parameters)
        ctx.save_for_backward(clouds, winners, *parameters)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        clouds, winners, *parameters = ctx.saved_tensors
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        size = clouds.shape[1]
        step = max(1, BACKWARD_ROWS // size)
        for chunk, won, share in zip(clouds.split(step), winners.split(step), gradient.split(step), strict=True):
            points = won + torch.arange(len(chunk), device=chunk.device)[:, None] * size
            kept = torch.zeros(len(chunk) * size, dtype=torch.bool, device=chunk.device)
            kept[points.flatten()] = True
            row = kept.cumsum(0) - 1  # where each kept point lies in the packed matrix
            with torch.enable_grad():
                values = shared_mlp(chunk.reshape(-1, 3)[kept], leaves).gather(0, row[points])
            torch.autograd.backward(values, share)  # adds to the leaves' gradients
        return None, *(leaf.grad for leaf in leaves)
