"""Checkpoints of planners and other policies: what they say of one, and how it comes back from them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.core.mappings import differences
from sodp3d.envs import make_env
from sodp3d.envs.config import EnvConfig
from sodp3d.models.critic import Choice, Critic, CriticConfig
from sodp3d.models.planner import Planner
from sodp3d.models.policy import LearnedPolicy, method_class
from sodp3d.models.policy_config import PolicyConfig
from sodp3d.vision.sensors import sensor

FORMAT = 1  # of planner checkpoints
CRITIC = "critic.critic"  # where the weights of its critic are, in a fine-tuned planner's checkpoint
# Of a checkpoint's state, what travels with a planner wherever it is shared or served: all of `planner_state`.
TOLD_OF_PLANNERS = ("format", "planner", "tasks", "view", "action_repeat", "data_hash")


def make_policy(config: PolicyConfig) -> Any:
    """A policy with fresh weights, of its method's class. Raises InputError for an unknown method."""
    return method_class(config.method)(config)


def planner_state(planner: LearnedPolicy, tasks: list[EnvConfig], data_hash: str) -> dict[str, Any]:
    """What a checkpoint says of its policy, beside the weights; `tasks` share camera and crop."""
    return {
        "format": FORMAT,
        "planner": planner.config.to_dict(),
        "tasks": [task.name for task in tasks],
        "view": _view(planner, tasks[0]),
        "action_repeat": tasks[0].action_repeat,
        "data_hash": data_hash,
    }


class Configured(Protocol):
    """A policy here, or one that is served elsewhere."""

    @property
    def config(self) -> PolicyConfig:
        """What it must be shown."""
        ...


def _view(planner: Configured, task: EnvConfig) -> dict[str, Any]:
    """What shapes the sensor's data."""
    return sensor(planner.config.observation).view_of(task)


def checkpoint_of(path: Path) -> Path:
    """A checkpoint directory from itself, or from a run directory (its best, or else its newest)."""
    if (path / checkpoint.TENSORS).is_file():
        return path
    for folder in (path / "best", path / "checkpoints", path):
        if checkpoint.steps(folder):
            return checkpoint.path_of(folder, checkpoint.steps(folder)[-1])
    raise InputError(f"planner: {path} is neither a run directory with checkpoints nor a checkpoint.")


def load_planner(path: str | Path, device: torch.device | str = "cpu") -> Planner:
    """A planner from a run directory or a checkpoint, ready for `planner.plan(observation)`.

    Raises InputError where there is none, one of another format or of a method that does not plan, or one that is
    damaged.
    """
    return load_planner_and_state(Path(path), device)[0]


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> LearnedPolicy:
    """A policy of any method from a run directory or a checkpoint, ready for `begin` and `act`.

    Raises InputError as `load_planner`.
    """
    return load_policy_and_state(Path(path), device)[0]


def policy_config(state: Mapping[str, Any], directory: Path) -> Any:
    """The configuration in the state of the checkpoint in `directory`. Raises InputError where it is no policy's.

    Until planners had their sampler in their configuration, it stood beside it.
    """
    if state.get("format") != FORMAT:
        raise InputError(f"{directory}: not a planner checkpoint of format {FORMAT} (found {state.get('format')!r}).")
    with _restoring(directory):
        kind = method_class(state["planner"].get("method", PolicyConfig.method)).config_type
        config = kind.from_dict({**state.get("sampler", {}), **state["planner"]})
    for name, hint in get_type_hints(kind).items():
        value = getattr(config, name)
        try:
            TypeAdapter(hint).validate_python(value, strict=True)
        except ValidationError:
            expected = getattr(hint, "__name__", hint)
            raise InputError(f"{directory}: planner.{name}: expected {expected}, got {value!r}.") from None
    return config


@contextmanager
def _restoring(directory: Path) -> Iterator[None]:
    """`checkpoint.restoring`, where what is wrong with a value is told with the checkpoint that has it."""
    try:
        with checkpoint.restoring(directory):
            yield
    except InputError as error:
        raise InputError(str(error) if str(directory) in str(error) else f"{directory}: {error}") from error


def load_planner_and_state(
    path: Path, device: torch.device | str = "cpu", **sampler: Any
) -> tuple[Planner, dict[str, Any]]:
    """`load_planner`, with what the checkpoint says of it; sampler as for `load_policy_and_state`."""
    planner, state = load_policy_and_state(path, device, **sampler)
    if not isinstance(planner, Planner):
        raise InputError(
            f"planner: {path} is of method={planner.config.method}, which makes no plans; load it with "
            "sodp3d.load_policy, or name a planner."
        )
    return planner, state


def load_policy_and_state(
    path: Path, device: torch.device | str = "cpu", **sampler: Any
) -> tuple[LearnedPolicy, dict[str, Any]]:
    """`load_policy`, with what the checkpoint says of it.

    sampler: `sampling_steps`, `eta`, `sigma_floor`, where not its own are wanted.
    """
    directory = checkpoint_of(path)
    tensors, state = checkpoint.load(directory)
    config = policy_config(state, directory).sampled(**sampler)
    _check_description(state, directory)
    weights = checkpoint.without_prefix(_acting_prefix(tensors), tensors)
    with _restoring(directory):
        planner: LearnedPolicy = make_policy(config)
    try:
        planner.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{directory}: the weights do not fit their configuration ({error}).") from None
    for name, value in planner.state_dict().items():
        if not torch.isfinite(value).all():
            raise InputError(f"{directory}: {name} holds values that are not finite; take another checkpoint.")
    return planner.to(device).eval(), state


def _acting_prefix(tensors: Mapping[str, Tensor]) -> str:
    """Of the weights that act: the averaged ones, where there are such."""
    return "ema" if any(name.startswith("ema.") for name in tensors) else "planner"


def acting(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a checkpoint's tensors those that a policy acts by: its weights, and its critic's."""
    own = {prefix: checkpoint.without_prefix(prefix, tensors) for prefix in (_acting_prefix(tensors), CRITIC)}
    return {name: value for prefix, part in own.items() for name, value in checkpoint.with_prefix(prefix, part).items()}


def chosen_from(path: str | Path, best_of: int | None = None, option: str = "evaluation.best_of") -> int:
    """Of how many plans the planner in `path` takes the best: as it was tested, or `best_of`; 1 where it has no choice.

    Its tensors, which are many, stay unread. option, and raises: as `load_choice`.
    """
    directory = checkpoint_of(Path(path))
    state = checkpoint.load_state(directory)
    count: int = state.get("best_of", 1) if best_of is None else best_of
    if count > 1 and "critic" not in state:
        raise InputError(
            f"{option}: {count} plans need a critic to choose, and {directory} has none; fine-tune with one "
            f"(finetune.critic.members=5), or use {option}=1."
        )
    return count


def load_choice(
    path: str | Path, device: torch.device | str = "cpu", best_of: int | None = None, option: str = "evaluation.best_of"
) -> Choice | None:
    """How the planner in `path` chooses among several plans: as it was tested, or by `best_of`.

    None for one plan. option: what messages call `best_of`. Raises InputError where several are asked for and no critic
    was saved with it.
    """
    count = chosen_from(path, best_of, option)
    if count == 1:
        return None
    directory = checkpoint_of(Path(path))
    tensors, state = checkpoint.load(directory)
    with checkpoint.restoring(directory):
        critic = Critic(CriticConfig(**state["critic"]))
        critic.load_state_dict(checkpoint.without_prefix(CRITIC, tensors))
    return Choice(critic.to(device).eval(), count)


def _check_description(state: Mapping[str, Any], directory: Path) -> None:
    """Raise InputError where what is said of a planner, beside its configuration, is not as `planner_state` has it."""
    tasks = state.get("tasks")
    if not isinstance(tasks, list) or not tasks or not all(isinstance(name, str) for name in tasks):
        raise InputError(f"{directory}: tasks: expected a list of names, got {tasks!r}.")
    for key, kind, absent in (("data_hash", str, None), ("view", dict, {})):  # `view` is younger than the format
        value = state.get(key, absent)
        if not isinstance(value, kind):
            raise InputError(f"{directory}: {key}: expected a {kind.__name__}, got {value!r}.")


def is_unseen(state: Mapping[str, Any], task: EnvConfig) -> bool:
    """Whether the planner of a checkpoint's state has never been trained on this task."""
    return task.name not in state["tasks"]


def require_fitting(state: Mapping[str, Any], planner: Configured, config: Mapping[str, Any], task: EnvConfig) -> None:
    """Raise InputError unless the planner can act in this task: the same kind of observation, camera, crop and steps.

    A task that it was not trained on must also be like those that it was: in the sizes of what is seen and done.
    """
    if planner.config.observation != config["obs"]["name"]:
        raise InputError(
            f"planner: it sees obs={planner.config.observation}, but obs={config['obs']['name']} was asked for."
        )
    if is_unseen(state, task) and "task" in method_class(planner.config.method).labels:
        raise InputError(
            f"env: a policy of method={planner.config.method} tells its tasks apart, and {task.name} is none of them: "
            f"{', '.join(state['tasks'])}."
        )
    view = _view(planner, task)
    recorded = {part: value for part, value in state.get("view", view).items() if part in view}
    differing = list(differences(recorded, {part: view[part] for part in recorded}, "env"))
    differing += [*_steps(state, planner, task)]
    if is_unseen(state, task):
        differing += [*_sizes(planner, task)]
        if differing:
            told = ", ".join(f"{name}={learned!r} there, {now!r} here" for name, learned, now in differing)
            raise InputError(
                f"planner: it was trained on {', '.join(state['tasks'])}, and env={task.name}, which it has not seen, "
                f"differs from that in more than the task ({told}); name another planner or env."
            )
    for name, learned, now in differing:
        raise InputError(f"planner: it was trained with {name}={learned!r}, but {now!r} came; give the same value.")


def _steps(state: Mapping[str, Any], planner: Configured, task: EnvConfig) -> Iterator[tuple[str, Any, Any]]:
    """(name, the planner's, the task's) of what a step is, and of how many are seen, planned and executed."""
    for name in ("n_obs_steps", "n_action_steps", "horizon", "action_repeat"):
        here = getattr(task, name)
        there = state.get(name, here) if name == "action_repeat" else getattr(planner.config, name)  # it is younger
        if there != here:
            yield f"env.{name}", there, here


def _sizes(planner: Configured, task: EnvConfig) -> Iterator[tuple[str, Any, Any]]:
    """(name, the planner's, the task's) of each size that differs; makes the environment, without drawing."""
    environment = make_env(task, "raycast")
    found = {
        "action_size": environment.task.action_size,
        "proprioception_size": environment.task.proprioception().size,
        "sensor_shape": sensor(planner.config.observation).shape(environment),
    }
    for name, here in found.items():
        there = getattr(planner.config, name)
        if there != here:
            yield name, there, here
