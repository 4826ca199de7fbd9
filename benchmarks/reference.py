"""What the benchmarks compare with: the same networks and weights as they are usually written (Diffusion Policy, DP3).

Convolutions are torch's own, a cloud's gradient goes through every point, and each denoising step makes its films anew.
There is one with channels first, as everybody has it, and one with channels last, which oneDNN computes faster at some
lengths; benchmarks compare with both.

Shape letters: B batch, Tp planned steps, Da action size, F features, C channels, L length at a level.
"""

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from sodp3d.models.convolution import Convolution, GroupNorm
from sodp3d.models.encoders import PointCloudEncoder
from sodp3d.models.planner import Planner
from sodp3d.models.unet import ResidualBlock, UNet1d, sinusoidal


def torchs_own(layer: nn.Module) -> nn.Module:
    """torch's layer that does on (B, C, L) what `layer` does on (B, L, C), with a contiguous copy of its weights."""
    twin: nn.Module
    match layer:
        case Convolution():
            outer, width, inner = layer.weight.shape
            kind = nn.ConvTranspose1d if layer.transposed else nn.Conv1d
            sizes = (outer, inner) if layer.transposed else (inner, outer)
            twin, weight = kind(*sizes, width, layer.stride, layer.padding), layer.weight.mT
        case nn.Linear():
            twin, weight = nn.Conv1d(layer.in_features, layer.out_features, 1), layer.weight.unsqueeze(2)
        case GroupNorm():
            twin, weight = nn.GroupNorm(layer.num_groups, layer.num_channels), layer.weight
        case _:
            return copy.deepcopy(layer)
    twin.load_state_dict({"weight": weight, "bias": layer.bias})
    return twin


def sequence(layers: Iterable[nn.Module]) -> nn.Sequential:
    """One after the other, each torch's own."""
    return nn.Sequential(*map(torchs_own, layers))


def residual_blocks(level: nn.Module) -> list[ResidualBlock]:
    """Of one level, in order."""
    return [block for block in level.children() if isinstance(block, ResidualBlock)]


class Block(nn.Module):
    """`ResidualBlock` with channels first."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.first, self.second = sequence(block.first), sequence(block.second)
        self.film, self.residual = copy.deepcopy(block.film), torchs_own(block.residual)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: (B, C_in, L), condition: (B, time + observation) -> (B, C_out, L)."""
        scale, bias = self.film(condition).unsqueeze(2).chunk(2, dim=1)
        return self.second(scale * self.first(x) + bias) + self.residual(x)


class ChannelsFirstUNet(nn.Module):
    """`UNet1d` as everybody writes it; it may take the other's place in a planner."""

    def __init__(self, network: UNet1d) -> None:
        super().__init__()
        self.time_size = network.time_size
        self.time, self.project = copy.deepcopy(network.time), copy.deepcopy(network.project)
        self.down, self.middle, self.up = (
            nn.ModuleList(nn.ModuleList(map(Block, residual_blocks(level))) for level in levels)
            for levels in (network.down, [network.middle], network.up)
        )
        self.shorten = nn.ModuleList([*map(torchs_own, network.shorten), nn.Identity()])
        self.lengthen = nn.ModuleList(map(torchs_own, network.lengthen))
        block, last = network.head.children()
        self.head = sequence([*block.children(), last])

    def observe(self, condition: Tensor) -> Tensor:
        """Nothing is shared by the steps of a plan."""
        return condition

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """x: (B, Tp, Da), timestep: (B,) or (1,), condition: (B, F) -> (B, Tp, Da)."""
        time = self.time(sinusoidal(timestep.expand(len(x)), self.time_size))
        condition = torch.cat([time, self.project(condition)], dim=1)
        x, skips = x.mT, []
        for level, shorten in zip(self.down, self.shorten, strict=True):
            for block in level.children():
                x = block(x, condition)
            skips.append(x)
            x = shorten(x)
        for block in self.middle[0].children():
            x = block(x, condition)
        for level, lengthen in zip(self.up, self.lengthen, strict=True):
            x = torch.cat([x, skips.pop()], dim=1)
            for block in level.children():
                x = block(x, condition)
            x = lengthen(x)
        return self.head(x).mT


class ChannelsLastUNet(nn.Module):
    """`UNet1d` as it is, but for torch's convolutions, and films that the steps of a plan do not share."""

    def __init__(self, network: UNet1d) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        for module in self.network.modules():
            if isinstance(module, Convolution):
                module.longest = 0  # torch computes all that is longer

    def observe(self, condition: Tensor) -> Tensor:
        """Nothing is shared by the steps of a plan."""
        return condition

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """x: (B, Tp, Da), timestep: (B,) or (1,), condition: (B, F) -> (B, Tp, Da)."""
        return self.network(x, timestep, condition)


def reference_unets(network: UNet1d) -> dict[str, nn.Module]:
    """Both references of a U-Net, with copies of its weights."""
    return {"torch": ChannelsFirstUNet(network), "torch_channels_last": ChannelsLastUNet(network)}


def reference_planners(planner: Planner) -> dict[str, Planner]:
    """Both references of a planner, with copies of its weights."""
    found = {}
    for name, unet in reference_unets(planner.unet).items():
        found[name] = copy.deepcopy(planner)
        found[name].unet = cast(UNet1d, unet)  # it takes the place of one
        for module in found[name].modules():
            if isinstance(module, PointCloudEncoder):
                module.dense = True
    return found


def ratios(seconds: dict[str, float], prefix: str = "") -> dict[str, float]:
    """How many times faster ours is than each reference; the one with channels first is how DP3 writes it."""
    return {
        f"{prefix}ratio": seconds["torch"] / seconds["sodp3d"],
        f"{prefix}ratio_channels_last": seconds["torch_channels_last"] / seconds["sodp3d"],
    }
