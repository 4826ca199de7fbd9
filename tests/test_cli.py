import re
from dataclasses import asdict
from itertools import product
from pathlib import Path

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from sodp3d.core.arguments import FORMER
from sodp3d.core.cli import command, compose, option_names, refuse_targets
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CONFIGS
from sodp3d.envs.config import RECORDED, EnvConfig, expand
from sodp3d.settings import FinetuneSettings


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize(("env", "preset"), list(product(choices("env"), choices("preset"))))
def test_every_environment_composes_with_every_preset(env: str, preset: str) -> None:
    for name in ("collect", "convert", "train"):
        config = compose(name, [f"env={env}", f"preset={preset}"])
        if env == RECORDED:  # the rest is the store's to say
            assert config["env"]["family"] == RECORDED
            continue
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


def test_a_running_command_may_compose_another_configuration() -> None:
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        assert compose("train", ["method=mtbc"])["method"] == "mtbc"
        assert GlobalHydra.instance().is_initialized() and hydra.compose("train").method == "sodp"
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(("mode", "algorithm"), list(product(choices("mode"), choices("algorithm"))))
def test_every_mode_and_algorithm_composes_with_every_observation(mode: str, algorithm: str) -> None:
    for obs in choices("obs"):
        config = compose("train", [f"mode={mode}", f"obs={obs}", f"algorithm={algorithm}"])
        assert (config["mode"], config["obs"]["name"], config["algorithm"]) == (mode, obs, algorithm)


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


def keys_of(*files: str) -> set[str]:
    """Dotted names of all options in these files of configs/."""
    return {key for file in files for key in option_names(yaml.safe_load((CONFIGS / f"{file}.yaml").read_text()))}


def test_an_algorithm_s_file_is_whole() -> None:
    """Every key of fine-tuning is in the algorithm's file, or in train.yaml where no algorithm decides it."""
    names = set(option_names({"finetune": asdict(FinetuneSettings())}))
    shared = {key for key in keys_of("train") if key.startswith("finetune.")}
    for name in choices("algorithm"):
        keys = keys_of(f"algorithm/{name}")
        assert keys == keys_of("algorithm/sodp"), name
        assert not shared & keys and shared | {key for key in keys if key.startswith("finetune")} == names, name
        written = yaml.safe_load((CONFIGS / f"algorithm/{name}.yaml").read_text())
        assert written["algorithm"] == name and set(written) == {"algorithm", "reg", "finetune"}


def test_a_preset_s_sizes_are_taken_by_every_algorithm_and_single_options_by_both() -> None:
    for name in choices("algorithm"):
        settings = compose("train", [f"algorithm={name}", "preset=quick"])["finetune"]
        assert (settings["episodes"], settings["initial_attempts"]) == (100, 12), name
        own = compose("train", ["preset=quick", f"algorithm={name}", "finetune.episodes=480", "reg.name=kl"])
        assert (own["finetune"], own["reg"]["name"]) == ({**settings, "episodes": 480}, "kl"), name
    gae, paper = (compose("train", [f"algorithm={name}"])["finetune"] for name in ("sodp_gae", "sodp_paper"))
    assert [gae[key] for key in ("credit", "batch_size", "replay_episodes", "episodes")] == ["gae", 1024, 160, 1440]
    assert gae["sampler"]["floor_steps"] == "all" and gae["sampler"]["eta"] == 1
    assert [paper[key] for key in ("learning_rate", "importance_weight", "target_kl")] == [1e-5, 1, None]
    policy = compose("train", ["algorithm=dppo", "finetune.episodes_per_iteration=7"])["finetune"]
    assert policy["replay_episodes"] == 7, "on policy"


@pytest.mark.parametrize("preset", choices("preset"))
def test_presets_set_sizes_only(preset: str) -> None:
    sizes = {"episodes", "episodes_per_iteration", "batch_size", "importance_batch_size"}
    written = yaml.safe_load((CONFIGS / f"preset/{preset}.yaml").read_text())
    tuning = written.get("finetune", {})
    assert set(tuning) <= {*sizes, "initial_proficient", "initial_attempts", "evaluate_every", "critic"}
    assert set(tuning.get("critic", {})) <= {"width", "first_updates", "updates_per_episode"}
    assert not {"algorithm", "reg"} & set(written)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["reg=kl"], "reg=kl is of an earlier release, use algorithm=sodp_kl."),
        (["reg=bc"], "reg=bc is of an earlier release, use algorithm=sodp, the default (algorithm=sodp_chunk is what"),
        (["updates=few"], "updates=few is of an earlier release, use algorithm=sodp_gae."),
        (["start=scratch"], "start=scratch is of an earlier release, use algorithm=sodp_scratch."),
        (["start=pretrained"], "start=pretrained is of an earlier release, leave it out."),
        (["reg=gentle"], "reg=gentle is of an earlier release, use algorithm=<name>, which"),
        (["reg=none", "updates=few"], "use algorithm=sodp_none; updates=few is of an earlier release, use algorithm="),
    ],
)
def test_former_options_name_today_s(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert told in run(monkeypatch, capsys, "mode=finetune", *arguments)
    with pytest.raises(InputError, match=r"algorithm: .* is of an earlier release"):
        compose("train", arguments)


def test_every_former_option_names_an_algorithm_that_there_is() -> None:
    named = {
        name for values in FORMER.values() for now in values.values() for name in re.findall(r"algorithm=(\w+)", now)
    }
    assert named == {"sodp", "sodp_chunk", "sodp_kl", "sodp_pl", "sodp_none", "sodp_gae", "sodp_scratch"}
    assert named <= set(choices("algorithm"))


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


@pytest.mark.parametrize("value", ["0", "null", "[]", "[dppo,clone]", "{a: 1}", "nan"])
def test_a_group_takes_one_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    message = run(monkeypatch, capsys, f"algorithm={value}")
    assert "algorithm: expected one of clone, dppo, sodp, " in message and f"got algorithm={value}." in message
    with pytest.raises(InputError, match="mode: expected one of distill, eval, finetune, pretrain, got mode="):
        compose("train", [f"mode={value}"])


@pytest.mark.parametrize("option", ["+episodes=3", "++episodes=3", "+tuning.episodes=3"])
def test_an_option_that_no_command_reads_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    message = run(monkeypatch, capsys, option)
    expected = f"unknown option '{option.lstrip('+').partition('=')[0]}'. Valid here: algorithm, "
    assert expected in message
    with pytest.raises(InputError, match=expected):
        compose("train", [option])


def test_an_option_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = run(monkeypatch, capsys, "run_dir=runs/lr=3")
    assert message.startswith("error: run_dir=runs/lr=3 cannot be read;") and "\"run_dir='runs/lr=3'\"" in message
    assert compose("train", ["run_dir='runs/lr=3'"])["run_dir"] == "runs/lr=3"


@pytest.mark.parametrize("section", ["evil", "model"])
def test_configurations_cannot_name_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, section: str
) -> None:
    sentinel = tmp_path / "ran"
    message = run(monkeypatch, capsys, f"+{section}._target_=os.system", f"+{section}.command='touch {sentinel}'")
    assert f"{section}._target_" in message and not sentinel.exists()
    with pytest.raises(InputError, match=r"a\.1\._target_"):
        refuse_targets({"a": [{}, {"_target_": "os.system"}]})


@pytest.mark.parametrize("value", ["${eval:1+1}", "${oc.env:HOME}/x"])
def test_no_resolver_evaluates_code(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    if value.startswith("${eval"):
        with pytest.raises(Exception, match="eval"):
            compose("train", [f"root='{value}'"])
    else:
        assert compose("train", [f"root='{value}'"])["root"].endswith("/x")


def test_a_choice_that_a_group_has_not_is_one_line_with_those_it_has() -> None:
    with pytest.raises(InputError, match=r"^algorithm: expected one of clone, dppo, sodp, .*, got 'nope'\.$"):
        compose("train", ["algorithm=nope"])
