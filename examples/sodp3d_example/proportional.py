"""An agent: goes towards the target with a gain that it never learns, and noise that makes its experience varied.

Shape letters: E environments, Ds = 4 state size, Da = 2 action size.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sodp3d.collection.agents import Surroundings, Trajectory
from sodp3d.core.errors import InputError


class Proportional:
    """As `sodp3d.collection.agents.Agent`; all its randomness is its own and part of its state."""

    updates_per_step = 0.0
    offline_left = 0
    needs_demonstrations = False
    scripted_episodes = 0
    image_size: int | None = None

    def __init__(self, gain: float, noise: float, seed: int) -> None:
        self.gain, self.noise = gain, noise
        self._random = np.random.default_rng(seed)

    def demonstrate(self, trajectories: list[Trajectory]) -> None:
        """Nothing to learn."""

    def seed_exploration(self, seed: int) -> None:
        """Draw all further noise from `seed`."""
        self._random = np.random.default_rng(seed)

    def act(self, observations: NDArray[np.float32], explore: bool) -> NDArray[np.float32]:
        """States (E, 4) -> actions (E, 2) in [-1, 1]."""
        actions = self.gain * (observations[:, 2:] - observations[:, :2])
        if explore:
            actions = actions + self.noise * self._random.standard_normal(actions.shape)
        return np.clip(actions, -1, 1).astype(np.float32)

    def observe(self, trajectory: Trajectory) -> None:
        """Nothing to learn."""

    def update(self, count: int, offline: bool = False) -> dict[str, float]:
        """Nothing to learn."""
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that `load_state` needs: nothing, as the noise is seeded before each wave."""
        return {"none": torch.zeros(1)}, {}

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Inverse of `state`."""


def build(settings: Mapping[str, Any], where: Surroundings) -> Proportional:
    """From configs/agent/proportional.yaml. Raises InputError for an environment that tells no target."""
    if (where.state_size, where.action_size) != (4, 2):
        raise InputError(f"agent: proportional needs a state of puck and target, which env={where.env.name} has not.")
    return Proportional(float(settings["gain"]), float(settings["noise"]), where.seed)
