"""Action chunks for planners: several control steps at once, rendering only the frames that the planner will see.

Shape letters: To observed steps, Ta executed steps, Da action, Dp proprioception, Ds state, N points, H W image.
"""

from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.envs.base import RobotEnv
from sodp3d.vision.camera import POSE
from sodp3d.vision.sensors import Convert, sensor

ChunkObservation = dict[str, NDArray[Any]]


class ChunkedEnv(gymnasium.Wrapper[ChunkObservation, NDArray[np.float32], Any, Any]):
    """Executes Ta control steps per action and observes the last To of them, stacked along the first axis.

    observation: what the planner sees beside `agent_pos` (To, Dp) float32, under its sensor's key: "pointcloud" gives
    `point_cloud` (To, N, 3) float32 metres, world frame; "state" gives `state` (To, Ds) float32; "image" gives `image`
    (To, 3, H, W) uint8.
    backend: converter of point clouds, "open3d" | "torch" (the same points). None leaves frames as the environment
    draws them, for whoever converts those of many environments at once; of a camera that moves `camera_pose`
    (To, 4, 4) comes with them.

    After reset the first frame is repeated To times (edge padding, as in training); so is the last frame of an episode
    that ends before the frames to observe.
    """

    env: RobotEnv

    def __init__(self, env: RobotEnv, observation: str = "pointcloud", backend: str | None = "open3d") -> None:
        super().__init__(env)
        config = env.config
        self._n_obs, self._n_action = config.n_obs_steps, config.n_action_steps
        self._sensor, self._backend = sensor(observation), backend
        self._frames: list[ChunkObservation] = []
        self.action_space = spaces.Box(-1.0, 1.0, (self._n_action, env.task.action_size), np.float32)
        joints = spaces.Box(-np.inf, np.inf, (self._n_obs, env.task.proprioception().size), np.float32)
        whole = np.issubdtype(self._sensor.dtype, np.integer)
        low, high = (0, np.iinfo(self._sensor.dtype).max) if whole else (-np.inf, np.inf)
        seen = spaces.Box(low, high, (self._n_obs, *self._sensor.shape(env)), self._sensor.dtype)
        boxes: dict[str, spaces.Space[Any]] = {"agent_pos": joints, self._sensor.key: seen}
        if backend is None and self._sensor.converter is not None and env.camera_moves:
            boxes[POSE] = spaces.Box(-np.inf, np.inf, (self._n_obs, 4, 4), np.float64)
        self.observation_space = spaces.Dict(boxes)  # type: ignore[assignment]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ChunkObservation, dict[str, Any]]:
        """Start an episode; its first frame fills all To observed steps. info as after a step that executed nothing."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._frames = [self._see(observation)]
        return self._stacked(), {**info, "rewards": np.zeros(self._n_action), "executed": 0}

    def restore(self, state: NDArray[np.float64]) -> ChunkObservation:
        """Go on from what `RobotEnv.get_state` returned; the frame there fills all To observed steps."""
        self._frames = [self._see(self.env.set_state(state))]
        return self._stacked()

    def step(self, action: NDArray[np.float32]) -> tuple[ChunkObservation, float, bool, bool, dict[str, Any]]:
        """Execute action (Ta, Da), stopping at the episode's end; the reward is the sum over executed steps.

        info adds `rewards` (Ta,) float64, zeros after the end, and `executed`; `goal_steps` is the chunk's total.
        Raises InputError on an action of another shape.
        """
        actions = np.asarray(action)
        if actions.shape != self.action_space.shape:
            raise InputError(f"action: expected shape {self.action_space.shape}, got {actions.shape}.")
        rewards = np.zeros(self._n_action)
        goal_steps = executed = 0
        terminated = truncated = False
        first_seen = min(self._n_action, self.env.steps_left) - self._n_obs
        for index, single in enumerate(actions):
            observation, rewards[index], terminated, truncated, info = self.env.step(single)
            goal_steps += info["goal_steps"]
            executed += 1
            if index >= first_seen or terminated or truncated:
                if 0 < index <= first_seen:  # the step before was not drawn (such an end cannot be foreseen)
                    self._frames = []
                self._frames = [*self._frames, self._see(observation)][-self._n_obs :]
            if terminated or truncated:
                break
        info = {**info, "goal_steps": goal_steps, "rewards": rewards, "executed": executed}
        return self._stacked(), float(rewards.sum()), terminated, truncated, info

    def _see(self, observation: dict[str, NDArray[np.float32]]) -> ChunkObservation:
        frame = self._sensor.frame(self.env, observation)
        seen = {"agent_pos": observation["agent_pos"], self._sensor.key: frame}
        if self._sensor.converter is not None and self.env.camera_moves:
            seen[POSE] = self.env.camera_pose()
        if self._convert is not None:
            poses = [seen.pop(POSE)[None]] if POSE in seen else []
            seen[self._sensor.key] = self._convert(frame[None], *poses)[0]
        return seen

    @cached_property
    def _convert(self) -> Convert | None:
        if self._sensor.converter is None or self._backend is None:
            return None
        return self._sensor.converter(self.env, self._backend, "cpu")

    def _stacked(self) -> ChunkObservation:
        padding = [self._frames[0]] * (self._n_obs - len(self._frames))
        frames = padding + self._frames
        return {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
