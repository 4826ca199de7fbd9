"""VRL3: each piece against a plain re-statement of it, exact resumption, and that it learns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_collection import Point, demonstrations

from sodp3d.collection import agents
from sodp3d.collection.agents.memory import Replay, Trajectory, n_step_rows
from sodp3d.collection.agents.networks import StateScaler, TwinCritic, noisy_action
from sodp3d.collection.agents.vrl3 import VRL3, safe_q
from sodp3d.collection.agents.vrl3_config import VRL3Config
from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError

torch.set_num_threads(1)
SMALL = VRL3Config(
    hidden=16, features=8, batch_size=32, conservative_actions=3, offline_updates=20, bc_weight_offline=0.5,
    bc_weight_online=0.1, demo_fraction=0.25,
)  # fmt: skip


def make_trajectory(steps: int, seed: int = 0, terminated: bool = False, with_last: bool = True) -> Trajectory:
    random = np.random.default_rng(seed)
    states = random.normal(size=(steps + with_last, 2)).astype(np.float32)
    return Trajectory(states, random.uniform(-1, 1, (steps, 2)), random.normal(size=steps), terminated)


def make_agent(config: VRL3Config = SMALL, seed: int = 0) -> VRL3:
    agent = VRL3(config, 2, 2, seed)
    agent.demonstrate(demonstrations())
    return agent


# ---- replay ----------------------------------------------------------------------------------------------------------


@given(
    steps=st.integers(1, 9), n_step=st.integers(1, 5), terminated=st.booleans(), with_last=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(deadline=None)
def test_rows_hold_n_step_returns(steps: int, n_step: int, terminated: bool, with_last: bool, seed: int) -> None:
    episode = make_trajectory(steps, seed, terminated, with_last)
    rows = n_step_rows(episode, n_step, 0.9)
    assert len(rows) == (steps if with_last else steps - 1)
    for t, row in enumerate(rows):
        value, discount, reached = 0.0, 1.0, t
        while reached < min(t + n_step, len(episode.states) - 1):
            value += discount * episode.rewards[reached]
            discount *= 0.9
            reached += 1
        if terminated and reached == steps:
            discount = 0.0
        expected = [*episode.states[t], *episode.actions[t], value, discount, *episode.states[reached]]
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)


def test_time_limits_bootstrap_and_terminations_do_not() -> None:
    cut, ended = make_trajectory(4), make_trajectory(4, terminated=True)
    assert n_step_rows(cut, 3, 0.9)[-1, 5] == pytest.approx(0.9)
    assert n_step_rows(ended, 3, 0.9)[-1, 5] == 0
    assert n_step_rows(ended, 3, 0.9)[0, 5] == pytest.approx(0.9**3)


def test_old_experience_makes_room_and_demonstrations_stay() -> None:
    replay = Replay(2, 2, 1, 0.9, capacity=10)
    shown = [make_trajectory(4, seed) for seed in (0, 1)]
    online = [make_trajectory(4, seed) for seed in (2, 3, 4, 5)]
    for episode in shown:
        replay.add(episode, demo=True)
    for episode in online:
        replay.add(episode)
    rows = replay.state()[0]["rows"].numpy()
    kept = np.concatenate([n_step_rows(episode, 1, 0.9) for episode in online])[-10:]
    np.testing.assert_array_equal(rows[:8], np.concatenate([n_step_rows(episode, 1, 0.9) for episode in shown]))
    assert {row.tobytes() for row in rows[8:]} == {row.tobytes() for row in kept}


def test_batches_reserve_the_asked_share_for_demonstrations_and_mark_them() -> None:
    replay = Replay(2, 2, 1, 0.9, capacity=1000)
    replay.add(make_trajectory(5), demo=True)
    for seed in range(1, 100):
        replay.add(make_trajectory(5, seed))
    batch = replay.sample(400, torch.Generator().manual_seed(0), demo_fraction=0.5)
    assert batch.from_demo[:200].all()
    assert batch.from_demo[200:].float().mean() < 0.05
    demo_rows = {row.tobytes() for row in make_trajectory(5).states.astype(np.float32)}
    assert all(
        (row.tobytes() in demo_rows) == mark for row, mark in zip(batch.states.numpy(), batch.from_demo, strict=True)
    )


def test_wrong_sizes_and_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="4 actions and 3 rewards"):
        Trajectory(np.zeros((5, 2)), np.zeros((4, 2)), np.zeros(3))
    with pytest.raises(InputError, match="rewards hold numbers that are not finite"):
        Trajectory(np.zeros((5, 2)), np.zeros((4, 2)), np.full(4, np.nan))
    with pytest.raises(InputError, match=r"sizes \(2, 2\) do not match \(3, 2\)"):
        Replay(3, 2, 1, 0.9, 10).add(make_trajectory(4))


# ---- networks and losses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_norm", [False, True])
def test_twin_critic_equals_two_plain_networks(layer_norm: bool) -> None:
    def activate(x: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.layer_norm(x, (16,)) if layer_norm else x).relu()

    generator = torch.Generator().manual_seed(0)
    critic = TwinCritic(5, 3, 8, 16, generator, layer_norm)
    states, actions = torch.randn(7, 5, generator=generator), torch.randn(7, 4, 3, generator=generator)
    values = critic(states, actions)
    assert values.shape == (2, 7, 4)
    features = critic.trunk(states)
    for head in range(2):
        columns = slice(16 * head, 16 * (head + 1))
        first = torch.cat([critic.state_weight[:, columns], critic.action_weight[:, columns]])
        torch.testing.assert_close(first @ first.T, torch.eye(11))  # orthogonal as one matrix per head
        for m in range(4):
            x = torch.cat([features, actions[:, m]], dim=1) @ first + critic.first_bias[columns]
            x = activate(activate(x) @ critic.hidden_weight[head] + critic.hidden_bias[head])
            expected = (x @ critic.value_weight[head] + critic.value_bias[head])[:, 0]
            torch.testing.assert_close(values[head, :, m], expected, rtol=1e-5, atol=1e-6)


def test_safe_q_bends_only_what_exceeds_the_threshold() -> None:
    values = torch.tensor([-5.0, 200.0, 201.0, 204.0, 300.0])
    torch.testing.assert_close(safe_q(values, 200.0, 0.5), torch.tensor([-5.0, 200.0, 201.0, 202.0, 210.0]))
    torch.testing.assert_close(safe_q(values, 200.0, 1.0), values)


def test_noise_is_clipped_and_lets_the_gradient_through() -> None:
    generator = torch.Generator().manual_seed(0)
    pre_tanh = torch.full((1000, 2), 3.0, requires_grad=True)
    actions = noisy_action(pre_tanh, 0.5, generator, clip=0.3)
    assert actions.max() < 1 and actions.min() >= np.tanh(3.0) - 0.3 - 1e-6
    (gradient,) = torch.autograd.grad(actions.sum(), pre_tanh)
    torch.testing.assert_close(gradient, torch.full_like(gradient, float(1 - np.tanh(3.0) ** 2)), rtol=1e-4, atol=0)
    torch.testing.assert_close(noisy_action(pre_tanh, 0.5, None), torch.tanh(pre_tanh))


def test_scaler_standardizes_and_limits() -> None:
    scaler = StateScaler(2)
    states = np.random.default_rng(0).normal((3, -1), (2, 0.0), (1000, 2))
    scaler.fit([Trajectory(states, np.zeros((1000, 1)), np.zeros(1000))])
    scaled = scaler(torch.as_tensor(states, dtype=torch.float32))
    assert scaled[:, 0].mean().abs() < 1e-4 and scaled[:, 0].std() == pytest.approx(1, abs=1e-2)
    assert torch.isfinite(scaler(torch.tensor([[1e9, 1e9]]))).all() and scaler(torch.tensor([[3.0, 1e9]]))[0, 1] == 10


def test_conservative_loss_pushes_unseen_actions_below_the_data() -> None:
    plain, conservative = (
        make_agent(replace(SMALL, conservative_weight=weight, learning_rate=1e-3)) for weight in (0.0, 5.0)
    )
    margins = []
    for agent in (plain, conservative):
        agent.update(200, offline=True)
        batch = agent.replay.sample(200, torch.Generator().manual_seed(1))
        states = agent.encoder(batch.states)
        other = torch.rand(200, 1, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1
        with torch.no_grad():
            margins.append((agent.critic(states, batch.actions[:, None]) - agent.critic(states, other)).mean().item())
    assert margins[1] > margins[0] + 0.5


def test_each_loss_moves_only_its_own_networks() -> None:
    agent = make_agent()
    agent.update(3, offline=True)
    batch = agent.replay.sample(16, torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in agent.state()[0].items()}
    agent._update_actor(batch, agent.encoder(batch.states), 0.1, bc_weight=0.1)
    changed = {name.split(".")[0] for name, value in agent.state()[0].items() if not torch.equal(value, before[name])}
    assert changed == {"actor", "actor_optimizer", "random"}


def test_target_follows_the_critic_slowly() -> None:
    agent = make_agent()
    agent.update(1)
    online, target = agent.critic.state_dict(), agent.target.state_dict()
    start = make_agent().critic.state_dict()
    for name in online:
        torch.testing.assert_close(target[name], torch.lerp(start[name], online[name], 0.01))


# ---- learning, determinism, resumption -------------------------------------------------------------------------------


def test_same_seed_same_networks_another_seed_others() -> None:
    first, second, other = make_agent(), make_agent(), make_agent(seed=1)
    metrics = [agent.update(5, offline=True) for agent in (first, second, other)]
    assert metrics[0] == metrics[1] != metrics[2]


@pytest.mark.parametrize("offline", [True, False])
def test_resuming_equals_never_having_stopped(tmp_path: Path, offline: bool) -> None:
    def play(agent: VRL3) -> None:
        agent.update(4, offline)
        agent.seed_exploration(1)
        states = np.full((3, 2), 0.5, np.float32)
        actions = np.stack([agent.act(states, explore=True) for _ in range(4)], axis=1)
        agent.observe(Trajectory(np.zeros((5, 2)), actions[0], np.ones(4)))

    whole = make_agent()
    play(whole)
    tensors, state = whole.state()
    checkpoint.save(tmp_path, 1, tensors, state)
    play(whole)
    _, tensors, state = checkpoint.load_latest(tmp_path) or pytest.fail("no checkpoint")
    resumed = VRL3(SMALL, 2, 2, seed=99)
    resumed.load_state(tensors, state)
    assert resumed.offline_left == SMALL.offline_updates - 4 * offline
    play(resumed)
    for name, value in whole.state()[0].items():
        assert torch.equal(value, resumed.state()[0][name]), name
    assert whole.state()[1] == resumed.state()[1]


def test_checkpoint_of_other_settings_is_refused() -> None:
    tensors, state = make_agent().state()
    with pytest.raises(InputError, match="'actor' does not fit this agent's settings"):
        VRL3(replace(SMALL, hidden=32), 2, 2, 0).load_state(tensors, state)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_bfloat16_products_change_values_and_gradients_little(layer_norm: bool) -> None:
    critics = [
        TwinCritic(5, 3, 8, 64, torch.Generator().manual_seed(0), layer_norm, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    generator = torch.Generator().manual_seed(1)
    states, actions = torch.randn(64, 5, generator=generator), torch.randn(64, 4, 3, generator=generator)
    exact, rounded = (critic(states, actions) for critic in critics)
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert (exact - rounded).abs().mean() < 0.02 * exact.std()
    for values in (exact, rounded):
        values.square().sum().backward()
    for one, other in zip(critics[0].parameters(), critics[1].parameters(), strict=True):
        assert other.grad.dtype == torch.float32
        assert torch.cosine_similarity(one.grad.flatten(), other.grad.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_offline_then_online_learning_solves_the_point(precision: str) -> None:
    config = replace(SMALL, hidden=32, batch_size=64, learning_rate=1e-3, online_std=0.1, precision=precision)
    agent = make_agent(config)

    def mean_return(explore: bool, learn: bool) -> float:
        returns = []
        for seed in range(100, 120):
            point, finished = Point(seed), None
            while finished is None:
                finished = point.step(agent.act(point.states[-1][None], explore)[0])
            returns.append(finished.episode_return)
            if learn:
                agent.observe(Trajectory(finished.states, finished.actions, finished.rewards))
                agent.update(12)
        return float(np.mean(returns))

    untrained = mean_return(explore=False, learn=False)
    agent.update(200, offline=True)
    for _ in range(3):
        mean_return(explore=True, learn=True)
    trained = mean_return(explore=False, learn=False)
    assert untrained < -6 and trained > -3, (untrained, trained)


def test_the_seed_of_a_wave_decides_what_is_explored() -> None:
    agent, states = make_agent(), np.zeros((4, 2), np.float32)
    agent.seed_exploration(7)
    actions = agent.act(states, explore=True)
    agent.update(2, offline=True)
    assert not np.array_equal(actions, agent.act(states, explore=True))
    other = VRL3(SMALL, 2, 2, seed=0)
    other.load_state(*make_agent().state())
    other.seed_exploration(7)
    np.testing.assert_array_equal(actions, other.act(states, explore=True))


# ---- settings --------------------------------------------------------------------------------------------------------


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="unknown key 'hiden'; valid keys are encoder, stage1"):
        VRL3Config(hiden=3)  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"agent\.encoder: expected state or pixels, got 'pixel'"):
        VRL3Config(encoder="pixel")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"agent\.stage1: a\.safetensors is for agent\.encoder=pixels"):
        VRL3Config(stage1="a.safetensors")
    with pytest.raises(InputError, match=r"agent\.online_std: expected a number from 0 on, or linear"):
        VRL3Config(online_std="linear(1.0,0.1)")
    with pytest.raises(InputError, match=r"agent\.precision: expected float32 or bfloat16, got 'half'"):
        VRL3Config(precision="half")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"agent\.demo_fraction: expected a number from 0 to 1, got 1\.5"):
        VRL3Config(demo_fraction=1.5)
    with pytest.raises(InputError, match=r"agent\.name: expected one of .*vrl3.*, got 'vlr3'"):
        agents.build({"name": "vlr3"}, agents.Surroundings(None, 2, 2, 2, 0))  # type: ignore[arg-type]


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), explore=st.booleans())
def test_actions_are_valid_for_any_state(seed: int, explore: bool) -> None:
    agent = VRL3(replace(SMALL, online_std=0.5), 2, 2, seed)
    states = np.random.default_rng(seed).normal(size=(4, 2)).astype(np.float32) * 1e6
    actions = agent.act(states, explore)
    assert actions.shape == (4, 2) and actions.dtype == np.float32 and (np.abs(actions) <= 1).all()
