"""Where the rows lie of which windows are made: in memory, or in files that are mapped (`mapped.py`).

Shape letters: B windows, T rows of each, E episodes.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.data.store import EpisodeStore

Kinds = dict[str, np.dtype[Any]]
Range = tuple[NDArray[np.float32], NDArray[np.float32]]  # lowest and highest value of each channel (last axis)
_DECODED = 32_000_000  # bytes of a store that are decoded at once


class Rows(Protocol):
    """Rows of several keys, end to end."""

    def expect(self, key: str, rows: NDArray[np.int64]) -> None:
        """Rows (B, T), those of a window in order, are about to be taken."""

    def take(self, key: str, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """(B, T, ...) in the type in which they are held. Raises InputError where they are damaged."""


class RowsInMemory:
    """Rows of the chosen episodes of all stores, in arrays."""

    def __init__(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self.arrays = dict(arrays)

    def expect(self, key: str, rows: NDArray[np.int64]) -> None:
        """Nothing is to be fetched."""

    def take(self, key: str, rows: NDArray[np.int64]) -> NDArray[np.generic]:
        """(B, T, ...)."""
        return self.arrays[key][rows]


def common_shape(stores: Sequence[EpisodeStore], key: str) -> tuple[int, ...]:
    """Of one step of `key`. Raises InputError where stores differ in it, or have no such key."""
    first = stores[0].field(key).shape
    for store in stores[1:]:
        shape = store.field(key).shape
        if shape != first:
            raise InputError(
                f"data/{key}: {first} per step in {stores[0].path} but {shape} in {store.path}; "
                f"stores trained together must agree. Convert both with the same env.points, or train them apart."
            )
    return first


def common_kind(stores: Sequence[EpisodeStore], key: str, half: Collection[str]) -> np.dtype[Any]:
    """How a key is held: images as they are, at a quarter of float32's size, the keys of `half` at half of it."""
    if all(store.field(key).dtype == "uint8" for store in stores):
        return np.dtype(np.uint8)
    return np.dtype(np.float16 if key in half else np.float32)


def row_bytes(shape: Sequence[int], kind: np.dtype[Any]) -> int:
    """Of one step."""
    return int(np.prod(shape, dtype=np.int64)) * kind.itemsize


def held(values: NDArray[Any], kind: np.dtype[Any], limits: Sequence[NDArray[Any]], where: str) -> NDArray[Any]:
    """`values` as they are held. limits: their lowest and highest. Raises InputError beyond the reach of float16."""
    most = np.finfo(np.float16).max
    if kind == np.float16 and (reached := np.abs(limits).max()) > most:
        raise InputError(
            f"{where}: reaches {reached:.6g}, and clouds of at most {most:.0f} m can be held as float16. Give them in "
            f"a frame near the robot: the camera's pose decides that."
        )
    return values.astype(kind, copy=False)


def widened(values: NDArray[Any]) -> NDArray[Any]:
    """Rows as windows have them: float16 as float32, others as they are."""
    if values.dtype != np.float16:
        return values
    import torch  # which takes a tenth of NumPy's time for it

    return torch.from_numpy(values).float().numpy()


def blocks(store: EpisodeStore, key: str, episodes: NDArray[np.int64]) -> "list[tuple[int, int]]":
    """The first episode and the one after the last of each run of neighbours, of some megabytes each."""
    if not len(episodes):
        return []
    field = store.field(key)
    rows = max(_DECODED // max(row_bytes(field.shape, np.dtype(field.dtype)), 1), 1)
    found: list[tuple[int, int]] = []
    for run in np.split(episodes, np.flatnonzero(np.diff(episodes) != 1) + 1):
        first, last = int(run[0]), int(run[-1]) + 1
        while first < last:
            start = store.bounds(first)[0]
            stop = int(np.searchsorted(store.episode_ends, start + rows, side="right"))
            stop = min(max(stop, first + 1), last)
            found.append((first, stop))
            first = stop
    return found


def gather(
    stores: Sequence[EpisodeStore],
    chosen: Sequence[NDArray[np.int64]],
    key: str,
    shape: tuple[int, ...],
    kind: np.dtype[Any],
) -> tuple[NDArray[np.generic], Range | None]:
    """The chosen episodes of all stores end to end, `shape` in all, read in runs of neighbours.

    With them comes their range, None for images.
    """
    result, row = np.empty(shape, kind), 0
    lows, highs = [], []
    for store, episodes in zip(stores, chosen, strict=True):
        for first, last in blocks(store, key, episodes):
            values = store.read(key, first, last)
            limits = ranges(values, np.zeros(1, np.int64)) if kind != np.uint8 else ()
            if limits:
                lows.append(limits[0])
                highs.append(limits[1])
            result[row : row + len(values)] = held(values, kind, limits, f"{store.path}: data/{key}")
            row += len(values)
    return result, as_held((np.concatenate(lows), np.concatenate(highs)), kind) if lows else None


def ranges(values: NDArray[Any], starts: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(E, channels) lowest and highest values of the episodes that begin at the rows `starts`; NaN spreads."""
    points = values.reshape(len(values), -1, values.shape[-1] if values.ndim > 1 else 1)

    def of_rows(reduce: np.ufunc) -> NDArray[Any]:
        if points.shape[1] == 1:
            return points[:, 0]
        # Channel by channel: over the middle axis at once NumPy takes ten times longer.
        return np.stack([reduce.reduce(points[..., channel], axis=1) for channel in range(points.shape[2])], axis=-1)

    low = np.minimum.reduceat(of_rows(np.minimum), starts, axis=0)
    high = np.maximum.reduceat(of_rows(np.maximum), starts, axis=0)
    return low.astype(np.float32), high.astype(np.float32)


def as_held(found: tuple[NDArray[np.float32], NDArray[np.float32]], kind: np.dtype[Any]) -> Range:
    """The range of all of several parts, as the values are held: rounding keeps their order."""
    low, high = found[0].min(axis=0), found[1].max(axis=0)
    if kind == np.float16:
        low, high = low.astype(kind).astype(np.float32), high.astype(kind).astype(np.float32)
    return low, high


def check_memory(needed: Mapping[str, int], limit: int) -> None:
    """Raises InputError where windows need more than `limit` bytes."""
    total = sum(needed.values())
    if total > limit:
        largest = max(needed, key=lambda key: needed[key])
        raise InputError(
            f"data: the windows need {total / 1e9:.1f} GB, most of it data/{largest}, and {limit / 1e9:.1f} GB may be "
            f"used. Take pretrain.memory=mapped, a smaller fraction, fewer episodes, or fewer points."
        )
