"""The Zarr arrays of a store: how they are made, opened, checked and committed. Used by `store.py` alone."""

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.files import PARTIAL, replace_file, write_json
from sodp3d.core.mappings import plain
from sodp3d.data.integrity import check_header, chunk_fault, read_object
from sodp3d.data.schema import METADATA, SCHEMA_VERSION, Field, Specification

_CHUNK_BYTES, _CHUNK_STEPS = 1_500_000, 1000  # large chunks: zarr 3 pays about a millisecond for each
_ROWS_PER_COLUMN_CHUNK = 8192

ZarrArrays = dict[str, zarr.Array[Any]]


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
    rows = min(max(_CHUNK_BYTES // row_bytes, 1), _CHUNK_STEPS) if compress else _ROWS_PER_COLUMN_CHUNK
    group.create_array(
        name,
        shape=(length, *field.shape),
        chunks=(rows, *field.shape),
        dtype=field.dtype,
        fill_value=0,
        compressors=numcodecs.Blosc(cname="zstd", clevel=3, shuffle=1) if compress else None,
    )


def make_store(path: Path, attributes: Mapping[str, Any], specification: Specification) -> None:
    """A new store without episodes, whole or not at all: made beside `path`, then renamed."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        root = zarr.open_group(partial, mode="w-", zarr_format=2)
        data, meta = root.create_group("data"), root.create_group("meta")
        for key, field in specification.items():
            make_array(data, key, 0, field)
        for name, dtype in {**METADATA, "episode_ends": "int64"}.items():
            make_array(meta, name, 0, Field((), dtype), compress=False)
        fields = {key: field._asdict() for key, field in specification.items()}
        described = {**attributes, "schema_version": SCHEMA_VERSION, "specification": fields}
        write_json(partial / ".zattrs", plain(described))
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def add_array(path: Path, key: str, length: int, field: Field) -> None:
    """An array of zeros data/`key` in the store `path`, in place of whatever was there."""
    folder = path / "data" / key
    if folder.exists():
        folder.rename(path / f"{uuid.uuid4().hex}{PARTIAL}")
        remove_partial(path)
    make_array(zarr.open_group(path / "data", mode="r+", zarr_format=2), key, length, field)


def remove_partial(path: Path) -> None:
    """Remove what a killed writer left unfinished."""
    for folder in path.glob(f"*{PARTIAL}"):
        shutil.rmtree(folder, ignore_errors=True)
    for file in path.glob(f"*/*/*{PARTIAL}"):
        file.unlink(missing_ok=True)


def open_arrays(path: Path, writable: bool) -> ZarrArrays:
    """The arrays of a group's folder by name, their headers checked first. Raises InputError for foreign headers."""
    folders = sorted(header.parent for header in path.glob("*/.zarray"))
    for folder in folders:
        check_header(folder)
    # Chunks of zeros must be written too: a missing file then always means a loss.
    with zarr.config.set({"array.write_empty_chunks": True}):
        mode = "r+" if writable else "r"
        return {folder.name: zarr.open_array(folder, mode=mode, zarr_format=2) for folder in folders}


def read_column(folder: Path) -> NDArray[Any]:
    """(E,) values of an array of `meta`, which are never compressed. Raises InputError when a file is not whole."""
    header = check_header(folder)
    count, dtype = int(header["shape"][0]), np.dtype(header["dtype"])
    try:
        files = [folder / str(chunk) for chunk in range(-(-count // _ROWS_PER_COLUMN_CHUNK))]
        values = np.concatenate([np.zeros(0, dtype), *(np.fromfile(file, dtype) for file in files)])[:count]
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; the store is damaged: restore this file from a copy.") from error
    if len(values) != count:
        raise InputError(f"{folder}: holds {len(values)} values instead of {count}; restore this file from a copy.")
    return values


def write_column(folder: Path, values: NDArray[Any]) -> None:
    """Append the last of `values` to an array of `meta`, or cut it to a shorter length: chunk first, then the shape.

    The value lies beyond the shape until the shape's file is replaced, so that replacement is the whole change. For
    `episode_ends` it is the commit.
    """
    header = read_object(folder / ".zarray")
    if len(values) > header["shape"][0]:
        chunk = (len(values) - 1) // _ROWS_PER_COLUMN_CHUNK
        tail = values[chunk * _ROWS_PER_COLUMN_CHUNK :]
        padded = np.zeros(_ROWS_PER_COLUMN_CHUNK, header["dtype"])
        padded[: len(tail)] = tail
        replace_file(folder / str(chunk), padded.tobytes())
    header["shape"] = [len(values)]
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


def cut(path: Path, arrays: ZarrArrays, length: int) -> None:
    """Shorten arrays that a killed writer left longer than `length` rows."""
    for name, array in arrays.items():
        if array.shape[0] < length:
            raise InputError(f"{path / name}: holds {array.shape[0]} rows of {length} committed ones; it is damaged.")
        if array.shape[0] > length:
            array.resize((length, *array.shape[1:]))
