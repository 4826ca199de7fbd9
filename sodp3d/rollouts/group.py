"""Environments stepped together inside one worker process: they share its renderer and its converter of clouds."""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.envs import make_env
from sodp3d.envs.config import EnvConfig
from sodp3d.envs.wrappers import ChunkedEnv
from sodp3d.vision.camera import POSE
from sodp3d.vision.sensors import Convert, sensor

Observation = dict[str, NDArray[Any]]


class EnvironmentGroup:
    """Up to as many chunked environments as seeds are ever asked for; made on first use, kept for reuse.

    Args:
        config: the task.
        observation: the sensor, as `obs=` names it.
        renderer: auto | egl | osmesa | raycast.
        backend, device: who samples points, open3d (cpu) | torch, and where. All environments' frames are converted
            at once, which torch needs: alone, a frame takes it ten times as long as Open3D.
    """

    def __init__(self, config: EnvConfig, observation: str, renderer: str, backend: str, device: str = "cpu"):
        self._config, self._observation, self._renderer = config, observation, renderer
        self._backend, self._device = backend, device
        self._sensor = sensor(observation)
        self._environments: list[ChunkedEnv] = []

    def reset(self, seeds: list[int]) -> Observation:
        """Start one episode per seed; observations stacked (len(seeds), To, ...)."""
        environments = self._first(len(seeds))
        return self._begun([env.reset(seed=seed)[0] for env, seed in zip(environments, seeds, strict=True)])

    def restore(self, states: list[NDArray[np.float64]]) -> Observation:
        """Go on from simulator states, one environment each; observations as of `reset`."""
        environments = self._first(len(states))
        return self._begun([env.restore(state) for env, state in zip(environments, states, strict=True)])

    def _first(self, count: int) -> list[ChunkedEnv]:
        while len(self._environments) < count:
            environment = make_env(self._config, self._renderer)
            self._environments.append(ChunkedEnv(environment, self._observation, backend=None))
        return self._environments[:count]

    def _begun(self, starts: list[Observation]) -> Observation:
        # One frame fills all To steps: it is converted once, and its cloud repeated.
        first = self._observed([{key: frames[:1] for key, frames in start.items()} for start in starts])
        return {key: np.repeat(frames, self._config.n_obs_steps, axis=1) for key, frames in first.items()}

    def step(self, slots: list[int], plans: NDArray[np.float32]) -> dict[str, Any]:
        """Execute plans[i] (Ta, Da) in the environment of slots[i].

        Returns observation (n, To, ...), rewards (n, Ta), executed (n,), simulator_state (n, S), and (n,) each of
        terminated, truncated, diverged, success_final, success_count and success_any.
        """
        results = [self._environments[slot].step(plan) for slot, plan in zip(slots, plans, strict=True)]
        infos = [result[4] for result in results]
        answer: dict[str, Any] = {
            "observation": self._observed([result[0] for result in results]),
            "terminated": np.array([result[2] for result in results]),
            "truncated": np.array([result[3] for result in results]),
            "simulator_state": np.stack([self._environments[slot].env.get_state() for slot in slots]),
        }
        for key in ("rewards", "executed", "diverged", "success_final", "success_count", "success_any"):
            answer[key] = np.array([info[key] for info in infos])
        return answer

    def _observed(self, observations: list[Observation]) -> Observation:
        """(n, To, ...), converted where the sensor has a converter."""
        stacked = {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
        if self._convert is not None:
            frames = stacked[self._sensor.key]
            poses = [stacked.pop(POSE).reshape(-1, 4, 4)] if POSE in stacked else []
            values = self._convert(frames.reshape(-1, *frames.shape[2:]), *poses)
            stacked[self._sensor.key] = values.reshape(*frames.shape[:2], *values.shape[1:])
        return stacked

    @cached_property
    def _convert(self) -> Convert | None:
        if self._sensor.converter is None:
            return None
        return self._sensor.converter(self._environments[0].env, self._backend, self._device)
