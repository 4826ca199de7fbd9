"""Action chunks: what is executed, summed, drawn and stacked, alone and in vector environments."""

import functools
from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from toy_env import config, slider_env

from sodp3d.core.errors import InputError
from sodp3d.envs import RobotEnv, make_env
from sodp3d.envs.wrappers import ChunkedEnv
from sodp3d.rollouts.group import EnvironmentGroup


def count_draws(env: RobotEnv, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Instead of drawing, note the control steps left, and give an image full of that number."""
    drawn: list[int] = []

    def draw() -> np.ndarray:
        drawn.append(env.steps_left)
        return np.full((32, 32, 3), env.steps_left, dtype=np.uint8)

    monkeypatch.setattr(env, "render_rgb", draw)
    return drawn


def test_chunks_draw_only_what_the_planner_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    env = slider_env(episode_steps=8)
    drawn = count_draws(env, monkeypatch)
    chunks = ChunkedEnv(env, "image")
    observation, info = chunks.reset(seed=0)
    assert chunks.observation_space.contains(observation) and info["executed"] == 0
    assert observation["image"][:, 0, 0, 0].tolist() == [8, 8] and drawn == [8]
    observation, reward, _, truncated, info = chunks.step(np.full((3, 1), 0.5, dtype=np.float32))
    assert observation["image"][:, 0, 0, 0].tolist() == [6, 5] and drawn == [8, 6, 5]
    np.testing.assert_allclose(observation["agent_pos"][:, 0], [0.2, 0.3], atol=1e-6)
    np.testing.assert_allclose(info["rewards"], [0.15, 0.35, 0.55])
    assert reward == pytest.approx(1.05) and info["goal_steps"] == 1 and info["executed"] == 3 and not truncated
    chunks.step(np.zeros((3, 1), dtype=np.float32))
    observation, _, _, truncated, info = chunks.step(np.zeros((3, 1), dtype=np.float32))  # two steps are left
    assert truncated and info["executed"] == 2 and info["rewards"][2] == 0
    assert observation["image"][:, 0, 0, 0].tolist() == [1, 0] and drawn == [8, 6, 5, 3, 2, 1, 0]


@pytest.mark.parametrize(("start", "executed", "seen"), [(0.95, 1, [6, 5]), (0.75, 2, [4, 4])])
def test_chunk_stops_at_a_termination(
    start: float, executed: int, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A termination is not foreseen: where the frame before was not drawn, the last one is repeated."""
    env = slider_env()
    count_draws(env, monkeypatch)
    chunks = ChunkedEnv(env, "image")
    chunks.reset(seed=0)
    env.data.qpos[0] = start
    observation, reward, terminated, truncated, info = chunks.step(np.ones((3, 1), dtype=np.float32))
    assert terminated and not truncated and info["executed"] == executed
    assert observation["image"][:, 0, 0, 0].tolist() == seen
    assert reward == pytest.approx(info["rewards"].sum()) and not info["rewards"][executed:].any()


def test_wrong_chunks_are_refused() -> None:
    chunks = ChunkedEnv(slider_env(), "state")
    chunks.reset(seed=0)
    with pytest.raises(InputError, match=r"\(3, 1\)"):
        chunks.step(np.zeros((2, 1), dtype=np.float32))
    with pytest.raises(InputError, match="pointcloud, state, image"):
        ChunkedEnv(slider_env(), "voxels")


def test_chunks_of_point_clouds_hold_real_points_of_the_scene() -> None:
    chunks = ChunkedEnv(slider_env(points=64), "pointcloud", "torch")
    observation, _ = chunks.reset(seed=0)
    assert chunks.observation_space.contains(observation)
    assert np.linalg.norm(observation["point_cloud"], axis=-1) == pytest.approx(0.1, abs=0.002)  # the ball
    moved, *_ = chunks.step(np.full((3, 1), 0.5, dtype=np.float32))
    center = np.array([0.3, 0, 0])
    assert np.linalg.norm(moved["point_cloud"][-1] - center, axis=-1) == pytest.approx(0.1, abs=0.002)


@pytest.mark.parametrize("backend", ["open3d", "torch"])
def test_a_group_converts_the_frames_of_all_its_environments_at_once(backend: str) -> None:
    """To what each environment would see alone, from the first frame to a time limit that cuts the last chunk."""
    group = EnvironmentGroup(
        config("adroit_door", "env.points=64", "env.episode_steps=4"), "pointcloud", "raycast", backend
    )
    alone = [ChunkedEnv(make_env(group._config, "raycast"), "pointcloud", "open3d") for _ in range(2)]
    seen, starts = group.reset([3, 4]), [env.reset(seed=seed)[0] for env, seed in zip(alone, (3, 4), strict=True)]
    plans = np.random.default_rng(0).uniform(-1, 1, (2, 2, 3, 28)).astype(np.float32)
    for step in range(3):
        assert seen.keys() == {"agent_pos", "point_cloud"}
        for key, values in seen.items():
            np.testing.assert_array_equal(values, [start[key] for start in starts])
        if step < 2:
            answer = group.step([0, 1], plans[step])
            seen, starts = answer["observation"], [env.step(p)[0] for env, p in zip(alone, plans[step], strict=True)]
    assert answer["truncated"].all() and not np.array_equal(seen["point_cloud"][0], seen["point_cloud"][1])


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def make_chunks(name: str) -> gymnasium.Env:
    return ChunkedEnv(make_env(config(name)), "image")


def test_vector_environments_give_the_same_episodes_in_workers() -> None:
    """Made inside spawned workers, which render; episodes start anew at the step after the last (NEXT_STEP)."""
    makers: list[Callable[[], gymnasium.Env]] = [functools.partial(make_chunks, name) for name in ("adroit_door",) * 2]
    mode = AutoresetMode.NEXT_STEP
    workers = AsyncVectorEnv(makers, context="spawn", autoreset_mode=mode)
    local = SyncVectorEnv(makers, autoreset_mode=mode)
    try:
        first, second = workers.reset(seed=[3, 4])[0], local.reset(seed=[3, 4])[0]
        assert same(first, second) and not np.array_equal(first["image"][0], first["image"][1])
        generator = np.random.default_rng(0)
        for _ in range(2):
            actions = generator.uniform(-1, 1, (2, 3, 28)).astype(np.float32)
            first, rewards, *_ = workers.step(actions)
            second, others, *_ = local.step(actions)
            assert same(first, second) and np.array_equal(rewards, others)
    finally:
        workers.close(terminate=True)
        local.close()
