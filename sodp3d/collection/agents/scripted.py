"""Agents that do not learn: an env family's scripted experts and uniform random actions, with noise to taste.

Shape letters: E environments, Ds state size, Da action size.
"""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sodp3d.collection.agents import Surroundings
from sodp3d.collection.agents.memory import Trajectory
from sodp3d.core.errors import InputError
from sodp3d.core.sections import NotNegative, read_section, section
from sodp3d.envs import task_family
from sodp3d.envs.config import EnvConfig


class Scripted:
    """Acts by a fixed rule: `policy(state) -> action`, or uniformly at random where it is None.

    noise: standard deviation of Gaussian noise on the rule's actions when exploring. most_noise: where given, each
    wave of episodes has a deviation of its own, uniformly between the two, so that some fail where others succeed.
    """

    updates_per_step = 0.0
    offline_left = 0
    image_size: int | None = None
    needs_demonstrations = False
    scripted_episodes = 0  # before others of its own: the agent's name says what made them all

    def __init__(self, policy: Any, action_size: int, noise: float, seed: int, most_noise: float | None = None) -> None:
        self.policy, self.action_size, self.noise = policy, action_size, noise
        self._range = noise, noise if most_noise is None else most_noise
        self._random = np.random.default_rng(seed)

    def demonstrate(self, trajectories: list[Trajectory]) -> None:
        """Nothing to learn."""

    def seed_exploration(self, seed: int) -> None:
        """As `Agent.seed_exploration`."""
        self._random = np.random.default_rng(seed)
        self.noise = self._random.uniform(*self._range) if self._range[0] < self._range[1] else self._range[0]

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
        return {"none": torch.zeros(1)}, {}

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """As `Agent.load_state`."""


def scripted_policy(env: EnvConfig) -> Any:
    """The expert that the env's family has for its task. Raises InputError where there is none."""
    expert = getattr(task_family(env), "expert", None)
    if expert is None:
        raise InputError(f"agent.policy: env.family={env.family} has no scripted experts; use agent.policy=random.")
    return expert(env.task)


@section("agent")
class ScriptedConfig:
    """configs/agent/scripted.yaml."""

    policy: Literal["expert", "random"] = "expert"
    noise: NotNegative = 0.0  # standard deviation, of the expert's actions
    most_noise: NotNegative | None = None  # then each wave of episodes draws its own, from `noise` to this


def build(settings: dict[str, Any], where: Surroundings) -> Scripted:
    """The agent of configs/agent/scripted.yaml."""
    config = read_section(ScriptedConfig, settings)
    if config.most_noise is not None and config.most_noise < config.noise:
        raise InputError(
            f"agent.most_noise: expected at least agent.noise={config.noise:g}, or null, got {config.most_noise:g}."
        )
    policy = scripted_policy(where.env) if config.policy == "expert" else None
    return Scripted(policy, where.action_size, config.noise, where.seed, config.most_noise)
