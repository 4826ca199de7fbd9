"""Zarr groups of other software, formats 2 and 3, in a folder or a zip file: opened without trusting their headers.

Zarr's codec registry holds a pickle filter, so a foreign header could run code on the first read. Only plain codecs
are let through, and chunks whose Blosc header does not fit their file never reach the decoder, which would read on.
"""

import itertools
import json
import lzma
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numcodecs.errors
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.metadata import ArrayV2Metadata

from sodp3d.core.errors import InputError
from sodp3d.data.integrity import HEAD, chunk_fault, head_fault

MOST_BYTES = 2**31  # of one array of one episode, of a chunk, or of a column of meta
_PLAIN = {"blosc", "zstd", "zlib", "gzip", "lz4", "bz2", "lzma", "bytes", "crc32c", "sharding_indexed", "endian"}
_DAMAGED = (OSError, ValueError, LookupError, TypeError, RuntimeError, AttributeError, ArithmeticError, EOFError)
_FAULTS = (*_DAMAGED, MemoryError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
_UNKNOWN_CODEC = (numcodecs.errors.UnknownCodecError, zarr.errors.UnknownCodecError)  # of formats 2 and 3
_REWRITE = "write it as numbers with Blosc, zstd, gzip or no compression"

Root = Path | zipfile.ZipFile
ZarrArray = zarr.Array[Any]


class NotPlain(InputError):  # noqa: N818
    """An array that may be whole, but is none of numbers in plain codecs."""


def open_root(path: Path) -> Root:
    """The folder, or the zip file, open. Raises InputError where there is none."""
    if not path.exists():
        raise InputError(f"{path}: nothing is there; name a folder such as demos.zarr, or a zip file of one.")
    try:
        return zipfile.ZipFile(path) if path.is_file() else path
    except _FAULTS as error:
        raise InputError(f"{path}: is no Zarr group that can be read ({error}).") from None


def open_group(path: Path) -> zarr.Group:
    """The group in a folder or a .zip file. Raises InputError where it cannot be read."""
    try:
        store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else path
        return zarr.open_group(store, mode="r")
    except _FAULTS as error:
        raise InputError(f"{path}: is no Zarr group that can be read ({error}).") from None


def names_in(root: Root, group: str) -> list[str]:
    """What lies in a group, by the names alone. Raises InputError where it is not there."""
    if isinstance(root, zipfile.ZipFile):
        below = [name.removeprefix(f"{group}/") for name in root.namelist() if name.startswith(f"{group}/")]
        found = {name.partition("/")[0] for name in below if "/" in name}
    else:
        found = {each.name for each in (root / group).iterdir() if each.is_dir()} if (root / group).is_dir() else set()
    if not found:
        where = root.filename if isinstance(root, zipfile.ZipFile) else root
        raise InputError(f"{where}: has nothing in {group}; expected data/action, data/state, ..., meta/episode_ends.")
    return sorted(found)


def open_array(group: zarr.Group, key: str, where: str) -> ZarrArray:
    """An array of numbers with plain codecs. Raises InputError naming `where` and the key.

    It is NotPlain for an array that may be whole, but holds other things, or is packed in another way.
    """
    try:
        found = group[key]
    except _UNKNOWN_CODEC as error:
        raise NotPlain(f"{where}: {key}: is packed in a way that is not read ({error}); {_REWRITE}.") from None
    except _FAULTS as error:
        raise InputError(f"{where}: {key} is missing, or its header is damaged ({error}).") from None
    if not isinstance(found, zarr.Array):
        raise NotPlain(f"{where}: {key}: expected an array, got a group.")
    odd = sorted(set(_codecs(found)) - _PLAIN)
    if found.dtype.kind not in "biuf" or odd:
        raise NotPlain(
            f"{where}: {key}: expected numbers in plain codecs, got {found.dtype} by {', '.join(odd) or 'none'}; "
            f"{_REWRITE}."
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


def read_rows(array: ZarrArray, root: Root, key: str, start: int, stop: int, where: str) -> NDArray[Any]:
    """Rows start..stop-1 of the array that lies at `key`. Raises InputError naming `where` for damaged chunks."""
    row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
    if (stop - start) * row_bytes > MOST_BYTES:
        raise InputError(f"{where}: claims {(stop - start) * row_bytes} bytes, more than any episode has.")
    codecs = [name for name in _codecs(array) if name not in ("bytes", "endian")]
    size = math.prod(array.chunks) * array.dtype.itemsize
    try:
        for name in _chunk_names(array, key, start, stop):
            reason = _chunk_fault(root, name, size, codecs)
            if reason:
                raise InputError(f"{where}: {reason}; get it again.")
        return np.asarray(array[start:stop])
    except InputError:
        raise
    except _FAULTS as error:
        raise InputError(f"{where}: cannot be read ({error}); get it again.") from None


def _chunk_names(array: ZarrArray, key: str, start: int, stop: int) -> Iterator[str]:
    beside = [range(-(-length // chunk)) for length, chunk in zip(array.shape[1:], array.chunks[1:], strict=True)]
    for first in range(start // array.chunks[0], -(-stop // array.chunks[0])):
        for rest in itertools.product(*beside):
            yield f"{key}/{array.metadata.encode_chunk_key((first, *rest))}"


def _chunk_fault(root: Root, name: str, size: int, codecs: list[str]) -> str | None:
    """Why a chunk cannot be whole, or None. A missing one stands for zeros: Zarr does not write those."""
    told = codecs in ([], ["blosc"])  # other decoders see themselves where a file ends
    if isinstance(root, Path):
        return chunk_fault(root / name, size, bool(codecs)) if told and (root / name).exists() else None
    archive = root
    if name not in archive.NameToInfo:
        return None
    claimed = archive.getinfo(name).file_size
    if claimed > MOST_BYTES:
        return f"chunk {name} claims {claimed} bytes"
    if not told:
        return None
    with archive.open(name) as member:
        return head_fault(name.rpartition("/")[2], member.read(HEAD), claimed, size, bool(codecs))
