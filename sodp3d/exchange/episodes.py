"""What every format is read into and written from: arrays of one episode, and what is known beside them.

Shape letters: T steps, N points, H W image.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.vision.camera import Camera

Arrays = dict[str, NDArray[Any]]
Kind = Literal["numbers", "depth", "image", "points", "pose"]

OUTCOMES: dict[str, type] = {  # what may be known of an episode as a whole; what is not known is absent
    "seed": int,
    "agent_step": int,
    "episode_return": float,
    "success_final": bool,
    "success_count": bool,
    "success_any": bool,
}


@dataclass(frozen=True)
class Offer:
    """An array that a recording has at every step.

    kind: what its rows are. shape, dtype: of one step, as they are stored there. becomes: the store's key that it is
    taken for unless told; "" for one that is only taken when asked for. names: of its numbers, () where nobody knows.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    becomes: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What holds for all episodes of a recording; None or {} where it is not known.

    rate: steps a second. depth_scale: metres of one unit of depth; None: whole numbers are millimetres, others metres.
    keys: the format's key to the store's, in recordings that were exported from a store.
    """

    camera: Camera | None = None
    rate: float | None = None
    task: str | None = None
    depth_scale: float | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the attributes of a file; what is not known is left out."""
        values = {
            "camera": None if self.camera is None else self.camera.to_dict(),
            "rate": self.rate,
            "task": self.task,
            "names": {key: list(names) for key, names in self.names.items()},
            "keys": dict(self.keys),
        }
        return {key: value for key, value in values.items() if value not in (None, {})}

    @classmethod
    def from_dict(cls, values: Any, where: str) -> "Facts":
        """Inverse of `to_dict`, which takes nothing on trust. Raises InputError naming `where` and what is wrong."""
        if not isinstance(values, dict):
            raise InputError(f"{where}: expected an object, got {values!r}; export the recording again.")
        names, keys = values.get("names") or {}, values.get("keys") or {}
        sound = isinstance(names, dict) and all(_are_texts(each) for each in names.values())
        if not sound or not isinstance(keys, dict) or not _are_texts(list(keys.values())):
            raise InputError(f"{where}: expected texts in 'names' and 'keys', got {names!r} and {keys!r}.")
        task = values.get("task")
        if task is not None and not isinstance(task, str):
            raise InputError(f"{where}: task: expected a text, got {task!r}.")
        return cls(
            camera=_camera(values.get("camera"), where),
            rate=positive(values.get("rate"), f"{where}: rate"),
            task=task,
            depth_scale=positive(values.get("depth_scale"), f"{where}: depth_scale"),
            names={key: tuple(each) for key, each in names.items()},
            keys=keys,
        )


def _camera(values: Any, where: str) -> Camera | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise InputError(f"{where}: camera: expected an object with intrinsics, height and width, got {values!r}.")
    try:
        return Camera.from_dict(values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def one_task(tasks: Iterable[Any]) -> tuple[str | None, dict[str, str]]:
    """What episodes are of, None where they differ or none of them says it; and what is lost by that, and why."""
    different = {str(task) for task in tasks if task is not None}
    if len(different) > 1:
        return None, {"task": f"episodes are of {len(different)} tasks, and a store notes one of all"}
    return next(iter(different), None), {}


def missing_in_first(keys: Iterable[str], first: Container[str]) -> dict[str, str]:
    """Those of the keys of other episodes that the first one does not have, and why they are lost."""
    return {key: "the first episode has none, and a store holds what all have" for key in keys if key not in first}


def positive(value: Any, where: str) -> float | None:
    """A number above 0, or None as it is. Raises InputError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
        raise InputError(f"{where}: expected a number above 0, got {value!r}.")
    return float(value)


def read_outcomes(values: Any, where: str) -> dict[str, Any]:
    """Those of OUTCOMES that are known. Raises InputError for one that is not of its kind."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected an object, got {values!r}.")
    found: dict[str, Any] = {}
    for key, kind in OUTCOMES.items():
        value = values.get(key)
        value = value.item() if isinstance(value, np.generic) else value
        if value is None:
            continue
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
        number = whole or (isinstance(value, float) and np.isfinite(value))
        if not {int: whole, float: number, bool: isinstance(value, bool) or value in (0, 1)}[kind]:
            raise InputError(f"{where}: {key}: expected {_WORDS[kind]}, got {value!r}.")
        found[key] = kind(value)
    return found


_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false"}


def check_arrays(arrays: Mapping[str, NDArray[Any]], where: str) -> int:
    """Number of steps of arrays that fit each other. Raises InputError naming `where`, and the first key that has
    another length, is not of numbers, or holds one that is not finite."""
    lengths = {key: len(values) for key, values in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(f"{where}: expected as many steps of each key, got {lengths}; mend or leave out this episode.")
    steps = next(iter(lengths.values()))
    if steps == 0:
        raise InputError(f"{where}: has no steps; leave out this episode.")
    for key, values in arrays.items():
        if values.dtype.kind not in "biuf":
            raise InputError(f"{where}: {key}: expected numbers, got {values.dtype}.")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            step = int(np.argwhere(~np.isfinite(values))[0][0])
            raise InputError(f"{where}: {key}: NaN or infinity at step {step}; mend or leave out this episode.")
    return steps
