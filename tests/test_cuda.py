"""What CUDA computes against the CPU; run where there is a device, with SODP3D_TEST_CUDA=1."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from chains import chain_log_prob
from test_toy_finetuning import CONFIG, roll_out
from toy_planner import STATE, make_observation, make_planner

from sodp3d.collection.agents.memory import Trajectory
from sodp3d.collection.agents.vrl3 import VRL3
from sodp3d.collection.agents.vrl3_config import VRL3Config
from sodp3d.core.cli import compose
from sodp3d.core.device import prepare_torch
from sodp3d.learning.pretrain import Pretraining
from sodp3d.learning.tuning import Finetuning
from sodp3d.models.capture import capture
from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.planner import Planner, PlannerConfig
from sodp3d.settings import FinetuneSettings, PretrainSettings, RegularizerSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CLOUDS = replace(STATE, observation="pointcloud", sensor_shape=(32, 3))
IMAGES = replace(STATE, observation="image", sensor_shape=(3, 84, 84))


@pytest.fixture(autouse=True)
def as_commands_do() -> None:
    prepare_torch({"threads": 1, "device": "cuda"})


def on_cuda(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.cuda() for key, value in tensors.items()}


def batch_of(config: PlannerConfig, size: int = 16) -> dict[str, torch.Tensor]:
    action = torch.rand(size, config.horizon, config.action_size, generator=torch.Generator().manual_seed(1)) - 0.5
    return {"action": action, **make_observation(config, size)}


@pytest.mark.parametrize("config", [STATE, CLOUDS, IMAGES], ids=lambda config: config.observation)
def test_plans_log_probabilities_and_gradients_are_the_cpus(config: PlannerConfig) -> None:
    planner = make_planner(config)
    other = copy.deepcopy(planner).cuda()
    observation, noise = make_observation(config), planner.noise(4, torch.Generator().manual_seed(0))
    options = ChainOptions(sigma_floor=0.1, floor_steps="all")
    chain, same = (
        planner.sample_chain(observation, noise, options),
        other.sample_chain(on_cuda(observation), noise.cuda(), options),
    )
    torch.testing.assert_close(same.latents.cpu(), chain.latents, rtol=0, atol=2e-3)
    found = chain_log_prob(other, on_cuda(observation), chain.latents.cuda(), options).cpu()
    torch.testing.assert_close(found, chain_log_prob(planner, observation, chain.latents, options), rtol=0, atol=5e-3)
    plan = other.plan({key: value.numpy() for key, value in observation.items()}, noise=noise)
    assert isinstance(plan, np.ndarray) and plan.shape == (4, config.horizon, config.action_size)
    gradients = []
    for one, batch in ((planner, batch_of(config)), (other, on_cuda(batch_of(config)))):
        clean = one.normalizer.normalize("action", batch["action"])
        time = torch.zeros(len(clean), dtype=torch.long, device=clean.device)
        loss = one.unet(clean, time, one.features(batch)).square().mean()
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten().cpu() for parameter in one.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999


@pytest.mark.parametrize(
    "options", [{}, {"precision": "bfloat16"}, {"precision": "bfloat16", "compile": True}], ids=str
)
def test_pretraining_learns_in_every_precision(options: dict[str, object]) -> None:
    planner = make_planner(CLOUDS).cuda()
    settings = PretrainSettings(**{**compose("train")["pretrain"], "steps": 200, "schedule": "constant", **options})
    training, batch = Pretraining(planner, settings, seed=0), on_cuda(batch_of(CLOUDS))
    losses = [training.update(batch).item() for _ in range(200)]
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])
    assert all(parameter.dtype == torch.float32 for parameter in planner.parameters())


def test_captured_plans_are_those_of_the_network_as_it_is() -> None:
    planner = make_planner(CLOUDS).cuda()
    captured = copy.deepcopy(planner)
    capture(captured)
    for seed in range(3):  # graphs are recorded at the second call, and replayed from then on
        observation = on_cuda(make_observation(CLOUDS, seed=seed))
        noise = planner.noise(4, torch.Generator().manual_seed(seed))
        plans = [one.plan(observation, noise=noise).cpu() for one in (planner, captured)]
        torch.testing.assert_close(plans[1], plans[0], rtol=0, atol=2e-3)
    with torch.no_grad():
        for one in (planner, captured):  # replayed graphs see what the weights are by then
            next(one.unet.parameters()).mul_(1.5)
    plans = [one.plan(observation, noise=noise).cpu() for one in (planner, captured)]
    torch.testing.assert_close(plans[1], plans[0], rtol=0, atol=2e-3)


@pytest.mark.parametrize("captured", [False, True])
def test_finetuning_takes_over_the_log_probabilities_of_its_rollouts(captured: bool) -> None:
    """Made in other batches than those that are learned from: the first ratios are 1 nevertheless."""
    torch.manual_seed(0)
    planner = Planner(CONFIG).cuda()
    planner.normalizer.load_state_dict(make_planner(CONFIG).normalizer.state_dict())
    settings = FinetuneSettings(**{**compose("train", ["algorithm=sodp_chunk"])["finetune"], "encoder": "tuned"})
    tuning = Finetuning(planner, settings, RegularizerSettings(name="bc"), seed=0)
    if captured:
        capture(tuning.planner)
    generator = torch.Generator().manual_seed(0)
    tuning.memory.take(roll_out(copy.deepcopy(planner).cpu(), 64, tuning.learner.options, generator))
    metrics = tuning.learn(1)
    assert metrics["train/ratio_mean"] == pytest.approx(1, abs=1e-3)
    assert metrics["train/ratio_max"] == pytest.approx(1, abs=5e-3)
    assert np.isfinite(tuning.learn(20)["train/gradient_norm"])


@pytest.mark.parametrize("encoder", ["state", "pixels"])
def test_vrl3_learns_on_cuda(encoder: str) -> None:
    random, images = np.random.default_rng(0), encoder == "pixels"

    def trajectory() -> Trajectory:
        frames = random.integers(0, 256, (7, 3, 24, 24), dtype=np.uint8) if images else None
        states = random.normal(size=(7, 5)).astype(np.float32)
        return Trajectory(states, random.uniform(-1, 1, (6, 2)), random.normal(size=6), False, frames)

    config = VRL3Config(encoder=encoder, hidden=16, features=8, batch_size=8, conservative_actions=3)
    agent = VRL3(config, 5, 2, 0, "cuda")
    agent.demonstrate([trajectory() for _ in range(3)])
    agent.observe(trajectory())
    before = copy.deepcopy(agent.actor.state_dict())
    assert agent.update(3, offline=True) and agent.update(3)
    assert any(not torch.equal(value, before[key]) for key, value in agent.actor.state_dict().items())
    seen = trajectory()
    observation = {"agent_pos": seen.states, "image": seen.images} if images else seen.states
    actions = agent.act(observation, explore=True)
    assert actions.shape == (7, 2) and np.isfinite(actions).all() and (abs(actions) <= 1).all()
