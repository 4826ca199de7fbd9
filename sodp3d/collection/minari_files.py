"""A Minari dataset's files, read without trusting them: with h5py and json alone, and nothing outside the dataset.

Minari's own loader may import and make the environment that a dataset names, and HDF5 itself follows links into other
files. Both would let a downloaded file run code or read what it should not.

Shape letters: R recorded steps, Ds state size, Da action size.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from sodp3d.collection.agents.memory import Trajectory
from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json
from sodp3d.exchange import hdf5

FILE = "main_data.hdf5"
METADATA = "metadata.json"
_INITIAL = "options/initial_state_dict/"  # attributes in which Minari keeps what an episode was reset to
_KINDS = {"data_format": str, "dataset_id": str, "sodp3d_env": str, "action_repeat": int, "successes": int}
_WORDS = {str: "a text", int: "a whole number"}
ROUNDING = 1e-6  # of actions at the end of their space
_FARTHEST = 10.0  # from 0, of actions whose space ends at -1 and 1: beyond it they are of another space


class RawEpisode(NamedTuple):
    """An episode as it was recorded, with the seed and the attributes that say how it began."""

    trajectory: Trajectory
    seed: int | None
    initial: dict[str, NDArray[Any]]


def read_metadata(folder: Path) -> dict[str, Any]:
    """What a dataset says of itself, without what is null. Raises InputError for what is not of its kind."""
    path = folder / METADATA
    metadata = read_json(path)
    if not isinstance(metadata, dict):
        raise InputError(f"demos: {path}: expected a JSON object, got {type(metadata).__name__}; get the set again.")
    given = {key: value for key, value in metadata.items() if value is not None}
    for key, kind in _KINDS.items():
        value = given.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise InputError(f"demos: {path}: {key}: expected {_WORDS[kind]}, got {value!r}; get the set again.")
    return given


def read_episodes(path: Path, limit: int | None, strict: bool) -> Iterator[RawEpisode]:
    """The first `limit` recorded episodes as they are, in the order of their numbers.

    strict: actions must lie in [-1, 1]. Those of other recorders may lie a little beyond, where simulators cut them.
    Raises InputError for a file that is damaged, that reaches into other files, or whose arrays are not what they
    should be.
    """
    where = f"demos: {path}"
    with hdf5.reading(path, where), h5py.File(path, "r") as file:
        names = {name: name.removeprefix("episode_") for name in file if name.startswith("episode_")}
        odd = [name for name, number in names.items() if not (number.isascii() and number.isdecimal())]
        if odd:
            raise InputError(f"{where}: expected names such as episode_0, got {odd[0]!r}.")
        for name in sorted(names, key=lambda name: int(names[name]))[:limit]:
            yield _episode(path, hdf5.member(file, name, h5py.Group, where), strict)


def _episode(path: Path, group: h5py.Group, strict: bool) -> RawEpisode:
    states, actions = (_array(path, group, key, 2) for key in ("observations", "actions"))
    rewards, terminations = (_array(path, group, key, 1) for key in ("rewards", "terminations"))
    steps = len(actions)
    if not steps == len(rewards) == len(terminations) or len(states) not in (steps, steps + 1) or not steps:
        raise InputError(
            f"demos: {path}{group.name}: {len(states)} observations, {steps} actions, {len(rewards)} rewards and "
            f"{len(terminations)} terminations do not fit."
        )
    farthest = float(np.abs(actions).max(initial=0))
    limit = 1 + ROUNDING if strict else _FARTHEST
    if farthest > limit:
        raise InputError(
            f"demos: {path}{group.name}: actions reach {farthest:g}, but the action space ends at -1 and 1. Scale them "
            f"to it, or name another set with demos=."
        )
    initial = {}
    for key in group.attrs:
        if _INITIAL in key:
            value = np.asarray(group.attrs[key])
            hdf5.check_numbers(f"{path}{group.name}: attribute {key}", value.dtype, value)
            initial[key.split("/")[-1]] = value
    return RawEpisode(Trajectory(states, actions, rewards, bool(terminations[-1])), _seed(path, group), initial)


def _seed(path: Path, group: h5py.Group) -> int | None:
    value = group.attrs.get("seed")
    if value is None or isinstance(value, h5py.Empty):
        return None
    if not isinstance(value, int | np.integer) or isinstance(value, bool | np.bool_) or not 0 <= value < 2**63:
        where = f"{path}{group.name}: attribute seed"
        raise InputError(f"demos: {where}: expected a whole number of at least 0, got {value!r}.")
    return int(value)


def _array(path: Path, group: h5py.Group, key: str, dimensions: int) -> NDArray[Any]:
    """A real, finite array of so many dimensions."""
    found, where = hdf5.local(group, key, f"demos: {path}"), f"demos: {path}{group.name}/{key}"
    if found.dtype.kind not in "biuf" or found.ndim != dimensions:
        expected = "(steps, size)" if dimensions == 2 else "(steps,)"
        raise InputError(f"{where}: expected numbers {expected}, got {found.dtype} {found.shape}.")
    values = np.asarray(hdf5.dataset(group, key, f"demos: {path}")[()])
    hdf5.check_numbers(where, found.dtype, values)
    return values
