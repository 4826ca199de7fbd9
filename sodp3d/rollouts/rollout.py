"""Batched roll-outs: many environments step in worker processes while one policy acts in all of them.

Shape letters: To observed steps, Tp planned steps, Ta executed steps, K' sampling steps, Da actions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sodp3d.envs.config import SUCCESS_METRICS, EnvConfig
from sodp3d.models.critic import Choice
from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.planner import Planner
from sodp3d.models.policy import Policy
from sodp3d.models.sampled import Sampled
from sodp3d.parallel import WorkerCount, WorkerDiedError, make_workers
from sodp3d.rollouts.group import EnvironmentGroup, Observation


@dataclass(frozen=True)
class Start:
    """Where a roll-out begins in the middle of an episode, after so many control steps of it.

    state: (S,) of the simulator. observation: (To, ...), what was seen there, with the steps before.
    """

    state: NDArray[np.float64]
    observation: Observation
    steps: int


@dataclass
class Episode:
    """One finished roll-out: C chunks of up to Ta control steps each."""

    seed: int
    begun: int = 0  # control steps of the episode that it went on from; 0: a whole one
    observations: list[Observation] = field(default_factory=list)  # C of (To, ...), raw units; empty unless kept
    features: list[Tensor] = field(default_factory=list)  # C of (F,); empty unless kept
    latents: list[Tensor] = field(default_factory=list)  # C of (K'+1, Tp, Da)
    means: list[Tensor] = field(default_factory=list)  # C of (K', Tp, Da)
    states: list[NDArray[np.float64]] = field(default_factory=list)  # C of (S,), the simulator's after each chunk
    actions: list[NDArray[np.float32]] = field(default_factory=list)  # C of (executed, Da)
    rewards: list[NDArray[np.float64]] = field(default_factory=list)  # C of (executed,)
    terminated: bool = False  # by the task; False where the time limit cut it
    diverged: bool = False  # the simulation did, which ended the episode: nothing to learn from
    final_observation: Observation = field(default_factory=dict)  # (To, ...), after the last chunk
    final_features: Tensor | None = None  # (F,) of it; None unless kept
    success: dict[str, bool] = field(default_factory=dict)
    # chunks after which each metric first counted a success; 0: before the first
    achieved: dict[str, int] = field(default_factory=dict)

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


class _Wave:
    """Episodes in flight, and what the policy remembers of each; shares[worker] lists its own, in its slots' order.

    starts: one for each seed, where they begin in the middle of others. keep: what learning from them needs.
    """

    def __init__(
        self, policy: Policy, task: EnvConfig, seeds: list[int], starts: Sequence[Start], keep: bool, workers: int
    ) -> None:
        self.policy, self.task, self.starts, self.keep = policy, task, starts, keep
        begun = [start.steps for start in starts] or [0] * len(seeds)
        self.episodes = [Episode(seed, steps) for seed, steps in zip(seeds, begun, strict=True)]
        self.memories = [self._memory(episode) for episode in self.episodes]
        shares = [list(range(worker, len(seeds), workers)) for worker in range(workers)]
        self.shares = [share for share in shares if share]
        self.deaths = [0] * len(self.shares)

    def _memory(self, episode: Episode) -> Any:
        memory = self.policy.begin(self.task, episode.seed)
        if episode.begun:
            memory.steps = episode.begun
        return memory

    def beginning(self, indices: list[int]) -> tuple[str, list[Any]]:
        """The group's method that begins these episodes, and its argument."""
        if self.starts:
            return "restore", [self.starts[index].state for index in indices]
        return "reset", [self.episodes[index].seed for index in indices]

    def first(self, answer: Observation, indices: list[int]) -> dict[int, Observation]:
        """What the planner sees first in each, where the group's method answered so."""
        if self.starts:
            return {index: self.starts[index].observation for index in indices}
        return {index: _row(answer, place) for place, index in enumerate(indices)}

    def start_over(self, worker: int, indices: list[int]) -> None:
        """These unfinished episodes, all that `worker` has left, as they were at first."""
        self.shares[worker] = indices
        for index in indices:
            self.episodes[index] = Episode(self.episodes[index].seed, self.episodes[index].begun)
            self.memories[index] = self._memory(self.episodes[index])


class Rollouts:
    """Roll-outs of one task by workers; a context manager.

    Args:
        config: the task. observation: pointcloud | state | image. renderer, backend, device: as for EnvironmentGroup.
        workers: as for `make_workers`. environments: episodes stepped at once.
    """

    def __init__(
        self,
        config: EnvConfig,
        observation: str,
        renderer: str,
        backend: str,
        workers: WorkerCount,
        environments: int,
        device: str = "cpu",
    ):
        values = (config, observation, renderer, backend, device)
        self._config = config
        self._workers = make_workers(workers, EnvironmentGroup, values, at_most=environments)
        self.environments = environments

    def __enter__(self) -> "Rollouts":
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    def run(
        self,
        policy: Policy,
        seeds: list[int],
        options: ChainOptions | None = None,
        keep_chains: bool = False,
        choice: Choice | None = None,
        starts: Sequence[Start] = (),
    ) -> list[Episode]:
        """One episode per seed, in that order.

        All randomness of an episode depends on its seed alone, so an episode does not depend on which others ran beside
        it (up to the rounding of batched products), nor on whether a worker died and a fresh one began it anew.

        Args:
            options, keep_chains, choice: of planners. How it samples (its own way if None); whether to keep
                observations, features, latents and their means, and simulator states, to learn from them; who draws
                several plans of each state and says which is executed.
            starts: one for each seed, where a planner's episodes begin in the middle of others. The seed is of its
                noise then.
        """
        if options is not None or keep_chains or choice is not None or starts:
            assert isinstance(policy, Planner), "only planners have chains"
            policy = Sampled(policy, options or policy.sampler, choice, keep_chains)
        episodes: list[Episode] = []
        for start in range(0, len(seeds), self.environments):
            some = slice(start, start + self.environments)
            episodes += self._wave(
                _Wave(policy, self._config, seeds[some], starts[some], keep_chains, len(self._workers))
            )
        return episodes

    def _wave(self, wave: _Wave) -> list[Episode]:
        policy, episodes = wave.policy, wave.episodes
        methods, arguments = zip(*(wave.beginning(share) for share in wave.shares), strict=True)
        answers = self._workers.call(methods[0], [(argument,) for argument in arguments])
        current: dict[int, Observation] = {}
        for share, answer in zip(wave.shares, answers, strict=True):
            current |= wave.first(answer, share)
        while current:
            running = sorted(current)
            if wave.keep:
                for index in running:
                    episodes[index].observations.append(current[index])
            chunks = policy.act(_stacked([current[i] for i in running]), [wave.memories[i] for i in running])
            current = self._advance(wave, running, chunks)
        if wave.keep:
            assert isinstance(policy, Sampled)
            finals = policy.encode(_stacked([episode.final_observation for episode in episodes])).cpu()
            for episode, memory, final in zip(episodes, wave.memories, finals, strict=True):
                episode.features, episode.latents, episode.means = memory.features, memory.latents, memory.means
                episode.final_features = final
        return episodes

    def _advance(self, wave: _Wave, running: list[int], plans: NDArray[np.float32]) -> dict[int, Observation]:
        """Execute one chunk everywhere; returns the next observation of the episodes that go on.

        Those of a worker that died start over on a fresh one. Raises WorkerError when that happens `ATTEMPTS` times.
        """
        plan_of = dict(zip(running, plans, strict=True))
        busy = [(worker, [i for i in share if i in plan_of]) for worker, share in enumerate(wave.shares)]
        busy = [(worker, indices) for worker, indices in busy if indices]
        for worker, indices in busy:
            slots = [wave.shares[worker].index(index) for index in indices]
            self._workers.start(worker, "step", slots, np.stack([plan_of[index] for index in indices]))
        following: dict[int, Observation] = {}
        for worker, indices in busy:
            try:
                answer = self._workers.result(worker)
            except WorkerDiedError as error:
                begun = self._workers.start_anew(worker, error, wave.deaths, len(indices), *wave.beginning(indices))
                wave.start_over(worker, indices)
                following |= wave.first(begun, indices)
                continue
            for row, index in enumerate(indices):
                if wave.keep:
                    wave.episodes[index].states.append(answer["simulator_state"][row])
                if not _record(wave.episodes[index], answer, row, plan_of[index]):
                    following[index] = _row(answer["observation"], row)
        return following


def _stacked(observations: list[Observation]) -> Observation:
    """B of (To, ...) -> (B, To, ...)."""
    return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}


def _record(episode: Episode, answer: dict[str, Any], row: int, plan: NDArray[np.float32]) -> bool:
    """Add one executed chunk to its episode; returns whether the episode is over."""
    executed = int(answer["executed"][row])
    episode.actions.append(plan[:executed])
    episode.rewards.append(answer["rewards"][row][:executed])
    episode.terminated = bool(answer["terminated"][row])
    episode.diverged = bool(answer["diverged"][row])
    episode.success = {metric: bool(answer[f"success_{metric}"][row]) for metric in SUCCESS_METRICS}
    for metric in (metric for metric, succeeded in episode.success.items() if succeeded):
        episode.achieved.setdefault(metric, len(episode.actions))
    over = episode.terminated or bool(answer["truncated"][row])
    if over:
        episode.final_observation = _row(answer["observation"], row)
    return over


def _row(observation: Observation, row: int) -> Observation:
    return {key: values[row] for key, values in observation.items()}
