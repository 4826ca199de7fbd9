"""Run by test_mapped_training.py: pre-trains on windows of 100 GB, with at most 4 GB of memory of its own.

    python huge_mapped.py <folder>

The store and its mapped file are as sodp3d makes them, but full of zeros, which a sparse file holds without a disk of
that size. Prints a line of JSON: bytes of windows, the most memory that was resident, and the losses.
"""

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from sodp3d.core.cli import compose
from sodp3d.core.mappings import plain
from sodp3d.core.run import Run
from sodp3d.data import columns, mapped, mapping
from sodp3d.data.schema import METADATA
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig, task_configs
from sodp3d.learning.lookup import with_sampler
from sodp3d.learning.pretrain import pretrain
from sodp3d.vision.camera import Camera, intrinsics

POINTS, EPISODES, LENGTH = 4096, 40_800, 100
KINDS = {"action": np.dtype("float32"), "agent_pos": np.dtype("float32"), "point_cloud": np.dtype("float16")}


def sparse_store(path: Path, task: EnvConfig) -> EpisodeStore:
    """A store that says it holds 4 million steps; none of their chunks is there."""
    size = task.camera.height, task.camera.width
    camera = Camera(intrinsics(task.camera.fovy, *size), np.eye(4), *size).to_dict()
    attributes = {"env": task.name, "env_config": plain(asdict(task)), "camera": camera, "renderer": "none"}
    shapes = {"action": (28,), "agent_pos": (24,), "point_cloud": (POINTS, 3)}
    with EpisodeStore.create(path, attributes, {key: (shape, "float32") for key, shape in shapes.items()}):
        pass
    for key in shapes:
        header = path / "data" / key / ".zarray"
        described = json.loads(header.read_text())
        described["shape"][0] = EPISODES * LENGTH
        header.write_text(json.dumps(described))
    values = {name: np.zeros(EPISODES, dtype) for name, dtype in METADATA.items()}
    values |= {columns.CHECKSUM: np.ones(EPISODES, np.int64), columns.ENDS: np.arange(1, EPISODES + 1) * LENGTH}
    for name, column in values.items():
        columns.write_column(path / "meta" / name, column)
    columns.record_commit(path / "meta", values)
    return EpisodeStore.open(path)


def sparse_rows(store: EpisodeStore) -> int:
    """The store's mapped file, of zeros; its size in bytes."""
    entries = mapping._layout(store, KINDS)
    tables = {}
    for key, kind in KINDS.items():
        shape, steps = entries[key].shape[1:], entries[key].shape[0]
        rows = mapped.block_rows(shape, kind)
        digests = np.full(-(-steps // rows), mapped.digest(bytes(rows * mapped.row_bytes(shape, kind))), np.uint64)
        digests[-1] = mapped.digest(bytes(((steps - 1) % rows + 1) * mapped.row_bytes(shape, kind)))
        limits = np.ones(entries[f"low.{key}"].shape, np.float32)
        tables |= {f"digest.{key}": digests, f"low.{key}": -limits, f"high.{key}": limits}
    facts = {"format": mapped.FORMAT, "fingerprint": mapping.fingerprint(store, KINDS), "data": ["v2-0", "0"]}
    head = mapped.header(entries, {**facts, "tables": mapped.tables_digest(tables)})
    size = len(head) + max(entry.stop for entry in entries.values())
    with mapping.mapped_path(store, KINDS).open("wb") as file:
        file.write(head)
        for name in (name for name in entries if mapped.is_table(name)):
            file.write(tables[name].tobytes())
        file.truncate(size)
    return size


def main(folder: Path) -> None:
    """Make the files and pre-train."""
    resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30, 4 * 2**30))  # of memory that is not a mapped file
    torch.set_num_threads(1)
    options = f"mode=pretrain obs=pointcloud preset=quick env.points={POINTS} pretrain.memory=mapped data={folder}"
    options += " pretrain.steps=3 pretrain.batch_size=4 pretrain.log_every=1 device=cpu threads=1"
    config = with_sampler(compose("train", options.split()))
    tasks = task_configs(config)
    size = sparse_rows(sparse_store(folder / "episodes.zarr", tasks[0]))
    with Run(folder / "run", config) as run:
        pretrain(config, run, tasks, torch.device("cpu"), None)
    losses = [json.loads(line)["train/loss"] for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    sys.stdout.write(json.dumps({"bytes": size, "peak": peak, "losses": losses}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
