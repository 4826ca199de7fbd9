"""The Zarr arrays of a store: how they are made, opened, checked and committed. Used by `store.py` alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from sodp3d.data.files import PARTIAL, check_header, chunk_fault, read_json, replace_file
from sodp3d.data.schema import METADATA, Field, Specification
from sodp3d.errors import InputError

_CHUNK_BYTES, _CHUNK_STEPS = 1_500_000, 1000  # large chunks: zarr 3 pays about a millisecond for each
_ENDS_PER_CHUNK = 8192
_ENDS = "meta/episode_ends"

Arrays = dict[str, zarr.Array[Any]]


class CorruptEpisode(InputError):  # noqa: N818
    """Episode `index` cannot be read because a file of data/`key` is missing or damaged."""

    def __init__(self, path: Path, index: int, key: str, reason: str) -> None:
        super().__init__(
            f"{path}: episode {index}: data/{key} cannot be read ({reason}). Leave this episode out, or restore the "
            f"file from a copy."
        )
        self.index, self.key = index, key


def make_array(group: zarr.Group, name: str, length: int, field: Field, compress: bool = True) -> None:
    """One array of `length` rows in chunks of at most _CHUNK_BYTES and _CHUNK_STEPS rows."""
    row_bytes = int(np.prod(field.shape)) * np.dtype(field.dtype).itemsize
    rows = min(max(_CHUNK_BYTES // row_bytes, 1), _CHUNK_STEPS) if compress else _ENDS_PER_CHUNK
    group.create_array(
        name,
        shape=(length, *field.shape),
        chunks=(rows, *field.shape),
        dtype=field.dtype,
        fill_value=0,
        compressors=numcodecs.Blosc(cname="zstd", clevel=3, shuffle=1) if compress else None,
    )


def make_store(path: Path, specification: Specification) -> None:
    """The groups and empty arrays of a new store."""
    root = zarr.open_group(path, mode="w-", zarr_format=2)
    data, meta = root.create_group("data"), root.create_group("meta")
    for key, field in specification.items():
        make_array(data, key, 0, field)
    for name, dtype in METADATA.items():
        make_array(meta, name, 0, Field((), dtype))
    make_array(meta, "episode_ends", 0, Field((), "int64"), compress=False)


def open_arrays(path: Path, group: str, writable: bool) -> Arrays:
    """The arrays of a group by name, their headers checked first. Raises InputError for foreign headers."""
    folders = sorted(header.parent for header in (path / group).glob("*/.zarray"))
    for folder in folders:
        check_header(folder)
    # Chunks of zeros must be written too: a missing file then always means a loss.
    with zarr.config.set({"array.write_empty_chunks": True}):
        mode = "r+" if writable else "r"
        return {folder.name: zarr.open_array(folder, mode=mode, zarr_format=2) for folder in folders}


def read_ends(path: Path) -> NDArray[np.int64]:
    """(E,) committed episode ends. Raises InputError unless they increase from at least 1."""
    folder = path / _ENDS
    count = int(check_header(folder)["shape"][0])
    chunks = -(-count // _ENDS_PER_CHUNK)
    try:
        ends = np.concatenate([np.fromfile(folder / str(chunk), "<i8") for chunk in range(chunks)] or [np.zeros(0)])
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; the store is damaged: restore this file from a copy.") from error
    ends = ends[:count].astype(np.int64)
    if len(ends) != count or (np.diff(ends, prepend=0) < 1).any():
        raise InputError(f"{folder}: expected {count} increasing episode ends; restore this file from a copy.")
    return ends


def commit_ends(path: Path, ends: NDArray[np.int64]) -> None:
    """Publish `ends`, one longer than before: the last chunk first, then, as the commit, the grown shape."""
    folder, chunk = path / _ENDS, (len(ends) - 1) // _ENDS_PER_CHUNK
    values = np.zeros(_ENDS_PER_CHUNK, "<i8")
    tail = ends[chunk * _ENDS_PER_CHUNK :]
    values[: len(tail)] = tail
    replace_file(folder / str(chunk), values.tobytes())
    header = read_json(folder / ".zarray")
    header["shape"] = [len(ends)]
    replace_file(folder / ".zarray", json.dumps(header, indent=2).encode())


def faulty_rows(path: Path, array: "zarr.Array[Any]", start: int, stop: int) -> Iterator[tuple[int, str]]:
    """(first row, reason) of every chunk of rows start..stop-1 that cannot be whole, without decoding."""
    rows, tail = array.chunks[0], ".0" * (array.ndim - 1)
    for chunk in range(start // rows, -(-stop // rows)):
        reason = chunk_fault(path / f"{chunk}{tail}")
        if reason:
            yield chunk * rows, reason
    if array.shape[0] < stop:
        yield max(start, array.shape[0]), f"the array ends at row {array.shape[0]}"


def cut(path: Path, arrays: Arrays, length: int) -> None:
    """Shorten arrays that a killed writer left longer than `length`, and remove its unfinished files."""
    for name, array in arrays.items():
        if array.shape[0] < length:
            raise InputError(f"{path / name}: holds {array.shape[0]} rows of {length} committed ones; it is damaged.")
        if array.shape[0] > length:
            array.resize((length, *array.shape[1:]))
        for partial in (path / name).glob(f"*{PARTIAL}"):
            partial.unlink(missing_ok=True)
