"""Batched roll-outs: many environments step in worker processes while one planner plans for all of them.

Shape letters: To observed steps, Tp planned steps, Ta executed steps, K' sampling steps, Da actions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sodp3d.envs.config import SUCCESS_METRICS, EnvConfig
from sodp3d.models.critic import Choice
from sodp3d.models.diffusion import Chain, ChainOptions
from sodp3d.models.planner import Planner
from sodp3d.parallel import WorkerCount, WorkerDiedError, make_workers
from sodp3d.rollouts.group import EnvironmentGroup, Observation

if TYPE_CHECKING:
    from sodp3d.serving.remote import RemotePlanner


@dataclass
class Episode:
    """One finished roll-out: C chunks of up to Ta control steps each."""

    seed: int
    observations: list[Observation] = field(default_factory=list)  # C of (To, ...), raw units; empty unless kept
    features: list[Tensor] = field(default_factory=list)  # C of (F,); empty unless kept
    latents: list[Tensor] = field(default_factory=list)  # C of (K'+1, Tp, Da)
    means: list[Tensor] = field(default_factory=list)  # C of (K', Tp, Da)
    actions: list[NDArray[np.float32]] = field(default_factory=list)  # C of (executed, Da)
    rewards: list[NDArray[np.float64]] = field(default_factory=list)  # C of (executed,)
    terminated: bool = False  # by the task; False where the time limit cut it
    diverged: bool = False  # the simulation did, which ended the episode: nothing to learn from
    final_observation: Observation = field(default_factory=dict)  # (To, ...), after the last chunk
    final_features: Tensor | None = None  # (F,) of it; None unless kept
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


class _Wave:
    """Episodes in flight, and what is remembered of each; shares[worker] lists its own, in the order of its slots."""

    def __init__(self, seeds: list[int], workers: int, begin: Callable[[int], Any]) -> None:
        self.episodes = [Episode(seed) for seed in seeds]
        self.begin, self.memories = begin, [begin(seed) for seed in seeds]
        shares = [list(range(worker, len(seeds), workers)) for worker in range(workers)]
        self.shares = [share for share in shares if share]
        self.deaths = [0] * len(self.shares)

    def seeds(self, indices: list[int]) -> list[int]:
        return [self.episodes[index].seed for index in indices]

    def start_over(self, worker: int, indices: list[int]) -> None:
        """These unfinished episodes, all that `worker` has left, as they were at first."""
        self.shares[worker] = indices
        for index in indices:
            self.episodes[index] = Episode(self.episodes[index].seed)
            self.memories[index] = self.begin(self.episodes[index].seed)


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
        planner: "Planner | RemotePlanner",
        seeds: list[int],
        options: ChainOptions,
        keep_chains: bool = False,
        choice: Choice | None = None,
    ) -> list[Episode]:
        """One episode per seed, in that order.

        The noise of an episode depends on its seed alone, so an episode does not depend on which others ran beside it
        (up to the rounding of batched products), nor on whether a worker died and a fresh one began it anew.

        Args:
            planner: one that is served elsewhere samples and chooses as its server does, and has no chains to keep.
            keep_chains: keep observations, features, latents and their means, for learning from them.
            choice: draws several plans where it is given, and says which is executed.
        """
        episodes: list[Episode] = []
        for start in range(0, len(seeds), self.environments):
            part = seeds[start : start + self.environments]
            if isinstance(planner, Planner):
                episodes += self._wave(planner, part, options, keep_chains, choice)
            else:
                episodes += self._served_wave(planner, part)
        return episodes

    def _served_wave(self, planner: "RemotePlanner", seeds: list[int]) -> list[Episode]:
        """Of a planner that is served elsewhere: all that it needs is an observation, and its memory of the episode."""
        wave = _Wave(seeds, len(self._workers), lambda seed: planner.begin(self._config, seed))
        current = self._started(wave)
        while current:
            running = sorted(current)
            memories = [wave.memories[index] for index in running]
            current = self._advance(wave, running, planner.act(_stacked([current[i] for i in running]), memories))
        return wave.episodes

    def _started(self, wave: _Wave) -> dict[int, Observation]:
        """The first observation of every episode."""
        starts = self._workers.call("reset", [(wave.seeds(share),) for share in wave.shares])
        current: dict[int, Observation] = {}
        for share, start in zip(wave.shares, starts, strict=True):
            current.update({index: _row(start, place) for place, index in enumerate(share)})
        return current

    @torch.no_grad()
    def _wave(
        self, planner: Planner, seeds: list[int], options: ChainOptions, keep: bool, choice: Choice | None
    ) -> list[Episode]:
        wave = _Wave(seeds, len(self._workers), lambda seed: torch.Generator().manual_seed(seed))
        episodes, current = wave.episodes, self._started(wave)
        while current:
            running = sorted(current)
            features = _encode(planner, [current[i] for i in running])
            chain = self._sample(planner, features, wave, running, options, choice)
            plans = planner.executed(planner.actions(chain.latents[:, -1])).cpu().numpy()
            if keep:
                for row, index in enumerate(running):
                    episodes[index].observations.append(current[index])
                    episodes[index].features.append(features[row].cpu())
                    episodes[index].latents.append(chain.latents[row].cpu())
                    episodes[index].means.append(chain.means[row].cpu())
            current = self._advance(wave, running, plans)
        if keep:
            features = _encode(planner, [episode.final_observation for episode in episodes])
            for episode, row in zip(episodes, features.cpu(), strict=True):
                episode.final_features = row
        return episodes

    def _sample(
        self,
        planner: Planner,
        features: Tensor,
        wave: _Wave,
        running: list[int],
        options: ChainOptions,
        choice: Choice | None,
    ) -> Chain:
        """One chain for each of the `running` episodes."""
        count = choice.count if choice else 1
        noise = torch.stack([planner.noise(count, wave.memories[index]) for index in running])
        if choice is None:
            return planner.sample_chain(features, noise[:, 0], options)
        elapsed = torch.tensor([wave.episodes[index].length / self._config.episode_steps for index in running])
        return choice.sample(planner, features, elapsed.to(features), noise, options)

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
                start = self._workers.start_anew(worker, error, wave.deaths, len(indices), "reset", wave.seeds(indices))
                wave.start_over(worker, indices)
                following |= {index: _row(start, place) for place, index in enumerate(indices)}
                continue
            for row, index in enumerate(indices):
                if not _record(wave.episodes[index], answer, row, plan_of[index]):
                    following[index] = _row(answer["observation"], row)
        return following


def _encode(planner: Planner, observations: list[Observation]) -> Tensor:
    """B of (To, ...) -> features (B, F)."""
    stacked = _stacked(observations)
    return planner.encode({key: torch.as_tensor(values).to(planner.device) for key, values in stacked.items()})


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
    over = episode.terminated or bool(answer["truncated"][row])
    if over:
        episode.final_observation = _row(answer["observation"], row)
    return over


def _row(observation: Observation, row: int) -> Observation:
    return {key: values[row] for key, values in observation.items()}
