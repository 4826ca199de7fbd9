"""A recorded episode, as a demonstration holds it: enough to bring it back in the simulator.

Shape letters: R recorded steps, Ds state size, Da action size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class Recording:
    """What brings an episode back: how it began, and every recorded action.

    actions (R, Da); states (R + 1, Ds). group: recorded steps per control step. The beginning is `initial` (joint
    positions `qpos`, velocities `qvel`, and what the reset moved) or, where that is empty, the seed of the reset.
    """

    seed: int | None
    initial: Mapping[str, NDArray[Any]]
    states: NDArray[Any]
    actions: NDArray[Any]
    group: int
