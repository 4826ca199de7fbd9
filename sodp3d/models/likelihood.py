"""What a chain's likelihood is made of: normals of one deviation each, their ratio and their divergence.

Two planners under the same ChainOptions draw a step from normals of the same deviation, so both are closed forms of
the two means. Shape letters: B batch, n steps, Tp planned steps, Da actions; "per element" is (B, n, Tp, Da).
"""

from torch import Tensor


def log_ratio(value: Tensor, mean: Tensor, old_mean: Tensor, sigma: Tensor) -> Tensor:
    """log N(value; mean, sigma) - log N(value; old_mean, sigma), per element. sigma broadcasts, (n, 1, 1)."""
    return ((value - old_mean).square() - (value - mean).square()) / (2 * sigma.square())


def divergence(mean: Tensor, old_mean: Tensor, sigma: Tensor) -> Tensor:
    """KL(N(mean, sigma) || N(old_mean, sigma)) = |mean - old_mean|^2 / (2 sigma^2), per element; symmetric."""
    return (mean - old_mean).square() / (2 * sigma.square())


def reduce(elements: Tensor, scored: Tensor, reduction: str) -> Tensor:
    """Values per element -> (B, n), over the steps of each plan where scored (B, Tp): their "mean" or "sum"."""
    weight = scored.to(elements)[:, None, :, None]
    total = (elements * weight).sum((-2, -1))
    return total / (weight.sum((-2, -1)) * elements.shape[-1]) if reduction == "mean" else total
