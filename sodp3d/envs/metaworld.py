"""Meta-World v3 tasks with random goals and the v2 reward function.

Depth images show the task's goal site as a small sphere: where the goal is a point in space (reach, push, pick-place)
a planner that sees only point clouds could not know it otherwise.
"""

import difflib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.envs.base import with_camera
from sodp3d.envs.config import EnvConfig
from sodp3d.vision.simulator import mujoco

_FINGER_SITES = ("rightEndEffector", "leftEndEffector")
# There is no published count metric; DP3 keeps demonstrations with at least 5 successful steps.
_COUNT_THRESHOLD = 4


def task_names() -> tuple[str, ...]:
    """The fifty tasks, without the version: assembly, basketball, ..."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return tuple(name.removesuffix("-v3") for name in ALL_V3_ENVIRONMENTS)


def _load(task: str) -> type:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    names = task_names()
    if task not in names:
        near = difflib.get_close_matches(task, names, n=3) or names
        raise InputError(f"env.task: Meta-World has no task {task!r}; did you mean {' or '.join(near)}?")
    loaded: type = ALL_V3_ENVIRONMENTS[f"{task}-v3"]
    return loaded


class MetaWorld:
    """One Meta-World task, as `sodp3d.envs.base.Task`.

    state: the 39 numbers of Meta-World's goal-observable environments (this frame, the one before, the goal).
    """

    action_size = 4
    count_threshold = _COUNT_THRESHOLD

    def __init__(self, config: EnvConfig) -> None:
        self._env: Any = with_camera(_load(config.task), config.camera)()
        self._env._set_task_called = True  # goals are drawn at reset instead of set
        self._env._freeze_rand_vec = False
        self._env.seeded_rand_vec = True
        self._env.max_path_length = np.iinfo(np.int64).max  # the time limit is ours
        self._env._partially_observable = False
        self._env.__dict__.pop("sawyer_observation_space", None)  # cached before the goal became observable
        self.model: mujoco.MjModel = self._env.model
        self.data: mujoco.MjData = self._env.data
        self.frame_skip: int = self._env.frame_skip
        self._state = np.zeros(39)
        # One step, so that every attribute that an episode sets is there to be found.
        self.reset(0)
        self.step(np.zeros(self.action_size))
        self._names = self._varying_attributes()
        self.visible_sites = tuple(self.model.site(name).id for name, _ in self._env._target_site_config)

    def reset(self, seed: int) -> None:
        self._env.seed(seed)
        self._env.reset()
        self.forward()
        # The reset's own observation is of positions before the last bodies were moved.
        self._env._prev_obs = self._env._get_curr_obs_combined_no_goal()
        self._state = self._env._get_obs()

    def step(self, action: NDArray[np.float64]) -> tuple[float, bool, bool]:
        self._state, reward, _, _, info = self._env.step(action)
        self._place_goals()
        return float(reward), bool(info["success"]), False

    def forward(self) -> None:
        mujoco.mj_forward(self.model, self.data)
        self._place_goals()

    def _place_goals(self) -> None:
        # mj_forward puts sites back where the model has them; the task's targets are elsewhere.
        for name, position in self._env._target_site_config:
            self.data.site(name).xpos = position

    def state(self) -> NDArray[np.float64]:
        return self._state

    def proprioception(self) -> NDArray[np.float64]:
        """(9,) end effector, right and left finger positions, metres, world frame (DP3's)."""
        return np.concatenate([self.data.body("hand").xpos, *(self.data.site(name).xpos for name in _FINGER_SITES)])

    def _varying_attributes(self) -> list[str]:
        """Names of the environment's numbers and arrays; those that are views into the simulator's data follow it."""
        live = [self.data.xpos, self.data.xquat, self.data.site_xpos, self.data.geom_xpos, self.data.qpos]
        names = []
        for name, value in sorted(vars(self._env).items()):
            if isinstance(value, np.ndarray):
                if value.dtype.kind == "f" and not any(np.shares_memory(value, array) for array in live):
                    names.append(name)
            elif isinstance(value, float | np.floating):
                names.append(name)
        return names

    def get_variables(self) -> NDArray[np.float64]:
        own = [np.ravel(getattr(self._env, name)) for name in self._names]
        return np.concatenate([self.model.body_pos.ravel(), self.model.site_pos.ravel(), self._state, *own])

    def set_variables(self, values: NDArray[np.float64]) -> None:
        position = 0

        def take(like: NDArray[np.float64]) -> NDArray[np.float64]:
            nonlocal position
            position += like.size
            return values[position - like.size : position].reshape(like.shape).copy()

        self.model.body_pos[:] = take(self.model.body_pos)
        self.model.site_pos[:] = take(self.model.site_pos)
        self._state = take(self._state)
        for name in self._names:
            # New arrays, never writes in place: some attributes are aliases of the task's initial configuration.
            value = take(np.asarray(getattr(self._env, name)))
            setattr(self._env, name, value if value.shape else value[()])

    @staticmethod
    def expert(task: str) -> Any:
        """Meta-World's scripted policy for a task: `get_action(state)`. Raises InputError where there is none."""
        from metaworld.policies import ENV_POLICY_MAP

        names = [name.removesuffix("-v3") for name in ENV_POLICY_MAP]
        if task not in names:
            near = difflib.get_close_matches(task, names) or ["policy=random"]
            raise InputError(f"agent.policy: there is no scripted expert for task {task!r}; did you mean {near[0]}?")
        policy: Any = ENV_POLICY_MAP[f"{task}-v3"]
        return policy()
