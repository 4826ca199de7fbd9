"""Everything that can be chosen by name, one table a kind: the name, and where what it names is defined.

A package of your own adds to these tables and needs no change here:

    # my_package/__init__.py, beside my_package/configs/env/slider.yaml, ...
    from sodp3d.core import registry

    registry.FAMILIES["slider"] = "my_package.slider:Slider"

It is found by an entry point of the group `sodp3d.plugins`, or named by `plugins=[my_package]`. Values are
"module:name", imported at their first use, so that a worker that only steps environments never imports PyTorch.
"""

import functools
import importlib
import os
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from sodp3d.core.errors import InputError
from sodp3d.core.paths import CONFIGS

Table = dict[str, str]

# env.family: a class of `envs.base.Task`, called with the EnvConfig
FAMILIES: Table = {
    "adroit": "sodp3d.envs.adroit:Adroit",
    "metaworld": "sodp3d.envs.metaworld:MetaWorld",
    "recorded": "sodp3d.envs.recorded:Recorded",
}
# obs: what is seen, a `vision.sensors.Sensor`
SENSORS: Table = {
    "pointcloud": "sodp3d.vision.sensors:POINT_CLOUD",
    "state": "sodp3d.vision.sensors:STATE",
    "image": "sodp3d.vision.sensors:IMAGE",
}
# model.encoder: how it is read, a class of `models.encoders.SensorEncoder`, called with the shape of one step
ENCODERS: Table = {
    "dp3": "sodp3d.models.encoders:PointCloudEncoder",
    "mlp": "sodp3d.models.encoders:StateEncoder",
    "cnn": "sodp3d.models.encoders:ImageEncoder",
}
# method: a class of `models.policy.LearnedPolicy`, called with its configuration
METHODS: Table = {
    "sodp": "sodp3d.models.planner:Planner",
    "dp3": "sodp3d.models.planner:Planner",
    "simple_dp3": "sodp3d.models.planner:Planner",
    "diffusion_policy": "sodp3d.models.planner:Planner",
    "bcrnn": "sodp3d.models.bcrnn:BCRNN",
    "ibc": "sodp3d.models.ibc:IBC",
    "mtbc": "sodp3d.models.mtbc:MTBC",
    "mtdiff": "sodp3d.models.mtdiff:MTDiff",
}
# reg.name: a class of `learning.regularizers.Regularizer`, called with the pre-trained planner and the ChainOptions
REGULARIZERS: Table = {
    "bc": "sodp3d.learning.regularizers:BehaviorCloning",
    "none": "sodp3d.learning.regularizers:NoRegularizer",
    "kl": "sodp3d.learning.regularizers:KLToPretrained",
    "pl": "sodp3d.learning.regularizers:PretrainingLoss",
}
# agent: a function that builds a `collection.agents.Agent` from its settings and the environment
AGENTS: Table = {
    "vrl3": "sodp3d.collection.agents.vrl3:build",
    "sac": "sodp3d.collection.agents.sac:build",
    "rlpd": "sodp3d.collection.agents.rlpd:build",
    "scripted": "sodp3d.collection.agents.scripted:build",
}
# tracker: a class of `core.trackers.Tracker`, called with a run's directory and configuration
TRACKERS: Table = {
    "tensorboard": "sodp3d.core.events:TensorBoard",
    "trackio": "sodp3d.core.dashboards:Trackio",
    "wandb": "sodp3d.core.dashboards:Wandb",
    "none": "sodp3d.core.trackers:NoTracker",
}
# sodp3d export of a planner: a function of its path and the path to write, which returns a line for people
EXPORTS: Table = {
    "onnx": "sodp3d.models.graph:export_onnx",
    "torch": "sodp3d.models.graph:export_torch",
}
# sodp3d import, and export of a store: an `exchange.formats.Format`, which recordings are imported from and exported to
FORMATS: Table = {
    "folder": "sodp3d.exchange.folder:FORMAT",
    "dp3": "sodp3d.exchange.dp3:FORMAT",
    "robomimic": "sodp3d.exchange.robomimic:FORMAT",
    "minari": "sodp3d.exchange.minari:FORMAT",
    "lerobot": "sodp3d.exchange.lerobot:FORMAT",
}

ENTRY_POINTS = "sodp3d.plugins"
VARIABLE = "SODP3D_PLUGINS"  # names of modules for this process and those it starts, separated by commas


def choose(table: Table, name: str, key: str) -> Any:
    """What option `key`=`name` names. Raises InputError for a name that no table entry and no plug-in has."""
    require(table, name, key)
    module, _, attribute = table[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{key}: {name} is registered as {table[name]!r}, which cannot be imported: {error}."
        ) from error


def require(table: Table, name: str, key: str) -> None:
    """Raise InputError as `choose` does for an unknown name; imports nothing but plug-ins."""
    load_plugins()
    if name not in table:
        raise InputError(f"{key}: expected one of {', '.join(table)}, got {name!r}; a plug-in adds others (plugins=).")


def use_plugins(names: Iterable[str]) -> None:
    """Load these modules, here and in all processes started from here. Raises InputError for one that is not there."""
    before = _asked_for()
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*before, *names]))
    try:
        load_plugins()
    except InputError:
        os.environ[VARIABLE] = ",".join(before)  # or every later command of this process would fail by that name
        raise


def load_plugins() -> list[str]:
    """Import every plug-in that an entry point or `use_plugins` names; their modules' names."""
    modules = list(dict.fromkeys([*_installed(), *_asked_for()]))
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(
                f"plugins: {module} cannot be imported ({error}); install it into this environment, or leave it out."
            ) from error
    return modules


def _asked_for() -> list[str]:
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]


@functools.cache
def _installed() -> tuple[str, ...]:
    return tuple(sorted({entry.value.partition(":")[0] for entry in entry_points(group=ENTRY_POINTS)}))


def config_folders() -> Iterator[Path]:
    """Folders of configurations: ours, then the `configs` folder beside each plug-in's module."""
    yield CONFIGS
    for name in load_plugins():
        file = importlib.import_module(name).__file__
        folder = Path(file).parent / "configs" if file else None
        if folder is not None and folder.is_dir():
            yield folder


def has_config(group: str, name: str) -> bool:
    """Whether `<group>=<name>` can be typed."""
    return any((folder / group / f"{name}.yaml").is_file() for folder in config_folders())
