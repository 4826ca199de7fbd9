"""A shared MLP over points and the maximum over them, with an exact backward that touches only the winners.

The gradient of a maximum goes to the point that attains it. Of a cloud's N points about a third win some channel; the
others need no activations kept and no backward. So the forward pass keeps nothing but the winners' indices, working
cloud by cloud in buffers that stay in cache, and the backward pass recomputes the winners alone, the last (and
widest) layer not even for those.

Shape letters: C clouds, N points, D channels of the last layer. Parameters: for each layer its linear weight and bias
and its norm's weight and bias, in this order; each layer is Linear, LayerNorm, ReLU.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import layer_norm, linear

FORWARD_ROWS = 1024  # points per pass: their widest activations (1 MB) fit a core's second-level cache
BACKWARD_ROWS = 4096  # points, of which a third are winners
GROUP = 16
EPSILON = 1e-5  # of LayerNorm


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
def activations(clouds: Tensor, parameters: tuple[Tensor, ...] | list[Tensor]) -> Iterator[Tensor]:
    """The shared MLP but its last ReLU, which commutes with the maximum: (c, N, D) of a few clouds after another.

    Each is overwritten by the next.
    """
    size = clouds.shape[1]
    step = max(1, FORWARD_ROWS // size)
    layers = list(zip(*(parameters[i::4] for i in range(4)), strict=True))
    buffers = [clouds.new_empty(step * size, len(bias)) for _, bias, _, _ in layers]
    for chunk in clouds.split(step):
        x = chunk.reshape(-1, 3)
        for index, (weight, bias, scale, shift) in enumerate(layers):
            x = torch.addmm(bias, x, weight.t(), out=buffers[index][: len(x)])
            x = layer_norm(x, bias.shape, scale, shift)
            if index < len(layers) - 1:
                x.relu_()
        yield x.view(len(chunk), size, -1)


def maximum(clouds: Tensor, parameters: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """Maximum over the points of the shared MLP, without gradient: (C, N, 3) -> (C, D)."""
    return torch.cat([x.amax(dim=1) for x in activations(clouds, parameters)]).relu_()


def maximum_and_winners(clouds: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """`maximum`, and the index of the first point that attains it: (C, N, 3) -> (C, D), (C, D) int64."""
    found = [first_maximum(x) for x in activations(clouds, parameters)]
    return torch.cat([values for values, _ in found]).relu_(), torch.cat([indices for _, indices in found])


@dataclass
class LastLayer:
    """Backward of the last layer (Linear, LayerNorm, ReLU, maximum) where only a few outputs of each row are used.

    A row x of the previous layer's outputs wins one or two of D channels, so the gradient e of its normalized outputs
    is nearly empty. With the weight and bias centred over channels, V and c, the layer is xhat = s (V x + c), with
    s = (|V x + c|^2 / D + epsilon)^(-1/2). Its gradient is s e - s^2 (e . xhat / D) (V x + c), centred: an almost
    empty part, and a full one that only needs V^T V. So no product of full size D is left, and none is recomputed.
    """

    weight: Tensor  # V (D, H)
    bias: Tensor  # c (D,)
    scale: Tensor  # of the norm, (D,)
    square: Tensor  # V^T V (H, H)
    cross: Tensor  # V^T c (H,)
    gradients: list[Tensor]  # of weight, bias, scale, shift: summed over calls, not yet centred over channels

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> "LastLayer":
        """From the layer's own parameters."""
        weight, bias = weight - weight.mean(0), bias - bias.mean()
        gradients = [torch.zeros_like(parameter) for parameter in (weight, bias, scale, shift)]
        return cls(weight, bias, scale, weight.t() @ weight, weight.t() @ bias, gradients)

    def backward(self, x: Tensor, rows: Tensor, gradient: Tensor) -> Tensor:
        """x: (M, H) inputs; rows: (C, D), which of them gave each output; gradient: (C, D) -> gradient in x (M, H)."""
        size = len(self.bias)
        mapped = x @ self.square + self.cross  # V^T (V x + c)
        squares = (mapped * x).sum(1) + x @ self.cross + self.bias.dot(self.bias)
        deviation = (squares / size + EPSILON).rsqrt()  # s
        used = x.index_select(0, rows.flatten()).unflatten(0, rows.shape)  # (C, D, H)
        slope = deviation[rows]
        normalized = slope * ((used * self.weight).sum(-1) + self.bias)  # xhat, where used
        error = gradient * self.scale  # e, where used
        sparse = error * slope
        pull = torch.zeros_like(deviation).index_add_(0, rows.flatten(), (error * normalized).flatten())
        pull *= deviation.square() / size
        result = mapped.mul_(-pull[:, None])
        result.index_add_(0, rows.flatten(), (sparse.unsqueeze(-1) * self.weight).flatten(0, 1))

        weighted = pull[:, None] * x
        total = weighted.sum(0)
        in_weight, in_bias, in_scale, in_shift = self.gradients
        in_weight += (sparse.unsqueeze(-1) * used).sum(0)
        in_weight -= self.weight @ (weighted.t() @ x) + self.bias[:, None] * total
        in_bias += sparse.sum(0) - self.weight @ total - self.bias * pull.sum()
        in_scale += (gradient * normalized).sum(0)
        in_shift += gradient.sum(0)
        return result

    def centred_gradients(self) -> list[Tensor]:
        """Of weight, bias, scale and shift."""
        in_weight, in_bias, in_scale, in_shift = self.gradients
        return [in_weight - in_weight.mean(0), in_bias - in_bias.mean(), in_scale, in_shift]


class SharedMaximum(torch.autograd.Function):
    """`maximum` with a gradient in the parameters (not in the points): apply(clouds, *parameters) -> (C, D)."""

    @staticmethod
    def forward(ctx: Any, clouds: Tensor, *parameters: Tensor) -> Tensor:
        values, winners = maximum_and_winners(clouds, parameters)
        ctx.save_for_backward(clouds, values, winners, *parameters)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        clouds, values, winners, *parameters = ctx.saved_tensors
        first = [parameter.detach().requires_grad_() for parameter in parameters[:-4]]
        last = LastLayer.of(*parameters[-4:])
        gradient = gradient * (values > 0)  # through the last ReLU
        size = clouds.shape[1]
        step = max(1, BACKWARD_ROWS // size)
        for chunk, won, share in zip(clouds.split(step), winners.split(step), gradient.split(step), strict=True):
            points = (won + torch.arange(len(chunk), device=chunk.device)[:, None] * size).flatten()
            kept = torch.zeros(len(chunk) * size, dtype=torch.bool, device=chunk.device)
            kept[points] = True
            rows = (kept.cumsum(0) - 1)[points].view_as(won)  # where each kept point lies in the packed matrix
            with torch.enable_grad():
                x = shared_mlp(chunk.reshape(-1, 3)[kept], first)
            torch.autograd.backward(x, last.backward(x.detach(), rows, share))  # adds to the leaves' gradients
        return None, *(leaf.grad for leaf in first), *last.centred_gradients()
