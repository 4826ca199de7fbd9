"""Simulations that diverge: noticed in the frame in which they do, whoever steps them.

MuJoCo resets a diverged simulation by itself, in the middle of an episode, and only counts that in `data.warning`. It
would also write MUJOCO_LOG.TXT into the user's folder; its warnings go to this module's logger instead.
"""

import logging
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sodp3d.vision.simulator import mujoco

if TYPE_CHECKING:
    from sodp3d.envs.base import Task

log = logging.getLogger(__name__)
# Indices into data.warning.
_UNSTABLE = [int(getattr(mujoco.mjtWarning, f"mjWARN_BAD{what}")) for what in ("QPOS", "QVEL", "QACC")]


class DivergedError(Exception):
    """The simulation left all bounds in this frame; what it shows now means nothing."""


def simulate(task: "Task", action: NDArray[np.float64]) -> tuple[float, bool, bool]:
    """`task.step(action)`. Raises DivergedError where the simulation diverges."""
    task.data.warning.number[_UNSTABLE] = 0
    try:
        result = task.step(action)
    except Exception as error:  # rewards of a diverged state fail in their own ways
        if diverged(task.data):
            raise DivergedError from error
        raise
    if diverged(task.data):
        raise DivergedError
    return result


def diverged(data: mujoco.MjData) -> bool:
    """Whether MuJoCo has reset the simulation since `simulate` began, or would in its next step."""
    if data.warning.number[_UNSTABLE].any():
        return True
    # One by one, because a comparison with NaN is false, and max() would pass over it.
    return not all(np.abs(values).max(initial=0) <= mujoco.mjMAXVAL for values in (data.qpos, data.qvel, data.qacc))


def _tell(message: str) -> None:
    # Environments say themselves that one diverged, and in which episode.
    log.log(logging.DEBUG if "unstable" in message else logging.WARNING, "MuJoCo: %s", message)


if mujoco.get_mju_user_warning() is None:
    mujoco.set_mju_user_warning(_tell)
