"""One function makes any environment; nothing else knows environment ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core import registry
from sodp3d.core.errors import InputError
from sodp3d.envs.base import RobotEnv
from sodp3d.envs.config import EnvConfig, expand

__all__ = ["EnvConfig", "RobotEnv", "expand", "make_env", "require_tasks", "score_states"]


def make_env(config: EnvConfig, renderer: str = "auto", render_mode: str | None = None) -> RobotEnv:
    """The environment of a single-task config. For vector environments pass `functools.partial(make_env, config)`.

    renderer: auto | egl | osmesa | raycast. Raises InputError on an unknown family, task, camera or renderer, or a set.
    """
    if config.tasks:
        raise InputError(
            f"env={config.name} is a set of {len(config.tasks)} tasks: make_env each config of expand(config)."
        )
    return RobotEnv(config, task_family(config)(config), renderer, render_mode)


def task_family(config: EnvConfig) -> Any:
    """The class of tasks that `env.family` names, as `envs.base.Task`. Raises InputError on an unknown family."""
    return registry.choose(registry.FAMILIES, config.family, "env.family")


def require_tasks(configs: Sequence[EnvConfig]) -> None:
    """Raise InputError for a task that its family does not have, where the family tells its tasks; makes none."""
    for config in configs:
        require = getattr(task_family(config), "require", None)
        if require is not None:
            require(config.task)


def score_states(config: EnvConfig, states: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Reward and goal flag of raw frames from state vectors (..., Ds) alone. Raises InputError where undefined."""
    score = getattr(task_family(config), "score_states", None)
    if score is None:
        raise InputError(f"env={config.name}: rewards of env.family={config.family} do not follow from states alone.")
    reward, goal = score(config.task, states)
    return reward, goal
