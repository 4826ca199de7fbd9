"""Which planner an evaluation measures: one of a folder, or one that is served elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.learning.lookup import as_planner_sees, as_planner_was_trained, find_planner
from sodp3d.models.critic import Choice
from sodp3d.models.loading import checkpoint_of, load_choice, load_planner_and_state
from sodp3d.models.planner import Planner
from sodp3d.rollouts.kept import of_choice
from sodp3d.serving.remote import RemotePlanner, is_served
from sodp3d.settings import TrainSettings


@dataclass(frozen=True)
class Measured:
    """A planner, what is said of it, and the configuration that it is evaluated under."""

    name: str  # where it came from, as records tell it
    planner: Planner | RemotePlanner
    state: dict[str, Any]  # what its checkpoint says of it
    digest: str  # by which its episodes are kept
    choice: Choice | None  # a server makes its own
    config: dict[str, Any]


@contextmanager
def planner_to_measure(config: dict[str, Any], device: torch.device) -> Iterator[Measured]:
    """The planner that `planner=` names, a folder or a server's address, or else the newest finished one."""
    if not is_served(config["planner"]):
        yield _loaded(config, device)
        return
    with RemotePlanner(config["planner"]) as remote:
        yield _served(config, remote)


def _loaded(config: dict[str, Any], device: torch.device) -> Measured:
    path = find_planner(config, ("finetune", "pretrain"))
    config = as_planner_was_trained(config, path)
    settings = TrainSettings.from_config(config)
    directory = checkpoint_of(path)  # once: a run that goes on meanwhile would have another newest one
    planner, state = load_planner_and_state(directory, device, **settings.sampler)
    choice = load_choice(directory, device, settings.evaluation.best_of)
    return Measured(str(path), planner, state, checkpoint.digest_of(directory), choice, config)


def _served(config: dict[str, Any], remote: RemotePlanner) -> Measured:
    """Raises InputError where the configuration asks for another sampler than the server's."""
    name = config["planner"]
    config = as_planner_sees(config, remote.config, name)
    settings = TrainSettings.from_config(config)
    if remote.config.sampled(**settings.sampler) != remote.config:
        raise InputError(
            f"model.sampling_steps, evaluation.eta, evaluation.sigma_floor: {name} samples by its own, "
            f"{remote.config.inference_steps}, {remote.config.eta} and {remote.config.sigma_floor}; leave them out."
        )
    if settings.evaluation.best_of not in (None, remote.count):
        raise InputError(
            f"evaluation.best_of: {name} takes the best of {remote.count}; leave it out, or start the server with "
            f"best_of={settings.evaluation.best_of}."
        )
    return Measured(name, remote, remote.state, of_choice(remote.digest, remote.count), None, config)
