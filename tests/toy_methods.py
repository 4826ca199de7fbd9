"""Small policies of every method that is no planner, and tiny data to learn by heart."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from toy_store import ATTRIBUTES, SPECIFICATION, episode, metadata

from sodp3d.core.cli import compose
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.labels import LABELS
from sodp3d.learning.pretrain import new_policy
from sodp3d.learning.windows import load_data
from sodp3d.models.policy import LearnedPolicy

TASKS = ("toy_first", "toy_second")
SMALL = {
    "bcrnn": ["model.width=64", "model.layers=1", "model.members=2", "model.sequence=4"],
    "mtbc": ["model.width=64", "model.latent=16"],
    "ibc": ["model.width=64", "model.layers=2", "model.negatives=64", "model.samples=256", "model.dropout=0.0"],
    "mtdiff": [
        *("model.width=32", "model.layers=2", "model.heads=2", "model.dropout=0.0", "model.prompts=2"),
        *("model.prompt_steps=3", "model.denoising_steps=20", "model.sampling_steps=10", "model.guidance=1.0"),
    ],
}
METHODS = tuple(SMALL)


def options(method: str, *more: str) -> list[str]:
    """What a small one of that method is made with."""
    return ["obs=state", f"method={method}", "preset=cpu", *SMALL[method], "pretrain.batch_size=16", *more]


@cache
def composed(*overrides: str) -> dict[str, Any]:
    """`compose`, once for the same overrides."""
    return compose("train", overrides)


def write_stores(folder: Path, tasks: Sequence[str] = TASKS, without: Sequence[str] = ()) -> list[str]:
    """One store a task, all successful; the same observations in each, with other actions."""
    specification = {key: field for key, field in SPECIFICATION.items() if key not in without}
    for place, task in enumerate(tasks):
        with EpisodeStore.create(folder / task / "episodes.zarr", {**ATTRIBUTES, "env": task}, specification) as store:
            for number in range(2):
                arrays = {key: values for key, values in episode(number, 5).items() if key not in without}
                arrays["action"] = np.random.default_rng(10 * place + number).uniform(-1, 1, (5, 3)).astype(np.float32)
                known = {**metadata(number), "success_final": True, "success_count": True, "success_any": True}
                store.append(arrays, known)
    return [str(folder / task) for task in tasks]


def configuration(folder: Path, method: str, *more: str) -> tuple[dict[str, Any], list[EnvConfig]]:
    """A composed configuration over `write_stores`' folder, and its tasks."""
    config = {**composed(*options(method, *more))}
    config["data"] = [str(folder / task) for task in TASKS if (folder / task).is_dir()]
    base = EnvConfig.from_config(config["env"])
    return config, [replace(base, name=Path(path).name) for path in config["data"]]


def fresh(folder: Path, method: str, *more: str) -> tuple[LearnedPolicy, Any, dict[str, Any], list[EnvConfig]]:
    """An untrained policy, its windows, configuration and tasks."""
    from sodp3d.learning.lookup import with_sampler

    config, tasks = configuration(folder, method, *more)
    config = with_sampler(config)
    dataset, _ = load_data(config, tasks)
    assert set(dataset.labels) <= set(LABELS)
    return new_policy(config, tasks, dataset), dataset, config, tasks
