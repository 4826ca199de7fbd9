"""Names of data: hashes over everything that is learned from, so that a result can be led back to its data.

A hash is over decoded values: recompressing a store or cutting it into other chunks leaves it as it is, and any other
value of a key that was learned from, of a reward, a seed or an episode's end gives another one.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sodp3d.data.store import CorruptEpisode, EpisodeStore

VERSION = "v2-"  # before every hash of today, as those of earlier releases covered less
_ALWAYS = ("action", "reward")
_NEVER_LEARNED_FROM = ("depth", "sim_state", "success")  # other keys are made from the first two; success is a count
_BLOCK_BYTES = 32_000_000  # decoded at once
_SHOWN = 8  # hexadecimal digits, in tables


class Identity(NamedTuple):
    """What names the data of one or several stores, by today's hash and by that of earlier releases."""

    current: str
    earlier: str

    def agreeing_with(self, recorded: str) -> str | None:
        """The hash to compare with a recorded one, and so to go on under: `recorded` itself, or None for other data."""
        return recorded if recorded in self else None


def identify(stores: Sequence[EpisodeStore], keys: Sequence[str]) -> Identity:
    """The identity of all `stores` together, of which `keys` are learned from beside actions and rewards."""
    return together([Identity(data_hash(store, keys), earlier_data_hash(store)[:16]) for store in stores])


def together(identities: Sequence[Identity]) -> Identity:
    """The identity of several stores' data, from that of each."""
    return Identity(*("+".join(names) for names in zip(*identities, strict=True)))


def data_hash(store: EpisodeStore, keys: Sequence[str] | None = None) -> str:
    """`v2-` and 32 hexadecimal digits over all values that are learned from.

    These are the step values of `keys` (by default what was collected, without depth and simulator states), actions
    and rewards, each with its shape and type; and of each episode its end, seed, agent step, return and success, as far
    as recorded. Of clouds and images the converted episodes count. Raises InputError for keys that are not there,
    CorruptEpisode.
    """
    collected = [key for key in store.specification if key not in _NEVER_LEARNED_FROM]
    chosen = {*(collected if keys is None else keys), *(key for key in _ALWAYS if key in store.specification)}
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(chosen):
        field, episodes = store.field(key), store.readable(key)
        digest.update(f"{key} {tuple(field.shape)} {field.dtype} {episodes}\n".encode())
        for block in _blocks(store, key, episodes):
            digest.update(_bytes(block))
    columns = {"episode_ends": store.episode_ends, **store.metadata}
    for name, values in columns.items():
        digest.update(f"{name} {len(values)}\n".encode())
        digest.update(_bytes(values))
    return VERSION + digest.hexdigest()


def learned_hashes(store: EpisodeStore) -> dict[str, str]:
    """What a planner may see of the store (`state`, clouds, images), each with the hash that its checkpoints note.

    A damaged key is left out: nothing can be learned from it.
    """
    found = {}
    recorded = [key for key in ("state", "point_cloud", "image") if key in store.specification]
    for key in (*recorded, *(output for output in store.conversions if output not in _NEVER_LEARNED_FROM)):
        if key in store.keys and "agent_pos" in store.keys and store.readable(key):
            with suppress(CorruptEpisode):
                found[key] = data_hash(store, ["agent_pos", key])
    return found


def earlier_data_hash(store: EpisodeStore) -> str:
    """What releases before `v2-` noted: sha256 over the episode ends, actions and seeds alone."""
    digest = hashlib.sha256(np.ascontiguousarray(store.episode_ends, "<i8").tobytes())
    digest.update(np.ascontiguousarray(store.read("action"), "<f4").tobytes())
    if "seed" in store.metadata:
        digest.update(np.ascontiguousarray(store.metadata["seed"], "<i8").tobytes())
    return digest.hexdigest()


def short_hash(recorded: str) -> str:
    """A recorded hash, or several joined by `+`, as tables and file names show it."""
    parts = recorded.split("+")
    return "+".join(part[: _SHOWN + len(VERSION) * part.startswith(VERSION)] for part in parts)


def _blocks(store: EpisodeStore, key: str, episodes: int) -> Iterator[NDArray[Any]]:
    """The values of the first `episodes` episodes, some at a time."""
    field = store.field(key)
    step = max(int(np.prod(field.shape)) * np.dtype(field.dtype).itemsize, 1)
    ends = store.episode_ends[:episodes]
    first = 0
    while first < episodes:
        start = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, start + _BLOCK_BYTES // step, side="right")), first + 1)
        yield store.read(key, first, last)
        first = last


def _bytes(values: NDArray[Any]) -> bytes:
    """The same on every machine: in C order, lowest byte first."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
