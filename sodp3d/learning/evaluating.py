"""mode=eval: what a planner comes to on held-out seeds, whether it is here or served."""

import logging
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from sodp3d.envs.config import EnvConfig
from sodp3d.learning.lookup import as_planner_was_trained, as_served, find_planner, make_rollouts, planner_of
from sodp3d.learning.measuring import measure, measure_side_by_side, summary_of
from sodp3d.learning.opening import begin, finish, open_stage, told_unseen
from sodp3d.models.loading import checkpoint_of, chosen_from, is_unseen, load_policy_and_state, require_fitting
from sodp3d.rollouts.evaluate import Evaluation, sentence
from sodp3d.rollouts.kept import evaluate_and_keep, of_choice
from sodp3d.serving.remote import RemotePlanner, is_served
from sodp3d.settings import TrainSettings

log = logging.getLogger(__name__)


def run_eval(config: dict[str, Any]) -> None:
    """mode=eval: success rates with intervals on held-out seeds, and videos, for every task of `env=`.

    What was measured before a stop or a kill, of that very planner, is kept: it goes on with the next wave of episodes.
    """
    tasks, device = begin(config)
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
    with open_stage({**first, "planner": str(path)}, ("planner",)) as run:
        folder = run.directory / "evaluation"
        if len(tasks) == 1:
            measure(first, device, tasks[0], measured[tasks[0].name], seeds, folder / tasks[0].name)
        found = measure_side_by_side([(parts[t.name], t, measured[t.name]) for t in tasks], seeds, folder)
        for task in tasks:
            log.info("%s", sentence(found[task.name].summary()))
        told = summary_of(found)
        if len(tasks) > 1:
            log.info("%s", sentence(told["mean"]))
        count = {name: chosen_from(source, first["evaluation"]["best_of"]) for name, source in measured.items()}
        finish(run, first, {"planner": str(path), "best_of": count, **told, **told_unseen(unseen)})
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
        chosen_from(source, settings.evaluation.best_of)
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
        with open_stage(config, ("planner",)) as run:
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
            told = told_unseen([task for task in tasks if is_unseen(remote.state, task)])
            count = dict.fromkeys(found, remote.count)
            finish(run, config, {"planner": config["planner"], "best_of": count, **summary_of(found), **told})
            log.info("videos and numbers: %s", run.directory)
