"""Success rates over seeds, with what is known of their error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sodp3d.results.groups import Group
from sodp3d.results.scan import Score
from sodp3d.rollouts.evaluate import wilson_interval


@dataclass(frozen=True)
class Estimate:
    """A success rate, 0..1, with the 95 % Wilson interval of all episodes and, of several seeds, their deviation."""

    rate: float
    low: float | None
    high: float | None
    deviation: float | None
    seeds: int
    episodes: tuple[int, ...]  # of each seed
    unit: str = "episodes"

    def __str__(self) -> str:
        rate = _percent(self.rate)
        if self.deviation is not None:
            rate += f" ± {_percent(self.deviation)}"
        if self.low is None or self.high is None:
            return rate
        return f"{rate} [{100 * self.low:.0f}, {100 * self.high:.0f}]"

    @property
    def basis(self) -> str:
        """Seeds x what each was measured on."""
        return f"{self.seeds} x {'/'.join(str(count) for count in sorted(set(self.episodes)))} {self.unit}"


def estimate(scores: Sequence[Score], metric: str | None = None) -> Estimate | None:
    """Over one or several seeds, by `metric` or the headline; the deviation is the sample's (n - 1). None of none.

    The interval takes the episodes of all seeds as one sample: it tells how well the rate of these planners is known.
    How much another seed's planner may differ is told by the deviation.
    """
    if not scores:
        return None
    rates = [score.rate(metric) for score in scores]
    episodes = tuple(score.episodes for score in scores)
    low, high = wilson_interval(sum(score.successes[metric or score.headline] for score in scores), sum(episodes))
    deviation = float(np.std(rates, ddof=1)) if len(rates) > 1 else None
    return Estimate(_mean(rates), low, high, deviation, len(rates), episodes)


def estimate_top5(group: Group) -> Estimate | None:
    """The paper's measure: the mean of the five highest validations of a run, over the seeds. None where not noted."""
    means = [run.top5 for run in group.runs if run.top5 is not None]
    if not means or len(means) < len(group.runs):
        return None
    deviation = float(np.std(means, ddof=1)) if len(means) > 1 else None
    counts = tuple(min(5, len(run.validations)) for run in group.runs)
    return Estimate(_mean(means), None, None, deviation, len(means), counts, "validations")


def _percent(share: float) -> str:
    """At most one decimal."""
    return f"{round(100 * share, 1):g}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
