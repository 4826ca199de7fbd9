"""Whether what a store shows is what roll-outs would see: the same camera, crop, size and, for images, renderer.

Of recordings, which nothing acts in: whether it is what the planner is told of them, and makes of a robot's depth.
"""

from collections.abc import Sequence
from dataclasses import asdict

from sodp3d.core.errors import InputError
from sodp3d.core.mappings import differences, option, plain
from sodp3d.core.paths import command_line
from sodp3d.data.conversion import require_depth, require_poses
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import RECORDED, EnvConfig
from sodp3d.vision.sensors import Sensor


def require_same_view(store: EpisodeStore, sensor: Sensor, config: EnvConfig) -> None:
    """Raises InputError where roll-outs of `config` would see something else than the store's array of `sensor`."""
    if not sensor.draws:
        return
    state = store.conversions.get(sensor.key)
    if config.family == RECORDED:
        _require_same_making(store, sensor, config)
        return
    if state is None and sensor.converter is not None:
        require_depth(store)
    if state is None and sensor.made_by is not None:
        made = command_line("convert", *store.typed, sensor.made_by)
        raise InputError(f"{store.path}: holds no data/{sensor.key}; make it with: {made}")
    if sensor.converter is not None:
        require_poses(store)
    recorded = state["parameters"] if state is not None else {}
    given = sensor.parameters(config)
    stored = {"camera": store.attributes["env_config"]["camera"]}
    stored |= {name: recorded.get(name.rpartition(".")[2]) for name in given}
    for name, old, new in differences(stored, {"camera": plain(asdict(config.camera)), **given}, "env"):
        raise InputError(
            f"{store.path}: its data/{sensor.key} was made with {name} = {old!r}, but roll-outs would use {new!r}. "
            f"Give the stored value, or make it again with the new one: "
            f"{_made_again(store, sensor, [name], config)}"
        )


def _require_same_making(store: EpisodeStore, sensor: Sensor, config: EnvConfig) -> None:
    """Raises InputError where recorded depth was made into something else than `config` says of all the stores."""
    state = store.conversions.get(sensor.key)
    if state is None or not store.readable(sensor.key):  # recorded as it is, which is all there is to see; or not there
        return
    if config.crop is None:
        raise InputError(
            f"{store.path}: its data/{sensor.key} was made of depth within a crop, but that of another store was "
            "recorded as it is, and nobody knows how. Learn from them apart, or tell the crop of both with env.crop."
        )
    given = sensor.parameters(config)
    stored = {name: state["parameters"].get(name.rpartition(".")[2]) for name in given}
    differing = list(differences(stored, given, "env"))
    for name, old, new in differing:
        raise InputError(
            f"{store.path}: its data/{sensor.key} was made with {name} = {old!r}, but the planner would be told "
            f"{new!r}, which was typed or is that of another store. Give the stored value, or make it again with the "
            f"other: {_made_again(store, sensor, [name for name, *_ in differing], config)}"
        )


def require_same_rate(store: EpisodeStore, config: EnvConfig) -> None:
    """Raises InputError where roll-outs of `config` would act more or less often than the store's episodes did."""
    stored = store.attributes["env_config"].get("action_repeat", config.action_repeat)
    if config.family != RECORDED and stored != config.action_repeat:
        raise InputError(
            f"{store.path}: was collected with env.action_repeat={stored}, but {config.action_repeat} came; give "
            f"env.action_repeat={stored}, or collect anew into another folder."
        )


def _made_again(store: EpisodeStore, sensor: Sensor, names: Sequence[str], config: EnvConfig) -> str:
    """The command that makes the store's array of `sensor` with the env's own values of the options `names`."""
    if names[0].startswith("env.camera"):
        again = ["again=depth", "output_data=<new folder>"]
    else:
        again = ["again=clouds"] if sensor.converter is not None else [sensor.made_by or ""]
    options = dict.fromkeys(option(name, {"env": plain(asdict(config))}) for name in names)
    return command_line("convert", *store.typed, *again, *options)


def renderer_of(store: EpisodeStore, sensor: Sensor) -> str:
    """Who drew the store's array of `sensor`: egl, osmesa or raycast."""
    state = store.conversions.get(sensor.key)
    return str(state["parameters"].get("renderer") if state is not None else store.attributes["renderer"])
