"""Options of pre-training: what CUDA runs, where a method's runs go, and the methods' own settings."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_planner import STATE, make_observation, make_planner

from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.run import Run
from sodp3d.learning.lookup import find_planner, label
from sodp3d.learning.pretrain import check_acceleration
from sodp3d.models.convolution import Convolution


def test_bfloat16_gives_nearly_the_same_loss_and_gradients() -> None:
    planner = make_planner(replace(STATE, observation="pointcloud", sensor_shape=(32, 3)))
    planner.encoder.sensor.dense = True  # the way of CUDA, on the CPU
    for module in planner.modules():
        if isinstance(module, Convolution):
            module.longest = 0
    action = torch.rand(32, planner.config.horizon, planner.config.action_size) * 2 - 1
    batch = {"action": action, **make_observation(planner.config, 32, seed=0)}

    def gradients(bfloat16: bool) -> tuple[float, torch.Tensor]:
        planner.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = planner.loss(batch, torch.Generator().manual_seed(0))
        loss.backward()
        return loss.item(), torch.cat([parameter.grad.flatten() for parameter in planner.parameters()])

    (exact, exact_gradient), (rounded, rounded_gradient) = gradients(False), gradients(True)
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.02)
    assert torch.cosine_similarity(exact_gradient, rounded_gradient, dim=0) > 0.98
    assert rounded_gradient.dtype == torch.float32


@pytest.mark.parametrize("option", [{"precision": "bfloat16"}, {"compile": True}, {"precision": "float16"}])
def test_the_cpu_refuses_what_is_for_cuda(option: dict[str, object]) -> None:
    settings = {**compose("train")["pretrain"], **option}
    with pytest.raises(InputError, match=r"pretrain\.precision"):
        check_acceleration(settings, torch.device("cpu"))
    if option.get("precision") != "float16":
        check_acceleration(settings, torch.device("cuda"))


def test_a_methods_runs_are_kept_apart(tmp_path: Path) -> None:
    configs = {name: {**compose("train", [f"method={name}"]), "root": str(tmp_path)} for name in ("sodp", "dp3")}
    assert label(configs["sodp"]) == "adroit_door-pointcloud" and label(configs["dp3"]) == "adroit_door-pointcloud-dp3"
    for name, config in configs.items():
        with Run(tmp_path / "outputs" / "pretrain" / label(config) / f"2026-s0-{name}", {}) as run:
            run.finish({})
    for name, config in configs.items():
        assert find_planner(config, ("pretrain",)).name == f"2026-s0-{name}"
    with pytest.raises(InputError, match="no finished finetune run"):
        find_planner(configs["dp3"], ("finetune",))


def test_imitation_methods_learn_successes_with_sample_prediction() -> None:
    for name in ("dp3", "simple_dp3"):
        config = compose("train", [f"method={name}"])
        assert config["model"]["prediction"] == "sample" and config["model"]["unet"] == name
        assert config["pretrain"]["successful_only"] and config["evaluation"]["eta"] == 0
    assert compose("train")["model"]["prediction"] == "epsilon"


def test_diffusion_policy_imitates_what_dp3_does_from_images_with_noise_prediction() -> None:
    policy, dp3 = compose("train", ["method=diffusion_policy", "obs=image"]), compose("train", ["method=dp3"])
    rate = {"learning_rate": 1e-3, "warmup_steps": 50}  # noise is not learned at the rate that samples are
    assert policy["pretrain"] == {**dp3["pretrain"], **rate} and label(policy) == "adroit_door-image-diffusion_policy"
    assert policy["model"]["prediction"] == "epsilon" and policy["evaluation"]["eta"] == 1
