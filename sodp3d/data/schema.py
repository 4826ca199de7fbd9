"""What a store holds: keys, shapes and types of its steps and episodes."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.files import PARTIAL
from sodp3d.vision.camera import POSE

SCHEMA_VERSION = 1
NO_RENDERER = "none"  # of a store that was collected without depth
QUALITIES = ("suboptimal", "nearoptimal", "all")  # the part of an agent's experience to learn from

METADATA: dict[str, str] = {
    "seed": "int64",
    "agent_step": "int64",
    "episode_return": "float64",
    "success_final": "bool",
    "success_count": "bool",
    "success_any": "bool",
}


class Field(NamedTuple):
    """One per-step key: shape of a single step, and type name."""

    shape: tuple[int, ...]
    dtype: str


Specification = dict[str, Field]


def step_specification(
    action_size: int,
    state_size: int,
    proprioception_size: int,
    simulator_size: int,
    height: int,
    width: int,
    camera_moves: bool = False,
    depth: bool = True,
) -> Specification:
    """The per-step keys every collector writes, sized for one environment.

    `success` is the number of raw simulator frames of the control step with the goal achieved; `depth` millimetres. A
    camera that moves has its pose beside each depth image. depth: False leaves both to be drawn later (`redraw.py`).
    """
    return {
        **({POSE: Field((4, 4), "float64")} if camera_moves and depth else {}),
        "action": Field((action_size,), "float32"),
        "state": Field((state_size,), "float32"),
        "agent_pos": Field((proprioception_size,), "float32"),
        "reward": Field((), "float32"),
        "success": Field((), "uint8"),
        **({"depth": Field((height, width), "uint16")} if depth else {}),
        "sim_state": Field((simulator_size,), "float64"),
    }


def read_specification(attributes: Mapping[str, Any], where: str) -> Specification:
    """The specification in a store's attributes. Raises InputError for another schema version or damaged attributes."""
    version = attributes.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{where}: expected schema_version {SCHEMA_VERSION}, got {version!r}; this store was not written by this "
            f"release of sodp3d. Open it with the release that wrote it, or collect again."
        )
    try:
        fields = {key: (tuple(field["shape"]), field["dtype"]) for key, field in attributes["specification"].items()}
        return check_specification(fields)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{where}: attribute 'specification' is damaged ({error}); restore .zattrs from a copy."
        ) from error


def is_key(name: Any) -> bool:
    """Whether an array may have this name: that of a folder in `data`, and of nothing outside it."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) is not None and not name.endswith(PARTIAL)


def check_specification(specification: Mapping[str, tuple[Sequence[int], str]]) -> Specification:
    """Plain (shape, dtype) pairs as a Specification. Raises InputError for object types, impossible sizes or names."""
    checked: Specification = {}
    for key, (shape, dtype) in specification.items():
        if not is_key(key):
            raise InputError(f"specification: expected names of letters, digits, '_', '-' and '.', got {key!r}.")
        try:
            kind = np.dtype(dtype if isinstance(dtype, str) else object)
        except TypeError:
            kind = np.dtype(object)
        if kind.kind not in "biuf" or any(not _is_size(size) for size in shape):
            raise InputError(f"specification.{key}: expected a numeric type and positive sizes, got {dtype}, {shape}.")
        checked[key] = Field(tuple(int(size) for size in shape), kind.name)
    if "action" not in checked:
        raise InputError(f"specification: key 'action' is missing; got {sorted(checked)}.")
    return checked


def _is_size(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 < int(value) < 2**31


def check_same_specification(stored: Specification, given: Specification, where: str) -> None:
    """Raises InputError naming the first key that differs, with both shapes and types."""
    for key in sorted(stored.keys() | given.keys()):
        old, new = (
            "absent" if field is None else f"{field.dtype} {field.shape}" for field in (stored.get(key), given.get(key))
        )
        if old != new:
            raise InputError(
                f"{where}: data/{key} is {old} in this store, but {new} came. Use the same settings, or write to "
                f"another folder."
            )


def check_episode(episode: Mapping[str, NDArray[Any]], specification: Specification) -> int:
    """Length of a sound episode. Raises InputError naming the first key that is missing, unknown, of wrong shape or
    type, or not finite."""
    if set(episode) != set(specification):
        missing, unknown = sorted(set(specification) - set(episode)), sorted(set(episode) - set(specification))
        raise InputError(
            f"episode: expected the keys {sorted(specification)}, missing {missing}, unknown {unknown}; "
            f"nothing was written."
        )
    length = len(episode["action"])
    if length == 0:
        raise InputError("episode: has no steps; nothing was written.")
    for key, field in specification.items():
        value = episode[key]
        if not isinstance(value, np.ndarray) or value.dtype != np.dtype(field.dtype):
            found = getattr(value, "dtype", type(value).__name__)
            raise InputError(f"episode.{key}: expected type {field.dtype}, got {found}; nothing was written.")
        if value.shape != (length, *field.shape):
            raise InputError(
                f"episode.{key}: expected shape {(length, *field.shape)}, got {value.shape}; nothing was written."
            )
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            step = int(np.argwhere(~np.isfinite(value))[0][0])
            raise InputError(f"episode.{key}: NaN or infinity at step {step}; nothing was written.")
    return length


def check_metadata(metadata: Mapping[str, Any], names: Collection[str] = tuple(METADATA)) -> None:
    """Raises InputError unless `metadata` has exactly the keys `names`, of METADATA, each a finite number."""
    if set(metadata) != set(names):
        missing, unknown = sorted(set(names) - set(metadata)), sorted(set(metadata) - set(names))
        raise InputError(f"episode metadata: missing {missing}, unknown {unknown}; it needs {sorted(names)}.")
    for key, value in metadata.items():
        if not np.isscalar(value) or isinstance(value, str) or not np.isfinite(value):
            raise InputError(f"episode metadata.{key}: expected a finite number, got {value!r}.")
