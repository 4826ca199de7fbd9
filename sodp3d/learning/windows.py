"""What is learned from: windows over the stores that a configuration names, and their episodes that count.

Shape letters: B batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sodp3d.core.errors import InputError
from sodp3d.core.sections import read_section
from sodp3d.data.dataset import WindowDataset, hold_out, select_episodes
from sodp3d.data.hashing import Identity, identify
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import RECORDED, EnvConfig
from sodp3d.learning.labels import add_labels
from sodp3d.learning.lookup import open_stores
from sodp3d.models.policy import method_class
from sodp3d.settings import PretrainSettings
from sodp3d.vision.sensors import STATE, sensor


def load_data(
    config: dict[str, Any], tasks: list[EnvConfig], memory_limit: int | None = None, held_out: bool = False
) -> tuple[WindowDataset, Identity]:
    """Windows over the stores named by the configuration, with only what `obs=` sees, and what names that data.

    memory_limit: as `WindowDataset`'s. held_out: of recordings those episodes that are not learned from, in place of
    those that are. Returns are read only where the method asks for them; `pretrain.successful_only` (near-optimal data,
    C.2; demonstrations, DP3) reads the success flags.
    """
    task, settings = tasks[0], read_section(PretrainSettings, config["pretrain"])
    stores = open_stores(config, tasks)
    episodes = chosen_episodes(settings, task, stores, held_out)
    seen = sensor(config["obs"]["name"])
    keys, half = ["agent_pos", seen.key], [seen.key] if seen.half else []
    keys += [STATE.key] if settings.state_weight else []
    method = method_class(config["method"])
    window = method.window(task, read_section(method.settings, config["model"]))
    steps = window.horizon, window.observed, task.n_action_steps
    held: dict[str, Any] = {"memory_limit": memory_limit, "memory": settings.memory, "half": half}
    dataset = WindowDataset(stores, keys, *steps, episodes, past=window.past, **held)
    add_labels(dataset, method.labels, stores, episodes, [one.name for one in tasks])
    return dataset, dataset.data or identify(stores, keys)


def chosen_episodes(
    settings: PretrainSettings, task: EnvConfig, stores: Sequence[EpisodeStore], held_out: bool = False
) -> list[NDArray[np.int64]]:
    """Of each store the episodes that are learned from, or of recordings those that are held out. Raises InputError."""
    success = task.success_metric if settings.successful_only else None
    for store in stores:
        if success and f"success_{success}" not in store.metadata:
            raise InputError(
                f"pretrain.successful_only: {store.path} does not say which episodes succeeded by {success!r}; give "
                "pretrain.successful_only=false (with an imitation method pretrain.max_episodes=null too, for all)."
            )
    chosen = settings.fraction, settings.max_episodes, success, settings.quality
    weak = settings.successes_at_most, task.success_metric
    episodes = [select_episodes(store, *chosen, *weak) for store in stores]
    if task.family != RECORDED:
        return episodes
    return hold_out(episodes, settings.held_out, "pretrain.held_out")[held_out]


def to_device(batch: dict[str, NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """NumPy batch to tensors on `device`."""
    return {key: torch.from_numpy(value).to(device) for key, value in batch.items()}
