"""Adroit hammer, door and pen (gymnasium-robotics `AdroitHand*-v1` scenes) with VRL3's rewards.

The installed release's dense Hammer and Door rewards pay for moving *away* from the tool or handle (wrong sign), so its
rewards are not used. VRL3's are computed here from the state vector alone, so demonstrations can be scored too.

The goal flag differs between the field's forks of these environments. Used here: hammer |nail - goal| < 0.010 m (all
forks); door angle >= 1.35 rad (Farama, RRL; VRL3's and DP3's fork asks for > 1.4); pen distance < 0.075 m and cosine
> 0.95 (Farama, RRL; VRL3's and DP3's fork flags on the cosine alone). A dropped pen ends the episode (VRL3, DP3; Farama
never terminates).
"""

import contextlib
import io
import sys
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.envs.base import with_camera
from sodp3d.envs.config import EnvConfig
from sodp3d.vision.simulator import mujoco

_CLASSES = {"hammer": "AdroitHandHammerEnv", "door": "AdroitHandDoorEnv", "pen": "AdroitHandPenEnv"}
TASKS = tuple(_CLASSES)

# Where things stand in the state vectors of gymnasium-robotics 1.4.2 (`_get_obs` of each class).
_HAND = {"hammer": slice(2, 26), "door": slice(3, 27), "pen": slice(0, 24)}  # the 24 hand joint angles
_HAMMER_NAIL = 26  # depth of the nail's slide joint, m
_HAMMER_NAIL_GOAL = 0.091  # joint value with nail and goal site coincident: 0.101 - 0.010 m along the joint (the XML)
_DOOR_ANGLE = 28
_PEN_POSITION, _PEN_AXIS, _PEN_GOAL_AXIS, _PEN_OFFSET = slice(24, 27), slice(33, 36), slice(36, 39), slice(39, 42)
_PEN_DROPPED_BELOW = 0.075  # m

# Success "count" asks for more raw frames than this with the goal achieved (VRL3, DAPG).
_COUNT_THRESHOLDS = {"hammer": 25, "door": 25, "pen": 20}

# The one thing that a reset moves: the body, and whether by position or by orientation.
_MOVED = {"hammer": ("nail_board", "body_pos"), "door": ("frame", "body_pos"), "pen": ("target", "body_quat")}


def reward_and_goal(task: str, states: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """VRL3's reward of one raw frame, rescaled as VRL3 does (1/100, 1/20, 1/50), and the goal flag.

    states: (..., Ds) state vectors after the frame. Returns reward (...) and goal achieved (...).
    """
    states = np.asarray(states, dtype=np.float64)
    if task == "hammer":
        distance = np.abs(states[..., _HAMMER_NAIL] - _HAMMER_NAIL_GOAL)
        reward = -10 * distance + 25 * (distance < 0.020) + 75 * (distance < 0.010)
        return reward / 100, distance < 0.010
    if task == "door":
        angle = states[..., _DOOR_ANGLE]
        reward = -0.1 * (angle - 1.57) ** 2 + 2 * (angle > 0.2) + 8 * (angle > 1.0) + 10 * (angle > 1.35)
        return reward / 20, angle >= 1.35
    if task == "pen":
        distance = np.linalg.norm(states[..., _PEN_OFFSET], axis=-1)
        cosine = np.sum(states[..., _PEN_AXIS] * states[..., _PEN_GOAL_AXIS], axis=-1)
        goal = (distance < 0.075) & (cosine > 0.95)
        return goal * 50 / 50.0, goal
    raise InputError(f"env.task: Adroit has {', '.join(TASKS)}; got {task!r}.")


def pen_dropped(states: NDArray[Any]) -> NDArray[np.bool_]:
    """(...,) whether the pen fell out of the hand, from (..., Ds) state vectors."""
    return np.asarray(states)[..., _PEN_POSITION.stop - 1] < _PEN_DROPPED_BELOW


def hand_joints(task: str, states: NDArray[Any]) -> NDArray[Any]:
    """(..., 24) hand joint angles in radians, from (..., Ds) state vectors (DP3's `agent_pos`)."""
    return np.asarray(states)[..., _HAND[task]]


def _load(task: str) -> type:
    """The environment class, without the notice that the package prints to stderr on import (and only that)."""
    captured = io.StringIO()
    with contextlib.redirect_stderr(captured):
        module = import_module(f"gymnasium_robotics.envs.adroit_hand.adroit_{task}")
    for line in captured.getvalue().splitlines():
        if "environment's reward functions were updated in" not in line:
            sys.stderr.write(line + "\n")
    loaded: type = getattr(module, _CLASSES[task])
    return loaded


class Adroit:
    """One Adroit task, as `sodp3d.envs.base.Task`."""

    visible_sites: tuple[int, ...] = ()  # door, nail and the pen's target are bodies
    score_states = staticmethod(reward_and_goal)

    def __init__(self, config: EnvConfig) -> None:
        if config.task not in TASKS:
            raise InputError(f"env.task: Adroit has {', '.join(TASKS)}; got {config.task!r}.")
        self.name = config.task
        self.count_threshold = _COUNT_THRESHOLDS[self.name]
        self._env = with_camera(_load(self.name), config.camera)()
        self.model: mujoco.MjModel = self._env.model
        self.data: mujoco.MjData = self._env.data
        self.action_size = self.model.nu
        self.frame_skip: int = self._env.frame_skip
        body, field = _MOVED[self.name]
        self._moved = getattr(self.model.body(body), field.removeprefix("body_"))  # a view into the model

    def reset(self, seed: int) -> None:
        self._env.reset(seed=seed)
        self.forward()

    def step(self, action: NDArray[np.float64]) -> tuple[float, bool, bool]:
        self._env.do_simulation(self._env.act_mean + action * self._env.act_rng, self._env.frame_skip)
        self.forward()
        state = self.state()
        reward, goal = reward_and_goal(self.name, state)
        return float(reward), bool(goal), self.name == "pen" and bool(pen_dropped(state))

    def forward(self) -> None:
        # mj_step leaves body positions one simulator step behind the joints.
        mujoco.mj_forward(self.model, self.data)

    def state(self) -> NDArray[np.float64]:
        return self._env._get_obs()

    def proprioception(self) -> NDArray[np.float64]:
        return hand_joints(self.name, self.state())

    def get_variables(self) -> NDArray[np.float64]:
        return self._moved.copy()

    def set_variables(self, values: NDArray[np.float64]) -> None:
        self._moved[:] = values
