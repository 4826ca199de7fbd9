"""Scripted agents: how noisy they are."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sodp3d.collection.agents import Surroundings
from sodp3d.collection.agents.scripted import Scripted, build
from sodp3d.core.errors import InputError

STATES = np.zeros((2000, 1), np.float32)


class Still:
    """An expert that does nothing."""

    def get_action(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.zeros(1)


def deviations(agent: Scripted) -> list[float]:
    """Of the actions of each of thirty waves."""
    found = []
    for seed in range(30):
        agent.seed_exploration(seed)
        found.append(float(agent.act(STATES, explore=True).std()))
    return found


def test_every_wave_has_the_noise_that_is_asked_for() -> None:
    assert deviations(Scripted(Still(), 1, 0.2, seed=0)) == pytest.approx([0.2] * 30, rel=0.06)
    assert not Scripted(Still(), 1, 0.2, seed=0).act(STATES, explore=False).any()


def test_waves_of_uneven_skill_draw_their_own_noise_and_draw_it_again_alike() -> None:
    found = deviations(Scripted(Still(), 1, 0.1, seed=0, most_noise=0.3))
    assert min(found) < 0.13 and max(found) > 0.27 and min(found) > 0.09 and max(found) < 0.32
    assert found == deviations(Scripted(Still(), 1, 0.1, seed=5, most_noise=0.3)), "a wave's seed decides"


def test_most_noise_below_noise_is_refused() -> None:
    where: Any = Surroundings
    with pytest.raises(InputError, match=r"agent\.most_noise: expected at least agent\.noise=0\.5, or null, got 0\.2"):
        build({"policy": "random", "noise": 0.5, "most_noise": 0.2}, where)
