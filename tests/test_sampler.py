"""The sampler belongs to the planner: what it is by itself, what a configuration changes of it, how it is kept."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from test_finetune import TASK, prepare, recorded_run, regularized, settings
from toy_planner import STATE, make_planner

from sodp3d.core.checkpoint import save
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.learning.lookup import as_planner_sees, as_planner_was_trained, with_sampler
from sodp3d.learning.recorded import recorded_episodes
from sodp3d.models.loading import load_planner, load_planner_and_state
from sodp3d.settings import ModelSettings


def test_sampling_steps_that_do_not_divide_are_refused_by_name() -> None:
    for steps in (0, -1, 7, 101):
        with pytest.raises(InputError, match=rf"model\.sampling_steps: .* model\.denoising_steps=100, .* got {steps}"):
            ModelSettings(sampling_steps=steps).check_sampling()
    for fine in (None, 1, 5, 100):
        ModelSettings(sampling_steps=fine).check_sampling()


def test_sampling_steps_must_divide_the_given_planner_s_denoising_steps() -> None:
    config = {"evaluation": {"eta": None, "sigma_floor": None}, "model": {"sampling_steps": 8, "denoising_steps": 100}}
    kept = with_sampler(config, dataclasses.replace(STATE, diffusion_steps=64, inference_steps=16))
    assert kept["model"] == config["model"]
    with pytest.raises(InputError, match=r"model\.sampling_steps: .* got 8"):
        with_sampler(config)


def test_a_configuration_takes_the_planner_s_sampler_where_it_leaves_it_open() -> None:
    config = {"evaluation": {"eta": None, "sigma_floor": 0.2}, "model": {"sampling_steps": None}}
    own = dataclasses.replace(STATE, inference_steps=20, eta=0.5, sigma_floor=0.1)
    assert with_sampler(config, own) == {
        "evaluation": {"eta": 0.5, "sigma_floor": 0.2}, "model": {"sampling_steps": 20}
    }  # fmt: skip
    new = {"evaluation": {"eta": 1.0, "sigma_floor": 0.2}, "model": {"sampling_steps": 10}}
    assert with_sampler(config) == new


def test_a_planner_of_an_earlier_release_has_its_sampler_beside_its_configuration(tmp_path: Path) -> None:
    path = recorded_run(tmp_path, prepare())
    (newest,) = (path / "checkpoints").iterdir()
    state = json.loads((newest / "state.json").read_text())
    kept = {key: state["planner"].pop(key) for key in ("eta", "sigma_floor")}
    assert kept == {"eta": 1.0, "sigma_floor": 0.0}
    (newest / "state.json").write_text(json.dumps({**state, "sampler": {"eta": 0.5, "sigma_floor": 0.2}}))
    planner = load_planner(path)
    assert (planner.sampler.eta, planner.sampler.sigma_floor) == (0.5, 0.2)
    other = load_planner_and_state(path, eta=0.0)[0]
    assert (other.sampler.eta, other.sampler.sigma_floor) == (0.0, 0.2)
    assert len(recorded_episodes(path, make_planner(STATE), settings(), regularized(), TASK)) == 2, (
        "the same network, sampled otherwise"
    )


def test_a_planner_can_be_sampled_in_other_steps_than_its_own(tmp_path: Path) -> None:
    path = recorded_run(tmp_path, prepare())
    own, other = load_planner_and_state(path)[0], load_planner_and_state(path, sampling_steps=5)[0]
    assert own.config.inference_steps == STATE.inference_steps == 10
    assert other.config == dataclasses.replace(STATE, inference_steps=5)
    assert other.diffusion.timesteps.tolist() == [99, 79, 59, 39, 19]
    for name, value in own.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)


def test_a_stage_that_takes_a_planner_has_its_network_and_refuses_another(tmp_path: Path) -> None:
    path = recorded_run(tmp_path, prepare())
    made = {"prediction": "epsilon", "denoising_steps": 100, "unet": STATE.unet, "encoder": "mlp"}
    asked = ["mode=finetune", "obs=state", "env=metaworld"]
    assert compose("train", asked)["model"]["unet"] != STATE.unet, "what an env recommends for a new planner"
    same = [f"model.{key}={value}" for key, value in made.items()]
    for options in ([], same):
        found = as_planner_was_trained(compose("train", [*asked, *options]), path)["model"]
        assert {key: found[key] for key in made} == made
    for key, value in (("prediction", "sample"), ("denoising_steps", 50), ("unet", "dp3"), ("encoder", "cnn")):
        told = rf"^model\.{key}: planner .* was trained with {made[key]}, but {value} came; leave it out: mode="
        with pytest.raises(InputError, match=told):
            as_planner_was_trained(compose("train", [*asked, f"model.{key}={value}"]), path)
    with pytest.raises(InputError, match=r"^model\.unet: planner ws://robot was trained with "):
        as_planner_sees(compose("train", [*asked, "model.unet=dp3"]), STATE, "ws://robot")


def test_the_checkpoint_of_something_else_is_no_planner(tmp_path: Path) -> None:
    config = {"render": "auto", "evaluation": {"eta": None, "sigma_floor": None}, "model": {"sampling_steps": None}}
    save(tmp_path / "checkpoints", 1, {}, {"agent": {}})
    with pytest.raises(InputError, match="not a planner checkpoint of format 1"):
        as_planner_was_trained(config, tmp_path)
    with pytest.raises(InputError, match="not a planner checkpoint of format 1"):
        load_planner(tmp_path)
