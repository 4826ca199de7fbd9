"""A denoiser compiled into graphs: the same plans and gradients; what it is refused for."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_planner import STATE, make_observation, make_planner

from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.learning.stages import STAGES
from sodp3d.models.capture import capture, require_capture
from sodp3d.models.mtdiff import MTDiff
from sodp3d.models.planner import Planner
from sodp3d.settings import differences


@pytest.mark.parametrize("key", ["evaluation.compile", "finetune.compile"])
def test_graphs_are_for_planners_on_cuda_and_make_no_other_run(key: str) -> None:
    require_capture(key, Planner, torch.device("cuda"))
    with pytest.raises(InputError, match=rf"{key}: is for CUDA, and device=cpu computes; leave it out"):
        require_capture(key, Planner, torch.device("cpu"))
    with pytest.raises(InputError, match=rf"{key}: captures a planner's denoiser, and this method has none"):
        require_capture(key, MTDiff, torch.device("cuda"))
    config = compose("train", [f"{key}=true", "device=cpu", "threads=1"])
    assert differences(compose("train"), config) == []
    for stage in STAGES.values():
        with pytest.raises(InputError, match=f"{key}: is for CUDA"):
            stage(config)


def test_a_captured_planner_is_saved_and_copied_as_any_other() -> None:
    planner = make_planner()
    before = planner.state_dict()
    capture(planner)
    assert planner.state_dict().keys() == before.keys()
    observation = {name: value.numpy() for name, value in make_observation().items()}
    noise = planner.noise(4, torch.Generator().manual_seed(0))
    expected = make_planner().plan(observation, noise=noise)
    np.testing.assert_array_equal(copy.deepcopy(planner).plan(observation, noise=noise), expected)  # not compiled


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a compiler")
def test_captured_plans_and_gradients_are_those_of_the_network_as_it_is() -> None:
    planner = make_planner(replace(STATE, diffusion_steps=4, inference_steps=2))
    captured = copy.deepcopy(planner)
    capture(captured)
    observation, noise = make_observation(planner.config), planner.noise(4, torch.Generator().manual_seed(0))
    action = torch.rand(
        4, planner.config.horizon, planner.config.action_size, generator=torch.Generator().manual_seed(1)
    )
    plans, gradients = [], []
    for one in (planner, captured):
        plans.append(one.plan(observation, noise=noise))
        one.loss({"action": action, **observation}, torch.Generator().manual_seed(2)).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in one.parameters()]))
    torch.testing.assert_close(plans[1], plans[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_a_captured_denoiser_sees_few_sizes_of_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch compiles eight, and would then denoise uncaptured without a word."""
    planner, sizes, counts = make_planner(), set[int](), (1, 2, 7, 8, 9, 13, 50)
    observations = [make_observation(size=count, seed=count) for count in counts]
    noises = [planner.noise(count, torch.Generator().manual_seed(count)) for count in counts]
    planner.unet.register_forward_hook(lambda module, inputs, output: sizes.add(len(output)))
    expected = [planner.plan(seen, noise) for seen, noise in zip(observations, noises, strict=True)]
    sizes.clear()
    monkeypatch.setattr(Planner, "captured", True)
    found = [planner.plan(seen, noise) for seen, noise in zip(observations, noises, strict=True)]
    assert sizes == {8, 16, 64}
    torch.testing.assert_close(found, expected)
