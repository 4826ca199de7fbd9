"""Success rates with confidence intervals, on fixed held-out seeds, and the record that makes them again."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sodp3d.envs.config import SUCCESS_METRICS, EnvConfig
from sodp3d.models.critic import Choice
from sodp3d.models.policy import Policy, as_it_acts
from sodp3d.rollouts.rollout import Episode, Rollouts

log = logging.getLogger(__name__)
Z95 = 1.959964


@dataclass(frozen=True)
class Evaluation:
    """Finished evaluation episodes of one policy on one task."""

    config: EnvConfig
    episodes: list[Episode]

    def successes(self, metric: str) -> int:
        """Successful episodes by `final`, `count` or `any`."""
        return sum(episode.success[metric] for episode in self.episodes)

    @property
    def success_rate(self) -> float:
        """Share of successful episodes by the task's headline metric, 0..1."""
        return self.successes(self.config.success_metric) / len(self.episodes)

    def metrics(self, kind: str = "evaluation") -> dict[str, float]:
        """Numbers to log: all three success rates and the mean return; kind: evaluation | validation."""
        rates = {f"{kind}/success_{m}": self.successes(m) / len(self.episodes) for m in SUCCESS_METRICS}
        mean_return = float(np.mean([episode.episode_return for episode in self.episodes]))
        return {**rates, f"{kind}/return": mean_return}

    def summary(self) -> dict[str, Any]:
        """Everything a reported number must name: metric, interval, seeds, episodes."""
        count = len(self.episodes)
        rates = {}
        for metric in SUCCESS_METRICS:
            low, high = wilson_interval(self.successes(metric), count)
            rates[metric] = {"rate": self.successes(metric) / count, "low95": low, "high95": high}
        seeds = [episode.seed for episode in self.episodes]
        return {
            "env": self.config.name,
            "headline_metric": self.config.success_metric,
            "success": rates,
            "episodes": count,
            "seeds": [seeds[0], seeds[-1]],
            "return_mean": float(np.mean([episode.episode_return for episode in self.episodes])),
        }


def evaluate(
    policy: Policy, rollouts: Rollouts, config: EnvConfig, seeds: Sequence[int], choice: Choice | None = None
) -> Evaluation:
    """Roll out one episode on each of `seeds`; a planner by its own sampler, or by the best of several with `choice`.

    Uses no random state but each episode's own, so training goes on as if it had not happened.
    """
    with as_it_acts(policy):
        return Evaluation(config, rollouts.run(policy, list(seeds), None, choice=choice))


def mean_summary(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean success over tasks, each as likely, of what `Evaluation.summary` says of each.

    The interval is Wilson's of all episodes as one sample, at least as wide as that of so many tasks apart. It tells
    how well the rate of this planner on these tasks is known, not how another task or seed would do.
    """
    episodes = sum(summary["episodes"] for summary in summaries)
    success = {}
    for metric in SUCCESS_METRICS:
        rate = math.fsum(summary["success"][metric]["rate"] for summary in summaries) / len(summaries)
        low, high = wilson_interval(rate * episodes, episodes)
        success[metric] = {"rate": rate, "low95": low, "high95": high}
    shared = {key: summaries[0][key] for key in ("headline_metric", "seeds")}
    return {"tasks": len(summaries), "episodes": episodes, "success": success, **shared}


def wilson_interval(successes: float, count: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion."""
    rate, scale = successes / count, 1 + Z95**2 / count
    centre = (rate + Z95**2 / (2 * count)) / scale
    half = Z95 * math.sqrt(rate * (1 - rate) / count + Z95**2 / (4 * count**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def check_summary(summary: Any) -> None:
    """Raises ValueError, TypeError or LookupError for what `Evaluation.summary` never tells, as a damaged file may."""
    rates = [summary["success"][metric][key] for metric in SUCCESS_METRICS for key in ("rate", "low95", "high95")]
    first, last = summary["seeds"]
    texts, numbers = (summary["env"], summary["headline_metric"]), (*rates, summary["return_mean"])
    counts = (summary["episodes"], first, last)
    if not all(isinstance(text, str) for text in texts) or summary["headline_metric"] not in SUCCESS_METRICS:
        raise ValueError(f"env {summary['env']!r}, headline_metric {summary['headline_metric']!r}")
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise ValueError(f"success or return_mean: {numbers}")
    if set(summary["success"]) != set(SUCCESS_METRICS) or not all(type(count) is int for count in counts):
        raise ValueError(f"success by {sorted(summary['success'])}, episodes {counts[0]!r}, seeds {summary['seeds']!r}")


def sentence(summary: Mapping[str, Any]) -> str:
    """One line for people, of a task or of `mean_summary`: the headline rate with its interval, and the other two."""
    headline = summary["headline_metric"]
    rate = summary["success"][headline]
    others = ", ".join(f"{metric} {v['rate']:.0%}" for metric, v in summary["success"].items() if metric != headline)
    told = f"success ({headline}) {rate['rate']:.0%} [{rate['low95']:.0%}, {rate['high95']:.0%}]"
    if "tasks" in summary:
        return f"mean of {summary['tasks']} tasks: {told} on {summary['episodes']} episodes; {others}"
    return (
        f"{summary['env']}: {told}"
        f" on {summary['episodes']} episodes, seeds {summary['seeds'][0]}-{summary['seeds'][1]}; {others};"
        f" mean return {summary['return_mean']:.2f}"
    )
