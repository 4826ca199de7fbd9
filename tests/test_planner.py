"""The planner: chains and their likelihood, planning from raw observations, overfitting, the weights' average."""

import dataclasses
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from chains import chain_log_prob
from torch.distributions import Normal, kl_divergence
from toy_planner import STATE, make_observation, make_planner

from sodp3d.core.errors import InputError
from sodp3d.learning.ema import EMA, ema_decay
from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.likelihood import divergence, log_ratio, reduce
from sodp3d.models.planner import PlannerConfig

SIZE = STATE.proprioception_size
OPTIONS = [
    ChainOptions(),
    ChainOptions(eta=0.5, sigma_floor=0.3, floor_steps="last", reduction="sum", rows="all"),
    ChainOptions(sigma_floor=0.05, floor_steps="all_but_last", noise_clip=3.0),
    ChainOptions(sigma_floor=0.0),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_chain_tells_the_normals_that_it_was_drawn_from(options: ChainOptions) -> None:
    planner, observation = make_planner(), make_observation(size=3)
    noise = planner.noise(3, torch.Generator().manual_seed(1))
    with torch.no_grad():
        chain = planner.sample_chain(observation, noise, options)
        features = planner.encode(observation)
    if options.noise_clip is not None:
        noise = noise.clamp(-options.noise_clip, options.noise_clip)
    steps = planner.random_steps(options)
    again = planner.chain_means(features, chain.latents, steps, options)
    torch.testing.assert_close(again, chain.means[:, steps], rtol=1e-3, atol=1e-3)
    for index in range(10):
        mean, sigma = planner.moments(features, chain.latents[:, index], torch.full((3,), index), options)
        torch.testing.assert_close(chain.means[:, index], mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            mean + sigma * noise[:, index + 1], chain.latents[:, index + 1], rtol=1e-3, atol=1e-3
        )
        assert (index in steps) == bool(sigma.max() > 0)
    assert (sigma > 0).all() == (options.floor_steps != "all_but_last" and options.sigma_floor > 0)  # the last step's


@pytest.mark.parametrize("executed", [3, 1])
@pytest.mark.parametrize("options", OPTIONS)
def test_ratio_and_divergence_are_those_of_torch_distributions(options: ChainOptions, executed: int) -> None:
    """Over what was executed alone, where that is what counts: a chunk that the episode's end cut has fewer rows."""
    planner, other, observation = make_planner(), make_planner(seed=1), make_observation(size=5)
    other.normalizer.load_state_dict(planner.normalizer.state_dict())
    with torch.no_grad():
        chain = planner.sample_chain(observation, planner.noise(5, torch.Generator().manual_seed(1)), options)
        steps = planner.random_steps(options)
        old, value, sigma = chain.means[:, steps], chain.latents[:, steps + 1], planner.deviations(steps, options)
        new = other.chain_means(other.encode(observation), chain.latents, steps, options)
    scored, sigma = planner.scored(torch.full((5,), executed), options), sigma.view(-1, 1, 1)
    found = reduce(log_ratio(value, new, old, sigma), scored, options.reduction)
    given = observation, chain.latents, options, executed
    expected = chain_log_prob(other, *given) - chain_log_prob(planner, *given)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    rows = slice(1, 1 + executed) if options.rows == "executed" else slice(None)
    divergences = kl_divergence(Normal(new, sigma), Normal(old, sigma))[:, :, rows]
    exact = divergences.mean((2, 3)) if options.reduction == "mean" else divergences.sum((2, 3))
    torch.testing.assert_close(
        reduce(divergence(new, old, sigma), scored, options.reduction), exact, rtol=1e-4, atol=1e-5
    )


def test_floor_is_the_smallest_sigma_of_the_floored_steps() -> None:
    planner = make_planner()
    features, latents, steps = torch.zeros(10, 256), torch.zeros(10, 4, 2), torch.arange(10)
    plain = planner.moments(features, latents, steps, ChainOptions(sigma_floor=0.0))[1].flatten()
    floored = planner.moments(features, latents, steps, ChainOptions(sigma_floor=0.5))[1].flatten()
    torch.testing.assert_close(floored, plain.clamp(min=0.5))
    assert plain[-1] == 0 and (plain < 0.5).sum() > 1
    last = planner.moments(features, latents, steps, ChainOptions(sigma_floor=0.5, floor_steps="last"))[1].flatten()
    torch.testing.assert_close(last, torch.cat([plain[:-1], torch.tensor([0.5])]))


def test_features_stand_in_for_the_observation() -> None:
    planner, observation = make_planner(), make_observation(size=2)
    noise = planner.noise(2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = planner.encode(observation)
        assert features.shape == (2, 256)
        assert torch.equal(
            planner.sample_chain(observation, noise).latents, planner.sample_chain(features, noise).latents
        )
        batch = {"action": torch.rand(2, 4, 2), **observation}
        raw = planner.loss(batch, torch.Generator().manual_seed(0))
        cached = planner.loss({"action": batch["action"], "features": features}, torch.Generator().manual_seed(0))
    assert raw == cached


def test_loss_depends_on_the_generator_only() -> None:
    planner, batch = make_planner(), {"action": torch.rand(8, 4, 2), **make_observation(size=8)}
    losses = [planner.loss(batch, torch.Generator().manual_seed(seed)).item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_plan_takes_raw_numpy_and_stays_in_the_range_of_the_data(eta: float) -> None:
    planner = make_planner()
    observation = {key: value.numpy() for key, value in make_observation(size=6).items()}
    plan = planner.plan(observation, generator=torch.Generator().manual_seed(0), eta=eta, sigma_floor=0.2 * eta)
    assert isinstance(plan, np.ndarray) and plan.shape == (6, 4, 2)
    assert plan.min() >= -0.5 - 1e-5 and plan.max() <= 0.8 + 1e-5
    assert planner.executed(plan).shape == (6, 3, 2)
    np.testing.assert_array_equal(planner.executed(plan), plan[:, 1:4])
    again = planner.plan(observation, generator=torch.Generator().manual_seed(0), eta=eta, sigma_floor=0.2 * eta)
    np.testing.assert_array_equal(plan, again)


def test_plan_of_one_observation_without_batch() -> None:
    planner, observation = make_planner(), make_observation(size=1)
    noise = planner.noise(1, torch.Generator().manual_seed(0))
    batched = planner.plan(observation, noise)
    single = planner.plan({key: value[0] for key, value in observation.items()}, noise)
    assert isinstance(single, torch.Tensor)
    torch.testing.assert_close(single, batched[0])


def test_noise_of_each_episode_is_its_own() -> None:
    """An episode's plan depends on its own noise, not on its neighbours'."""
    planner, observation = make_planner(), make_observation(size=4)
    noise = planner.noise(4, torch.Generator().manual_seed(0))
    whole = planner.plan(observation, noise, eta=1.0)
    part = planner.plan({key: value[2:3] for key, value in observation.items()}, noise[2:3], eta=1.0)
    torch.testing.assert_close(whole[2:3], part, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("observation", "shape"), [("pointcloud", (64, 3)), ("image", (3, 84, 84))])
def test_other_sensors_plan_and_train(observation: str, shape: tuple[int, ...]) -> None:
    config = dataclasses.replace(STATE, observation=observation, sensor_shape=shape, horizon=12, n_action_steps=8)
    planner = make_planner(config)
    batch = {"action": torch.rand(3, 12, 2), **make_observation(config, 3)}
    planner.loss(batch, torch.Generator().manual_seed(0)).backward()
    assert all(parameter.grad is not None for parameter in planner.parameters())
    assert planner.plan(make_observation(config, 3)).shape == (3, 12, 2)


def test_wrong_observations_are_refused() -> None:
    planner, observation = make_planner(), make_observation()
    with pytest.raises(InputError, match="'state' is missing; got agent_pos"):
        planner.plan({"agent_pos": observation["agent_pos"]})
    with pytest.raises(InputError, match=r"observation.state: expected shape \(B, 2, 5\) .*, got \(4, 2, 4\)"):
        planner.plan({**observation, "state": observation["state"][..., :4]})


def test_config_round_trip_and_errors() -> None:
    mapping = json.loads(json.dumps(STATE.to_dict()))
    assert PlannerConfig.from_dict(mapping) == STATE
    with pytest.raises(InputError, match="unknown key 'width'"):
        PlannerConfig.from_dict({**mapping, "width": 3})
    with pytest.raises(InputError, match="incomplete"):
        PlannerConfig.from_dict({key: value for key, value in mapping.items() if key != "horizon"})
    for name, value in (("sensor_shape", (0, 3)), ("sensor_shape", ()), ("action_size", 0), ("diffusion_steps", -1)):
        with pytest.raises(InputError, match=f"{name}: expected sizes of at least 1"):
            dataclasses.replace(STATE, **{name: value})
    with pytest.raises(InputError, match="do not fit in a plan of horizon=4"):
        dataclasses.replace(STATE, n_action_steps=4)
    with pytest.raises(InputError, match="expected one of small, narrow, simple_dp3, dp3, chi, got 'big'"):
        dataclasses.replace(STATE, unet="big")


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_overfits_two_episodes(prediction: str) -> None:
    """Two episodes of smooth random actions are reproduced from their observations after a few hundred steps."""
    config = dataclasses.replace(STATE, prediction=prediction)
    planner, random = make_planner(config), np.random.default_rng(0)
    time = np.linspace(0, 1, 40)[None, :, None]
    phase = random.uniform(0, 2 * np.pi, (2, 1, 2))
    actions = torch.as_tensor(0.15 + 0.6 * np.sin(4 * time + phase), dtype=torch.float32)
    states = torch.as_tensor(
        np.concatenate([time.repeat(2, 0), phase.repeat(40, 1), phase.repeat(40, 1) ** 2], -1)
    ).float()
    starts = range(36)
    windows = torch.cat([actions[:, t : t + 4] for t in starts])
    sensor = torch.cat([states[:, t : t + 2] for t in starts])
    planner.normalizer.fit({"action": actions.numpy(), "state": states.numpy(), "agent_pos": states[..., :3].numpy()})
    batch = {"action": windows, "state": sensor, "agent_pos": sensor[..., :3]}
    optimizer, generator = torch.optim.Adam(planner.parameters(), fused=True), torch.Generator().manual_seed(0)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / 300)
        loss = planner.loss({key: value.repeat(2, 1, 1) for key, value in batch.items()}, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    plan = planner.plan({key: batch[key] for key in ("state", "agent_pos")}, generator=generator)
    error = (plan - windows).square().mean()
    assert error < 0.03 * windows.var()


def test_ema_equals_its_closed_form() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(module)
    expected = module.weight.item()
    for step in range(20):
        with torch.no_grad():
            module.weight.fill_(math.sin(step))
        ema.update(module)
        decay = 1 - (1 + step) ** -0.75
        expected = decay * expected + (1 - decay) * math.sin(step)
        assert ema.planner.weight.item() == pytest.approx(expected, abs=1e-6)
    assert ema_decay(0) == 0 and ema_decay(10**7) == 0.9999
    assert not ema.planner.weight.requires_grad


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"state": np.full((2, 2, 5), np.nan)},
            r"observation\.state: expected finite numbers, got nan at .*\(0, 0, 0\)",
        ),
        ({"agent_pos": np.full((2, 2, SIZE), np.inf)}, r"observation\.agent_pos: expected finite numbers, got inf"),
        ({"state": np.zeros((0, 2, 5))}, r"observation\.state: expected shape \(B, 2, 5\) with B at least 1"),
        ({"state": np.zeros((3, 2, 5))}, "one batch size for all keys, got agent_pos 2, state 3"),
        ({"state": np.zeros((2, 5))}, "one batch size for all keys, got agent_pos 2, state no batch"),
        ({"state": np.full((2, 2, 5), "x")}, r"observation\.state: expected an array of numbers, got one of <U1"),
        ({"state": np.full((2, 2, 5), None)}, r"observation\.state: expected an array of numbers, got one of object"),
    ],
)
def test_what_cannot_be_planned_from_is_refused(changes: dict[str, np.ndarray], told: str) -> None:
    observation = {"agent_pos": np.zeros((2, 2, SIZE)), "state": np.zeros((2, 2, 5))}
    with pytest.raises(InputError, match=told):
        make_planner().plan({**observation, **changes})


@pytest.mark.parametrize(
    "change", [lambda a: a.astype(">f4"), lambda a: a.astype(np.uint16), lambda a: a[::-1].copy()[::-1]]
)
def test_arrays_of_any_order_and_type_are_planned_from_alike(change: Callable[[np.ndarray], np.ndarray]) -> None:
    planner = make_planner()
    values = {"agent_pos": np.arange(4 * SIZE).reshape(2, 2, SIZE), "state": np.arange(20).reshape(2, 2, 5)}
    noise = planner.noise(2, torch.Generator().manual_seed(0))
    expected = planner.plan({key: value.astype(np.float32) for key, value in values.items()}, noise)
    np.testing.assert_array_equal(planner.plan({key: change(value) for key, value in values.items()}, noise), expected)
