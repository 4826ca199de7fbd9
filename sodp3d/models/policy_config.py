"""What a checkpoint says of a policy: what it must be shown, what it gives, and what its network is made of.

Shape letters: B batch, To observed steps, Tp planned steps, Ta executed steps, Da action size, Dp proprioception size.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from sodp3d.core import registry
from sodp3d.core.errors import InputError
from sodp3d.core.sections import read_section
from sodp3d.models.encoders import FEATURE_SIZE
from sodp3d.settings import ModelSettings
from sodp3d.vision.sensors import sensor


def require_no_sampler(method: str, sampling_steps: int | None, eta: float | None, sigma_floor: float | None) -> None:
    """Raise InputError where something is given of a sampler, for a method that has none."""
    given = {"model.sampling_steps": sampling_steps, "evaluation.eta": eta, "evaluation.sigma_floor": sigma_floor}
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{name}: method={method} does not denoise, but {value} came; leave it out.")


@dataclass(frozen=True)
class PolicyConfig:
    """What every method's policy has; JSON-able. Raises InputError on values that cannot work."""

    observation: str  # the sensor, as `obs=` names it
    sensor_shape: tuple[int, ...]  # of one step: (N, 3) | (Ds,) | (3, H, W)
    proprioception_size: int  # Dp
    action_size: int  # Da
    n_obs_steps: int  # To
    horizon: int  # Tp
    n_action_steps: int  # Ta
    renderer: str | None = None  # of images only: who drew what it was trained on, egl | osmesa | raycast
    encoder: str | None = None  # how the sensor is read; None: by the sensor's own encoder
    method: str = "sodp"  # whose policy it is, an entry of registry.METHODS

    def __post_init__(self) -> None:
        sensor(self.observation)
        for item in fields(self):
            value = getattr(self, item.name)
            sizes = [value] if item.type is int else value if item.type == tuple[int, ...] else [1]
            if min(sizes, default=0) < 1:
                raise InputError(f"{item.name}: expected sizes of at least 1, got {value!r}.")
        if self.n_obs_steps - 1 + self.n_action_steps > self.horizon:
            raise InputError(
                f"n_action_steps: {self.n_action_steps} executed steps after {self.n_obs_steps - 1} past ones do not "
                f"fit in a plan of horizon={self.horizon} steps."
            )

    @property
    def sensor_key(self) -> str:
        """The sensor's key in observations: point_cloud, state or image."""
        return sensor(self.observation).key

    def observation_shapes(self, steps: int | None = None) -> dict[str, tuple[int, ...]]:
        """Shape of each observation key without the batch: (steps, ...), To of them if None."""
        steps = self.n_obs_steps if steps is None else steps
        return {"agent_pos": (steps, self.proprioception_size), self.sensor_key: (steps, *self.sensor_shape)}

    @property
    def feature_size(self) -> int:
        """F: of an encoded observation."""
        return self.n_obs_steps * 2 * FEATURE_SIZE

    def normalized_sizes(self) -> dict[str, int]:
        """Channels of what the normalizer scales: all but images."""
        sizes = {"action": self.action_size, "agent_pos": self.proprioception_size}
        return {**sizes, self.sensor_key: self.sensor_shape[-1]} if sensor(self.observation).scaled else sizes

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampler as options name it: sampling_steps, eta, sigma_floor; empty where it does not denoise."""
        return {}

    @property
    def network(self) -> dict[str, Any]:
        """What the network is made of, as options of `model.` name it."""
        return {}

    @property
    def denoising_steps(self) -> int | None:
        """K, where it denoises."""
        return None

    def sampled(
        self, sampling_steps: int | None = None, eta: float | None = None, sigma_floor: float | None = None
    ) -> Self:
        """The same network, sampled otherwise where something is given. Raises InputError where it does not denoise."""
        require_no_sampler(self.method, sampling_steps, eta, sigma_floor)
        return self

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping that `from_dict` turns back into an equal configuration."""
        return asdict(self) | {"sensor_shape": list(self.sensor_shape)}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises InputError on unknown or missing keys."""
        valid = {item.name for item in fields(cls)}
        if unknown := sorted(set(mapping) - valid):
            raise InputError(f"planner: unknown key {unknown[0]!r}; valid keys are {', '.join(sorted(valid))}.")
        try:
            return cls(**cls._typed({**mapping, "sensor_shape": tuple(mapping["sensor_shape"])}))
        except (TypeError, KeyError) as error:
            raise InputError(f"planner: incomplete configuration: {error}.") from error

    @classmethod
    def _typed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """JSON values as the fields have them."""
        return values


@dataclass(frozen=True)
class MethodConfig(PolicyConfig):
    """The configuration of every method but the planners': with the whole section `model` that it was made with."""

    tasks: tuple[str, ...] = ()  # by whose places a policy of several tasks knows them
    model: ModelSettings = field(default_factory=ModelSettings)
    sampling_steps: int | None = None  # K', eta and sigma_floor: None where it does not denoise
    eta: float | None = None
    sigma_floor: float | None = None

    @property
    def network(self) -> dict[str, Any]:
        """All of `model.` but the sampler."""
        return {name: value for name, value in asdict(self.model).items() if name != "sampling_steps"}

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampler, where it has one."""
        own = {"sampling_steps": self.sampling_steps, "eta": self.eta, "sigma_floor": self.sigma_floor}
        return {name: value for name, value in own.items() if value is not None}

    def sampled(
        self, sampling_steps: int | None = None, eta: float | None = None, sigma_floor: float | None = None
    ) -> Self:
        """The same network, sampled otherwise where something is given. Raises InputError where it does not denoise."""
        own = dict(self._kind().default_sampling)
        if not own:
            return super().sampled(sampling_steps, eta, sigma_floor)
        given = {"sampling_steps": sampling_steps, "eta": eta, "sigma_floor": sigma_floor}
        return replace(
            self, **own | self.sampling | {name: value for name, value in given.items() if value is not None}
        )

    @property
    def denoising_steps(self) -> int | None:
        """K, where it denoises."""
        return self.model.denoising_steps if self.sampling else None

    def to_dict(self) -> dict[str, Any]:
        """As `PolicyConfig.to_dict`."""
        return super().to_dict() | {"tasks": list(self.tasks)}

    def _kind(self) -> Any:
        return registry.choose(registry.METHODS, self.method, "method")

    @classmethod
    def _typed(cls, values: dict[str, Any]) -> dict[str, Any]:
        kind = registry.choose(registry.METHODS, values["method"], "method")
        return {**values, "tasks": tuple(values["tasks"]), "model": read_section(kind.settings, values["model"])}
