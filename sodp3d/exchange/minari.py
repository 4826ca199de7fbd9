"""Minari datasets in HDF5: <path>/data/main_data.hdf5 and metadata.json.

Observations are T + 1 there: the last one, after the last action, is left behind; written, it repeats the one before.
Where a store has no rewards, which Minari must have, they are written as NaN, and NaN is read as none.
Minari's own loader may import code that a dataset names; nothing of that is done here.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json, write_json
from sodp3d.data.schema import Specification
from sodp3d.exchange import hdf5
from sodp3d.exchange.episodes import OUTCOMES, Arrays, Facts, Kind, Offer, missing_in_first, read_outcomes
from sodp3d.exchange.formats import Format
from sodp3d.exchange.images import read_color
from sodp3d.settings import ExportSettings, ImportSettings
from sodp3d.vision.camera import POSE

FILE, METADATA, OURS = "main_data.hdf5", "metadata.json", "sodp3d"
_BECOMES = {  # path in an episode to the store's key
    "actions": "action",
    "rewards": "reward",
    "infos/success": "success",
    "observations": "agent_pos",
    "observations/agent_pos": "agent_pos",
    "observations/state": "state",
    "observations/observation": "agent_pos",
}
_FLAGS = ("terminations", "truncations")
_OUTSIDE = {"action": "actions", "reward": "rewards", "success": "infos/success"}  # not an observation


class MinariSource:
    """A Minari dataset in HDF5. The first episode says what all have."""

    def __init__(self, path: Path, settings: ImportSettings) -> None:
        """Raises InputError for a dataset that is damaged, of another kind, or reaches into other files."""
        self._folder = next((each for each in (path / "data", path) if (each / METADATA).is_file()), path)
        metadata = read_json(self._folder / METADATA)
        if not isinstance(metadata, dict) or metadata.get("data_format", "hdf5") != "hdf5":
            raise InputError(f"{self._folder / METADATA}: expected a Minari dataset of data_format hdf5.")
        self._path, self.lost = self._folder / FILE, dict[str, str]()
        told = metadata.get(OURS)
        self.facts = Facts() if told is None else Facts.from_dict(told, f"{self._folder / METADATA}: {OURS}")
        with hdf5.reading(self._path, str(self._path)):
            self._file = h5py.File(self._path, "r")
            self.episodes = sorted((name for name in self._file if name.startswith("episode_")), key=hdf5.number)
            if not self.episodes:
                raise InputError(f"{self._path}: holds no episode_0, episode_1, ...")
            first = hdf5.member(self._file, self.episodes[0], h5py.Group, str(self._path))
            self.offers = {key: self._offer(key, dataset) for key, dataset in self._datasets(first)}
            self._note_others(self.episodes[1 : settings.episodes])
            self._drop_unknown_rewards(first)
            if not self.facts.keys:
                self.lost["last observation"] = "of each episode: no action follows it"

    def _note_others(self, episodes: Sequence[str]) -> None:
        """List as lost what only these episodes have. A damaged one is told when it is read."""
        for name in episodes:
            with contextlib.suppress(InputError), hdf5.reading(self._path, str(self._path)):
                paths = _paths(hdf5.member(self._file, name, h5py.Group, str(self._path)))
                self.lost |= missing_in_first(paths, {*self.offers, *self.lost})

    def _datasets(self, first: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
        """(path, dataset) of every array of numbers, or of JPEG files, in an episode; others are lost."""
        for path, group in _paths(first).items():
            each = hdf5.local(group, path.rpartition("/")[2], str(self._path))
            if each.ndim and (each.dtype.kind in "biuf" or h5py.check_vlen_dtype(each.dtype) == np.uint8):
                yield path, each
            else:
                self.lost[path] = "no numbers of each step"

    def _offer(self, key: str, dataset: h5py.Dataset) -> Offer:
        if _is_jpeg(key, dataset):
            return Offer("image", (), "uint8", "image")
        shape = tuple(int(size) for size in dataset.shape[1:])
        kind = _kind(key, shape)
        own = {"image": "image", "depth": "depth", "points": "point_cloud", "pose": POSE}.get(kind, "")
        becomes = self.facts.keys.get(key) or _BECOMES.get(key, own if key.startswith("observations") else "")
        return Offer(kind, shape, dataset.dtype.name, becomes, self.facts.names.get(becomes, ()))

    def _drop_unknown_rewards(self, first: h5py.Group) -> None:
        if "rewards" in self.offers and np.isnan(hdf5.dataset(first, "rewards", str(self._path))[()]).all():
            del self.offers["rewards"]

    def read(self, index: int, keys: Sequence[str]) -> Arrays:
        """Arrays of one episode, all as long as its actions. Raises InputError for one that is missing or damaged."""
        where = f"{self._path}: {self.episodes[index]}"
        with hdf5.reading(self._path, where):
            group = hdf5.member(self._file, self.episodes[index], h5py.Group, str(self._path))
            steps = len(hdf5.dataset(group, "rewards", str(self._path)))
            return {key: self._array(group, key, steps, where) for key in keys}

    def _array(self, group: h5py.Group, key: str, steps: int, where: str) -> NDArray[Any]:
        *folders, name = key.split("/")
        for folder in folders:
            group = hdf5.member(group, folder, h5py.Group, str(self._path))
        dataset = hdf5.local(group, name, str(self._path))
        if _is_jpeg(key, dataset):
            files = [np.asarray(each, np.uint8).tobytes() for each in dataset[: steps + 1]]
            values = np.stack([read_color(each, f"{where}: {key}") for each in files])
        else:
            values = np.asarray(hdf5.dataset(group, name, str(self._path))[()])
        if len(values) == steps + 1:  # of infos the first row is the reset's, of observations the last is left behind
            return values[1:] if key.startswith("infos/") else values[:-1]
        return values

    def outcomes(self, index: int) -> dict[str, Any]:
        """What the episode's attributes say."""
        with hdf5.reading(self._path, str(self._path)):
            attributes = hdf5.member(self._file, self.episodes[index], h5py.Group, str(self._path)).attrs
            known = {key: attributes[key] for key in OUTCOMES if key in attributes}
            known = {key: value for key, value in known.items() if not isinstance(value, h5py.Empty)}
            return read_outcomes(known, f"{self._path}: {self.episodes[index]}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _paths(group: h5py.Group, prefix: str = "") -> dict[str, h5py.Group]:
    """Path of everything below a group that is none itself, and the group that holds it; flags are left out."""
    found: dict[str, h5py.Group] = {}
    for key in group:
        if hdf5.is_group(group, key):
            found |= _paths(group[key], f"{prefix}{key}/")
        elif prefix + key not in _FLAGS:
            found[prefix + key] = group
    return found


def _is_jpeg(key: str, dataset: h5py.Dataset) -> bool:
    """Whether rows are files of images: of any length, or texts of bytes all equally long by chance."""
    if h5py.check_vlen_dtype(dataset.dtype) is not None:
        return True
    head = bytes(dataset[0][:3].tolist()) if dataset.ndim == 2 and dataset.dtype == np.uint8 and len(dataset) else b""
    return head == b"\xff\xd8\xff"


def _kind(key: str, shape: tuple[int, ...]) -> Kind:
    if len(shape) < 2:
        return "numbers"
    if len(shape) == 3:
        return "depth" if 1 in (shape[0], shape[-1]) else "image"
    if shape == (4, 4):
        return "pose"
    return "depth" if "depth" in key else "points"


class MinariSink:
    """Writes a dataset's folder."""

    def __init__(self, path: Path, specification: Specification, facts: Facts, settings: ExportSettings) -> None:
        self._keys = {key: _OUTSIDE.get(key, f"observations/{key}") for key in specification}
        self.kept = {key: f"episode_<i>/{name}" for key, name in self._keys.items()}
        self.lost: dict[str, str] = {}
        if "reward" not in specification:
            self.lost["reward"] = "the store has none; Minari must have them, so they are written as NaN"
        self._folder, self._specification = path / "data", specification
        self._folder.mkdir(parents=True)
        self._file = h5py.File(self._folder / FILE, "w", track_order=True)
        self._facts = {**facts.to_dict(), "keys": {name: key for key, name in self._keys.items()}}
        self._name = facts.task or "recorded"
        self._count = self._total = 0

    def add(self, arrays: Arrays, outcomes: Mapping[str, Any]) -> None:
        """Write one episode."""
        group = self._file.create_group(f"episode_{self._count}")
        steps = len(arrays["action"])
        for key, name in self._keys.items():
            values = np.moveaxis(arrays[key], 1, -1) if key == "image" else arrays[key]
            if name.startswith("observations/"):
                values = np.concatenate([values, values[-1:]])
            elif name.startswith("infos/"):
                values = np.concatenate([np.zeros_like(values[:1]), values])
            group.create_dataset(name, data=values, compression="gzip", compression_opts=1)
        if "reward" not in arrays:
            group.create_dataset("rewards", data=np.full(steps, np.nan, np.float32))
        ends = np.zeros(steps, bool)
        group.create_dataset("terminations", data=ends)
        ends[-1] = True
        group.create_dataset("truncations", data=ends)
        group.require_group("infos")
        group.attrs.update({"id": self._count, "total_steps": steps, **outcomes})
        self._count, self._total = self._count + 1, self._total + steps

    def finish(self) -> None:
        """Write what the dataset says of itself."""
        self._file.close()
        seen = [key for key, name in self._keys.items() if name.startswith("observations/")]
        spaces = {
            key: _box(_shape(key, self._specification[key].shape), self._specification[key].dtype) for key in seen
        }
        action = self._specification["action"]
        write_json(
            self._folder / METADATA,
            {
                "dataset_id": f"{OURS}/recorded-v0",
                "description": self._name,
                "total_episodes": self._count,
                "total_steps": self._total,
                "data_format": "hdf5",
                "jpeg_encoding": False,
                "observation_space": json.dumps({"type": "Dict", "subspaces": spaces}),
                "action_space": json.dumps(_box(action.shape, action.dtype)),
                "dataset_size": round((self._folder / FILE).stat().st_size / 1e6, 1),
                "minari_version": "0.5.4",
                OURS: self._facts,
            },
        )


def _shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[1:], shape[0]) if key == "image" else shape


def _box(shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    """A gymnasium Box as Minari serializes it, as wide as its type."""
    whole = np.dtype(dtype).kind in "iu"
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if whole else (float("-inf"), float("inf"))
    size = {"low": np.full(shape, low).tolist(), "high": np.full(shape, high).tolist()}
    return {"type": "Box", "dtype": dtype, "shape": list(shape), **size}


FORMAT = Format(MinariSource, MinariSink)
