"""RLPD: targets, batches and densities against slow references, prior data, exact resumption, learning."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_collection import SETTINGS, collect, contents
from test_ensemble import separate
from test_sac import REACH, surroundings
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution
from toy_collection import STEPS, Point, ToyWorkers, demonstrations

from sodp3d import envs
from sodp3d.collection import agents
from sodp3d.collection.agents.memory import Trajectory
from sodp3d.collection.agents.networks import GaussianActor
from sodp3d.collection.agents.rlpd import RLPD, RLPDConfig
from sodp3d.collection.agents.scripted import Scripted
from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.data.store import EpisodeStore

torch.set_num_threads(1)
SMALL = RLPDConfig(hidden=16, members=3, batch_size=16, replay_size=40, prior_episodes=2, critic_updates=2)

# Six episodes are no multiple of four environments, and the replay's ring is passed.
COLLECTING = replace(SMALL, prior_episodes=6, replay_size=100, updates_per_step=0.25)


class Home:
    """An expert for `Point`."""

    def get_action(self, state: np.ndarray) -> np.ndarray:
        return np.clip(-5 * state, -1, 1)


def make_agent(config: RLPDConfig = SMALL, seed: int = 0, expert: bool = True) -> RLPD:
    return RLPD(config, 2, 2, seed, expert=Scripted(Home(), 2, config.prior_noise, seed) if expert else None)


def play(agent: RLPD, rounds: range) -> None:
    for index in rounds:
        agent.seed_exploration(index)
        states = np.random.default_rng(index).normal(size=(9, 2)).astype(np.float32)
        actions = agent.act(states[:8], explore=True)
        agent.observe(Trajectory(states, actions, states[:8].sum(1), terminated=bool(index % 2)))
        agent.update(3)


def learned(seed: int = 0) -> RLPD:
    """An agent that differs from its own targets."""
    agent = make_agent(seed=seed)
    play(agent, range(6))
    return agent


# ---- learning against references ------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_target_is_the_least_of_drawn_members_less_the_cost_of_certainty() -> None:
    with torch.enable_grad():
        agent = learned()
    batch = agent.replay.sample(16, torch.Generator().manual_seed(0), 0.5, apart=True)
    following = agent.scaler(batch.next_states)
    noise = torch.Generator().manual_seed(7)
    agent._noise.manual_seed(7), agent._sampling.manual_seed(5)
    found = agent.targets(batch, following)
    chosen = torch.randperm(3, generator=torch.Generator().manual_seed(5))[:2].tolist()
    actions, density = agent.actor.sample(following, torch.randn(16, 2, generator=noise))
    members = [separate(agent.target.double(), member) for member in chosen]
    coefficient = float(agent.log_entropy_coefficient.detach().exp())
    assert agent.reward_scale != 1.0 and len({*map(float, batch.discounts)}) == 2
    for row in range(16):
        joined = torch.cat([following[row], actions[row]]).double()
        values = [float(member(joined)) for member in members]
        expected = float(batch.returns[row]) / agent.reward_scale
        expected += float(batch.discounts[row]) * (min(values) - coefficient * float(density[row]))
        assert float(found[row]) == pytest.approx(expected, abs=1e-4)


def test_each_draw_takes_other_members() -> None:
    agent = learned()
    batch = agent.replay.sample(16, torch.Generator().manual_seed(0), 0.5, apart=True)
    following = agent.scaler(batch.next_states)
    drawn = set()
    for _ in range(30):
        agent._noise.manual_seed(7)
        drawn.add(tuple(agent.targets(batch, following).tolist()))
    assert len(drawn) == 3  # pairs of three members


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5])
def test_a_batch_is_prior_data_and_own_experience_in_fixed_shares(fraction: float) -> None:
    agent = learned()
    assert (agent.replay.demos, agent.replay.online) == (16, 32)
    own, prior = set(), set()
    for seed in range(40):
        batch = agent.replay.sample(16, torch.Generator().manual_seed(seed), fraction, apart=True)
        assert batch.from_demo.tolist() == [True] * round(16 * fraction) + [False] * (16 - round(16 * fraction))
        for row, shown in zip(batch.states, batch.from_demo, strict=True):
            (prior if shown else own).add(tuple(row.tolist()))
    assert not own & prior and len(own) == 32 and len(prior) == (16 if fraction else 0)


def test_an_update_learns_from_half_and_half(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = learned()
    seen: list[Tensor] = []
    sample = agent.replay.sample

    def recorded(*values: Any, **named: Any) -> Any:
        batch = sample(*values, **named)
        seen.append(batch.from_demo)
        return batch

    monkeypatch.setattr(agent.replay, "sample", recorded)
    agent.update(3)
    assert len(seen) == 3 * SMALL.critic_updates and all(int(batch.sum()) == 8 for batch in seen)


def test_densities_are_those_of_a_squashed_gaussian() -> None:
    torch.manual_seed(0)
    actor, states, noise = GaussianActor(3, 2, 8, 2), torch.randn(50, 3), torch.randn(50, 2)
    with torch.no_grad():
        actor.layers[-1].weight.mul_(3)  # type: ignore[operator]
        actions, density = actor.sample(states, noise)
        mean, log_deviation = actor(states)
    gaussian = Normal(mean.double(), log_deviation.double().exp())
    before = mean.double() + log_deviation.double().exp() * noise
    squashed = TransformedDistribution(gaussian, [TanhTransform(cache_size=1)])
    expected = Independent(squashed, 1).log_prob(squashed.transforms[0](before))
    torch.testing.assert_close(actions.double(), torch.tanh(before), atol=1e-5, rtol=0)
    torch.testing.assert_close(density.double(), expected, atol=1e-3, rtol=1e-4)


def test_critics_learn_as_if_each_were_alone_and_targets_follow_slowly() -> None:
    """One update, against PyTorch's own layers and Adam."""
    agent = learned()
    agent.config = replace(SMALL, critic_updates=1, members=3)
    twin = learned()
    batch = twin.replay.sample(16, twin._sampling, 0.5, apart=True)
    states, following = twin.scaler(batch.states), twin.scaler(batch.next_states)
    targets = twin.targets(batch, following)
    before = {name: value.clone() for name, value in twin.target.state_dict().items()}
    gradients = []
    for member in range(3):
        network = separate(twin.critic.double(), member)
        values = network(torch.cat([states, batch.actions], dim=1).double())[:, 0]
        (values - targets).square().mean().backward()
        hidden = [module for module in network if isinstance(module, nn.Linear)][1]
        assert hidden.weight.grad is not None
        gradients.append(hidden.weight.grad.T)
    agent.update(1)
    assert agent._critic_block.grad is not None
    sizes = [parameter.numel() for parameter in agent.critic.parameters()]
    found = agent._critic_block.grad.split(sizes)[3].view_as(agent.critic.hidden[0].weight)
    torch.testing.assert_close(found.double(), torch.stack(gradients), atol=1e-5, rtol=1e-3)
    for name, value in agent.critic.state_dict().items():
        expected = before[name].lerp(value, SMALL.target_rate)
        torch.testing.assert_close(agent.target.state_dict()[name], expected)


def test_the_entropy_coefficient_falls_while_the_policy_is_more_random_than_asked() -> None:
    agent = make_agent()
    play(agent, range(4))
    began = float(agent.log_entropy_coefficient.detach())
    with torch.no_grad():
        _, density = agent.actor.sample(torch.randn(200, 2), torch.randn(200, 2))
    assert -float(density.mean()) > -1.0  # half of two actions, negative
    agent.update(5)
    assert float(agent.log_entropy_coefficient.detach()) < began


# ---- prior data -----------------------------------------------------------------------------------------------------


def test_the_expert_acts_first_and_nothing_is_learned_before_own_episodes() -> None:
    agent = make_agent()
    states = np.full((200, 2), 0.1, np.float32)
    agent.seed_exploration(0)
    prior = agent.act(states, explore=True)
    assert prior.mean() == pytest.approx(-0.5, abs=0.1) and prior.std() == pytest.approx(SMALL.prior_noise, abs=0.05)
    assert abs(agent.act(states, explore=False).mean()) < 0.5  # evaluated is its own policy
    play(agent, range(2))
    assert agent.update(5) == {} and agent.scripted_seen == 2
    assert agent.act(states, explore=True).std() > 0.5
    play(agent, range(2, 3))
    assert set(agent.update(5)) == {"critic_loss", "value", "actor_loss", "entropy", "entropy_coefficient"}
    seen = np.concatenate([np.random.default_rng(index).normal(size=(9, 2))[:8] for index in range(3)])
    np.testing.assert_allclose(agent.scaler.mean, seen.mean(0), atol=1e-5)
    assert agent.reward_scale == pytest.approx(math.sqrt((seen.sum(1) ** 2).mean()), rel=1e-4)


def test_a_collection_begins_with_the_experts_episodes_and_the_store_says_so(tmp_path: Path) -> None:
    collection = collect(tmp_path, ToyWorkers(), agent=make_agent(COLLECTING))
    store = EpisodeStore.open(tmp_path / "episodes.zarr")
    end = int(store.episode_ends[5])
    assert store.attributes["prior"] == {"kind": "scripted", "episodes": 6, "steps": end}
    action, state = store.read("action"), store.read("state")
    home = np.clip(-5 * state, -1, 1)
    off = np.abs(np.clip(home, -1, 1) - action).mean(1)
    assert off[:end].mean() < 0.3 < off[end:].mean()
    agent = collection.agent
    shown = 3 * STEPS  # what `collect` demonstrates to any agent
    assert isinstance(agent, RLPD) and (agent.replay.demos, agent.replay.added) == (end + shown, store.steps - end)


def test_the_label_is_right_after_a_kill(tmp_path: Path) -> None:
    """A kill in the second wave, and one after the last of the expert's episodes, before the store was told."""
    settings = replace(SETTINGS, agent_steps=STEPS * 8, evaluate_every=0)
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path, ToyWorkers(fail_at=30), settings, agent=make_agent(COLLECTING))
    assert EpisodeStore.open(tmp_path / "episodes.zarr").attributes["prior"]["episodes"] == 4
    collection = collect(tmp_path, ToyWorkers(), settings, agent=make_agent(COLLECTING))
    right = collection.store.attributes["prior"]
    assert right == {"kind": "scripted", "episodes": 6, "steps": int(collection.store.episode_ends[5])}
    with EpisodeStore.open(tmp_path / "episodes.zarr", "a") as store:
        store.update_attributes({"prior": {**right, "episodes": 4, "steps": int(store.episode_ends[3])}})
    collection = collect(tmp_path, ToyWorkers(), settings, agent=make_agent(COLLECTING))
    assert collection.store.attributes["prior"] == right
    assert isinstance(collection.agent, RLPD) and collection.agent.scripted_seen == 6


@pytest.mark.parametrize(
    ("family", "task", "prior", "shown", "episodes"),
    [
        ("metaworld", "reach", "auto", False, 25),
        ("metaworld", "reach", "demonstrations", True, 0),
        ("metaworld", "reach", "none", False, 0),
        ("adroit", "door", "auto", True, 0),
    ],
)
def test_prior_data_are_scripted_where_there_are_experts(
    family: str, task: str, prior: str, shown: bool, episodes: int
) -> None:
    where = replace(surroundings(), env=replace(REACH, family=family, task=task))
    agent = agents.build({"name": "rlpd", "prior": prior}, where)
    assert (agent.needs_demonstrations, agent.scripted_episodes) == (shown, episodes)


def test_prior_data_that_cannot_be_had_are_refused_with_what_to_do() -> None:
    where = replace(surroundings(), env=replace(REACH, family="adroit", task="door"))
    with pytest.raises(
        InputError, match=r"agent\.prior: env\.family=adroit has no scripted experts; use .*demos= where"
    ):
        agents.build({"name": "rlpd", "prior": "scripted"}, where)
    with pytest.raises(InputError, match=r"agent\.target_members: expected at most agent\.members=2, got 3"):
        RLPDConfig(members=2, target_members=3)


def test_demonstrations_are_half_of_each_batch() -> None:
    agent = RLPD(SMALL, 2, 2, seed=0, shown=True)
    agent.demonstrate(demonstrations(3))
    agent.observe(demonstrations(4)[3])
    assert (agent.replay.demos, agent.replay.online) == (3 * STEPS, STEPS) and agent.update(1)


def test_the_first_episodes_of_reach_are_solved_by_the_expert() -> None:
    agent = agents.build({"name": "rlpd", "prior_noise": 0.05}, surroundings(0))
    environment = envs.make_env(REACH, renderer="raycast")
    observation, _ = environment.reset(seed=3)
    over, info = False, {}
    while not over:
        observation, _, terminated, truncated, info = environment.step(agent.act(observation["state"][None], True)[0])
        over = terminated or truncated
    assert info["success_any"]


# ---- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 2, 7])  # among the expert's episodes, after them, past the replay's end
def test_resuming_equals_never_having_stopped(tmp_path: Path, rounds: int) -> None:
    whole = make_agent()
    play(whole, range(rounds))
    checkpoint.save(tmp_path, 1, *whole.state())
    play(whole, range(rounds, rounds + 3))
    _, tensors, state = checkpoint.load_latest(tmp_path) or pytest.fail("no checkpoint")
    resumed = make_agent(seed=9)
    resumed.load_state(tensors, state)
    play(resumed, range(rounds, rounds + 3))
    for name, value in whole.state()[0].items():
        assert torch.equal(value, resumed.state()[0][name]), name
    assert whole.state()[1] == resumed.state()[1]


def test_a_stopped_collection_equals_an_unstopped_one(tmp_path: Path) -> None:
    whole = collect(tmp_path / "whole", ToyWorkers(), agent=make_agent(COLLECTING))
    for stop_after in (3, 5, 13):
        collect(tmp_path / "parts", ToyWorkers(workers=1), stop_after=stop_after, agent=make_agent(COLLECTING))
    parts = collect(tmp_path / "parts", ToyWorkers(), agent=make_agent(COLLECTING))
    one, other = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    for key, values in one[0].items():
        np.testing.assert_array_equal(values, other[0][key], err_msg=key)
    assert one[1] == other[1]
    for name, value in whole.agent.state()[0].items():
        assert torch.equal(value, parts.agent.state()[0][name]), name
    assert whole.store.attributes["prior"] == parts.store.attributes["prior"]


def test_another_agents_checkpoint_is_refused() -> None:
    with pytest.raises(InputError, match="'actor' does not fit this agent's settings"):
        make_agent(replace(SMALL, hidden=8)).load_state(*make_agent().state())


def test_global_random_streams_are_left_alone() -> None:
    np.random.seed(5)
    torch.manual_seed(5)
    expected = np.random.get_state()[1].copy(), torch.get_rng_state()
    play(make_agent(), range(4))
    np.testing.assert_array_equal(np.random.get_state()[1], expected[0])
    assert torch.equal(torch.get_rng_state(), expected[1])


def test_evaluation_leaves_the_agent_as_it_was() -> None:
    agent = learned()
    before = {name: value.clone() for name, value in agent.state()[0].items()}
    after = [agent.act(np.ones((3, 2), np.float32), explore=False) for _ in range(2)]
    np.testing.assert_array_equal(*after)
    assert all(torch.equal(value, before[name]) for name, value in agent.state()[0].items())


@pytest.mark.slow
def test_solves_the_point() -> None:
    config = replace(
        SMALL, hidden=32, batch_size=64, replay_size=5000, learning_rate=2e-3, prior_episodes=4, discount=0.9
    )
    agent = make_agent(config)

    def roll_out(seed: int, explore: bool) -> float:
        point, finished = Point(seed), None
        agent.seed_exploration(seed)
        while finished is None:
            finished = point.step(agent.act(point.states[-1][None], explore)[0])
        if explore:
            agent.observe(Trajectory(finished.states, finished.actions, finished.rewards, finished.terminated))
            agent.update(len(finished.actions))
        return finished.episode_return

    for seed in range(60):
        roll_out(seed, explore=True)
    returns = [roll_out(seed, explore=False) for seed in range(100, 120)]
    assert np.mean(returns) > -3.5, np.mean(returns)
