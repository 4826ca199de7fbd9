"""Exponential moving average of a planner's weights, as a planner of its own (evaluation uses it)."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

MAX_DECAY = 0.9999
Module = TypeVar("Module", bound=nn.Module)


def ema_decay(step: int) -> float:
    """DP3's warm-up: 1 - (1 + step) ** -0.75, at most 0.9999; 0 at the first step, so the average starts there."""
    return min(MAX_DECAY, 1 - (1 + step) ** -0.75)


class EMA(Generic[Module]):
    """Keeps `planner`, an averaged copy without gradients; call `update` after each optimizer step.

    Parameters are averaged; buffers (the normalizer's) are copied. Its state is `planner.state_dict()` and `step`.
    """

    def __init__(self, planner: Module) -> None:
        self.planner: Module = copy.deepcopy(planner).requires_grad_(False)
        self.step = 0

    @torch.no_grad()
    def update(self, planner: Module) -> None:
        """average <- decay * average + (1 - decay) * planner."""
        averages: list[torch.Tensor] = list(self.planner.parameters())
        current: list[torch.Tensor] = list(planner.parameters())
        torch._foreach_lerp_(averages, current, 1 - ema_decay(self.step))
        for average, buffer in zip(self.planner.buffers(), planner.buffers(), strict=True):
            average.copy_(buffer)
        self.step += 1
