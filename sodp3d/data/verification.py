"""Whether all that a store says it holds can be read, and is what was committed. Used by `EpisodeStore.verify`."""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sodp3d.data.arrays import CorruptEpisode
from sodp3d.data.columns import add_values, checksum_of, continued_checksum

if TYPE_CHECKING:
    from sodp3d.data.store import EpisodeStore


def problems(store: "EpisodeStore") -> Iterator[str]:
    """One line for each thing that is amiss. Decodes everything, key by key."""
    for name, column in store.metadata.items():
        if not np.isfinite(column).all():
            yield f"{store.path}: meta/{name} holds NaN or infinity"
    yield from _collected(store)
    for output in store.conversions:
        yield from _derived(store, output)


def _collected(store: "EpisodeStore") -> Iterator[str]:
    digests = {int(index): hashlib.blake2b(digest_size=8) for index in np.flatnonzero(store.checksums)}
    for key in sorted(store.specification):
        for index in range(len(store)):
            values = _read(store, key, index)
            if isinstance(values, str):
                yield values
                digests.pop(index, None)
            elif index in digests:
                add_values(digests[index], values)
    for index, digest in digests.items():
        if checksum_of(digest) != store.checksums[index]:
            yield (
                f"{store.path}: episode {index}: its values are not those that were committed. Leave this episode out, "
                f"or restore data from a copy."
            )


def _derived(store: "EpisodeStore", output: str) -> Iterator[str]:
    state = store.conversions[output]
    checked = state.get("checked") or {}
    for key in state["keys"]:
        if key not in store.keys:
            made = state["episodes"]
            if made:
                yield f"{store.path}: data/{key} is missing, of which {made} episodes were made; convert again"
            continue
        checksum: str | None = ""
        for index in range(store.readable(key)):
            values = _read(store, key, index)
            if isinstance(values, str):
                yield values
                checksum = None
            elif checksum is not None:
                checksum = continued_checksum(checksum, values)
        complete = checked.get("episodes") == state["episodes"] == store.readable(key)
        if complete and checksum is not None and checksum != checked["checksums"][key]:
            yield f"{store.path}: data/{key}: its values are not those that were made; remove it, and convert again"


def _read(store: "EpisodeStore", key: str, index: int) -> NDArray[np.generic] | str:
    """An episode's values, or what is amiss with them."""
    try:
        values = store.read(key, index, index + 1)
    except CorruptEpisode as error:
        return str(error)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return f"{store.path}: episode {index}: data/{key} holds NaN or infinity"
    return values
