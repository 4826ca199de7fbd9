import importlib
from pathlib import Path

import pytest
import yaml

from sodp3d.core import registry
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CONFIGS

TABLES = {
    name: table
    for name, table in vars(registry).items()
    if name.isupper() and isinstance(table, dict) and name != "Table"
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_everything_registered_is_there(name: str) -> None:
    assert TABLES[name]
    for entry in TABLES[name]:
        assert registry.choose(TABLES[name], entry, name) is not None


@pytest.mark.parametrize(
    ("group", "table"),
    [
        ("agent", registry.AGENTS),
        ("method", registry.METHODS),
        ("obs", registry.SENSORS),
    ],
)
def test_every_choice_has_a_yaml_and_every_yaml_a_choice(group: str, table: registry.Table) -> None:
    assert {path.stem for path in (CONFIGS / group).glob("*.yaml")} == set(table)


def test_every_algorithm_s_regularizer_is_there_and_every_regularizer_has_an_algorithm() -> None:
    files = [yaml.safe_load(path.read_text()) for path in (CONFIGS / "algorithm").glob("*.yaml")]
    assert {file["reg"]["name"] for file in files} == set(registry.REGULARIZERS)


def test_every_sensor_s_own_encoder_reads_it() -> None:
    for name in registry.SENSORS:
        sensor = registry.choose(registry.SENSORS, name, "obs")
        assert name in registry.choose(registry.ENCODERS, sensor.encoder, "model.encoder").sensors


def test_an_unknown_name_is_told_with_those_that_are_known() -> None:
    with pytest.raises(
        InputError, match=r"reg\.name: expected one of bc, none, kl, pl, got 'l2'; a plug-in adds others"
    ):
        registry.choose(registry.REGULARIZERS, "l2", "reg.name")


def test_a_plug_in_adds_names_and_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_plug_in"
    (package / "configs/algorithm").mkdir(parents=True)
    written = "defaults: [sodp, _self_]\nalgorithm: gentle\nreg: {name: gentle, weight: 0.5}\nfinetune: {clip: 0.5}\n"
    (package / "configs/algorithm/gentle.yaml").write_text(f"# @package _global_\n{written}")
    code = (
        'from sodp3d.core import registry\nregistry.REGULARIZERS["gentle"] = "my_plug_in:Gentle"\nclass Gentle: ...\n'
    )
    (package / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(registry.VARIABLE, "")
    monkeypatch.setattr(registry, "REGULARIZERS", dict(registry.REGULARIZERS))
    importlib.invalidate_caches()
    config = compose("train", ["plugins=[my_plug_in]", "algorithm=gentle"])
    assert (config["algorithm"], config["reg"]) == ("gentle", {"name": "gentle", "weight": 0.5})
    assert config["finetune"] == {**compose("train")["finetune"], "clip": 0.5}
    assert registry.choose(registry.REGULARIZERS, "gentle", "reg.name").__name__ == "Gentle"
    assert registry.has_config("algorithm", "gentle") and not registry.has_config("algorithm", "l2")


def test_a_plug_in_s_module_that_lacks_what_it_registered_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="registered as 'json:nothing', which cannot be imported"):
        registry.choose({"broken": "json:nothing"}, "broken", "reg")


def test_a_plug_in_that_is_not_there_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.VARIABLE, "json")
    with pytest.raises(InputError, match="plugins: no_such_package cannot be imported"):
        compose("train", ["plugins=[no_such_package]"])
    assert compose("train")["algorithm"] == "sodp"
