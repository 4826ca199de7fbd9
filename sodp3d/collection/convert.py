"""Turn the depth of a store into cropped, downsampled point clouds beside it; or draw its episodes again.

    sodp3d convert env=adroit_door
    sodp3d convert env=adroit_door again=clouds env.crop.low=[-0.4,-0.5,0.001]
    sodp3d convert env=adroit_door again=image
    sodp3d convert env=adroit_door again=depth
    sodp3d convert env=adroit_door again=depth env.camera.fovy=60 output_data=data/adroit_door-wide

`again=clouds` replaces clouds of another crop or another number of points. The other two need no agent: they draw from
the simulator states in the store, RGB for obs=image beside the depth, depth of a store that was collected without, or
depth of another camera in a new store. Run again, each does only what has been collected since. Of a set of tasks
several are converted side by side.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sodp3d.collection.sets import for_each_task
from sodp3d.core.cli import command
from sodp3d.core.device import find_device
from sodp3d.core.machine import core_count
from sodp3d.core.paths import data_root
from sodp3d.core.progress import progress_lines
from sodp3d.core.sections import read_keys
from sodp3d.data.completeness import with_stores
from sodp3d.data.recording import as_recorded
from sodp3d.envs.config import EnvConfig, task_configs
from sodp3d.settings import CommonSettings, ConvertSettings

log = logging.getLogger(__name__)
_DRAWING_WORKERS = 4  # at most, unless told: each holds a GL context


@command("convert")
def main(config: dict[str, Any]) -> None:
    """Convert every task that `env=` names, and write each store's card."""
    read_keys(CommonSettings, config)
    read_keys(ConvertSettings, config)
    config = as_recorded(config)
    tasks = task_configs(config)
    folders = [_folder(config, task) for task in tasks]
    there = with_stores(tasks, [folder / "episodes.zarr" for folder in folders], config["partial"])
    for_each_task(config, there, convert, ("data", "output_data"))


def _folder(config: dict[str, Any], task: EnvConfig) -> Path:
    return Path(config["data"]).expanduser() if config["data"] else data_root(config) / task.name


def convert(config: dict[str, Any], task: EnvConfig) -> None:
    """Convert one task's store."""
    from sodp3d.tools.card import write_card

    folder = _folder(config, task)
    path = folder / "episodes.zarr"
    progress = progress_lines(task.name)
    if config["again"] in (None, "clouds"):
        make_clouds(config, task, path, progress)
    else:
        from sodp3d.data.redraw import add_depth, render_depth, render_images

        workers = config["workers"] or min(core_count(), _DRAWING_WORKERS)
        if config["again"] == "image":
            render_images(path, task, config["render"], workers, config["output"] or "image", progress)
        elif config["output_data"] is None:
            add_depth(path, task, config["render"], workers, progress)
        else:
            folder = Path(config["output_data"]).expanduser()
            render_depth(path, folder / "episodes.zarr", task, config["render"], workers, progress)
    log.info("card: %s", write_card(folder))


def make_clouds(config: dict[str, Any], task: EnvConfig, path: Path, progress: Callable[[int, int], None]) -> None:
    """Point clouds beside the depth."""
    from sodp3d.data.conversion import convert_store

    device = str(find_device(config["device"], "device")) if config["backend"] == "torch" else "cpu"
    workers = 0 if config["backend"] == "torch" and device != "cpu" else config["workers"] or core_count()
    output = config["output"] or "point_cloud"
    replaces = config["again"] == "clouds"
    statistics = convert_store(path, task, config["backend"], device, workers, output, progress, replaces)
    log.info("%s: points inside the crop %s", task.name, statistics)


if __name__ == "__main__":
    main()
