"""What some methods are told of each window beside observations: its task, and what its episode came to.

Shape letters: R rows, one for each step of the chosen episodes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.data.dataset import WindowDataset
from sodp3d.data.store import EpisodeStore

LABELS = ("task", "return")


def add_labels(
    dataset: WindowDataset,
    wanted: Sequence[str],
    stores: Sequence[EpisodeStore],
    episodes: Sequence[NDArray[np.int64]],
    tasks: Sequence[str],
) -> None:
    """Add the `wanted` of LABELS to the windows of the chosen `episodes` of `stores`.

    "task": (R,) int64, place in `tasks` of the store's. "return": (R,) float32, the episode's, scaled to 0 to 1 over
    those chosen of its task; 1 where they are all alike. Raises InputError for a store without rewards.
    """
    if "task" in wanted:
        places = [np.full(len(rows), _place(store, tasks)) for store, rows in zip(stores, episodes, strict=True)]
        dataset.labels["task"] = _of_rows(dataset, places).astype(np.int64)
    if "return" in wanted:
        dataset.labels["return"] = _of_rows(dataset, _returns(stores, episodes, tasks)).astype(np.float32)


def _returns(
    stores: Sequence[EpisodeStore], episodes: Sequence[NDArray[np.int64]], tasks: Sequence[str]
) -> list[NDArray[np.float64]]:
    for store in stores:
        if "reward" not in store.specification or "episode_return" not in store.metadata:
            raise InputError(
                f"data: {store.path} has no rewards, and this method is conditioned on returns; take a store with "
                "data/reward, or a method that needs none: method=sodp, method=mtbc."
            )
    returns = [store.metadata["episode_return"][rows] for store, rows in zip(stores, episodes, strict=True)]
    places = np.array([_place(store, tasks) for store in stores])
    for place in np.unique(places):
        mine = np.flatnonzero(places == place)
        together = np.concatenate([returns[index] for index in mine])
        low, span = together.min(), np.ptp(together)
        for index in mine:
            returns[index] = (returns[index] - low) / span if span > 0 else np.ones(len(returns[index]))
    return returns


def _place(store: EpisodeStore, tasks: Sequence[str]) -> int:
    return tasks.index(store.attributes["env"])


def _of_rows(dataset: WindowDataset, values: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
    """Of each episode, in the order of the stores -> (R,)."""
    return np.repeat(np.concatenate(values), np.diff(dataset.episode_ends, prepend=0))
