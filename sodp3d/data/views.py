"""Whether what a store shows is what roll-outs would see: the same camera, crop, size and, for images, renderer."""

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
    if not sensor.draws or config.family == RECORDED:  # what was recorded is all that there is to see
        return
    state = store.conversions.get(sensor.key)
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
            f"{_made_again(store, sensor, name, config)}"
        )


def require_same_rate(store: EpisodeStore, config: EnvConfig) -> None:
    """Raises InputError where roll-outs of `config` would act more or less often than the store's episodes did."""
    stored = store.attributes["env_config"].get("action_repeat", config.action_repeat)
    if config.family != RECORDED and stored != config.action_repeat:
        raise InputError(
            f"{store.path}: was collected with env.action_repeat={stored}, but {config.action_repeat} came; give "
            f"env.action_repeat={stored}, or collect anew into another folder."
        )


def _made_again(store: EpisodeStore, sensor: Sensor, name: str, config: EnvConfig) -> str:
    """The command that makes the store's array of `sensor` with the env's own value of the option `name`."""
    if name.startswith("env.camera"):
        again = ["again=depth", "output_data=<new folder>"]
    else:
        again = ["again=clouds"] if sensor.converter is not None else [sensor.made_by or ""]
    return command_line("convert", *store.typed, *again, option(name, {"env": plain(asdict(config))}))


def renderer_of(store: EpisodeStore, sensor: Sensor) -> str:
    """Who drew the store's array of `sensor`: egl, osmesa or raycast."""
    state = store.conversions.get(sensor.key)
    return str(state["parameters"].get("renderer") if state is not None else store.attributes["renderer"])
