"""Meta-World v3 tasks with random goals and the v2 reward function.

Depth images show the task's goal site as a small sphere: where the goal is a point in space (reach, push, pick-place)
a planner that sees only point clouds could not know it otherwise. Tasks for which Meta-World names no site have a
target that follows from a body that is seen: a button, a handle, a door, a box, a bin.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
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
# Tasks whose clouds never show the target, by the camera and crop of configs/env/metaworld.yaml.
GOALS_OUT_OF_SIGHT = {
    "bin-picking": "the bottom of the right bin, which is never moved, lies below the crop; its walls are seen",
    "hand-insert": "the target is in a hole of the table, below the crop",
    "stick-pull": "the target is nearer to the camera than the picture and the crop reach, at x > 0.3",
    "stick-push": "the target is nearer to the camera than the picture reaches, always at about (0.4, 0.6, 0.13)",
    "sweep": "the target is beside the table, outside the picture and the crop, always at x = 0.5",
}
# Numbers of Meta-World's that count what was done; nothing that an episode shows depends on them.
_COUNTERS = ("curr_path_length", "num_resets")


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


@dataclass(frozen=True)
class _Attribute:
    """A number or array that Meta-World's environment keeps for itself. optional: it is None at times."""

    name: str
    like: NDArray[Any]  # of its shape and type
    optional: bool


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
        self._env._last_stable_obs = np.zeros(39)  # None only before the very first step
        # Looked at before and after a step: some attributes are None until an episode is under way.
        self.reset(0)
        before = dict(vars(self._env))
        self.step(np.zeros(self.action_size))
        self._attributes = self._find_attributes(before)
        self.visible_sites = tuple(self.model.site(name).id for name, _ in self._goal_sites())

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
        for name, position in self._goal_sites():
            self.data.site(name).xpos = position

    def _goal_sites(self) -> list[tuple[str, NDArray[np.float64]]]:
        """The sites that Meta-World draws for this task and where they belong, the first at the target if none is."""
        sites, target = list(self._env._target_site_config), self._env._target_pos
        if sites and not any(np.array_equal(position, target) for _, position in sites):
            sites[0] = (sites[0][0], target)  # pick-out-of-hole names the object's start
        return sites

    def state(self) -> NDArray[np.float64]:
        return self._state

    def proprioception(self) -> NDArray[np.float64]:
        """(9,) end effector, right and left finger positions, metres, world frame (DP3's)."""
        return np.concatenate([self.data.body("hand").xpos, *(self.data.site(name).xpos for name in _FINGER_SITES)])

    def _find_attributes(self, before: Mapping[str, Any]) -> list[_Attribute]:
        """The environment's numbers and arrays; those that are views into the simulator's data follow it.

        before: all its attributes one step ago. Whole numbers and flags are taken where they have changed since.
        """
        numbers = np.ndarray | np.generic | float | int
        found = []
        for name, now in sorted(vars(self._env).items()):
            values = [value for value in (before.get(name, now), now) if isinstance(value, numbers)]
            if not values or name in _COUNTERS or self._follows_simulator(values[-1]):
                continue
            like = np.zeros_like(values[-1])
            changed = len(values) == 2 and not np.array_equal(values[0], values[1])
            if like.dtype.kind == "f" or (like.dtype.kind in "biu" and changed):
                found.append(_Attribute(name, like, optional=len(values) < 2))
        return found

    def _follows_simulator(self, value: Any) -> bool:
        live = [self.data.xpos, self.data.xquat, self.data.site_xpos, self.data.geom_xpos, self.data.qpos]
        return isinstance(value, np.ndarray) and any(np.shares_memory(value, array) for array in live)

    def get_variables(self) -> NDArray[np.float64]:
        values = [getattr(self._env, attribute.name) for attribute in self._attributes]
        own = [
            np.ravel(attribute.like if value is None else value)
            for attribute, value in zip(self._attributes, values, strict=True)
        ]
        there = [
            float(value is not None)
            for attribute, value in zip(self._attributes, values, strict=True)
            if attribute.optional
        ]
        bodies, sites = self.model.body_pos.ravel(), self.model.site_pos.ravel()
        return np.concatenate([bodies, sites, self._state, *own, there], dtype=np.float64)

    def set_variables(self, values: NDArray[np.float64]) -> None:
        position = 0

        def take(like: NDArray[Any]) -> NDArray[Any]:
            nonlocal position
            position += like.size
            return values[position - like.size : position].reshape(like.shape).astype(like.dtype)

        self.model.body_pos[:] = take(self.model.body_pos)
        self.model.site_pos[:] = take(self.model.site_pos)
        self._state = take(self._state)
        # New arrays, never writes in place: some attributes are aliases of the task's initial configuration.
        own = {attribute.name: take(attribute.like) for attribute in self._attributes}
        for attribute in self._attributes:
            if attribute.optional and not take(np.zeros(1))[0]:
                setattr(self._env, attribute.name, None)
            else:
                value = own[attribute.name]
                setattr(self._env, attribute.name, value if value.shape else value[()])

    @staticmethod
    def require(task: str) -> None:
        """Raise InputError for a task that Meta-World does not have."""
        _load(task)

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
