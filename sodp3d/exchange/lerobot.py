"""LeRobotDataset v3, read: meta/info.json, meta/episodes/, data/ in Parquet, videos/ in mp4. `lerobot_write.py` writes.

What no key tells stands in meta/sodp3d.json of datasets that were exported from a store.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json
from sodp3d.exchange import lerobot_video
from sodp3d.exchange.episodes import Arrays, Facts, Kind, Offer, one_task, positive, read_outcomes
from sodp3d.exchange.formats import Format
from sodp3d.exchange.images import read_color, read_depth
from sodp3d.exchange.lerobot_write import EPISODES, INFO, OURS, VERSION, LeRobotSink, parquet
from sodp3d.settings import ImportSettings

_OWN = ("timestamp", "frame_index", "episode_index", "index", "task_index", "next.done")  # bookkeeping
_BECOMES = {
    "action": "action",
    "observation.state": "agent_pos",
    "observation.environment_state": "state",
    "observation.point_cloud": "point_cloud",
    "next.reward": "reward",
    "next.success": "success",
}
_MOST_BYTES = 2**31  # of one key of one episode
_WANTED = ("episode_index", "length", "data/chunk_index", "data/file_index", "tasks")


class LeRobotSource:
    """A dataset's folder."""

    def __init__(self, path: Path, settings: ImportSettings) -> None:
        """Raises InputError for a dataset that is of another version, damaged, or reaches outside its folder."""
        self._arrow, self._parquet = parquet()
        self._path, info = path, read_json(path / INFO)
        self._info: dict[str, Any] = _check_info(info, path / INFO)
        self._rows, self.lost = self._read_episodes(), dict[str, str]()
        self._check_whole(settings.skip_bad)
        self.episodes = [f"episode {row['episode_index']}" for row in self._rows]
        known = read_json(path / OURS) if (path / OURS).exists() else {}
        facts = Facts.from_dict(known, str(path / OURS))
        rate = positive(self._info["fps"], f"{path / INFO}: fps")
        task, lost = one_task(task for row in self._rows[: settings.episodes] for task in row.get("tasks") or ())
        self.lost |= lost
        self.facts = Facts(facts.camera, rate, task, None, facts.names, facts.keys)
        outcomes = known.get("episodes")
        self._outcomes: list[Any] = outcomes if isinstance(outcomes, list) else []
        self.offers = self._offers()
        self._file: tuple[Path, Any, NDArray[Any]] | None = None

    def _read_episodes(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for file in sorted((self._path / EPISODES).glob("*/*.parquet")):
            names = self._parquet_of(file).schema_arrow.names
            wanted = [name for name in names if name in _WANTED or name.startswith("videos/")]
            try:
                rows += self._parquet.read_table(file, columns=wanted).to_pylist()
            except (OSError, ValueError) as error:
                raise InputError(f"{file}: cannot be read ({error}); get it again.") from None
        if not rows:
            raise InputError(f"{self._path / EPISODES}: holds no episodes; is the dataset complete?")
        for row in rows:
            for key in _WANTED[:-1]:
                if not isinstance(row.get(key), int) or row[key] < 0:
                    raise InputError(f"{self._path / EPISODES}: {key}: expected a whole number, got {row.get(key)!r}.")
        return sorted(rows, key=lambda row: row["episode_index"])

    def _check_whole(self, skip_bad: bool) -> None:
        """Raise InputError for an episode that is listed twice, or, unless bad ones are left out, for a missing one."""
        numbers = [row["episode_index"] for row in self._rows]
        twice = next((one for one, other in itertools.pairwise(numbers) if one == other), None)
        if twice is not None:
            raise InputError(f"{self._path / EPISODES}: lists episode {twice} twice; get the dataset again.")
        total = self._info.get("total_episodes", len(numbers))
        if total == len(numbers):
            return
        if not skip_bad:
            raise InputError(
                f"{self._path / EPISODES}: lists {len(numbers)} episodes, but total_episodes of {INFO} is {total!r}; "
                "get the dataset again, or take those that are listed with skip_bad=true."
            )
        self.lost["episodes"] = f"{EPISODES} lists {len(numbers)}, but total_episodes of {INFO} is {total!r}"

    def _offers(self) -> dict[str, Offer]:
        offers: dict[str, Offer] = {}
        for key, feature in self._info["features"].items():
            shape, dtype = tuple(feature["shape"]), feature["dtype"]
            if key in _OWN:
                continue
            kind = _kind(key, feature)
            if dtype not in ("image", "video") and np.dtype(dtype if _is_number(dtype) else object).kind not in "biuf":
                self.lost[key] = "no numbers of each step"
                continue
            default = {"image": "image", "depth": "depth"}.get(kind, "")
            taken = any(offer.becomes == default for offer in offers.values())
            becomes = self.facts.keys.get(key) or _BECOMES.get(key, "" if taken else default)
            names = self.facts.names.get(becomes) or _names(feature, math.prod(shape))
            offers[key] = Offer(kind, () if shape == (1,) else shape, dtype, becomes, names)
        return offers

    def read(self, index: int, keys: Sequence[str]) -> Arrays:
        """Arrays of one episode. Raises InputError for files that are missing, cut or do not fit."""
        columns = [key for key in keys if self._info["features"][key]["dtype"] != "video"]
        found: Arrays = {}
        if columns:
            table = self._table(index, columns)
            found = {key: self._column(table.column(key), index, key) for key in columns}
        return {key: found[key] if key in found else self._video(index, key) for key in keys}

    def _table(self, index: int, columns: Sequence[str]) -> Any:
        """The episode's rows of its data file."""
        row = self._rows[index]
        path = self._inside(self._info["data_path"], row["data/chunk_index"], row["data/file_index"])
        if self._file is None or self._file[0] != path:
            file = self._parquet_of(path)
            missing = [key for key in (*columns, "episode_index") if key not in file.schema_arrow.names]
            if missing:
                raise InputError(f"{path}: has no column {missing[0]}, which {INFO} lists.")
            try:
                self._file = path, file, file.read(["episode_index"]).column(0).to_numpy()
            except (OSError, ValueError) as error:
                raise InputError(f"{path}: cannot be read ({error}); get it again.") from None
        _, file, numbers = self._file
        places = np.flatnonzero(numbers == row["episode_index"])
        if len(places) != row["length"] or len(places) == 0 or places[-1] - places[0] != len(places) - 1:
            raise InputError(
                f"{path}: episode {row['episode_index']}: expected {row['length']} rows, one after the other, got "
                f"{len(places)}; get the file again, or leave this episode out."
            )
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        first, last = (int(np.searchsorted(ends, place, side="right")) for place in (places[0], places[-1]))
        begin = int(ends[first - 1]) if first else 0
        try:
            groups = file.read_row_groups(list(range(first, last + 1)), columns=list(columns))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({error}); get it again, or leave this episode out.") from None
        return groups.slice(int(places[0]) - begin, len(places))

    def _parquet_of(self, path: Path) -> Any:
        try:
            return self._parquet.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: is no Parquet file that can be read, or cut ({error}); get it again.") from None

    def _column(self, column: Any, index: int, key: str) -> NDArray[Any]:
        where = f"{self._path}: {self.episodes[index]}: {key}"
        if self._info["features"][key]["dtype"] == "image":
            return self._images(column, key, where)
        shape = self.offers[key].shape
        if column.nbytes > _MOST_BYTES:
            raise InputError(f"{where}: holds {column.nbytes} bytes, more than any episode has.")
        values = column.combine_chunks()
        while self._arrow.types.is_nested(values.type) and not self._arrow.types.is_struct(values.type):
            values = values.flatten()
        numbers = values.to_numpy(zero_copy_only=False)
        if numbers.dtype.kind not in "biuf" or numbers.size != len(column) * math.prod(shape):
            raise InputError(f"{where}: expected numbers {shape} a step, as {INFO} says, got {column.type}.")
        return numbers.reshape(len(column), *shape)

    def _images(self, column: Any, key: str, where: str) -> NDArray[Any]:
        read = read_depth if self.offers[key].kind == "depth" else read_color
        images = []
        for step, value in enumerate(column.to_pylist()):
            content = value.get("bytes") if isinstance(value, dict) else None
            if content is None:
                raise InputError(f"{where}: step {step}: holds no image.")
            images.append(read(content, f"{where}: step {step}"))
            if images[-1].shape != images[0].shape:
                raise InputError(f"{where}: step {step}: is {images[-1].shape}, but the first {images[0].shape}.")
        return np.stack(images)

    def _video(self, index: int, key: str) -> NDArray[Any]:
        row, feature = self._rows[index], self._info["features"][key]
        told: list[Any] = [row.get(f"videos/{key}/{part}") for part in ("chunk_index", "file_index", "from_timestamp")]
        if not all(isinstance(value, int | float) and 0 <= value < 1e9 for value in told):
            raise InputError(f"{self._path / EPISODES}: {self.episodes[index]}: does not say where videos/{key} is.")
        path = self._inside(self._info["video_path"], int(told[0]), int(told[1]), key)
        if not path.is_file():
            raise InputError(f"{path}: is missing; get it again, or leave this episode out.")
        rate = self.facts.rate or 1.0
        start = round(told[2] * rate)
        shape = feature["shape"]
        size = (shape[1], shape[2]) if len(shape) == 3 and shape[0] in (1, 3) else (shape[0], shape[1])
        if self.offers[key].kind == "image":
            return lerobot_video.read_color(path, start, row["length"], rate, size)
        codes = lerobot_video.DepthCodes.of(feature.get("info") or {}, f"{self._path / INFO}: {key}")
        self.lost[key] = "as a video, depth is in 4096 codes and not exact"
        return lerobot_video.read_depth(path, start, row["length"], rate, size, codes)

    def _inside(self, template: Any, chunk: int, file: int, key: str = "") -> Path:
        """The file that a template of info.json names. Raises InputError for one outside the dataset's folder."""
        try:
            name = str(template).format(chunk_index=chunk, file_index=file, video_key=key)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise InputError(f"{self._path / INFO}: {template!r} does not name files ({error}).") from None
        path = Path(name)  # by its words: in Hugging Face's cache, all files are links to another folder
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"{self._path / INFO}: {template!r} leads outside the dataset, where nothing is read.")
        return self._path / path

    def outcomes(self, index: int) -> dict[str, Any]:
        """What meta/sodp3d.json says."""
        if index >= len(self._outcomes):
            return {}
        return read_outcomes(self._outcomes[index], f"{self._path / OURS}: episode {index}")

    def close(self) -> None:
        """Close the data file."""
        if self._file is not None:
            self._file[1].close()
            self._file = None


def _check_info(info: Any, path: Path) -> dict[str, Any]:
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if not isinstance(version, str) or not version.startswith(VERSION.partition(".")[0]):
        raise InputError(
            f"{path}: expected codebase_version {VERSION}, got {version!r}; LeRobot's own "
            f"convert_dataset_v21_to_v30 brings older datasets to it."
        )
    features = info.get("features")
    if not isinstance(features, dict) or "fps" not in info or "data_path" not in info:
        raise InputError(f"{path}: expected features, fps and data_path; get the file again.")
    for key, feature in features.items():
        shape: Any = feature.get("shape") if isinstance(feature, dict) else None
        sizes = isinstance(shape, list) and all(isinstance(size, int) and 0 < size < 2**24 for size in shape)
        seen = isinstance(feature, dict) and feature.get("dtype") in ("image", "video")
        if not sizes or not isinstance(feature.get("dtype"), str) or (seen and len(shape) != 3):
            raise InputError(f"{path}: features.{key}: expected dtype and shape, got {feature!r}.")
    return dict(info)


def _is_number(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "biuf"
    except TypeError:
        return False


def _kind(key: str, feature: Mapping[str, Any]) -> Kind:
    shape = feature["shape"]
    if feature["dtype"] in ("image", "video"):
        told = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
        depth = told.get("is_depth_map") or told.get("video.is_depth_map")
        return "depth" if depth else "image"
    if len(shape) < 2:
        return "numbers"
    return "pose" if shape == [4, 4] else "points"


def _names(feature: Mapping[str, Any], size: int) -> tuple[str, ...]:
    """Of each number, where the feature lists them, or a list of them inside an object."""
    names: Any = feature.get("names")
    if isinstance(names, dict):
        names = next(iter(names.values()), None)
    sound = isinstance(names, list) and len(names) == size and all(isinstance(name, str) for name in names)
    return tuple(names) if sound else ()


FORMAT = Format(LeRobotSource, LeRobotSink)
