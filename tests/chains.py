"""Likelihoods of whole denoising chains by torch.distributions, against which learning's closed forms are checked.

Shape letters: B batch, n steps that draw noise, K' sampling steps, Tp planned steps, Da action size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Normal

from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.planner import Planner


def chain_log_prob(
    planner: Planner,
    observation: Mapping[str, Tensor] | Tensor,
    latents: Tensor,
    options: ChainOptions | None = None,
    executed: int | None = None,
) -> Tensor:
    """Log-probability (B, n) of each step of given chains under the present parameters, over the rows that count.

    observation raw, or features (B, F); latents (B, K'+1, Tp, Da); executed: steps of each plan, all Ta if None.
    """
    options = options or ChainOptions()
    start, count = planner.config.n_obs_steps - 1, executed or planner.config.n_action_steps
    features, found = planner.features(observation), []
    for index in planner.random_steps(options).tolist():
        step_index = torch.full((len(latents),), index, device=latents.device)
        mean, sigma = planner.moments(features, latents[:, index], step_index, options)
        log_prob = Normal(mean, sigma).log_prob(latents[:, index + 1])
        log_prob = log_prob[:, start : start + count] if options.rows == "executed" else log_prob
        found.append(log_prob.mean((1, 2)) if options.reduction == "mean" else log_prob.sum((1, 2)))
    return torch.stack(found, dim=1)
