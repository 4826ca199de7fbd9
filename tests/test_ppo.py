"""The importance loss, credit assignment and reward scale against slow references."""

import math

import pytest
import torch
from chains import chain_log_prob
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_planner import make_observation, make_planner

from sodp3d.core.errors import InputError
from sodp3d.learning.ppo import (
    CreditOptions,
    RunningScale,
    ValueHead,
    credits_and_targets,
    denoising_discounts,
    gae,
    growing_clip,
    importance_loss,
    kl_exceeded,
    return_to_go,
)

numbers = st.floats(-5, 5, allow_nan=False, width=32)


@settings(deadline=None, max_examples=60)
@given(reward=numbers, difference=st.floats(-1, 1, width=32), clip=st.floats(0.01, 0.5))
def test_loss_of_one_step_and_its_gradient(reward: float, difference: float, clip: float) -> None:
    """Pessimistic for both signs; no gradient where the ratio has left the bounds in the wanted direction."""
    new = torch.tensor([[difference]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([reward], dtype=torch.float64)
    loss, _ = importance_loss(weight, new, clip)
    ratio = math.exp(difference)
    bounded = min(max(ratio, 1 - clip), 1 + clip)
    assert loss.item() == pytest.approx(max(-reward * ratio, -reward * bounded))
    loss.backward()
    wanted = (reward > 0 and ratio > 1 + clip) or (reward < 0 and ratio < 1 - clip)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(0.0 if wanted else -reward * ratio)


def test_first_mini_batch_has_ratio_one_and_the_policy_gradient() -> None:
    """Eq. 12 as written: the mean over plans of the sum over all their denoising steps."""
    planner, observation = make_planner(), make_observation(size=6)
    with torch.no_grad():
        chain = planner.sample_chain(observation, planner.noise(6, torch.Generator().manual_seed(0)))
    reward = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, -1.0])
    new = chain_log_prob(planner, observation, chain.latents)
    loss, metrics = importance_loss(reward, new - new.detach(), clip=0.01)
    torch.testing.assert_close(loss, -10 * reward.mean(), rtol=1e-4, atol=1e-4)
    assert metrics["clip_fraction"] == 0
    assert metrics["ratio_max"] == pytest.approx(1, abs=1e-4)
    ours = torch.autograd.grad(loss, new, retain_graph=True)[0]
    torch.testing.assert_close(ours, -reward[:, None].expand(6, 10) / 6, rtol=1e-3, atol=1e-6)
    found = torch.autograd.grad(loss, list(planner.unet.parameters()), retain_graph=True)
    expected = torch.autograd.grad(-(reward[:, None] * new).sum(1).mean(), list(planner.unet.parameters()))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_gradient_step_raises_the_likelihood_of_what_was_rewarded() -> None:
    planner, observation = make_planner(), make_observation(size=2)
    with torch.no_grad():
        chain = planner.sample_chain(observation, planner.noise(2, torch.Generator().manual_seed(0)))
        old = chain_log_prob(planner, observation, chain.latents)
    optimizer = torch.optim.SGD(planner.parameters(), 1e-4)
    for _ in range(5):
        change = chain_log_prob(planner, observation, chain.latents) - old
        loss, _ = importance_loss(torch.tensor([1.0, -1.0]), change, clip=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        change = (chain_log_prob(planner, observation, chain.latents) - old).mean(1)
    assert change[0] > 0 > change[1]


def test_metrics_count_the_ratios_outside_the_bounds() -> None:
    _, metrics = importance_loss(torch.ones(1), torch.tensor([[0.05, 0.005]]), 0.01)
    assert metrics["clip_fraction"] == 0.5
    _, metrics = importance_loss(torch.ones(1), torch.tensor([[0.05, 0.005]]), torch.tensor([0.1, 0.001]))
    assert metrics["clip_fraction"] == 0.5


def test_each_step_has_its_own_clip_and_weight() -> None:
    bounds = growing_clip(0.01, 0.001, 3)
    torch.testing.assert_close(bounds, torch.tensor([0.001, 0.001 * 10**0.5, 0.01]))
    torch.testing.assert_close(growing_clip(0.01, None, 2), torch.full((2,), 0.01))
    torch.testing.assert_close(denoising_discounts(0.5, 3), torch.tensor([0.25, 0.5, 1.0]))
    loss, _ = importance_loss(torch.tensor([2.0]), torch.ones(1, 3), bounds, denoising_discounts(0.5, 3))
    assert loss.item() == pytest.approx(
        -2 * sum(w * (1 + c) for w, c in zip([0.25, 0.5, 1], bounds.tolist(), strict=True))
    )


def test_kl_guard() -> None:
    metrics = {"kl": torch.tensor(0.02)}
    assert kl_exceeded(metrics, 0.01) and not kl_exceeded(metrics, 0.03) and not kl_exceeded(metrics, None)


episodes = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), min_size=1, max_size=4)


def slow_gae(rewards: list[float], values: list[float], discount: float, mixing: float, final: float) -> list[float]:
    """The definition: a weighted sum over all n-step advantages, with every bootstrap value spelled out."""
    values = [*values, final]
    result = []
    for start in range(len(rewards)):
        total = 0.0
        for step in range(start, len(rewards)):
            residual = rewards[step] + discount * values[step + 1] - values[step]
            total += (discount * mixing) ** (step - start) * residual
        result.append(total)
    return result


@settings(deadline=None, max_examples=60)
@given(data=episodes, discount=st.floats(0.5, 1), mixing=st.floats(0, 1), final=numbers)
def test_gae_equals_its_definition_and_leaks_nothing(
    data: list[list[tuple[float, float]]], discount: float, mixing: float, final: float
) -> None:
    """Truncated episodes end in their own final value, whatever episode comes next in the buffer."""
    rewards = [torch.tensor([r for r, _ in episode], dtype=torch.float64) for episode in data]
    values = [torch.tensor([v for _, v in episode], dtype=torch.float64) for episode in data]
    finals = [final if index % 2 else 0.0 for index in range(len(data))]  # truncated and terminated in turn
    options = CreditOptions("gae", discount=discount, gae_lambda=mixing)
    credit, targets = credits_and_targets(rewards, options, values, finals)
    expected = [
        value
        for r, v, last in zip(rewards, values, finals, strict=True)
        for value in slow_gae(r.tolist(), v.tolist(), discount, mixing, last)
    ]
    torch.testing.assert_close(credit, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(targets, credit + torch.cat(values), rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(rewards=st.lists(numbers, min_size=1, max_size=8), discount=st.floats(0, 1), final=numbers)
def test_return_to_go_equals_its_definition(rewards: list[float], discount: float, final: float) -> None:
    count = len(rewards)
    expected = [
        sum(discount ** (k - t) * rewards[k] for k in range(t, count)) + discount ** (count - t) * final
        for t in range(count)
    ]
    result = return_to_go(torch.tensor(rewards, dtype=torch.float64), discount, final)
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_gae_with_lambda_one_is_return_minus_value() -> None:
    rewards, values = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gae(rewards, values, 0.9, 1.0, 2.0), return_to_go(rewards, 0.9, 2.0) - values)


REWARDS = [torch.tensor([1.0, 2.0, 6.0]), torch.tensor([3.0, 4.0])]


@pytest.mark.parametrize(
    ("credit", "baseline", "expected"),
    [
        ("chunk", "none", [1.0, 2.0, 6.0, 3.0, 4.0]),
        ("chunk", "mean", [-2.2, -1.2, 2.8, -0.2, 0.8]),
        ("chunk", "time", [-1.0, -1.0, 0.0, 1.0, 1.0]),
        ("chunk", "value", [0.5, 1.5, 5.5, 2.5, 3.5]),
        ("return_to_go", "none", [9.0, 8.0, 6.0, 7.0, 4.0]),
        ("return_to_go", "time", [1.0, 2.0, 0.0, -1.0, -2.0]),
    ],
)
def test_credit_and_baseline(credit: str, baseline: str, expected: list[float]) -> None:
    values = [torch.full_like(reward, 0.5) for reward in REWARDS]
    result, _ = credits_and_targets(REWARDS, CreditOptions(credit, baseline), values)
    torch.testing.assert_close(result, torch.tensor(expected))


def test_credit_options_are_checked() -> None:
    with pytest.raises(InputError, match="expected one of chunk, return_to_go, gae, got 'td'"):
        CreditOptions(credit="td")
    with pytest.raises(InputError, match="expected one of none, mean, time, value, got 'best'"):
        CreditOptions(baseline="best")
    with pytest.raises(InputError, match="subtracts the value already"):
        CreditOptions("gae", "value")
    with pytest.raises(InputError, match="need a value head"):
        credits_and_targets(REWARDS, CreditOptions("gae"))


@settings(deadline=None, max_examples=40)
@given(batches=st.lists(st.lists(numbers, max_size=6), min_size=1, max_size=5))
def test_running_scale_is_the_deviation_of_all_values(batches: list[list[float]]) -> None:
    scale, restored = RunningScale(), RunningScale()
    for batch in batches:
        scale.update(torch.tensor(batch))
    restored.load_state_dict(scale.state_dict())
    everything = torch.tensor([value for batch in batches for value in batch], dtype=torch.float64)
    deviation = everything.std(correction=0) if len(everything) > 1 else torch.tensor(0.0)
    probe = torch.tensor([-1.0, 0.0, 2.0])
    expected: Tensor = probe / deviation if deviation > 1e-6 else probe
    if deviation == 0 or deviation > 1e-6:
        torch.testing.assert_close(restored(probe), expected.float(), rtol=1e-4, atol=1e-6)


def test_value_head_learns_and_leaves_the_features_alone() -> None:
    torch.manual_seed(0)
    head, features, elapsed = ValueHead(8), torch.randn(64, 8, requires_grad=True), torch.rand(64)
    target, optimizer = features.detach()[:, 0] + 3 * elapsed, torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(60):
        loss = (head(features, elapsed) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05 * target.var()
    assert features.grad is None
