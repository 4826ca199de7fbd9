"""The Zarr layout of DP3 and diffusion_policy: data/<key> along one time axis, and meta/episode_ends.

DP3 calls `state` what the robot feels of itself; here it is agent_pos. A store of ours has this layout as well, so
that it can be read as one, too. Written in Zarr format 2, which their loaders open.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.data.schema import METADATA, Specification
from sodp3d.exchange.episodes import Arrays, Facts, Offer, read_outcomes
from sodp3d.exchange.formats import Format
from sodp3d.exchange.selection import JOINED
from sodp3d.exchange.zarr_files import NotPlain, ZarrArray, names_in, open_array, open_group, open_root, read_rows
from sodp3d.settings import ExportSettings, ImportSettings
from sodp3d.vision.camera import POSE

OURS = "sodp3d"  # attribute with what no key tells
_BECOMES = {  # their key to ours
    **{key: key for key in ("action", "agent_pos", "point_cloud", "depth", "reward", "success", "image", POSE)},
    "img": "image",
    "state": "agent_pos",  # where there is no other agent_pos
}
_THEIRS = {"agent_pos": "state", "state": "full_state", "image": "img"}  # our key to theirs
_CHUNK_STEPS = 100


class Dp3Source:
    """A Zarr group with data and meta/episode_ends."""

    def __init__(self, path: Path, settings: ImportSettings) -> None:
        """Raises InputError for a group that is not of this layout, or where an array that is needed is damaged."""
        self._path, self._root, self._group = path, open_root(path), open_group(path)
        self._ends = _check_ends(self._column("episode_ends"), str(path))
        self.episodes = [f"episode {index}" for index in range(len(self._ends))]
        told = self._group.attrs.get(OURS)
        self.facts = Facts() if told is None else Facts.from_dict(told, f"{path}: attribute {OURS}")
        self.lost: dict[str, str] = {}
        self._arrays = self._open_arrays(settings)
        self.offers = {key: self._offer(key) for key in self._arrays}
        self._columns = {name: self._column(name) for name in set(METADATA) & set(names_in(self._root, "meta"))}

    def _column(self, name: str) -> NDArray[Any]:
        """One number of each episode. Raises InputError for a column that is missing or damaged."""
        key, where = f"meta/{name}", f"{self._path}: meta/{name}"
        array = open_array(self._group, key, str(self._path))
        if len(array.shape) != 1:
            raise InputError(f"{where}: expected one number of each episode, got {array.shape}.")
        return read_rows(array, self._root, key, 0, array.shape[0], where)

    def _open_arrays(self, settings: ImportSettings) -> dict[str, ZarrArray]:
        """All that can be read; the others are lost, unless they are asked for, or would be taken and are damaged.

        Without joints or actions there is no recording, so that these raise InputError in any case.
        """
        several = (settings.action, settings.agent_pos, settings.state, settings.keys)
        asked = {settings.depth, settings.image, settings.point_cloud}.union(*(each or () for each in several))
        found = {}
        for key in names_in(self._root, "data"):
            if key in (settings.leave_out or ()) and key not in asked:
                self.lost[key] = "left out, as asked"
                continue
            try:
                found[key] = open_array(self._group, f"data/{key}", str(self._path))
            except InputError as error:
                becomes = self._becomes(key)
                if key in asked or becomes in JOINED or (becomes and not isinstance(error, NotPlain)):
                    raise
                self.lost[key] = str(error).removeprefix(f"{self._path}: ")
        return found

    def _becomes(self, key: str) -> str:
        return self.facts.keys.get(key) or _BECOMES.get(key, "")

    def _offer(self, key: str) -> Offer:
        array, becomes = self._arrays[key], self._becomes(key)
        if key == "state" and "agent_pos" in self._arrays:
            becomes = "state"
        shape = tuple(int(size) for size in array.shape[1:])
        return Offer(_kind(key, shape), shape, array.dtype.name, becomes, self.facts.names.get(becomes, ()))

    def read(self, index: int, keys: Sequence[str]) -> Arrays:
        """Arrays of one episode. Raises InputError for rows that are missing or damaged."""
        start, stop = (int(self._ends[index - 1]) if index else 0), int(self._ends[index])
        found = {}
        for key in keys:
            array, where = self._arrays[key], f"{self._path}: episode {index}: data/{key}"
            if array.shape[0] < stop:
                raise InputError(f"{where}: holds {array.shape[0]} rows, but this episode ends at row {stop}.")
            found[key] = read_rows(array, self._root, f"data/{key}", start, stop, where)
        return found

    def outcomes(self, index: int) -> dict[str, Any]:
        """What columns of meta say."""
        known = {name: values[index] for name, values in self._columns.items() if index < len(values)}
        return read_outcomes(known, f"{self._path}: episode {index}")

    def close(self) -> None:
        """Close a zip file."""
        self._group.store.close()
        if isinstance(self._root, ZipFile):
            self._root.close()


def _check_ends(ends: NDArray[Any], where: str) -> NDArray[np.int64]:
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or not len(ends) or (np.diff(ends, prepend=0) < 1).any():
        raise InputError(f"{where}: meta/episode_ends: expected whole numbers that increase, got {ends[:5]}.")
    return ends.astype(np.int64)


def _kind(key: str, shape: tuple[int, ...]) -> Any:
    """What rows are, by their shape and, where that is not enough, their name."""
    if len(shape) < 2:
        return "numbers"
    if shape == (4, 4):
        return "pose"
    if len(shape) == 3:
        return "depth" if 1 in (shape[0], shape[-1]) else "image"
    return "depth" if "depth" in key or shape[1] > 6 else "points"


class Dp3Sink:
    """Writes a Zarr group of format 2."""

    def __init__(self, path: Path, specification: Specification, facts: Facts, settings: ExportSettings) -> None:
        self._names = {key: _THEIRS.get(key, key) for key in specification}
        self.kept = {key: f"data/{name}" for key, name in self._names.items()}
        self.lost: dict[str, str] = {}
        if "point_cloud" not in specification:
            self.lost["point_cloud"] = (
                "the store has none, which DP3's loader needs: sodp3d convert makes them of depth"
            )
        self._group = zarr.open_group(path, mode="w-", zarr_format=2)
        self._data, self._meta = self._group.create_group("data"), self._group.create_group("meta")
        self._arrays = {}
        for key, field in specification.items():
            shape = (*field.shape[1:], field.shape[0]) if key == "image" else field.shape
            self._arrays[key] = _make(self._data, self._names[key], shape, field.dtype)
        self._ends, self._outcomes = [0], list[Mapping[str, Any]]()
        self._group.attrs[OURS] = {**facts.to_dict(), "keys": {name: key for key, name in self._names.items()}}

    def add(self, arrays: Arrays, outcomes: Mapping[str, Any]) -> None:
        """Append one episode's rows."""
        start, stop = self._ends[-1], self._ends[-1] + len(arrays["action"])
        for key, array in self._arrays.items():
            array.resize((stop, *array.shape[1:]))
            array[start:stop] = np.moveaxis(arrays[key], 1, -1) if key == "image" else arrays[key]
        self._ends.append(stop)
        self._outcomes.append(outcomes)

    def finish(self) -> None:
        """Write where episodes end, and what is known of each."""
        ends = _make(self._meta, "episode_ends", (), "int64", len(self._ends) - 1)
        ends[:] = np.array(self._ends[1:], np.int64)
        for name, dtype in METADATA.items():
            if all(name in each for each in self._outcomes):
                column = _make(self._meta, name, (), dtype, len(self._outcomes))
                column[:] = np.array([each[name] for each in self._outcomes], dtype)


def _make(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str, length: int = 0) -> Any:
    return group.create_array(
        name,
        shape=(length, *shape),
        chunks=(_CHUNK_STEPS, *shape),
        dtype=dtype,
        compressors=numcodecs.Blosc(cname="zstd", clevel=3, shuffle=1),
    )


FORMAT = Format(Dp3Source, Dp3Sink)
