"""Whether the critic's choice pays: roll-outs with it and without it, compared by how they end.

A critic of a few episodes may rank a state's plans no better than chance, or worse, and what it costs adds up over an
episode's plans. How well its values follow returns does not tell: a state is judged well more easily than its plans.
"""

import math
from collections.abc import Sequence

import numpy as np

MEMORY = 32  # episodes


class Arms:
    """Thompson sampling of two ways to act: the planner's first plan (0), and the critic's choice among several (1).

    Each has a Beta posterior of success, whose prior is worth two episodes at the rate of both together: an arm that
    nothing is known of is as good as the other. The planner and its critic go on learning, so an outcome fades: after
    `MEMORY` others it counts a third.
    """

    def __init__(self) -> None:
        self.outcomes = [[0.0, 0.0], [0.0, 0.0]]  # of each arm: successes and failures

    def draw(self, entropy: Sequence[int]) -> bool:
        """Whether the critic chooses in the next episode; the same entropy and outcomes give the same answer."""
        random = np.random.default_rng(entropy)
        first, chosen = (random.beta(*parameters) for parameters in self._posteriors())
        return bool(chosen >= first)

    def add(self, chosen: Sequence[bool], success: Sequence[bool]) -> None:
        """Take episodes' ends into account, in their order."""
        for arm, succeeded in zip(chosen, success, strict=True):
            self.outcomes = [[count * (1 - 1 / MEMORY) for count in counts] for counts in self.outcomes]
            self.outcomes[arm][0 if succeeded else 1] += 1

    @property
    def gain(self) -> float:
        """What the critic's choice adds to success, by the means of the posteriors; 0 as long as nothing is known."""
        first, chosen = (won / (won + lost) for won, lost in self._posteriors())
        return chosen - first

    @property
    def misleads(self) -> bool:
        """Whether the critic's choice has done worse by more than a standard deviation of the difference."""
        spread = sum(won * lost / ((won + lost) ** 2 * (won + lost + 1)) for won, lost in self._posteriors())
        return self.gain < -math.sqrt(spread)

    def _posteriors(self) -> list[tuple[float, float]]:
        successes, failures = (sum(counts) for counts in zip(*self.outcomes, strict=True))
        rate = (successes + 1) / (successes + failures + 2)
        return [(won + 2 * rate, lost + 2 * (1 - rate)) for won, lost in self.outcomes]
