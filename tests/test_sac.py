"""SAC and the agents that do not learn: exact resumption, time limits, global random streams untouched, learning."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from toy_collection import Point

from sodp3d import envs
from sodp3d.collection import agents
from sodp3d.collection.agents.memory import Trajectory
from sodp3d.collection.agents.sac import SAC, SACConfig
from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CHECKOUT

torch.set_num_threads(1)
SMALL = SACConfig(hidden=16, layers=2, batch_size=16, replay_size=40, random_steps=10)
SETTINGS = yaml.safe_load((CHECKOUT / "configs/env/metaworld.yaml").read_text()) | {"name": "metaworld_reach"}
REACH = envs.EnvConfig.from_config(SETTINGS | {"episode_steps": 60})


def surroundings(seed: int = 0) -> agents.Surroundings:
    return agents.Surroundings(REACH, 39, 4, 4, seed)


def episode(steps: int, seed: int = 0, terminated: bool = False) -> Trajectory:
    random = np.random.default_rng(seed)
    states = random.normal(size=(steps + 1, 2)).astype(np.float32)
    return Trajectory(states, random.uniform(-1, 1, (steps, 2)), random.normal(size=steps), terminated)


def play(agent: SAC, rounds: int) -> None:
    for index in range(rounds):
        agent.seed_exploration(index)
        actions = agent.act(np.full((8, 2), 0.5, np.float32), explore=True)
        states = np.cumsum(np.ones((9, 2), np.float32), axis=0)
        agent.observe(Trajectory(states, actions, np.ones(8), terminated=bool(index % 2)))
        agent.update(3)


def test_resuming_equals_never_having_stopped(tmp_path: Path) -> None:
    whole = SAC(SMALL, 2, 2, seed=0)
    play(whole, 7)  # past the random steps, and past the end of the replay ring
    checkpoint.save(tmp_path, 1, *whole.state())
    play(whole, 3)
    _, tensors, state = checkpoint.load_latest(tmp_path) or pytest.fail("no checkpoint")
    resumed = SAC(SMALL, 2, 2, seed=9)
    resumed.load_state(tensors, state)
    np.random.seed(123)  # somebody else's business
    torch.manual_seed(123)
    play(resumed, 3)
    for name, value in whole.state()[0].items():
        assert torch.equal(value, resumed.state()[0][name]), name
    assert whole.state()[1] == resumed.state()[1]


def test_global_random_streams_are_left_alone() -> None:
    np.random.seed(5)
    torch.manual_seed(5)
    expected = np.random.get_state()[1].copy(), torch.get_rng_state()
    play(SAC(SMALL, 2, 2, seed=0), 3)
    np.testing.assert_array_equal(np.random.get_state()[1], expected[0])
    assert torch.equal(torch.get_rng_state(), expected[1])


def test_evaluation_leaves_the_agent_as_it_was() -> None:
    agent = SAC(SMALL, 2, 2, seed=0)
    play(agent, 3)
    before, after = agent.state(), [agent.act(np.ones((3, 2), np.float32), explore=False) for _ in range(2)]
    np.testing.assert_array_equal(*after)
    assert all(torch.equal(value, before[0][name]) for name, value in agent.state()[0].items())


def test_only_terminations_end_the_value() -> None:
    agent = SAC(SMALL, 2, 2, seed=0)
    for trajectory in (episode(4), episode(4, terminated=True)):
        agent.observe(trajectory)
    agent.observe(Trajectory(np.zeros((4, 2)), np.zeros((4, 2)), np.zeros(4)))  # the state after the last is unknown
    dones = agent.state()[0]["replay.dones"][:, 0].tolist()
    assert dones == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]


def test_explores_at_random_first_and_learns_only_then() -> None:
    agent = SAC(replace(SMALL, random_steps=12), 2, 2, seed=0)
    agent.observe(episode(8))
    assert agent.update(5) == {}
    spread = np.abs(agent.act(np.zeros((2000, 2), np.float32), explore=True)).mean()
    assert spread == pytest.approx(0.5, abs=0.03)
    agent.observe(episode(8, seed=1))
    assert set(agent.update(5)) == {"actor_loss", "critic_loss", "ent_coef"}


def test_networks_see_states_scaled_by_the_random_steps() -> None:
    agent = SAC(replace(SMALL, random_steps=12), 2, 2, seed=0)
    for seed in range(3):  # the third comes when the random steps are over
        agent.observe(episode(8, seed))
    states = np.concatenate([episode(8, seed).states[:-1] for seed in range(2)])
    tensors = agent.state()[0]
    for network in ("actor", "critic", "critic_target"):
        name = f"policy.{network}.features_extractor"
        np.testing.assert_allclose(tensors[f"{name}.mean"], states.mean(0), atol=1e-6)
        np.testing.assert_allclose(tensors[f"{name}.scale"], states.std(0), rtol=1e-5)


@pytest.mark.slow
def test_solves_the_point() -> None:
    config = replace(SMALL, hidden=32, batch_size=64, replay_size=5000, learning_rate=2e-3, random_steps=240)
    agent = SAC(config, 2, 2, seed=0)

    def roll_out(seed: int, explore: bool) -> float:
        point, finished = Point(seed), None
        while finished is None:
            finished = point.step(agent.act(point.states[-1][None], explore)[0])
        if explore:
            agent.observe(Trajectory(finished.states, finished.actions, finished.rewards, finished.terminated))
            agent.update(len(finished.actions))
        return finished.episode_return

    for seed in range(70):
        roll_out(seed, explore=True)
    returns = [roll_out(seed, explore=False) for seed in range(100, 120)]
    assert np.mean(returns) > -3.5, np.mean(returns)


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="unknown key 'hiden'; valid keys are hidden, layers"):
        SACConfig(hiden=3)  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"agent\.batch_size: expected a whole number of at least 1, got 0"):
        SACConfig(batch_size=0)
    with pytest.raises(InputError, match="'policy' does not fit this agent's settings"):
        SAC(replace(SMALL, hidden=8), 2, 2, 0).load_state(*SAC(SMALL, 2, 2, 0).state())


# ---- agents that do not learn ------------------------------------------------------------------------------------


def test_scripted_expert_solves_reach() -> None:
    agent = agents.build({"name": "scripted", "policy": "expert", "noise": 0.05}, surroundings(0))
    environment = envs.make_env(REACH, renderer="raycast")
    observation, _ = environment.reset(seed=3)
    over, info = False, {}
    while not over:
        action = agent.act(observation["state"][None], explore=True)[0]
        observation, _, terminated, truncated, info = environment.step(action)
        over = terminated or truncated
    assert info["success_any"]


def test_a_random_agent_is_uniform_and_a_waves_seed_decides_its_actions() -> None:
    agent, other = (agents.build({"name": "scripted", "policy": "random"}, surroundings(seed)) for seed in (0, 1))
    states = np.zeros((500, 39), np.float32)
    agent.act(states, explore=True)
    for made in (agent, other):
        made.seed_exploration(7)
    actions = agent.act(states, explore=True)
    np.testing.assert_array_equal(actions, other.act(states, explore=True))
    assert np.abs(actions).max() <= 1 and np.abs(actions).mean() == pytest.approx(0.5, abs=0.02)


def test_the_seed_of_a_wave_decides_what_sac_explores() -> None:
    """In the uniform part, and by its policy; updates in between draw from another stream."""
    agent, states = SAC(SMALL, 2, 2, seed=0), np.zeros((8, 2), np.float32)
    for rounds in (0, 3):
        play(agent, rounds)
        agent.seed_exploration(7)
        actions = agent.act(states, explore=True)
        assert not np.array_equal(actions, agent.act(states, explore=True))
        agent.seed_exploration(7)
        np.testing.assert_array_equal(actions, agent.act(states, explore=True))


def test_scripted_settings_are_checked() -> None:
    with pytest.raises(InputError, match=r"agent\.policy: expected expert or random, got 'clever'"):
        agents.build({"name": "scripted", "policy": "clever"}, surroundings(0))
    with pytest.raises(InputError, match="no scripted expert for task 'door'; did you mean"):
        agents.build({"name": "scripted"}, replace(surroundings(), env=replace(REACH, task="door")))
