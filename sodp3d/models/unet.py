"""FiLM-conditioned 1-D U-Net over the planned steps (Diffusion Policy, DP3, CleanDiffuser's ChiUNet1d).

Shape letters: B batch, Tp planned steps, Da action size, C channels, L length at a level.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, mish

from sodp3d.core.errors import InputError
from sodp3d.models.convolution import Convolution, GroupNorm

GROUPS = 8


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a U-Net. condition_size: width the observation is projected to first (None: as it is)."""

    widths: tuple[int, ...]
    blocks_per_level: int
    mid_blocks: int
    time_size: int
    condition_size: int | None = None


UNETS = {
    "small": UNetConfig((32, 64, 96), blocks_per_level=1, mid_blocks=1, time_size=64),  # for trials and tests
    "narrow": UNetConfig((64, 128, 192), blocks_per_level=1, mid_blocks=1, time_size=128),  # half of Simple DP3's
    "simple_dp3": UNetConfig((128, 256, 384), blocks_per_level=1, mid_blocks=1, time_size=128),
    "dp3": UNetConfig((512, 1024, 2048), blocks_per_level=2, mid_blocks=2, time_size=128),
    "chi": UNetConfig((256, 512, 1024), blocks_per_level=2, mid_blocks=2, time_size=256, condition_size=256),
}


def require_unet(name: str) -> None:
    """Raise InputError for a `model.unet` that there is not."""
    if name not in UNETS:
        raise InputError(f"model.unet: expected one of {', '.join(UNETS)}, got {name!r}.")


def sinusoidal(timestep: Tensor, size: int) -> Tensor:
    """Timesteps (B,) -> sine and cosine features (B, size)."""
    half = size // 2
    frequency = torch.exp(torch.arange(half, device=timestep.device) * (-math.log(10_000) / (half - 1)))
    angle = timestep[:, None].to(frequency.dtype) * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class ConvBlock(nn.Sequential):
    """Convolution of width 5, GroupNorm, Mish: (B, L, C_in) -> (B, L, C_out)."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__(Convolution(size_in, size_out, 5, padding=2), GroupNorm(GROUPS, size_out), nn.Mish())


class Film(nn.Sequential):
    """Mish, Linear: (B, time + observation) -> (B, 2 C), a plain scale (not 1 + scale, as in DP3) and a bias.

    Mish works on single elements, so time and observation have separate parts that are added: while sampling, the
    observation's is the same at every step, and the time's for every plan.
    """

    def __init__(self, time_size: int, observation_size: int, channels: int) -> None:
        super().__init__(nn.Mish(), nn.Linear(time_size + observation_size, 2 * channels))
        self.time_size = time_size

    def of_observation(self, active: Tensor) -> Tensor:
        """After Mish, (B, observation) -> (B, 2 C), bias included."""
        return linear(active, self._linear.weight[:, self.time_size :], self._linear.bias)

    def of_time(self, active: Tensor) -> Tensor:
        """After Mish, (B or 1, time) -> (B or 1, 2 C)."""
        return linear(active, self._linear.weight[:, : self.time_size])

    @property
    def _linear(self) -> nn.Linear:
        layer = self[1]
        assert isinstance(layer, nn.Linear)
        return layer


class ResidualBlock(nn.Module):
    """Two convolution blocks with FiLM between them and a residual connection."""

    def __init__(self, size_in: int, size_out: int, time_size: int, observation_size: int) -> None:
        super().__init__()
        self.first = ConvBlock(size_in, size_out)
        self.second = ConvBlock(size_out, size_out)
        self.film = Film(time_size, observation_size, size_out)
        self.residual = nn.Linear(size_in, size_out) if size_in != size_out else nn.Identity()

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """x: (B, L, C_in), film: (B, 2 C_out) -> (B, L, C_out)."""
        scale, bias = film.unsqueeze(1).chunk(2, dim=-1)
        return self.second(scale * self.first(x) + bias) + self.residual(x)


class Level(nn.ModuleList):
    """Residual blocks that share one length."""

    def __init__(self, sizes: list[int], *condition_sizes: int) -> None:
        super().__init__(ResidualBlock(a, b, *condition_sizes) for a, b in pairwise(sizes))

    def forward(self, x: Tensor, films: Iterator[Tensor]) -> Tensor:
        """x: (B, L, C_in), and the next films, one for each block -> (B, L, C_out)."""
        for block in self:
            x = block(x, next(films))
        return x


class UNet1d(nn.Module):
    """Predicts the noise (or the clean plan) from a noisy plan, its timestep and the observation.

    Halves the length between levels, so Tp must be divisible by 2 ** (levels - 1): 4 for three levels.
    """

    def __init__(self, action_size: int, condition_size: int, config: UNetConfig) -> None:
        super().__init__()
        widths, time_size = config.widths, config.time_size
        self.time_size, self.divisor = time_size, 2 ** (len(widths) - 1)
        self.time = nn.Sequential(nn.Linear(time_size, 4 * time_size), nn.Mish(), nn.Linear(4 * time_size, time_size))
        projected = config.condition_size
        self.project = nn.Linear(condition_size, projected) if projected else nn.Identity()
        size = time_size, projected or condition_size

        blocks = config.blocks_per_level
        self.down = nn.ModuleList(Level([a] + [b] * blocks, *size) for a, b in pairwise((action_size, *widths)))
        self.shorten = nn.ModuleList(Convolution(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.middle = Level([widths[-1]] * (config.mid_blocks + 1), *size)
        rising = widths[::-1]
        self.up = nn.ModuleList(Level([2 * a] + [b] * blocks, *size) for a, b in pairwise(rising))
        self.lengthen = nn.ModuleList(
            Convolution(width, width, 4, stride=2, padding=1, transposed=True) for width in rising[1:]
        )
        self.head = nn.Sequential(ConvBlock(widths[0], widths[0]), nn.Linear(widths[0], action_size))

    def _films(self) -> list[Film]:
        levels = [*self.down, self.middle, *self.up]
        return [block.film for level in levels for block in level]

    def observe(self, condition: Tensor) -> list[Tensor]:
        """What every denoising step of one plan shares: condition (B, F) -> the observation's part of each film."""
        active = mish(self.project(condition))
        return [film.of_observation(active) for film in self._films()]

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor | list[Tensor]) -> Tensor:
        """x: (B, Tp, Da), timestep: (B,) or (1,) int64 in 0..K-1 -> (B, Tp, Da). InputError on a bad Tp.

        condition: (B, F), or what `observe` made of it.
        """
        if x.shape[1] % self.divisor:
            raise InputError(f"horizon: must be divisible by {self.divisor}, got {x.shape[1]}.")
        observed = self.observe(condition) if isinstance(condition, Tensor) else condition
        time = mish(self.time(sinusoidal(timestep, self.time_size)))
        films = (film.of_time(time) + part for film, part in zip(self._films(), observed, strict=True))
        skips: list[Tensor] = []
        for index, level in enumerate(self.down):
            x = level(x, films)
            skips.append(x)
            if index < len(self.shorten):
                x = self.shorten[index](x)
        x = self.middle(x, films)
        for level, lengthen in zip(self.up, self.lengthen, strict=True):
            x = lengthen(level(torch.cat([x, skips.pop()], dim=-1), films))
        return self.head(x)
