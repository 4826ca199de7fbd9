"""What is measured of a planner while it is pre-trained and after, on one task or on each of several.

One task is rolled out here, by workers that live as long as the run. Several are rolled out side by side, each in a
process of its own, which loads the planner from its checkpoint.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch

from sodp3d.core import checkpoint
from sodp3d.core.device import prepare_torch
from sodp3d.core.run import Run
from sodp3d.core.stopping import Stopped, on_signal
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.keeper import evaluate_newest
from sodp3d.learning.lookup import make_rollouts
from sodp3d.models.capture import capture
from sodp3d.models.loading import chosen_from, load_choice, load_policy_and_state
from sodp3d.models.policy import LearnedPolicy
from sodp3d.parallel.tasks import Job, at_once, run_side_by_side, share_of
from sodp3d.rollouts.evaluate import Evaluation, evaluate, mean_summary
from sodp3d.rollouts.kept import evaluate_and_keep, recall
from sodp3d.rollouts.rollout import Rollouts
from sodp3d.settings import TrainSettings
from sodp3d.settings.evaluation import require_validation
from sodp3d.vision.gl import settle
from sodp3d.vision.sensors import sensor

log = logging.getLogger(__name__)
Found = tuple[dict[str, float], dict[str, Any]]  # what to log, and what to add to a run's result


class Measurements(Protocol):
    """How a planner is measured whose weights are also in the run's newest checkpoint."""

    def validate(self, planner: LearnedPolicy, run: Run) -> dict[str, float]:
        """A look at validation seeds, as numbers to log. May raise Stopped."""

    def test(self, planner: LearnedPolicy, run: Run) -> Found | None:
        """The test, kept in the run; None where it was stopped meanwhile. May raise Stopped."""


class OneTask:
    """Measurements on one task."""

    def __init__(self, settings: TrainSettings, task: EnvConfig, rollouts: Rollouts) -> None:
        self.settings, self.task, self.rollouts = settings.evaluation, task, rollouts

    def validate(self, planner: LearnedPolicy, run: Run) -> dict[str, float]:
        """As `Measurements.validate`."""
        return evaluate(planner, self.rollouts, self.task, self.settings.validation_seeds).metrics("validation")

    def test(self, planner: LearnedPolicy, run: Run) -> Found | None:
        """As `Measurements.test`."""
        seeds = self.settings.test_seeds
        found = evaluate_newest(planner, run.checkpoints, run, self.task, seeds, self.rollouts)
        return None if found is None else (found.metrics(), {"evaluation": found.summary()})


class SeveralTasks:
    """Measurements on each task of a set, a few validation episodes of each."""

    def __init__(self, config: dict[str, Any], settings: TrainSettings, tasks: Sequence[EnvConfig]) -> None:
        self.config, self.tasks = config, tasks
        first = settings.evaluation.validation_seed
        self.validation_seeds = range(first, first + settings.pretrain.evaluate_episodes)
        require_validation("pretrain.evaluate_episodes", self.validation_seeds)
        self.test_seeds = settings.evaluation.test_seeds

    def validate(self, planner: LearnedPolicy, run: Run) -> dict[str, float]:
        """As `Measurements.validate`."""
        found = self._measure(run, self.validation_seeds, run.directory / "evaluation" / "validation")
        return metrics_of(found, "validation")

    def test(self, planner: LearnedPolicy, run: Run) -> Found | None:
        """As `Measurements.test`."""
        found = self._measure(run, self.test_seeds, run.directory / "evaluation")
        return metrics_of(found, "evaluation"), summary_of(found)

    def _measure(self, run: Run, seeds: range, folder: Path) -> dict[str, Evaluation]:
        newest = checkpoint.path_of(run.checkpoints, checkpoint.steps(run.checkpoints)[-1])
        parts = [(self.config, task, newest) for task in self.tasks]
        return measure_side_by_side(parts, seeds, folder)


def metrics_of(found: Mapping[str, Evaluation], kind: str) -> dict[str, float]:
    """Numbers to log: the means over tasks by their usual names, and the headline success of each task by its own."""
    each = [evaluation.metrics(kind) for evaluation in found.values()]
    means = {name: sum(metrics[name] for metrics in each) / len(each) for name in each[0]}
    return means | {f"{kind}_success/{task}": evaluation.success_rate for task, evaluation in found.items()}


def summary_of(found: Mapping[str, Evaluation]) -> dict[str, Any]:
    """What a result says of a planner on several tasks: each, and their mean."""
    tasks = {task: evaluation.summary() for task, evaluation in found.items()}
    return {"tasks": tasks, **({"mean": mean_summary(list(tasks.values()))} if len(tasks) > 1 else {})}


def measure_side_by_side(
    parts: Sequence[tuple[dict[str, Any], EnvConfig, Path]], seeds: range, folder: Path
) -> dict[str, Evaluation]:
    """Evaluate each task by the planner of its checkpoint, several at once; what `folder` holds of it is kept.

    parts: (configuration, task, checkpoint). Raises as `run_side_by_side`.
    """
    config = parts[0][0]
    if sensor(config["obs"]["name"]).draws:
        settle(config["render"])  # once, for all
    found = {part[1].name: _recalled(*part, seeds, folder) for part in parts}
    left = {part[1].name: part for part in parts if found[part[1].name] is None}
    together = at_once(config, len(left) or 1)
    jobs = [
        Job(name, _measure_apart, (share_of(own, together), task, path, seeds, folder / name))
        for name, (own, task, path) in left.items()
    ]

    def finished(name: str) -> None:
        found[name] = made = _recalled(*left[name], seeds, folder)
        if made is not None:
            count = sum(evaluation is not None for evaluation in found.values())
            log.info("%s: success %.0f %% (%d of %d tasks)", name, 100 * made.success_rate, count, len(found))

    run_side_by_side(jobs, together, finished)
    return {task: evaluation for task, evaluation in found.items() if evaluation is not None}


def _recalled(config: dict[str, Any], task: EnvConfig, path: Path, seeds: range, folder: Path) -> Evaluation | None:
    count = chosen_from(path, config["evaluation"]["best_of"])
    return recall(checkpoint.digest_of(path), task, seeds, folder / task.name, count)


def _measure_apart(config: dict[str, Any], task: EnvConfig, path: Path, seeds: range, folder: Path) -> None:
    """`measure`, in a process of its own."""
    measure(config, prepare_torch(config), task, path, seeds, folder)


def measure(
    config: dict[str, Any], device: torch.device, task: EnvConfig, path: Path, seeds: range, folder: Path
) -> None:
    """Evaluate the planner of checkpoint `path` on one task, and keep that in `folder`.

    Raises Stopped after a signal, with all whole waves of episodes kept.
    """
    settings = TrainSettings.from_config(config)
    planner, _ = load_policy_and_state(path, device, **settings.sampler)
    choice = load_choice(path, device, settings.evaluation.best_of)
    if settings.evaluation.compile:
        capture(planner)
    signals: list[int] = []

    def note(number: int) -> None:
        if signals:
            raise Stopped(number)
        signals.append(number)

    with on_signal(note), ExitStack() as stack:

        @cache
        def rollouts() -> Rollouts:
            return stack.enter_context(make_rollouts(config, task, settings.evaluation.environments))

        digest = checkpoint.digest_of(path)
        evaluate_and_keep(planner, digest, task, seeds, folder, rollouts, lambda: bool(signals), choice)
    if signals:
        raise Stopped(signals[0])
