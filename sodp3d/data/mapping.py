"""The file of a store's rows that training maps (`mapped.py`): made once, and again where it is missing or stale.

It lies beside the store, as `episodes.zarr.<keys>.safetensors`, and may be removed at any time. One process makes it,
under a lock, others wait for it; it has its name only once it is whole and on the disk.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.files import Lock, disk_errors, partial_path, remove_leftovers, require_space
from sodp3d.data.hashing import Identity, identify
from sodp3d.data.mapped import (
    FORMAT,
    Entry,
    MappedRows,
    Unsound,
    block_rows,
    digest,
    header,
    is_table,
    layout,
    tables_digest,
)
from sodp3d.data.rows import Kinds, blocks, held, ranges, row_bytes
from sodp3d.data.store import EpisodeStore

log = logging.getLogger(__name__)
_TELL_EVERY = 10.0  # seconds
_NO_DIGEST = "0" * 64


def mapped_path(store: EpisodeStore, kinds: Kinds) -> Path:
    """Of the file that holds the keys of `kinds`."""
    return store.path.with_name(f"{store.path.name}.{'-'.join(sorted(kinds))}.safetensors")


def open_rows(store: EpisodeStore, kinds: Kinds, chosen: NDArray[np.int64]) -> MappedRows:
    """All episodes' rows of the keys of `kinds`, each held as its kind, from the store's file; made if need be.

    chosen: the episodes that will be read. Raises InputError where a key does not hold them, where the disk is too
    small, refuses or holds another program's file of that name, and CorruptEpisode.
    """
    for key in kinds:
        if len(chosen) and int(chosen.max()) >= store.readable(key):
            store.read(key, int(chosen.max()), int(chosen.max()) + 1)  # says what is missing and how it is made
    path = mapped_path(store, kinds)
    found = _open_sound(path, store, kinds)
    if isinstance(found, MappedRows):
        return found
    lock = path.with_name(f"{path.name}.lock")
    with Lock(lock, f"{path}: waiting for {{holder}}, which is making it", wait=True):
        remove_leftovers(path, seconds=0)
        found = _open_sound(path, store, kinds)  # another process may have made it meanwhile
        if isinstance(found, MappedRows):
            return found
        if found:
            log.warning("%s: %s, so it is made again", path, found)
        _make(path, store, kinds)
        return MappedRows(path)


def _open_sound(path: Path, store: EpisodeStore, kinds: Kinds) -> MappedRows | str:
    """The file, or what is amiss with it: "" where it is not there."""
    try:
        found = MappedRows(path)
    except FileNotFoundError:
        return ""
    except Unsound as error:
        return str(error)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); move it away.") from error
    if found.entries != _layout(store, kinds) or not _is_of(found, store, kinds):
        return "was made of other data than the store holds now"
    return found


def _layout(store: EpisodeStore, kinds: Kinds) -> dict[str, Entry]:
    episodes = min(store.readable(key) for key in kinds)
    steps = int(store.episode_ends[episodes - 1]) if episodes else 0
    return layout(kinds, {key: store.field(key).shape for key in kinds}, steps, episodes)


def _is_of(found: MappedRows, store: EpisodeStore, kinds: Kinds) -> bool:
    """Whether a file was made of what the store holds now."""
    now, then = fingerprint(store, kinds), found.facts["fingerprint"]
    return now == then if now and then else _identify(store, kinds) == found.data


def _identify(store: EpisodeStore, kinds: Kinds) -> Identity:
    return identify([store], [key for key in kinds if key != "action"])


def fingerprint(store: EpisodeStore, keys: Iterable[str]) -> str | None:
    """Of the checksums that the store notes of `keys`: another one for other values, without reading them.

    None where an earlier release left steps without checksums.
    """
    noted: dict[str, Any] = {}
    for key in sorted(keys):
        if key in store.specification:
            if not store.checksums.all():
                return None
            noted[key] = store.field(key)
            continue
        state = max((state for state in store.conversions.values() if key in state["keys"]), key=_episodes)
        checked = state.get("checked") or {}
        if checked.get("episodes") != state["episodes"]:
            return None
        noted[key] = store.field(key), state["episodes"], state["parameters"], checked["checksums"][key]
    columns = {"ends": store.episode_ends, "checksums": store.checksums, **store.metadata}
    found = hashlib.sha256(json.dumps([noted, sorted(columns)], sort_keys=True).encode())
    for name in sorted(columns):
        found.update(columns[name].tobytes())
    return found.hexdigest()


def _episodes(state: dict[str, Any]) -> int:
    return int(state["episodes"])


def _make(path: Path, store: EpisodeStore, kinds: Kinds) -> None:
    """Write the file. Raises InputError where the disk is full or refuses; then nothing is left of it."""
    entries = _layout(store, kinds)
    facts = {"format": FORMAT, "tables": _NO_DIGEST, "fingerprint": fingerprint(store, kinds)}
    facts["data"] = _identify(store, kinds)
    base = len(header(entries, facts))
    size = base + max(entry.stop for entry in entries.values())
    require_space(path.parent, size)
    log.info("%s: making it, %.2f GB, once for all runs", path, size / 1e9)
    partial = partial_path(path)
    try:
        with disk_errors(path, "nothing of it was left behind"):
            with partial.open("wb") as file:
                tables: dict[str, NDArray[Any]] = {}
                for key in kinds:
                    file.seek(base + entries[key].offset)
                    tables |= _write_rows(file, store, key, entries[key], min(map(store.readable, kinds)))
                file.seek(0)
                file.write(header(entries, {**facts, "tables": tables_digest(tables)}))
                for name in (name for name in entries if is_table(name)):
                    file.write(tables[name].tobytes())
                file.truncate(size)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write_rows(file: BinaryIO, store: EpisodeStore, key: str, entry: Entry, episodes: int) -> dict[str, NDArray[Any]]:
    """Write all rows of one key; the tables that tell of them."""
    per_block = block_rows(entry.shape[1:], entry.dtype) * row_bytes(entry.shape[1:], entry.dtype)
    digests, rest = [], b""
    lows, highs, told = [], [], time.monotonic()
    for first, last in blocks(store, key, np.arange(episodes)):
        values = store.read(key, first, last)
        starts = np.concatenate([[0], store.episode_ends])[first:last] - store.bounds(first)[0]
        limits = ranges(values, starts) if entry.dtype != np.uint8 else ()
        if limits:
            lows.append(limits[0])
            highs.append(limits[1])
        content = held(values, entry.dtype, limits, f"{store.path}: data/{key}").tobytes()
        file.write(content)
        rest += content
        whole = len(rest) // per_block * per_block
        digests += [digest(rest[start : start + per_block]) for start in range(0, whole, per_block)]
        rest = rest[whole:]
        if time.monotonic() - told > _TELL_EVERY:
            told = time.monotonic()
            log.info("%s: %s of %d of %d episodes", store.path, key, last, episodes)
    if rest:
        digests.append(digest(rest))
    tables: dict[str, NDArray[Any]] = {f"digest.{key}": np.array(digests, np.uint64)}
    if lows:
        tables |= {f"low.{key}": np.concatenate(lows), f"high.{key}": np.concatenate(highs)}
    return tables
