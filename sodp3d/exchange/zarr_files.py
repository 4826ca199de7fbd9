"""Zarr groups of other software, formats 2 and 3, in a folder or a zip file: opened without trusting their headers.

Zarr's codec registry holds a pickle filter, so a foreign header could run code on the first read. Only plain codecs
are let through, and chunks whose Blosc header does not fit their file never reach the decoder, which would read on.
"""

import itertools
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.metadata import ArrayV2Metadata

from sodp3d.core.errors import InputError
from sodp3d.data.integrity import chunk_fault

MOST_BYTES = 2**31  # of one array of one episode, or of a chunk
_PLAIN = {"blosc", "zstd", "zlib", "gzip", "lz4", "bz2", "lzma", "bytes", "crc32c", "sharding_indexed", "endian"}
_FAULTS = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, zipfile.BadZipFile, MemoryError)

ZarrArray = zarr.Array[Any]


def open_group(path: Path) -> zarr.Group:
    """The group in a folder or a .zip file. Raises InputError where there is none."""
    if not path.exists():
        raise InputError(f"{path}: nothing is there; name a folder such as demos.zarr, or a zip file of one.")
    try:
        store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else path
        return zarr.open_group(store, mode="r")
    except _FAULTS as error:
        raise InputError(f"{path}: is no Zarr group that can be read ({error}).") from None


def names_in(path: Path, group: str) -> list[str]:
    """What lies in a group of the folder or .zip file, by the names alone. Raises InputError where it is not there."""
    if path.is_file():
        with zipfile.ZipFile(path) as file:
            below = [name.removeprefix(f"{group}/") for name in file.namelist() if name.startswith(f"{group}/")]
        found = {name.partition("/")[0] for name in below if "/" in name}
    else:
        found = {each.name for each in (path / group).iterdir() if each.is_dir()} if (path / group).is_dir() else set()
    if not found:
        raise InputError(f"{path}: has nothing in {group}; expected data/action, data/state, ..., meta/episode_ends.")
    return sorted(found)


def open_array(group: zarr.Group, key: str, where: str) -> ZarrArray:
    """An array of numbers with plain codecs. Raises InputError naming `where` and the key."""
    try:
        found = group[key]
    except _FAULTS as error:
        raise InputError(f"{where}: {key} is missing, or its header is damaged ({error}).") from None
    if not isinstance(found, zarr.Array):
        raise InputError(f"{where}: {key}: expected an array, got a group.")
    odd = sorted(set(_codecs(found)) - _PLAIN)
    if found.dtype.kind not in "biuf" or odd:
        raise InputError(
            f"{where}: {key}: expected numbers in plain codecs, got {found.dtype} by {', '.join(odd) or 'none'}; write "
            f"it with Blosc, zstd, gzip or no compression."
        )
    if not found.shape or math.prod(found.chunks) * found.dtype.itemsize > MOST_BYTES:
        raise InputError(f"{where}: {key}: expected rows in chunks of at most {MOST_BYTES} bytes, got {found.shape}.")
    return found


def _codecs(array: ZarrArray) -> list[str]:
    """Names of all codecs, those inside shards too."""
    metadata = array.metadata
    if isinstance(metadata, ArrayV2Metadata):
        used = [*(metadata.filters or ()), *([metadata.compressor] if metadata.compressor is not None else [])]
        return [str(codec.get_config()["id"]) for codec in used]
    found: list[str] = []
    pending = [codec.to_dict() for codec in metadata.codecs]
    while pending:
        codec = json.loads(json.dumps(pending.pop(), default=str))
        found.append(str(codec["name"]))
        settings = codec.get("configuration") or {}
        pending += [*settings.get("codecs", []), *settings.get("index_codecs", [])]
    return found


def read_rows(array: ZarrArray, folder: Path | None, start: int, stop: int, where: str) -> NDArray[Any]:
    """Rows start..stop-1. Raises InputError naming `where` for chunks that are damaged.

    folder: of the array, for one that lies in files; None in a zip file.
    """
    row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
    if (stop - start) * row_bytes > MOST_BYTES:
        raise InputError(f"{where}: claims {(stop - start) * row_bytes} bytes in an episode, more than any has.")
    if folder is not None:
        _check_chunks(array, folder, start, stop, where)
    try:
        return np.asarray(array[start:stop])
    except _FAULTS as error:
        raise InputError(f"{where}: cannot be read ({error}); get it again, or leave out this episode.") from None


def _check_chunks(array: ZarrArray, folder: Path, start: int, stop: int, where: str) -> None:
    """Raises InputError for a chunk file that its header, or its array, says should be of another size.

    A missing one stands for zeros: Zarr does not write those.
    """
    codecs = [name for name in _codecs(array) if name not in ("bytes", "endian")]
    if codecs not in ([], ["blosc"]):
        return  # their decoders see where the file ends
    size = math.prod(array.chunks) * array.dtype.itemsize
    beside = [range(-(-length // chunk)) for length, chunk in zip(array.shape[1:], array.chunks[1:], strict=True)]
    for first in range(start // array.chunks[0], -(-stop // array.chunks[0])):
        for rest in itertools.product(*beside):
            file = folder / array.metadata.encode_chunk_key((first, *rest))
            reason = chunk_fault(file, size, bool(codecs)) if file.exists() else None
            if reason:
                raise InputError(f"{where}: {reason}; get it again, or leave out this episode.")
