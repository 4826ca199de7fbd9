"""Checks of a store's files that need no decoding.

Nothing here trusts a store: headers that could make a loader run code, or that say something else than the
specification, are refused; chunks that are missing or cut short are found before a decoder sees them.
"""

import itertools
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json
from sodp3d.data.schema import Field

_BLOSC_CODECS = ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")
_MOST_CHUNK_BYTES = 2**31 - 1  # what Blosc can hold; also keeps a damaged header from asking for all memory
HEAD = 16  # bytes of a Blosc header


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, {} where the file is missing. Raises InputError where it holds anything else."""
    if not path.exists():
        return {}
    try:
        value = read_json(path)
    except InputError as error:
        raise InputError(f"{error} The store is damaged.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}; the store is damaged.")
    return value


def check_header(folder: Path, field: Field | None) -> dict[str, Any]:
    """The `.zarray` header of an array folder, refused unless it is plain and tells rows of `field`.

    field: None where nobody has written down what the rows are. Plain is: numeric, no filters, Blosc or no
    compression, chunks of whole numbers. Zarr's codec registry holds a pickle filter, so a foreign header could
    otherwise run code on the first read. Raises InputError.
    """
    header = read_object(folder / ".zarray")
    kind = str(header.get("dtype", "")).lstrip("<>|=")[:1]
    compressor = header.get("compressor")
    plain = compressor is None or _is_blosc(compressor)
    if kind not in tuple("biuf") or header.get("filters") or not plain:
        raise InputError(
            f"{folder}: expected a numeric array with Blosc or no compression and no filters, got dtype "
            f"{header.get('dtype')!r}, filters {header.get('filters')!r}, compressor {compressor!r}; "
            f"this store was not written by sodp3d and is not opened."
        )
    shape: Any = header.get("shape")
    chunks: Any = header.get("chunks")
    dtype = _dtype(header["dtype"])
    sound = dtype is not None and _are_sizes(shape, 0) and _are_sizes(chunks, 1) and len(shape) == len(chunks)
    separator, order = header.get("dimension_separator", "."), header.get("order", "C")
    sound = sound and math.prod(chunks) * dtype.itemsize <= _MOST_CHUNK_BYTES
    if not sound or separator != "." or order not in ("C", "F"):
        raise InputError(
            f"{folder / '.zarray'}: is damaged, or no header of an array in plain chunks (shape {shape!r}, chunks "
            f"{chunks!r}, dtype {header['dtype']!r}); restore it from a copy."
        )
    if field is not None and (dtype.name, tuple(shape[1:])) != (np.dtype(field.dtype).name, tuple(field.shape)):
        raise InputError(
            f"{folder / '.zarray'}: says {dtype.name} {tuple(shape[1:])} per row, but this array holds {field.dtype} "
            f"{tuple(field.shape)}; the store is damaged: restore the file from a copy."
        )
    return header


def faulty_rows(folder: Path, array: "zarr.Array[Any]", start: int, stop: int) -> Iterator[tuple[int, str]]:
    """(first row, reason) of every chunk of rows start..stop-1 that cannot be whole, without decoding."""
    shape, chunks = array.shape, array.chunks
    size, compressed = math.prod(chunks) * array.dtype.itemsize, bool(array.compressors)
    beside = [range(-(-length // chunk)) for length, chunk in zip(shape[1:], chunks[1:], strict=True)]
    for first in range(start // chunks[0], -(-min(stop, shape[0]) // chunks[0])):
        for rest in itertools.product(*beside):
            reason = chunk_fault(folder / ".".join(map(str, (first, *rest))), size, compressed)
            if reason:
                yield first * chunks[0], reason
                break
    if shape[0] < stop:
        yield max(start, shape[0]), f"the array ends at row {shape[0]}"


def chunk_fault(path: Path, size: int, compressed: bool) -> str | None:
    """Why a chunk file of `size` bytes before compression cannot be whole, or None."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            found = os.fstat(file.fileno()).st_size
    except OSError as error:
        return f"chunk {path.name}: {error.strerror}"
    return head_fault(path.name, head, found, size, compressed)


def head_fault(name: str, head: bytes, found: int, size: int, compressed: bool) -> str | None:
    """The same of a chunk of `found` bytes by the first `HEAD` of them.

    A Blosc buffer names what it holds and its own length in bytes 4..8 and 12..16 of its header; the decoder itself
    never sees the file's size.
    """
    if not compressed:
        return None if found == size else f"chunk {name} holds {found} bytes instead of {size}"
    if len(head) < HEAD:
        return f"chunk {name} holds {found} bytes, fewer than a header"
    holds, _, expected = struct.unpack("<3I", head[4:16])
    if found != expected:
        return f"chunk {name} holds {found} bytes instead of {expected}"
    return None if holds == size else f"chunk {name} unpacks to {holds} bytes instead of {size}"


def _is_blosc(compressor: Any) -> bool:
    if not isinstance(compressor, dict) or compressor.get("id") != "blosc":
        return False
    known = compressor.get("cname", "lz4") in _BLOSC_CODECS
    return known and all(isinstance(compressor.get(key, 0), int) for key in ("clevel", "shuffle", "blocksize"))


def _dtype(name: Any) -> Any:
    try:
        return np.dtype(name) if isinstance(name, str) else None
    except (TypeError, ValueError, SyntaxError):
        return None


def _are_sizes(values: Any, least: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) > 0
        and all(isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**62 for value in values)
    )
