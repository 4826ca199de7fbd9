"""Environments: the Gymnasium contract, seeds, exact state, action repeat and success, and errors."""

import functools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from toy_env import config, slider_env

from sodp3d.core.errors import InputError
from sodp3d.envs import EnvConfig, RobotEnv, expand, make_env, metaworld

ADROIT = ("adroit_hammer", "adroit_door", "adroit_pen")
SOUND = {"diverged": False}
rollout = functools.partial(np.random.default_rng(0).uniform, -1, 1)


def task_config(name: str) -> EnvConfig:
    return config(name) if name.startswith("adroit") else config("metaworld", f"env.task={name}")


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def play(env: RobotEnv, actions: np.ndarray) -> list[tuple]:
    steps = []
    for action in actions:
        steps.append(env.step(action))
        if steps[-1][2] or steps[-1][3]:
            break
    return steps


def assert_same_steps(first: list[tuple], second: list[tuple]) -> None:
    assert len(first) == len(second)
    for (obs, *rest), (other, *others) in zip(first, second, strict=True):
        assert same(obs, other) and rest == others


@pytest.mark.parametrize("name", ["adroit_hammer", "adroit_door", "adroit_pen", "metaworld"])
def test_gymnasium_checks_pass(name: str) -> None:
    env = make_env(config(name), "raycast")
    with pytest.warns(UserWarning, match="infinity"):  # joint angles are unbounded; that is all it may complain of
        check_env(env, skip_render_check=True)


def test_every_config_loads_and_sets_expand_to_existing_tasks() -> None:
    names = metaworld.task_names()
    assert config("metaworld", "env.task=button-press").name == "metaworld_button-press"
    for name, size in (("mt10_paper", 10), ("mt10", 10), ("mt50", 50)):
        tasks = expand(config(name))
        assert config(name).name == name and len({task.task for task in tasks}) == size
        assert all(task.task in names and task.name == f"metaworld_{task.task}" and not task.tasks for task in tasks)
        assert all((task.n_obs_steps, task.horizon, task.n_action_steps) == (2, 12, 8) for task in tasks)
    for name in ADROIT:
        only = config(name)
        assert expand(only) == [only] and (only.n_obs_steps, only.horizon, only.n_action_steps) == (2, 4, 3)


@pytest.mark.parametrize("name", [*ADROIT, "reach"])
def test_seed_determines_the_episode(name: str) -> None:
    first, second = make_env(task_config(name), "raycast"), make_env(task_config(name), "raycast")
    actions = rollout(size=(8, first.task.action_size))
    start, info = first.reset(seed=7)
    steps = play(first, actions)
    second.reset(seed=1)
    play(second, actions)
    assert same(second.reset(seed=7)[0], start) and info["seed"] == 7
    assert_same_steps(play(second, actions), steps)
    drawn, drawn_info = first.reset()  # from np_random, which seed 7 started
    again, again_info = second.reset()
    assert same(drawn, again) and drawn_info == again_info and not same(drawn, start)
    assert same(make_env(task_config(name), "raycast").reset(seed=drawn_info["seed"])[0], drawn)


def check_state_round_trip(name: str, before: int = 12, after: int = 8) -> None:
    env, other = make_env(task_config(name), "raycast"), make_env(task_config(name), "raycast")
    actions = rollout(size=(before + after, env.task.action_size))
    env.reset(seed=3)
    past = play(env, actions[:before])
    state = env.get_state()
    future = play(env, actions[before:])
    assert same(other.set_state(state), past[-1][0])  # an environment that was never reset
    assert np.array_equal(other.get_state(), state)
    assert_same_steps(play(other, actions[before:]), future)
    env.reset(seed=4)  # other body positions, other targets
    play(env, actions[:5])
    assert same(env.set_state(state), past[-1][0])
    assert_same_steps(play(env, actions[before:]), future)
    assert np.array_equal(env.get_state(), other.get_state())


@pytest.mark.parametrize("name", [*ADROIT, "reach"])  # every task of Meta-World: test_all_tasks.py
def test_restored_state_continues_bit_for_bit(name: str) -> None:
    check_state_round_trip(name)


def test_restored_state_truncates_on_time() -> None:
    env = slider_env()
    env.reset(seed=0)
    env.step(np.zeros(1))
    state = env.get_state()
    env.reset(seed=0)
    env.set_state(state)
    assert env.steps_left == 5 and [step[3] for step in play(env, np.zeros((9, 1)))] == [False] * 4 + [True]


def test_wrong_states_are_refused() -> None:
    env = slider_env()
    state = env.get_state()
    for wrong in (state[:-1], np.full_like(state, np.nan)):
        with pytest.raises(InputError, match="finite numbers of slider"):
            env.set_state(wrong)


def test_action_repeat_sums_rewards_and_counts_goal_frames() -> None:
    env = slider_env()
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(np.ones(1))  # x = 0.1, 0.2
    assert reward == pytest.approx(0.3) and not (terminated or truncated)
    assert info == {"goal_steps": 0, "success_final": False, "success_count": False, "success_any": False, **SOUND}
    info = env.step(np.array([9.0]))[4]  # clipped: x = 0.3, 0.4
    assert info == {"goal_steps": 2, "success_final": True, "success_count": False, "success_any": True, **SOUND}
    info = env.step(np.array([-1.0]))[4]  # x = 0.3, 0.2: three frames in all, more than count_threshold
    assert info == {"goal_steps": 1, "success_final": False, "success_count": True, "success_any": True, **SOUND}
    assert not env.reset(seed=0)[1]["success_any"]


def test_episode_ends_once() -> None:
    env = slider_env()
    env.reset(seed=0)
    assert [step[3] for step in play(env, np.zeros((9, 1)))] == [False] * 5 + [True]
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(1))
    env.reset(seed=0)
    steps = play(env, np.ones((6, 1)))
    assert steps[-1][2] and len(steps) == 6  # x passes 1 in the first of the sixth step's two frames
    assert steps[-1][1] == pytest.approx(1.1), "the second frame is not simulated"


@pytest.mark.parametrize("action", [np.zeros(2), np.array([np.nan]), np.array([np.inf])])
def test_wrong_actions_are_refused(action: np.ndarray) -> None:
    env = slider_env()
    env.reset(seed=0)
    with pytest.raises(InputError, match="1 finite numbers"):
        env.step(action)


@pytest.mark.filterwarnings("ignore:Constant")  # the experts' gains exceed the action space; they clip
@pytest.mark.parametrize("task", ["reach", "drawer-open", "window-close"])
def test_scripted_policies_succeed(task: str) -> None:
    """Meta-World's own expert, from the float32 observation that we give, reaches the goal."""
    from metaworld.policies import ENV_POLICY_MAP

    env = make_env(config("metaworld", f"env.task={task}"), "raycast")
    policy = ENV_POLICY_MAP[f"{task}-v3"]()
    observation, info = env.reset(seed=0)
    for _ in range(150):
        action = np.clip(policy.get_action(observation["state"].astype(np.float64)), -1, 1).astype(np.float32)
        observation, _, _, _, info = env.step(action)
    assert info["success_count"] and info["success_any"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "dor"}, "hammer, door, pen"),
        ({"family": "maze"}, "adroit, metaworld"),
        ({"tasks": ("door", "pen")}, "set of 2 tasks"),
    ],
)
def test_wrong_configs_name_the_valid_choices(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_env(replace(config("adroit_door"), **change))


def test_a_misspelt_task_is_recognised() -> None:
    with pytest.raises(InputError, match="did you mean drawer-open"):
        make_env(config("metaworld", "env.task=drawer-opne"))


def test_a_missing_camera_names_those_there_are() -> None:
    door = config("adroit_door")
    missing = replace(door, camera=replace(door.camera, name="side", quaternion=None))
    with pytest.raises(InputError, match=r"no camera 'side' \(it has fixed, vil_camera\)"):
        make_env(missing)
    moving = config("metaworld")
    with pytest.raises(InputError, match="moves with body 'hand'"):
        make_env(replace(moving, camera=replace(moving.camera, name="gripperPOV")))


def test_a_wrong_renderer_is_refused_before_anything_is_drawn() -> None:
    with pytest.raises(InputError, match="auto, egl, osmesa, raycast"):
        make_env(config("adroit_door"), "vulkan")


def test_making_environments_is_quiet_and_light() -> None:
    """No notice on stderr, and none of the heavy imports that workers can do without."""
    program = (
        "import sys\n"
        "from toy_env import config\n"
        "from sodp3d.envs import make_env\n"
        "for name in ('adroit_door', 'metaworld'): make_env(config(name), 'raycast').reset(seed=0)\n"
        "sys.stdout.write(str([name for name in ('torch', 'open3d', 'zarr', 'diffusers') if name in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert (result.stdout, result.stderr) == ("[]", "")


def test_model_is_the_packages_own_but_for_the_camera() -> None:
    """Adding a camera changes nothing that moves."""
    env = make_env(config("adroit_door"), "raycast")
    original = mujoco.MjModel.from_xml_path(env.task._env.fullpath)
    assert env.model.ncam == original.ncam + 1
    for field in ("body_mass", "geom_size", "jnt_range", "dof_damping", "geom_friction", "actuator_ctrlrange"):
        np.testing.assert_array_equal(getattr(env.model, field), getattr(original, field))
