"""The critic of chunks: its ensemble, its target, its choice and its advantages, each against a slow reference."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_finetune import TASK, episode, regularized
from test_finetune import settings as finetune_settings
from torch import Tensor
from torch.nn.functional import layer_norm, mish, relu
from toy_planner import STATE, make_observation, make_planner

from sodp3d.core.errors import InputError
from sodp3d.core.run import Run
from sodp3d.learning.critic import conservative_advantage
from sodp3d.learning.tuning import Finetuning
from sodp3d.models.critic import Choice, Critic, CriticConfig, executed_chunks
from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.loading import load_choice, planner_state

SMALL = {"members": 3, "width": 8, "layers": 2, "first_updates": 5, "updates_per_episode": 2, "states": 12, "group": 4}


UNTAUGHT = {**SMALL, "first_updates": 0, "updates_per_episode": 0}


def make_critic(timed: bool = False, activation: str = "relu") -> Critic:
    torch.manual_seed(0)
    critic = Critic(CriticConfig(256, 6, members=3, width=8, layers=3, timed=timed, activation=activation))
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    critic.standardize(torch.randn(20, 256) * 3 + 1)
    return critic


def prepare(**changes: Any) -> Finetuning:
    tuning = Finetuning(make_planner(STATE), finetune_settings(**changes), regularized(), seed=0)
    tuning.remember([episode(tuning.planner, tuning, seed, success=seed % 2 == 0) for seed in range(4)], TASK)
    return tuning


def member(critic: Critic, index: int, features: Tensor, elapsed: Tensor, chunk: Tensor) -> Tensor:
    """One network of the ensemble on one state and chunk, layer by layer."""
    time = elapsed if critic.config.timed else torch.zeros(())
    state = torch.cat([(features - critic.mean) / critic.deviation, time[None]])
    assert critic.of_state.bias is not None and critic.head.bias is not None
    x = state @ critic.of_state.weight[index] + critic.of_state.bias[index, 0]
    x = x + chunk.flatten() @ critic.of_chunk.weight[index]
    for place in range(critic.config.layers):
        if place:
            layer: Any = critic.hidden[place - 1]
            x = x @ layer.weight[index] + layer.bias[index, 0]
        active = {"mish": mish, "relu": relu}[critic.config.activation]
        x = active(layer_norm(x, (8,)) * critic.gains[place][index, 0] + critic.shifts[place][index, 0])
    return (x @ critic.head.weight[index] + critic.head.bias[index, 0])[0]


@pytest.mark.parametrize(("timed", "activation"), [(False, "relu"), (True, "relu"), (True, "mish")])
def test_the_batched_product_is_every_member_by_itself(timed: bool, activation: str) -> None:
    critic = make_critic(timed, activation)
    features, elapsed, chunks = torch.randn(4, 256), torch.rand(4), torch.randn(4, 5, 3, 2)
    found = critic(features, elapsed, chunks)
    for index in range(3):
        for state in range(4):
            for plan in range(5):
                expected = member(critic, index, features[state], elapsed[state], chunks[state, plan])
                torch.testing.assert_close(found[index, state, plan], expected, rtol=1e-4, atol=1e-5)


def test_the_target_is_reward_and_discounted_mean_of_the_average_at_the_next_chunk() -> None:
    tuning = prepare(critic=SMALL)
    learner = tuning.critic
    assert learner is not None
    learner.learn(1, scale=2.0)
    rows, average = learner.rows, learner.average
    found = learner.target(rows, scale=2.0)
    lengths = [5] * 4
    starts = [sum(lengths[:index]) for index in range(4)]
    for row in range(20):
        values = [
            float(average(rows["next_features"][row][None], torch.zeros(1), rows["next_chunk"][row][None, None])[m])
            for m in range(3)
        ]
        assert float(found[row]) == pytest.approx(float(rows["reward"][row]) / 2 + 0.97 * sum(values) / 3, abs=1e-4)
        if row + 1 not in [*starts, 20]:
            assert torch.equal(rows["next_features"][row], rows["features"][row + 1])
            assert torch.equal(rows["next_chunk"][row], rows["chunk"][row + 1])
    ended = episode(tuning.planner, tuning, 9, success=True)
    ended.terminated = True
    tuning.remember([ended], TASK)
    assert learner.rows["continues"].tolist() == [1.0] * 24 + [0.0]
    last = learner.target({key: value[-1:] for key, value in learner.rows.items()}, scale=2.0)
    assert float(last) == pytest.approx(float(learner.rows["reward"][-1]) / 2)


def test_a_critic_saved_without_its_activation_has_the_one_of_earlier_releases() -> None:
    told = {key: value for key, value in make_critic().config.to_dict().items() if key != "activation"}
    assert Critic(CriticConfig(**told)).activation is mish


def test_an_update_is_that_of_autograd() -> None:
    learner = prepare(critic={**SMALL, "first_updates": 0}).critic
    assert learner is not None
    learner.critic.standardize(learner.rows["features"])
    learner.average.load_state_dict(learner.critic.state_dict())
    learner.updates = 1
    slow = copy.deepcopy(learner)
    learner.learn(1, scale=2.0)
    batch = slow._batch()
    found = slow.critic(batch["features"], batch["elapsed"], batch["chunk"][:, None])[..., 0]
    (found - slow.target(batch, 2.0)).square().mean().backward()
    for ours, expected in zip(learner.critic.parameters(), slow.critic.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_the_critic_is_watched_on_roll_outs_that_it_has_not_learned_from() -> None:
    tuning = prepare(critic=SMALL)
    critic = tuning.critic
    assert critic is not None and tuning.watched == {}
    tuning.learn(1)
    scale = tuning.memory.scale.deviation
    new = episode(tuning.planner, tuning, 7, success=False)
    tuning.remember([new], TASK)
    values, returns = critic.calibration
    with torch.no_grad():
        chunks = executed_chunks(tuning.planner, torch.stack(new.latents)[:, -1])[:, None]
        expected = critic.critic(torch.stack(new.features), torch.zeros(5), chunks).mean(0)[:, 0]
    torch.testing.assert_close(values, expected)
    came = float(values[-1])  # of the last chunk, beyond the time limit
    for chunk in range(4, -1, -1):
        if chunk < 4:
            came = float(new.chunk_rewards[chunk]) / scale + 0.97 * came
        assert float(returns[chunk]) == pytest.approx(came, rel=1e-4)
    assert tuning.watched["critic/bias"] == pytest.approx(float((values - returns).mean()), abs=1e-5)


def test_at_a_discount_of_one_nothing_comes_after_the_time_limit() -> None:
    """Values are of the time left then; else each would add the one after the limit, and grow without bound."""
    tuning = prepare(critic={**SMALL, "discount": 1.0})
    critic = tuning.critic
    assert critic is not None and critic.critic.config.timed
    assert critic.rows["continues"].tolist() == [1.0, 1.0, 1.0, 1.0, 0.0] * 4
    tuning.learn(1)
    new = episode(tuning.planner, tuning, 7, success=False)
    scale = tuning.memory.scale.deviation
    tuning.remember([new], TASK)
    assert float(critic.calibration[1][0]) == pytest.approx(sum(map(float, new.chunk_rewards)) / float(scale), rel=1e-4)


values = st.floats(-5, 5, width=32)


@settings(deadline=None, max_examples=60)
@given(
    found=st.integers(1, 4).flatmap(
        lambda plans: st.lists(
            st.lists(st.lists(values, min_size=plans, max_size=plans), min_size=2, max_size=2), min_size=1, max_size=4
        )
    )
)
def test_conservative_advantage_equals_its_definition(found: list[list[list[float]]]) -> None:
    """And each member's own advantages within a group sum to zero."""
    ensemble = torch.tensor(found, dtype=torch.float64)  # (M, S, G)
    advantage = ensemble - ensemble.mean(-1, keepdim=True)
    torch.testing.assert_close(advantage.sum(-1), torch.zeros_like(advantage[..., 0]), rtol=0, atol=1e-9)
    expected = torch.zeros_like(ensemble[0])
    for state in range(ensemble.shape[1]):
        for plan in range(ensemble.shape[2]):
            ours = advantage[:, state, plan].tolist()
            if all(value > 0 for value in ours):
                expected[state, plan] = min(ours)
            elif all(value < 0 for value in ours):
                expected[state, plan] = max(ours)
    torch.testing.assert_close(conservative_advantage(ensemble), expected)


def test_the_best_of_several_plans_is_the_one_that_the_members_mean_likes_best() -> None:
    planner, critic, options = make_planner(STATE), make_critic(), ChainOptions()
    features = planner.encode(make_observation(STATE, 3)).detach()
    noise = planner.noise(12, torch.Generator().manual_seed(0)).unflatten(0, (3, 4))
    chosen = Choice(critic, 4).sample(planner, features, torch.zeros(3), noise, options)
    for state in range(3):
        with torch.no_grad():
            chain = planner.sample_chain(features[state].expand(4, -1), noise[state], options)
            chunks = executed_chunks(planner, chain.latents[:, -1])
            liked = [float(critic(features[state][None], torch.zeros(1), chunk[None, None]).mean()) for chunk in chunks]
        best = max(range(4), key=lambda plan: liked[plan])
        torch.testing.assert_close(chosen.latents[state], chain.latents[best], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(chosen.means[state], chain.means[best], rtol=1e-4, atol=1e-4)
    seen = make_observation(STATE, 3)
    plan = planner.plan(seen, noise=noise, sigma_floor=options.sigma_floor, choice=Choice(critic, 4))
    torch.testing.assert_close(plan, planner.actions(chosen.latents[:, -1]))
    drawn = planner.plan(seen, generator=torch.Generator().manual_seed(0), sigma_floor=0.1, choice=Choice(critic, 4))
    torch.testing.assert_close(drawn, plan)


def test_imagined_plans_have_ratio_one_at_first_and_are_learned_from() -> None:
    tuning = prepare(critic=SMALL, credit="critic", chosen_share=0.5, target_kl=None, importance_batch_size=16)
    assert tuning.critic is not None
    lesson, metrics = tuning._lesson(20)
    assert set(metrics) >= {"critic/loss", "critic/value", "critic/agreed"}
    batch = lesson.plans.sample(16, tuning.learner.batches)
    _, found = tuning.learner.importance(batch, lesson.credits[batch["index"]])
    assert float(found["ratio_max"]) == pytest.approx(1, abs=1e-4) and float(found["kl"]) == pytest.approx(0, abs=1e-7)
    before = [parameter.detach().clone() for parameter in tuning.learner.parameters]
    tuning.learn(4)
    assert any(not torch.equal(a, b) for a, b in zip(before, tuning.learner.parameters, strict=True))


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    critic = prepare(critic=SMALL).critic
    assert critic is not None
    critic.learn(1, scale=1.0)
    before = [parameter.detach().clone() for parameter in critic.critic.parameters()]
    critic.rows["reward"][:] = float("nan")
    with pytest.raises(FloatingPointError, match="the critic's update 6: loss nan"):
        critic.learn(1, scale=1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, critic.critic.parameters(), strict=True))


def test_refreshed_chunks_are_the_planners_own() -> None:
    tuning = prepare(critic={**SMALL, "refreshed_chunks": 7})
    assert tuning.critic is not None
    before = tuning.critic.rows["next_chunk"].clone()
    tuning.critic.refresh(tuning.planner, tuning.learner.options)
    changed = (tuning.critic.rows["next_chunk"] != before).flatten(1).any(1)
    assert int(changed.sum()) == 7


def test_with_a_critic_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "critic": {**SMALL, "refreshed_chunks": 7},
        "credit": "critic",
        "chosen_share": 0.5,
        "tested_best_of": 4,
    }
    straight, stopped = prepare(**changes), prepare(**changes)
    for tuning in (straight, stopped):
        tuning.learn(2)
    with Run(tmp_path, {}) as run:
        stopped.save(run, planner_state(stopped.planner, [TASK], "0123"))
        resumed = Finetuning(make_planner(STATE), finetune_settings(**changes), regularized(), 9)
        assert resumed.load(run, "of the planner")
    straight.learn(2), resumed.learn(2)
    for name, value in straight.planner.state_dict().items():
        assert torch.equal(value, resumed.planner.state_dict()[name]), name
    assert straight.critic is not None and resumed.critic is not None
    for name, value in straight.critic.state_dict().items():
        assert torch.equal(value, resumed.critic.state_dict()[name]), name
    choice = load_choice(tmp_path, "cpu")
    assert choice is not None and choice.count == 4
    assert load_choice(tmp_path, "cpu", best_of=1) is None
    for name, value in choice.critic.state_dict().items():
        assert torch.equal(value, stopped.critic.critic.state_dict()[name]) if stopped.critic else False, name


@pytest.mark.parametrize(("part", "key"), [("critic", "activation"), ("counters", "outcomes")])
def test_a_run_of_a_release_without_what_is_known_today_does_not_go_on(tmp_path: Path, part: str, key: str) -> None:
    tuning = prepare(critic=SMALL)
    tuning.learn(1)
    with Run(tmp_path, {}) as run:
        tuning.save(run, planner_state(tuning.planner, [TASK], "0123"))
        state = next(run.checkpoints.glob("*/state.json"))
        told = json.loads(state.read_text())
        del told[part][key]
        state.write_text(json.dumps(told))
        resumed = Finetuning(make_planner(STATE), finetune_settings(critic=SMALL), regularized(), 9)
        with pytest.raises(InputError, match="begun with an earlier release, whose roll-outs or critic are of another"):
            resumed.load(run, "of the planner")


def test_a_planner_without_a_critic_cannot_choose(tmp_path: Path) -> None:
    tuning = prepare()
    assert tuning.choice(16) is None
    with Run(tmp_path, {}) as run:
        tuning.save(run, planner_state(tuning.planner, [TASK], "0123"))
    assert load_choice(tmp_path, "cpu") is None
    with pytest.raises(InputError, match=r"evaluation\.best_of: 16 plans need a critic to choose, and .* has none"):
        load_choice(tmp_path, "cpu", best_of=16)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"credit": "critic"}, r"finetune\.critic\.members: finetune\.credit=critic needs a critic, got 0"),
        ({"best_of": 4}, r"finetune\.critic\.members: finetune\.best_of=4 needs a critic"),
        ({"chosen_share": 0.5}, r"finetune\.critic\.members: finetune\.chosen_share=0\.5 needs a critic"),
        ({"critic": {"members": 3}, "encoder": "tuned"}, r"finetune\.critic: it learns from features"),
        ({"critic": UNTAUGHT}, r"finetune\.critic: 0 first_updates and 0 updates_per_episode teach it nothing"),
        (
            {"critic": SMALL, "credit": "critic", "baseline": "value"},
            r"finetune\.baseline: finetune\.credit=critic comp",
        ),
        ({"critic": SMALL, "credit": "critic", "discount": 0.9}, r"finetune\.discount: with .* finetune\.critic\.disc"),
    ],
)
def test_settings_that_need_a_critic_are_refused_without(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        prepare(**changes)


def test_it_learns_which_chunks_are_worth_more() -> None:
    """Rewards that the executed chunk alone decides: its plans are ranked by them."""
    tuning = prepare(critic={**SMALL, "width": 32, "learning_rate": 3e-3, "discount": 0.5})
    learner = tuning.critic
    assert learner is not None
    generator = torch.Generator().manual_seed(0)
    chunks = 2 * torch.rand(512, 3, 2, generator=generator) - 1
    features = torch.randn(512, 256, generator=generator)
    learner.rows = {
        "features": features, "elapsed": torch.zeros(512), "chunk": chunks, "reward": chunks[:, 0, 0],
        "next_features": features, "next_elapsed": torch.zeros(512), "next_chunk": chunks,
        "continues": torch.zeros(512),
    }  # fmt: skip
    learner.learn(300, scale=1.0)
    with torch.no_grad():
        plans = 2 * torch.rand(64, 8, 3, 2, generator=generator) - 1
        best = learner.critic(features[:64], torch.zeros(64), plans).mean(0).argmax(1)
    worth = plans[torch.arange(64), best, 0, 0]
    assert float(worth.mean()) > 0.6 * float(plans[:, :, 0, 0].amax(1).mean())
