"""A planner that is served elsewhere, for roll-outs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.envs.config import EnvConfig
from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.loading import policy_config
from sodp3d.models.planner import PlannerConfig
from sodp3d.serving.client import PolicyClient

SCHEMES = ("ws://", "wss://")


def is_served(planner: object) -> bool:
    """Whether `planner=` names a server rather than a folder."""
    return isinstance(planner, str) and planner.startswith(SCHEMES)


def _planner_config(told: Mapping[str, Any], url: str) -> PlannerConfig:
    config = policy_config(told, Path(url))
    if not isinstance(config, PlannerConfig):
        raise InputError(f"server: {url} serves a policy of method={config.method}, not a planner.")
    return config


class RemotePlanner:
    """Acts in many episodes at once by plans of the server at `url`; a context manager.

    The noise of every plan is drawn here and sent, so an episode is that of the planner in this process.
    Raises InputError where there is no server, or it does not serve a planner of ours.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self._client = PolicyClient(url, token)
        told = self._client.metadata
        try:
            self.config = _planner_config(told, url)
            self.count = int(told["best_of"])  # N: plans of which one is taken
            self.digest = str(told["digest"])
            self._rows = int(told["max_rows"])
        except (KeyError, TypeError, ValueError) as error:
            self._client.close()
            raise (
                error
                if isinstance(error, InputError)
                else InputError(f"server: {url} does not say what planner it serves ({error!r}).")
            ) from None
        self.state = told  # as the planner's checkpoint says it: tasks, view

    def __enter__(self) -> "RemotePlanner":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @property
    def sampler(self) -> ChainOptions:
        """How the server samples."""
        return ChainOptions(eta=self.config.eta, sigma_floor=self.config.sigma_floor)

    def begin(self, task: EnvConfig, seed: int) -> "Memory":
        """What is remembered of an episode: its random numbers, which are drawn here, and how long it has gone on."""
        return Memory(torch.Generator().manual_seed(seed), task.episode_steps)

    def act(self, observation: Mapping[str, NDArray[Any]], memories: Sequence["Memory"]) -> NDArray[np.float32]:
        """Actions (B, Ta, Da) for observations (B, To, ...) of so many episodes."""
        config = self.config
        shape = (self.count, config.inference_steps + 1, config.horizon, config.action_size)
        noise = np.stack([torch.randn(shape, generator=memory.generator).numpy() for memory in memories])
        elapsed = np.array([memory.steps / memory.most_steps for memory in memories], np.float32)
        chunks = []
        for start in range(0, len(memories), self._rows):
            rows = slice(start, start + self._rows)
            shown = {key: np.asarray(values[rows]) for key, values in observation.items()}
            told = {"noise": noise[rows], "elapsed": elapsed[rows], "timestamp": self._client.now()}
            chunks.append(self._checked(self._client.infer(shown, **told).get("actions"), len(noise[rows])))
        for memory in memories:
            memory.steps += config.n_action_steps
        return np.concatenate(chunks)

    def _checked(self, actions: Any, count: int) -> NDArray[np.float32]:
        shape = (count, self.config.n_action_steps, self.config.action_size)
        if not isinstance(actions, np.ndarray) or actions.shape != shape or actions.dtype != np.float32:
            raise InputError(f"server: {self._client.url} gave other actions than float32 {shape}.")
        return actions


@dataclass
class Memory:
    """Of one episode."""

    generator: torch.Generator
    most_steps: int  # the episode's time limit
    steps: int = 0  # that were planned so far
