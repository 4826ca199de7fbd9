"""The three stages behind `train.py mode=...`: what each needs before it starts, and where its run directory is."""

import logging
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sodp3d.core import checkpoint
from sodp3d.core.cli import command
from sodp3d.core.device import prepare_torch
from sodp3d.core.errors import InputError
from sodp3d.core.paths import outputs_root
from sodp3d.core.run import Run, is_finished, open_run, readable_config
from sodp3d.envs.config import EnvConfig, task_configs
from sodp3d.learning.buffers import EpisodeRecord
from sodp3d.learning.finetune import finetune
from sodp3d.learning.learner import check_likelihood
from sodp3d.learning.lookup import (
    as_data_was_seen,
    as_planner_was_trained,
    find_planner,
    label,
    make_rollouts,
    with_sampler,
)
from sodp3d.learning.measured import Measured, planner_to_measure
from sodp3d.learning.pretrain import check_acceleration, pretrain
from sodp3d.learning.recorded import recorded_episodes
from sodp3d.models.critic import Choice
from sodp3d.models.loading import checkpoint_of, load_choice, load_planner_and_state, require_same_task
from sodp3d.models.planner import Planner
from sodp3d.models.unet import require_unet
from sodp3d.rollouts.evaluate import Evaluation, evaluate, sentence
from sodp3d.rollouts.kept import ROLLOUTS, evaluate_and_keep, recall
from sodp3d.rollouts.rollout import Rollouts
from sodp3d.settings import TrainSettings, differences, measured_alike
from sodp3d.tools.plot import plot_run
from sodp3d.tools.video import write_rollout_videos

log = logging.getLogger(__name__)
SHARED = ("seed", "device", "threads", "workers", "render", "env", "obs", "mode", "method", "model", "evaluation")


def _begin(config: dict[str, Any]) -> tuple[list[EnvConfig], torch.device]:
    """Tasks and device, after a look at all settings: what cannot work stops here."""
    settings = TrainSettings.from_config(config)
    require_unet(settings.model.unet)
    return task_configs(config), prepare_torch(config)


def _open(config: dict[str, Any], sections: tuple[str, ...], *more: str) -> Run:
    """The run directory of this stage; its record is the part of the configuration that the stage uses."""
    kept = {key: config[key] for key in (*SHARED, *sections)}
    directory = Path(config["run_dir"]).expanduser() if config["run_dir"] else None
    parent = outputs_root(config) / config["mode"] / label(config, *more)
    return open_run(parent, kept, config["seed"], directory, differences)


def run_pretrain(config: dict[str, Any]) -> None:
    """mode=pretrain: all tasks of `env=` into one planner."""
    tasks, device = _begin(config)
    config = with_sampler(config)
    settings = TrainSettings.from_config(config)
    check_acceleration(settings.pretrain, device)
    config = as_data_was_seen(config, tasks)
    single = len(tasks) == 1  # a set is evaluated by mode=eval, task by task
    evaluation = make_rollouts(config, tasks[0], settings.evaluation.environments) if single else nullcontext()
    with _open(config, ("pretrain", "data")) as run, evaluation as rollouts:
        _conclude(run, "pretrain", pretrain(config, run, tasks, device, rollouts))


def run_finetune(config: dict[str, Any]) -> None:
    """mode=finetune: the pre-trained planner, one task, its reward, online."""
    tasks, device = _begin(config)
    if len(tasks) > 1:
        raise InputError(
            f"env: fine-tuning takes one task, but {config['env']['name']} is a set; choose one of its tasks."
        )
    path, task = find_planner(config, ("pretrain",)), tasks[0]
    config = as_planner_was_trained(config, path)
    settings = TrainSettings.from_config(config)
    planner, state = load_planner_and_state(path, device, **settings.sampler)
    require_same_task(state, planner, config, task)
    check_likelihood(planner, settings.finetune, settings.reg)
    recorded = _recorded(settings, planner, task)
    environments = max(settings.evaluation.environments, settings.finetune.episodes_per_iteration)
    algorithm, kept = settings.stage.algorithm, ("algorithm", "finetune", "reg", "planner", "data")
    with (
        _open({**config, "planner": str(path)}, kept, algorithm) as run,
        make_rollouts(config, task, environments) as rollouts,
    ):
        choice = load_choice(path, device)  # of a planner that was fine-tuned before

        def test_before() -> Evaluation:
            made = _made_before(run.config, settings, path, task, choice)
            return made or evaluate(planner, rollouts, task, settings.evaluation.test_seeds, choice)

        result = finetune(settings, run, planner, state["data_hash"], task, rollouts, test_before, recorded)
        _conclude(run, "finetune", result)


def _made_before(
    config: dict[str, Any], settings: TrainSettings, path: Path, task: EnvConfig, choice: Choice | None
) -> Evaluation | None:
    """The test of the planner in the run directory `path`, where it was made there just as it would be made here."""
    recorded = readable_config(path) if (path / "config.yaml").is_file() else None
    if recorded is None or not measured_alike(recorded, config):
        return None
    digest = checkpoint.digest_of(checkpoint_of(path))
    return recall(digest, task, settings.evaluation.test_seeds, path / "evaluation" / task.name, choice)


def _recorded(settings: TrainSettings, planner: Planner, task: EnvConfig) -> list[EpisodeRecord]:
    """The episodes that `finetune.offline=` names."""
    if not settings.finetune.offline:
        return []
    path = Path(settings.finetune.offline).expanduser()
    steps = checkpoint.steps(path / "checkpoints")
    with checkpoint.restoring(checkpoint.path_of(path / "checkpoints", steps[-1]) if steps else path):
        return recorded_episodes(path, planner, settings.finetune, task)


def run_eval(config: dict[str, Any]) -> None:
    """mode=eval: success rates with intervals on held-out seeds, and videos, for every task of `env=`.

    What was measured before a stop or a kill, of that very planner, is kept: it goes on with the next wave of episodes.
    """
    tasks, device = _begin(config)
    with planner_to_measure(config, device) as measured:
        for task in tasks:
            require_same_task(measured.state, measured.planner, measured.config, task)
        _measure(measured, tasks)


def _measure(measured: Measured, tasks: list[EnvConfig]) -> None:
    config = measured.config
    settings = TrainSettings.from_config(config)
    with _open({**config, "planner": measured.name}, ("planner",)) as run:
        results = {}
        for task in tasks:
            result = _evaluate(measured, settings, run, task)
            if result is None:
                return
            results[task.name] = result.summary()
            log.info("%s", sentence(results[task.name]))
        _finish(run, config, {"planner": measured.name, "tasks": results})
        log.info("videos and numbers: %s", run.directory)


def _evaluate(measured: Measured, settings: TrainSettings, run: Run, task: EnvConfig) -> Evaluation | None:
    """Evaluate on one task; its workers live as long as that takes, and are not started for what is kept."""
    folder, seeds = run.directory / "evaluation" / task.name, settings.evaluation.test_seeds
    with ExitStack() as stack:

        @cache
        def rollouts() -> Rollouts:
            return stack.enter_context(make_rollouts(measured.config, task, settings.evaluation.environments))

        return evaluate_and_keep(
            measured.planner,
            measured.digest,
            task,
            seeds,
            folder,
            rollouts,
            lambda: run.stop_requested,
            measured.choice,
        )


def _conclude(run: Run, mode: str, result: dict[str, Any] | None) -> None:
    """Draw the curve, and of a run that came to its end the videos; say where things are."""
    plot_run(run.directory, mode, run.metrics())
    if result is not None:
        _finish(run, run.config, result)
    log.info("%s %s", "finished:" if is_finished(run.directory) else "not finished yet:", run.directory)


def _finish(run: Run, config: dict[str, Any], result: dict[str, Any]) -> None:
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


STAGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "pretrain": run_pretrain,
    "finetune": run_finetune,
    "eval": run_eval,
}


@command("train")
def main(config: dict[str, Any]) -> None:
    """Run the stage that `mode=` names."""
    STAGES[config["mode"]](config)
