"""Fine-tuning on one task's reward: PPO over the denoising chain plus a regularizer (paper, Algorithm 1 and eq. 15)."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.core.run import Run
from sodp3d.core.seeds import FINETUNING, episode_seed
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.buffers import EpisodeRecord, TargetBuffer
from sodp3d.learning.tuning import Finetuning
from sodp3d.models.loading import load_planner_and_state, planner_state, require_same_task
from sodp3d.models.planner import Planner, PlannerConfig
from sodp3d.rollouts.evaluate import evaluate, sentence
from sodp3d.rollouts.rollout import Episode, Rollouts

log = logging.getLogger(__name__)


def finetune(
    config: dict[str, Any], run: Run, path: Path, task: EnvConfig, device: torch.device, rollouts: Rollouts
) -> None:
    """Fine-tune the planner at `path` on `task`, from its first roll-outs to the final evaluation."""
    settings, seed = config["finetune"], config["seed"]
    pretrained, state = load_planner_and_state(path, device, config["model"]["sampling_steps"])
    require_same_task(state, pretrained, config, task)
    recorded: list[EpisodeRecord] = []
    if settings["offline"]:
        recorded = recorded_episodes(Path(settings["offline"]).expanduser(), pretrained, settings, task)
        settings = {**settings, "episodes": min(settings["episodes"], len(recorded))}
    tuning = Finetuning(pretrained, settings, config["reg"], seed)
    described = planner_state(pretrained, [task], state["data_hash"], config["evaluation"])

    def validate() -> dict[str, float]:
        return tuning.compare(
            evaluate(tuning.planner, rollouts, task, _validation(config["evaluation"])), run, described
        )

    if not tuning.load(run):
        run.rewind(-1)  # what a run that was killed before its first checkpoint had logged and kept
        checkpoint.drop_after(run.directory / "best", -1)
        before = evaluate(pretrained, rollouts, task, config["evaluation"])
        run.log(0, before.metrics())
        log.info("before: %s", sentence(before.summary()))
        tuning.before = before.summary()
        if not recorded:
            tuning.remember(find_proficient(pretrained, tuning, rollouts, task, settings, seed), task)
        tuning.start(settings["from_scratch"], seed)
        if settings["evaluate_every"] > 0:  # the first of the best: what an early collapse goes back to
            run.log(tuning.environment_steps, validate())
        tuning.save(run, described)
    run.rewind(tuning.environment_steps)
    while tuning.episodes < settings["episodes"] and not run.stop_requested:
        count = min(settings["episodes_per_iteration"], settings["episodes"] - tuning.episodes)
        metrics: dict[str, float] = {}
        if recorded:
            tuning.take(recorded[tuning.episodes : tuning.episodes + count])
            tuning.environment_steps += count * task.episode_steps  # as if they were rolled out now
        else:
            seeds = [episode_seed(seed, FINETUNING, tuning.rolled_out + index) for index in range(count)]
            episodes = rollouts.run(tuning.planner, seeds, tuning.options, keep_chains=True)
            tuning.remember(episodes, task)
            metrics = rollout_metrics(episodes, task)
        tuning.episodes += count
        metrics |= tuning.learn(settings["updates_per_episode"] * count)
        if _due(tuning.episodes, count, settings["evaluate_every"]):
            metrics |= validate()
        run.log(tuning.environment_steps, metrics)
        if any(_due(tuning.episodes, count, settings[key]) for key in ("checkpoint_every", "evaluate_every")):
            tuning.save(run, described)
    tuning.save(run, described)
    if tuning.episodes >= settings["episodes"]:
        _conclude(config, run, tuning, rollouts, task, device)


def find_proficient(
    planner: Planner, tuning: Finetuning, rollouts: Rollouts, task: EnvConfig, settings: dict[str, Any], seed: int
) -> list[Episode]:
    """Roll out the pre-trained planner until N_init episodes succeeded, or `initial_attempts` were made."""
    found: list[Episode] = []
    wanted, limit, wave = (
        settings["initial_proficient"],
        settings["initial_attempts"],
        settings["episodes_per_iteration"],
    )
    while len(found) < limit and sum(episode.success[task.success_metric] for episode in found) < wanted:
        count = min(wave, limit - len(found))
        seeds = [episode_seed(seed, FINETUNING, len(found) + index) for index in range(count)]
        found += rollouts.run(planner, seeds, tuning.options, keep_chains=True)
    successes = sum(episode.success[task.success_metric] for episode in found)
    log.info("pre-trained planner with the training sampler: %d of %d roll-outs succeed", successes, len(found))
    if successes == 0:
        log.warning(
            "the pre-trained planner never succeeds: fine-tuning starts from its best returns and may not get far. "
            "Pre-train longer or on better data, or raise finetune.initial_attempts=%d.",
            limit,
        )
    return found


def recorded_episodes(path: Path, planner: Planner, settings: dict[str, Any], task: EnvConfig) -> list[EpisodeRecord]:
    """The proficient episodes that another fine-tuning run kept, for offline fine-tuning (C.1); oldest first.

    Raises InputError where there are none, or where they do not fit `planner`: their chains hold actions as its
    normalizer scales them and, with a frozen encoder, its features.
    """
    found = checkpoint.load_latest(path / "checkpoints") if path.is_dir() else None
    target = TargetBuffer(1)
    if found is not None:
        target.load_state_dict(checkpoint.without_prefix("target", found[1]))
    if found is None or len(target) == 0 or not target.has_success:
        raise InputError(
            f"finetune.offline: {path} is no fine-tuning run with successful episodes; name the directory of one."
        )
    _, tensors, state = found
    records = target.records()
    if task.name not in state["tasks"]:
        raise InputError(f"finetune.offline: {path} is of {', '.join(state['tasks'])}, not of env={task.name}.")
    made = "frozen" if "features" in records[0].observation else "tuned"
    if made != settings["encoder"]:
        raise InputError(
            f"finetune.offline: its episodes hold {'features' if made == 'frozen' else 'observations'}, which does not "
            f"suit finetune.encoder={settings['encoder']}; name a run that was made with "
            f"finetune.encoder={settings['encoder']} (that one used {made})."
        )
    steps = records[0].latents.shape[1] - 1
    if steps != planner.config.inference_steps:
        raise InputError(
            f"finetune.offline: its episodes were sampled in {steps} steps, which does not suit "
            f"model.sampling_steps={planner.config.inference_steps}; use model.sampling_steps={steps}."
        )
    theirs = checkpoint.without_prefix("planner", tensors)
    shared = ("normalizer", "encoder") if made == "frozen" else ("normalizer",)
    same = PlannerConfig.from_dict(state["planner"]) == planner.config and all(
        torch.equal(theirs[name], value.cpu())
        for name, value in planner.state_dict().items()
        if name.startswith(shared)
    )
    if not same:
        raise InputError(
            f"finetune.offline: {path} was fine-tuned from another planner, whose {' and '.join(shared)} its episodes "
            "rest on; give the planner that it began with (planner=, see its config.yaml)."
        )
    return records


def rollout_metrics(episodes: list[Episode], task: EnvConfig) -> dict[str, float]:
    """Return and success of an iteration's roll-outs, with the training sampler."""
    return {
        "rollout/return": float(np.mean([episode.episode_return for episode in episodes])),
        f"rollout/success_{task.success_metric}": float(np.mean([e.success[task.success_metric] for e in episodes])),
    }


def _validation(settings: dict[str, Any]) -> dict[str, Any]:
    """The same evaluation on other seeds, so that choosing the best checkpoint does not flatter the final number."""
    return {**settings, "first_seed": settings["validation_seed"], "episodes": settings["validation_episodes"]}


def _due(done: int, new: int, every: int) -> bool:
    """Whether `every` was crossed by the last `new` of `done`."""
    return every > 0 and done // every > (done - new) // every


def _conclude(
    config: dict[str, Any], run: Run, tuning: Finetuning, rollouts: Rollouts, task: EnvConfig, device: torch.device
) -> None:
    """Evaluate the final planner and the best one on the test seeds."""
    final = evaluate(tuning.planner, rollouts, task, config["evaluation"])
    final.save(run.directory / "evaluation" / task.name)
    result: dict[str, Any] = {"before": tuning.before, "evaluation": final.summary(), "episodes": tuning.episodes}
    if tuning.scores:
        best = load_planner_and_state(run.directory / "best", device)[0]
        result["best"] = evaluate(best, rollouts, task, config["evaluation"]).summary()
        result["validation_top5"] = float(np.mean(sorted(tuning.scores)[-5:]))
    run.log(tuning.environment_steps, final.metrics())
    run.finish(result)
    log.info("final: %s", sentence(result["evaluation"]))
