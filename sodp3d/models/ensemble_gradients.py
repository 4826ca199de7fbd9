"""Gradients of an ensemble of rectifiers in closed form.

At the sizes of critics on states, a third of an update's time is what autograd does beside the products: graphs,
gradients that nobody needs, and memory for them. Here are the products, and little else. Tests hold them to autograd.

Shape letters: M members, B batch, S state inputs, C numbers of a chunk, H hidden width.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import relu

from sodp3d.models.ensemble import Ensemble

_backward = torch.ops.aten


class ForwardPass:
    """Values (M, B) of states (B, S) with a chunk (B, C) each, and what their gradients need.

    Raises ValueError for an ensemble whose activation is another than relu.
    """

    @torch.no_grad()
    def __init__(self, ensemble: Ensemble, states: Tensor, chunks: Tensor) -> None:
        if ensemble.activation is not relu:
            raise ValueError("gradients in closed form are those of relu alone")
        self._ensemble, self._inputs = ensemble, (states, chunks)
        self._before: list[Tensor] = []  # each layer's LayerNorm
        self._normal: list[tuple[Tensor, Tensor, Tensor]] = []  # normalized, means, reciprocal deviations
        self._active: list[Tensor] = []  # each layer's output
        x = ensemble.of_state(states[None]).baddbmm_(_shared(chunks, ensemble), ensemble.of_chunk.weight)
        self._activate(x)
        for layer in ensemble.hidden:
            self._activate(layer(self._active[-1]))
        self.values: Tensor = ensemble.head(self._active[-1])[..., 0]

    def _activate(self, x: Tensor) -> None:
        place = len(self._active)
        if self._ensemble.gains:
            self._before.append(x)
            self._normal.append(torch.native_layer_norm(x, [x.shape[-1]], None, None, 1e-5))
            x = torch.addcmul(self._ensemble.shifts[place], self._normal[-1][0], self._ensemble.gains[place])
        self._active.append(x.relu_())

    @torch.no_grad()
    def of_parameters(self, slopes: Tensor) -> list[Tensor]:
        """Gradients in the order of the ensemble's parameters, for slopes (M, B) of a loss by the values."""
        active, layers = self._active, len(self._active)
        weights, biases, gains, shifts = ([torch.empty(0)] * layers for _ in range(4))
        for place, after, before in self._downwards(slopes):
            biases[place] = before.sum(1, keepdim=True)
            if place:
                weights[place] = active[place - 1].mT @ before
            else:
                of_state, of_chunk = (_shared(inputs, self._ensemble).mT @ before for inputs in self._inputs)
            if self._normal:
                gains[place] = (after * self._normal[place][0]).sum(1, keepdim=True)
                shifts[place] = after.sum(1, keepdim=True)
        head = [active[-1].mT @ slopes[..., None], slopes.sum(1)[:, None, None]]
        hidden = [gradient for pair in zip(weights[1:], biases[1:], strict=True) for gradient in pair]
        return [of_state, biases[0], of_chunk, *hidden, *head, *((*gains, *shifts) if self._normal else ())]

    @torch.no_grad()
    def of_chunks(self, slopes: Tensor) -> Tensor:
        """(B, C) gradient by the chunks, for slopes (M, B) of a loss by the values."""
        *_, (_, _, before) = self._downwards(slopes)
        return (before @ self._ensemble.of_chunk.weight.mT).sum(0)

    def _downwards(self, slopes: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each layer's place, and the slopes (M, B, H) after and before its LayerNorm, the last layer's first."""
        slope = slopes[..., None] * self._ensemble.head.weight.mT
        for place in reversed(range(len(self._active))):
            _backward.threshold_backward.grad_input(slope, self._active[place], 0, grad_input=slope)
            before = self._through_norm(slope, place) if self._normal else slope
            yield place, slope, before
            if place:
                layer: Any = self._ensemble.hidden[place - 1]
                slope = before @ layer.weight.mT

    def _through_norm(self, slope: Tensor, place: int) -> Tensor:
        scaled, before = slope * self._ensemble.gains[place], self._before[place]
        _, *statistics = self._normal[place]
        shape, wanted = [before.shape[-1]], [True, False, False]
        found: Tensor = _backward.native_layer_norm_backward(scaled, before, shape, *statistics, None, None, wanted)[0]
        return found


def _shared(inputs: Tensor, ensemble: Ensemble) -> Tensor:
    """The same (B, ...) for each member: (M, B, ...), not copied."""
    return inputs.expand(ensemble.members, -1, -1)
