"""Batched roll-outs: many environments step in worker processes while one planner plans for all of them.

Shape letters: To observed steps, Tp planned steps, Ta executed steps, K' sampling steps, Da actions.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sodp3d.envs.config import SUCCESS_METRICS, EnvConfig
from sodp3d.envs.group import EnvironmentGroup, Observation
from sodp3d.models.planner import ChainOptions, Planner
from sodp3d.workers import Workers


@dataclass
class Episode:
    """One finished roll-out: C chunks of up to Ta control steps each."""

    seed: int
    observations: list[Observation] = field(default_factory=list)  # C of (To, ...), raw units; empty unless kept
    features: list[Tensor] = field(default_factory=list)  # C of (F,); empty unless kept
    latents: list[Tensor] = field(default_factory=list)  # C of (K'+1, Tp, Da)
    log_prob: list[Tensor] = field(default_factory=list)  # C of (K',)
    actions: list[NDArray[np.float32]] = field(default_factory=list)  # C of (executed, Da)
    rewards: list[NDArray[np.float64]] = field(default_factory=list)  # C of (executed,)
    terminated: bool = False
    success: dict[str, bool] = field(default_factory=dict)

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of task rewards."""
        return float(sum(rewards.sum() for rewards in self.rewards))

    @property
    def chunk_rewards(self) -> Tensor:
        """(C,) float32: r(a^0) of each plan, the gamma = 1 sum over its executed steps (paper, section 3.2)."""
        return torch.tensor([float(rewards.sum()) for rewards in self.rewards])

    @property
    def length(self) -> int:
        """Control steps."""
        return sum(len(rewards) for rewards in self.rewards)


class Rollouts:
    """Roll-outs of one task in worker processes; a context manager.

    Args:
        config: the task. observation: pointcloud | state | image. renderer, backend: as for EnvironmentGroup.
        workers: processes. environments: episodes stepped at once.
    """

    def __init__(
        self, config: EnvConfig, observation: str, renderer: str, backend: str, workers: int, environments: int
    ):
        self._workers = Workers(EnvironmentGroup, [(config, observation, renderer, backend)] * workers)
        self._environments = environments

    def __enter__(self) -> "Rollouts":
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    def run(
        self, planner: Planner, seeds: list[int], options: ChainOptions, keep_chains: bool = False
    ) -> list[Episode]:
        """One episode per seed, in that order.

        The noise of an episode depends on its seed alone, so an episode does not depend on which others ran beside it
        (up to the rounding of batched products).

        Args:
            keep_chains: keep observations, features, latents and log-probabilities, for learning from them.
        """
        episodes: list[Episode] = []
        for start in range(0, len(seeds), self._environments):
            episodes += self._wave(planner, seeds[start : start + self._environments], options, keep_chains)
        return episodes

    @torch.no_grad()
    def _wave(self, planner: Planner, seeds: list[int], options: ChainOptions, keep: bool) -> list[Episode]:
        episodes = [Episode(seed) for seed in seeds]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shares = [list(range(worker, len(seeds), len(self._workers))) for worker in range(len(self._workers))]
        shares = [share for share in shares if share]
        starts = self._workers.call("reset", [([seeds[index] for index in share],) for share in shares])
        current: dict[int, Observation] = {}
        for share, start in zip(shares, starts, strict=True):
            current.update({index: _row(start, place) for place, index in enumerate(share)})
        while current:
            running = sorted(current)
            observation = {key: np.stack([current[i][key] for i in running]) for key in current[running[0]]}
            features = planner.encode({key: torch.as_tensor(v).to(planner.device) for key, v in observation.items()})
            noise = torch.cat([planner.noise(1, generators[i]) for i in running])
            chain = planner.sample_chain(features, noise, options)
            plans = planner.executed(planner.actions(chain.latents[:, -1])).cpu().numpy()
            if keep:
                for row, index in enumerate(running):
                    episodes[index].observations.append(current[index])
                    episodes[index].features.append(features[row].cpu())
                    episodes[index].latents.append(chain.latents[row].cpu())
                    episodes[index].log_prob.append(chain.log_prob[row].cpu())
            current = self._advance(episodes, shares, running, plans)
        return episodes

    def _advance(
        self, episodes: list[Episode], shares: list[list[int]], running: list[int], plans: NDArray[np.float32]
    ) -> dict[int, Observation]:
        """Execute one chunk everywhere; returns the next observation of the episodes that go on."""
        plan_of = dict(zip(running, plans, strict=True))
        busy = [(worker, [i for i in share if i in plan_of]) for worker, share in enumerate(shares)]
        busy = [(worker, indices) for worker, indices in busy if indices]
        for worker, indices in busy:
            slots = [shares[worker].index(index) for index in indices]
            self._workers.start(worker, "step", slots, np.stack([plan_of[index] for index in indices]))
        following: dict[int, Observation] = {}
        for worker, indices in busy:
            answer = self._workers.result(worker)
            for row, index in enumerate(indices):
                if not _record(episodes[index], answer, row, plan_of[index]):
                    following[index] = _row(answer["observation"], row)
        return following


def _record(episode: Episode, answer: dict[str, Any], row: int, plan: NDArray[np.float32]) -> bool:
    """Add one executed chunk to its episode; returns whether the episode is over."""
    executed = int(answer["executed"][row])
    episode.actions.append(plan[:executed])
    episode.rewards.append(answer["rewards"][row][:executed])
    episode.terminated = bool(answer["terminated"][row])
    episode.success = {metric: bool(answer[f"success_{metric}"][row]) for metric in SUCCESS_METRICS}
    return episode.terminated or bool(answer["truncated"][row])


def _row(observation: Observation, row: int) -> Observation:
    return {key: values[row] for key, values in observation.items()}
