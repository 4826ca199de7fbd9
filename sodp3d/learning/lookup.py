"""What a stage finds for itself: tasks, stores, the planner of the stage before, and how that was trained."""

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sodp3d.core import checkpoint
from sodp3d.core.cli import compose
from sodp3d.core.device import find_device
from sodp3d.core.errors import InputError
from sodp3d.core.mappings import flat
from sodp3d.core.paths import command_line, data_root, outputs_root
from sodp3d.core.run import begun, is_finished, read_result, readable_config
from sodp3d.core.sections import read_section
from sodp3d.data.completeness import require_complete, with_stores
from sodp3d.data.rows import common_shape
from sodp3d.data.store import EpisodeStore
from sodp3d.data.views import renderer_of, require_same_rate, require_same_view
from sodp3d.envs.config import RECORDED, EnvConfig
from sodp3d.models.loading import checkpoint_of, policy_config
from sodp3d.models.policy import method_class
from sodp3d.models.policy_config import PolicyConfig, require_no_sampler
from sodp3d.rollouts.rollout import Rollouts
from sodp3d.serving.remote import RemotePlanner, is_served
from sodp3d.settings import ObservationSettings
from sodp3d.vision.gl import settle
from sodp3d.vision.pointcloud import check_backend
from sodp3d.vision.sensors import Sensor, sensor

log = logging.getLogger(__name__)
RUNS = "runs"  # of the result of a set's fine-tuning: task to run directory, relative to the set's own


def open_stores(config: Mapping[str, Any], tasks: list[EnvConfig]) -> list[EpisodeStore]:
    """The episode stores to learn from: those that `data=` names, in any order, or else one for each task.

    Raises InputError naming the commands that make missing ones, and where a store is of another task than those of
    `env=`, or named twice.
    """
    paths, given = _store_paths(config, tasks), bool(config["data"])
    if given:
        for path in paths:
            with_stores(tasks[:1], [path], partial=False)
    else:
        with_stores(tasks, paths, partial=False)
    stores: list[EpisodeStore] = []
    for path in paths:
        stores.append(EpisodeStore.open(path))
        _require_task(stores[-1], tasks if given else [tasks[len(stores) - 1]])
        same = [other.path for other in stores[:-1] if other.path.samefile(path)]
        if same:
            raise InputError(f"data: {path} and {same[0]} are the same store; name each once.")
    return stores


def _store_paths(config: Mapping[str, Any], tasks: list[EnvConfig]) -> list[Path]:
    given = [config["data"]] if isinstance(config["data"], str) else config["data"]
    folders = [Path(path).expanduser() for path in given or [data_root(config) / task.name for task in tasks]]
    return [folder if folder.suffix == ".zarr" else folder / "episodes.zarr" for folder in folders]


def with_tasks_there(
    config: dict[str, Any], tasks: list[EnvConfig], partial: bool
) -> tuple[dict[str, Any], list[EnvConfig]]:
    """The configuration and the tasks to pre-train on: all of them, or with `partial` those that have a store.

    Raises InputError naming every store that is missing or half collected, and what makes it; of a single task a
    warning tells of the latter.
    """
    if config["data"]:
        named = {store.attributes["env"] for store in open_stores(config, tasks)}
        lost = [task for task in tasks if task.name not in named]
        if lost and not partial:
            raise InputError(
                f"data: holds no episodes of {', '.join(task.name for task in lost)}, which env= asks for too. Name "
                "their stores as well, choose fewer tasks (env.tasks=), or go on without with partial=true."
            )
        there = [task for task in tasks if task.name in named]
    else:
        there = with_stores(tasks, _store_paths(config, tasks), partial)
    require_complete(open_stores(config, there), partial)
    if len(there) < len(tasks):
        config = {**config, "env": {**config["env"], "tasks": [task.task for task in there]}}
    return config, there


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
    _require_alike(stores, seen, tasks[0])
    if not seen.one_renderer or tasks[0].family == RECORDED:
        return config
    recorded = {store.path: renderer_of(store, seen) for store in stores}
    if len(set(recorded.values())) > 1:
        named = ", ".join(f"{path}: {name}" for path, name in recorded.items())
        raise InputError(f"data: {seen.key} drawn by different renderers cannot be learned together ({named}).")
    return _with_renderer(config, next(iter(recorded.values())), f"data/{seen.key} of {next(iter(recorded))}")


def _require_alike(stores: list[EpisodeStore], seen: Sensor, task: EnvConfig) -> None:
    """Raise InputError, a line a store, for those not converted as roll-outs would see; or where shapes differ."""
    wrong = []
    for store in stores:
        try:
            require_same_view(store, seen, task)
            require_same_rate(store, task)
            store.read(seen.key, len(store), len(store))  # whether all episodes are there; none is read
        except InputError as error:
            wrong.append(str(error))
    if wrong:
        raise InputError("\n".join(wrong))
    for key in ("action", "agent_pos", seen.key):
        common_shape(stores, key)


def as_planner_was_trained(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The configuration, with what the planner at `path` was trained and evaluated with.

    That is its network, the sampler of evaluations and the number of its steps, where the configuration leaves them
    open, and, if the planner sees images, the renderer that drew them. Raises InputError where a `model.` option or
    `render=` names another, or `method=` is not the planner's.
    """
    directory = checkpoint_of(path)
    state = checkpoint.load_state(directory)
    planner = policy_config(state, directory)
    asked, told = config.get("method", planner.method), state["planner"].get("method")
    # Checkpoints of earlier releases do not tell one method's planners from another's.
    if asked != told if told else method_class(asked) is not method_class(planner.method):
        raise InputError(
            f"planner: {path} is of method={planner.method}, but method={asked} came; give method={planner.method}."
        )
    return as_planner_sees(config, planner, str(path))


@cache
def _usual_network(method: str) -> dict[str, Any]:
    """Options of the network of a method's policies, where a command names none."""
    options: dict[str, Any] = compose("train", [f"method={method}"])["model"]
    return options


def _with_network(config: dict[str, Any], planner: PolicyConfig, name: str) -> dict[str, Any]:
    """The configuration, with what the planner's network is made of. Raises InputError where it asks for another."""
    asked, usual = config["model"], _usual_network(planner.method)
    env = config["env"]
    recommended = {"unet": (env["unet"], env["recommended"]["paper"].get("unet"))}  # unless the method has its own
    for key, own in planner.network.items():
        if asked.get(key, own) not in (own, usual.get(key), *recommended.get(key, ())):
            raise InputError(
                f"model.{key}: planner {name} was trained with {own}, but {asked[key]} came; leave it out: "
                "mode=pretrain decides it."
            )
    return {**config, "model": {**asked, **planner.network}}


def as_planner_sees(config: dict[str, Any], planner: PolicyConfig, name: str) -> dict[str, Any]:
    """`as_planner_was_trained`, of the planner's configuration; name: what messages call it."""
    config = with_sampler(_with_network(config, planner, name), planner)
    seen = planner.renderer
    return config if seen is None else _with_renderer(config, seen, f"what planner {name} learned from")


def as_served(config: dict[str, Any], remote: RemotePlanner) -> dict[str, Any]:
    """The configuration under which a served planner is evaluated.

    Raises InputError where it asks for another sampler, or another choice among plans, than the server's.
    """
    name, own = config["planner"], remote.config
    config = as_planner_sees(config, own, name)
    asked = config["model"]["sampling_steps"], config["evaluation"]["eta"], config["evaluation"]["sigma_floor"]
    if own.sampled(*asked) != own:
        raise InputError(
            f"model.sampling_steps, evaluation.eta, evaluation.sigma_floor: {name} samples by its own, "
            f"{own.inference_steps}, {own.eta} and {own.sigma_floor}; leave them out."
        )
    best_of = config["evaluation"]["best_of"]
    if best_of not in (None, remote.count):
        raise InputError(
            f"evaluation.best_of: {name} takes the best of {remote.count}; leave it out, or start the server with "
            f"best_of={best_of}."
        )
    return config


def with_sampler(config: dict[str, Any], planner: PolicyConfig | None = None) -> dict[str, Any]:
    """The configuration, with the sampler of `planner`, or of a new one, where it leaves that open.

    Raises InputError for a `model.sampling_steps` that does not divide the planner's denoising steps, and for any of
    this where the method does not denoise.
    """
    name = planner.method if planner else config.get("method", PolicyConfig.method)
    method, model, evaluation = method_class(name), config["model"], config["evaluation"]
    own = planner.sampling if planner else dict(method.default_sampling)
    if not own:
        require_no_sampler(name, model["sampling_steps"], evaluation["eta"], evaluation["sigma_floor"])
        return config
    evaluation = _filled(evaluation, {key: own[key] for key in ("eta", "sigma_floor")})
    model = _filled(model, {"sampling_steps": own["sampling_steps"]})
    read_section(method.settings, model).check_sampling(planner.denoising_steps if planner else None)
    return {**config, "evaluation": evaluation, "model": model}


def require_denoising(config: Mapping[str, Any], what: str) -> None:
    """Raise InputError where `method=` makes no planners, whose denoising steps a stage is about."""
    name = config["method"]
    if not method_class(name).tunable:
        raise InputError(
            f"method: {what} the denoising steps of a planner, and method={name} has none; evaluate it as it is "
            f"(mode=eval method={name}), or take a planner (method=sodp)."
        )


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
    """`planner=`, or the newest finished run of the first of `stages` that has one for these tasks, obs and method.

    A run of a set is one for each of its tasks; of a set's fine-tuning, `planner_of` says where each has its own.
    """
    if is_served(config["planner"]):
        raise InputError(f"planner: {config['planner']} can be evaluated (mode=eval); learning needs a run directory.")
    if config["planner"]:
        named = Path(config["planner"]).expanduser()
        _tell_of_unfinished(named)
        return named
    for stage in stages:
        finished = (path.parent for path in (outputs_root(config) / stage).glob("*/*/result.json"))
        for directory in sorted(finished, key=begun, reverse=True):
            untrained = checkpoint.steps(directory / "checkpoints")[-1:] == [0]
            if not untrained and _serves(readable_config(directory) or {}, config, stage):
                return directory
    method = [] if config["method"] == "sodp" else [f"method={config['method']}"]
    overrides = f"obs={config['obs']['name']}", *method, *EnvConfig.from_config(config["env"]).choice.split()
    raise InputError(
        f"planner: no finished {' or '.join(stages)} run of {label(config)} under {outputs_root(config)}; "
        f"make one with: {command_line('train', f'mode={stages[-1]}', *overrides)} (or name one: planner=<run dir>)"
    )


def _tell_of_unfinished(run: Path) -> None:
    """Warn where a named run is still to make its planner: the same command would take another one later."""
    if (run / "config.yaml").is_file() and not is_finished(run) and checkpoint.steps(run / "checkpoints"):
        taken = checkpoint_of(run)
        log.warning(
            "planner: %s is not finished, so it is as of %s. To keep to that one, give planner=%s",
            run,
            taken.name,
            taken,
        )


def _serves(recorded: Mapping[str, Any], config: Mapping[str, Any], stage: str) -> bool:
    """Whether a recorded run made a planner for the tasks of `config`, by what it says of itself.

    Whatever regularized it. Of a set's fine-tuning each single task has its own run, which is found by itself.
    """
    made, wanted = _tasks(recorded), _tasks(config)
    if stage == "finetune" and len(made) > 1 and len(wanted) == 1:
        return False
    return set(wanted) <= set(made) and _kind(recorded) == _kind(config)


def _tasks(config: Mapping[str, Any]) -> list[str]:
    """Names of the tasks that a run is of; what a damaged record says is of no task."""
    found = flat(config)
    tasks = found.get("env.tasks")
    of_set = tasks if isinstance(tasks, list) else []
    return [f"{found.get('env.family')}_{task}" for task in of_set] or [str(found.get("env.name"))]


def _kind(config: Mapping[str, Any]) -> tuple[Any, ...]:
    found = flat(config)
    return found.get("obs.name"), found.get("method", "sodp")


def planner_of(path: Path, task: EnvConfig) -> Path:
    """The planner for one task: that of the run `path`, or where it is a set's fine-tuning, of its run of that task.

    Raises InputError where the set has no such task.
    """
    runs = read_result(path).get(RUNS) if (path / "result.json").is_file() else None
    if runs is None:
        return path
    if not isinstance(runs, dict) or task.name not in runs:
        told = ", ".join(runs) if isinstance(runs, dict) else repr(runs)
        raise InputError(f"planner: {path} is a fine-tuning of {told}, not of env={task.name}; name another.")
    return (path / str(runs[task.name])).resolve()
