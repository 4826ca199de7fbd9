"""What describes an environment: read once from `configs/env/*.yaml`, then passed around unchanged.

Shape letters: To observed steps, Tp planned steps (horizon), Ta executed steps, N points.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from sodp3d.errors import InputError

SUCCESS_METRICS = ("final", "count", "any")
T = TypeVar("T", int, float)


def _check_keys(kind: type, mapping: Mapping[str, Any], where: str) -> None:
    valid = [field.name for field in fields(kind)]
    unknown = sorted(set(mapping) - set(valid))
    missing = sorted(set(valid) - set(mapping))
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; valid keys are {', '.join(valid)}.")
    if missing:
        raise InputError(f"{where}: key {missing[0]!r} is missing; it needs {', '.join(valid)}.")


def _numbers(values: Any, count: int, where: str) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or len(values) != count:
        raise InputError(f"{where}: expected {count} numbers, got {values!r}.")
    return tuple(_number(value, float, where) for value in values)


def _number(value: Any, kind: type[T], where: str) -> T:
    """`value` as an int or a float; "inf" and "-inf", as JSON keeps them, are floats."""
    try:
        number = kind(value)
        if number == float(value) and not isinstance(value, bool):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    expected = "a whole number" if kind is int else "a number (without a limit: -inf, inf)"
    raise InputError(f"{where}: expected {expected}, got {value!r}.")


@dataclass(frozen=True)
class CameraConfig:
    """A camera by pose, added at run time, or (both poses null) the model's own camera of that name.

    position: metres, world frame. quaternion: w x y z, world frame, MuJoCo's camera axes (looks along -z, y up).
    A null position or quaternion keeps the model's own. fovy: vertical field of view in degrees. height, width: pixels.
    """

    name: str
    position: tuple[float, ...] | None
    quaternion: tuple[float, ...] | None
    fovy: float
    height: int
    width: int

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> "CameraConfig":
        """Validate and build. Raises InputError on unknown or missing keys and wrong sizes."""
        _check_keys(cls, mapping, "env.camera")
        position, quaternion = mapping["position"], mapping["quaternion"]
        return cls(
            name=str(mapping["name"]),
            position=None if position is None else _numbers(position, 3, "env.camera.position"),
            quaternion=None if quaternion is None else _numbers(quaternion, 4, "env.camera.quaternion"),
            fovy=_number(mapping["fovy"], float, "env.camera.fovy"),
            height=_number(mapping["height"], int, "env.camera.height"),
            width=_number(mapping["width"], int, "env.camera.width"),
        )


@dataclass(frozen=True)
class CropConfig:
    """A box in the world frame, metres; points strictly inside are kept."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> "CropConfig":
        """Validate and build. Raises InputError on unknown or missing keys, wrong sizes, or an empty box."""
        _check_keys(cls, mapping, "env.crop")
        low, high = _numbers(mapping["low"], 3, "env.crop.low"), _numbers(mapping["high"], 3, "env.crop.high")
        if any(bottom >= top for bottom, top in zip(low, high, strict=True)):
            raise InputError(f"env.crop: low {low} must be below high {high} on every axis.")
        return cls(low, high)


@dataclass(frozen=True)
class EnvConfig:
    """One task (or, with `tasks`, a set of tasks of one family that share everything else)."""

    name: str  # data/<name>, and what messages call it
    family: str  # the module that makes it: adroit | metaworld
    task: str
    tasks: tuple[str, ...]
    action_repeat: int  # raw simulator steps per control step
    episode_steps: int  # control steps
    camera: CameraConfig
    crop: CropConfig
    points: int  # N
    horizon: int  # Tp
    n_obs_steps: int  # To
    n_action_steps: int  # Ta
    success_metric: str  # the headline of final | count | any
    unet: str

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> "EnvConfig":
        """Validate and build from a composed `env` group. Raises InputError naming the key."""
        _check_keys(cls, mapping, "env")
        values = dict(mapping)
        values["camera"] = CameraConfig.from_config(values["camera"])
        values["crop"] = CropConfig.from_config(values["crop"])
        values["tasks"] = tuple(values["tasks"] or ())
        config = cls(**values)
        config._validate()
        return config

    @property
    def choice(self) -> str:
        """What to type to choose this task."""
        of_family = self.name == f"{self.family}_{self.task}" and self.family != "adroit"
        return f"env={self.family} env.task={self.task}" if of_family else f"env={self.name}"

    def _validate(self) -> None:
        for key in ("action_repeat", "episode_steps", "points", "horizon", "n_obs_steps", "n_action_steps"):
            if not isinstance(getattr(self, key), int) or getattr(self, key) < 1:
                raise InputError(f"env.{key}: expected a whole number of at least 1, got {getattr(self, key)!r}.")
        if self.success_metric not in SUCCESS_METRICS:
            raise InputError(f"env.success_metric: expected one of {SUCCESS_METRICS}, got {self.success_metric!r}.")
        if self.horizon % 4:
            raise InputError(f"env.horizon: must be divisible by 4 (two down-samplings), got {self.horizon}.")
        if self.n_obs_steps - 1 + self.n_action_steps > self.horizon:
            raise InputError(
                f"env.n_action_steps: {self.n_action_steps} executed steps after {self.n_obs_steps - 1} past ones "
                f"do not fit in a plan of env.horizon={self.horizon} steps."
            )
        if self.n_obs_steps > self.n_action_steps:
            raise InputError(
                f"env.n_obs_steps: {self.n_obs_steps} must not exceed env.n_action_steps={self.n_action_steps}."
            )


def expand(config: EnvConfig) -> list[EnvConfig]:
    """The single-task configs of a set, in its order; a single task's config alone otherwise."""
    if not config.tasks:
        return [config]
    return [replace(config, name=f"{config.family}_{task}", task=task, tasks=()) for task in config.tasks]
