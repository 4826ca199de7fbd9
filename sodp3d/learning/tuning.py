"""The state of fine-tuning and its gradient step (paper, eq. 15): planner, buffers, optimizers, random streams.

Shape letters: B batch, C chunks of an episode, K' sampling steps, Tp planned steps, Da actions, F features.
"""

import copy
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sodp3d.core import checkpoint
from sodp3d.core.run import Run
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.buffers import EpisodeRecord, ReplayBuffer, TargetBuffer
from sodp3d.learning.checks import check_finetuning, require_finite
from sodp3d.learning.ppo import (
    CreditOptions,
    RunningScale,
    ValueHead,
    credits_and_targets,
    importance_loss,
    kl_exceeded,
)
from sodp3d.learning.regularizers import make_regularizer
from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.loading import make_planner
from sodp3d.models.planner import Planner
from sodp3d.rollouts.evaluate import Evaluation
from sodp3d.rollouts.rollout import Episode

log = logging.getLogger(__name__)
COUNTERS = ("episodes", "rolled_out", "environment_steps", "before", "best", "scores", "slowed")


class Finetuning:
    """All that changes while fine-tuning, so that saving it and loading it leaves no trace in the result."""

    def __init__(self, pretrained: Planner, settings: dict[str, Any], regularizer: dict[str, Any], seed: int):
        check_finetuning(settings, regularizer)
        self.settings = settings
        self.planner = copy.deepcopy(pretrained).train()
        self.frozen = settings["encoder"] == "frozen"
        self.planner.encoder.requires_grad_(not self.frozen)
        self.options = ChainOptions(**settings["sampler"])
        self.credit = CreditOptions(
            settings["credit"], settings["baseline"], settings["discount"], settings["gae_lambda"]
        )
        self.regularizer = make_regularizer(regularizer["name"], copy.deepcopy(pretrained), self.options)
        self.regularizer_weight = regularizer["weight"]
        self.parameters = [parameter for parameter in self.planner.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings["learning_rate"], fused=True)
        torch.manual_seed(seed)
        self.value = ValueHead(pretrained.config.feature_size).to(pretrained.device)
        self.value_optimizer = torch.optim.Adam(self.value.parameters(), lr=settings["value_learning_rate"])
        self.replay = ReplayBuffer(settings["replay_episodes"])
        self.target = TargetBuffer(settings["target_episodes"], settings["best_returns"])
        self.scale = RunningScale()
        self.batches = torch.Generator().manual_seed(seed)
        self.noise = torch.Generator(pretrained.device).manual_seed(seed)
        self.episodes = self.rolled_out = self.environment_steps = 0
        self.before: dict[str, Any] = {}
        self.best = -1.0
        self.slowed = 1.0  # factor of the learning rate, halved at every collapse
        self.scores: list[float] = []

    def start(self, from_scratch: bool, seed: int) -> None:
        """After the first roll-outs: go on from the pre-trained weights, or from fresh ones (section 5.5)."""
        if from_scratch:
            torch.manual_seed(seed)
            fresh = make_planner(self.planner.config).to(self.planner.device)
            fresh.normalizer.load_state_dict(self.planner.normalizer.state_dict())
            self.planner.load_state_dict(fresh.state_dict())

    def remember(self, episodes: list[Episode], task: EnvConfig) -> None:
        """Put roll-outs into the replay buffer, and proficient ones into the target buffer."""
        self.take([to_record(episode, task.success_metric, self.frozen) for episode in episodes])
        self.environment_steps += sum(episode.length for episode in episodes)
        self.rolled_out += len(episodes)

    def take(self, records: list[EpisodeRecord]) -> None:
        """Put episodes into the buffers, whoever made them."""
        for record in records:
            self.replay.add(record)
            self.target.add(record)
            self.scale.update(record.reward)

    def learn(self, updates: int) -> dict[str, float]:
        """Up to `updates` gradient steps on eq. (15), fewer where the KL bound is reached; returns mean metrics."""
        progress = self.episodes / self.settings["episodes"]
        for group in self.optimizer.param_groups:
            decay = self.settings["final_learning_rate"] ** progress
            group["lr"] = self.settings["learning_rate"] * decay * self.slowed
        credits = self._credits()
        records: list[dict[str, Tensor]] = []
        for _ in range(updates):
            metrics = self._update(credits)
            records.append(metrics)
            if "approx_kl" in metrics and kl_exceeded(metrics, self.settings["target_kl"]):
                break
        means = {f"train/{key}": float(np.mean([float(record[key]) for record in records])) for key in records[0]}
        return {**means, "train/updates": len(records), "train/target_episodes": len(self.target)}

    def _credits(self) -> Tensor:
        """(sum of C,) the weight of each plan in the replay buffer."""
        rewards = [self.scale(reward) if self.settings["scale_reward"] else reward for reward in self.replay.rewards()]
        estimates = self._fitted_values(rewards) if self.credit.needs_value else ()
        credit = credits_and_targets(rewards, self.credit, *estimates)[0]
        if self.settings["normalize_credit"]:  # by their deviation alone, so that signs are kept
            credit = credit / credit.std(correction=0).clamp(min=1e-8)
        return credit

    def _fitted_values(self, rewards: list[Tensor]) -> tuple[list[Tensor], list[float]]:
        """`_values`, after the value head has learned from the replay buffer."""
        features = self._replay_features()
        for _ in range(self.settings["value_updates"]):
            _, targets = credits_and_targets(rewards, self.credit, *self._values(features))
            loss = (self.value(features) - targets.to(features)).square().mean()
            self.value_optimizer.zero_grad()
            loss.backward()
            self.value_optimizer.step()
        return self._values(features)

    @torch.no_grad()
    def _replay_features(self) -> Tensor:
        """(sum of C, F) features of all plans of the replay buffer, by today's encoder where it is tuned."""
        parts = [
            self.planner.features(self._observed({key: value[index] for key, value in self.replay.rows.items()}))
            for index in torch.arange(self.replay.chunks).split(self.settings["batch_size"])
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def _values(self, features: Tensor) -> tuple[list[Tensor], list[float]]:
        """Estimates per episode, and of the state after each.

        The latter is 0 where the task terminated, and with discount 1, whose return is that of the time limit's steps
        (without a limit there would be none). Below 1 the limit is none of the task's: what would follow is estimated.
        """
        final = torch.zeros(len(self.replay))
        if self.settings["discount"] < 1:
            after = self.value(self.planner.features(self._observed(self.replay.finals))).cpu()
            final = torch.where(self.replay.facts["terminated"], final, after)
        return self.replay.per_episode(self.value(features).cpu()), final.tolist()

    def _update(self, credits: Tensor) -> dict[str, Tensor]:
        """One gradient step: importance loss on recent plans, regularizer on top (eq. 15)."""
        size, device = self.settings["batch_size"], self.planner.device
        batch = self._observed(self.replay.sample(size, self.batches))
        target = self._observed(self.target.sample(size, self.batches))
        loss = torch.zeros((), device=device)
        metrics: dict[str, Tensor] = {}
        if self.settings["importance_weight"] > 0:
            imp, metrics = self._importance(batch, credits[batch["index"].cpu()].to(device))
            loss = loss + self.settings["importance_weight"] * imp
            metrics["imp_loss"] = imp
        if self.regularizer_weight > 0:
            regularizer = self.regularizer.loss(self.planner, batch, target, self.noise)
            loss = loss + self.regularizer_weight * regularizer
            metrics["regularizer"] = regularizer
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        metrics["gradient_norm"] = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings["gradient_norm"])
        require_finite(
            {"loss": loss, "gradient norm": metrics["gradient_norm"]}, f"finetune: after {self.episodes} episodes"
        )
        self.optimizer.step()
        return {name: value.detach() for name, value in metrics.items()}

    def _importance(self, batch: dict[str, Tensor], credit: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. (12) on one random denoising step of each plan: the mean over steps, at a K'-th of its price."""
        step, _ = self.planner.draw_steps(len(credit), self.options, self.batches)
        row = torch.arange(len(credit), device=credit.device)
        mean, sigma = self.planner.moments(
            self.planner.features(batch), batch["latents"][row, step], step, self.options
        )
        new = self.planner.step_log_prob(mean, sigma, batch["latents"][row, step + 1], self.options)
        return importance_loss(credit, new[:, None], batch["log_prob"][row, step][:, None], self.settings["clip"])

    def _observed(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.planner.device) for key, value in rows.items()}

    def compare(self, evaluation: Evaluation, run: Run, described: dict[str, Any]) -> dict[str, float]:
        """Note a validation; the best planner so far is kept, and a collapse goes back to it."""
        self.scores.append(evaluation.success_rate)
        if evaluation.success_rate >= self.best:  # of equals, the one that learned longer
            self.best = evaluation.success_rate
            tensors = checkpoint.with_prefix("planner", self.planner.state_dict())
            # Two: a kill before the next checkpoint goes back to the one before this.
            checkpoint.save(run.directory / "best", self.environment_steps, tensors, described)
        elif evaluation.success_rate < self.settings["collapse"] * self.best:
            self._return_to_best(run, evaluation.success_rate)
        return {name.replace("evaluation", "validation"): value for name, value in evaluation.metrics().items()}

    def _return_to_best(self, run: Run, success_rate: float) -> None:
        """The best planner again, with a fresh optimizer and half the learning rate; the buffers stay."""
        found = checkpoint.load_latest(run.directory / "best")
        assert found is not None
        self.planner.load_state_dict(checkpoint.without_prefix("planner", found[1]))
        self.optimizer.state.clear()
        self.slowed /= 2
        log.warning(
            "collapsed: validation fell to %.0f %% from %.0f %%; back to the best planner, learning rate times %g",
            100 * success_rate, 100 * self.best, self.slowed,
        )  # fmt: skip

    def save(self, run: Run, described: dict[str, Any]) -> None:
        """Publish a checkpoint of everything."""
        tensors = {"batches": self.batches.get_state(), "noise": self.noise.get_state()}
        for name, part in self._parts().items():
            tensors |= checkpoint.with_prefix(name, part.state_dict())
        for name, optimizer in self._optimizers().items():
            tensors |= checkpoint.with_prefix(name, checkpoint.optimizer_tensors(optimizer))
        counters = {key: getattr(self, key) for key in COUNTERS}
        checkpoint.save(run.checkpoints, self.environment_steps, tensors, {**described, "counters": counters})

    def load(self, run: Run) -> bool:
        """Continue from the newest checkpoint; False where there is none."""
        found = checkpoint.load_latest(run.checkpoints)
        if found is None:
            return False
        _, tensors, state = found
        for name, part in self._parts().items():
            part.load_state_dict(checkpoint.without_prefix(name, tensors))
        for name, optimizer in self._optimizers().items():
            checkpoint.load_optimizer(optimizer, checkpoint.without_prefix(name, tensors))
        self.batches.set_state(tensors["batches"])
        self.noise.set_state(tensors["noise"])
        for key in COUNTERS:
            setattr(self, key, state["counters"][key])
        checkpoint.drop_after(run.directory / "best", self.environment_steps)
        log.info("resumed after %d episodes", self.episodes)
        return True

    def _parts(self) -> dict[str, Any]:
        parts = {"planner": self.planner, "value": self.value, "scale": self.scale}
        return {**parts, "replay": self.replay, "target": self.target}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"optimizer": self.optimizer, "value_optimizer": self.value_optimizer}


def to_record(episode: Episode, metric: str, frozen: bool) -> EpisodeRecord:
    """An episode as the buffers keep it: features where the encoder is frozen, else raw observations."""
    if frozen:
        assert episode.final_features is not None, "roll-outs to learn from keep their chains"
        observation, final = {"features": torch.stack(episode.features)}, {"features": episode.final_features}
    else:
        keys = episode.observations[0]
        observation = {key: torch.from_numpy(np.stack([o[key] for o in episode.observations])) for key in keys}
        final = {key: torch.as_tensor(episode.final_observation[key]) for key in keys}
    return EpisodeRecord(
        observation,
        torch.stack(episode.latents),
        torch.stack(episode.log_prob),
        episode.chunk_rewards,
        episode.success[metric],
        episode.terminated,
        final,
    )
