"""A planner as a policy, sampled as learning or evaluation wants: its own way, otherwise, or the best of several.

Shape letters: B batch, To observed steps, Tp planned steps, Ta executed steps, Da action size, K' inference steps,
N plans of one state, F features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from sodp3d.envs.config import EnvConfig
from sodp3d.models.diffusion import Chain, ChainOptions

if TYPE_CHECKING:
    from sodp3d.models.planner import Planner


class Chooser(Protocol):
    """Draws several plans of each state and says which is taken; `models.critic.Choice` is one."""

    @property
    def count(self) -> int:
        """N: how many."""
        ...

    def sample(
        self, planner: "Planner", features: Tensor, elapsed: Tensor, noise: Tensor, options: ChainOptions
    ) -> Chain:
        """The chosen chain of each state. features (B, F), elapsed (B,), noise (B, N, K'+1, Tp, Da)."""
        ...


def plans_of(choice: Chooser | None) -> int:
    """N: how many plans are drawn of each state; one where nobody chooses."""
    return choice.count if choice is not None else 1


@dataclass
class Planning:
    """What is remembered of one episode: its noise, how far it is, and, to learn from it, how each plan came about."""

    generator: torch.Generator
    episode_steps: int  # the time limit
    steps: int = 0  # control steps decided
    features: list[Tensor] = field(default_factory=list)  # of each plan: (F,); empty unless kept
    latents: list[Tensor] = field(default_factory=list)  # (K'+1, Tp, Da)
    means: list[Tensor] = field(default_factory=list)  # (K', Tp, Da)


@dataclass(frozen=True)
class Sampled:
    """The policy. choice: draws several plans and says which is executed. keep: how plans came about."""

    planner: "Planner"
    options: ChainOptions
    choice: Chooser | None = None
    keep: bool = False

    def begin(self, task: EnvConfig, seed: int) -> Planning:
        """As `Policy.begin`."""
        return Planning(torch.Generator().manual_seed(seed), task.episode_steps)

    @torch.no_grad()
    def act(self, observation: Mapping[str, NDArray[Any]], memories: Sequence[Planning]) -> NDArray[Any]:
        """As `Policy.act`."""
        features = self.encode(observation)
        chain = self._sample(features, memories)
        chunks = self.planner.executed(self.planner.actions(chain.latents[:, -1])).cpu().numpy()
        for row, memory in enumerate(memories):
            memory.steps += chunks.shape[1]
            if self.keep:
                memory.features.append(features[row].cpu())
                memory.latents.append(chain.latents[row].cpu())
                memory.means.append(chain.means[row].cpu())
        return chunks

    @torch.no_grad()
    def encode(self, observation: Mapping[str, NDArray[Any]]) -> Tensor:
        """Raw observation, each key (B, To, ...) -> features (B, F)."""
        return self.planner.encode(self.planner.on_device(observation))

    def _sample(self, features: Tensor, memories: Sequence[Planning]) -> Chain:
        """One chain for each episode, by noise of its own."""
        count = plans_of(self.choice)
        noise = torch.stack([self.planner.noise(count, memory.generator) for memory in memories])
        if self.choice is None:
            return self.planner.sample_chain(features, noise[:, 0], self.options)
        elapsed = torch.tensor([memory.steps / memory.episode_steps for memory in memories])
        return self.choice.sample(self.planner, features, elapsed.to(features), noise, self.options)
