"""What a stage finds for itself: tasks, stores, the planner of the stage before, and how that was trained."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sodp3d.core import checkpoint
from sodp3d.core.device import find_device
from sodp3d.core.errors import InputError
from sodp3d.core.mappings import flat
from sodp3d.core.paths import command_line, data_root, outputs_root
from sodp3d.core.run import readable_config
from sodp3d.core.sections import read_section
from sodp3d.data.store import EpisodeStore
from sodp3d.data.views import renderer_of, require_same_view
from sodp3d.envs.config import EnvConfig
from sodp3d.models.loading import checkpoint_of, planner_config
from sodp3d.models.planner import PlannerConfig
from sodp3d.rollouts.rollout import Rollouts
from sodp3d.serving.remote import is_served
from sodp3d.settings import ModelSettings, ObservationSettings
from sodp3d.vision.gl import settle
from sodp3d.vision.pointcloud import check_backend
from sodp3d.vision.sensors import sensor

log = logging.getLogger(__name__)


def open_stores(config: Mapping[str, Any], tasks: list[EnvConfig]) -> list[EpisodeStore]:
    """The episode stores to learn from: those that `data=` names, in any order, or else one for each task.

    Raises InputError naming the command that makes a missing one, and where a store is of another task than those of
    `env=`, or named twice.
    """
    given = [config["data"]] if isinstance(config["data"], str) else config["data"]
    folders = [Path(path).expanduser() for path in given or [data_root(config) / task.name for task in tasks]]
    stores: list[EpisodeStore] = []
    for folder in folders:
        path = folder if folder.suffix == ".zarr" else folder / "episodes.zarr"
        if not path.exists():
            missing = tasks[min(len(stores), len(tasks) - 1)]
            raise InputError(
                f"data: no store at {path}; make it with: {command_line('collect', *missing.choice.split())}"
            )
        stores.append(EpisodeStore.open(path))
        _require_task(stores[-1], tasks if given else [tasks[len(stores) - 1]])
        same = [other.path for other in stores[:-1] if other.path.samefile(path)]
        if same:
            raise InputError(f"data: {path} and {same[0]} are the same store; name each once.")
    return stores


def _require_task(store: EpisodeStore, tasks: list[EnvConfig]) -> None:
    """Raises InputError where a store holds none of `tasks`."""
    found, names = store.attributes["env"], [task.name for task in tasks]
    if found not in names:
        raise InputError(
            f"data: {store.path} holds episodes of {found!r}, but env= asks for {', '.join(names)}. Choose that "
            f"environment ({store.choice}), or name another store with data=."
        )


def make_rollouts(config: Mapping[str, Any], task: EnvConfig, environments: int) -> Rollouts:
    """Workers for roll-outs of `task`, seeing what `obs=` says."""
    obs = read_section(ObservationSettings, config["obs"])
    renderer = settle(config["render"]) if sensor(obs.name).draws else config["render"]
    device = str(find_device(obs.device, "obs.device"))
    check_backend(obs.backend, device)
    return Rollouts(task, obs.name, renderer, obs.backend, config["workers"], environments, device)


def as_data_was_seen(config: dict[str, Any], tasks: list[EnvConfig]) -> dict[str, Any]:
    """The configuration, with the renderer that drew what the stores show, where renderers differ in that.

    Raises InputError where there are none, drawn by several renderers or another than `render=` names, or seen through
    another camera than roll-outs would be.
    """
    seen = sensor(config["obs"]["name"])
    stores = open_stores(config, tasks)
    for store in stores:
        require_same_view(store, seen, tasks[0])
    if not seen.one_renderer:
        return config
    recorded = {store.path: renderer_of(store, seen) for store in stores}
    if len(set(recorded.values())) > 1:
        named = ", ".join(f"{path}: {name}" for path, name in recorded.items())
        raise InputError(f"data: {seen.key} drawn by different renderers cannot be learned together ({named}).")
    return _with_renderer(config, next(iter(recorded.values())), f"data/{seen.key} of {next(iter(recorded))}")


def as_planner_was_trained(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The configuration, with what the planner at `path` was trained and evaluated with.

    That is the sampler of evaluations and the number of its steps, where the configuration leaves them open, and, if
    the planner sees images, the renderer that drew them. Raises InputError when `render=` names another.
    """
    directory = checkpoint_of(path)
    return as_planner_sees(config, planner_config(checkpoint.load_state(directory), directory), str(path))


def as_planner_sees(config: dict[str, Any], planner: PlannerConfig, name: str) -> dict[str, Any]:
    """`as_planner_was_trained`, of the planner's configuration; name: what messages call it."""
    config = with_sampler(config, planner)
    seen = planner.renderer
    return config if seen is None else _with_renderer(config, seen, f"what planner {name} learned from")


def with_sampler(config: dict[str, Any], planner: PlannerConfig | None = None) -> dict[str, Any]:
    """The configuration, with the sampler of `planner`, or of a new one, where it leaves that open.

    Raises InputError for a `model.sampling_steps` that does not divide the planner's denoising steps.
    """
    own = planner or PlannerConfig
    evaluation = _filled(config["evaluation"], {"eta": own.eta, "sigma_floor": own.sigma_floor})
    model = _filled(config["model"], {"sampling_steps": own.inference_steps})
    read_section(ModelSettings, model).check_sampling(planner.diffusion_steps if planner else None)
    return {**config, "evaluation": evaluation, "model": model}


def _filled(values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, with `own` where they are None."""
    return {**values, **{key: value for key, value in own.items() if values.get(key) is None}}


def _with_renderer(config: dict[str, Any], renderer: str, what: str) -> dict[str, Any]:
    if config["render"] not in ("auto", renderer):
        raise InputError(
            f"render: {what} was drawn by {renderer}, but render={config['render']} came, whose images differ; "
            f"use render=auto or render={renderer}."
        )
    return {**config, "render": renderer}


def label(config: Mapping[str, Any], *more: str) -> str:
    """The folder name of a run under outputs/<mode>/: env-obs, the method if not SODP, and what else sets it apart."""
    method = [] if config["method"] == "sodp" else [config["method"]]
    return "-".join([config["env"]["name"], config["obs"]["name"], *method, *more])


def find_planner(config: Mapping[str, Any], stages: tuple[str, ...]) -> Path:
    """`planner=`, or the newest finished run of the first of `stages` that has one for this env, obs and method."""
    if is_served(config["planner"]):
        raise InputError(f"planner: {config['planner']} can be evaluated (mode=eval); learning needs a run directory.")
    if config["planner"]:
        return Path(config["planner"]).expanduser()
    for stage in stages:
        finished = (path.parent for path in (outputs_root(config) / stage).glob("*/*/result.json"))
        for directory in sorted(finished, key=lambda path: path.name, reverse=True):
            untrained = checkpoint.steps(directory / "checkpoints")[-1:] == [0]
            if not untrained and _kind(readable_config(directory) or {}) == _kind(config):
                return directory
    overrides = f"obs={config['obs']['name']}", *EnvConfig.from_config(config["env"]).choice.split()
    raise InputError(
        f"planner: no finished {' or '.join(stages)} run of {label(config)} under {outputs_root(config)}; "
        f"make one with: {command_line('train', f'mode={stages[-1]}', *overrides)} (or name one: planner=<run dir>)"
    )


def _kind(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a planner's run says of itself, by which the next stage knows it; whatever regularized it."""
    found = flat(config)
    return found.get("env.name"), found.get("obs.name"), found.get("method", "sodp")
