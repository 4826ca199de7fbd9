"""Settings: what is refused and how it is told, and which of them decide a run."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from sodp3d.collection.collect import collect
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.mappings import flat
from sodp3d.core.paths import CONFIGS
from sodp3d.core.run import open_run
from sodp3d.core.sections import Count, Natural, read_keys, resource, section
from sodp3d.core.seeds import FIRST_SEED
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.stages import STAGES
from sodp3d.settings import (
    CollectSettings,
    CommonSettings,
    DemonstrationSettings,
    DistillSettings,
    EvaluationSettings,
    FinetuneSettings,
    ModelSettings,
    ObservationSettings,
    PretrainSettings,
    RecordSettings,
    RegularizerSettings,
    SamplerSettings,
    Stage1Settings,
    TrainSettings,
    differences,
    identity,
    of_network,
    resources,
)

KINDS: dict[str, Any] = {
    "": CommonSettings,
    "obs": ObservationSettings,
    "reg": RegularizerSettings,
    "model": ModelSettings,
    "pretrain": PretrainSettings,
    "finetune": FinetuneSettings,
    "distill": DistillSettings,
    "finetune.sampler": SamplerSettings,
    "evaluation": EvaluationSettings,
    "collect": CollectSettings,
    "stage1": Stage1Settings,
}
ALGORITHMS = [[f"algorithm={file.stem}"] for file in sorted((CONFIGS / "algorithm").glob("*.yaml"))]
RESOURCES = {
    *("device", "threads", "workers", "render", "root", "run_dir", "plugins", "obs.backend", "obs.device"),
    *("tasks_at_once", "tracker", "pretrain.evaluate_episodes"),
    *("pretrain.log_every", "pretrain.checkpoint_every", "pretrain.evaluate_every", "pretrain.memory"),
    *("finetune.checkpoint_every", "finetune.compile", "evaluation.compile"),
    *("distill.log_every", "distill.checkpoint_every", "distill.evaluate_every"),
    *("evaluation.environments", "evaluation.videos", "stage1.log_every", "stage1.checkpoint_every"),
}


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "option", "told"),
    [
        ("finetune", "finetune.episodes=many", "finetune.episodes: expected a whole number of at least 1, got 'many'."),
        ("finetune", "finetune.episodes=1.5", "finetune.episodes: expected a whole number of at least 1, got 1.5."),
        ("finetune", "finetune.clip=true", "finetune.clip: expected a number of at least 0, got True."),
        ("finetune", "finetune.clip=nan", "finetune.clip: expected a number of at least 0, got nan."),
        ("finetune", "finetune.checkpoint_every=0", "finetune.checkpoint_every: expected a whole number of at least 1"),
        ("finetune", "finetune.sampler.eta=-1", "finetune.sampler.eta: expected a number of at least 0, got -1."),
        ("finetune", "+finetune.sampler.x=1", "finetune.sampler: unknown key 'x'; valid keys are eta, sigma_floor"),
        (
            "finetune",
            "finetune.credit=gay",
            "finetune.credit: expected one of chunk, return_to_go, gae, critic, branch, got ",
        ),
        ("finetune", "finetune.discount=0", "finetune.discount: expected a share above 0, up to 1, got 0."),
        ("finetune", "finetune.scale_reward=1", "finetune.scale_reward: expected true or false, got 1."),
        ("finetune", "reg.weight=-1", "reg.weight: expected a number of at least 0, got -1."),
        ("pretrain", "+pretrain.stepz=3", "pretrain: unknown key 'stepz'; valid keys are steps, batch_size"),
        ("pretrain", "pretrain.log_every=0", "pretrain.log_every: expected a whole number of at least 1, got 0."),
        ("pretrain", "pretrain.batch_size=0", "pretrain.batch_size: expected a whole number of at least 1, got 0."),
        (
            "pretrain",
            "pretrain.learning_rate=inf",
            "pretrain.learning_rate: expected a number of at least 0, got inf.",
        ),
        ("pretrain", "pretrain.schedule=linear", "pretrain.schedule: expected constant or cosine, got 'linear'."),
        ("pretrain", "model.denoising_steps=0", "model.denoising_steps: expected a whole number of at least 1, got 0."),
        ("pretrain", "model.sampling_steps=7", "model.sampling_steps: expected a divisor of model.denoising_steps=100"),
        ("pretrain", "model.unet=big", "model.unet: expected one of small, narrow, simple_dp3, dp3, chi, got 'big'."),
        ("eval", "evaluation.videos=-1", "evaluation.videos: expected a whole number of at least 0, got -1."),
        ("eval", "evaluation.eta=high", "evaluation.eta: expected a number of at least 0, or null, got 'high'."),
        ("eval", "evaluation.episodes=0", "evaluation.episodes: expected a whole number of at least 1, got 0."),
        (
            "eval",
            "evaluation.episodes=1e99",
            "evaluation.episodes: expected a whole number of at least 1 and at most 1e15",
        ),
        ("eval", "evaluation=3", "evaluation: expected a section of options, got 3."),
        ("eval", "seed=-1", "seed: expected a whole number from 0 to 4294967295, got -1."),
        ("eval", "threads=0", "threads: expected a whole number from 1 to 65536, or null, got 0."),
        (
            "eval",
            "workers=-2",
            "workers: expected a number of processes up to 65536, null, ray or ray:<number>, got -2.",
        ),
        ("eval", "render=vulkan", "render: expected one of auto, egl, osmesa, raycast, got 'vulkan'."),
        ("eval", "env.camera.fovy=180", "env.camera.fovy: expected a number of degrees between 0 and 180, got 180.0."),
    ],
)
def test_what_cannot_work_is_named_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, option: str, told: str
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("workers, or a run directory, although the settings are wrong")

    starting = {
        "stages": ("make_rollouts", "load_planner_and_state"),
        "evaluating": ("make_rollouts", "load_policy_and_state"),
        "opening": ("open_run",),
    }
    for module, names in starting.items():
        for name in names:
            monkeypatch.setattr(f"sodp3d.learning.{module}.{name}", started)
    if option.startswith("evaluation="):
        config = {**compose("train", [f"mode={mode}", f"root={tmp_path}"]), "evaluation": 3}
    else:
        config = compose("train", [f"mode={mode}", f"root={tmp_path}", option])
    with pytest.raises(InputError) as caught:
        STAGES[mode](config)
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_collection_refuses_before_anything_begins(tmp_path: Path) -> None:
    for option, told in (
        ("collect.checkpoint_every=0", r"collect\.checkpoint_every: expected a whole number of at least 1, got 0"),
        ("collect.fraction=1.5", r"collect\.fraction: expected a share above 0, up to 1, got 1\.5"),
        ("demo_episodes=few", r"demo_episodes: expected a whole number of at least 1, or null, got 'few'"),
        ("seed=0.5", "seed: expected a whole number from 0"),
    ):
        config = compose("collect", [option, f"root={tmp_path}"])
        with pytest.raises(InputError, match=told):
            collect(config, EnvConfig.from_config(config["env"]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", KINDS)
def test_no_number_is_a_bool_a_word_or_without_a_limit(name: str) -> None:
    for field in dataclasses.fields(KINDS[name]):
        hint = get_type_hints(KINDS[name])[field.name]
        if hint not in (int, float, int | None, float | None):
            continue
        wrong = [True, "3", "many", float("nan"), float("inf"), [1], {}, -0.5]
        wrong += [0.5] if hint in (int, int | None) else []
        for value in wrong:
            with pytest.raises(InputError) as caught:
                KINDS[name](**{field.name: value})
            assert str(caught.value).endswith(f", got {value!r}.")
            assert str(caught.value).startswith(f"{name}.{field.name}: expected" if name else f"{field.name}: expected")


@pytest.mark.parametrize("name", ["", None, 3])
def test_an_algorithm_has_a_name(name: Any) -> None:
    with pytest.raises(InputError, match=rf"^algorithm: expected a text that is not empty, got {name!r}\.$"):
        TrainSettings.from_config({**compose("train"), "algorithm": name})


def test_a_whole_number_may_be_written_as_a_float_and_a_number_as_a_whole_one() -> None:
    made = PretrainSettings(steps=1e3, learning_rate=1)  # type: ignore[arg-type]
    assert (made.steps, made.learning_rate) == (1000, 1.0) and isinstance(made.steps, int)


def test_several_mistakes_are_told_at_once_each_on_its_line() -> None:
    with pytest.raises(InputError) as caught:
        FinetuneSettings(episodes=0, sampler={"eta": "x"}, encoder="tune")  # type: ignore[arg-type]
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "finetune.episodes", "finetune.sampler.eta", "finetune.encoder"
    ]  # fmt: skip


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PretrainSettings().steps = 3  # type: ignore[misc]
    with pytest.raises(InputError, match=r"pretrain\.steps"):
        dataclasses.replace(PretrainSettings(), steps=0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"first_seed": 299_999}, r"evaluation\.first_seed: seeds 200000 to 299999 are for validation"),
        ({"first_seed": 199_951}, r"evaluation\.first_seed: seeds 200000 to 299999 are for validation"),
        ({"validation_seed": 100_000}, r"evaluation\.validation_seed: expected all of 40 .* among 200000 to 299999"),
        ({"validation_seed": 299_961}, r"evaluation\.validation_seed: .* got 299961"),
        ({"first_seed": FIRST_SEED - 49}, r"evaluation\.first_seed: seeds from 1048576 on are for collection"),
        ({"validation_seed": FIRST_SEED}, r"evaluation\.validation_seed: .* got 1048576"),
    ],
)
def test_test_and_validation_and_learning_have_seeds_of_their_own(changes: dict[str, int], told: str) -> None:
    with pytest.raises(InputError, match=told):
        EvaluationSettings(**changes)


def test_seeds_may_be_neighbours() -> None:
    settings = EvaluationSettings(validation_seed=200_000, first_seed=199_950)
    assert settings.test_seeds[-1] + 1 == settings.validation_seeds[0]
    assert EvaluationSettings(validation_seed=299_960, first_seed=300_000).validation_seeds[-1] == 299_999
    assert EvaluationSettings(first_seed=FIRST_SEED - 50).test_seeds[-1] == FIRST_SEED - 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"camera": {"fovy": 0}}, r"env\.camera\.fovy: expected a number of degrees between 0 and 180, got 0"),
        ({"camera": {"quaternion": [0, 0, 0, 0]}}, r"env\.camera\.quaternion: expected four numbers, not all 0"),
        ({"camera": {"quaternion": [1, 0, 0, "inf"]}}, r"env\.camera\.quaternion: expected .* finite"),
        ({"camera": {"position": [0, 0, "inf"]}}, r"env\.camera\.position: expected .* finite"),
        ({"camera": {"height": 0}}, r"env\.camera\.height: expected a whole number from 1 to 4096, got 0"),
        ({"camera": {"width": 5000}}, r"env\.camera\.width: expected a whole number from 1 to 4096, got 5000"),
    ],
)
def test_a_camera_that_cannot_see_is_refused(changes: dict[str, dict[str, Any]], told: str) -> None:
    env = compose("train")["env"]
    with pytest.raises(InputError, match=told):
        EnvConfig.from_config({**env, "camera": {**env["camera"], **changes["camera"]}})


# ---- defaults ----------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_configuration_files() -> None:
    files = {name: yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in
             ("common", "train", "collect", "record", "pretrain_encoder")}  # fmt: skip
    sensor, algorithm = (
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("obs/pointcloud", "algorithm/sodp_chunk")
    )
    pairs: list[tuple[Any, dict[str, Any]]] = [
        (CommonSettings(), files["common"]),
        (ObservationSettings(), sensor),
        (RegularizerSettings(), algorithm["reg"]),
        (CollectSettings(), files["collect"]["collect"]),
        (DemonstrationSettings(), files["collect"]),
        (RecordSettings(), files["record"]),
        (Stage1Settings(), files["pretrain_encoder"]["stage1"]),
        *((KINDS[name](), files["train"][name]) for name in ("model", "pretrain", "distill", "evaluation")),
        (FinetuneSettings(), files["train"]["finetune"] | algorithm["finetune"]),
    ]
    for settings, given in pairs:
        for key, value in flat(dataclasses.asdict(settings)).items():
            written = flat(given).get(key, "missing")
            if not str(written).startswith("${"):  # told by the env
                assert value == written, (type(settings).__name__, key)


@pytest.mark.parametrize("options", [[], ["preset=paper"], ["method=dp3"], *ALGORITHMS])
def test_every_choice_is_within_bounds(options: list[str]) -> None:
    TrainSettings.from_config(compose("train", options))
    if not options or options[0].startswith("preset"):
        CollectSettings(**compose("collect", options)["collect"])


# ---- which run it is ---------------------------------------------------------------------------------------------


def other(value: Any) -> Any:
    """Another value."""
    return {bool: not value, int: 77, float: 0.77, str: "other", list: ["other"]}.get(type(value), "other")


def with_value(config: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The configuration with another value of a dotted name."""
    first, dot, rest = name.partition(".")
    return {**config, first: with_value(config[first], rest, value) if dot else value}


def leaves() -> Iterator[tuple[str, Any]]:
    config = compose("train", ["preset=cpu", "mode=finetune", "planner=there"])
    without = ("numbers.", "env.recommended.", "env.unet")  # they have their effect in the options that take them
    yield from ((name, value) for name, value in flat(config).items() if not name.startswith(without))


def test_resources_are_these() -> None:
    assert {name for name in resources() if not name.startswith("collect.")} == RESOURCES
    assert {f"collect.{field.name}" for field in dataclasses.fields(CollectSettings)} <= resources()


def test_another_value_of_a_resource_continues_a_run_and_of_any_other_key_begins_one() -> None:
    config = compose("train", ["mode=finetune", "planner=there"])
    names = [name for name, _ in leaves()]
    assert RESOURCES - {"stage1.log_every", "stage1.checkpoint_every"} < set(names)
    for name, value in leaves():
        changed = [key for key, _, _ in differences(config, with_value(config, name, other(value)))]
        assert changed == ([] if name in RESOURCES or of_network(name) else [name]), name


def test_a_new_planner_s_network_decides_a_run_and_a_given_planner_s_does_not() -> None:
    for mode, decides in (("pretrain", True), ("finetune", False), ("distill", False), ("eval", False)):
        config = compose("train", [f"mode={mode}", "planner=there"])
        for name, value in leaves():
            if of_network(name):
                changed = [key for key, _, _ in differences(config, with_value(config, name, other(value)))]
                assert changed == ([name] if decides else []), (mode, name)


def test_threads_workers_and_device_continue_a_run(tmp_path: Path) -> None:
    config = compose("train", ["threads=2", "workers=1"])
    with open_run(tmp_path, config, 0, differences=differences) as run:
        pass
    there = compose("train", ["threads=8", "workers=ray:3", "device=cuda", "evaluation.videos=0", "render=egl"])
    assert open_run(tmp_path, there, 0, differences=differences).directory == run.directory
    assert open_run(tmp_path, there, 0, tmp_path / run.directory.name, differences).directory == run.directory
    more = compose("train", ["threads=2", "pretrain.steps=77"])
    assert open_run(tmp_path, more, 0, differences=differences).directory != run.directory
    with pytest.raises(InputError, match=r"\(pretrain\.steps: 10000 there, 77 here\)"):
        open_run(tmp_path, more, 0, run.directory, differences)


def test_a_run_of_an_earlier_release_is_continued_by_the_defaults_of_what_was_added(tmp_path: Path) -> None:
    config = compose("train", ["mode=finetune"])
    older = {**config, "finetune": {k: v for k, v in config["finetune"].items() if k != "normalize_credit"}}
    older["finetune"]["sampler"] = {k: v for k, v in config["finetune"]["sampler"].items() if k != "rows"}
    older["env"] = {k: v for k, v in config["env"].items() if k != "points"}  # a group without declared defaults
    del older["method"]
    with open_run(tmp_path, older, 0) as run:
        pass
    assert open_run(tmp_path, config, 0, differences=differences).directory == run.directory
    changed = with_value(config, "finetune.normalize_credit", True)
    assert differences(older, changed) == [("finetune.normalize_credit", False, True)]
    assert differences(older, with_value(config, "method", "dp3")) == [("method", "sodp", "dp3")]
    unnamed = {name: value for name, value in config.items() if name != "algorithm"}
    assert differences(unnamed, config) == [("algorithm", None, "sodp")], "its importance term meant something else"
    assert differences({}, config), "an empty record is of no run"


def test_a_planner_below_another_root_is_the_same() -> None:
    here, there = ({"planner": f"{root}/outputs/pretrain/door/20260101-s0"} for root in ("/home/a", "/scratch/b/c"))
    assert identity(here) == identity(there)
    assert differences(here, {"planner": "/home/a/outputs/pretrain/door/20260102-s0"})
    assert identity({"planner": "/home/a/mine"})["planner"] == "/home/a/mine"
    assert identity({"planner": "outputs/pretrain/door/20260101-s0"}) == identity(here), "as the pages give it"
    assert identity({"planner": "mine"})["planner"] == "mine"


def test_a_broken_record_of_another_run_does_not_stop_a_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, text in (("20260103-s0", "seed: ["), ("20260102-s0", "just words"), ("20260101-s0", "\0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    with open_run(tmp_path, {"seed": 0}, 0, differences=differences) as run:
        assert run.directory.parent == tmp_path and not run.directory.name.startswith("2026010")
    assert caplog.text.count("left out") == 3 and "20260102-s0" in caplog.text
    assert open_run(tmp_path, {"seed": 0}, 0, differences=differences).directory == run.directory


# ---- the mechanism -----------------------------------------------------------------------------------------------


def test_a_section_of_one_s_own() -> None:
    @section("mine")
    class Mine:
        size: Count = 3
        often: Natural = resource(default=2)

    made = Mine(size=4)
    assert made == Mine(size=4) and dataclasses.asdict(made) == {"size": 4, "often": 2}
    assert read_keys(Mine, {"size": 5, "else": 1}) == Mine(size=5)
    with pytest.raises(InputError, match=r"mine\.size: expected a whole number of at least 1, got None"):
        Mine(size=None)  # type: ignore[arg-type]
