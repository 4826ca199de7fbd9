"""Noise schedule, forward noising, and DDIM moments with one denoising step per sample.

Shape letters: B batch, Tp planned steps, Da action size, K training steps, K' inference steps.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sodp3d.core.errors import InputError

PREDICTIONS = ("epsilon", "sample")
MAX_BETA = 0.999


def cosine_alpha_bar(steps: int) -> Tensor:
    """Squared-cosine schedule (Nichol and Dhariwal 2021, s = 0.008, beta <= 0.999) -> alpha_bar (K,) float64."""
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    curve = torch.cos((time + 0.008) / 1.008 * torch.pi / 2) ** 2
    beta = (1 - curve[1:] / curve[:-1]).clamp(max=MAX_BETA)
    return torch.cumprod(1 - beta, dim=0)


def trailing_timesteps(steps: int, inference_steps: int) -> Tensor:
    """K' timesteps from K - 1 downwards, K / K' apart -> (K',) int64, descending.

    Raises InputError where K' does not divide K: the previous timestep is then not the next entry of the list, and
    a scheduler that subtracts a fixed stride silently integrates along the wrong times.
    """
    if inference_steps < 1 or steps % inference_steps:
        divisors = ", ".join(str(n) for n in range(1, steps + 1) if steps % n == 0)
        raise InputError(
            f"sampling_steps: expected a divisor of the planner's {steps} denoising steps ({divisors}), "
            f"got {inference_steps}."
        )
    return torch.arange(steps, 0, -(steps // inference_steps)) - 1


@dataclass(frozen=True)
class ChainOptions:
    """How a denoising chain is sampled, and so what its likelihood is; one object for both keeps them the same.

    eta: 0 deterministic DDIM, 1 as noisy as DDPM. sigma_floor: smallest standard deviation of a step, in normalized
    action units, applied to the `floor_steps` "all", "last" or "all_but_last". A step whose standard deviation is 0
    (the last one, unless floored) adds no noise and has no likelihood: sums over steps leave it out.
    noise_clip: bound on unit noise (DPPO: 3), None = none.
    reduction: over the elements of a plan. "mean" (DPPO): the sum over 100 elements makes a ratio explode after any
    update; the mean is that ratio's 100th root, so clip bounds do not depend on Da or Ta.
    rows: "executed" scores only the steps that were executed, since the others had no influence on the reward: Ta, or
    fewer in a chunk that the episode's end cut; "all" scores all Tp.
    """

    eta: float = 1.0
    sigma_floor: float = 0.1
    floor_steps: str = "all"
    noise_clip: float | None = None
    reduction: str = "mean"
    rows: str = "executed"

    def __post_init__(self) -> None:
        valid = {
            "floor_steps": ("all", "last", "all_but_last"),
            "reduction": ("mean", "sum"),
            "rows": ("executed", "all"),
        }
        for key, values in valid.items():
            if getattr(self, key) not in values:
                raise InputError(f"{key}: expected one of {', '.join(values)}, got {getattr(self, key)!r}.")
        if self.eta < 0 or self.sigma_floor < 0:
            raise InputError(f"eta and sigma_floor must not be negative, got {self.eta} and {self.sigma_floor}.")


class Chain(NamedTuple):
    """A denoising chain in normalized action units: latents (B, K'+1, Tp, Da) from x_K' to x_0.

    means: (B, K', Tp, Da) of the normal that each step was drawn from; its deviation follows from the ChainOptions.
    """

    latents: Tensor
    means: Tensor


class Diffusion(nn.Module):
    """K noising steps for training; K' DDIM steps (trailing spacing, final alpha_bar 1, x0 clipped to +-1) for use.

    step_index counts the DDIM steps as they are taken: 0 goes from pure noise x_K', K' - 1 ends at x_0.
    Raises InputError on an unknown prediction or a K' that does not divide K.
    """

    alpha_bar: Tensor
    timesteps: Tensor
    alpha: Tensor
    alpha_previous: Tensor

    def __init__(self, steps: int = 100, inference_steps: int = 10, prediction: str = "epsilon") -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise InputError(f"prediction: expected one of {', '.join(PREDICTIONS)}, got {prediction!r}.")
        self.steps, self.inference_steps, self.prediction = steps, inference_steps, prediction
        alpha_bar = cosine_alpha_bar(steps)
        timesteps = trailing_timesteps(steps, inference_steps)
        previous = torch.cat([alpha_bar[timesteps[1:]], torch.ones(1, dtype=torch.float64)])
        # Not persistent: the configuration determines them, so a checkpoint need not.
        self.register_buffer("alpha_bar", alpha_bar.float(), persistent=False)
        self.register_buffer("timesteps", timesteps, persistent=False)
        self.register_buffer("alpha", alpha_bar[timesteps].float(), persistent=False)
        self.register_buffer("alpha_previous", previous.float(), persistent=False)

    def add_noise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """sqrt(alpha_bar) clean + sqrt(1 - alpha_bar) noise. clean, noise: (B, Tp, Da); timestep: (B,), 0 to K-1."""
        alpha = self.alpha_bar[timestep].view(-1, 1, 1)
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    def target(self, clean: Tensor, noise: Tensor) -> Tensor:
        """What the network learns to predict: the noise (SODP eq. 7) or the clean plan (DP3)."""
        return noise if self.prediction == "epsilon" else clean

    def sigma(self, step_index: Tensor, eta: float) -> Tensor:
        """Standard deviation of the DDIM step, (B,) from (B,) indices (DDIM eq. 16). Exactly 0 at the last step."""
        alpha, previous = self.alpha[step_index], self.alpha_previous[step_index]
        variance = (1 - previous) / (1 - alpha) * (1 - alpha / previous)
        return eta * variance.sqrt()

    def ddim_moments(self, model_output: Tensor, x_k: Tensor, step_index: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        """Mean (B, Tp, Da) and standard deviation (B, 1, 1) of x_{k-1} given x_k (DDIM eq. 12).

        model_output, x_k: (B, Tp, Da); step_index: (B,) int64, each sample its own.
        The noise estimate is kept as predicted when x0 is clipped, as diffusers does by default and DP3 with it (DPPO
        recomputes it from the clipped x0). So gradient still reaches the network where x0 is clipped, which
        is nearly everywhere in the first steps: there sqrt(alpha_bar) is about 0 and x0 = (x_k - ...) / 0.
        """
        alpha = self.alpha[step_index].view(-1, 1, 1)
        previous = self.alpha_previous[step_index].view(-1, 1, 1)
        sigma = self.sigma(step_index, eta).view(-1, 1, 1)
        if self.prediction == "epsilon":
            noise = model_output
            clean = (x_k - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        else:
            clean = model_output
            noise = (x_k - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        # The radicand is 0 in exact arithmetic at the last step and may round below it.
        direction = (1 - previous - sigma.square()).clamp(min=0).sqrt()
        return previous.sqrt() * clean.clamp(-1, 1) + direction * noise, sigma
