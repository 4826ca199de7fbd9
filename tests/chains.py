"""Likelihoods of whole denoising chains: learning draws one step of each, tests look at all.

Shape letters: B batch, F features, K' sampling steps, Tp planned steps, Da action size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.planner import Planner


def chain_moments(planner: Planner, features: Tensor, latents: Tensor, options: ChainOptions) -> tuple[Tensor, Tensor]:
    """Moments of every step of given chains, in one network call.

    features (B, F), latents (B, K'+1, Tp, Da) -> mean (B, K', Tp, Da) and standard deviation (B, K', 1, 1).
    """
    size, steps = len(latents), planner.config.inference_steps
    step_index = torch.arange(steps, device=latents.device).repeat(size)
    repeated = features.repeat_interleave(steps, dim=0)
    mean, sigma = planner.moments(repeated, latents[:, :-1].flatten(0, 1), step_index, options)
    return mean.unflatten(0, (size, steps)), sigma.unflatten(0, (size, steps))


def chain_log_prob(
    planner: Planner,
    observation: Mapping[str, Tensor] | Tensor,
    latents: Tensor,
    options: ChainOptions | None = None,
) -> Tensor:
    """Log-probability of each step of given chains under the present parameters.

    observation raw, or features (B, F); latents (B, K'+1, Tp, Da) -> (B, K').
    """
    options = options or ChainOptions()
    mean, sigma = chain_moments(planner, planner.features(observation), latents, options)
    return planner.step_log_prob(mean, sigma, latents[:, 1:], options)
