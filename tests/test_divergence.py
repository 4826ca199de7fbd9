"""A simulation that diverges ends its episode as failed, is told, and is never kept as experience."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from toy_env import config

from sodp3d.collection.environments import CollectionGroup
from sodp3d.collection.playback import play
from sodp3d.collection.recording import Recording
from sodp3d.core.errors import InputError
from sodp3d.core.seeds import FIRST_SEED, REPLACEMENT, episode_seed
from sodp3d.envs import RobotEnv, make_env
from sodp3d.learning.tuning import Finetuning
from sodp3d.rollouts.group import EnvironmentGroup
from sodp3d.rollouts.rollout import Episode

SMALL = ("env.camera.height=16", "env.camera.width=16", "env.points=16", "env.episode_steps=6")
DOOR = config("adroit_door", *SMALL)
REACH = config("metaworld", "env.task=reach", *SMALL)
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 28)).astype(np.float32)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MuJoCo writes its log where it is."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs_away(env: RobotEnv) -> None:
    """MuJoCo notices in its next step, resets the simulation, and goes on."""
    env.data.qvel[:] = 1e11


def diverge(env: RobotEnv, frame: int, how: Callable[[RobotEnv], None] = runs_away) -> None:
    """Let the simulation diverge in a raw frame to come, and in no other."""
    step, count = env.task.step, 0

    def counted(action: np.ndarray) -> Any:
        nonlocal count
        count += 1
        if count == frame + 1:
            how(env)
        return step(action)

    env.task.step = counted  # type: ignore[method-assign]


def loses_itself(env: RobotEnv) -> None:
    """Not finite after MuJoCo's last step of a frame, so rewards fail before MuJoCo can notice."""
    env.data.qpos[:] = np.nan
    raise ValueError("a and b must range between 0 and 1")


@pytest.mark.parametrize("how", [runs_away, loses_itself])
@pytest.mark.parametrize("task", [DOOR, REACH], ids=lambda task: task.name)
def test_an_episode_ends_where_its_simulation_diverges(
    task: Any, how: Callable[[RobotEnv], None], elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    env, actions = make_env(task, "raycast"), ACTIONS
    actions = ACTIONS[:, : env.task.action_size]
    env.reset(seed=5)
    for action in actions[:3]:
        before, *_ = env.step(action)
    depth = env.render_depth()
    diverge(env, 0, how)
    after, reward, terminated, truncated, info = env.step(actions[3])
    assert (reward, terminated, truncated, info["diverged"]) == (0.0, False, True, True)
    assert not any(info[f"success_{metric}"] for metric in ("final", "count", "any"))
    np.testing.assert_array_equal(after["agent_pos"], before["agent_pos"])
    np.testing.assert_array_equal(env.render_depth(), depth)  # the last scene that means something
    (told,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"{task.name}: the simulation diverged at step 3 of the episode of seed 5" in told
    assert list(elsewhere.iterdir()) == []
    with pytest.raises(RuntimeError, match="reset"):
        env.step(actions[4])
    fresh = make_env(task, "raycast")
    for each in (env, fresh):
        each.reset(seed=6)
    for action in actions:
        one, two = env.step(action), fresh.step(action)
        np.testing.assert_array_equal(one[0]["state"], two[0]["state"])
        assert one[1:] == two[1:] and not one[4]["diverged"]


def test_failures_of_a_sound_simulation_are_not_hidden() -> None:
    env = make_env(DOOR, "raycast")
    env.reset(seed=5)

    def breaks(env: RobotEnv) -> None:
        raise ValueError("something else")

    diverge(env, 0, breaks)
    with pytest.raises(ValueError, match="something else"):
        env.step(ACTIONS[0])


def test_collection_drops_the_episode_and_goes_on_with_another_seed() -> None:
    group, alone = CollectionGroup(DOOR, "raycast"), CollectionGroup(DOOR, "raycast")
    seeds = [FIRST_SEED, FIRST_SEED + 1]
    group.reset(seeds, record=True)
    diverge(group._environments[0], 4)  # in the third of six steps
    finished: list[Any] = [None, None]
    for step in range(9):
        running = [index for index, episode in enumerate(group._episodes) if not episode.over]
        starts = {0: 3, 1: 0}  # the second begins anew after three steps
        _, answers = group.step(np.stack([ACTIONS[step - starts[i] if step >= starts[i] else step] for i in running]))
        for index, answer in zip(running, answers, strict=True):
            finished[index] = answer or finished[index]
    replacement = episode_seed(seeds[0], REPLACEMENT, 1)
    assert [episode.seed for episode in finished] == [replacement, seeds[1]] and replacement >= FIRST_SEED
    alone.reset([replacement], record=True)
    expected = [alone.step(action[None])[1][0] for action in ACTIONS][-1]
    assert expected.steps.keys() == finished[0].steps.keys()
    for key, values in expected.steps.items():
        np.testing.assert_array_equal(finished[0].steps[key], values)


def test_collection_gives_up_where_every_episode_diverges() -> None:
    group = CollectionGroup(DOOR, "raycast")
    group.reset([FIRST_SEED], record=True)
    env = group._environments[0]
    with pytest.raises(InputError, match=r"env=adroit_door: the simulation diverged in 11 episodes in a row"):
        for _ in range(11):
            runs_away(env)
            assert group.step(ACTIONS[:1])[1] == [None]


def test_an_agent_s_evaluation_counts_it_as_failed() -> None:
    group = CollectionGroup(DOOR, "raycast")
    group.reset([3], record=False)
    runs_away(group._environments[0])
    (finished,) = group.step(ACTIONS[:1])[1]
    assert finished is not None and finished.seed == 3
    assert not any(finished.success.values()) and not finished.terminated and np.isfinite(finished.states).all()


def test_roll_outs_count_it_as_failed_and_see_the_last_sound_scene() -> None:
    group = EnvironmentGroup(DOOR, "pointcloud", "raycast", "open3d")
    start = group.reset([3])
    diverge(group._environments[0].env, 2)  # in the second step of a chunk of three
    answer = group.step([0], ACTIONS[None, :3])
    assert answer["diverged"] == [True] and answer["truncated"] == [True] and answer["terminated"] == [False]
    assert answer["executed"] == [2] and answer["rewards"][0, 1:].tolist() == [0.0, 0.0]
    assert not any(answer[f"success_{metric}"][0] for metric in ("final", "count", "any"))
    assert np.isfinite(answer["observation"]["point_cloud"]).all()
    assert answer["observation"]["point_cloud"].shape == start["point_cloud"].shape


def test_fine_tuning_does_not_learn_from_it() -> None:
    taken: list[Any] = []
    tuning = SimpleNamespace(
        settings=SimpleNamespace(encoder="tuned"),
        critic=None,
        _take=taken.extend,
        environment_steps=0,
        rolled_out=0,
    )
    diverged = Episode(3, actions=[ACTIONS[:2]], rewards=[np.zeros(2)], diverged=True)
    Finetuning.remember(tuning, [diverged], DOOR)  # type: ignore[arg-type]
    assert taken == [] and (tuning.environment_steps, tuning.rolled_out) == (2, 1)


def test_a_recording_that_diverges_is_refused() -> None:
    env = make_env(DOOR, "raycast")
    states = [env.reset(seed=5)[0]["state"]]
    for action in ACTIONS[:3]:
        states.append(env.step(action)[0]["state"])
    recording = Recording(5, {}, np.stack(states), ACTIONS[:3], group=1)
    assert len(play(env, recording, 16)["states"]) == 4
    cut = Recording(5, {}, np.stack(states[:-1]), ACTIONS[:3], group=1)  # without the state after the last action
    assert len(play(env, cut, 16)["states"]) == 4
    diverge(env, 3)  # in the second control step
    with pytest.raises(InputError, match="its simulation diverges at step 1"):
        play(env, recording, 16)
