"""The importance-sampled policy gradient over denoising steps (SODP eq. 12), and what its reward can be.

SODP weighs each plan with its own chunk's reward, without a critic: `credit=chunk`, `baseline=none`. The others lower
the variance: chunk rewards mostly tell when in the episode a chunk happened, which a baseline removes.

Shape letters: B batch, n denoising steps that draw noise, C chunks of an episode, E episodes, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sodp3d.core.errors import InputError

CREDITS = ("chunk", "return_to_go", "gae")
BASELINES = ("none", "mean", "time", "value")
LOG_RATIO_BOUND = 20.0  # far outside any clip: it only keeps exp() and its product with a reward of 0 finite


def importance_loss(
    reward: Tensor, log_ratio: Tensor, clip: float | Tensor, weight: float | Tensor = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 12: mean over plans of the sum over their steps of max(-r rho, -r clip(rho, 1 - clip, 1 + clip)).

    The maximum is outside the product with r, so it is the pessimistic side for negative rewards too (the paper's
    eq. 12 and 19 disagree on it). reward: (B,); log_ratio: (B, n); clip, and weight of each step: scalars or (n,).
    Metrics, all detached scalars: clip_fraction (share of ratios outside the bounds), ratio_mean, ratio_max.
    """
    ratio = log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    bound = torch.as_tensor(clip).to(ratio)
    bounded = torch.minimum(torch.maximum(ratio, 1 - bound), 1 + bound)
    cost = -reward[:, None] * weight
    loss = torch.maximum(cost * ratio, cost * bounded).sum(1).mean()
    with torch.no_grad():
        metrics = {
            "clip_fraction": ((ratio - 1).abs() > bound).float().mean(),
            "ratio_mean": ratio.mean(),
            "ratio_max": ratio.max(),
        }
    return loss, metrics


def kl_exceeded(metrics: dict[str, Tensor], target_kl: float | None) -> bool:
    """Whether the policy has left the one that acted by more than target_kl, so that what it did says little now."""
    return target_kl is not None and float(metrics["kl"]) > target_kl


def growing_clip(clip: float, first: float | None, steps: int, device: torch.device | str = "cpu") -> Tensor:
    """Bounds (n,) along the chain, growing exponentially from `first` to `clip` (DPPO); all `clip` without a first."""
    fraction = torch.linspace(0, 1, steps, device=device) if steps > 1 else torch.ones(1, device=device)
    start = clip if first is None else first
    return start * (clip / start) ** fraction if start > 0 else clip * fraction


def denoising_discounts(discount: float, steps: int, device: torch.device | str = "cpu") -> Tensor:
    """Weights (n,) of the steps: 1 for the last, `discount` once more for each before it (DPPO)."""
    return discount ** torch.arange(steps - 1, -1, -1, device=device)


@dataclass(frozen=True)
class CreditOptions:
    """How chunk rewards become the weight of a plan. Raises InputError on unknown names.

    credit: "chunk" the chunk's own reward (SODP), "return_to_go" the discounted sum from it on, "gae" generalised
    advantage estimation. baseline, subtracted: "none", "mean" over all chunks, "time" over chunks of the same index,
    "value" a value head's estimate. "gae" contains the value already and takes "none", "mean" or "time".
    discount: per chunk. gae_lambda: of gae.
    """

    credit: str = "chunk"
    baseline: str = "none"
    discount: float = 1.0
    gae_lambda: float = 0.95

    def __post_init__(self) -> None:
        for key, valid in (("credit", CREDITS), ("baseline", BASELINES)):
            if getattr(self, key) not in valid:
                raise InputError(f"{key}: expected one of {', '.join(valid)}, got {getattr(self, key)!r}.")
        if self.credit == "gae" and self.baseline == "value":
            raise InputError("baseline: credit=gae subtracts the value already; use baseline=none, mean or time.")

    @property
    def needs_value(self) -> bool:
        """Whether a value head has to be trained."""
        return self.credit == "gae" or self.baseline == "value"


def return_to_go(rewards: Tensor, discount: float, final_value: float = 0.0) -> Tensor:
    """G_t = r_t + discount * G_{t+1}, from G_C = final_value. rewards: (C,) -> (C,)."""
    returns, following = torch.empty_like(rewards), torch.as_tensor(final_value).to(rewards)
    for step in reversed(range(len(rewards))):
        following = rewards[step] + discount * following
        returns[step] = following
    return returns


def gae(rewards: Tensor, values: Tensor, discount: float, gae_lambda: float, final_value: float = 0.0) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016) within one episode.

    rewards, values: (C,) -> (C,). final_value: of the state after the last chunk: 0 where the episode terminated,
    its estimate where it was truncated. Episodes are given apart, so nothing leaks from one into the next.
    """
    following = torch.cat([values[1:], torch.as_tensor([final_value]).to(values)])
    residuals = rewards + discount * following - values
    return return_to_go(residuals, discount * gae_lambda)


def credits_and_targets(
    rewards: Sequence[Tensor],
    options: CreditOptions,
    values: Sequence[Tensor] | None = None,
    final_values: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight of each plan, and the value head's regression target, over all episodes.

    rewards: E of (C_e,), undiscounted chunk rewards; values: E of (C_e,), needed by gae and baseline=value;
    final_values: E, value of the state after each episode: 0 (as without it) where it terminated, the estimate where
    it was cut by a time limit that the policy cannot see. -> two (sum of C_e,), in the order of the episodes.
    """
    if options.needs_value and values is None:
        raise InputError(f"credit={options.credit}, baseline={options.baseline} need a value head's estimates.")
    final = final_values if final_values is not None else [0.0] * len(rewards)
    if options.credit == "gae":
        assert values is not None
        pairs = list(zip(rewards, values, final, strict=True))
        credit = [gae(r, v, options.discount, options.gae_lambda, last) for r, v, last in pairs]
        targets = [advantage + v for advantage, (_, v, _) in zip(credit, pairs, strict=True)]
    elif options.credit == "return_to_go":
        credit = [return_to_go(r, options.discount, last) for r, last in zip(rewards, final, strict=True)]
        targets = credit
    else:
        credit = targets = list(rewards)
    return _subtract_baseline(credit, options.baseline, values), torch.cat(targets)


def _subtract_baseline(credit: list[Tensor], baseline: str, values: Sequence[Tensor] | None) -> Tensor:
    flat = torch.cat(credit)
    if baseline == "mean":
        return flat - flat.mean()
    if baseline == "time":
        index = torch.cat([torch.arange(len(c), device=c.device) for c in credit])
        longest = max(len(c) for c in credit)
        sums = flat.new_zeros(longest).index_add_(0, index, flat)
        return flat - (sums / torch.bincount(index, minlength=longest))[index]
    if baseline == "value":
        assert values is not None
        return flat - torch.cat(list(values))
    return flat


class RunningScale:
    """Running standard deviation of all values seen, to divide rewards by; their sign and zero are kept."""

    def __init__(self) -> None:
        self._statistics = torch.zeros(3, dtype=torch.float64)  # count, mean, sum of squared deviations

    def update(self, values: Tensor) -> None:
        """Take in values of any shape (Chan's parallel form of Welford's update)."""
        new = values.detach().double().flatten().cpu()
        if len(new) == 0:
            return
        count, mean, squares = self._statistics
        total, shift = count + len(new), new.mean() - mean
        self._statistics = torch.stack(
            [
                total,
                mean + shift * len(new) / total,
                squares + (new - new.mean()).square().sum() + shift**2 * count * len(new) / total,
            ]
        )

    def __call__(self, values: Tensor) -> Tensor:
        """values / standard deviation; unchanged as long as nothing varied."""
        return values / self.deviation

    @property
    def deviation(self) -> float:
        """The standard deviation; 1 as long as nothing varied."""
        count, _, squares = self._statistics.tolist()
        deviation = (squares / count) ** 0.5 if count > 1 else 0.0
        return deviation if deviation > 1e-8 else 1.0

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors."""
        return {"statistics": self._statistics.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self._statistics = state["statistics"].clone()


class ValueHead(nn.Module):
    """Expected credit from here on, from the planner's features (B, F), detached, and the time that is gone (B,)."""

    def __init__(self, feature_size: int, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(feature_size + 1, width), nn.Mish(), nn.Linear(width, width), nn.Mish(), nn.Linear(width, 1)
        )

    def forward(self, features: Tensor, elapsed: Tensor) -> Tensor:
        """features: (B, F), elapsed: (B,) share of the time limit, 0..1 -> (B,)."""
        return self.layers(torch.cat([features.detach(), elapsed[:, None]], dim=-1)).squeeze(-1)
