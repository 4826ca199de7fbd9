"""One function makes any environment; nothing else knows environment ids."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.envs.base import RobotEnv
from sodp3d.envs.config import EnvConfig, expand

__all__ = ["EnvConfig", "RobotEnv", "expand", "make_env", "score_states"]

FAMILIES = ("adroit", "metaworld")


def make_env(config: EnvConfig, renderer: str = "auto", render_mode: str | None = None) -> RobotEnv:
    """The environment of a single-task config. For vector environments pass `functools.partial(make_env, config)`.

    renderer: auto | egl | osmesa | raycast. Raises InputError on an unknown family, task, camera or renderer, or a set.
    """
    if config.tasks:
        raise InputError(
            f"env={config.name} is a set of {len(config.tasks)} tasks: make_env each config of expand(config)."
        )
    if config.family == "adroit":
        from sodp3d.envs.adroit import Adroit

        return RobotEnv(config, Adroit(config), renderer, render_mode)
    if config.family == "metaworld":
        from sodp3d.envs.metaworld import MetaWorld

        return RobotEnv(config, MetaWorld(config), renderer, render_mode)
    raise InputError(f"env.family: expected one of {', '.join(FAMILIES)}, got {config.family!r}.")


def score_states(config: EnvConfig, states: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Reward and goal flag of raw frames from state vectors (..., Ds) alone. Raises InputError where undefined."""
    if config.family != "adroit":
        raise InputError(f"env={config.name}: rewards follow from the state vector alone only for Adroit tasks.")
    from sodp3d.envs.adroit import reward_and_goal

    return reward_and_goal(config.task, states)
