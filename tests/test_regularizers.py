"""Each regularizer's value and gradient against its formula written out with torch.distributions and plain autograd."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from toy_planner import make_observation, make_planner

from sodp3d.core import registry
from sodp3d.core.errors import InputError
from sodp3d.core.sections import read_section
from sodp3d.learning.regularizers import BehaviorCloning, Regularizer, make_regularizer
from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.planner import Planner
from sodp3d.settings import RegularizerSettings


def named(name: str, pretrained: Planner, options: ChainOptions) -> Regularizer:
    return make_regularizer(RegularizerSettings(name=name), pretrained, options)


def make_batch(planner: Planner, options: ChainOptions, seed: int) -> dict[str, Tensor]:
    observation = make_observation(size=5, seed=seed)
    with torch.no_grad():
        noise = planner.noise(5, torch.Generator().manual_seed(seed))
        latents = planner.sample_chain(observation, noise, options).latents
        return {**observation, "latents": latents, "executed": torch.tensor([3, 3, 1, 3, 2])}


def gradients(loss: Tensor, planner: Planner) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(planner.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, planner.parameters(), strict=True)]


def assert_same(loss: Tensor, expected: Tensor, planner: Planner) -> None:
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(gradients(loss, planner), gradients(expected, planner), strict=True):
        assert (ours - theirs).norm() <= 1e-3 * theirs.norm() + 1e-5


@pytest.mark.parametrize("name", ["bc", "pl"])
def test_denoising_regularizers(name: str) -> None:
    """eq. 14 on the target episodes, eq. 24 on the policy's own."""
    planner, options = make_planner(), ChainOptions(sigma_floor=0.5)
    own, target = make_batch(planner, options, 1), make_batch(planner, options, 2)
    loss = named(name, make_planner(seed=3), options).loss(planner, own, target, torch.Generator().manual_seed(7))
    batch, generator = (target if name == "bc" else own), torch.Generator().manual_seed(7)
    clean = batch["latents"][:, -1].clamp(-1, 1)
    timestep = torch.randint(100, (5,), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    alpha = planner.diffusion.alpha_bar[timestep].view(-1, 1, 1)
    predicted = planner.unet(alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, timestep, planner.encode(batch))
    assert_same(loss, ((predicted - noise) ** 2).mean(), planner)


@pytest.mark.parametrize(
    "options",
    [
        ChainOptions(sigma_floor=0.2),
        ChainOptions(sigma_floor=0.1, floor_steps="all_but_last", reduction="sum", rows="all"),
    ],
)
def test_kl_equals_the_divergence_of_the_normals(options: ChainOptions) -> None:
    """eq. 23 with torch.distributions: the sum over all steps that draw noise."""
    planner, pretrained = make_planner(), make_planner(seed=3)
    batch = make_batch(planner, options, 1)
    loss = named("kl", pretrained, options).loss(planner, batch, batch, torch.Generator().manual_seed(7))
    noisy = list(range(10)) if options.floor_steps == "all" else list(range(9))  # the last draws no noise of its own
    expected = torch.zeros(5)
    for index in noisy:
        step_index, latent = torch.full((5,), index), batch["latents"][:, index]
        mean, sigma = planner.moments(planner.encode(batch), latent, step_index, options)
        reference, _ = pretrained.moments(pretrained.encode(batch), latent, step_index, options)
        divergence = kl_divergence(Normal(mean, sigma), Normal(reference.detach(), sigma))
        for plan, executed in enumerate(batch["executed"].tolist()):
            rows = slice(1, 1 + executed) if options.rows == "executed" else slice(None)
            reduced = divergence[plan, rows].mean() if options.reduction == "mean" else divergence[plan, rows].sum()
            expected = expected + reduced * torch.nn.functional.one_hot(torch.tensor(plan), 5)
    assert_same(loss, expected.mean(), planner)


def test_kl_is_zero_at_the_pretrained_planner_and_pulls_back_to_it() -> None:
    planner, pretrained, options = make_planner(), make_planner(), ChainOptions()
    batch, kl = make_batch(planner, options, 1), named("kl", pretrained, options)
    assert kl.loss(planner, batch, batch) == 0
    with torch.no_grad():
        for parameter in planner.unet.head.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    before = kl.loss(planner, batch, batch)
    optimizer = torch.optim.Adam(planner.unet.head.parameters(), 1e-3)
    for _ in range(40):
        loss = kl.loss(planner, batch, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * before
    assert all(parameter.grad is None for parameter in pretrained.parameters())


def test_none_is_zero() -> None:
    planner = make_planner()
    assert named("none", planner, ChainOptions()).loss(planner, {}, {}) == 0


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(InputError, match="expected one of bc, none, kl, pl, got 'l2'"):
        named("l2", make_planner(), ChainOptions())
    settings = RegularizerSettings(name="kl", options={"strength": 2.0})
    with pytest.raises(InputError, match=r"reg\.options: kl takes others than \['strength'\]"):
        make_regularizer(settings, make_planner(), ChainOptions())
    with pytest.raises(InputError, match="unknown key 'strength'"):
        read_section(RegularizerSettings, {"name": "kl", "weight": 1.0, "strength": 2.0})


class Own(BehaviorCloning):
    def __init__(self, pretrained: Planner, options: ChainOptions, strength: float = 1.0) -> None:
        self.strength = strength


def test_a_regularizer_of_ones_own_gets_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.REGULARIZERS, "own", f"{__name__}:Own")
    made = make_regularizer(RegularizerSettings(name="own", options={"strength": 2.0}), make_planner(), ChainOptions())
    assert made.strength == 2.0  # type: ignore[attr-defined]
