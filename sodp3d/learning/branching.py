"""Branches: several plans executed from one stored simulator state, compared by the returns that come of them.

A plan's advantage is its return minus the mean of its state's group: unbiased, without a critic or a value head. The
simulator steps of the branches count as interactions.

Shape letters: G plans of one state, C chunks of an episode, R remembered plans, S simulator state.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sodp3d.core import checkpoint
from sodp3d.core.seeds import BRANCHING, episode_seed
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.buffers import EpisodeRecord, draw
from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.planner import Planner
from sodp3d.rollouts.rollout import Episode, Rollouts, Start
from sodp3d.settings import BranchSettings


def trunks_within(episodes: int, settings: BranchSettings) -> int:
    """How many whole episodes, with their branches, make about that many: a branch is half an episode on average."""
    return max(1, round(episodes / (1 + settings.states * (settings.group - 1) / 2)))


def interactions(episodes: Sequence[Episode], task: EnvConfig) -> int:
    """In whole episodes: branches by their steps, all together."""
    steps = sum(episode.length for episode in episodes if episode.begun)
    return sum(not episode.begun for episode in episodes) + math.ceil(steps / task.episode_steps)


@dataclass(frozen=True)
class Group:
    """An episode's plan before `chunk`, and the G - 1 others that go on from the same state."""

    trunk: Episode
    chunk: int
    others: Sequence[Episode]


def branch(
    planner: Planner,
    trunks: Sequence[Episode],
    rollouts: Rollouts,
    options: ChainOptions,
    settings: BranchSettings,
    seed: int,
    index: int,
) -> list[Group]:
    """A group for each chosen state of each trunk; none of one whose simulation diverged, or of a single chunk.

    index: of the first trunk among all of this seed; the same one gives the same branches.
    """
    points = [
        (trunk, chunk)
        for place, trunk in enumerate(trunks)
        for chunk in _branching_points(trunk, settings, (seed, BRANCHING, index + place))
    ]
    size = settings.group - 1
    starts = [_start(trunk, chunk) for trunk, chunk in points for _ in range(size)]
    first = index * settings.states * size
    seeds = [episode_seed(seed, BRANCHING, first + place) for place in range(len(starts))]
    found = rollouts.run(planner, seeds, options, keep_chains=True, starts=starts)
    groups = [
        Group(trunk, chunk, found[place * size : (place + 1) * size]) for place, (trunk, chunk) in enumerate(points)
    ]
    for group in groups:
        before = {metric: 0 for metric, chunks in group.trunk.achieved.items() if chunks <= group.chunk}
        for other in group.others:
            other.achieved |= before
    return groups


def _branching_points(trunk: Episode, settings: BranchSettings, entropy: tuple[int, ...]) -> list[int]:
    """Chunks before which it is branched, drawn without replacement; never the first, before which nothing was done."""
    later = np.arange(1, len(trunk.rewards))
    if trunk.diverged:
        return []
    random = np.random.default_rng(entropy)
    drawn: list[int] = np.sort(random.choice(later, min(settings.states, len(later)), replace=False)).tolist()
    return drawn


def _start(trunk: Episode, chunk: int) -> Start:
    steps = sum(len(rewards) for rewards in trunk.rewards[:chunk])
    return Start(trunk.states[chunk - 1], trunk.observations[chunk], trunk.begun + steps)


class Branches:
    """Recent groups of plans with their advantages, to draw batches from as from the buffers of episodes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: dict[str, Tensor] = {}  # R of each key of an episode's chunks
        self.credit = torch.zeros(0)  # (R,)

    def __len__(self) -> int:
        return len(self.credit)

    def add(self, group: Group, record: Callable[[Episode], EpisodeRecord]) -> None:
        """Remember a group's plans, whose advantages sum to zero; the oldest are forgotten.

        record: an episode as memory keeps it. A group is left out where a simulation diverged.
        """
        if any(episode.diverged for episode in group.others):
            return
        trunk, others = record(group.trunk), [record(episode) for episode in group.others]
        plans = [{key: value[group.chunk] for key, value in trunk.rows().items()}]
        plans += [{key: value[0] for key, value in other.rows().items()} for other in others]
        returns = torch.stack([trunk.reward[group.chunk :].sum(), *(other.reward.sum() for other in others)])
        new = {key: torch.stack([plan[key] for plan in plans]) for key in plans[0]}
        old = [self.rows] if self.rows else []
        self.rows = {key: torch.cat([rows[key] for rows in (*old, new)])[-self.capacity :] for key in new}
        self.credit = torch.cat([self.credit, returns - returns.mean()])[-self.capacity :]

    def sample(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Drawn uniformly with replacement: every key (batch_size, ...), and "index", their positions."""
        return draw(self.rows, batch_size, generator)

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors, all a later run needs to go on exactly."""
        return {**checkpoint.with_prefix("rows", self.rows), "credit": self.credit}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self.rows, self.credit = checkpoint.without_prefix("rows", state), state["credit"].clone()
