"""VRL3's rewards and goal flags, from state vectors and in the running environments."""

import numpy as np
import pytest
from toy_env import config

from sodp3d.core.errors import InputError
from sodp3d.envs import RobotEnv, adroit, make_env, score_states


def hammer_distance(env: RobotEnv) -> float:
    return float(np.linalg.norm(env.data.site("S_target").xpos - env.data.site("nail_goal").xpos))


def pen_distance(env: RobotEnv) -> float:
    return float(np.linalg.norm(env.data.body("Object").xpos - env.data.site("eps_ball").xpos))


def test_reward_reads_the_right_places_of_the_state() -> None:
    """The quantities in the state vector equal those that the simulator has, after random steps."""
    for name, joints in (("hammer", 2), ("door", 4), ("pen", 0)):
        env = make_env(config(f"adroit_{name}"), "raycast")
        env.reset(seed=0)
        if name == "hammer":  # drive the nail in, or its distance never changes
            env.data.joint("nail_dir").qpos[0] = 0.05
            env.task.forward()
        for _ in range(3):
            env.step(env.action_space.sample())
        hand = [env.model.joint(index).name for index in range(joints, joints + 24)]
        assert hand[0] == "WRJ1" and hand[-1] == "THJ0"
        np.testing.assert_array_equal(env.task.proprioception(), [env.data.joint(joint).qpos[0] for joint in hand])
        reward, goal = adroit.reward_and_goal(name, env.task.state())
        if name == "hammer":
            assert reward * 100 == pytest.approx(-10 * hammer_distance(env), abs=1e-6) and not goal
        elif name == "door":
            angle = env.data.joint("door_hinge").qpos[0]
            assert reward * 20 == pytest.approx(-0.1 * (angle - 1.57) ** 2) and not goal
        else:
            state = env.task.state()
            assert np.linalg.norm(state[39:42]) == pytest.approx(pen_distance(env))
            assert adroit.pen_dropped(state) == (env.data.body("Object").xpos[2] < 0.075)


def hammer_state(distance: float) -> np.ndarray:
    state = np.zeros(46)
    state[26] = 0.091 - distance
    return state


def door_state(angle: float) -> np.ndarray:
    state = np.zeros(39)
    state[28] = angle
    return state


def pen_state(distance: float, cosine: float) -> np.ndarray:
    state = np.zeros(45)
    state[33:36], state[36:39] = [1, 0, 0], [cosine, np.sqrt(1 - cosine**2), 0]
    state[39] = distance
    return state


@pytest.mark.parametrize(
    ("task", "state", "reward", "goal"),
    [
        ("hammer", hammer_state(0.05), -0.5 / 100, False),
        ("hammer", hammer_state(0.015), (25 - 0.15) / 100, False),
        ("hammer", hammer_state(0.005), (100 - 0.05) / 100, True),
        ("door", door_state(0.0), -0.1 * 1.57**2 / 20, False),
        ("door", door_state(0.5), (2 - 0.1 * 1.07**2) / 20, False),
        ("door", door_state(1.2), (10 - 0.1 * 0.37**2) / 20, False),
        ("door", door_state(1.35), (10 - 0.1 * 0.22**2) / 20, True),
        ("door", door_state(1.4), (20 - 0.1 * 0.17**2) / 20, True),
        ("pen", pen_state(0.07, 0.96), 1.0, True),
        ("pen", pen_state(0.08, 0.96), 0.0, False),
        ("pen", pen_state(0.07, 0.94), 0.0, False),
    ],
)
def test_vrl3_rewards(task: str, state: np.ndarray, reward: float, goal: bool) -> None:
    rewards, goals = score_states(config(f"adroit_{task}"), np.stack([state, state]))
    assert rewards == pytest.approx(reward) and goals.tolist() == [goal, goal]


def test_goal_placed_by_hand_succeeds() -> None:
    hammer, door = make_env(config("adroit_hammer"), "raycast"), make_env(config("adroit_door"), "raycast")
    hammer.reset(seed=0)
    door.reset(seed=0)
    hammer.data.joint("nail_dir").qpos[0] = 0.09
    door.data.joint("latch").qpos[0], door.data.joint("door_hinge").qpos[0] = 1.8, 1.45
    for env in (hammer, door):
        _, reward, _, _, info = env.step(np.zeros(env.task.action_size))
        assert info["goal_steps"] == 2 and info["success_final"] and reward > 1.9


def test_a_dropped_pen_ends_the_episode() -> None:
    env = make_env(config("adroit_pen"), "raycast")
    env.reset(seed=0)
    env.data.joint("OBJTx").qpos[0] = 0.3  # the pen's body points its x axis down
    terminated, truncated = env.step(np.zeros(24))[2:4]
    assert terminated and not truncated


def test_states_of_other_families_do_not_tell_their_reward() -> None:
    with pytest.raises(InputError, match="metaworld do not follow from states alone"):
        score_states(config("metaworld"), np.zeros((2, 39)))
