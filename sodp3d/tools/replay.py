"""Write mp4s: of a run's evaluated roll-outs, or of collected episodes.

sodp3d replay run=outputs/eval/adroit_door-pointcloud/<time>-s0
sodp3d replay run=outputs/finetune/adroit_door-pointcloud-sodp/<time>-s0 seeds=[100005]
sodp3d replay data=data/adroit_door
"""

import logging
from pathlib import Path
from typing import Any

from sodp3d.core.cli import command
from sodp3d.core.errors import InputError

log = logging.getLogger(__name__)


@command("replay")
def main(config: dict[str, Any]) -> None:
    """Replay what `run=` or `data=` names."""
    if bool(config["run"]) == bool(config["data"]):
        raise InputError("replay: give one of run=<run dir> and data=<store>.")
    written = replay_run(config) if config["run"] else replay_store(config)
    for path in written:
        log.info("%s", path)


def replay_run(config: dict[str, Any]) -> list[Path]:
    """Videos of the roll-outs of an evaluation, or of the evaluation that ended a training run."""
    from sodp3d.core.run import read_config
    from sodp3d.envs.config import task_configs
    from sodp3d.tools.video import write_rollout_videos

    directory = Path(config["run"]).expanduser()
    output = Path(config["output"] or directory / "videos")
    tasks = task_configs(read_config(directory))
    folders = [directory / "evaluation" / task.name for task in tasks]
    written: list[Path] = []
    for task, folder in zip(tasks, folders, strict=True):
        written += write_rollout_videos(folder, task, config["render"], config["count"], output, config["seeds"] or ())
    return written


def replay_store(config: dict[str, Any]) -> list[Path]:
    """Videos of collected episodes."""
    from sodp3d.data.store import EpisodeStore
    from sodp3d.tools.video import write_store_videos

    folder = Path(config["data"]).expanduser()
    path = folder if folder.suffix == ".zarr" else folder / "episodes.zarr"
    store = EpisodeStore.open(path)
    if len(store) == 0:
        raise InputError(f"data: {path} holds no finished episode yet.")
    count = min(config["count"], len(store))
    episodes = config["episodes"] or [round(i * (len(store) - 1) / max(count - 1, 1)) for i in range(count)]
    return write_store_videos(store, config["render"], episodes, Path(config["output"] or path.parent / "videos"))


if __name__ == "__main__":
    main()
