"""LeRobotDataset v3, written: depth as images of 16 bit inside the Parquet files, colours so too or as mp4.

An episode is one row group of a data file; a new file begins at 100 MB. Videos are a file for each episode.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.files import write_json
from sodp3d.data.schema import Field, Specification
from sodp3d.exchange import lerobot_video
from sodp3d.exchange.episodes import OUTCOMES, Arrays, Facts
from sodp3d.exchange.images import png
from sodp3d.exchange.lerobot_stats import Statistics
from sodp3d.settings import ExportSettings

VERSION, INFO, EPISODES, OURS = "v3.0", "meta/info.json", "meta/episodes", "meta/sodp3d.json"
_NAMES = {  # the store's key to theirs; others follow observation.
    "action": "action",
    "agent_pos": "observation.state",
    "state": "observation.environment_state",
    "image": "observation.images.camera",
    "depth": "observation.images.camera_depth",
    "reward": "next.reward",
    "success": "next.success",
}
_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_FILES_OF_CHUNK, _DATA_MEGABYTES, _VIDEO_MEGABYTES = 1000, 100, 200
_BOOKKEEPING = {
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64",
    "next.done": "bool",
}  # fmt: skip


def parquet() -> tuple[Any, Any]:
    """pyarrow and its Parquet module. Raises InputError that names the extra where they are missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            f"format: lerobot needs pyarrow ({error}); install it with: pip install 'sodp3d[lerobot]', in a checkout "
            f"pip install '.[lerobot]'."
        ) from None
    return pyarrow, pyarrow.parquet


class LeRobotSink:
    """Writes a dataset's folder."""

    def __init__(self, path: Path, specification: Specification, facts: Facts, settings: ExportSettings) -> None:
        """Raises InputError where the rate is not known, or pyarrow is missing."""
        self._arrow, self._parquet = parquet()
        if facts.rate is None:
            raise InputError("rate: the store does not say how many steps a second it has; name it, as rate=10.")
        self._path, self._facts, self._rate = path, facts, facts.rate
        self._video = "image" if settings.video and "image" in specification else None
        self._fields = specification
        self._keys = {key: _NAMES.get(key, f"observation.{key}") for key in specification}
        self.kept, self.lost = dict(self._keys), dict[str, str]()
        if self._video:
            self.lost["image"] = "as mp4 (video=true), colours are not exact"
        self._features = {self._keys[key]: self._feature(key, field) for key, field in specification.items()}
        self._features |= {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in _BOOKKEEPING.items()}
        self._statistics = Statistics()
        self._rows, self._outcomes = list[dict[str, Any]](), list[dict[str, Any]]()
        self._writer: Any = None
        self._data_file = -1
        self._total = 0
        path.mkdir(parents=True)

    def _feature(self, key: str, field: Field) -> dict[str, Any]:
        if key == "depth":
            info = {"is_depth_map": True, "depth_unit": "mm"}
            return {
                "dtype": "image",
                "shape": [*field.shape, 1],
                "names": ["height", "width", "channels"],
                "info": info,
            }
        if key == "image":
            height, width = field.shape[1:]
            found: dict[str, Any] = {"shape": [height, width, 3], "names": ["height", "width", "channels"]}
            if not self._video:
                return {"dtype": "image", **found}
            told = {"height": height, "width": width, "codec": "h264", "pix_fmt": "yuv420p", "fps": self._rate}
            info = {**{f"video.{name}": value for name, value in told.items()}, "video.channels": 3}
            return {"dtype": "video", **found, "info": {**info, "has_audio": False, "is_depth_map": False}}
        names = self._facts.names.get(key)
        return {"dtype": field.dtype, "shape": list(field.shape) or [1], "names": list(names) if names else None}

    def add(self, arrays: Arrays, outcomes: Mapping[str, Any]) -> None:
        """Write one episode's rows, and its video."""
        number, steps = len(self._rows), len(arrays["action"])
        columns = {self._keys[key]: self._column(key, arrays[key]) for key in arrays if key != self._video}
        counts = {
            "timestamp": (np.arange(steps) / self._rate).astype(np.float32),
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, number),
            "index": np.arange(self._total, self._total + steps),
            "task_index": np.zeros(steps, np.int64),
            "next.done": np.arange(steps) == steps - 1,
        }
        table = self._arrow.table({**columns, **{key: self._arrow.array(values) for key, values in counts.items()}})
        chunk, file = self._write(table)
        row = {
            "episode_index": number,
            "tasks": [self._task],
            "length": steps,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self._total,
            "dataset_to_index": self._total + steps,
        }
        if self._video:
            row |= self._write_video(arrays[self._video], number)
        features = {self._keys[key]: values for key, values in arrays.items()}
        row |= self._statistics.add({**features, **counts})
        self._rows.append({**row, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self._outcomes.append({key: outcomes[key] for key in OUTCOMES if key in outcomes})
        self._total += steps

    @property
    def _task(self) -> str:
        return self._facts.task or "recorded"

    def _column(self, key: str, values: NDArray[Any]) -> Any:
        """A column of Arrow: single numbers, lists of them, or files of images."""
        arrow = self._arrow
        if key in ("image", "depth"):
            kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
            return arrow.array([{"bytes": png(image), "path": None} for image in values], kind)
        column = arrow.array(np.ascontiguousarray(values).reshape(-1))
        if values.ndim == 2:  # a list of one is kept as the number itself
            size = values.shape[1]
            return column if size == 1 else arrow.FixedSizeListArray.from_arrays(column, size)
        for size in reversed(values.shape[1:]):
            ends = np.arange(0, len(column) + 1, size, dtype=np.int32)
            column = arrow.ListArray.from_arrays(arrow.array(ends), column)
        return column

    def _write(self, table: Any) -> tuple[int, int]:
        """Append a row group; chunk and file it went into."""
        path = self._data_path() if self._writer is not None else None
        if path is not None and path.stat().st_size > _DATA_MEGABYTES * 2**20:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            self._data_file += 1
            self._data_path().parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._parquet.ParquetWriter(self._data_path(), table.schema, compression="snappy")
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        return divmod(self._data_file, _FILES_OF_CHUNK)

    def _data_path(self) -> Path:
        chunk, file = divmod(self._data_file, _FILES_OF_CHUNK)
        return self._path / _DATA_PATH.format(chunk_index=chunk, file_index=file)

    def _write_video(self, images: NDArray[Any], number: int) -> dict[str, Any]:
        key = self._keys["image"]
        chunk, file = divmod(number, _FILES_OF_CHUNK)
        path = self._path / _VIDEO_PATH.format(video_key=key, chunk_index=chunk, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        lerobot_video.write_color(path, images, self._rate)
        return {
            f"videos/{key}/chunk_index": chunk,
            f"videos/{key}/file_index": file,
            f"videos/{key}/from_timestamp": 0.0,
            f"videos/{key}/to_timestamp": len(images) / self._rate,
        }

    def finish(self) -> None:
        """Write meta/."""
        if self._writer is not None:
            self._writer.close()
        arrow, meta = self._arrow, self._path / "meta"
        file = self._path / EPISODES / "chunk-000/file-000.parquet"
        file.parent.mkdir(parents=True)
        self._parquet.write_table(arrow.Table.from_pylist(self._rows), file)
        self._parquet.write_table(_tasks(arrow, self._task), meta / "tasks.parquet")
        write_json(meta / "stats.json", self._statistics.total())
        rate = int(self._rate) if float(self._rate).is_integer() else self._rate
        write_json(
            self._path / INFO,
            {
                "codebase_version": VERSION,
                "robot_type": "unknown",
                "total_episodes": len(self._rows),
                "total_frames": self._total,
                "total_tasks": 1,
                "chunks_size": _FILES_OF_CHUNK,
                "data_files_size_in_mb": _DATA_MEGABYTES,
                "video_files_size_in_mb": _VIDEO_MEGABYTES,
                "fps": rate,
                "splits": {"train": f"0:{len(self._rows)}"},
                "data_path": _DATA_PATH,
                "video_path": _VIDEO_PATH if self._video else None,
                "features": self._features,
            },
        )
        keys = {name: key for key, name in self._keys.items()}
        write_json(self._path / OURS, {**self._facts.to_dict(), "keys": keys, "episodes": self._outcomes})


def _tasks(arrow: Any, task: str) -> Any:
    """The table of tasks, with what lets pandas take the words as its index."""
    table = arrow.table({"task_index": arrow.array([0], arrow.int64()), "task": arrow.array([task])})
    words = {"field_name": "task", "name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    number = {**words, "field_name": "task_index", "name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    about = {"index_columns": ["task"], "column_indexes": [], "columns": [number, words], "pandas_version": "2.2.0"}
    return table.replace_schema_metadata({"pandas": json.dumps(about)})
