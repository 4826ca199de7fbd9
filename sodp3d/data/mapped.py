"""A file of every row of a store that training reads, to be mapped: its format, and how it is read.

It is a safetensors file, so that other programs read it too. In the order of their sizes it holds

    digest.<key>            (blocks,) uint64, of each block of rows
    low.<key>, high.<key>   (E, channels) float32, of each episode; not of images
    <key>                   (steps, ...) float32, float16 or uint8: the rows of all episodes, end to end

The metadata of its header are `facts`, of what it was made, with the digest of all tables above; and `seal`, the digest
of the rest of the header. So what is cut or changed is found before anything is learned from it: header and tables
are checked when the file is opened, and each block of rows when it is first read. Opening costs no time that grows with
the rows.

Shape letters: B windows, T rows of each, E episodes.
"""

import hashlib
import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.data.hashing import Identity
from sodp3d.data.rows import Kinds, row_bytes

FORMAT = 1
BLOCK_BYTES = 32_768  # of rows that have one digest: read whole when a row of it is first wanted
_NAMES = {"uint64": "U64", "float32": "F32", "float16": "F16", "uint8": "U8"}
_TABLES = ("digest.", "low.", "high.")
_LONGEST_HEADER = 1_000_000


class Entry(NamedTuple):
    """One array of the file; offset in bytes from the end of the header."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @property
    def stop(self) -> int:
        """The byte after its last."""
        return self.offset + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Unsound(ValueError):  # noqa: N818
    """Why a file cannot be read as it was made."""


def layout(kinds: Kinds, shapes: Mapping[str, tuple[int, ...]], steps: int, episodes: int) -> dict[str, Entry]:
    """Every array of the file for so many rows, in their order, which keeps each aligned to its type."""
    sizes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    for key, kind in kinds.items():
        sizes[f"digest.{key}"] = (-(-steps // block_rows(shapes[key], kind)),), np.dtype(np.uint64)
        sizes[key] = (steps, *shapes[key]), kind
        if kind != np.uint8:
            channels = shapes[key][-1] if shapes[key] else 1
            sizes |= {f"{side}.{key}": ((episodes, channels), np.dtype(np.float32)) for side in ("low", "high")}
    found: dict[str, Entry] = {}
    offset = 0
    for name in sorted(sizes, key=lambda name: (not name.startswith(_TABLES), -sizes[name][1].itemsize, name)):
        found[name] = Entry(*sizes[name], offset)
        offset = found[name].stop
    return found


def is_table(name: str) -> bool:
    """Whether an array tells of rows, and is none of them."""
    return name.startswith(_TABLES)


def block_rows(shape: tuple[int, ...], kind: np.dtype[Any]) -> int:
    """How many rows have one digest."""
    return max(BLOCK_BYTES // max(row_bytes(shape, kind), 1), 1)


def digest(values: Any) -> int:
    """Of a block of rows: 64 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(values).digest()[:8], "little")


def header(entries: Mapping[str, Entry], facts: Mapping[str, Any]) -> bytes:
    """What the file begins with; as long for any digests in `facts`."""
    described: dict[str, Any] = {
        name: {"dtype": _NAMES[entry.dtype.name], "shape": entry.shape, "data_offsets": [entry.offset, entry.stop]}
        for name, entry in entries.items()
    }
    described["__metadata__"] = {"facts": json.dumps(facts, sort_keys=True)}
    described["__metadata__"]["seal"] = _seal(described)
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _seal(described: Mapping[str, Any]) -> str:
    facts = {"facts": described["__metadata__"]["facts"]}
    text = json.dumps({**described, "__metadata__": facts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class MappedRows:
    """The rows of one file. facts: of what it was made; entries: its arrays.

    Any number of processes may map one file, whose pages they share. The kernel keeps in memory what fits.
    """

    def __init__(self, path: Path) -> None:
        """Raises Unsound where the file is cut or changed, InputError where it is not ours, OSError."""
        self.path = path
        with path.open("rb") as file:
            base, described = _read_header(file)
            try:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:  # empty
                raise Unsound("is cut") from error
        self.facts, self.entries = _parse(path, described)
        self._base, end = base, max(entry.stop for entry in self.entries.values())
        if len(self._bytes) != base + end:
            raise Unsound(f"holds {len(self._bytes)} bytes instead of {base + end}")
        arrays = {name: self._array(entry) for name, entry in self.entries.items()}
        self._tables = {name: values for name, values in arrays.items() if is_table(name)}
        self._rows = {name: values for name, values in arrays.items() if not is_table(name)}
        if tables_digest(self._tables) != self.facts["tables"]:
            raise Unsound("does not hold the digests that were written")
        self._sound = {key: np.zeros(len(self._tables[f"digest.{key}"]), np.bool_) for key in self._rows}
        if hasattr(self._bytes, "madvise"):
            self._bytes.madvise(mmap.MADV_RANDOM)  # reading ahead would fetch twenty times what a window needs

    def _array(self, entry: Entry) -> NDArray[Any]:
        count = int(np.prod(entry.shape, dtype=np.int64))
        return np.frombuffer(self._bytes, entry.dtype, count, self._base + entry.offset).reshape(entry.shape)

    @property
    def data(self) -> Identity:
        """What names the store's data, as `hashing.identify` does."""
        return Identity(*self.facts["data"])

    def ranges(self, key: str, episodes: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(E, channels) lowest and highest values of the given episodes."""
        return self._tables[f"low.{key}"][episodes], self._tables[f"high.{key}"][episodes]

    def expect(self, key: str, rows: NDArray[np.int64]) -> None:
        """Have the kernel fetch rows (B, T), those of a window in order, side by side instead of one by one."""
        if not hasattr(self._bytes, "madvise"):
            return
        entry, per_block = self.entries[key], self._rows_per_block(key)
        first, last = rows[:, 0], rows[:, -1]
        # A block that has not been checked is about to be read whole.
        start = np.where(self._sound[key][first // per_block], first, first // per_block * per_block)
        stop = np.where(self._sound[key][last // per_block], last + 1, (last // per_block + 1) * per_block)
        size = row_bytes(entry.shape[1:], entry.dtype)
        begin = (self._base + entry.offset + start * size) // mmap.PAGESIZE * mmap.PAGESIZE
        end = np.minimum(self._base + entry.offset + stop * size, len(self._bytes))
        for place, length in zip(begin.tolist(), (end - begin).tolist(), strict=True):
            self._bytes.madvise(mmap.MADV_WILLNEED, place, length)

    def take(self, key: str, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """(B, T, ...). Raises InputError where a block of them is not what was written."""
        blocks = rows // self._rows_per_block(key)
        fresh = blocks[~self._sound[key][blocks]]
        if len(fresh):
            self._check(key, np.unique(fresh))
        return self._rows[key][rows]

    def _rows_per_block(self, key: str) -> int:
        entry = self.entries[key]
        return block_rows(entry.shape[1:], entry.dtype)

    def _check(self, key: str, blocks: NDArray[np.int64]) -> None:
        size, values, digests = self._rows_per_block(key), self._rows[key], self._tables[f"digest.{key}"]
        for block in blocks.tolist():
            if digest(values[block * size : (block + 1) * size]) != int(digests[block]):
                raise InputError(
                    f"{self.path}: {key} of steps {block * size} to {min((block + 1) * size, len(values)) - 1} is not "
                    f"what was written, so the file or the disk is damaged. Nothing was learned from it. Remove the "
                    f"file and run the same command again: it is made anew from the store."
                )
        self._sound[key][blocks] = True


def tables_digest(tables: Mapping[str, NDArray[Any]]) -> str:
    """Of all tables, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(tables):
        found.update(name.encode())
        found.update(tables[name].tobytes())
    return found.hexdigest()


def _read_header(file: Any) -> tuple[int, Any]:
    """Where the data begins, and the header as JSON. Raises Unsound."""
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= _LONGEST_HEADER:
        raise Unsound("has a damaged header")
    try:
        return 8 + length, json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise Unsound("has a damaged header") from error


def _parse(path: Path, described: Any) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Facts and arrays of a header. Raises Unsound, or InputError for the header of another program's file."""
    metadata = described.pop("__metadata__", {}) if isinstance(described, dict) else {}
    if not isinstance(metadata, dict) or "seal" not in metadata or "facts" not in metadata:
        raise InputError(f"{path}: was not made by sodp3d and is not overwritten. Move it away and try again.")
    if metadata["seal"] != _seal({**described, "__metadata__": metadata}):
        raise Unsound("has a changed header")
    facts = json.loads(metadata["facts"])
    if facts.get("format") != FORMAT:
        raise Unsound(f"is of format {facts.get('format')}")
    kinds = {short: np.dtype(name) for name, short in _NAMES.items()}
    return facts, {
        name: Entry(tuple(entry["shape"]), kinds[entry["dtype"]], entry["data_offsets"][0])
        for name, entry in described.items()
    }
