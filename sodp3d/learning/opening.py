"""What every stage begins and ends with: checks before anything is done, its run directory, curves and videos."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sodp3d.core import registry
from sodp3d.core.device import prepare_torch
from sodp3d.core.paths import outputs_root
from sodp3d.core.run import Run, is_finished, open_run
from sodp3d.envs import require_tasks
from sodp3d.envs.config import RECORDED, EnvConfig, task_configs
from sodp3d.learning.lookup import label
from sodp3d.models.capture import require_capture
from sodp3d.models.policy import method_class
from sodp3d.models.unet import require_unet
from sodp3d.rollouts.kept import ROLLOUTS
from sodp3d.settings import TrainSettings, differences
from sodp3d.tools.plot import plot_run
from sodp3d.tools.video import write_rollout_videos

log = logging.getLogger(__name__)
SHARED = ("seed", "device", "threads", "workers", "render", "env", "obs", "mode", "method", "model", "evaluation")


def begin(config: dict[str, Any]) -> tuple[list[EnvConfig], torch.device]:
    """Tasks and device, after a look at all settings: what cannot work stops here."""
    settings = TrainSettings.from_config(config)
    require_unet(settings.model.unet)
    tasks, method = task_configs(config), method_class(settings.stage.method)
    method.window(tasks[0], settings.model)
    registry.require(registry.FAMILIES, tasks[0].family, "env.family")
    if tasks[0].family == RECORDED and settings.stage.mode != "pretrain":
        require_tasks(tasks)  # says what is needed to act
    device = prepare_torch(config)
    if settings.evaluation.compile:
        require_capture("evaluation.compile", method, device)
    if settings.finetune.compile:
        require_capture("finetune.compile", method, device)
    return tasks, device


def open_stage(config: dict[str, Any], sections: tuple[str, ...], *more: str) -> Run:
    """The run directory of this stage; its record is the part of the configuration that the stage uses."""
    kept = {key: config[key] for key in (*SHARED, *sections)}
    directory = Path(config["run_dir"]).expanduser() if config["run_dir"] else None
    parent = outputs_root(config) / config["mode"] / label(config, *more)
    return open_run(parent, kept, config["seed"], directory, differences, config["tracker"])


def conclude(run: Run, mode: str, result: dict[str, Any] | None) -> None:
    """Draw the curve, and of a run that came to its end the videos; say where things are."""
    plot_run(run.directory, mode, run.metrics())
    if result is not None:
        finish(run, run.config, result)
    log.info("%s %s", "finished:" if is_finished(run.directory) else "not finished yet:", run.directory)


def finish(run: Run, config: dict[str, Any], result: dict[str, Any]) -> None:
    """Write the videos of the last evaluation, then publish the result; a stopped run does the rest when it goes on."""
    for task in task_configs(config) if config["evaluation"]["videos"] else []:
        if run.stop_requested:
            return
        folder = run.directory / "evaluation" / task.name
        if (folder / ROLLOUTS).is_file():
            count = config["evaluation"]["videos"]
            write_rollout_videos(folder, task, config["render"], count, run.directory / "videos")
    if not run.stop_requested:
        run.finish(result)


def told_unseen(tasks: Sequence[EnvConfig]) -> dict[str, Any]:
    """What a result says of tasks that its planner was not trained on."""
    names = [task.name for task in tasks]
    if names:
        log.info("unseen: the planner was not trained on %s", ", ".join(names))
    return {"unseen": names} if names else {}
