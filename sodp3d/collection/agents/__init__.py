"""Agents that learn while their experience is kept. A new one is a module with `build`, an entry
of registry.AGENTS, and a YAML.

Shape letters: E environments stepped together, Ds state size, Dp proprioception size, Da action size, H W image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sodp3d.collection.agents.memory import Trajectory
from sodp3d.core import registry
from sodp3d.envs.config import EnvConfig


@dataclass(frozen=True)
class Surroundings:
    """Where an agent acts and learns, as its collection tells it."""

    env: EnvConfig
    state_size: int
    action_size: int
    proprioception_size: int
    seed: int
    device: torch.device | str = "cpu"
    fresh: bool = True  # False where `load_state` follows: files that only a new agent starts from are not read


class Agent(Protocol):
    """What the collection loop needs. All randomness is the agent's own, so that its `state` is everything."""

    updates_per_step: float  # gradient steps per collected step
    offline_left: int  # gradient steps still to be done before the first online step (stage 2)
    needs_demonstrations: bool
    scripted_episodes: int  # that an expert's rule makes before its own: the first of its store, labelled there
    image_size: int | None  # side in pixels of the RGB images it sees, beside proprioception; None: it sees the state

    def demonstrate(self, trajectories: list[Trajectory]) -> None:
        """Take in demonstrations; called once, on a fresh agent that needs them."""

    def seed_exploration(self, seed: int) -> None:
        """Draw all further exploration from `seed`; called before each wave of episodes, with the first one's seed.

        So a collection explores the same whether or not it was stopped, and after a kill never what it did before.
        """

    def act(self, observations: Any, explore: bool) -> NDArray[np.float32]:
        """What is seen of E environments -> actions (E, Da) in [-1, 1]; the policy's best guess unless `explore`.

        observations: states (E, Ds) float32, or {"agent_pos": (E, Dp) float32, "image": (E, 3, H, W) uint8}.
        """

    def observe(self, trajectory: Trajectory) -> None:
        """Take in one finished online episode."""

    def update(self, count: int, offline: bool = False) -> dict[str, float]:
        """Do `count` gradient steps; returns the means of their metrics ({} while there is nothing to learn from)."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that `load_state` needs to go on bit for bit with the next wave: tensors, and a JSON-able dict."""

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Inverse of `state`. Raises InputError on another agent's, or one of other settings."""


def build(settings: Mapping[str, Any], where: Surroundings) -> Agent:
    """The agent of a composed `agent` group. Raises InputError on unknown names and settings."""
    settings = dict(settings)
    make = registry.choose(registry.AGENTS, settings.pop("name", None), "agent.name")
    agent: Agent = make(settings, where)
    return agent
