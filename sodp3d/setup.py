"""What pretrain, finetune and eval make of their configuration: device, tasks, stores, roll-outs, planners."""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sodp3d import checkpoint
from sodp3d.cli import data_root, root
from sodp3d.data.pointcloud import check_backend
from sodp3d.data.schema import differences
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig, expand
from sodp3d.envs.gl import settle
from sodp3d.errors import InputError
from sodp3d.files import plain
from sodp3d.learning.checks import check_model
from sodp3d.learning.regularizers import REGULARIZERS
from sodp3d.models.planner import Planner, PlannerConfig
from sodp3d.rollout import Rollouts
from sodp3d.run import newest_finished

log = logging.getLogger(__name__)
FORMAT = 1  # of planner checkpoints
SAMPLER = {"eta": 1.0, "sigma_floor": 0.0}  # of evaluations


def prepare_torch(config: Mapping[str, Any]) -> torch.device:
    """Set the learner's threads and resolve `device`. Raises InputError for a device that is not there."""
    torch.set_num_threads(config["threads"] or os.cpu_count() or 1)
    # Convolutions too are float32 on CUDA: in TensorFloat32 a plan's latents are off by 3e-3 after ten steps, and with
    # them the ratios that fine-tuning clips at 0.01; at these sizes launching kernels takes the time anyway.
    torch.backends.cudnn.allow_tf32 = False
    return find_device(config["device"], "device")


def find_device(name: str, key: str) -> torch.device:
    """The device that option `key` names. Raises InputError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"{key}: expected auto, cpu or cuda, got {name!r}.") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"{key}: expected auto, cpu or cuda, got {name!r}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{key}: cuda was asked for, but PyTorch sees no CUDA device; use {key}=cpu or {key}=auto.")
    return device


def task_configs(config: Mapping[str, Any]) -> list[EnvConfig]:
    """The tasks named by `env=`: one, or those of a set."""
    return expand(EnvConfig.from_config(config["env"]))


def open_stores(config: Mapping[str, Any], tasks: list[EnvConfig]) -> list[EpisodeStore]:
    """The episode stores to learn from. Raises InputError naming the command that makes a missing one."""
    given = [config["data"]] if isinstance(config["data"], str) else config["data"]
    folders = [Path(path).expanduser() for path in given or [data_root(config) / task.name for task in tasks]]
    stores: list[EpisodeStore] = []
    for folder in folders:
        path = folder if folder.suffix == ".zarr" else folder / "episodes.zarr"
        if not path.exists():
            missing = tasks[min(len(stores), len(tasks) - 1)]
            raise InputError(
                f"data: no store at {path}; make it with: python data_collection/collect.py {missing.choice}"
            )
        stores.append(EpisodeStore.open(path))
    return stores


def make_rollouts(config: Mapping[str, Any], task: EnvConfig, environments: int) -> Rollouts:
    """Workers for roll-outs of `task`, seeing what `obs=` says."""
    obs = config["obs"]
    renderer = config["render"] if obs["name"] == "state" else settle(config["render"])
    device = str(find_device(obs["device"], "obs.device"))
    check_backend(obs["backend"], device)
    return Rollouts(task, obs["name"], renderer, obs["backend"], config["workers"], environments, device)


def with_renderer_of_data(config: dict[str, Any], tasks: list[EnvConfig]) -> dict[str, Any]:
    """The configuration, with the renderer that drew the stores' images where those are learned from.

    Raises InputError where there are none, drawn by several renderers or another than `render=` names, or seen through
    another camera than roll-outs would be.
    """
    if config["obs"]["name"] != "image":
        return config
    from sodp3d.data.rendering import image_renderer

    recorded = {store.path: image_renderer(store, tasks[0].camera) for store in open_stores(config, tasks)}
    if len(set(recorded.values())) > 1:
        named = ", ".join(f"{path}: {name}" for path, name in recorded.items())
        raise InputError(f"data: images drawn by different renderers cannot be learned together ({named}).")
    return _with_renderer(config, next(iter(recorded.values())), f"data/image of {next(iter(recorded))}")


def as_planner_was_trained(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The configuration, with what the planner at `path` was trained and evaluated with.

    That is the sampler of evaluations and the number of its steps, where the configuration leaves them open, and, if
    the planner sees images, the renderer that drew them. Raises InputError when `render=` names another.
    """
    state = checkpoint.load_state(checkpoint_of(path))
    config = with_sampler(config, state)
    renderer = state.get("planner", {}).get("renderer")
    return config if renderer is None else _with_renderer(config, renderer, f"what planner {path} learned from")


def with_sampler(config: dict[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, with the sampler and the number of its steps that `state` tells, where it leaves them open.

    state: of a checkpoint; {} for a new planner, which has eta 1 without a floor. Raises InputError for a
    `model.sampling_steps` that does not divide the planner's denoising steps.
    """
    settings, model = config["evaluation"], config["model"]
    known, planner = state.get("sampler", {}), state.get("planner", {})
    found = {key: known.get(key, own) if settings[key] is None else settings[key] for key, own in SAMPLER.items()}
    if model["sampling_steps"] is None:
        model = {**model, "sampling_steps": planner.get("inference_steps", PlannerConfig.inference_steps)}
    check_model({**model, "denoising_steps": planner.get("diffusion_steps") or model["denoising_steps"]})
    return {**config, "evaluation": {**settings, **found}, "model": model}


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
    """`planner=`, or the newest finished run of the first of `stages` that has one for this env and obs."""
    if config["planner"]:
        return Path(config["planner"]).expanduser()
    for stage in stages:
        parent = root(config) / "outputs" / stage
        names = [label(config)] if stage == "pretrain" else [label(config, regularizer) for regularizer in REGULARIZERS]
        found = [newest_finished(parent / name) for name in names if (parent / name).is_dir()]
        finished = [path for path in found if path is not None]
        if finished:
            return max(finished, key=lambda path: path.name)
    overrides = f"obs={config['obs']['name']} {EnvConfig.from_config(config['env']).choice}"
    raise InputError(
        f"planner: no finished {' or '.join(stages)} run of {label(config)} under {root(config) / 'outputs'}; "
        f"make one with: python train.py mode={stages[-1]} {overrides} (or name one: planner=<run dir>)"
    )


def planner_state(
    planner: Planner, tasks: list[EnvConfig], data_hash: str, evaluation: Mapping[str, Any]
) -> dict[str, Any]:
    """What a checkpoint says of its planner, beside the weights; `tasks` share camera and crop.

    evaluation: that section of the configuration; its sampler is what later evaluations take.
    """
    return {
        "format": FORMAT,
        "planner": planner.config.to_dict(),
        "tasks": [task.name for task in tasks],
        "view": _view(planner, tasks[0]),
        "sampler": {key: evaluation[key] for key in SAMPLER},
        "data_hash": data_hash,
    }


def _view(planner: Planner, task: EnvConfig) -> dict[str, Any]:
    """What shapes the sensor's data and does not show in its size."""
    seen = {"state": (), "image": ("camera",), "pointcloud": ("camera", "crop")}[planner.config.observation]
    return {key: plain(asdict(getattr(task, key))) for key in seen}


def checkpoint_of(path: Path) -> Path:
    """A checkpoint directory from itself, or from a run directory (its best, or else its newest)."""
    if (path / checkpoint.TENSORS).is_file():
        return path
    for folder in (path / "best", path / "checkpoints", path):
        if checkpoint.steps(folder):
            return folder / f"{checkpoint.steps(folder)[-1]:08d}"
    raise InputError(f"planner: {path} is neither a run directory with checkpoints nor a checkpoint.")


def load_planner(path: str | Path, device: torch.device | str = "cpu") -> Planner:
    """A planner from a run directory or a checkpoint, ready for `planner.plan(observation)`.

    Raises InputError where there is none, or one of another format.
    """
    return load_planner_and_state(Path(path), device)[0]


def load_planner_and_state(
    path: Path, device: torch.device | str = "cpu", sampling_steps: int | None = None
) -> tuple[Planner, dict[str, Any]]:
    """`load_planner`, with what the checkpoint says of it; `sampling_steps` where not its own are wanted."""
    directory = checkpoint_of(path)
    tensors, state = checkpoint.load(directory)
    if state.get("format") != FORMAT:
        raise InputError(f"{directory}: not a planner checkpoint of format {FORMAT} (found {state.get('format')!r}).")
    weights = checkpoint.without_prefix("ema", tensors) or checkpoint.without_prefix("planner", tensors)
    changes = {} if sampling_steps is None else {"inference_steps": sampling_steps}
    planner = Planner(PlannerConfig.from_dict({**state["planner"], **changes}))
    try:
        planner.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{directory}: the weights do not fit their configuration ({error}).") from None
    planner.sampler = replace(planner.sampler, **state.get("sampler", {}))
    return planner.to(device).eval(), state


def require_same_task(state: Mapping[str, Any], planner: Planner, config: Mapping[str, Any], task: EnvConfig) -> None:
    """Raise InputError unless the planner was trained for this task, this kind of observation, camera and crop."""
    if task.name not in state["tasks"]:
        raise InputError(
            f"planner: it was trained on {', '.join(state['tasks'])}, but env={task.name} was asked for; "
            "name another planner or env."
        )
    if planner.config.observation != config["obs"]["name"]:
        raise InputError(
            f"planner: it sees obs={planner.config.observation}, but obs={config['obs']['name']} was asked for."
        )
    view = _view(planner, task)
    for name, learned, now in differences(state.get("view", view), view, "env"):
        raise InputError(f"planner: it was trained with {name}={learned!r}, but {now!r} came; give the same value.")
