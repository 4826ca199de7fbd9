"""What a run keeps beside its checkpoints: the best planner by validations, and what was measured at its end."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.core.run import Run
from sodp3d.envs.config import EnvConfig
from sodp3d.models.critic import Choice, Critic
from sodp3d.models.loading import CRITIC
from sodp3d.models.planner import Planner
from sodp3d.models.policy import LearnedPolicy
from sodp3d.rollouts.evaluate import Evaluation
from sodp3d.rollouts.kept import evaluate_and_keep, keep_evaluation
from sodp3d.rollouts.rollout import Rollouts

log = logging.getLogger(__name__)
Verdict = Literal["best", "collapsed", "neither"]
RECENT = 32  # roll-outs


class Keeper:
    """Scores of all validations, the best of them, ends of roll-outs, and how often learning was slowed.

    collapse: share of the best below which a validation counts as one. setback: by how many standard deviations of the
    difference the newest `RECENT` roll-outs may do worse than those before learning; None: by any.
    """

    def __init__(self, collapse: float, setback: float | None) -> None:
        self.collapse, self.setback = collapse, setback
        self.scores: list[float] = []
        self.best = -1.0
        self.slowed = 1.0  # factor of the learning rate, halved at every collapse and setback
        self.first: list[bool] = []  # how roll-outs of the planner ended before it learned
        self.recent: list[bool] = []  # and the newest ones since, or since it last went back

    def judge(self, success_rate: float) -> Verdict:
        """Note a validation's score, 0..1, and say what it means. Of equals the later is best: it learned longer."""
        self.scores.append(success_rate)
        if success_rate >= self.best:
            self.best = success_rate
            return "best"
        if success_rate >= self.collapse * self.best:
            return "neither"
        self.slowed /= 2
        self.recent = []  # of the planner that is given up
        log.warning(
            "collapsed: validation fell to %.0f %% from %.0f %%; back to the best planner, learning rate times %g",
            100 * success_rate, 100 * self.best, self.slowed,
        )  # fmt: skip
        return "collapsed"

    def set_back(self, successes: Sequence[bool]) -> bool:
        """Note how roll-outs of the planner that learns ended; whether it would do better to begin again.

        These cost nothing, as validations do. Each rate is that of one success and one failure more.
        """
        self.recent = [*self.recent, *successes][-RECENT:]
        if self.setback is None or not self.first or len(self.recent) < RECENT:
            return False
        (before, spread), (now, other) = _rate(self.first), _rate(self.recent)
        if before - now <= self.setback * math.sqrt(spread + other):
            return False
        self.slowed /= 2
        log.warning(
            "set back: %d of the newest %d roll-outs succeeded, of the %d before learning %d; back to where it was "
            "best, learning rate times %g", sum(self.recent), RECENT, len(self.first), sum(self.first), self.slowed,
        )  # fmt: skip
        self.recent = []
        return True


def _rate(successes: Sequence[bool]) -> tuple[float, float]:
    """Rate of success and its variance."""
    count = len(successes) + 2
    rate = (sum(successes) + 1) / count
    return rate, rate * (1 - rate) / count


def keep(folder: Path, step: int, planner: Planner, critic: Critic | None, described: dict[str, Any]) -> None:
    """Publish the best planner. Two stay: a kill before the next checkpoint goes back to the one before this."""
    tensors = checkpoint.with_prefix("planner", planner.state_dict())
    if critic is not None:
        tensors |= checkpoint.with_prefix(CRITIC, critic.state_dict())
    checkpoint.save(folder, step, tensors, described)


def kept(folder: Path) -> dict[str, Tensor]:
    """The best planner's weights. Raises InputError where they are gone."""
    found = checkpoint.load_latest(folder)
    if found is None:
        raise InputError(f"{folder}: the best planner is gone; restore it from a copy, or begin a new run.")
    return checkpoint.without_prefix("planner", found[1])


def evaluate_newest(
    policy: LearnedPolicy,
    checkpoints: Path,
    run: Run,
    task: EnvConfig,
    seeds: Sequence[int],
    rollouts: Rollouts,
    place: str = "",
    choice: Choice | None = None,
) -> Evaluation | None:
    """Evaluate `policy`, of the newest of `checkpoints`, and keep that in the run, so that it is never done twice.

    place: folder of it within evaluation/. None where the run was stopped before its end.
    """
    folder = run.directory / "evaluation" / place / task.name
    digest = _newest(checkpoints)
    return evaluate_and_keep(policy, digest, task, seeds, folder, lambda: rollouts, lambda: run.stop_requested, choice)


def keep_as_best(found: Evaluation, best: Path, run: Run, task: EnvConfig, choice: Choice | None) -> None:
    """Keep the last planner's evaluation as that of the newest of `best` too, whose weights are the same."""
    keep_evaluation(found, _newest(best), run.directory / "evaluation" / "best" / task.name, choice)


def _newest(checkpoints: Path) -> str:
    """Digest of the newest checkpoint."""
    return checkpoint.digest_of(checkpoint.path_of(checkpoints, checkpoint.steps(checkpoints)[-1]))
