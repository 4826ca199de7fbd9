"""Training windows over one or several stores, held in memory and drawn without building them beforehand.

The window of step t of an episode: observations t-To+1 .. t and actions t-To+1 .. t-To+Tp, so that the executed slice
of a plan starts at index To-1 (DP3). Where a window reaches past its episode the first or last step is repeated; it
never reaches into another episode. Every step of every episode is the current step of exactly one window.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.machine import free_bytes
from sodp3d.data.schema import QUALITIES
from sodp3d.data.store import EpisodeStore

log = logging.getLogger(__name__)
_SUCCESS = ("success_final", "success_count", "success_any")


def select_episodes(
    store: EpisodeStore,
    fraction: float = 1.0,
    max_episodes: int | None = None,
    success: str | None = None,
    quality: str = "suboptimal",
    successes_at_most: float = 1.0,
    metric: str = "count",
) -> NDArray[np.int64]:
    """Indices of the store's episodes from one part of the agent's experience.

    quality: "suboptimal" the first `fraction` of all steps (the paper takes the first 30 % or 50 %), "nearoptimal" the
    last `fraction` (C.2), "all". At least one episode. success: then only episodes that succeeded by "final", "count"
    or "any". max_episodes: then at most so many, the earliest of the first part or the latest of the last.
    successes_at_most: below 1, of what the part holds the most, from its beginning on, of which at most this share
    succeeds by `metric`: the weak experience of an agent that learns. Raises InputError when nothing is left.
    """
    if quality not in QUALITIES:
        raise InputError(f"quality: expected one of {', '.join(QUALITIES)}, got {quality!r}.")
    if not 0 < fraction <= 1:
        raise InputError(f"fraction: expected a number in (0, 1], got {fraction}.")
    if success is not None and f"success_{success}" not in _SUCCESS:
        raise InputError(f"success: expected final, count, any or nothing, got {success!r}.")
    metadata = store.metadata
    order = np.lexsort((metadata["seed"], metadata["agent_step"]))
    order = order[::-1] if quality == "nearoptimal" else order
    lengths = np.diff(store.episode_ends, prepend=0)[order]
    # Episodes that start before the limit, which rounding (0.7 * 10 > 7) must not push over the next start.
    limit = max(fraction * store.steps - 1e-6, 0.5) if quality != "all" else np.inf
    chosen = order[np.cumsum(lengths) - lengths < limit]
    if successes_at_most < 1:
        share = np.cumsum(metadata[f"success_{metric}"][chosen]) / np.arange(1, len(chosen) + 1)
        weak = np.flatnonzero(share <= successes_at_most)
        chosen = chosen[: weak[-1] + 1 if len(weak) else 0]
    if success is not None:
        chosen = chosen[metadata[f"success_{success}"][chosen]]
    chosen = np.sort(chosen[:max_episodes])
    if len(chosen) == 0:
        raise InputError(
            f"{store.path}: no episode of {len(store)} is left by fraction={fraction}, success={success}, "
            f"max_episodes={max_episodes}, successes_at_most={successes_at_most}; collect more or select less strictly."
        )
    return chosen.astype(np.int64)


class WindowDataset:
    """Windows over the chosen episodes of one or several stores."""

    def __init__(
        self,
        stores: Sequence[EpisodeStore],
        keys: Sequence[str],
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        episodes: Sequence[NDArray[np.int64]] | None = None,
        memory_limit: int | None = None,
    ) -> None:
        """Load `action` and the observation `keys` into memory.

        episodes: for each store the indices to use (all by default). memory_limit: bytes, 80 % of what the machine has
        free by default. Images are uint8 here and in windows. Raises InputError when stores differ in a key's shape, a
        key is not there, the windows do not fit the horizon, there is no step at all, or memory would not suffice.
        """
        if n_obs_steps - 1 + n_action_steps > horizon:
            raise InputError(
                f"horizon: {horizon} steps do not hold {n_obs_steps - 1} past and {n_action_steps} executed ones."
            )
        chosen = [np.arange(len(store)) for store in stores] if episodes is None else list(episodes)
        lengths = [np.diff(store.episode_ends, prepend=0)[rows] for store, rows in zip(stores, chosen, strict=True)]
        ends = np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))
        if len(ends) == 0:
            raise InputError(f"data: no episodes in {[str(store.path) for store in stores]}; collect some first.")
        self.horizon, self.n_obs_steps, self.n_action_steps = horizon, n_obs_steps, n_action_steps
        self.episode_ends: NDArray[np.int64] = ends
        self.store_ends = np.cumsum([int(counts.sum()) for counts in lengths])  # (S,) as episode_ends, of each store
        self.tasks = tuple(str(store.attributes["env"]) for store in stores)  # S names, of which each store is
        self.arrays: dict[str, NDArray[np.generic]] = {}
        shapes = {key: common_shape(stores, key) for key in ("action", *keys)}
        kinds = {key: _kind(stores, key) for key in shapes}
        needed = {key: int(np.prod(shape)) * int(ends[-1]) * kinds[key].itemsize for key, shape in shapes.items()}
        _check_memory(needed, free_bytes() if memory_limit is None else memory_limit)
        for key, shape in shapes.items():
            self.arrays[key] = _gather(stores, chosen, key, (int(ends[-1]), *shape), kinds[key])
        counts = np.diff(ends, prepend=0)
        self._first = np.repeat(ends - counts, counts)  # first and last row of each row's episode
        self._last = np.repeat(ends - 1, counts)

    def __len__(self) -> int:
        """Number of windows: one for each step."""
        return int(self.episode_ends[-1])

    @property
    def sizes(self) -> dict[str, int]:
        """Channels (last axis) of each key, as `Normalizer` wants them."""
        return {key: array.shape[-1] for key, array in self.arrays.items()}

    def windows(self, current: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The windows of the given current steps (B,), rows over all episodes end to end.

        "action": (B, Tp, Da) and every other key (B, To, ...), float32 in raw units; images uint8.
        """
        offsets = np.arange(self.horizon) - (self.n_obs_steps - 1)
        rows = np.clip(current[:, None] + offsets, self._first[current, None], self._last[current, None])
        taken = {"action": rows}
        found = {key: array[taken.get(key, rows[:, : self.n_obs_steps])] for key, array in self.arrays.items()}
        return {
            key: values if values.dtype == np.uint8 else values.astype(np.float32, copy=False)
            for key, values in found.items()
        }

    def sample(self, batch_size: int, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
        """`windows` of current steps drawn uniformly with replacement."""
        return self.windows(self.draw(batch_size, generator))

    def draw(
        self, batch_size: int, generator: np.random.Generator, shares: NDArray[np.float64] | None = None
    ) -> NDArray[np.int64]:
        """Current steps (B,), with replacement: each as likely, or by the share (S,) of its store, uniformly in it."""
        if shares is None:
            return generator.integers(len(self), size=batch_size)
        stores = generator.choice(len(shares), size=batch_size, p=shares)
        starts = np.concatenate([[0], self.store_ends[:-1]])
        return generator.integers(starts[stores], self.store_ends[stores])

    def store_of(self, current: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,) places of the stores that current steps are of."""
        return np.searchsorted(self.store_ends, current, side="right")


def common_shape(stores: Sequence[EpisodeStore], key: str) -> tuple[int, ...]:
    """The shape of one step of `key`. Raises InputError naming two stores that differ in it."""
    first = stores[0].field(key).shape
    for store in stores[1:]:
        shape = store.field(key).shape
        if shape != first:
            raise InputError(
                f"data/{key}: {first} per step in {stores[0].path} but {shape} in {store.path}; "
                f"stores trained together must agree. Convert both with the same env.points, or train them apart."
            )
    return first


def _kind(stores: Sequence[EpisodeStore], key: str) -> np.dtype[Any]:
    """How a key is held: images as they are, at a quarter of float32's size."""
    if all(store.field(key).dtype == "uint8" for store in stores):
        return np.dtype(np.uint8)
    return np.dtype(np.float32)


def _gather(
    stores: Sequence[EpisodeStore],
    chosen: Sequence[NDArray[np.int64]],
    key: str,
    shape: tuple[int, ...],
    kind: np.dtype[Any],
) -> NDArray[np.generic]:
    """The chosen episodes of all stores end to end, read in runs of neighbours."""
    result, row = np.empty(shape, kind), 0
    for store, episodes in zip(stores, chosen, strict=True):
        for run in np.split(episodes, np.flatnonzero(np.diff(episodes) != 1) + 1):
            # At most 64 episodes at once bounds what decoding needs beside the result.
            for part in np.split(run, range(64, len(run), 64)):
                if len(part):
                    values = store.read(key, int(part[0]), int(part[-1]) + 1)
                    result[row : row + len(values)] = values
                    row += len(values)
    return result


def _check_memory(needed: Mapping[str, int], limit: int) -> None:
    total = sum(needed.values())
    log.info("loading %.2f GB of windows", total / 1e9)
    if total > limit:
        largest = max(needed, key=lambda key: needed[key])
        raise InputError(
            f"data: the windows need {total / 1e9:.1f} GB, most of it data/{largest}, and {limit / 1e9:.1f} GB may be "
            f"used. Take a smaller fraction, fewer episodes, or fewer points."
        )
