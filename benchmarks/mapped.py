"""Reading training batches from mapped files: how many times faster than the pre-training step takes them.

Windows are drawn at random over several stores of made-up clouds, at Meta-World's sizes by default: from files that are
not in memory yet (and whose blocks are checked as they are first read), from the same after the check, from files that
the kernel holds in memory, and from the process's own memory (pretrain.memory=ram).

python benchmarks/mapped.py [--stores 10] [--transitions 20000] [--batches 30] [options of train.py]
-> results/benchmarks/mapped.json
"""

import argparse
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reading import make_store
from timing import write

from sodp3d.core.cli import compose
from sodp3d.core.device import prepare_torch
from sodp3d.data.dataset import WindowDataset
from sodp3d.data.mapped import MappedRows
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig, task_configs
from sodp3d.learning.lookup import with_sampler
from sodp3d.learning.pretrain import Pretraining, new_policy, to_device
from sodp3d.settings import TrainSettings

SIZES = ["env=metaworld", "env.task=reach", "pretrain.batch_size=64", "model.unet=simple_dp3"]


def windows(stores: list[EpisodeStore], task: EnvConfig, memory: Any) -> WindowDataset:
    """Of all episodes of all stores."""
    steps = task.horizon, task.n_obs_steps, task.n_action_steps
    return WindowDataset(stores, ["agent_pos", "point_cloud"], *steps, memory=memory, half=["point_cloud"])


def forget(files: list[MappedRows]) -> None:
    """Have the kernel drop what it holds of the files."""
    for file in files:
        file._bytes.madvise(mmap.MADV_DONTNEED)
        handle = os.open(file.path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def seconds(data: WindowDataset, batch: int, batches: int, before: Callable[[], None] = lambda: None) -> list[float]:
    """That each of several batches takes; `before` each, out of the time."""
    generator, found = np.random.default_rng(0), []
    for _ in range(batches):
        before()
        start = time.perf_counter()
        data.sample(batch, generator)
        found.append(time.perf_counter() - start)
    return found


def step_seconds(config: dict[str, Any], data: WindowDataset, task: EnvConfig, steps: int) -> float:
    """Median of an update, without reading, after two to warm up."""
    device, settings = prepare_torch(config), TrainSettings.from_config(config)
    training = Pretraining(new_policy(config, [task], data).to(device), settings.pretrain, 0)
    taken = []
    for _ in range(steps + 2):
        batch = to_device(data.sample(settings.pretrain.batch_size, training.batches), device)
        start = time.perf_counter()
        float(training.update(batch))
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[2:]))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", type=int, default=10)
    parser.add_argument("--transitions", type=int, default=20_000, help="of each store")
    parser.add_argument("--batches", type=int, default=30, help="to read of each kind")
    parser.add_argument("--steps", type=int, default=10, help="of pre-training")
    parser.add_argument("options", nargs="*", help="of train.py")
    arguments = parser.parse_args()
    config = with_sampler(compose("train", ["mode=pretrain", *SIZES, *arguments.options]))
    task, batch = task_configs(config)[0], config["pretrain"]["batch_size"]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # not in /tmp, which may be memory
        paths = [Path(folder) / f"{number}.zarr" for number in range(arguments.stores)]
        for path in paths:
            make_store(path, task, arguments.transitions)
        stores = [EpisodeStore.open(path) for path in paths]
        start = time.perf_counter()
        mapped = windows(stores, task, "mapped")
        made = time.perf_counter() - start
        files = [part for part in mapped._parts if isinstance(part, MappedRows)]
        size = sum(file.path.stat().st_size for file in files)
        forget(files)
        read = {"first": seconds(mapped, batch, arguments.batches)}
        warm = seconds(mapped, batch, 20 * arguments.batches)[-arguments.batches :]
        read |= {"from_disk": seconds(mapped, batch, arguments.batches, lambda: forget(files)), "held": warm}
        read["ram"] = seconds(windows(stores, task, "ram"), batch, arguments.batches)
        step = step_seconds(config, mapped, task, arguments.steps)
    write(
        "mapped",
        {
            "stores": arguments.stores,
            "gigabytes": size / 1e9,
            "points": task.points,
            "horizon": task.horizon,
            "batch_size": batch,
            "gigabytes_made_per_second": size / 1e9 / made,
            "seconds_a_step": step,
            "seconds_a_batch": {name: float(np.median(taken)) for name, taken in read.items()},
            "times_faster_than_a_step": {name: step / float(np.median(taken)) for name, taken in read.items()},
            "times_faster_at_worst": {name: step / max(taken) for name, taken in read.items()},
        },
    )


if __name__ == "__main__":
    main()
