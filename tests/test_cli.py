from itertools import product
from pathlib import Path

import pytest

from sodp3d.core.cli import command, compose, option_names, refuse_targets
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CONFIGS
from sodp3d.envs.config import EnvConfig, expand


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize(("env", "preset"), list(product(choices("env"), choices("preset"))))
def test_every_environment_composes_with_every_preset(env: str, preset: str) -> None:
    for name in ("collect", "convert", "train"):
        config = compose(name, [f"env={env}", f"preset={preset}"])
        tasks = expand(EnvConfig.from_config(config["env"]))
        assert len(tasks) == max(1, len(config["env"]["tasks"] or ()))


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("env.crop.low=[-.inf,0,0]", "env.crop.low"),
        ("env.crop.high=[1,2]", "env.crop.high"),
        ("env.camera.fovy=wide", "env.camera.fovy"),
        ("env.camera.height=83.5", "env.camera.height"),
        ("env.camera.width=null", "env.camera.width"),
    ],
)
def test_a_camera_or_crop_that_is_no_number_is_named(option: str, key: str) -> None:
    with pytest.raises(InputError, match=f"{key}: expected"):
        EnvConfig.from_config(compose("train", [option])["env"])


def test_a_crop_without_a_limit_on_the_command_line() -> None:
    config = compose("train", ["env.crop.low=[-inf,0,0]", "env.crop.high=[1,1,inf]"])["env"]
    crop = EnvConfig.from_config(config).crop
    assert crop.low == (-float("inf"), 0, 0) and crop.high == (1, 1, float("inf"))


@pytest.mark.parametrize(("mode", "obs", "reg"), list(product(choices("mode"), choices("obs"), choices("reg"))))
def test_every_mode_observation_and_regularizer_composes(mode: str, obs: str, reg: str) -> None:
    config = compose("train", [f"mode={mode}", f"obs={obs}", f"reg={reg}"])
    assert (config["mode"], config["obs"]["name"], config["reg"]["name"]) == (mode, obs, reg)


@pytest.mark.parametrize("agent", choices("agent"))
def test_every_agent_builds_from_its_configuration(agent: str) -> None:
    from sodp3d.collection import agents

    env = "adroit_door" if agent == "vrl3" else "metaworld"
    config = compose("collect", [f"env={env}", f"agent={agent}"])
    task = EnvConfig.from_config(config["env"])
    sizes = (39, 28) if agent == "vrl3" else (39, 4)
    built = agents.build(config["agent"], agents.Surroundings(task, *sizes, 24, seed=0))
    assert built.updates_per_step >= 0


def test_presets_change_only_numbers_that_exist() -> None:
    valid = {key for name in ("collect", "train") for key in option_names(compose(name, ["preset=cpu"]))}
    for preset in choices("preset"):
        for name in ("collect", "train"):
            assert set(option_names(compose(name, [f"preset={preset}"]))) <= valid, preset
    for group in ("updates", "start"):
        for name in choices(group):
            assert set(option_names(compose("train", [f"{group}={name}"]))) <= valid, (group, name)


def test_few_updates_are_for_every_preset_and_take_single_options() -> None:
    for preset in choices("preset"):
        settings = compose("train", [f"preset={preset}", "updates=few", "finetune.episodes=480"])["finetune"]
        chosen = [settings[key] for key in ("credit", "batch_size", "replay_episodes", "episodes")]
        assert chosen == ["gae", 1024, 160, 480], preset
        assert settings["sampler"]["floor_steps"] == "all" and settings["sampler"]["eta"] == 1


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command("train")(lambda config: None)()
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_misspelt_option_names_the_valid_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = run(monkeypatch, capsys, "pretrain.stepz=3")
    assert "pretrain.stepz" in message and "Did you mean pretrain.steps" in message and "batch_size" in message
    assert "Traceback" not in message


def test_a_misspelt_group_choice_names_the_valid_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = run(monkeypatch, capsys, "env=adroit_dor")
    assert "adroit_dor" in message and "adroit_door" in message and "Traceback" not in message


def test_configurations_cannot_name_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sentinel = tmp_path / "ran"
    message = run(monkeypatch, capsys, "+evil._target_=os.system", f"+evil.command='touch {sentinel}'")
    assert "evil._target_" in message and not sentinel.exists()
    with pytest.raises(InputError, match=r"a\.1\._target_"):
        refuse_targets({"a": [{}, {"_target_": "os.system"}]})


@pytest.mark.parametrize("value", ["${eval:1+1}", "${oc.env:HOME}/x"])
def test_no_resolver_evaluates_code(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    if value.startswith("${eval"):
        with pytest.raises(Exception, match="eval"):
            compose("train", [f"root='{value}'"])
    else:
        assert compose("train", [f"root='{value}'"])["root"].endswith("/x")
