"""Ensembles of value networks that are one network to the processor: each layer is a batched product for all members.

RLPD's critics (collection) and the critic of executed chunks (fine-tuning) are both made of it.

Shape letters: M members, B batch, N chunks of one state, S state inputs, C numbers of a chunk, H hidden width.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, mish

Activation = Callable[[Tensor], Tensor]


class EnsembleLinear(nn.Module):
    """M linear layers as one batched product: (M or 1, B, in) -> (M, B, out)."""

    def __init__(self, members: int, size_in: int, size_out: int, bias: bool = True) -> None:
        super().__init__()
        bound = size_in**-0.5
        self.weight = nn.Parameter(torch.empty(members, size_in, size_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(members, 1, size_out)) if bias else None

    def forward(self, x: Tensor, chosen: Tensor | None = None) -> Tensor:
        """x: (M, B, in), or (1, B, in) for all members alike -> (M, B, out). chosen: only these of the members."""
        weight, bias = _of(self.weight, chosen), None if self.bias is None else _of(self.bias, chosen)
        x = x.expand(len(weight), -1, -1)
        return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)


class Ensemble(nn.Module):
    """M networks Q(state, chunk): hidden layers of linear, LayerNorm and activation, and a linear head.

    The first layer is kept as its state rows and its chunk rows, so that the state's part is computed once per state,
    however many chunks are asked about. A chunk may be of one action. Each member's LayerNorm has its own gain and
    shift; without `normalized` there is none.
    """

    def __init__(
        self,
        members: int,
        state_size: int,
        chunk_size: int,
        width: int,
        layers: int,
        activation: Activation = mish,
        normalized: bool = True,
    ) -> None:
        super().__init__()
        self.members, self.width, self.activation = members, width, activation
        sizes = [width] * layers
        self.of_state = EnsembleLinear(members, state_size, width)
        self.of_chunk = EnsembleLinear(members, chunk_size, width, bias=False)
        self.hidden = nn.ModuleList(EnsembleLinear(members, a, b) for a, b in pairwise(sizes))
        self.head = EnsembleLinear(members, width, 1)
        norms = sizes if normalized else []
        self.gains = nn.ParameterList(torch.ones(members, 1, width) for _ in norms)
        self.shifts = nn.ParameterList(torch.zeros(members, 1, width) for _ in norms)

    def values(self, states: Tensor, chunks: Tensor, chosen: Tensor | None = None) -> Tensor:
        """States (B, S), chunks (B, N, C) -> values (M, B, N). chosen: whole numbers, of these members only."""
        size, count = chunks.shape[:2]
        x = self.of_state(states[None], chosen)
        x = x if count == 1 else x.repeat_interleave(count, dim=1)
        weight = _of(self.of_chunk.weight, chosen)
        x = torch.baddbmm(x, chunks.reshape(1, size * count, -1).expand(len(weight), -1, -1), weight)
        x = self._activated(x, 0, chosen)
        for place, layer in enumerate(self.hidden, start=1):
            x = self._activated(layer(x, chosen), place, chosen)
        return self.head(x, chosen).reshape(-1, size, count)

    def _activated(self, x: Tensor, place: int, chosen: Tensor | None) -> Tensor:
        if self.gains:
            gain, shift = _of(self.gains[place], chosen), _of(self.shifts[place], chosen)
            x = torch.addcmul(shift, layer_norm(x, (self.width,)), gain)
        return self.activation(x)


def _of(parameters: Tensor, chosen: Tensor | None) -> Tensor:
    return parameters if chosen is None else parameters[chosen]
