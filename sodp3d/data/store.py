"""Episodes on disk: a crash-safe store in the layout of diffusion_policy's and DP3's ReplayBuffer (Zarr format 2).

    data/<key>          one array per key, all episodes end to end along the first axis
    meta/episode_ends   int64, cumulative; its length *is* the number of episodes
    meta/<name>         one value per episode (seed, agent_step, episode_return, success_*), where it has them
    meta/.zattrs        how many episodes and steps were committed, with a checksum of each column (`columns.py`)
    .zattrs             environment, camera, renderer, versions, seeds, conversions (`attributes.py`)

Alignment: observations, depth and simulator state of step t are from *before* action t; reward and success its result.

An episode is appended in an order that makes its commit one file replacement: data first, then the per-episode
values, then its end in the chunk of `episode_ends` *beyond* the current shape, and last the grown shape. Readers see
nothing past that shape, and the next writer cuts off what a killed one left there. (This holds against the death of
the process, not of the machine: files are not synced to the disk one by one.)

What is read, appended and verified goes by the specification in the attributes, not by the files that are there. Where
they disagree with it, or with what was committed, opening raises InputError and changes nothing.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.files import Lock, disk_errors, write_json
from sodp3d.core.mappings import plain
from sodp3d.core.paths import command_line
from sodp3d.data import arrays, columns, verification
from sodp3d.data.absence import EpisodeValues, NotRecorded, can_be_made, episode_values, is_recorded
from sodp3d.data.arrays import CorruptEpisode
from sodp3d.data.attributes import REQUIRED_ATTRIBUTES, check_attributes, check_identity
from sodp3d.data.integrity import faulty_rows, read_object
from sodp3d.data.schema import (
    Field,
    Specification,
    check_episode,
    check_metadata,
    check_same_specification,
    check_specification,
    read_specification,
)
from sodp3d.envs.config import EnvConfig

__all__ = ["CorruptEpisode", "EpisodeStore", "NotRecorded"]

Episode = dict[str, NDArray[Any]]


class EpisodeStore:
    """Episodes of one environment. Make one with `create` or `open`; usable as a context manager."""

    def __init__(self, path: Path, mode: Literal["r", "a"], lock: Lock | None) -> None:
        self.path, self.mode, self._lock = path, mode, lock
        attributes = read_object(path / ".zattrs")
        self.specification: Specification = read_specification(attributes, str(path))
        self.attributes: dict[str, Any] = check_attributes(attributes, self.specification, str(path))
        self.episode_ends: NDArray[np.int64]  # (E,) rows after the last step of each committed episode
        self._arrays: arrays.ZarrArrays
        self._columns: columns.Columns
        self._load()

    @classmethod
    def create(
        cls, path: str | Path, attributes: Mapping[str, Any], specification: Mapping[str, tuple[Sequence[int], str]]
    ) -> "EpisodeStore":
        """An empty store, open for appending.

        attributes: plain JSON values with at least env, env_config, camera, renderer; `episode_values` lists those of
        METADATA that episodes have, if not all. specification: per-step key to (shape of one step, dtype). Raises
        InputError when `path` exists (a store is never overwritten), when another process writes there, or when an
        attribute is missing or not of its kind.
        """
        path = Path(path)
        checked = check_specification(specification)
        attributes = check_attributes(plain(dict(attributes)), checked, str(path))
        lock = _writer_lock(path)
        try:
            if path.exists():
                raise InputError(f"{path}: exists already and is never overwritten; choose another path or append.")
            arrays.remove_partial(path)
            with disk_errors(path, "no store was made"):
                columns.make_store(path, attributes, checked)
            return cls(path, "a", lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(
        cls,
        path: str | Path,
        mode: Literal["r", "a"] = "r",
        attributes: Mapping[str, Any] | None = None,
        specification: Mapping[str, tuple[Sequence[int], str]] | None = None,
    ) -> "EpisodeStore":
        """Open for reading ("r", any number of readers, the episodes committed by now) or appending ("a", one writer).

        `attributes` and `specification`: what the caller is about to append or expects to find. Raises InputError
        when the store is missing, of another schema, environment, camera, renderer, shape or type, being written to by
        another process, or damaged; then nothing was changed.
        """
        path = Path(path)
        if not (path / ".zgroup").exists():
            raise InputError(f"{path}: no episode store here; make one with: {command_line('collect', 'env=<name>')}")
        lock = _writer_lock(path) if mode == "a" else None
        try:
            store = cls(path, mode, lock)
            if attributes is not None:
                check_identity(store.attributes, attributes, str(path))
            if specification is not None:
                check_same_specification(store.specification, check_specification(specification), str(path))
            if mode == "a":
                with disk_errors(path, "no episode was appended"):
                    store._tidy()
            return store
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    def __len__(self) -> int:
        """Number of committed episodes."""
        return len(self.episode_ends)

    @property
    def steps(self) -> int:
        """Number of committed steps over all episodes."""
        return int(self.episode_ends[-1]) if len(self) else 0

    def bounds(self, index: int) -> tuple[int, int]:
        """First row and the row after the last of episode `index`. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of a store of {len(self)}")
        return int(self.episode_ends[index - 1]) if index else 0, int(self.episode_ends[index])

    @property
    def keys(self) -> tuple[str, ...]:
        """Per-step keys: those of the specification, then what conversions added."""
        return tuple(self._arrays)

    @property
    def metadata(self) -> dict[str, NDArray[Any]]:
        """Per-episode values: (E,) each, of those that the store has; another one raises NotRecorded."""
        return EpisodeValues(self.path, {name: self._columns[name] for name in episode_values(self.attributes)})

    @property
    def checksums(self) -> NDArray[np.int64]:
        """(E,) of the collected values of each episode; 0 for those that a release without checksums appended."""
        return self._columns[columns.CHECKSUM]

    def episode(self, index: int, keys: Sequence[str] | None = None) -> Episode:
        """Arrays (T, ...) of one episode. Raises CorruptEpisode, or InputError for unknown or unconverted keys."""
        return {key: self.read(key, index, index + 1) for key in (self.specification if keys is None else keys)}

    def read(self, key: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Rows of `key` of the episodes first..last-1 (all by default), end to end. Raises as `episode` does."""
        last = len(self) if last is None else last
        self._check_readable(key, first, last)
        if first >= last:
            return np.zeros((0, *self._arrays[key].shape[1:]), self._arrays[key].dtype)
        start, stop = self.bounds(first)[0], self.bounds(last - 1)[1]
        for row, reason in faulty_rows(self.path / "data" / key, self._arrays[key], start, stop):
            index = int(np.searchsorted(self.episode_ends, max(row, start), side="right"))
            raise CorruptEpisode(self.path, index, key, reason)
        try:
            return np.asarray(self._arrays[key][start:stop])
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            if last - first > 1:  # find the one to name
                return np.concatenate([self.read(key, index, index + 1) for index in range(first, last)])
            raise CorruptEpisode(self.path, first, key, str(error)) from error

    @property
    def choice(self) -> str:
        """What to type to choose the store's task, for messages."""
        recorded = self.attributes["env_config"]
        if is_recorded(self.attributes):
            return "env=recorded"
        if set(recorded) == {field.name for field in fields(EnvConfig)}:
            return EnvConfig.from_config(recorded).choice
        return f"env={self.attributes['env']}"

    @property
    def typed(self) -> list[str]:
        """What to type to choose this very store, for messages."""
        usual = self.path.parent.parts[-2:] == ("data", self.attributes["env"]) and not is_recorded(self.attributes)
        return [*self.choice.split(), *([] if usual else [f"data={self.path.parent}"])]

    @property
    def conversions(self) -> dict[str, dict[str, Any]]:
        """Output key to {keys, episodes, parameters, statistics} of each conversion (see `conversion.py`)."""
        return dict(self.attributes.get("conversion", {}))

    def field(self, key: str) -> Field:
        """Shape of one step and type of `key`. Raises InputError for keys that are not there."""
        self._check_readable(key, 0, 0)
        return Field(self._arrays[key].shape[1:], self._arrays[key].dtype.name)

    def readable(self, key: str) -> int:
        """How many episodes of `key` can be read: all for collected keys, the converted ones for derived keys."""
        if key in self.specification:
            return len(self)
        if key not in self._arrays:
            return 0
        converted = [state["episodes"] for state in self.conversions.values() if key in state["keys"]]
        return min(len(self), max(converted, default=0))

    def verify(self) -> list[str]:
        """One line for every episode and key that cannot be read whole, or is not what was committed; [] for a sound
        store.

        The keys are those of the specification and of finished conversions, whether their files are there or not.
        Decodes everything.
        """
        return list(verification.problems(self))

    def append(self, episode: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> int:
        """Commit one episode; its index. Either all of it is in the store afterwards or nothing.

        episode: key to (T, ...) with exactly the keys, shapes and types of the specification. metadata: one number for
        each name of METADATA that the store has. Raises InputError for an unsound episode, a store not open for
        appending, a full disk.
        """
        self._check_writable()
        length = check_episode(episode, self.specification)
        check_metadata(metadata, self.metadata)
        index, start = len(self), self.steps
        grown = {name: np.append(values, values.dtype.type(metadata[name])) for name, values in self.metadata.items()}
        grown[columns.CHECKSUM] = np.append(self.checksums, columns.episode_checksum(episode))
        grown[columns.ENDS] = np.append(self.episode_ends, start + length)  # last: its header is the commit
        consequence = f"the episode was not committed, the {index} before it are safe"
        try:
            with disk_errors(self.path, consequence):
                for key, array in self._arrays.items():
                    array.resize((start + length, *array.shape[1:]))
                    if key in episode:
                        array[start:] = episode[key]
                for name, values in grown.items():
                    columns.write_column(self.path / "meta" / name, values)
        except BaseException:  # interrupted: see what is committed, tidy up as far as the disk allows
            with contextlib.suppress(OSError, InputError):
                self._load()
                self._tidy()
            raise
        self._take(grown)
        with contextlib.suppress(
            OSError, InputError
        ):  # the episode is committed; the record may stay behind until the next one
            columns.record_commit(self.path / "meta", grown)
        return index

    def add_array(self, key: str, field: Field) -> None:
        """A new derived per-step array of the committed length, zero until written (see `conversion.py`).

        Takes the place of an abandoned one. Raises InputError where episodes of `key` are readable.
        """
        self._check_writable()
        if self.readable(key):
            raise InputError(f"{self.path}: data/{key} holds {self.readable(key)} episodes and is not overwritten.")
        with disk_errors(self.path, f"data/{key} was not made"):
            arrays.add_array(self.path, key, self.steps, field)
            self._load()

    def write_rows(self, key: str, index: int, values: NDArray[Any]) -> None:
        """Fill a derived array's rows of episode `index`; (T, ...). They are on the disk when it returns.

        Raises InputError for collected keys.
        """
        self._check_writable()
        if key in self.specification:
            raise InputError(f"{self.path}: data/{key} was collected and is not overwritten.")
        start, stop = self.bounds(index)
        with disk_errors(self.path, f"data/{key} of episode {index} was not written"):
            self._arrays[key][start:stop] = values
            arrays.sync_rows(self.path / "data" / key, self._arrays[key], start, stop)

    def update_attributes(self, values: Mapping[str, Any]) -> None:
        """Replace root attributes in one atomic step. Raises InputError for one that data depends on."""
        self._check_writable()
        fixed = {*REQUIRED_ATTRIBUTES, "schema_version", "specification"} & set(values)
        if fixed:
            raise InputError(f"{self.path}: attribute {sorted(fixed)[0]!r} of a store cannot change.")
        changed = check_attributes(plain({**self.attributes, **values}), self.specification, str(self.path))
        with disk_errors(self.path, "the attributes are as they were"):
            write_json(self.path / ".zattrs", changed)
        self.attributes = changed

    def close(self) -> None:
        """Release the writer's lock; nothing else needs closing."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self.mode = "r"

    def __enter__(self) -> "EpisodeStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self) -> None:
        self._take(columns.read_columns(self.path / "meta", episode_values(self.attributes)))
        self._open_arrays()

    def _take(self, values: columns.Columns) -> None:
        self._columns, self.episode_ends = values, values[columns.ENDS]

    def _open_arrays(self) -> None:
        derived = {key: None for state in self.conversions.values() for key in state["keys"]}
        self._arrays = arrays.open_arrays(self.path / "data", {**derived, **self.specification}, self.mode == "a")

    def _tidy(self) -> None:
        """Cut off what a killed writer left beyond the last commit. Raises InputError where more than that is amiss."""
        data, meta = self.path / "data", self.path / "meta"
        arrays.check_complete(data, self._arrays, self.specification, self.steps)
        columns.tidy_columns(meta, self._columns)
        shortened = [arrays.cut(data / key, array, self.steps) for key, array in self._arrays.items()]
        if any(shortened):
            self._open_arrays()
        arrays.remove_partial(self.path)

    def _check_writable(self) -> None:
        if self._lock is None:
            raise InputError(f'{self.path}: open for reading only; open it with mode="a" to write.')

    def _check_readable(self, key: str, first: int, last: int) -> None:
        if key not in self._arrays and key in self.specification:
            raise CorruptEpisode(self.path, first, key, "the array is missing")
        if key not in self._arrays and not can_be_made(self, key):
            raise NotRecorded(self.path, f"data/{key}", self.keys)
        if key not in self._arrays or last > self.readable(key):
            again = f"again={key}" if key in ("image", "depth") else ""
            command = command_line("convert", *self.typed, again)
            raise InputError(
                f"{self.path}: data/{key} holds {self.readable(key)} of {len(self)} episodes; the keys are "
                f"{', '.join(self.keys)}. What is derived is made by: {command}"
            )


def _writer_lock(path: Path) -> Lock:
    """One writer at a time. Raises InputError naming the process that writes to the store already."""
    return Lock(
        path.with_name(f"{path.name}.lock"),
        f"{path}: {{holder}} is writing to this store. One writer at a time: wait for it or stop it, or collect into "
        f"another folder and merge.",
    )
