"""How much of a task's clouds never moves: walls and tables, which a tighter crop would leave out.

Farthest-point sampling spreads points evenly over all surfaces. What never moves tells a planner nothing, and leaves
fewer points for the arm and for small objects.

Shape letters: F frames, N points, Q of them that are looked at.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRAMES = 24  # are enough to tell, and take about a second
_LOOKED_AT = 256  # points of each
_REACH, _FARTHEST = 1.5, 0.05  # so near, of the usual distance between neighbours and in metres, points are the same
_STILL, _MOVING = 0.9, 0.5  # share of the other frames that have a point there


@dataclass(frozen=True)
class Stillness:
    """share: of the points that lie where nearly all frames have one. box: corners of what moves, metres, if any."""

    share: float
    box: tuple[list[float], list[float]] | None


def stillness(clouds: NDArray[np.floating]) -> Stillness | None:
    """Of clouds (F, N, 3) from different episodes; None for fewer than two."""
    if len(clouds) < 2:
        return None
    clouds = np.asarray(clouds, np.float32)
    looked_at = clouds[:, :: -(-clouds.shape[1] // _LOOKED_AT)]
    reach = min(_REACH * float(np.median([_spacing(cloud) for cloud in clouds])), _FARTHEST)
    there = np.stack([
        np.mean([_nearest(points, other) <= reach for place, other in enumerate(clouds) if place != own], axis=0)
        for own, points in enumerate(looked_at)
    ])  # fmt: skip
    moving = looked_at[there < _MOVING]
    share = float((there >= _STILL).mean())
    if not len(moving):
        return Stillness(share, None)
    low, high = np.percentile(moving, [0.5, 99.5], axis=0).round(2).tolist()
    return Stillness(share, (low, high))


def _nearest(points: NDArray[np.float32], cloud: NDArray[np.float32]) -> NDArray[np.float32]:
    """(Q,) distance of each of points (Q, 3) to the nearest of cloud (N, 3)."""
    return np.sqrt(_squared(points, cloud).min(axis=1))


def _spacing(cloud: NDArray[np.float32]) -> float:
    """The usual distance of a point to its nearest neighbour."""
    squared = _squared(cloud, cloud)
    np.fill_diagonal(squared, np.inf)
    return float(np.sqrt(np.median(squared.min(axis=1))))


def _squared(points: NDArray[np.float32], cloud: NDArray[np.float32]) -> NDArray[np.float32]:
    """(Q, N) squared distances."""
    products = points @ cloud.T
    squared = (points**2).sum(1)[:, None] + (cloud**2).sum(1) - 2 * products
    return np.maximum(squared, 0, out=squared)
