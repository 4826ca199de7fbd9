"""What describes an environment: read once from `configs/env/*.yaml`, then passed around unchanged.

Shape letters: To observed steps, Tp planned steps (horizon), Ta executed steps, N points.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sodp3d.core import registry
from sodp3d.core.errors import InputError
from sodp3d.core.values import check_keys
from sodp3d.vision.camera import CameraConfig
from sodp3d.vision.pointcloud import CropConfig

SUCCESS_METRICS = ("final", "count", "any")
LASTING = ("count", "any")  # once achieved, nothing that follows takes it away
RECORDED = "recorded"  # the family of recordings, which nothing simulates
NEEDS_A_SIMULATOR = (
    "recordings cannot be reset or stepped, so planners learn from them (train, mode=pretrain data=data/<name>) and no "
    "more. Whatever acts needs an environment: an env family of your own with reset and step, a simulated robot for "
    "example (docs/extending.md). A robot itself is driven by load_planner or by sodp3d serve (docs/robot.md)."
)


@dataclass(frozen=True)
class EnvConfig:
    """One task (or, with `tasks`, a set of tasks of one family that share everything else)."""

    name: str  # data/<name>, and what messages call it
    family: str  # who makes it, an entry of registry.FAMILIES
    task: str
    tasks: tuple[str, ...]
    action_repeat: int  # raw simulator steps per control step
    episode_steps: int  # control steps
    camera: CameraConfig  # what is drawn by; None of recordings, whose store knows the real one
    crop: CropConfig  # None of recorded clouds, which were cropped elsewhere
    points: int  # N
    horizon: int  # Tp
    n_obs_steps: int  # To
    n_action_steps: int  # Ta
    success_metric: str  # the headline of final | count | any
    unet: str

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> "EnvConfig":
        """Validate and build from a composed `env` group. Raises InputError naming the key.

        `recommended` is left out: it holds what commands take unless told, and says nothing of the environment.
        """
        values = {key: value for key, value in mapping.items() if key != "recommended"}
        check_keys(cls, values, "env")
        if values["family"] == RECORDED and values["name"] is None:  # a command that reads no store
            raise InputError(f"env={RECORDED}: {NEEDS_A_SIMULATOR}")
        absent = {key for key in ("camera", "crop") if values["family"] == RECORDED and values[key] is None}
        if "camera" not in absent:
            values["camera"] = CameraConfig.from_config(values["camera"])
        if "crop" not in absent:
            values["crop"] = CropConfig.from_config(values["crop"])
        for key in ("name", "family", "task", "success_metric", "unet"):
            if not isinstance(values[key], str):
                raise InputError(f"env.{key}: expected a text, got {values[key]!r}.")
        tasks = values["tasks"] or []
        if not isinstance(tasks, list | tuple) or not all(isinstance(task, str) for task in tasks):
            raise InputError(f"env.tasks: expected a list of tasks, or null, got {tasks!r}.")
        if len(set(tasks)) < len(tasks):
            twice = next(task for task in tasks if list(tasks).count(task) > 1)
            raise InputError(f"env.tasks: {twice} is there twice; name each task once.")
        values["tasks"] = tuple(tasks)
        config = cls(**values)
        config._validate()
        return config

    @property
    def choice(self) -> str:
        """What to type to choose this task."""
        if self.family == RECORDED:
            return f"env={RECORDED}"
        of_family = self.name == f"{self.family}_{self.task}" and not registry.has_config("env", self.name)
        return f"env={self.family} env.task={self.task}" if of_family else f"env={self.name}"

    def _validate(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):  # it names folders and files
            raise InputError(f"env.name: expected letters, digits, '_', '-' and '.', got {self.name!r}.")
        if self.tasks and self.name in [f"{self.family}_{task}" for task in (self.task, *self.tasks)]:
            raise InputError(
                f"env.name: a list of tasks (env.tasks) needs a name of its own, but {self.name} is that of one task; "
                "add env.name=<name>."
            )
        for key in ("action_repeat", "episode_steps", "points", "horizon", "n_obs_steps", "n_action_steps"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"env.{key}: expected a whole number of at least 1, got {value!r}.")
        if self.success_metric not in SUCCESS_METRICS:
            raise InputError(f"env.success_metric: expected one of {SUCCESS_METRICS}, got {self.success_metric!r}.")
        if self.horizon % 4:
            raise InputError(f"env.horizon: must be divisible by 4 (two down-samplings), got {self.horizon}.")
        if self.n_obs_steps - 1 + self.n_action_steps > self.horizon:
            raise InputError(
                f"env.n_action_steps: {self.n_action_steps} executed steps after {self.n_obs_steps - 1} past ones "
                f"do not fit in a plan of env.horizon={self.horizon} steps."
            )


def expand(config: EnvConfig) -> list[EnvConfig]:
    """The single-task configs of a set, in its order; a single task's config alone otherwise."""
    if not config.tasks:
        return [config]
    return [replace(config, name=f"{config.family}_{task}", task=task, tasks=()) for task in config.tasks]


def task_configs(config: Mapping[str, Any]) -> list[EnvConfig]:
    """The tasks that a configuration's `env=` names: one, or those of a set."""
    return expand(EnvConfig.from_config(config["env"]))
