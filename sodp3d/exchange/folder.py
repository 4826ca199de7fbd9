"""A plain folder for each episode, as anyone writes one with a camera's own tools:

    <path>/<episode>/depth/000000.png     16 bit; millimetres, or units of `depth_scale` metres
    <path>/<episode>/color/000000.png     8 bit
    <path>/<episode>/point_cloud.npy      (T, N, 3) metres
    <path>/<episode>/camera.json          intrinsics (3, 3) px, pose (4, 4) camera to world, depth_scale; or in <path>
    <path>/<episode>/steps.csv            a row a step; columns beginning with agent_pos, with action, reward, success
    <path>/<episode>/episode.json         what else is known: seed, success_final, rate, task

All but steps.csv may be absent. <path> may be one episode itself. Columns `<key>.<name>` are one key of several
numbers. Without a pose the camera moves, and columns camera_pose.0 to camera_pose.15 say where it is.
"""

import contextlib
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json, write_json
from sodp3d.core.values import is_number
from sodp3d.data.schema import Field, Specification
from sodp3d.exchange.camera_file import NAME as CAMERA
from sodp3d.exchange.camera_file import read_camera
from sodp3d.exchange.episodes import OUTCOMES, Arrays, Facts, Offer, missing_in_first, one_task, read_outcomes
from sodp3d.exchange.formats import Format
from sodp3d.exchange.images import png, read_color, read_depth, size_of
from sodp3d.settings import ExportSettings, ImportSettings
from sodp3d.vision.camera import POSE, Camera

STEPS, EPISODE, CLOUD = "steps.csv", "episode.json", "point_cloud.npy"
IMAGES = {"depth": "depth", "image": "color"}  # the store's key to the folder of its images
_BY_BEGINNING = ("agent_pos", "action")  # all columns that begin so are one key, whatever follows
_MOST_BYTES = 2**31  # of one episode's clouds or table
_OWN = ("agent_pos", "action", "state", "reward", "success", POSE)  # taken unless told


class FolderSource:
    """A folder of episodes. The first that can be read says what all have."""

    def __init__(self, path: Path, settings: ImportSettings) -> None:
        """Raises InputError where there is no episode, or none that can be read."""
        self._folders = episode_folders(path)
        self.episodes = [folder.name for folder in self._folders]
        first = self._first(settings.skip_bad)
        table = _Table(first / STEPS)
        self.offers, self._columns = {**_offers(table), **_image_offers(first)}, table.keys()
        self.lost = dict.fromkeys(table.words, "a column of words")
        self._own_camera = settings.camera is None
        taken = self._folders[: settings.episodes]
        for folder in taken:
            self.lost |= missing_in_first(_keys_in(folder), {*self.offers, *self.lost})
        task, lost = one_task(map(_task_of, taken))
        self.lost |= lost
        self.facts = replace(_facts(first, self._own_camera), task=task)

    def _first(self, skip_bad: bool) -> Path:
        for folder in self._folders:
            with contextlib.suppress(InputError) if skip_bad else contextlib.nullcontext():
                _offers(_Table(folder / STEPS))
                _image_offers(folder)
                return folder
        raise InputError(f"{self._folders[0].parent}: none of the {len(self._folders)} episodes can be read.")

    def read(self, index: int, keys: Sequence[str]) -> Arrays:
        """Arrays of one episode. Raises InputError naming the file that is missing, cut or does not fit."""
        folder = self._folders[index]
        table = _Table(folder / STEPS)
        self._check_facts(folder)
        found: Arrays = {}
        for key in keys:
            if key in IMAGES:
                found[key] = _read_images(folder / IMAGES[key], key, table.length)
            elif key == "point_cloud":
                found[key] = _read_array(folder / CLOUD)
            else:
                values = table.values(key, self._columns[key])
                found[key] = values.reshape(len(values), *self.offers[key].shape)
        return found

    def _check_facts(self, folder: Path) -> None:
        """Raise InputError where an episode tells something else than the first one of what a store says of all."""
        here, first = _facts(folder, self._own_camera), self.facts
        if not _same(here.camera, first.camera) or here.depth_scale != first.depth_scale:
            raise InputError(
                f"{folder / CAMERA}: another camera, or another place of it, than that of the first episode; a store "
                f"keeps one. Import such episodes apart, or leave 'pose' out and give columns {POSE}.0 to {POSE}.15."
            )
        if here.rate not in (None, first.rate):
            raise InputError(
                f"{folder / EPISODE}: rate: {here.rate:g} steps a second, but the first episode tells "
                f"{first.rate or 'none'}; a store keeps one. Import such episodes apart, or tell one rate in all."
            )

    def outcomes(self, index: int) -> dict[str, Any]:
        """What episode.json says."""
        path = self._folders[index] / EPISODE
        return read_outcomes(read_json(path), str(path)) if path.exists() else {}

    def close(self) -> None:
        """Nothing is open."""


def _same(one: Camera | None, other: Camera | None) -> bool:
    return (one and one.to_dict()) == (other and other.to_dict())


def episode_folders(path: Path) -> list[Path]:
    """Each episode's folder, in the order of their names and numbers. Raises InputError where there is none."""
    if not path.is_dir():
        raise InputError(f"{path}: no folder there; name the folder that holds a folder for each episode.")
    if (path / STEPS).exists():
        return [path]
    parts = (STEPS, CAMERA, *IMAGES.values())
    found = [each for each in path.iterdir() if each.is_dir() and any((each / part).exists() for part in parts)]
    if not found:
        raise InputError(f"{path}: holds no episode; each is a folder with {STEPS}, and depth/*.png or {CLOUD}.")
    return sorted(found, key=lambda each: [int(part) if part.isdigit() else part for part in _pieces(each.name)])


def _pieces(name: str) -> list[str]:
    """Words and numbers in turn, so that episode_2 comes before episode_10."""
    return re.split(r"([0-9]+)", name)


class _Table:
    """A steps.csv, read whole: columns of one key together, each value still a text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise InputError(
                f"{path}: is missing; it holds a row for each step, with columns agent_pos.0, action.0, ..."
            )
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: has {path.stat().st_size} bytes, more than any episode has.")
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.reader(file))
        except (OSError, csv.Error, UnicodeError) as error:
            raise InputError(f"{path}: cannot be read as a table of commas ({error}).") from None
        rows = [row for row in rows if row]
        if len(rows) < 2:
            raise InputError(f"{path}: expected a row of names and one for each step, got {len(rows)} rows.")
        self.names, self.rows = [name.strip() for name in rows[0]], rows[1:]
        if len(set(self.names)) < len(self.names):
            raise InputError(f"{path}: expected a name once, got {self.names}.")
        for number, row in enumerate(self.rows):
            if len(row) != len(self.names):
                raise InputError(f"{path}: step {number} has {len(row)} values of {len(self.names)}; was it cut?")
        self.words = [name for place, name in enumerate(self.names) if self._is_of_words(place, name)]

    def _is_of_words(self, place: int, name: str) -> bool:
        """Whether a column holds no number; never one that is taken unless told, whose reading tells what is wrong."""
        return _key_of(name) not in _OWN and not any(is_number(row[place]) for row in self.rows)

    @property
    def length(self) -> int:
        """Number of steps."""
        return len(self.rows)

    def keys(self) -> dict[str, list[str]]:
        """Key to the names of its columns, in the order of the file; columns of words are left out."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            if name not in self.words:
                found.setdefault(_key_of(name), []).append(name)
        return found

    def values(self, key: str, wanted: list[str]) -> NDArray[Any]:
        """(T, n) of the columns `wanted`. Raises InputError where those of `key` are others; naming column and step."""
        columns = self.keys().get(key)
        if columns != wanted:
            told = f"{len(wanted)} columns of {key}, {wanted} as in the first episode"
            raise InputError(f"{self.path}: expected {told}, got {columns or 'none'}.")
        places = [self.names.index(name) for name in columns]
        try:
            found = np.array([[row[place] for place in places] for row in self.rows]).astype(np.float64)
        except ValueError:
            step, name = next(
                (step, name)
                for step, row in enumerate(self.rows)
                for place, name in zip(places, columns, strict=True)
                if not is_number(row[place])
            )
            text = self.rows[step][self.names.index(name)]
            raise InputError(f"{self.path}: step {step}: {name}: expected a number, got {text!r}.") from None
        return found


def _key_of(column: str) -> str:
    begun = next((key for key in _BY_BEGINNING if column.startswith(key)), None)
    return begun or column.partition(".")[0]


def _offers(table: _Table) -> dict[str, Offer]:
    found = {}
    for key, columns in table.keys().items():
        names = tuple(name.partition(".")[2] for name in columns)
        known = () if any(not name or name.isdigit() for name in names) else names
        shape = () if columns == [key] and key not in _BY_BEGINNING else (len(columns),)
        kind, becomes = "pose" if key == POSE else "numbers", key if key in _OWN else ""
        found[key] = Offer(kind, shape, "float64", becomes, known)  # type: ignore[arg-type]
    return found


def _image_offers(folder: Path) -> dict[str, Offer]:
    found = {}
    for key, name in IMAGES.items():
        images = _images(folder / name)
        if images:
            size = size_of(images[0], str(images[0]))
            shape = size if key == "depth" else (3, *size)
            found[key] = Offer("depth" if key == "depth" else "image", shape, "uint16", key)
    if (folder / CLOUD).exists():
        cloud = _read_array(folder / CLOUD)
        found["point_cloud"] = Offer("points", cloud.shape[1:], cloud.dtype.name, "point_cloud")
    return found


def _keys_in(folder: Path) -> list[str]:
    """What an episode has, by names alone. Nothing for a damaged table, which is told when it is read."""
    found = [key for key, name in IMAGES.items() if any((folder / name).glob("*.png"))]
    found += ["point_cloud"] if (folder / CLOUD).exists() else []
    with contextlib.suppress(OSError, csv.Error, UnicodeError), (folder / STEPS).open(encoding="utf-8-sig") as file:
        found += [_key_of(name.strip()) for name in next(csv.reader(file), [])]
    return found


def _task_of(folder: Path) -> str | None:
    """What episode.json says, where it can be read; else it is told when the episode is read."""
    with contextlib.suppress(InputError):
        known = read_json(folder / EPISODE)
        return known.get("task") if isinstance(known, dict) else None
    return None


def _images(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"), key=lambda path: (len(path.name), path.name)) if folder.is_dir() else []


def _read_images(folder: Path, key: str, length: int) -> NDArray[Any]:
    files = _images(folder)
    if len(files) != length:
        raise InputError(f"{folder}: expected as many images as rows in {STEPS}, {length}, got {len(files)}.")
    read = read_depth if key == "depth" else read_color
    first = read(files[0], str(files[0]))
    values = np.empty((length, *first.shape), first.dtype)
    for place, file in enumerate(files):
        image = read(file, str(file))
        if image.shape != first.shape or image.dtype != first.dtype:
            raise InputError(
                f"{file}: is {image.dtype} {image.shape}, but the first image {first.dtype} {first.shape}."
            )
        values[place] = image
    return values


def _read_array(path: Path) -> NDArray[Any]:
    """An array of numbers from a .npy file, which could hold objects, too. Raises InputError."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise InputError(f"{path}: is no array of numbers, or cut ({error}).") from None
    if not isinstance(found, np.ndarray) or found.ndim != 3 or found.dtype.kind != "f" or found.nbytes > _MOST_BYTES:
        raise InputError(f"{path}: expected clouds (T, N, 3) in metres, of at most {_MOST_BYTES} bytes.")
    return np.asarray(found)


def _facts(folder: Path, own_camera: bool) -> Facts:
    """What camera.json, which may lie beside the episodes, and episode.json say."""
    known = read_json(folder / EPISODE) if (folder / EPISODE).exists() else {}
    facts = Facts.from_dict(known, str(folder / EPISODE))
    path = next((path for path in (folder / CAMERA, folder.parent / CAMERA) if path.exists()), None)
    if path is None or not own_camera:
        return facts
    images = _images(folder / IMAGES["depth"])
    camera, scale = read_camera(path, size_of(images[0], str(images[0])) if images else None)
    return replace(facts, camera=camera, depth_scale=scale)


class FolderSink:
    """Writes a folder for each episode."""

    def __init__(self, path: Path, specification: Specification, facts: Facts, settings: ExportSettings) -> None:
        self._path, self._facts, self._count = path, facts, 0
        self._columns = {key: field for key, field in specification.items() if _is_column(key, field)}
        self.kept = {key: f"{STEPS}: {key}" for key in self._columns}
        self.kept |= {key: f"{name}/*.png" for key, name in IMAGES.items() if key in specification}
        if "point_cloud" in specification:
            self.kept["point_cloud"] = CLOUD
        self.lost = {key: "no place for it in a plain folder" for key in specification if key not in self.kept}
        path.mkdir(parents=True)

    def add(self, arrays: Arrays, outcomes: Mapping[str, Any]) -> None:
        """Write one episode's folder."""
        folder = self._path / f"episode_{self._count:06d}"
        self._count += 1
        folder.mkdir()
        for key, name in IMAGES.items():
            if key in arrays:
                (folder / name).mkdir()
                for step, image in enumerate(arrays[key]):
                    (folder / name / f"{step:06d}.png").write_bytes(png(image))
        if "point_cloud" in arrays:
            np.save(folder / CLOUD, arrays["point_cloud"], allow_pickle=False)
        with (folder / STEPS).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(name for key, field in self._columns.items() for name in self._names(key, field))
            writer.writerows(_rows([arrays[key] for key in self._columns]))
        facts = self._facts.to_dict()
        camera = facts.pop("camera", None)
        if camera is not None:
            write_json(folder / CAMERA, {**camera, "depth_scale": 0.001})
        write_json(folder / EPISODE, {**facts, **{key: outcomes[key] for key in OUTCOMES if key in outcomes}})

    def _names(self, key: str, field: Field) -> list[str]:
        if not field.shape:
            return [key]
        size = int(np.prod(field.shape))
        known = self._facts.names.get(key)
        return [f"{key}.{name}" for name in (known if known and len(known) == size else range(size))]

    def finish(self) -> None:
        """Nothing is left to write."""


def _is_column(key: str, field: Field) -> bool:
    return len(field.shape) < 2 or key == POSE


def _rows(arrays: list[NDArray[Any]]) -> Iterator[list[str]]:
    """Rows of texts that are read back as the same numbers."""
    for step in range(len(arrays[0])):
        row: list[str] = []
        for values in arrays:
            flat = values[step].reshape(-1).tolist()
            digits = 9 if values.dtype == np.float32 else 17
            row += [str(value) if isinstance(value, int | bool) else f"{value:.{digits}g}" for value in flat]
        yield row


FORMAT = Format(FolderSource, FolderSink)
