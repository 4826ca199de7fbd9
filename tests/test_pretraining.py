"""Options of pre-training: what CUDA runs, where a method's runs go, and the methods' own settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_planner import STATE, make_observation, make_planner

from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.run import Run
from sodp3d.learning.augmentation import augmented, require_clouds, thinned, turned
from sodp3d.learning.lookup import find_planner, label
from sodp3d.learning.pretrain import check_acceleration
from sodp3d.models.convolution import Convolution
from sodp3d.settings import AugmentationSettings, PretrainSettings


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


@pytest.mark.parametrize("option", [{"precision": "bfloat16"}, {"compile": True}])
def test_the_cpu_refuses_what_is_for_cuda(option: dict[str, Any]) -> None:
    settings = PretrainSettings(**option)
    with pytest.raises(InputError, match=r"pretrain\.precision"):
        check_acceleration(settings, torch.device("cpu"))
    check_acceleration(settings, torch.device("cuda"))


def test_a_precision_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match=r"pretrain\.precision: expected float32 or bfloat16, got 'float16'"):
        PretrainSettings(precision="float16")  # type: ignore[arg-type]


def test_a_methods_runs_are_kept_apart(tmp_path: Path) -> None:
    configs = {name: {**compose("train", [f"method={name}"]), "root": str(tmp_path)} for name in ("sodp", "dp3")}
    assert label(configs["sodp"]) == "adroit_door-pointcloud" and label(configs["dp3"]) == "adroit_door-pointcloud-dp3"
    for name, config in configs.items():
        with Run(tmp_path / "outputs" / "pretrain" / label(config) / f"2026-s0-{name}", config) as run:
            run.finish({})
    for name, config in configs.items():
        assert find_planner(config, ("pretrain",)).name == f"2026-s0-{name}"
    with pytest.raises(InputError, match="no finished finetune run"):
        find_planner(configs["dp3"], ("finetune",))


def finished(config: dict[str, Any], directory: Path) -> Path:
    """A finished run of that configuration."""
    with Run(directory, config) as run:
        run.finish({})
    return directory


def test_the_newest_planner_is_found_whatever_regularized_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = {**compose("train"), "root": str(tmp_path)}
    tuned = tmp_path / "outputs" / "finetune"
    finished(config, tmp_path / "outputs/pretrain/adroit_door-pointcloud/20260109-s0")
    finished(config, tuned / "adroit_door-pointcloud-bc" / "20260101-s0")
    invented = {**config, "reg": {"name": "entropy", "weight": 0.5, "temperature": 2.0}}
    newest = finished(invented, tuned / "adroit_door-pointcloud-entropy" / "20260102-s0")
    for number, other in enumerate(
        [
            {**config, "env": {**config["env"], "name": "adroit_pen"}},
            {**config, "obs": {**config["obs"], "name": "state"}},
            {**config, "method": "dp3"},
        ]
    ):
        finished(other, tuned / f"another-{number}" / "20260103-s0")
    with Run(tuned / "adroit_door-pointcloud-bc" / "20260104-s0", config):
        pass  # not finished
    broken = finished(config, tuned / "adroit_door-pointcloud-bc" / "20260105-s0")
    (broken / "config.yaml").write_text("env: [")
    assert find_planner(config, ("finetune", "pretrain")) == newest
    assert "20260105-s0" in caplog.text and "left out" in caplog.text


def test_a_run_recorded_before_methods_had_names_is_one_of_sodp(tmp_path: Path) -> None:
    config = {**compose("train"), "root": str(tmp_path)}
    older = {key: value for key, value in config.items() if key != "method"}
    directory = finished(older, tmp_path / "outputs/pretrain/adroit_door-pointcloud/20260101-s0")
    assert find_planner(config, ("pretrain",)) == directory


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


CLOUDS = torch.rand(5, 2, 40, 3, generator=torch.Generator().manual_seed(0))


def test_clouds_are_changed_and_nothing_else_is() -> None:
    batch = {"point_cloud": CLOUDS, "action": torch.zeros(5, 4, 2)}
    assert augmented(batch, AugmentationSettings()) is batch
    settings = AugmentationSettings(jitter=0.01, dropout=0.3, rotation=5)
    found = augmented(batch, settings, torch.Generator().manual_seed(1))
    again = augmented(batch, settings, torch.Generator().manual_seed(1))
    assert torch.equal(found["point_cloud"], again["point_cloud"]) and found["action"] is batch["action"]
    assert not torch.equal(found["point_cloud"], CLOUDS) and batch["point_cloud"] is CLOUDS
    state = {"state": torch.zeros(5, 2, 3)}
    assert augmented(state, settings) is state
    require_clouds(settings, "pointcloud")
    require_clouds(AugmentationSettings(), "state")
    with pytest.raises(InputError, match=r"pretrain\.augment\.\w+: it changes clouds, but obs=state"):
        require_clouds(settings, "state")


def test_a_turn_keeps_heights_and_distances_and_is_one_for_all_steps_of_a_sample() -> None:
    found = turned(CLOUDS, 0.5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(found[..., 2], CLOUDS[..., 2])
    distances = [torch.cdist(cloud, cloud) for cloud in (found.flatten(1, 2).double(), CLOUDS.flatten(1, 2).double())]
    torch.testing.assert_close(*distances, rtol=1e-3, atol=1e-5)
    assert ((found - CLOUDS).norm(dim=-1).amax((1, 2)) > 1e-3).all()


def test_points_that_are_left_out_are_doubles_of_one_that_stays() -> None:
    found = thinned(CLOUDS, 0.5, torch.Generator().manual_seed(1))
    same = (found == CLOUDS).all(-1)
    assert 0 < float((~same).float().mean()) < 0.5 and float((~same).float().mean((2,)).max()) < 0.7
    assert torch.equal(torch.where(same[..., None], found, CLOUDS[:, :, :1]), found)
