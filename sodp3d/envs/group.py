"""Environments stepped together inside one worker process (they share its renderer); NumPy only."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.envs import make
from sodp3d.envs.config import EnvConfig
from sodp3d.envs.wrappers import ChunkedEnv

Observation = dict[str, NDArray[Any]]


class EnvironmentGroup:
    """Up to as many chunked environments as seeds are ever asked for; made on first use, kept for reuse.

    Args:
        config: the task.
        observation: pointcloud | state | image.
        renderer: auto | egl | osmesa | raycast.
        backend: who samples points, open3d | torch.
    """

    def __init__(self, config: EnvConfig, observation: str, renderer: str, backend: str):
        self._config, self._observation, self._renderer, self._backend = config, observation, renderer, backend
        self._environments: list[ChunkedEnv] = []

    def reset(self, seeds: list[int]) -> Observation:
        """Start one episode per seed; observations stacked (len(seeds), To, ...)."""
        while len(self._environments) < len(seeds):
            environment = make(self._config, self._renderer)
            self._environments.append(ChunkedEnv(environment, self._observation, self._backend))
        starts = [env.reset(seed=seed)[0] for env, seed in zip(self._environments, seeds, strict=False)]
        return _stack(starts)

    def step(self, slots: list[int], plans: NDArray[np.float32]) -> dict[str, Any]:
        """Execute plans[i] (Ta, Da) in the environment of slots[i].

        Returns observation (n, To, ...), rewards (n, Ta), executed (n,), terminated (n,), truncated (n,),
        and success_final, success_count, success_any (n,).
        """
        results = [self._environments[slot].step(plan) for slot, plan in zip(slots, plans, strict=True)]
        infos = [result[4] for result in results]
        answer: dict[str, Any] = {
            "observation": _stack([result[0] for result in results]),
            "terminated": np.array([result[2] for result in results]),
            "truncated": np.array([result[3] for result in results]),
        }
        for key in ("rewards", "executed", "success_final", "success_count", "success_any"):
            answer[key] = np.array([info[key] for info in infos])
        return answer


def _stack(observations: list[Observation]) -> Observation:
    return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
