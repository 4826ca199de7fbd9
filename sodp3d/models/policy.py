"""Who acts in episodes: the protocol of policies, and what those that are learned have in common.

Shape letters: B batch, To observed steps, Tp planned steps, Ta executed steps, Da action size, F = To * 128 features.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sodp3d.core import registry
from sodp3d.core.errors import InputError
from sodp3d.data.dataset import WindowDataset
from sodp3d.data.normalizer import Normalizer
from sodp3d.envs.config import EnvConfig
from sodp3d.models.encoders import ObservationEncoder
from sodp3d.models.policy_config import MethodConfig, PolicyConfig
from sodp3d.settings import ModelSettings, TrainSettings


class Policy(Protocol):
    """Acts in many episodes at once, each with a memory of its own, so that one acts alike whoever is beside it."""

    def begin(self, task: EnvConfig, seed: int) -> Any:
        """What it remembers of a new episode of `task`: its random numbers, which task it is, a recurrent state."""
        ...

    def act(self, observation: Mapping[str, NDArray[Any]], memories: Sequence[Any]) -> NDArray[Any]:
        """Raw observation, each key (B, To, ...), and B memories, which it may change -> raw actions (B, Ta, Da)."""
        ...


@dataclass
class Memory:
    """What a learned policy remembers of one episode."""

    generator: torch.Generator  # all of its random numbers, from the episode's seed
    task: int = 0  # place in `config.tasks`, for methods that learn which task it is
    steps: int = 0  # control steps that it has decided
    held: Any = None  # the method's own


class Window(NamedTuple):
    """Which steps of an episode a method learns from at once, around a current one."""

    horizon: int  # steps with their actions
    observed: int  # the first of them that are observed too
    past: int  # those before the current one


@contextmanager
def as_it_acts(policy: object) -> Iterator[None]:
    """Meanwhile a policy that learns is as when it acts, without dropout; afterwards as it was."""
    if not isinstance(policy, LearnedPolicy):
        yield
        return
    training = policy.training
    policy.eval()
    yield
    policy.train(training)


class LearnedPolicy(nn.Module, ABC):
    """What `method=` names: a policy that learns from windows of episodes. Units are raw outside.

    A method says below what it learns from, and implements `losses`, `act` and, to remember more, `begin`.
    """

    settings: ClassVar[type[ModelSettings]] = ModelSettings  # the section `model`
    config_type: ClassVar[type[PolicyConfig]] = MethodConfig
    labels: ClassVar[tuple[str, ...]] = ()  # of a window, beside what was observed: "task" (B,), "return" (B,)
    default_sampling: ClassVar[Mapping[str, Any]] = {}  # of a new one that denoises: sampling_steps, eta, sigma_floor
    compiled: ClassVar[tuple[str, ...]] = ("encoder",)  # parts for pretrain.compile
    tunable: ClassVar[bool] = False  # whether mode=finetune can tune it

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.normalizer = Normalizer(config.normalized_sizes())
        self.encoder = ObservationEncoder(
            config.observation, config.sensor_shape, config.proprioception_size, config.encoder
        )

    @classmethod
    def window(cls, task: EnvConfig, model: Any) -> Window:
        """The windows to learn from; by default a plan's. model: the section."""
        return Window(task.horizon, task.n_obs_steps, task.n_obs_steps - 1)

    @classmethod
    def configured(cls, shared: Mapping[str, Any], tasks: Sequence[str], settings: TrainSettings) -> PolicyConfig:
        """The configuration of a new one. shared: the fields of `PolicyConfig`."""
        return MethodConfig(**shared, tasks=tuple(tasks), model=settings.model).sampled(**settings.sampler)

    def prepare(self, dataset: WindowDataset) -> None:
        """Take from the data what is not learned by gradients: how it is scaled."""
        self.normalizer.fit_ranges(dataset.ranges)

    @abstractmethod
    def losses(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """(B,) of each window. batch: raw "action" and observations of windows (B, ...), and the labels."""

    def loss(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """What is minimized: the mean of `losses`."""
        return self.losses(batch, generator).mean()

    @abstractmethod
    def act(self, observation: Mapping[str, NDArray[Any]], memories: Sequence[Any]) -> NDArray[Any]:
        """As `Policy.act`."""

    def begin(self, task: EnvConfig, seed: int) -> Any:
        """As `Policy.begin`. Raises InputError for a task that a method which tells tasks apart has not learned."""
        place = self.place_of(task.name) if "task" in self.labels else 0
        return Memory(torch.Generator().manual_seed(seed), place)

    def place_of(self, task: str) -> int:
        """Where a task stands among those learned. Raises InputError for another."""
        if task not in self.config.tasks:
            raise InputError(
                f"env: this policy tells its tasks apart, and {task} is none of them: {', '.join(self.config.tasks)}."
            )
        return int(self.config.tasks.index(task))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def encode(self, observation: Mapping[str, Tensor], steps: int | None = None) -> Tensor:
        """Raw observation, agent_pos (B, To, Dp) and the sensor's key (B, To, ...), -> features (B, F).

        steps: another number of observed steps than To. Raises InputError for what is missing or of another shape.
        """
        normalized = {}
        for key, shape in self.config.observation_shapes(steps).items():
            if key not in observation:
                raise InputError(f"observation: key {key!r} is missing; got {', '.join(sorted(observation))}.")
            if tuple(observation[key].shape[1:]) != shape:
                raise InputError(
                    f"observation.{key}: expected shape (B, {str(shape)[1:-1]}), got {tuple(observation[key].shape)}."
                )
            scaled = key in self.normalizer.sizes
            normalized[key] = self.normalizer.normalize(key, observation[key]) if scaled else observation[key]
        return self.encoder(normalized)

    def on_device(self, observation: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """Arrays of roll-outs as tensors at home."""
        return {key: torch.as_tensor(values).to(self.device) for key, values in observation.items()}

    def actions(self, normalized: Tensor) -> Tensor:
        """Actions (..., Da) in raw units; clipped to the data's range, which noise may leave."""
        return self.normalizer.unnormalize("action", normalized.clamp(-1, 1))


def method_class(name: str) -> type[LearnedPolicy]:
    """What `method=name` names. Raises InputError for an unknown one."""
    kind: type[LearnedPolicy] = registry.choose(registry.METHODS, name, "method")
    return kind


def require_single_steps(method: str, task: EnvConfig, observed: int) -> None:
    """Raise InputError where a method that acts at every step is to act in chunks, or to observe other steps."""
    for name, given, wanted in (
        ("n_action_steps", task.n_action_steps, 1),
        ("n_obs_steps", task.n_obs_steps, observed),
    ):
        if given != wanted:
            raise InputError(f"env.{name}: method={method} acts at every step; expected {wanted}, got {given}.")


def drawn(memories: Sequence[Memory], *shape: int) -> Tensor:
    """Unit normal noise (B, *shape) on the CPU, each episode's from its own generator."""
    return torch.stack([torch.randn(shape, generator=memory.generator) for memory in memories])
