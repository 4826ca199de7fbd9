"""All fifty Meta-World tasks: exact states, goals that a cloud can show, and every stage at its smallest size."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_env import config
from toy_sets import Looks

from sodp3d.collection.collect import open_store
from sodp3d.collection.environments import CollectionGroup
from sodp3d.collection.loop import metadata
from sodp3d.core.cli import compose
from sodp3d.data.conversion import convert_store
from sodp3d.data.store import EpisodeStore
from sodp3d.envs import RobotEnv, make_env, metaworld
from sodp3d.learning import stages
from sodp3d.vision.pointcloud import project

TASKS = metaworld.task_names()
# bin-picking, whose state holds None, and a task with two goal sites.
SOME_TASKS = ("bin-picking", "door-lock")
SMALL = ["env.camera.height=24", "env.camera.width=24", "env.points=16", "env.episode_steps=3"]


Pair = tuple[RobotEnv, RobotEnv]


@pytest.fixture(scope="module", params=TASKS)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Two environments of a task; pytest runs all tests of one task before it makes those of the next."""
    task = config("metaworld", f"env.task={request.param}")
    return make_env(task, "raycast"), make_env(task, "raycast")


def expert(task: str) -> Callable[[np.ndarray], np.ndarray]:
    """The task's own expert, which soon touches what is to be moved, with noise."""
    policy, noise = metaworld.MetaWorld.expert(task), np.random.default_rng(0)

    def act(state: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Constant\\(s\\) may be too high")
            chosen = policy.get_action(state.astype(np.float64))
        return np.clip(chosen + noise.normal(0, 0.3, 4), -1, 1)

    return act


def test_every_task_goes_on_from_a_saved_state_in_another_environment(pair: Pair) -> None:
    """Saved after the reset and in the middle; observations and rewards of fifty steps are equal."""
    env, other = pair
    act = expert(env.config.task)
    observation, _ = env.reset(seed=3)
    states, actions, seen = [], [], []
    for _ in range(70):
        states.append(env.get_state())
        actions.append(act(observation["state"]))
        observation, reward, *_ = env.step(actions[-1])
        seen.append((observation["state"], observation["agent_pos"], reward))
    other.reset(seed=4)  # other bodies and targets, which must not stay
    other.step(actions[0])
    for start in (0, 20):
        assert states[start].dtype == np.float64
        other.set_state(states[start])
        np.testing.assert_array_equal(other.get_state(), states[start])
        for action, expected in zip(actions[start : start + 50], seen[start : start + 50], strict=True):
            observation, reward, *_ = other.step(action)
            np.testing.assert_array_equal(observation["state"], expected[0])
            np.testing.assert_array_equal(observation["agent_pos"], expected[1])
            assert reward == expected[2]


def test_the_target_is_in_the_picture_and_the_crop_or_the_task_says_why_not(pair: Pair) -> None:
    """Its marker's top is, or where there is none, the target; what may stand before it is not looked at."""
    env, _ = pair
    camera, crop, sites = env.config.camera, env.config.crop, list(env.task.visible_sites)
    seen, offsets = [], []
    for seed in range(4):
        env.reset(seed=seed)
        target = np.array(env.task._env._target_pos)
        offsets.append(target - env.data.xpos)
        top = target.copy()
        if sites:
            distances = np.linalg.norm(env.data.site_xpos[sites] - target, axis=1)
            assert distances.min() < 1e-9, "no marker is at the target"
            top[2] += env.model.site_size[sites[int(distances.argmin())], 0]
        (u,), (v,), (z,) = project(top[None], env.camera_parameters())
        inside = bool((top > crop.low).all() and (top < crop.high).all())
        seen.append(inside and bool(z > 0 and 0 <= u < camera.width and 0 <= v < camera.height))
    assert all(seen) == any(seen) == (env.config.task not in metaworld.GOALS_OUT_OF_SIGHT)
    if not sites:  # then the target follows from where some body is
        assert (np.ptp(offsets, axis=0).max(axis=1) < 2e-3).any()


def test_every_task_is_collected_converted_and_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few, or all fifty where SODP3D_ALL_TASKS is set."""
    tasks = TASKS if os.environ.get("SODP3D_ALL_TASKS") else SOME_TASKS
    settings = compose("collect", ["env=mt50", *SMALL, "agent=scripted", "agent.policy=random"])
    for name in tasks:
        task = config("metaworld", f"env.task={name}", *SMALL)
        folder = tmp_path / "data" / task.name
        group = CollectionGroup(task, "raycast")
        with open_store(folder, task, group.describe(), settings) as store:
            group.reset([0], record=True)
            finished: Any = None
            while finished is None:
                finished = group.step(np.full((1, 4), 0.5, np.float32))[1][0]
            store.append(finished.steps, metadata(finished, len(finished.actions)))
        convert_store(folder / "episodes.zarr", task)
        assert EpisodeStore.open(folder / "episodes.zarr").verify() == []
    listed = ",".join(tasks)
    training = ["env=mt50", f"env.tasks=[{listed}]", *SMALL, f"root={tmp_path}", f"run_dir={tmp_path}/run"]
    smallest = ["pretrain.steps=1", "pretrain.batch_size=2", "threads=1", "device=cpu", "model.unet=simple_dp3"]
    monkeypatch.setattr(stages, "SeveralTasks", lambda *_: Looks())  # evaluations are test_sets_pipeline's
    stages.run_pretrain(compose("train", [*training, *smallest]))
    assert (tmp_path / "run" / "result.json").exists()
