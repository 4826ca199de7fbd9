"""Write what happened in a run's evaluated roll-outs, or in collected episodes: mp4s, or .rrd files for Rerun's viewer.

sodp3d replay run=outputs/eval/adroit_door-pointcloud/<time>-s0
sodp3d replay run=outputs/finetune/adroit_door-pointcloud-sodp/<time>-s0 seeds=[100005]
sodp3d replay run=outputs/eval/adroit_door-pointcloud/<time>-s0 viewer=rerun
sodp3d replay data=data/adroit_door
"""

import logging
from pathlib import Path
from typing import Any

from sodp3d.core.cli import command
from sodp3d.core.errors import InputError
from sodp3d.core.sections import read_keys
from sodp3d.settings import CommonSettings, ReplaySettings

log = logging.getLogger(__name__)


@command("replay")
def main(config: dict[str, Any]) -> None:
    """Replay what `run=` or `data=` names."""
    settings, common = read_keys(ReplaySettings, config), read_keys(CommonSettings, config)
    if settings.viewer == "rerun":
        from sodp3d.tools.recordings import require_rerun

        require_rerun()
    written = replay_run(settings, common.render) if settings.run else replay_store(settings, common.render)
    for path in written:
        log.info("%s", path)


def replay_run(settings: ReplaySettings, renderer: str) -> list[Path]:
    """The roll-outs of an evaluation, or of the evaluation that ended a training run."""
    from sodp3d.core.run import read_config
    from sodp3d.envs.config import task_configs
    from sodp3d.tools.recordings import write_rollout_recordings
    from sodp3d.tools.video import write_rollout_videos

    assert settings.run
    write = write_rollout_recordings if settings.viewer == "rerun" else write_rollout_videos
    directory = Path(settings.run).expanduser()
    output = Path(settings.output or directory / settings.folder).expanduser()
    written: list[Path] = []
    for task in task_configs(read_config(directory)):
        folder = directory / "evaluation" / task.name
        written += write(folder, task, renderer, settings.count, output, settings.seeds or ())
    return written


def replay_store(settings: ReplaySettings, renderer: str) -> list[Path]:
    """Collected episodes: drawn again from simulator states for mp4s, as they are stored for Rerun."""
    from sodp3d.data.store import EpisodeStore
    from sodp3d.tools.recordings import write_store_recordings
    from sodp3d.tools.video import write_store_videos

    assert settings.data
    folder = Path(settings.data).expanduser()
    path = folder if folder.suffix == ".zarr" else folder / "episodes.zarr"
    store = EpisodeStore.open(path)
    if len(store) == 0:
        raise InputError(f"data: {path} holds no finished episode yet.")
    count = min(settings.count, len(store))
    episodes = settings.episodes or [round(i * (len(store) - 1) / max(count - 1, 1)) for i in range(count)]
    output = Path(settings.output or path.parent / settings.folder).expanduser()
    if settings.viewer == "rerun":
        return write_store_recordings(store, episodes, output)
    return write_store_videos(store, renderer, episodes, output)


if __name__ == "__main__":
    main()
