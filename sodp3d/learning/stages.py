"""The three stages behind `train.py mode=...`: what each needs before it starts, and where its run directory is."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from sodp3d.core import checkpoint, registry
from sodp3d.core.cli import command
from sodp3d.core.device import prepare_torch
from sodp3d.core.errors import InputError
from sodp3d.core.paths import outputs_root
from sodp3d.core.run import Run, is_finished, open_run, readable_config
from sodp3d.data.recording import as_recorded
from sodp3d.envs import require_tasks
from sodp3d.envs.config import RECORDED, EnvConfig, task_configs
from sodp3d.learning.buffers import EpisodeRecord
from sodp3d.learning.finetune import finetune
from sodp3d.learning.learner import check_likelihood
from sodp3d.learning.lookup import (
    as_data_was_seen,
    as_planner_was_trained,
    as_served,
    find_planner,
    label,
    make_rollouts,
    planner_of,
    with_sampler,
    with_tasks_there,
)
from sodp3d.learning.measuring import (
    Measurements,
    OneTask,
    SeveralTasks,
    measure,
    measure_side_by_side,
    summary_of,
)
from sodp3d.learning.offline import Offline
from sodp3d.learning.pretrain import check_acceleration, pretrain
from sodp3d.learning.recorded import recorded_episodes
from sodp3d.learning.sets import as_task, finetune_set, is_of_set
from sodp3d.models.critic import Choice
from sodp3d.models.loading import (
    checkpoint_of,
    is_unseen,
    load_choice,
    load_planner_and_state,
    load_policy_and_state,
    require_fitting,
)
from sodp3d.models.planner import Planner
from sodp3d.models.policy import method_class
from sodp3d.models.unet import require_unet
from sodp3d.rollouts.evaluate import Evaluation, evaluate, sentence
from sodp3d.rollouts.kept import ROLLOUTS, evaluate_and_keep, of_choice, recall
from sodp3d.serving.remote import RemotePlanner, is_served
from sodp3d.settings import TrainSettings, differences, measured_alike
from sodp3d.tools.plot import plot_run
from sodp3d.tools.video import write_rollout_videos

log = logging.getLogger(__name__)
SHARED = ("seed", "device", "threads", "workers", "render", "env", "obs", "mode", "method", "model", "evaluation")


def _begin(config: dict[str, Any]) -> tuple[list[EnvConfig], torch.device]:
    """Tasks and device, after a look at all settings: what cannot work stops here."""
    settings = TrainSettings.from_config(config)
    require_unet(settings.model.unet)
    tasks, method = task_configs(config), method_class(settings.stage.method)
    method.window(tasks[0], settings.model)
    registry.require(registry.FAMILIES, tasks[0].family, "env.family")
    if tasks[0].family == RECORDED and settings.stage.mode != "pretrain":
        require_tasks(tasks)  # says what is needed to act
    return tasks, prepare_torch(config)


def _open(config: dict[str, Any], sections: tuple[str, ...], *more: str) -> Run:
    """The run directory of this stage; its record is the part of the configuration that the stage uses."""
    kept = {key: config[key] for key in (*SHARED, *sections)}
    directory = Path(config["run_dir"]).expanduser() if config["run_dir"] else None
    parent = outputs_root(config) / config["mode"] / label(config, *more)
    return open_run(parent, kept, config["seed"], directory, differences)


def run_pretrain(config: dict[str, Any]) -> None:
    """mode=pretrain: all tasks of `env=` into one policy of `method=`."""
    tasks, device = _begin(config)
    config = with_sampler(config)
    settings = TrainSettings.from_config(config)
    check_acceleration(settings.pretrain, device)
    if len(tasks) > 1:
        config, tasks = with_tasks_there(config, tasks, settings.stage.partial)
    config = as_data_was_seen(config, tasks)
    with ExitStack() as stack:
        measurements: Measurements
        if tasks[0].family == RECORDED:
            measurements = Offline(config, tasks)
        elif len(tasks) == 1:
            rollouts = stack.enter_context(make_rollouts(config, tasks[0], settings.evaluation.environments))
            measurements = OneTask(settings, tasks[0], rollouts)
        else:
            measurements = SeveralTasks(config, settings, tasks)
        run = stack.enter_context(_open(config, ("pretrain", "data")))
        _conclude(run, "pretrain", pretrain(config, run, tasks, device, measurements))


def run_finetune(config: dict[str, Any]) -> None:
    """mode=finetune: the pre-trained planner, one task, its reward, online; of a set each task by itself."""
    tasks, device = _begin(config)
    if not method_class(config["method"]).tunable:
        raise InputError(
            f"method: fine-tuning tunes the denoising steps of a planner, and method={config['method']} has none; "
            f"evaluate it as it is (mode=eval method={config['method']}), or fine-tune a planner (method=sodp)."
        )
    path = find_planner(config, ("pretrain",))
    if len(tasks) > 1:
        _finetune_set(config, tasks, path, device)
        return
    task = tasks[0]
    path = planner_of(path, task)
    config = as_planner_was_trained(config, path)
    settings = TrainSettings.from_config(config)
    planner, state = load_planner_and_state(path, device, **settings.sampler)
    _check_start(config, settings, planner, state, task)
    recorded = _recorded(settings, planner, task)
    environments = max(settings.evaluation.environments, settings.finetune.episodes_per_iteration)
    with (
        _open_tuning(config, path) as run,
        make_rollouts(config, task, environments) as rollouts,
    ):
        choice = load_choice(path, device)  # of a planner that was fine-tuned before

        def test_before() -> Evaluation:
            made = _made_before(run.config, settings, path, task, choice)
            return made or evaluate(planner, rollouts, task, settings.evaluation.test_seeds, choice)

        result = finetune(settings, run, planner, state["data_hash"], task, rollouts, test_before, recorded)
        if result is not None:
            result |= {"trained_on": state["tasks"], **_unseen([task] if is_unseen(state, task) else [])}
        _conclude(run, "finetune", result)


def _open_tuning(config: dict[str, Any], path: Path) -> Run:
    """The run directory of fine-tuning the planner at `path`."""
    kept = ("algorithm", "finetune", "reg", "planner", "data")
    return _open({**config, "planner": str(path)}, kept, config["algorithm"])


def _check_start(
    config: dict[str, Any], settings: TrainSettings, planner: Planner, state: dict[str, Any], task: EnvConfig
) -> None:
    """Raise InputError where fine-tuning cannot begin with that planner."""
    require_fitting(state, planner, config, task)
    check_likelihood(planner, settings.finetune, settings.reg)


def _unseen(tasks: Sequence[EnvConfig]) -> dict[str, Any]:
    """What a result says of tasks that its planner was not trained on."""
    names = [task.name for task in tasks]
    if names:
        log.info("unseen: the planner was not trained on %s", ", ".join(names))
    return {"unseen": names} if names else {}


def _finetune_set(config: dict[str, Any], tasks: list[EnvConfig], path: Path, device: torch.device) -> None:
    """Each task of a set by a run of its own, after a look at what any of them needs; and the record of all."""
    planners = {task.name: planner_of(path, task) for task in tasks}
    parts = {task.name: {**as_task(config, task), "planner": str(planners[task.name])} for task in tasks}
    whole = {name: as_planner_was_trained(part, planners[name]) for name, part in parts.items()}
    for source in dict.fromkeys(planners.values()):
        settings = TrainSettings.from_config(as_planner_was_trained(config, source))
        planner, state = load_planner_and_state(source, device, **settings.sampler)
        for task in tasks:
            if planners[task.name] == source:
                _check_start(whole[task.name], settings, planner, state, task)
                _recorded(settings, planner, task)

    def new_run(name: str) -> Path:
        return _open_tuning({**whole[name], "run_dir": None}, planners[name]).directory

    with _open_tuning(as_planner_was_trained(config, next(iter(planners.values()))), path) as run:
        finetune_set(run, parts, new_run, run_finetune)
        log.info("finished: %s", run.directory)


def _made_before(
    config: dict[str, Any], settings: TrainSettings, path: Path, task: EnvConfig, choice: Choice | None
) -> Evaluation | None:
    """The test of the planner in the run directory `path`, where it was made there just as it would be made here."""
    recorded = readable_config(path) if (path / "config.yaml").is_file() else None
    if recorded is not None and is_of_set(recorded, task):
        recorded = as_task(recorded, task)
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
    if is_served(config["planner"]):
        _eval_served(config, tasks)
        return
    path = find_planner(config, ("finetune", "pretrain"))
    # Of each task once: a run that goes on meanwhile would have another newest one.
    measured = {task.name: checkpoint_of(planner_of(path, task)) for task in tasks}
    parts = {task.name: as_planner_was_trained(config, measured[task.name]) for task in tasks}
    unseen = _check_planners(parts, measured, tasks, device)
    first = parts[tasks[0].name]
    seeds = TrainSettings.from_config(first).evaluation.test_seeds
    with _open({**first, "planner": str(path)}, ("planner",)) as run:
        folder = run.directory / "evaluation"
        if len(tasks) == 1:
            measure(first, device, tasks[0], measured[tasks[0].name], seeds, folder / tasks[0].name)
        found = measure_side_by_side([(parts[t.name], t, measured[t.name]) for t in tasks], seeds, folder)
        for task in tasks:
            log.info("%s", sentence(found[task.name].summary()))
        told = summary_of(found)
        if len(tasks) > 1:
            log.info("%s", sentence(told["mean"]))
        _finish(run, first, {"planner": str(path), **told, **_unseen(unseen)})
        log.info("videos and numbers: %s", run.directory)


def _check_planners(
    parts: dict[str, dict[str, Any]], planners: dict[str, Path], tasks: list[EnvConfig], device: torch.device
) -> list[EnvConfig]:
    """The tasks that their planners have not seen. Raises InputError where one's planner does not fit it."""
    unseen = []
    for source in dict.fromkeys(planners.values()):
        sharing = [task for task in tasks if planners[task.name] == source]
        settings = TrainSettings.from_config(parts[sharing[0].name])
        planner, state = load_policy_and_state(source, device, **settings.sampler)
        load_choice(source, device, settings.evaluation.best_of)
        for task in sharing:
            require_fitting(state, planner, parts[task.name], task)
        unseen += [task for task in sharing if is_unseen(state, task)]
    return unseen


def _eval_served(config: dict[str, Any], tasks: list[EnvConfig]) -> None:
    """The same of a planner that is served: in this process, since one connection serves all episodes."""
    with RemotePlanner(config["planner"]) as remote:
        config = as_served(config, remote)
        settings = TrainSettings.from_config(config)
        for task in tasks:
            require_fitting(remote.state, remote, config, task)
        with _open(config, ("planner",)) as run:
            found: dict[str, Evaluation] = {}
            for task in tasks:
                folder, digest = run.directory / "evaluation" / task.name, of_choice(remote.digest, remote.count)
                with ExitStack() as stack:
                    making = partial(make_rollouts, config, task, settings.evaluation.environments)
                    rollouts = cache(lambda stack=stack, making=making: stack.enter_context(making()))
                    seeds, stopped = settings.evaluation.test_seeds, lambda: run.stop_requested
                    evaluation = evaluate_and_keep(remote, digest, task, seeds, folder, rollouts, stopped)
                if evaluation is None:
                    return
                found[task.name] = evaluation
                log.info("%s", sentence(evaluation.summary()))
            _finish(run, config, {"planner": config["planner"], **summary_of(found)})
            log.info("videos and numbers: %s", run.directory)


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
    STAGES[config["mode"]](as_recorded(config) if config["mode"] == "pretrain" else config)
