"""Evaluating a planner from point clouds as mode=eval does: rendering, clouds and plans of fifty episodes.

Beside that, a few of the episodes one after another in one process: what stepping many at once saves.

python benchmarks/evaluation.py [--planner <run>] [--single 3] [--rounds 3] [options of train.py: env=adroit_hammer ...]
-> results/benchmarks/evaluation.json
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import numpy as np
from gymnasium.spaces import Dict
from timing import Stopwatch, compare, write

from sodp3d.core.cli import compose
from sodp3d.core.device import prepare_torch
from sodp3d.data.dataset import WindowDataset
from sodp3d.envs import EnvConfig, make_env
from sodp3d.envs.config import task_configs
from sodp3d.envs.wrappers import ChunkedEnv
from sodp3d.learning.lookup import as_planner_was_trained, make_rollouts, with_sampler
from sodp3d.learning.pretrain import new_policy
from sodp3d.models.loading import load_planner_and_state, require_fitting
from sodp3d.models.planner import Planner
from sodp3d.rollouts.evaluate import Evaluation, evaluate
from sodp3d.rollouts.rollout import Rollouts
from sodp3d.settings import TrainSettings
from sodp3d.vision.gl import settle


def fresh_planner(config: dict[str, Any], task: EnvConfig) -> Planner:
    """What pre-training would begin with. But on pen, whose episodes end early, weights do not change the time."""
    environment = ChunkedEnv(make_env(task), config["obs"]["name"], config["obs"]["backend"])
    assert isinstance(environment.observation_space, Dict)
    spaces = {**environment.observation_space.spaces, "action": environment.action_space}
    shapes = {key: tuple(space.shape or ())[1:] for key, space in spaces.items()}
    # Fitted to zeros, the normalizer changes nothing: actions are in [-1, 1] anyway.
    ranges = {key: (np.zeros(shape[-1]), np.zeros(shape[-1])) for key, shape in shapes.items()}
    seen = cast(WindowDataset, SimpleNamespace(shapes=shapes, ranges=ranges))  # all of it that a new planner looks at
    planner: Planner = new_policy(config, [task], seen)
    return planner


def timed_planning(planner: Planner, rollouts: Rollouts, task: EnvConfig, seeds: range) -> tuple[Evaluation, float]:
    """An evaluation, and the share of its time in which the planner planned while the environments waited."""
    planning, start = Stopwatch(), time.perf_counter()
    with patch.multiple(planner, encode=planning(planner.encode), sample_chain=planning(planner.sample_chain)):
        evaluation = evaluate(planner, rollouts, task, seeds)
    return evaluation, sum(planning.seconds) / (time.perf_counter() - start)


def measure(planner: Planner, config: dict[str, Any], task: EnvConfig, single: int, rounds: int) -> dict[str, object]:
    """Seconds of the whole evaluation, and of an episode in it and alone."""
    settings, shares = TrainSettings.from_config(config).evaluation, []
    start = time.perf_counter()
    with make_rollouts(config, task, settings.environments) as many:
        evaluation = evaluate(planner, many, task, settings.test_seeds)
        with_start_up = time.perf_counter() - start
        with make_rollouts(config, task, 1) as one:
            ways = {
                "batched": lambda: shares.append(timed_planning(planner, many, task, settings.test_seeds)[1]),
                "one_at_a_time": lambda: evaluate(planner, one, task, settings.test_seeds[:single]),
            }
            seconds = compare(ways, rounds)
    steps = sum(episode.length for episode in evaluation.episodes)
    each = {"one_at_a_time": seconds["one_at_a_time"] / single, "batched": seconds["batched"] / settings.episodes}
    return {
        "control_steps": steps,
        "seconds": seconds["batched"],
        "seconds_with_start_up": with_start_up,
        "control_steps_per_second": steps / seconds["batched"],
        "share_of_planning": statistics.median(shares),  # the rest is stepping, rendering and clouds
        "seconds_per_episode": each,
        "ratio": each["one_at_a_time"] / each["batched"],
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--planner", type=Path, help="a run directory or checkpoint; an untrained planner by default")
    parser.add_argument("--single", type=int, default=3, help="episodes that are run one at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("options", nargs="*", help="of train.py")
    arguments = parser.parse_args()
    config = compose("train", ["mode=eval", *arguments.options])
    (task,), device = task_configs(config), prepare_torch(config)
    if arguments.planner:
        config = as_planner_was_trained(config, arguments.planner)
        planner, state = load_planner_and_state(arguments.planner, device, **TrainSettings.from_config(config).sampler)
        require_fitting(state, planner, config, task)
    else:
        config = with_sampler(config)
        planner = fresh_planner(config, task).to(device)
    described = {
        "env": task.name,
        "observation": planner.config.observation,
        "planner": str(arguments.planner or "untrained"),
        "sampling_steps": planner.config.inference_steps,
        "renderer": settle(config["render"]),
        "workers": config["workers"] or os.cpu_count(),
        "episodes": config["evaluation"]["episodes"],
        "environments": config["evaluation"]["environments"],
        "single": arguments.single,
        "rounds": arguments.rounds,
    }
    write("evaluation", described | measure(planner, config, task, arguments.single, arguments.rounds))


if __name__ == "__main__":
    main()
