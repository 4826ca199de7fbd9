"""A critic of executed chunks: an ensemble that tells what return a plan leads to, and chooses among plans by it.

Shape letters: B batch, F features, Ta executed steps, Da actions, M members of the ensemble, N plans of one state.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mish, relu

from sodp3d.models.diffusion import Chain, ChainOptions
from sodp3d.models.ensemble import Activation, Ensemble
from sodp3d.models.planner import Planner

ACTIVATIONS: dict[str, Activation] = {"mish": mish, "relu": relu}


@dataclass(frozen=True)
class CriticConfig:
    """All that determines a critic's architecture; JSON-able."""

    feature_size: int  # F, of the planner's encoder
    chunk_size: int  # Ta * Da
    members: int = 5  # M
    width: int = 256
    layers: int = 3  # hidden ones
    timed: bool = False  # whether it is told how much of the time limit is gone
    activation: str = "mish"  # | relu: what critics saved without a word about it have

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping, of which `CriticConfig(**mapping)` is equal."""
        return asdict(self)


class Critic(Ensemble):
    """M networks Q(features, time that is gone, executed chunk), each layer one batched product for all of them.

    Features are standardized by `standardize`; chunks are in normalized action units.
    """

    def __init__(self, config: CriticConfig) -> None:
        sizes = config.members, config.feature_size + 1, config.chunk_size, config.width, config.layers
        super().__init__(*sizes, ACTIVATIONS[config.activation])
        self.config = config
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(config.feature_size))
        self.register_buffer("deviation", torch.ones(config.feature_size))

    def standardize(self, features: Tensor) -> None:
        """Scale inputs from now on by the mean and deviation of features (B, F)."""
        self.mean.copy_(features.mean(0))
        self.deviation.copy_(features.std(0, correction=0).clamp(min=1e-3))

    def forward(self, features: Tensor, elapsed: Tensor, chunks: Tensor) -> Tensor:
        """features (B, F), elapsed (B,) share of the time limit, chunks (B, N, Ta, Da) -> values (M, B, N)."""
        return self.values(self.states(features, elapsed), chunks.flatten(2))

    def states(self, features: Tensor, elapsed: Tensor) -> Tensor:
        """What it is told beside a chunk, (B, F + 1)."""
        time = elapsed if self.config.timed else torch.zeros_like(elapsed)
        return torch.cat([(features - self.mean) / self.deviation, time[:, None]], dim=-1)


def executed_chunks(planner: Planner, latents: Tensor) -> Tensor:
    """What is executed of final latents (..., Tp, Da): (..., Ta, Da), normalized, clipped as actions are."""
    return planner.executed(latents.clamp(-1, 1))


@dataclass(frozen=True)
class Choice:
    """Best of N: `count` plans are drawn, and the one executed that the critic likes best, by its members' mean."""

    critic: Critic
    count: int

    @torch.no_grad()
    def sample(
        self, planner: Planner, features: Tensor, elapsed: Tensor, noise: Tensor, options: ChainOptions
    ) -> Chain:
        """The chosen chain of each state. features (B, F), elapsed (B,), noise (B, N, K'+1, Tp, Da)."""
        size = features.shape[0]  # by `len` a traced graph would be of this size alone
        chain = planner.sample_chain(features.repeat_interleave(self.count, dim=0), noise.flatten(0, 1), options)
        chunks = executed_chunks(planner, chain.latents[:, -1]).unflatten(0, (size, self.count))
        best = self.critic(features, elapsed, chunks).mean(0).argmax(1)
        chosen = torch.arange(size, device=best.device) * self.count + best
        return Chain(chain.latents[chosen], chain.means[chosen])


def described_choice(critic: Critic, best_of: int) -> dict[str, Any]:
    """What a checkpoint says of a critic beside its weights; best_of: plans that it was tested with."""
    return {"critic": critic.config.to_dict(), "best_of": best_of}
