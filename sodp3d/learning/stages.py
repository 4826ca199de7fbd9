"""The stages behind `train.py mode=...`: what each needs before it starts, and what its result says."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from sodp3d.core import checkpoint
from sodp3d.core.cli import command
from sodp3d.core.errors import InputError
from sodp3d.core.following import Follower
from sodp3d.core.run import Run, is_finished, readable_config
from sodp3d.data.recording import as_recorded
from sodp3d.envs.config import RECORDED, EnvConfig
from sodp3d.learning.augmentation import require_clouds
from sodp3d.learning.buffers import EpisodeRecord
from sodp3d.learning.checks import START
from sodp3d.learning.distill import Teacher, distill
from sodp3d.learning.evaluating import run_eval
from sodp3d.learning.finetune import finetune
from sodp3d.learning.learner import check_likelihood
from sodp3d.learning.lookup import (
    as_data_was_seen,
    as_planner_was_trained,
    find_planner,
    make_rollouts,
    planner_of,
    require_denoising,
    with_sampler,
    with_tasks_there,
)
from sodp3d.learning.measuring import (
    Measurements,
    OneTask,
    SeveralTasks,
)
from sodp3d.learning.offline import Offline
from sodp3d.learning.opening import begin, conclude, open_stage, told_unseen
from sodp3d.learning.pretrain import check_acceleration, pretrain
from sodp3d.learning.processes import Alone, join, require_equal_parts
from sodp3d.learning.recorded import recorded_episodes
from sodp3d.learning.sets import as_task, finetune_set, is_of_set
from sodp3d.learning.telling import require_states
from sodp3d.models.critic import Choice
from sodp3d.models.loading import (
    checkpoint_of,
    is_unseen,
    load_choice,
    load_planner_and_state,
    planner_state,
    require_fitting,
)
from sodp3d.models.planner import Planner
from sodp3d.models.sampled import plans_of
from sodp3d.rollouts.evaluate import Evaluation, sentence
from sodp3d.rollouts.kept import evaluate_and_keep, recall
from sodp3d.rollouts.rollout import Rollouts
from sodp3d.settings import TrainSettings, measured_alike

log = logging.getLogger(__name__)


def run_pretrain(config: dict[str, Any]) -> None:
    """mode=pretrain: all tasks of `env=` into one policy of `method=`, by one process or by several together."""
    tasks, device = begin(config)
    _refuse_best_of(config, "mode=pretrain has no critic that could choose", "leave it out")
    config = with_sampler(config)
    settings = TrainSettings.from_config(config)
    check_acceleration(settings.pretrain, device)
    require_clouds(settings.pretrain.augment, settings.obs.name)
    require_states(settings)
    require_equal_parts(settings.pretrain.batch_size)
    with join(device) as processes:
        with processes.main_first():
            if tasks[0].family != RECORDED:
                config, tasks = with_tasks_there(config, tasks, settings.stage.partial)
            config = as_data_was_seen(config, tasks)
        if processes.main:
            _lead(config, settings, tasks, processes)
        else:
            with Follower(Path(processes.told())) as run:
                pretrain(config, run, tasks, processes.device, None, processes)


def _lead(config: dict[str, Any], settings: TrainSettings, tasks: list[EnvConfig], processes: Alone) -> None:
    """Pre-train in the process that also measures, and writes the run."""
    with ExitStack() as stack:
        measurements: Measurements
        if tasks[0].family == RECORDED:
            measurements = Offline(config, tasks)
        elif len(tasks) == 1:
            rollouts = stack.enter_context(make_rollouts(config, tasks[0], settings.evaluation.environments))
            measurements = OneTask(settings, tasks[0], rollouts)
        else:
            measurements = SeveralTasks(config, settings, tasks)
        run = stack.enter_context(open_stage(config, ("pretrain", "data")))
        processes.told(str(run.directory.absolute()))
        result = pretrain(config, run, tasks, processes.device, measurements, processes)
        conclude(run, "pretrain", result)


def run_finetune(config: dict[str, Any]) -> None:
    """mode=finetune: the pre-trained planner, one task, its reward, online; of a set each task by itself."""
    tasks, device = begin(config)
    require_denoising(config, "fine-tuning tunes")
    _refuse_best_of(config, "mode=finetune tests by finetune.tested_best_of", "use finetune.tested_best_of={asked}")
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

        def test_before() -> Evaluation | None:
            return _tested(run, settings, path, planner, task, rollouts, choice)

        start = {START: checkpoint.digest_of(checkpoint_of(path))}
        described = planner_state(planner, [task], state["data_hash"]) | start
        result = finetune(settings, run, planner, described, task, rollouts, test_before, recorded)
        if result is not None:
            result |= {"trained_on": state["tasks"], **told_unseen([task] if is_unseen(state, task) else [])}
        conclude(run, "finetune", result)


def _refuse_best_of(config: dict[str, Any], why: str, instead: str) -> None:
    """Raise InputError where a stage that cannot heed `evaluation.best_of` is given it."""
    asked = config["evaluation"]["best_of"]
    if asked is not None:
        raise InputError(f"evaluation.best_of: {why}, got {asked}; {instead.format(asked=asked)}.")


def _open_tuning(config: dict[str, Any], path: Path) -> Run:
    """The run directory of fine-tuning the planner at `path`."""
    kept = ("algorithm", "finetune", "reg", "planner", "data")
    return open_stage({**config, "planner": str(path)}, kept, config["algorithm"])


def _check_start(
    config: dict[str, Any], settings: TrainSettings, planner: Planner, state: dict[str, Any], task: EnvConfig
) -> None:
    """Raise InputError where fine-tuning cannot begin with that planner."""
    require_fitting(state, planner, config, task)
    check_likelihood(planner, settings.finetune, settings.reg)
    if settings.finetune.credit == "branch" and task.n_obs_steps > task.n_action_steps + 1:
        raise InputError(
            f"finetune.credit: a branch begins with one observed step, and with env.n_obs_steps={task.n_obs_steps} and "
            f"env.n_action_steps={task.n_action_steps} its second plan still lacks some; use another credit."
        )


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


def _tested(
    run: Run,
    settings: TrainSettings,
    path: Path,
    planner: Planner,
    task: EnvConfig,
    rollouts: Rollouts,
    choice: Choice | None,
) -> Evaluation | None:
    """The test of the planner at `path` that a run begins with: its own run's, or one of this run; None if stopped."""
    seeds, folder = settings.evaluation.test_seeds, run.directory / "evaluation" / "before" / task.name
    digest = checkpoint.digest_of(checkpoint_of(path))
    return _made_before(run.config, settings, path, task, plans_of(choice)) or evaluate_and_keep(
        planner, digest, task, seeds, folder, lambda: rollouts, lambda: run.stop_requested, choice
    )


def _made_before(
    config: dict[str, Any], settings: TrainSettings, path: Path, task: EnvConfig, plans: int
) -> Evaluation | None:
    """The test of the planner in the run directory `path`, where it was made there just as it would be made here.

    plans: of which its critic chooses.
    """
    recorded = readable_config(path) if (path / "config.yaml").is_file() else None
    if recorded is not None and is_of_set(recorded, task):
        recorded = as_task(recorded, task)
    if recorded is None or not measured_alike(recorded, config):
        return None
    digest, seeds = checkpoint.digest_of(checkpoint_of(path)), settings.evaluation.test_seeds
    folders = (path / "evaluation", path / "evaluation" / "best")  # of the last planner, and of the best by validation
    found = (recall(digest, task, seeds, folder / task.name, plans) for folder in folders)
    return next((evaluation for evaluation in found if evaluation is not None), None)


def _recorded(settings: TrainSettings, planner: Planner, task: EnvConfig) -> list[EpisodeRecord]:
    """The episodes that `finetune.offline=` names."""
    if not settings.finetune.offline:
        return []
    path = Path(settings.finetune.offline).expanduser()
    steps = checkpoint.steps(path / "checkpoints")
    if steps and not is_finished(path):  # its episodes would be others when this run goes on after a stop
        raise InputError(f"finetune.offline: {path} is not finished, and may get other episodes; let it end first.")
    with checkpoint.restoring(checkpoint.path_of(path / "checkpoints", steps[-1]) if steps else path):
        return recorded_episodes(path, planner, settings.finetune, settings.reg, task)


def run_distill(config: dict[str, Any]) -> None:
    """mode=distill: a planner into one that plans in one or two steps, on what it sees in roll-outs of one task."""
    tasks, device = begin(config)
    require_denoising(config, "distillation shortens")
    if len(tasks) > 1:
        raise InputError(
            f"env: a planner is distilled on one task, but {len(tasks)} came; choose one: {tasks[0].choice}"
        )
    task = tasks[0]
    path = planner_of(find_planner(config, ("finetune", "pretrain")), task)
    config = as_planner_was_trained(config, path)
    settings = TrainSettings.from_config(config)
    planner, state = load_planner_and_state(path, device, **settings.sampler)
    digest = checkpoint.digest_of(checkpoint_of(path))
    teacher = Teacher(planner, load_choice(path, device, settings.evaluation.best_of), digest)
    require_fitting(state, planner, config, task)
    steps, of = settings.distill.steps, planner.config.denoising_steps
    if of % steps:
        raise InputError(f"distill.steps: expected a divisor of the planner's {of} denoising steps, got {steps}.")
    name = "one-step" if steps == 1 else "two-steps"
    with (
        open_stage({**config, "planner": str(path)}, ("distill", "planner"), name) as run,
        make_rollouts(config, task, settings.evaluation.environments) as rollouts,
    ):
        before = _tested(run, settings, path, planner, task, rollouts, teacher.choice)
        result = None
        if before is not None:
            log.info("before: %s", sentence(before.summary()))
            measurements = OneTask(settings, task, rollouts)
            result = distill(settings, run, teacher, state["data_hash"], task, rollouts, measurements)
        if before is not None and result is not None:
            log.info("now: %s", sentence(result["evaluation"]))
            result = {"before": before.summary(), **result}
        conclude(run, "distill", result)


STAGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "pretrain": run_pretrain,
    "finetune": run_finetune,
    "distill": run_distill,
    "eval": run_eval,
}


@command("train", shared=lambda config: config["mode"] == "pretrain")
def main(config: dict[str, Any]) -> None:
    """Run the stage that `mode=` names."""
    STAGES[config["mode"]](as_recorded(config) if config["mode"] == "pretrain" else config)
