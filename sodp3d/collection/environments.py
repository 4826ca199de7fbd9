"""What a collection worker holds: environments stepped side by side, their depth frames, their finished episodes.

NumPy only, so that workers start quickly. Frames stay in the worker until their episode ends: only states and actions
cross the pipe at every step, or for agents that see images, one of those.

Shape letters: n running environments, T control steps, S simulator state, Dp proprioception, Ds state, Da action size,
H W image.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d import envs
from sodp3d.collection.playback import image, play
from sodp3d.collection.recording import Recording
from sodp3d.core.errors import InputError
from sodp3d.core.seeds import REPLACEMENT, episode_seed
from sodp3d.data.schema import NO_RENDERER
from sodp3d.envs.config import SUCCESS_METRICS, EnvConfig
from sodp3d.vision.camera import POSE

log = logging.getLogger(__name__)
_MOST_EMPTY = 0.98  # share of a depth image without any depth, from which on it is told
_MOST_DROPPED = 10  # episodes in a row whose simulation diverges


@dataclass(frozen=True)
class Finished:
    """A finished episode. steps: per-step arrays as the store keeps them ({} without `record`).

    seen: {"agent_pos": (T + 1, Dp) float32, "image": (T + 1, 3, H, W) uint8} where the agent sees images, else {}.
    """

    seed: int
    steps: dict[str, NDArray[Any]]
    states: NDArray[np.float32]  # (T + 1, Ds)
    actions: NDArray[np.float32]  # (T, Da)
    rewards: NDArray[np.float32]  # (T,)
    terminated: bool
    success: dict[str, bool]
    seen: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of rewards."""
        return float(self.rewards.sum(dtype=np.float64))


class _Episode:
    """One episode being made in one environment. image_size: of what the agent sees, None for the state.

    With `record`, an episode whose simulation diverges is dropped, and one of another seed begins in its place. depth:
    whether what is recorded is drawn.
    """

    def __init__(
        self, environment: envs.RobotEnv, seed: int, record: bool, image_size: int | None, depth: bool
    ) -> None:
        self.environment, self.record, self.image_size, self.depth = environment, record, image_size, depth
        self._first_seed, self._dropped = seed, 0
        self._begin(seed)

    def _begin(self, seed: int) -> None:
        self.seed = seed
        self.steps: dict[str, list[Any]] = {}
        self.observation, _ = self.environment.reset(seed=seed)
        self.states: list[NDArray[np.float32]] = [self.observation["state"]]
        self.actions: list[NDArray[np.float32]] = []
        self.rewards: list[np.float32] = []
        self.seen: dict[str, list[Any]] = {}
        self.over = False
        self._look()

    def step(self, action: NDArray[np.float32]) -> Finished | None:
        """One control step; returns the episode once it is over."""
        action = np.clip(np.asarray(action, dtype=np.float32), -1, 1)
        if self.record:  # observations, depth and simulator state are from before the action
            if self.depth:
                self._keep("depth", self.environment.render_depth())
                if self.environment.camera_moves:
                    self._keep(POSE, self.environment.camera_pose())
            self._keep("sim_state", self.environment.get_state())
            self._keep("agent_pos", self.observation["agent_pos"])
        self.observation, reward, terminated, truncated, info = self.environment.step(action)
        if self.record and info["diverged"]:
            self._begin_another()
            return None
        if self.record:
            self._keep("success", np.uint8(info["goal_steps"]))
        self.states.append(self.observation["state"])
        self.actions.append(action)
        self.rewards.append(np.float32(reward))
        self._look()
        self.over = terminated or truncated
        return self._finished(terminated, info) if self.over else None

    def _begin_another(self) -> None:
        self._dropped += 1
        if self._dropped > _MOST_DROPPED:
            raise InputError(
                f"env={self.environment.config.name}: the simulation diverged in {self._dropped} episodes in a row, "
                f"the last of seed {self.seed}. Check the model's time step and actuators, and what the agent does."
            )
        self._begin(episode_seed(self._first_seed, REPLACEMENT, self._dropped))

    def _look(self) -> None:
        if self.image_size is not None:
            self.seen.setdefault("agent_pos", []).append(self.observation["agent_pos"])
            self.seen.setdefault("image", []).append(image(self.environment, self.image_size))

    def _keep(self, key: str, value: Any) -> None:
        self.steps.setdefault(key, []).append(value)

    def _finished(self, terminated: bool, info: dict[str, Any]) -> Finished:
        states, actions, rewards = np.stack(self.states), np.stack(self.actions), np.stack(self.rewards)
        steps = {key: np.stack(values) for key, values in self.steps.items()}
        if self.record:
            steps |= {"state": states[:-1], "action": actions, "reward": rewards}
        success = {metric: bool(info[f"success_{metric}"]) for metric in SUCCESS_METRICS}
        seen = {key: np.stack(values) for key, values in self.seen.items()}
        return Finished(self.seed, steps, states, actions, rewards, terminated, success, seen)


class CollectionGroup:
    """Environments of one task, made on first use and kept for reuse.

    Args:
        config: the task. renderer: auto | egl | osmesa | raycast. depth: whether steps are recorded with depth images;
            without, nothing is drawn, and no renderer is needed.
    """

    def __init__(self, config: EnvConfig, renderer: str, depth: bool = True) -> None:
        self._config, self._renderer, self._depth = config, renderer, depth
        self._environments: list[envs.RobotEnv] = []
        self._episodes: list[_Episode] = []
        self._tells = False  # whether this worker is the one that says what depth images lack

    def describe(self) -> dict[str, Any]:
        """Sizes, camera and renderer of the environment, as the store records them; renderer "none" without depth."""
        self._tells = True
        environment, camera = self._environment(0), self._config.camera
        observation, _ = environment.reset(seed=0)
        height, width = environment.render_depth().shape if self._depth else (camera.height, camera.width)
        return {
            "state_size": observation["state"].size,
            "proprioception_size": observation["agent_pos"].size,
            "action_size": environment.task.action_size,
            "simulator_size": environment.get_state().size,
            "height": height,
            "width": width,
            "camera": environment.recorded_camera().to_dict(),
            "camera_moves": environment.camera_moves,
            "renderer": environment.renderer_name if self._depth else NO_RENDERER,
            "count_threshold": environment.task.count_threshold,
        }

    def reset(self, seeds: list[int], record: bool, image_size: int | None = None) -> Any:
        """Start one episode per seed; returns the states (n, Ds), or with `image_size`, n dictionaries as in `step`."""
        environments = [self._environment(slot) for slot in range(len(seeds))]
        self._episodes = [
            _Episode(environment, seed, record, image_size, self._depth)
            for environment, seed in zip(environments, seeds, strict=True)
        ]
        return _now(self._episodes)

    def step(self, actions: NDArray[np.float32]) -> tuple[Any, list[Finished | None]]:
        """One control step of every running episode, in slot order, with actions (n, Da).

        Returns the states (n, Ds) after it, or where the agent sees images, n dictionaries of agent_pos (Dp,) and image
        (3, H, W); and for each of the n its finished episode or None.
        """
        running = [episode for episode in self._episodes if not episode.over]
        finished = [episode.step(action) for episode, action in zip(running, actions, strict=True)]
        for episode in finished:
            if self._tells and episode is not None and "depth" in episode.steps:
                self._look_for_empty_images(episode)
        return _now(running), finished

    def _look_for_empty_images(self, episode: Finished) -> None:
        empty = (episode.steps["depth"] == 0).mean(axis=(1, 2))
        step = int(empty.argmax())
        if empty[step] >= _MOST_EMPTY:
            self._tells = False  # once
            log.warning(
                "%s: %.1f %% of the depth image at step %d of the episode of seed %d show nothing within 65 m. Is "
                "env.camera (position, quaternion, fovy) as it should be?",
                self._config.name,
                100 * empty[step],
                step,
                episode.seed,
            )

    def draw(self, sim_states: NDArray[np.float64], image_size: int) -> NDArray[np.uint8]:
        """Images (T, 3, H, W) of simulator states (T, S), between episodes."""
        environment = self._environment(0)
        images = np.empty((len(sim_states), 3, image_size, image_size), np.uint8)
        for index, state in enumerate(sim_states):
            environment.set_state(state)
            images[index] = image(environment, image_size)
        return images

    def play(self, recording: Recording, image_size: int) -> dict[str, NDArray[Any]] | str:
        """What `playback.play` returns, or why it cannot."""
        try:
            return play(self._environment(0), recording, image_size)
        except InputError as error:
            return str(error)

    def _environment(self, slot: int) -> envs.RobotEnv:
        while len(self._environments) <= slot:
            self._environments.append(envs.make_env(self._config, self._renderer))
        return self._environments[slot]


def _now(episodes: list[_Episode]) -> Any:
    """What the agent sees of each."""
    if any(episode.seen for episode in episodes):
        return [{key: values[-1] for key, values in episode.seen.items()} for episode in episodes]
    return np.stack([episode.states[-1] for episode in episodes])
