"""The per-episode columns of a store, and the record of what was committed.

    meta/episode_ends   int64, cumulative; its length *is* the number of episodes
    meta/<name>         one value per episode, of those of METADATA that the store has (`absence.py`)
    meta/checksum       int64, of the collected values of each episode; 0 where a release without it has appended
    meta/.zattrs        {"committed": {"episodes", "steps", "checksums"}}

The record is written right after each commit, so it may be an episode behind, but never ahead: what it tells must be
there. `checksums` are of each column's values of those episodes. A store of a release without the record, or one that
such a release has appended to, is read as it is.

Columns are not compressed, so that a commit is the replacement of one small file; Zarr reads them.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.files import partial_path, remove, replace_file, write_json
from sodp3d.core.mappings import plain
from sodp3d.data.absence import episode_values
from sodp3d.data.arrays import make_array, open_array
from sodp3d.data.integrity import faulty_rows, read_object
from sodp3d.data.schema import SCHEMA_VERSION, Field, Specification

ENDS, CHECKSUM = "episode_ends", "checksum"
_OWN = {CHECKSUM: "int64", ENDS: "int64"}
_RECORD = "committed"
_ROWS_PER_CHUNK = 8192

Columns = dict[str, NDArray[Any]]


def make_store(path: Path, attributes: Mapping[str, Any], specification: Specification) -> None:
    """A new store without episodes, whole or not at all: made beside `path`, then renamed."""
    partial = partial_path(path)
    try:
        root = zarr.open_group(partial, mode="w-", zarr_format=2)
        root.create_group("data"), root.create_group("meta")
        for key, field in specification.items():
            make_array(partial / "data" / key, 0, field)
        columns = {name: np.zeros(0, dtype) for name, dtype in {**episode_values(attributes), **_OWN}.items()}
        for name, values in columns.items():
            _make_column(partial / "meta" / name, values.dtype.name)
        record_commit(partial / "meta", columns)
        fields = {key: field._asdict() for key, field in specification.items()}
        described = {**attributes, "schema_version": SCHEMA_VERSION, "specification": fields}
        write_json(partial / ".zattrs", plain(described))
        partial.rename(path)
    except BaseException:
        remove(partial)
        raise


def _make_column(folder: Path, dtype: str) -> None:
    zarr.create_array(
        folder, shape=(0,), chunks=(_ROWS_PER_CHUNK,), dtype=dtype, fill_value=0, compressors=None, zarr_format=2
    )


def read_columns(meta: Path, kinds: Mapping[str, str]) -> Columns:
    """(E,) values of every column, `episode_ends` among them. Raises InputError where they are not what was committed.

    kinds: name to type of the values of episodes. The record is read before the columns, which a writer may lengthen
    meanwhile.
    """
    record = _read_record(meta)
    ends = read_column(meta / ENDS, "int64")
    if (np.diff(ends, prepend=0) < 1).any():
        raise InputError(f"{meta / ENDS}: does not increase; restore its files from a copy.")
    columns = {name: read_column(meta / name, dtype)[: len(ends)] for name, dtype in kinds.items()}
    columns[CHECKSUM] = _read_checksums(meta / CHECKSUM, len(ends))
    for name, values in columns.items():
        if len(values) != len(ends):
            raise InputError(f"{meta / name}: holds fewer than {len(ends)} values; restore its files from a copy.")
    columns[ENDS] = ends
    if record is not None:
        _check_committed(meta, columns, record)
    return columns


def read_column(folder: Path, dtype: str) -> NDArray[Any]:
    """All values of one column. Raises InputError when a file is not whole."""
    array = open_array(folder, Field((), dtype))
    for _, reason in faulty_rows(folder, array, 0, array.shape[0]):
        raise InputError(f"{folder}: {reason}; the store is damaged: restore this file from a copy.")
    try:
        return np.asarray(array[:]).astype(dtype)
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{folder}: cannot be read ({error}); restore its files from a copy.") from error


def write_column(folder: Path, values: NDArray[Any]) -> None:
    """Append those of `values` that a column lacks, or cut it to a shorter length: chunks first, then the shape.

    The values lie beyond the shape until the shape's file is replaced, so that replacement is the whole change. For
    `episode_ends` it is the commit.
    """
    header = read_object(folder / ".zarray")
    rows, dtype = header["chunks"][0], np.dtype(header["dtype"])
    stop = -(-len(values) // rows) if len(values) > header["shape"][0] else 0
    for chunk in range(header["shape"][0] // rows, stop):
        part = values[chunk * rows : (chunk + 1) * rows]
        padded = np.zeros(rows, dtype)
        padded[: len(part)] = part
        replace_file(folder / str(chunk), padded.tobytes())
    header["shape"] = [len(values)]
    replace_file(folder / ".zarray", json.dumps(header, indent=2).encode())


def tidy_columns(meta: Path, columns: Columns) -> None:
    """Shorten the columns that a killed writer left longer than `columns`, and bring checksums and record up to date.

    Raises InputError, before anything is changed, where more is left than a killed writer leaves, or a column can be
    read but not appended to.
    """
    other_length = []
    for name, values in columns.items():
        header = read_object(meta / name / ".zarray") or {"shape": [0]}  # no checksums yet
        if header.get("compressor") is not None:
            raise InputError(
                f"{meta / name}: was compressed by other software, so it can be read but not appended to. Make a copy "
                f"that can: sodp3d merge <new folder> <this store's folder>"
            )
        if header["shape"][0] > len(values) + 1:
            raise InputError(
                f"{meta / ENDS}: counts {len(values)} episodes, but meta/{name} holds {header['shape'][0]} values, "
                f"while a killed writer leaves one more at most. Nothing was changed: restore {ENDS}/.zarray from a "
                f'copy, or set "shape" in it to the number of episodes.'
            )
        if header["shape"][0] != len(values):
            other_length.append(name)
    if not (meta / CHECKSUM / ".zarray").exists():  # nor what a kill left of it in the making
        _make_column(meta / CHECKSUM, _OWN[CHECKSUM])
    for name in other_length:
        write_column(meta / name, columns[name])
    record = _read_record(meta)
    if record is None or record["episodes"] != len(columns[ENDS]):
        record_commit(meta, columns)


def record_commit(meta: Path, columns: Columns) -> None:
    """Write down, in one replaced file, what is committed. Raises OSError."""
    ends = columns[ENDS]
    record = {
        "episodes": len(ends),
        "steps": int(ends[-1]) if len(ends) else 0,
        "checksums": {name: _checksum(values) for name, values in sorted(columns.items())},
    }
    others = read_object(meta / ".zattrs")
    replace_file(meta / ".zattrs", json.dumps({**others, _RECORD: record}, indent=2).encode())


def _read_record(meta: Path) -> dict[str, Any] | None:
    """What was committed; None for a store of a release that did not write it down. Raises InputError when damaged."""
    record = read_object(meta / ".zattrs").get(_RECORD)
    if record is None:
        return None
    kinds = {"episodes": int, "steps": int, "checksums": dict}
    if not isinstance(record, dict) or any(not isinstance(record.get(key), kind) for key, kind in kinds.items()):
        raise InputError(
            f"{meta / '.zattrs'}: is damaged; restore it from a copy, or remove it to take what meta holds as it is."
        )
    return dict(record)


def _check_committed(meta: Path, columns: Columns, record: dict[str, Any]) -> None:
    count = record["episodes"]
    if len(columns[ENDS]) < count:
        raise InputError(
            f"{meta / ENDS}: its header counts {len(columns[ENDS])} episodes, but {count} ({record['steps']} steps) "
            f'were committed. Nothing was changed: restore {ENDS}/.zarray from a newer copy, or set "shape" in it to '
            f"[{count}]."
        )
    for name, values in columns.items():
        if record["checksums"].get(name) != _checksum(values[:count]):
            raise InputError(
                f"{meta / name}: its first {count} values are not those that were committed. Restore its files from a "
                f"copy, or remove {meta / '.zattrs'} to take the values as they are."
            )


def episode_checksum(episode: Mapping[str, NDArray[Any]]) -> np.int64:
    """Of all values of an episode, by the order of their keys' names; never 0."""
    digest = hashlib.blake2b(digest_size=8)
    for key in sorted(episode):
        add_values(digest, episode[key])
    return checksum_of(digest)


def continued_checksum(before: str, values: NDArray[Any]) -> str:
    """Of all values so far, from that of those before ("" for none) and the next ones."""
    digest = hashlib.blake2b(before.encode(), digest_size=8)
    add_values(digest, values)
    return digest.hexdigest()


def add_values(digest: "hashlib.blake2b", values: NDArray[Any]) -> None:
    """The next values, as they are on any machine: in C order, lowest byte first."""
    digest.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())


def checksum_of(digest: "hashlib.blake2b") -> np.int64:
    """What the column holds of a digest."""
    return np.frombuffer(digest.digest(), "<i8").astype(np.int64)[0] or np.int64(1)


def _read_checksums(folder: Path, count: int) -> NDArray[Any]:
    known = read_column(folder, _OWN[CHECKSUM])[:count] if (folder / ".zarray").exists() else np.zeros(0, np.int64)
    return np.append(known, np.zeros(count - len(known), np.int64))


def _checksum(values: NDArray[Any]) -> str:
    """Of the values, however they are stored."""
    digest = hashlib.blake2b(digest_size=8)
    add_values(digest, values)
    return digest.hexdigest()
