"""Stores of clouds and images, and windows over them; imports little, for the processes of test_mapped.py."""

from pathlib import Path
from typing import Any

import numpy as np
from toy_store import ATTRIBUTES, metadata

from sodp3d.data.dataset import WindowDataset
from sodp3d.data.schema import Field
from sodp3d.data.store import EpisodeStore

CLOUDS = {
    "action": Field((3,), "float32"),
    "agent_pos": Field((2,), "float32"),
    "point_cloud": Field((7, 3), "float32"),
    "image": Field((3, 4, 4), "uint8"),
}
KEYS = ["agent_pos", "point_cloud", "image"]


def values(number: int, length: int | None = None) -> dict[str, np.ndarray]:
    """Episode `number`, 1 to 9 steps long unless told."""
    random = np.random.default_rng(number)
    length = length or int(random.integers(1, 10))
    return {
        key: random.uniform(-0.9, 0.9, (length, *field.shape)).astype(np.float32)
        if field.dtype == "float32"
        else random.integers(0, 256, (length, *field.shape)).astype(np.uint8)
        for key, field in CLOUDS.items()
    }


def cloud_store(path: Path, numbers: range, length: int | None = None) -> EpisodeStore:
    """A store of these episodes, open for reading."""
    with EpisodeStore.create(path, ATTRIBUTES, CLOUDS) as store:
        for number in numbers:
            store.append(values(number, length), metadata(number))
    return EpisodeStore.open(path)


def dataset(
    stores: list[EpisodeStore], memory: str = "mapped", keys: list[str] = KEYS, **options: Any
) -> WindowDataset:
    """Windows, by default from mapped files."""
    return WindowDataset(stores, keys, 4, 2, 3, memory=memory, half=["point_cloud"], **options)  # type: ignore[arg-type]


def all_windows(data: WindowDataset) -> dict[str, np.ndarray]:
    """Each once, in an order that jumps."""
    return data.windows(np.random.default_rng(0).permutation(len(data)))
