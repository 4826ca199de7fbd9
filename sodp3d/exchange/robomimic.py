"""robomimic's HDF5 files: data/demo_<i>/obs/<key>, actions, rewards, dones, with attributes.

Depth is metres there, (T, H, W, 1) float32, whose millimetres are exact. What no key tells, the camera above all,
stands in the attribute `sodp3d` of data.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sodp3d.core.errors import InputError
from sodp3d.data.schema import Specification
from sodp3d.exchange import hdf5
from sodp3d.exchange.episodes import OUTCOMES, Arrays, Facts, Kind, Offer, missing_in_first, read_outcomes
from sodp3d.exchange.formats import Format
from sodp3d.settings import ExportSettings, ImportSettings
from sodp3d.vision.camera import POSE

OURS = "sodp3d"
_JOINTS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")  # what robomimic's own settings learn from
_OUTSIDE = {"action": "actions", "reward": "rewards", "success": "success", "sim_state": "states"}  # not under obs
_BECOMES = {"actions": "action", "rewards": "reward", "success": "success"}
_IMAGES = {"image": "camera_image", "depth": "camera_depth"}
_TEXT_BYTES = 10**7  # of an attribute


class RobomimicSource:
    """An HDF5 file of demonstrations. The first one says what all have."""

    def __init__(self, path: Path, settings: ImportSettings) -> None:
        """Raises InputError for a file that is damaged, reaches into other files, or has no demonstrations."""
        self._path = path
        if not path.is_file():
            raise InputError(f"{path}: no file there; name a robomimic file, such as demo.hdf5.")
        self.lost: dict[str, str] = {}
        with hdf5.reading(path, str(path)):
            self._file = h5py.File(path, "r")
            self._data = hdf5.member(self._file, "data", h5py.Group, str(path))
            self.episodes = sorted((name for name in self._data if name.startswith("demo")), key=hdf5.number)
            if not self.episodes:
                raise InputError(f"{path}: data holds no demo_0, demo_1, ...; is it a robomimic file?")
            told = _json(self._data.attrs.get(OURS), f"{path}: attribute {OURS}")
            self.facts = Facts() if told is None else Facts.from_dict(told, f"{path}: attribute {OURS}")
            self.offers = self._offers(hdf5.member(self._data, self.episodes[0], h5py.Group, str(path)))
            self._note_others(self.episodes[1 : settings.episodes])

    def _note_others(self, episodes: Sequence[str]) -> None:
        """List as lost what only these demonstrations have. A damaged one is told when it is read."""
        for name in episodes:
            with contextlib.suppress(InputError), hdf5.reading(self._path, str(self._path)):
                demo = hdf5.member(self._data, name, h5py.Group, str(self._path))
                keys = {*demo, *(demo["obs"] if hdf5.is_group(demo, "obs") else ())} - {"obs"}
                self.lost |= missing_in_first(sorted(keys), {*self.offers, *self.lost})

    def _offers(self, demo: h5py.Group) -> dict[str, Offer]:
        found = self._numbers(demo)
        if "obs" in demo:
            obs = hdf5.member(demo, "obs", h5py.Group, str(self._path))
            found |= {f"obs/{key}": dataset for key, dataset in self._numbers(obs).items()}
        offers: dict[str, Offer] = {}
        taken: set[str] = set()
        for key, dataset in found.items():
            shape = tuple(int(size) for size in dataset.shape[1:])
            kind = _kind(key, shape)
            becomes = self.facts.keys.get(key) or _becomes(key, kind, bool(self.facts.keys))
            single = kind in ("image", "depth") and becomes in taken
            name = key.removeprefix("obs/")
            names = self.facts.names.get(becomes, ())
            offers[name] = Offer(kind, shape, dataset.dtype.name, "" if single else becomes, names)
            taken.add(becomes)
        return offers

    def _numbers(self, group: h5py.Group) -> dict[str, h5py.Dataset]:
        """The datasets of numbers that a group itself holds."""
        found = {}
        for key in group:
            if hdf5.is_group(group, key):
                if key != "obs":
                    self.lost[key] = "a group; only obs is read"
                continue
            if key == "dones":
                self.lost[key] = "an episode ends where its steps do"
                continue
            dataset = hdf5.local(group, key, str(self._path))
            if dataset.dtype.kind in "biuf" and dataset.ndim:
                found[key] = hdf5.dataset(group, key, str(self._path))
            else:
                self.lost[key] = "no numbers of each step"
        return found

    def read(self, index: int, keys: Sequence[str]) -> Arrays:
        """Arrays of one demonstration. Raises InputError for one that is missing or damaged."""
        where = f"{self._path}: {self.episodes[index]}"
        with hdf5.reading(self._path, where):
            demo = hdf5.member(self._data, self.episodes[index], h5py.Group, str(self._path))
            obs = hdf5.member(demo, "obs", h5py.Group, str(self._path)) if "obs" in demo else None
            groups = {key: demo if obs is None or key not in obs else obs for key in keys}
            return {key: np.asarray(hdf5.dataset(group, key, str(self._path))[()]) for key, group in groups.items()}

    def outcomes(self, index: int) -> dict[str, Any]:
        """What the demonstration's attributes say."""
        where = f"{self._path}: {self.episodes[index]}"
        with hdf5.reading(self._path, where):
            attributes = hdf5.member(self._data, self.episodes[index], h5py.Group, str(self._path)).attrs
            return read_outcomes({key: attributes[key] for key in OUTCOMES if key in attributes}, where)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _kind(key: str, shape: tuple[int, ...]) -> Kind:
    if len(shape) < 2:
        return "numbers"
    if shape == (4, 4):
        return "pose"
    if len(shape) == 3:
        return "depth" if shape[-1] == 1 or shape[0] == 1 else "image"
    return "depth" if "depth" in key else "points"


def _becomes(key: str, kind: Kind, ours: bool) -> str:
    if kind != "numbers":
        return {"image": "image", "depth": "depth", "points": "point_cloud", "pose": POSE}[kind]
    name = key.removeprefix("obs/")
    if key.startswith("obs/") and name in (_JOINTS if not ours else ()):
        return "agent_pos"
    return name if name == "agent_pos" else _BECOMES.get(key, "")


def _json(text: Any, where: str) -> Any:
    if text is None:
        return None
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    if not isinstance(text, str) or len(text) > _TEXT_BYTES:
        raise InputError(f"{where}: expected a JSON text, got {type(text).__name__}.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}).") from None


class RobomimicSink:
    """Writes one HDF5 file."""

    def __init__(self, path: Path, specification: Specification, facts: Facts, settings: ExportSettings) -> None:
        self._keys = {key: _path_of(key) for key in specification}
        self.kept = {key: f"demo_<i>/{name}" for key, name in self._keys.items()}
        self.lost: dict[str, str] = {}
        if "reward" not in specification:
            self.lost["reward"] = "the store has none; robomimic's dataset_keys must leave it out"
        self._file = h5py.File(path, "w")
        self._data = self._file.create_group("data")
        self._data.attrs[OURS] = json.dumps(
            {**facts.to_dict(), "keys": {name: key for key, name in self._keys.items()}}
        )
        self._data.attrs["env_args"] = json.dumps(
            {"env_name": facts.task or "recorded", "env_type": 0, "env_kwargs": {}}
        )
        self._count = self._total = 0

    def add(self, arrays: Arrays, outcomes: Mapping[str, Any]) -> None:
        """Write one demonstration."""
        demo = self._data.create_group(f"demo_{self._count}")
        steps = len(arrays["action"])
        for key, name in self._keys.items():
            values = arrays[key]
            if key == "image":
                values = np.moveaxis(values, 1, -1)
            elif key == "depth":
                values = (values.astype(np.float32) / 1000)[..., None]
            demo.create_dataset(name, data=values, compression="gzip", compression_opts=1)
        done = np.zeros(steps, np.int64)
        done[-1] = 1
        demo.create_dataset("dones", data=done)
        demo.attrs["num_samples"] = steps
        for name, value in outcomes.items():
            demo.attrs[name] = value
        self._count, self._total = self._count + 1, self._total + steps

    def finish(self) -> None:
        """Write the number of steps, and close."""
        self._data.attrs["total"] = self._total
        self._file.close()


def _path_of(key: str) -> str:
    return _OUTSIDE[key] if key in _OUTSIDE else f"obs/{_IMAGES.get(key, key)}"


FORMAT = Format(RobomimicSource, RobomimicSink, ".hdf5")
