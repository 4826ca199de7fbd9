"""Agents that do not learn: an env family's scripted experts and uniform random actions, with noise to taste.

Shape letters: E environments, Ds state size, Da action size.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sodp3d.collection.agents.memory import Trajectory
from sodp3d.core.errors import InputError
from sodp3d.envs import task_family
from sodp3d.envs.config import EnvConfig


class Scripted:
    """Acts by a fixed rule: `policy(state) -> action`, or uniformly at random where it is None.

    noise: standard deviation of Gaussian noise on the rule's actions when exploring.
    """

    updates_per_step = 0.0
    offline_left = 0
    image_size: int | None = None
    needs_demonstrations = False

    def __init__(self, policy: Any, action_size: int, noise: float, seed: int) -> None:
        self.policy, self.action_size, self.noise = policy, action_size, noise
        self._random = np.random.default_rng(seed)

    def demonstrate(self, trajectories: list[Trajectory]) -> None:
        """Nothing to learn."""

    def act(self, states: NDArray[np.float32], explore: bool) -> NDArray[np.float32]:
        """states (E, Ds) -> actions (E, Da) in [-1, 1]."""
        shape = (len(states), self.action_size)
        if self.policy is None:  # without exploration, the mean of the uniform distribution
            return self._random.uniform(-1, 1, shape).astype(np.float32) if explore else np.zeros(shape, np.float32)
        with warnings.catch_warnings():  # the experts warn of every action that clipping shortens
            warnings.filterwarnings("ignore", "Constant\\(s\\) may be too high")
            actions = np.stack([self.policy.get_action(np.asarray(state, np.float64)) for state in states])
        if explore:
            actions = actions + self.noise * self._random.standard_normal(shape)
        return np.clip(actions, -1, 1).astype(np.float32)

    def observe(self, trajectory: Trajectory) -> None:
        """Nothing to learn."""

    def update(self, count: int, offline: bool = False) -> dict[str, float]:
        """Nothing to learn."""
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As `Agent.state`."""
        return {"none": torch.zeros(1)}, {"random": self._random.bit_generator.state}

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """As `Agent.load_state`."""
        self._random.bit_generator.state = state["random"]


def scripted_policy(env: EnvConfig) -> Any:
    """The expert that the env's family has for its task. Raises InputError where there is none."""
    expert = getattr(task_family(env), "expert", None)
    if expert is None:
        raise InputError(f"agent.policy: env.family={env.family} has no scripted experts; use agent.policy=random.")
    return expert(env.task)


def build(
    settings: Mapping[str, Any],
    env: EnvConfig,
    state_size: int,
    action_size: int,
    seed: int,
    device: torch.device | str,
    proprioception_size: int = 0,
    fresh: bool = True,
) -> Scripted:
    """The agent of configs/agent/scripted.yaml: `policy` expert | random, and `noise`."""
    unknown = sorted(set(settings) - {"policy", "noise"})
    if unknown:
        raise InputError(f"agent: unknown key {unknown[0]!r}; valid keys are policy, noise.")
    policy, noise = settings.get("policy", "expert"), float(settings.get("noise", 0.0))
    if policy not in ("expert", "random"):
        raise InputError(f"agent.policy: expected expert or random, got {policy!r}.")
    if noise < 0:
        raise InputError(f"agent.noise: expected 0 or more, got {noise}.")
    return Scripted(scripted_policy(env) if policy == "expert" else None, action_size, noise, seed)
