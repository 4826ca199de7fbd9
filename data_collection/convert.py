"""Turn the depth of a store into cropped, downsampled point clouds beside it.

    python data_collection/convert.py env=adroit_door

Run again, it converts only what has been collected since.
"""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from any folder, installed or not

from sodp3d.cli import command, data_root
from sodp3d.envs.config import EnvConfig, expand
from sodp3d.errors import InputError

log = logging.getLogger(__name__)


@command("convert")
def main(config: dict[str, Any]) -> None:
    """Convert every task that `env=` names, and write each store's card."""
    tasks = expand(EnvConfig.from_config(config["env"]))
    if config["data"] and len(tasks) > 1:
        raise InputError(f"data: one folder cannot hold {len(tasks)} tasks; leave it out or choose a single task.")
    for task in tasks:
        convert(config, task)


def convert(config: dict[str, Any], task: EnvConfig) -> None:
    """Convert one task's store."""
    from sodp3d.data.card import write_card
    from sodp3d.data.conversion import convert_store

    folder = Path(config["data"]).expanduser() if config["data"] else data_root(config) / task.name
    path = folder / "episodes.zarr"
    if not path.exists():
        raise InputError(f"data: no store at {path}; make it with: python data_collection/collect.py env={task.name}")
    device = "cpu" if config["device"] == "auto" else config["device"]
    workers = 0 if config["backend"] == "torch" and device != "cpu" else config["workers"] or os.cpu_count() or 1
    started, last = time.monotonic(), [0.0]

    def progress(done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] > 2 or done == total:
            last[0] = now
            log.info("%s: %d/%d episodes, %.0f s", task.name, done, total, now - started)

    statistics = convert_store(path, task, config["backend"], device, workers, config["output"], progress)
    log.info("%s: points inside the crop %s", task.name, statistics)
    log.info("card: %s", write_card(folder))


if __name__ == "__main__":
    main()
