"""Exponential moving average of a module's weights, as a module of its own (evaluation uses it)."""

import copy

import torch
from torch import nn

MAX_DECAY = 0.9999


def ema_decay(step: int) -> float:
    """DP3's warm-up: 1 - (1 + step) ** -0.75, at most 0.9999; 0 at the first step, so the average starts there."""
    return min(MAX_DECAY, 1 - (1 + step) ** -0.75)


class Ema:
    """Keeps `module`, an averaged copy without gradients; call `update` after each optimizer step.

    Parameters are averaged; buffers (the normalizer's) are copied. Checkpoint `module.state_dict()` and `step`.
    """

    def __init__(self, module: nn.Module, step: int = 0) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.step = step

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """average <- decay * average + (1 - decay) * module."""
        decay = ema_decay(self.step)
        averages = [parameter for parameter in self.module.parameters()]
        torch._foreach_lerp_(averages, [parameter.detach() for parameter in module.parameters()], 1 - decay)
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(buffer)
        self.step += 1
