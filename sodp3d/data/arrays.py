"""The Zarr arrays of a store: how they are made, opened, checked and cut. Used by `store.py` and `columns.py` alone."""

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr

from sodp3d.core.errors import InputError
from sodp3d.core.files import PARTIAL, fsync, remove, remove_leftovers, replace_file
from sodp3d.data.integrity import check_header, faulty_rows, read_object
from sodp3d.data.schema import Field, Specification

_CHUNK_BYTES, _CHUNK_STEPS = 1_500_000, 1000  # large chunks: zarr 3 pays about a millisecond for each

ZarrArrays = dict[str, zarr.Array[Any]]


class CorruptEpisode(InputError):  # noqa: N818
    """Episode `index` cannot be read because a file of data/`key` is missing or damaged."""

    def __init__(self, path: Path, index: int, key: str, reason: str) -> None:
        super().__init__(
            f"{path}: episode {index}: data/{key} cannot be read ({reason}). Leave this episode out, or restore the "
            f"file from a copy."
        )
        self.index, self.key = index, key


def make_array(folder: Path, length: int, field: Field) -> None:
    """One array of `length` rows in chunks of at most _CHUNK_BYTES and _CHUNK_STEPS rows."""
    row_bytes = int(np.prod(field.shape)) * np.dtype(field.dtype).itemsize
    rows = min(max(_CHUNK_BYTES // row_bytes, 1), _CHUNK_STEPS)
    zarr.create_array(
        folder,
        shape=(length, *field.shape),
        chunks=(rows, *field.shape),
        dtype=field.dtype,
        fill_value=0,
        compressors=numcodecs.Blosc(cname="zstd", clevel=3, shuffle=1),
        zarr_format=2,
    )


def add_array(path: Path, key: str, length: int, field: Field) -> None:
    """An array of zeros data/`key` in the store `path`, in place of whatever was there."""
    folder = path / "data" / key
    if folder.exists():
        folder.rename(path / f"{uuid.uuid4().hex}{PARTIAL}")
        remove_partial(path)
    make_array(folder, length, field)


def remove_partial(path: Path) -> None:
    """Remove what killed writers left unfinished in the store `path` and beside it. Only for who holds its lock."""
    remove_leftovers(path, seconds=0)
    for depth in ("*", "*/*", "*/*/*"):
        for leftover in path.glob(f"{depth}{PARTIAL}"):
            remove(leftover)


def open_arrays(path: Path, fields: Mapping[str, Field | None], writable: bool) -> ZarrArrays:
    """Those arrays of a group's folder that `fields` name and that are there, in the order of their names.

    fields: what the rows of each array are, None where that is not written down. Raises InputError for a header that
    says something else, or that is not plain.
    """
    return {
        key: open_array(path / key, fields[key], writable)
        for key in sorted(fields)
        if (path / key / ".zarray").exists()
    }


def open_array(folder: Path, field: Field | None, writable: bool = False) -> "zarr.Array[Any]":
    """An array whose header has been checked. Raises InputError."""
    check_header(folder, field)
    # Chunks of zeros must be written too: a missing file then always means a loss.
    with zarr.config.set({"array.write_empty_chunks": True}):
        try:
            return zarr.open_array(folder, mode="r+" if writable else "r", zarr_format=2)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{folder / '.zarray'}: is damaged ({error}); restore it from a copy.") from error


def check_complete(path: Path, arrays: ZarrArrays, specification: Specification, length: int) -> None:
    """Raises InputError unless all arrays of the specification are there, and all hold `length` rows.

    The chunk that the next episode goes into must be whole too; of others `verify` tells.
    """
    missing = sorted(set(specification) - set(arrays))
    if missing:
        raise InputError(
            f"{path / missing[0]}: is missing or has no .zarray, so no episode can be appended. Nothing was changed: "
            f"restore it from a copy, or save the other arrays by reading them."
        )
    for key, array in arrays.items():
        if array.shape[0] < length:
            remedy = "restore its files from a copy" if key in specification else "remove it, and convert again"
            raise InputError(
                f"{path / key}: holds {array.shape[0]} rows of {length} committed ones. Nothing was changed: {remedy}."
            )
    for key in specification:
        reason = _last_fault(path / key, arrays[key], length) if length % arrays[key].chunks[0] else None
        if reason:
            raise InputError(
                f"{path / key}: the chunk that the next episode would go into cannot be read ({reason}). Nothing was "
                f"changed: restore it from a copy."
            )


def _last_fault(folder: Path, array: "zarr.Array[Any]", length: int) -> str | None:
    for _, reason in faulty_rows(folder, array, length - 1, length):
        return reason
    try:
        array[length - 1 : length]
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        return str(error)
    return None


def cut(folder: Path, array: "zarr.Array[Any]", length: int) -> bool:
    """Shorten an array that a killed writer left longer than `length` rows; whether it was.

    Not by `zarr.Array.resize`, which would visit every chunk that a damaged header claims.
    """
    if array.shape[0] <= length:
        return False
    for file in folder.glob("[0-9]*"):
        first = file.name.split(".")[0]
        if first.isdecimal() and int(first) * array.chunks[0] >= length:
            file.unlink()
    header = read_object(folder / ".zarray")
    header["shape"][0] = length
    replace_file(folder / ".zarray", json.dumps(header, indent=2).encode())
    return True


def sync_rows(folder: Path, array: "zarr.Array[Any]", start: int, stop: int) -> None:
    """Wait until the rows start..stop-1 of an array, and its header, are on the disk. Raises OSError."""
    tail = ".0" * (array.ndim - 1)
    for chunk in range(start // array.chunks[0], -(-stop // array.chunks[0])):
        fsync(folder / f"{chunk}{tail}")
    fsync(folder / ".zarray")
    fsync(folder)
