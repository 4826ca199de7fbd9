"""Stores of what a robot recorded, or somebody else's data: written here, by importers and by your own program.

    first = RecordedEpisode(action=..., agent_pos=..., point_cloud=...)
    with create_recorded_store("data/my_arm/episodes.zarr", "my_arm", first, rate=10) as store:
        for episode in episodes:
            store.append(episode.steps, episode.metadata)

What a robot does not have stays absent. Nothing simulates these episodes (`env.family=recorded`): planners learn from
them, and are measured on some that are held out.

Shape letters: T steps, Da action, Dp proprioception, Ds state, N points, H W image.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core import registry
from sodp3d.core.errors import InputError
from sodp3d.core.mappings import differences, plain
from sodp3d.data.absence import EPISODE_VALUES
from sodp3d.data.attributes import told_by_both
from sodp3d.data.schema import METADATA, NO_RENDERER, Field
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import RECORDED
from sodp3d.vision.camera import POSE, Camera, check_poses

_TYPES = {"depth": "uint16", POSE: "float64", "image": "uint8", "success": "uint8"}  # others are float32
_SHAPES = {  # of one step; a text is any number
    "action": ("Da",),
    "agent_pos": ("Dp",),
    "state": ("Ds",),
    "point_cloud": ("N", 3),
    "depth": ("H", "W"),
    POSE: (4, 4),
    "image": (3, "H", "W"),
    "reward": (),
    "success": (),
}
_DRAWN = ("depth", "image")
_POINTS = 1024  # of clouds made of depth, unless told


@dataclass(frozen=True, eq=False)
class RecordedEpisode:
    """One episode as it was recorded; None for what was not. Observations of a step are from before its action.

    action: (T, Da), in any unit. agent_pos: (T, Dp) what the robot feels of itself. beside: further numbers of each
    step by name, (T,) or (T, n), such as force or gripper; they are put beside agent_pos. state: (T, Ds), which
    obs=state sees. point_cloud: (T, N, 3) metres, in one frame. depth: (T, H, W) uint16 millimetres, 0 where invalid.
    camera_pose: (T, 4, 4) of a camera that moves. image: (T, 3, H, W) uint8. reward: (T,). success: (T,) whether the
    goal is reached. values: of the whole episode, by names of `schema.METADATA`; return and success follow from reward
    and success.
    """

    action: NDArray[Any]
    agent_pos: NDArray[Any] | None = None
    beside: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    state: NDArray[Any] | None = None
    point_cloud: NDArray[Any] | None = None
    depth: NDArray[Any] | None = None
    camera_pose: NDArray[Any] | None = None
    image: NDArray[Any] | None = None
    reward: NDArray[Any] | None = None
    success: NDArray[Any] | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises InputError naming what is of another shape or type than it must be."""
        unknown = sorted(set(self.values) - set(METADATA))
        if unknown:
            raise InputError(f"episode.values: unknown name {unknown[0]!r}; known are {', '.join(METADATA)}.")
        _ = self.steps

    @cached_property
    def steps(self) -> dict[str, NDArray[Any]]:
        """Key to (T, ...) as `EpisodeStore.append` takes them."""
        given = {item.name: getattr(self, item.name) for item in fields(self) if item.name in _SHAPES}
        arrays = {key: _checked(key, value) for key, value in given.items() if value is not None}
        parts = [arrays["agent_pos"]] if "agent_pos" in arrays else []
        parts += [_column(name, value, len(arrays["action"])) for name, value in self.beside.items()]
        if not parts:
            raise InputError("episode.agent_pos: nothing is known of the robot itself; give agent_pos, or beside.")
        return {**arrays, "agent_pos": np.concatenate(parts, axis=1)}

    @property
    def metadata(self) -> dict[str, Any]:
        """Values of the whole episode, with those that follow from reward and success."""
        found: dict[str, Any] = {}
        if self.reward is not None:
            found["episode_return"] = float(np.sum(self.reward, dtype=np.float64))
        if self.success is not None:
            found |= {"success_final": bool(self.success[-1]), "success_any": bool(np.any(self.success))}
        return {**found, **self.values}

    def names(self, agent_pos: Sequence[str] | None = None) -> list[str]:
        """Of each number of `steps["agent_pos"]`; agent_pos: those of the first ones, where they have any."""
        count = 0 if self.agent_pos is None else self.agent_pos.shape[1]
        found = _names("agent_pos", agent_pos, count)
        for name, value in self.beside.items():
            size = 1 if np.ndim(value) == 1 else value.shape[1]
            found += [name] if size == 1 else [f"{name} {index}" for index in range(size)]
        return found


def create_recorded_store(
    path: str | Path,
    name: str,
    like: RecordedEpisode,
    *,
    rate: float | None = None,
    camera: Camera | None = None,
    action_names: Sequence[str] | None = None,
    agent_pos_names: Sequence[str] | None = None,
    source: Mapping[str, Any] | None = None,
) -> EpisodeStore:
    """A store for episodes that have what `like` has, open for appending; `like` itself is not appended.

    Append each by `store.append(episode.steps, episode.metadata)`: either all of it is there afterwards or nothing.
    A store that is there already, of the same, is gone on with: `len(store)` episodes are done.

    Args:
        name: what the data is of, as outputs/ and messages call it. rate: control steps a second, hertz.
        camera: of the depth; its pose is None where every step has its own.
        action_names, agent_pos_names: of each number of an action, and of what the robot feels (without `beside`).
        source: where the data came from, as plain values.

    Raises InputError where the store there holds something else, or something does not fit together.
    """
    attributes = {
        "env": name,
        "env_config": {"name": name, "family": RECORDED},
        "camera": None if camera is None else camera.to_dict(),
        "renderer": "camera" if any(key in like.steps for key in _DRAWN) else NO_RENDERER,
        EPISODE_VALUES: [value for value in METADATA if value in like.metadata],
        "rate": rate,
        "action_names": _names("action", action_names, like.action.shape[1]),
        "agent_pos_names": like.names(agent_pos_names),
        "source": None if source is None else dict(source),
    }
    attributes = plain({key: value for key, value in attributes.items() if value is not None})
    _check_camera(like, camera)
    specification = {key: Field(value.shape[1:], value.dtype.name) for key, value in like.steps.items()}
    path = Path(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return EpisodeStore.create(path, attributes, specification)
    store = EpisodeStore.open(path, "a", attributes, specification)
    if store.attributes.get("source") != attributes.get("source"):
        store.close()
        raise InputError(
            f"{path}: holds recordings of source={store.attributes.get('source')!r}, but those of "
            f"source={attributes.get('source')!r} came; write to another folder."
        )
    return store


def names_of(store: EpisodeStore, key: str) -> list[str]:
    """A name for each number of `action` or `agent_pos`: those of the attribute <key>_names, or "<key> 0", ..."""
    given, size = store.attributes.get(f"{key}_names"), store.field(key).shape[0]
    if isinstance(given, list) and len(given) == len(set(map(str, given))) == size:
        return [str(name) for name in given]
    return [f"{key} {index}" for index in range(size)]


def as_recorded(config: dict[str, Any]) -> dict[str, Any]:
    """A command's configuration, with what the store of `data=` tells of `env=recorded`; of another env as it is.

    Raises InputError where no store is named, one is missing, is of a simulated environment, or they differ in name, in
    their rate or in what their numbers are.
    """
    if config["env"].get("family") != RECORDED:
        return config
    given = [config["data"]] if isinstance(config["data"], str) else config["data"] or []
    if not given:
        raise InputError("data: env=recorded needs the store of the recordings; give data=data/<name> (docs/robot.md).")
    stores = [_open_recorded(Path(folder).expanduser()) for folder in given]
    names = sorted({str(store.attributes["env"]) for store in stores})
    if len(names) > 1:
        raise InputError(f"data: holds recordings of {', '.join(names)}; learn from those of one name at a time.")
    _require_same_numbers(stores)
    return {**config, "env": _told(dict(config["env"]), stores)}


def _open_recorded(folder: Path) -> EpisodeStore:
    path = folder if folder.suffix == ".zarr" else folder / "episodes.zarr"
    if not path.exists():
        raise InputError(f"data: no store at {path}; sodp3d.create_recorded_store writes one (docs/robot.md).")
    store = EpisodeStore.open(path)
    family = store.attributes["env_config"].get("family")
    if family != RECORDED and family in registry.FAMILIES:
        raise InputError(f"data: {path} was collected in a simulated environment; choose that ({store.choice}).")
    return store


def _require_same_numbers(stores: Sequence[EpisodeStore]) -> None:
    """Raises InputError where two stores tell another rate, or other names of their actions' or joints' numbers."""
    told = stores[0].attributes  # then by all of them so far: the first may not tell everything
    for store in stores[1:]:
        for key in told_by_both(told, store.attributes):
            for name, old, new in differences(told[key], store.attributes[key], key):
                raise InputError(
                    f"data: {store.path} tells {name} = {new!r}, but a store before it {old!r}; learn from those that "
                    "agree."
                )
        told = {**store.attributes, **told}


def _told(env: dict[str, Any], stores: Sequence[EpisodeStore]) -> dict[str, Any]:
    """`env`, with what the stores say in place of what is null; of clouds the first that has some.

    Whether the others' were made alike is seen where they are learned from (`views.require_same_view`). Raises
    InputError for another number of points than clouds have that stay as they are.
    """
    begun = [one for one in stores if one.readable("point_cloud")]  # of a failed first try nothing counts
    made = begun[0].conversions.get("point_cloud", {}).get("parameters", {}) if begun else {}
    there = begun[0].field("point_cloud").shape[0] if begun else None
    as_they_are = not any(env["crop"].values()) and any("point_cloud" in one.specification for one in stores)
    crop = {
        side: made.get(side, [limit] * 3) if env["crop"][side] is None else env["crop"][side]
        for side, limit in (("low", -math.inf), ("high", math.inf))
    }
    if as_they_are and there and env["points"] not in (None, there):
        raise InputError(
            f"env.points: {begun[0].path} has clouds of {there} points as they were recorded, but {env['points']!r} "
            "came; leave it out. To make others of its depth, give convert a box as well (env.crop.low, env.crop.high)."
        )
    longest = max((int(np.diff(one.episode_ends, prepend=0).max()) for one in stores if len(one)), default=1)
    return {
        **env,
        "name": env["name"] or stores[0].attributes["env"],
        "episode_steps": env["episode_steps"] or longest,
        "crop": None if as_they_are else crop,
        "points": env["points"] or there or _POINTS,
    }


def _check_camera(like: RecordedEpisode, camera: Camera | None) -> None:
    if like.depth is None:
        return
    if camera is None:
        raise InputError(
            "camera: depth needs its camera, of which clouds are made; give Camera(intrinsics, pose, ...)."
        )
    if camera.pose is None and like.camera_pose is None:
        raise InputError("camera.pose: a camera that moves needs camera_pose of each step; give one of both.")
    if like.depth.shape[1:] != (camera.height, camera.width):
        raise InputError(f"depth: {like.depth.shape[1:]} pixels, but the camera has {camera.height, camera.width}.")


def _checked(key: str, value: Any) -> NDArray[Any]:
    """(T, ...) in the type in which it is stored. Raises InputError."""
    array, wanted = np.asarray(value), _SHAPES[key]
    fits = array.ndim == len(wanted) + 1 and len(array) > 0
    if not fits or any(
        isinstance(size, int) and size != have for size, have in zip(wanted, array.shape[1:], strict=True)
    ):
        raise InputError(f"episode.{key}: expected shape ({', '.join(map(str, ('T', *wanted)))}), got {array.shape}.")
    dtype = np.dtype(_TYPES.get(key, "float32"))
    if array.dtype.kind not in "biuf" or (key in _DRAWN and array.dtype != dtype):
        raise InputError(f"episode.{key}: expected {dtype.name}, got {array.dtype}.")
    if key == POSE:
        check_poses(array, f"episode.{key}")
    return array.astype(dtype, copy=False)


def _column(name: str, value: Any, length: int) -> NDArray[np.float32]:
    array = np.asarray(value)
    if array.ndim not in (1, 2) or len(array) != length or array.dtype.kind not in "biuf":
        raise InputError(f"episode.beside[{name!r}]: expected numbers ({length},) or ({length}, n), got {array.shape}.")
    return array.reshape(length, -1).astype(np.float32, copy=False)


def _names(key: str, given: Sequence[str] | None, count: int) -> list[str]:
    if given is None:
        return [f"{key} {index}" for index in range(count)]
    if len(given) != count or len(set(given)) < count:
        raise InputError(f"{key}_names: expected {count} different names, got {list(given)!r}.")
    return [str(name) for name in given]
