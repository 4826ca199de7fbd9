"""Training windows over one or several stores, in memory or in mapped files, drawn without building them beforehand.

The window of step t of an episode: observations t-To+1 .. t and actions t-To+1 .. t-To+Tp, so that the executed slice
of a plan starts at index To-1 (DP3). Where a window reaches past its episode the first or last step is repeated; it
never reaches into another episode. Every step of every episode is the current step of exactly one window.
A method may ask for other windows, with another number of steps before the current one, and for labels of each.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.machine import free_bytes
from sodp3d.data import rows
from sodp3d.data.hashing import Identity, together
from sodp3d.data.mapping import open_rows
from sodp3d.data.schema import QUALITIES
from sodp3d.data.store import EpisodeStore

log = logging.getLogger(__name__)
Memory = Literal["auto", "ram", "mapped"]
_COMFORTABLE = 0.5  # of the memory that may be used: windows beyond it are mapped
_COARSE = 1e-3  # of a cloud's widest span: a rounding beyond it is told
_HELD_OUT = 0  # seed of which episodes are held out: one for all runs, so that they can be compared
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
    if max_episodes is not None and max_episodes < 1:
        raise InputError(f"max_episodes: expected a whole number of at least 1, got {max_episodes}.")
    metadata = store.metadata
    ordered = "seed" in metadata and "agent_step" in metadata  # else episodes are in the order of their recording
    order = np.lexsort((metadata["seed"], metadata["agent_step"])) if ordered else np.arange(len(store))
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


def hold_out(
    chosen: Sequence[NDArray[np.int64]], share: float, where: str
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Episodes of several stores to learn from, and the `share` of them that is held out, at least one of all.

    chosen: indices of each store, as `select_episodes` gives them. The same episodes are held out whenever the same
    come. Raises InputError, naming the option `where`, when none would be left to learn from.
    """
    total = sum(map(len, chosen))
    count = max(1, round(share * total))
    if count >= total:
        raise InputError(f"{where}: {count} of {total} episodes would be held out, and none be left to learn from.")
    held = np.zeros(total, bool)
    held[np.random.default_rng(_HELD_OUT).permutation(total)[:count]] = True
    parts = np.split(held, np.cumsum([len(rows) for rows in chosen])[:-1])
    learned = [rows[~part] for rows, part in zip(chosen, parts, strict=True)]
    return learned, [rows[part] for rows, part in zip(chosen, parts, strict=True)]


class WindowDataset:
    """Windows over the chosen episodes of one or several stores.

    Attributes:
        memory: where their rows are, "ram" or "mapped".
        data: what names the data where mapped files say it (`hashing.identify`), else None.
        shapes: of one step, by key.
        ranges: lowest and highest value (channels,) of each channel (last axis) of the chosen episodes, by key; not of
            images.
    """

    def __init__(
        self,
        stores: Sequence[EpisodeStore],
        keys: Sequence[str],
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        episodes: Sequence[NDArray[np.int64]] | None = None,
        memory_limit: int | None = None,
        past: int | None = None,
        memory: Memory = "ram",
        half: Collection[str] = (),
    ) -> None:
        """Make `action` and the observation `keys` ready to be drawn.

        episodes: for each store the indices to use (all by default). past: steps of a window before its current one,
        To - 1 by default. memory_limit: bytes, 80 % of what the machine has free by default. memory: `ram` loads the
        chosen episodes; `mapped` maps a file beside each store, made once (`mapping.py`); `auto` loads what takes at
        most half of the limit, and else maps. half: keys that are held as float16; other floats are float32, images
        uint8. Windows are the same wherever their rows are.
        Raises InputError when stores differ in a key's shape, a key is not there, the windows do not fit the horizon,
        there is no step at all, memory or disk would not suffice, or a file cannot be read or written.
        """
        if n_obs_steps - 1 + n_action_steps > horizon:
            raise InputError(
                f"horizon: {horizon} steps do not hold {n_obs_steps - 1} past and {n_action_steps} executed ones."
            )
        chosen = [np.arange(len(store)) for store in stores] if episodes is None else list(episodes)
        lengths = [np.diff(store.episode_ends, prepend=0)[taken] for store, taken in zip(stores, chosen, strict=True)]
        ends = np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))
        if len(ends) == 0:
            raise InputError(f"data: no episodes in {[str(store.path) for store in stores]}; collect some first.")
        self.horizon, self.n_obs_steps, self.n_action_steps = horizon, n_obs_steps, n_action_steps
        self.past = n_obs_steps - 1 if past is None else past
        self.labels: dict[str, NDArray[Any]] = {}  # of each window, beside what `arrays` hold: (rows,)
        self.episode_ends: NDArray[np.int64] = ends
        self.store_ends = np.cumsum([int(counts.sum()) for counts in lengths])  # (S,) as episode_ends, of each store
        self.tasks = tuple(str(store.attributes["env"]) for store in stores)  # S names, of which each store is
        self._starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        self.shapes = {key: rows.common_shape(stores, key) for key in ("action", *keys)}
        self._kinds: rows.Kinds = {key: rows.common_kind(stores, key, half) for key in self.shapes}
        needed = {key: rows.row_bytes(shape, self._kinds[key]) * len(self) for key, shape in self.shapes.items()}
        self.memory = choose_memory(
            memory, sum(needed.values()), free_bytes() if memory_limit is None else memory_limit
        )
        self.arrays: dict[str, NDArray[np.generic]] = {}  # of all rows, where they are in memory
        self.ranges: dict[str, rows.Range] = {}
        self.data: Identity | None = None
        if self.memory == "ram":
            rows.check_memory(needed, free_bytes() if memory_limit is None else memory_limit)
            self._load(stores, chosen)
        else:
            self._map(stores, chosen)
        self._tell_rounding()

    def _load(self, stores: Sequence[EpisodeStore], chosen: Sequence[NDArray[np.int64]]) -> None:
        """Read the chosen episodes into memory, end to end."""
        for key, shape in self.shapes.items():
            kind = self._kinds[key]
            self.arrays[key], found = rows.gather(stores, chosen, key, (len(self), *shape), kind)
            if found is not None:
                self.ranges[key] = found
        self._parts: list[rows.Rows] = [rows.RowsInMemory(self.arrays)]
        self._part = np.zeros(len(self.episode_ends), np.int64)
        self._shift = np.zeros(len(self.episode_ends), np.int64)

    def _map(self, stores: Sequence[EpisodeStore], chosen: Sequence[NDArray[np.int64]]) -> None:
        """Map each store's file, and note in which, and where, each chosen episode is."""
        files = [open_rows(store, self._kinds, taken) for store, taken in zip(stores, chosen, strict=True)]
        for key in (key for key, kind in self._kinds.items() if kind != np.uint8):
            found = [file.ranges(key, taken) for file, taken in zip(files, chosen, strict=True) if len(taken)]
            low, high = (np.concatenate(side) for side in zip(*found, strict=True))
            self.ranges[key] = rows.as_held((low, high), self._kinds[key])
        self._parts = list(files)
        self._part = np.repeat(np.arange(len(stores)), [len(taken) for taken in chosen])
        first = [np.concatenate([[0], store.episode_ends])[taken] for store, taken in zip(stores, chosen, strict=True)]
        self._shift = np.concatenate(first) - self._starts
        self.data = together([file.data for file in files])

    def _tell_rounding(self) -> None:
        """Say by how much float16 changes values, and warn where that is much of their range."""
        for key in (key for key, kind in self._kinds.items() if kind == np.float16):
            low, high = self.ranges[key]
            rounding = float(np.spacing(np.float16(np.abs([low, high]).max()))) / 2
            log.info("data/%s is held as float16, rounded by at most %.2g", key, rounding)
            if rounding > _COARSE * float((high - low).max()):
                log.warning(
                    "data/%s lies between %.4g and %.4g, where float16 rounds by %.2g, much of its span. Give clouds "
                    "in a frame nearer the robot: the camera's pose decides that.",
                    key,
                    low.min(),
                    high.max(),
                    rounding,
                )

    def __len__(self) -> int:
        """Number of windows: one for each step."""
        return int(self.episode_ends[-1])

    @property
    def sizes(self) -> dict[str, int]:
        """Channels (last axis) of each key, as `Normalizer` wants them."""
        return {key: shape[-1] if shape else 1 for key, shape in self.shapes.items()}

    def windows(self, current: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The windows of the given current steps (B,), rows over all episodes end to end.

        "action": (B, Tp, Da) and every other key (B, To, ...), float32 in raw units; images uint8. Labels (B,). Raises
        InputError where a mapped file is damaged.
        """
        episode = np.searchsorted(self.episode_ends, current, side="right")
        offsets = np.arange(self.horizon) - self.past
        first, last = self._starts[episode, None], self.episode_ends[episode, None] - 1
        wanted = np.clip(current[:, None] + offsets, first, last)
        taken = {key: wanted if key == "action" else wanted[:, : self.n_obs_steps] for key in self.shapes}
        return self._take(taken, episode) | {name: values[current] for name, values in self.labels.items()}

    def steps(self, key: str, chosen: NDArray[np.int64]) -> NDArray[Any]:
        """Values (n, ...) of a key at single rows (n,) over all episodes end to end, as windows have them."""
        return self._take({key: chosen[:, None]}, np.searchsorted(self.episode_ends, chosen, side="right"))[key][:, 0]

    def _take(self, taken: Mapping[str, NDArray[np.int64]], episode: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Values (B, n, ...) at the rows (B, n) of each key, of which (B,) is the episode."""
        found = {
            key: np.empty((*wanted.shape, *self.shapes[key]), np.uint8 if self._kinds[key] == np.uint8 else np.float32)
            for key, wanted in taken.items()
        }
        part, shift = self._part[episode], self._shift[episode, None]
        groups = [(self._parts[number], np.flatnonzero(part == number)) for number in np.unique(part)]
        for held, of_part in groups:
            for key, wanted in taken.items():
                held.expect(key, (wanted + shift)[of_part])
        for held, of_part in groups:
            for key, wanted in taken.items():
                found[key][of_part] = rows.widened(held.take(key, (wanted + shift)[of_part]))
        return found

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


def choose_memory(wanted: Memory, needed: int, limit: int) -> Literal["ram", "mapped"]:
    """What `wanted` means for windows of `needed` bytes where `limit` may be used; says it where that is not given."""
    if wanted != "auto":
        log.info("%.2f GB of windows, pretrain.memory=%s", needed / 1e9, wanted)
        return wanted
    chosen: Literal["ram", "mapped"] = "ram" if needed <= _COMFORTABLE * limit else "mapped"
    log.info("%.2f GB of windows, and %.2f GB may be used: memory=auto takes %s", needed / 1e9, limit / 1e9, chosen)
    return chosen
