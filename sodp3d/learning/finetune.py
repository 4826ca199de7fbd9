"""Fine-tuning on one task's reward: PPO over the denoising chain plus a regularizer (paper, Algorithm 1 and eq. 15)."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sodp3d.core import checkpoint
from sodp3d.core.run import Run
from sodp3d.core.seeds import FINETUNING, episode_seed
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.branching import branch, interactions, trunks_within
from sodp3d.learning.buffers import EpisodeRecord
from sodp3d.learning.checks import START
from sodp3d.learning.keeper import evaluate_newest, keep_as_best
from sodp3d.learning.tuning import Finetuning
from sodp3d.models.capture import capture
from sodp3d.models.loading import load_choice, load_planner
from sodp3d.models.planner import Planner
from sodp3d.models.sampled import plans_of
from sodp3d.rollouts.evaluate import Evaluation, evaluate, sentence
from sodp3d.rollouts.rollout import Episode, Rollouts
from sodp3d.settings import FinetuneSettings, TrainSettings
from sodp3d.tools.plot import plot_calibration

log = logging.getLogger(__name__)


def finetune(
    settings: TrainSettings,
    run: Run,
    pretrained: Planner,
    described: dict[str, Any],
    task: EnvConfig,
    rollouts: Rollouts,
    test_before: Callable[[], Evaluation | None],
    recorded: Sequence[EpisodeRecord] = (),
) -> dict[str, Any] | None:
    """Fine-tune `pretrained` on `task`, from its first roll-outs to the final evaluation.

    described: what its checkpoints say of the planner, with the digest of `pretrained`, {START: digest}.
    test_before: tests `pretrained`, None where that was stopped. recorded: episodes that stand in for roll-outs.
    Returns the run's result, None where it was stopped before its end.
    """
    options = settings.finetune
    if recorded:
        options = replace(options, episodes=min(options.episodes, len(recorded)))
    tuning = Finetuning(pretrained, options, settings.reg, settings.common.seed)
    if options.compile:
        capture(tuning.planner)

    def validate() -> dict[str, float]:
        choice = tuning.choice(tuning.tested_best_of)
        found = evaluate(tuning.planner, rollouts, task, settings.evaluation.validation_seeds, choice)
        tuning.compare(found, run, described)
        return found.metrics("validation")

    if not tuning.load(run, described[START]):
        run.rewind(-1)  # what a run that was killed before its first checkpoint had logged and kept
        checkpoint.drop_after(run.directory / "best", -1)
        if not _begin(settings, run, tuning, test_before, pretrained, task, rollouts, bool(recorded)):
            return None
        if options.evaluate_every > 0:  # the first of the best: what an early collapse goes back to
            run.log(tuning.environment_steps, validate())
        tuning.save(run, described)
    run.rewind(tuning.environment_steps)
    while tuning.episodes < options.episodes and not run.stop_requested:
        count = min(options.episodes_per_iteration, options.episodes - tuning.episodes)
        metrics: dict[str, float] = {}
        if recorded:
            tuning.replay_recorded(list(recorded[tuning.episodes : tuning.episodes + count]), task)
        else:
            episodes, metrics = _roll_out(settings, tuning, rollouts, task, count)
            tuning.guard([e.success[task.success_metric] for e in episodes if not e.begun], run, pretrained)
            tuning.remember(episodes, task)
            count = interactions(episodes, task)
        tuning.episodes += count
        metrics |= tuning.learn(options.updates_per_episode * count)
        looked = validation_due(tuning.episodes, count, options)
        if looked:
            metrics |= validate()
        run.log(tuning.environment_steps, metrics)
        if looked or _due(tuning.episodes, count, options.checkpoint_every):
            tuning.save(run, described)
    tuning.save(run, described)
    if tuning.critic is not None and tuning.critic.calibration.numel():
        plot_calibration(run.directory / "critic.png", *tuning.critic.calibration.tolist())
    return _measure(settings, run, tuning, task, rollouts) if tuning.episodes >= options.episodes else None


def _begin(
    settings: TrainSettings,
    run: Run,
    tuning: Finetuning,
    test_before: Callable[[], Evaluation | None],
    pretrained: Planner,
    task: EnvConfig,
    rollouts: Rollouts,
    offline: bool,
) -> bool:
    """Note the pre-trained planner's test, and fill memory with its first roll-outs. False where that was stopped."""
    before = test_before()
    if before is None:
        return False
    run.log(0, before.metrics())
    log.info("before: %s", sentence(before.summary()))
    tuning.before = before.summary()
    if not offline:
        first = find_proficient(pretrained, tuning, rollouts, task, settings.common.seed, lambda: run.stop_requested)
        if first is None:
            return False
        tuning.remember(first, task)
        if not settings.finetune.from_scratch:  # or else they are not of the planner that learns
            tuning.keeper.first = [episode.success[task.success_metric] for episode in first]
    if settings.finetune.from_scratch:
        tuning.learner.begin_anew(settings.common.seed)
    return True


def _roll_out(
    settings: TrainSettings, tuning: Finetuning, rollouts: Rollouts, task: EnvConfig, count: int
) -> tuple[list[Episode], dict[str, float]]:
    """About `count` episodes of the planner that learns: whole ones, and the branches that they are compared with."""
    options, seed, index = settings.finetune, settings.common.seed, tuning.rolled_out
    branched = options.credit == "branch"
    whole = trunks_within(count, options.branches) if branched else count
    seeds = [episode_seed(seed, FINETUNING, index + place) for place in range(whole)]
    chosen = tuning.choosing(seed, whole)
    episodes = act_by_arms(tuning, rollouts, seeds, chosen)
    metrics = rollout_metrics(episodes, task)
    metrics |= tuning.judge_choice(chosen, [episode.success[task.success_metric] for episode in episodes])
    if not branched:
        return episodes, metrics
    groups = branch(tuning.planner, episodes, rollouts, tuning.learner.options, options.branches, seed, index)
    tuning.compare_plans(groups, task)
    return [*episodes, *(other for group in groups for other in group.others)], metrics


def act_by_arms(tuning: Finetuning, rollouts: Rollouts, seeds: list[int], chosen: list[bool]) -> list[Episode]:
    """One episode of the planner per seed, in that order; chosen: whether the critic chooses its plans."""
    found: dict[int, Episode] = {}
    for arm in (False, True):
        places = [place for place, mine in enumerate(chosen) if mine is arm]
        choice = tuning.choice(tuning.settings.best_of) if arm else None
        some = [seeds[place] for place in places]
        episodes = rollouts.run(tuning.planner, some, tuning.learner.options, keep_chains=True, choice=choice)
        found |= zip(places, episodes, strict=True)
    return [found[place] for place in range(len(seeds))]


def find_proficient(
    planner: Planner, tuning: Finetuning, rollouts: Rollouts, task: EnvConfig, seed: int, stopped: Callable[[], bool]
) -> list[Episode] | None:
    """Roll out the pre-trained planner until N_init episodes succeeded, or `initial_attempts` were made.

    None where `stopped()` ended it.
    """
    found: list[Episode] = []
    settings = tuning.settings
    limit, wanted = settings.initial_attempts, settings.initial_proficient
    while len(found) < limit and sum(episode.success[task.success_metric] for episode in found) < wanted:
        if stopped():
            return None
        count = min(settings.episodes_per_iteration, limit - len(found))
        seeds = [episode_seed(seed, FINETUNING, len(found) + index) for index in range(count)]
        found += rollouts.run(planner, seeds, tuning.learner.options, keep_chains=True)
    successes = sum(episode.success[task.success_metric] for episode in found)
    log.info("pre-trained planner with the training sampler: %d of %d roll-outs succeed", successes, len(found))
    if successes == 0:
        log.warning(
            "the pre-trained planner never succeeds: fine-tuning starts from its best returns and may not get far. "
            "Pre-train longer or on better data, or raise finetune.initial_attempts=%d.",
            limit,
        )
    return found


def rollout_metrics(episodes: list[Episode], task: EnvConfig) -> dict[str, float]:
    """Return and success of an iteration's roll-outs, with the training sampler."""
    return {
        "rollout/return": float(np.mean([episode.episode_return for episode in episodes])),
        f"rollout/success_{task.success_metric}": float(np.mean([e.success[task.success_metric] for e in episodes])),
    }


def validation_due(done: int, new: int, options: FinetuneSettings) -> bool:
    """Whether the last `new` of `done` episodes call for a validation: every `evaluate_every`, and once all are done.

    Without one at the end nothing but the pre-trained planner may ever have been looked at, and it would be the best.
    """
    every = options.evaluate_every
    return every > 0 and (done >= options.episodes or _due(done, new, every))


def _due(done: int, new: int, every: int) -> bool:
    """Whether `every` was crossed by the last `new` of `done`."""
    return every > 0 and done // every > (done - new) // every


def _measure(
    settings: TrainSettings, run: Run, tuning: Finetuning, task: EnvConfig, rollouts: Rollouts
) -> dict[str, Any] | None:
    """Evaluate the final planner and the best one on the test seeds; None where it was stopped meanwhile."""
    seeds, scores, best = settings.evaluation.test_seeds, tuning.keeper.scores, run.directory / "best"
    wanted, count = settings.finetune.tested_best_of, tuning.tested_best_of
    if count < wanted:
        log.info(
            "fewer of the last roll-outs succeeded where the critic chose, so the planner is tested with one plan; "
            "evaluation.best_of=%d lets it choose all the same",
            wanted,
        )
    choice = tuning.choice(count)
    final = evaluate_newest(tuning.planner, run.checkpoints, run, task, seeds, rollouts, choice=choice)
    if final is None:
        return None
    result: dict[str, Any] = {"before": tuning.before, "evaluation": final.summary(), "episodes": tuning.episodes}
    plans = {"evaluation": count}
    if scores:
        best_choice = load_choice(best, tuning.planner.device)
        if checkpoint.steps(best)[-1] == tuning.environment_steps:  # the last is the best, and was tested just now
            found: Evaluation | None = final
            keep_as_best(final, best, run, task, best_choice)
        else:
            planner = load_planner(best, tuning.planner.device)
            found = evaluate_newest(planner, best, run, task, seeds, rollouts, "best", best_choice)
        if found is None:
            return None
        result["best"] = found.summary()
        plans["best"] = plans_of(best_choice)
        result["validation_top5"] = float(np.mean(sorted(scores)[-5:]))
    if tuning.critic is not None:
        result["best_of"] = plans
    result["interactions"] = counts = tuning.interactions(settings.evaluation.validation_episodes)
    run.log_once(tuning.environment_steps, final.metrics())
    log.info("final: %s", sentence(result["evaluation"]))
    purposes = ", ".join(f"{count} {purpose}" for purpose, count in counts.items())
    log.info("interactions: %d episodes (%s)", sum(counts.values()), purposes)
    return result
