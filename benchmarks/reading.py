"""Reading training batches of point clouds: how many times faster than the pre-training step takes them; peak memory.

Pre-trains as mode=pretrain does, but for evaluations, on a store of made-up clouds of surfaces (or on data=<store>).

python benchmarks/reading.py [--transitions 90000] [--steps 40] [options of train.py: pretrain.batch_size=256 ...]
-> results/benchmarks/reading.json
"""

import argparse
import resource
import tempfile
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import numpy as np
from clouds import surface_clouds
from timing import Stopwatch, write
from training import ACTIONS, JOINTS

from sodp3d.core.cli import compose
from sodp3d.core.device import prepare_torch
from sodp3d.core.mappings import plain
from sodp3d.core.run import Run
from sodp3d.data.schema import METADATA
from sodp3d.data.store import EpisodeStore
from sodp3d.envs import EnvConfig
from sodp3d.envs.config import task_configs
from sodp3d.learning.lookup import open_stores, with_sampler
from sodp3d.learning.mixture import Mixture
from sodp3d.learning.pretrain import pretrain
from sodp3d.vision.camera import Camera, intrinsics


def make_store(path: Path, task: EnvConfig, transitions: int) -> None:
    """A store with what pre-training reads, of episodes as long as the task's, all with the same clouds."""
    random, length = np.random.default_rng(0), task.episode_steps
    episode = {
        "action": random.uniform(-1, 1, (length, ACTIONS)).astype(np.float32),
        "agent_pos": random.normal(size=(length, JOINTS)).astype(np.float32),
        "point_cloud": surface_clouds(length, task.points).numpy(),
    }
    specification = {key: (values.shape[1:], "float32") for key, values in episode.items()}
    size = task.camera.height, task.camera.width
    camera = Camera(intrinsics(task.camera.fovy, *size), np.eye(4), *size).to_dict()
    attributes = {"env": task.name, "env_config": plain(asdict(task)), "camera": camera, "renderer": "none"}
    with EpisodeStore.create(path, attributes, specification) as store:
        while store.steps < transitions:
            left = transitions - store.steps
            store.append({key: values[:left] for key, values in episode.items()}, dict.fromkeys(METADATA, 0))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transitions", type=int, default=90_000, help="of the store that is made")
    parser.add_argument("--steps", type=int, default=40, help="of pre-training")
    parser.add_argument("options", nargs="*", help="of train.py")
    arguments = parser.parse_args()
    config = compose("train", ["mode=pretrain", f"pretrain.steps={arguments.steps}", *arguments.options])
    config = with_sampler(config)
    tasks, device, reading = task_configs(config), prepare_torch(config), Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        if config["data"] is None:
            path = Path(folder) / "episodes.zarr"
            make_store(path, tasks[0], arguments.transitions)
            config["data"] = str(path)
        transitions = sum(store.steps for store in open_stores(config, tasks))
        timed = patch.object(Mixture, "sample", reading(Mixture.sample))
        with timed, Run(Path(folder) / "run", config) as run:
            pretrain(config, run, tasks, device, None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    clouds = config["pretrain"]["batch_size"] * tasks[0].n_obs_steps
    read = float(np.median(reading.seconds))
    step = float(np.median(np.subtract(reading.begins[1:], reading.ends[:-1])))  # all from one batch to the next
    write(
        "reading",
        {
            "transitions": transitions,
            "points": tasks[0].points,
            "batch_size": config["pretrain"]["batch_size"],
            "steps": arguments.steps,
            "clouds_read_per_second": clouds / read,
            "clouds_consumed_per_second": clouds / step,
            "ratio": step / read,
            "peak_gigabytes": peak / 1e9,
        },
    )


if __name__ == "__main__":
    main()
