"""The planner: normalizer, observation encoder and denoiser in one module that plans from raw observations.

Shape letters: B batch, To observed steps, Tp planned steps, Ta executed steps, Da action size, Dp proprioception size,
K training steps, K' inference steps, F = To * 128 features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import mse_loss

from sodp3d.core import draws
from sodp3d.core.errors import InputError
from sodp3d.envs.config import EnvConfig
from sodp3d.models.diffusion import Chain, ChainOptions, Diffusion
from sodp3d.models.policy import LearnedPolicy
from sodp3d.models.policy_config import PolicyConfig
from sodp3d.models.sampled import Chooser, Planning, Sampled, plans_of
from sodp3d.models.unet import UNETS, UNet1d
from sodp3d.settings import TrainSettings
from sodp3d.vision.sensors import sensor

Observation = Mapping[str, Tensor | np.ndarray]
_LEAST_ROWS = 8  # of a batch that is filled up
Plan = TypeVar("Plan", Tensor, np.ndarray)


@dataclass(frozen=True)
class PlannerConfig(PolicyConfig):
    """All that determines a planner's architecture, and what it must be shown; JSON-able.

    Raises InputError on values that cannot work.
    """

    unet: str = "simple_dp3"
    diffusion_steps: int = 100  # K
    inference_steps: int = 10  # K'
    eta: float = 1.0  # of the sampler: 0 deterministic, 1 as noisy as DDPM
    sigma_floor: float = 0.0  # of the sampler, normalized action units
    prediction: str = "epsilon"  # epsilon | sample
    distilled: int | None = None  # in how many steps it learned to sample; None: in as many as you like

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distilled is not None and self.inference_steps > self.distilled:
            raise InputError(
                f"model.sampling_steps: this planner was distilled to plan in {self.distilled}, but "
                f"{self.inference_steps} came; leave it to the planner (model.sampling_steps=null)."
            )
        if self.unet not in UNETS:
            raise InputError(f"unet: expected one of {', '.join(UNETS)}, got {self.unet!r}.")

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampler, as options name it."""
        return {"sampling_steps": self.inference_steps, "eta": self.eta, "sigma_floor": self.sigma_floor}

    @property
    def network(self) -> dict[str, Any]:
        """What the network is made of, as options name it."""
        return {
            "prediction": self.prediction,
            "denoising_steps": self.diffusion_steps,
            "unet": self.unet,
            "encoder": self.encoder or sensor(self.observation).encoder,
        }

    @property
    def denoising_steps(self) -> int:
        """K."""
        return self.diffusion_steps

    @property
    def executed_steps(self) -> slice:
        """Which of a plan's Tp steps are executed before planning again: Ta from the last observed step on."""
        start = self.n_obs_steps - 1
        return slice(start, start + self.n_action_steps)

    def sampled(
        self, sampling_steps: int | None = None, eta: float | None = None, sigma_floor: float | None = None
    ) -> Self:
        """The same network, sampled otherwise where something is given."""
        return replace(
            self,
            inference_steps=self.inference_steps if sampling_steps is None else sampling_steps,
            eta=self.eta if eta is None else eta,
            sigma_floor=self.sigma_floor if sigma_floor is None else sigma_floor,
        )

    def same_network(self, other: "PlannerConfig") -> bool:
        """Whether weights of one suit the other: equal but for how they are sampled."""
        return self == other.sampled(self.inference_steps, self.eta, self.sigma_floor)


class Planner(LearnedPolicy):
    """Plans Tp actions from To observations by denoising. Observations and actions are in raw units outside."""

    config: PlannerConfig
    config_type = PlannerConfig
    default_sampling: ClassVar[Mapping[str, Any]] = {
        "sampling_steps": PlannerConfig.inference_steps,
        "eta": PlannerConfig.eta,
        "sigma_floor": PlannerConfig.sigma_floor,
    }
    compiled = ("unet", "encoder")
    tunable = True

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__(config)
        self.unet = UNet1d(config.action_size, config.feature_size, UNETS[config.unet])
        self.diffusion = Diffusion(config.diffusion_steps, config.inference_steps, config.prediction)

    @classmethod
    def configured(cls, shared: Mapping[str, Any], tasks: Sequence[str], settings: TrainSettings) -> PlannerConfig:
        """As `LearnedPolicy.configured`; a planner is told no tasks."""
        made = settings.model
        config = PlannerConfig(
            **shared, unet=made.unet, diffusion_steps=made.denoising_steps, prediction=made.prediction
        )
        return config.sampled(**settings.sampler)

    def begin(self, task: EnvConfig, seed: int) -> Planning:
        """As `Policy.begin`."""
        return Sampled(self, self.sampler).begin(task, seed)

    def act(self, observation: Mapping[str, NDArray[Any]], memories: Sequence[Planning]) -> NDArray[Any]:
        """As `Policy.act`, by the planner's own sampler."""
        return Sampled(self, self.sampler).act(observation, memories)

    @property
    def captured(self) -> bool:
        """Whether the denoiser is compiled, once for each size of batch (`models.capture`)."""
        return getattr(self.unet, "_compiled_call_impl", None) is not None

    @property
    def sampler(self) -> ChainOptions:
        """How it samples, in evaluations and in `plan`."""
        return ChainOptions(eta=self.config.eta, sigma_floor=self.config.sigma_floor)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.diffusion.alpha.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.diffusion.alpha.dtype

    def features(self, observation: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Features (B, F) of a raw observation. Cached ones, as a tensor or under the key "features", pass through."""
        if isinstance(observation, Tensor):
            return observation
        return observation["features"] if "features" in observation else self.encode(observation)

    def losses(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Denoising loss (SODP eq. 7) of each: squared error of the predicted noise, or clean plan, at a random step.

        batch: raw "action" (B, Tp, Da) with the raw observation keys, or with "features" (B, F) instead of them."""
        clean = self.normalizer.normalize("action", batch["action"])
        return self.denoising_loss(self.features(batch), clean, generator, "none").mean((1, 2))

    def denoising_loss(
        self, features: Tensor, clean: Tensor, generator: torch.Generator | None = None, reduction: str = "mean"
    ) -> Tensor:
        """The same loss from features (B, F) and normalized plans (B, Tp, Da)."""
        size, device = len(clean), clean.device
        timestep = draws.integers(self.config.diffusion_steps, (size,), generator, device=device)
        noise = draws.normal(clean.shape, generator, device=device, dtype=clean.dtype)
        predicted = self.unet(self.diffusion.add_noise(clean, noise, timestep), timestep, features)
        return mse_loss(predicted, self.diffusion.target(clean, noise), reduction=reduction)

    def moments(
        self, features: Tensor | list[Tensor], latent: Tensor, step_index: Tensor, options: ChainOptions
    ) -> tuple[Tensor, Tensor]:
        """Mean (B, Tp, Da) and floored standard deviation (B, 1, 1) of the step from latent (B, Tp, Da).

        features (B, F), or what the denoiser's `observe` made of them; step_index (B,), or (1,) for all alike.
        """
        output = self.unet(latent, self.diffusion.timesteps[step_index], features)
        mean, sigma = self.diffusion.ddim_moments(output, latent, step_index, options.eta)
        return mean, self._floored(sigma, step_index.view(-1, 1, 1), options)

    def _floored(self, sigma: Tensor, step_index: Tensor, options: ChainOptions) -> Tensor:
        last = step_index == self.config.inference_steps - 1
        floored = {"all": torch.ones_like(last), "last": last, "all_but_last": ~last}[options.floor_steps]
        return torch.where(floored, sigma.clamp(min=options.sigma_floor), sigma)

    def random_steps(self, options: ChainOptions) -> Tensor:
        """Indices (n,) of the steps that draw noise under `options`: those that have a likelihood."""
        index = torch.arange(self.config.inference_steps, device=self.device)
        return index[self.deviations(index, options) > 0]

    def deviations(self, step_index: Tensor, options: ChainOptions) -> Tensor:
        """Floored standard deviation (n,) of the steps step_index (n,)."""
        return self._floored(self.diffusion.sigma(step_index, options.eta), step_index, options)

    def chain_means(self, features: Tensor, latents: Tensor, step_index: Tensor, options: ChainOptions) -> Tensor:
        """Means of the steps step_index (n,) of given chains, in one network call.

        features (B, F), latents (B, K'+1, Tp, Da) -> (B, n, Tp, Da).
        """
        size, steps = len(latents), len(step_index)
        observed = [part.repeat_interleave(steps, dim=0) for part in self.unet.observe(features)]
        mean, _ = self.moments(observed, latents[:, step_index].flatten(0, 1), step_index.repeat(size), options)
        return mean.unflatten(0, (size, steps))

    def scored(self, executed: Tensor, options: ChainOptions) -> Tensor:
        """Which of a plan's Tp steps its likelihood is of, (B, Tp), where executed (B,) of them were."""
        step = torch.arange(self.config.horizon, device=executed.device)
        if options.rows == "all":
            return (step >= 0).expand(len(executed), -1)
        start = self.config.n_obs_steps - 1
        return (step >= start) & (step < start + executed[:, None])

    def sample_chain(
        self, observation: Mapping[str, Tensor] | Tensor, noise: Tensor, options: ChainOptions | None = None
    ) -> Chain:
        """Denoise, keeping every latent. observation raw, or features (B, F); noise (B, K'+1, Tp, Da) of unit normal.

        noise[:, 0] is x_K', noise[:, i + 1] that of step i, so a caller decides every bit of randomness per episode.
        """
        options = options or ChainOptions()
        features, size = self.features(observation), len(noise)
        if options.noise_clip is not None:
            noise = noise.clamp(-options.noise_clip, options.noise_clip)
        if self.captured:  # of few sizes
            features, noise = filled(features), filled(noise)
        observed = self.unet.observe(features)
        latents, means = [noise[:, 0]], []
        for index in range(self.config.inference_steps):
            mean, sigma = self.moments(observed, latents[-1], torch.tensor([index], device=noise.device), options)
            latents.append(mean + sigma * noise[:, index + 1])
            means.append(mean)
        return Chain(torch.stack(latents, dim=1)[:size], torch.stack(means, dim=1)[:size])

    def executed(self, plan: Plan) -> Plan:
        """The Ta executed steps of a plan (..., Tp, Da) -> (..., Ta, Da): they start at the last observed step."""
        return plan[..., self.config.executed_steps, :]

    @torch.no_grad()
    def plan(
        self,
        observation: Observation,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        eta: float | None = None,
        sigma_floor: float | None = None,
        choice: Chooser | None = None,
        elapsed: float | Tensor = 0.0,
    ) -> Any:
        """Plan from a raw observation: {"agent_pos": (B, To, Dp), sensor key: (B, To, ...)} -> (B, Tp, Da) raw actions.

        Takes numpy arrays or tensors and gives back the same kind; without the batch dimension, gives (Tp, Da).
        noise: (B, K'+1, Tp, Da) of unit normal; drawn from generator (the global one if None) where not given.
        eta, sigma_floor: of the sampler; the planner's own where not given, which matters: on door the same planner had
        76 % with eta 1 and 36 % with eta 0.
        choice: draws several plans and takes the best (`load_choice`); noise is then (B, N, K'+1, Tp, Da). elapsed:
        share of the time limit that is gone, or (B,) of them, for a critic that was told it.
        Raises InputError naming the key for what is missing, of another shape, not numeric or not finite: a plan of it
        would be no plan.
        """
        arrays = not any(isinstance(value, Tensor) for value in observation.values())
        tensors = self._shown(observation)
        single = tensors["agent_pos"].ndim == 2
        if single:
            tensors = {key: value[None] for key, value in tensors.items()}
        features = self.encode(tensors)
        size, count = len(features), plans_of(choice)
        if noise is None:
            noise = self.noise(size * count, generator)
        own = self.config.sampled(None, eta, sigma_floor)
        options = ChainOptions(eta=own.eta, sigma_floor=own.sigma_floor)
        if choice is None:
            chain = self.sample_chain(features, noise.to(features), options)
        else:
            several = noise.to(features).view(size, count, *noise.shape[-3:])
            chain = choice.sample(self, features, torch.as_tensor(elapsed).to(features).expand(size), several, options)
        plan = self.actions(chain.latents[:, -1])
        plan = plan[0] if single else plan
        return plan.cpu().numpy() if arrays else plan

    def _shown(self, observation: Observation) -> dict[str, Tensor]:
        """An observation from outside as tensors at home, with or without the batch. Raises InputError as `plan`."""
        shapes, found = self.config.observation_shapes(), {}
        sizes = {}
        for key, shape in shapes.items():
            if key not in observation:
                raise InputError(f"observation: key {key!r} is missing; got {', '.join(sorted(observation))}.")
            value = _as_tensor(key, observation[key])
            if tuple(value.shape) != shape and (tuple(value.shape[1:]) != shape or len(value) == 0):
                raise InputError(
                    f"observation.{key}: expected shape (B, {str(shape)[1:-1]}) with B at least 1, or {shape}, "
                    f"got {tuple(value.shape)}."
                )
            if not value.isfinite().all():
                place = tuple((~value.isfinite()).nonzero()[0].tolist())
                raise InputError(
                    f"observation.{key}: expected finite numbers, got {float(value[place])} at index {place}."
                )
            sizes[key] = value.shape[: value.ndim - len(shape)]
            found[key] = value.to(self.device, self.dtype if key in self.normalizer.sizes else None)
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{key} {size[0] if size else 'no batch'}" for key, size in sizes.items())
            raise InputError(f"observation: expected one batch size for all keys, got {told}.")
        return found

    def noise(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        """Unit normal noise of a whole chain, (size, K'+1, Tp, Da), drawn on the generator's device."""
        shape = (size, self.config.inference_steps + 1, self.config.horizon, self.config.action_size)
        device = generator.device if generator is not None else self.device
        return torch.randn(shape, generator=generator, device=device).to(self.device)


def filled(rows: Tensor) -> Tensor:
    """(B, ...) with the last row repeated until B is a power of two, of at least eight."""
    wanted = max(_LEAST_ROWS, 1 << (len(rows) - 1).bit_length())
    return torch.cat([rows, rows[-1:].expand(wanted - len(rows), *rows.shape[1:])])


def _as_tensor(key: str, value: Any) -> Tensor:
    """A tensor of numbers, from what people have: arrays of any integer type, byte order or stride too."""
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise InputError(f"observation.{key}: expected an array of numbers, got one of {array.dtype}.")
    kind = array.dtype.newbyteorder("=") if array.dtype.kind == "f" or array.dtype == np.uint8 else np.dtype(np.float64)
    return torch.from_numpy(np.array(array, kind))
