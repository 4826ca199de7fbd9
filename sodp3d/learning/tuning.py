"""All that changes while fine-tuning: memory, credit, learner, keeper, and what has been counted."""

import logging
from typing import Any

import torch
from torch import Tensor

from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.core.run import Run
from sodp3d.core.seeds import CHOOSING
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.arms import Arms
from sodp3d.learning.branching import Branches, Group, interactions
from sodp3d.learning.buffers import EpisodeRecord
from sodp3d.learning.checks import require_same_start
from sodp3d.learning.credit import Credit, normalized
from sodp3d.learning.critic import CriticLearner, Imagined
from sodp3d.learning.keeper import Keeper, keep, kept
from sodp3d.learning.learner import Learner, Lesson, Plans
from sodp3d.learning.memory import Memory, to_record
from sodp3d.models.critic import Choice, described_choice
from sodp3d.models.planner import Planner
from sodp3d.rollouts.evaluate import Evaluation
from sodp3d.rollouts.rollout import Episode
from sodp3d.settings import FinetuneSettings, RegularizerSettings

log = logging.getLogger(__name__)


class Finetuning:
    """Its parts put together, so that saving and loading it leaves no trace in the result."""

    def __init__(
        self, pretrained: Planner, settings: FinetuneSettings, regularizer: RegularizerSettings, seed: int
    ) -> None:
        settings.check_regularizer(regularizer)
        self.settings = settings
        self.learner = Learner(pretrained, settings, regularizer, seed)
        torch.manual_seed(seed)  # of the value head's first weights
        self.credit = Credit(settings, pretrained)
        self.memory = Memory(settings)
        self.critic = CriticLearner(pretrained, settings.critic, seed) if settings.critic.members else None
        self.arms = Arms()
        self.branches = Branches(settings.branches.capacity) if settings.credit == "branch" else None
        self.keeper = Keeper(settings.collapse, settings.setback)
        self.episodes = 0  # learned from
        self.rolled_out = 0  # with those before the first update
        self.environment_steps = 0  # control steps
        self.watched: dict[str, float] = {}  # how the critic did on the newest roll-outs
        self.before: dict[str, Any] = {}  # evaluation of the planner that it began with

    @property
    def planner(self) -> Planner:
        """The planner that learns."""
        return self.learner.planner

    def remember(self, episodes: list[Episode], task: EnvConfig) -> None:
        """Take roll-outs into memory, all but those that diverged, and count them."""
        frozen = self.settings.encoder == "frozen"
        records = [to_record(episode, task, frozen) for episode in episodes if not episode.diverged]
        if self.critic is not None:
            self.watched = self.critic.calibrate(records, self.planner, self.memory.deviation)
        self._take(records)
        self.environment_steps += sum(episode.length for episode in episodes)
        self.rolled_out += interactions(episodes, task)

    def compare_plans(self, groups: list[Group], task: EnvConfig) -> None:
        """Remember what plans of one state each came to."""
        assert self.branches is not None
        for group in groups:
            self.branches.add(group, lambda episode: to_record(episode, task, self.settings.encoder == "frozen"))

    def _take(self, records: list[EpisodeRecord]) -> None:
        self.memory.take(records)
        if self.critic is not None and records:
            self.critic.take(records, self.planner, self.learner.options)

    def choice(self, count: int) -> Choice | None:
        """How a critic chooses among `count` plans, if there is one."""
        return None if self.critic is None else self.critic.choice(count)

    def choosing(self, seed: int, count: int) -> list[bool]:
        """In which of the next `count` training roll-outs the critic chooses."""
        if self.choice(self.settings.best_of) is None:
            return [False] * count
        if self.settings.choice == "always":
            return [True] * count
        return [self.arms.draw((seed, CHOOSING, self.rolled_out + place)) for place in range(count)]

    def judge_choice(self, chosen: list[bool], success: list[bool]) -> dict[str, float]:
        """Compare roll-outs in which the critic chose with those in which it did not."""
        if self.choice(self.settings.best_of) is None or self.settings.choice == "always":
            return {}
        self.arms.add(chosen, success)
        return {"critic/chose": sum(chosen) / len(chosen), "critic/gain": self.arms.gain}

    @property
    def tested_best_of(self) -> int:
        """Plans of which the critic chooses in validations and tests.

        1 as long as it has not learned, and where its choice has been found to mislead.
        """
        learned = self.critic is not None and self.critic.updates > 0
        misleads = self.settings.choice == "earned" and self.arms.misleads
        return self.settings.tested_best_of if learned and not misleads else 1

    def replay_recorded(self, records: list[EpisodeRecord], task: EnvConfig) -> None:
        """Take another run's episodes into memory, as if they were rolled out now."""
        self._take(records)
        self.environment_steps += len(records) * task.episode_steps

    def interactions(self, validation_episodes: int) -> dict[str, int]:
        """Episodes by purpose that went into the planner: before the first update, learned from, and validation's.

        validation_episodes: of each validation. Those of the test at both ends change nothing, and are left out.
        """
        initial = max(self.rolled_out - self.episodes, 0)  # 0 where another run's episodes are learned from
        return {
            "initial": initial,
            "training": self.episodes,
            "validation": validation_episodes * len(self.keeper.scores),
        }

    def learn(self, updates: int) -> dict[str, float]:
        """Up to `updates` gradient steps on what is remembered; returns mean metrics.

        Raises InputError where nothing is.
        """
        if not self.memory.replay.chunks:
            raise InputError(
                f"finetune: the simulation diverged in all of {self.rolled_out} episodes, so there is nothing to learn "
                "from. Check the model's time step and actuators, or begin with a planner that was pre-trained longer."
            )
        settings, progress = self.settings, self.episodes / self.settings.episodes
        rate = settings.learning_rate * settings.final_learning_rate**progress * self.keeper.slowed
        lesson, metrics = self._lesson(updates)
        where = f"finetune: after {self.episodes} episodes"
        metrics |= self.watched | self.learner.learn(lesson, updates, rate, where, self.keeper.slowed)
        return {**metrics, "train/target_episodes": len(self.memory.target)}

    def _lesson(self, updates: int) -> tuple[Lesson, dict[str, float]]:
        """What this iteration learns from; the critic, where there is one, learns first."""
        settings, memory = self.settings, self.memory
        metrics, imagined = {}, None
        if self.critic is not None:
            episodes = updates // settings.updates_per_episode
            self.critic.refresh(self.planner, self.learner.options)
            metrics = self.critic.learn(episodes * settings.critic.updates_per_episode, memory.deviation)
            if settings.credit == "critic" or settings.chosen_share:
                imagined = self.critic.imagine(self.planner, self.learner.options)
                metrics["critic/agreed"] = float((imagined.credit != 0).float().mean())
        chosen = imagined.chosen() if imagined is not None and settings.chosen_share else None
        plans, credits = self._weighed(imagined)
        return Lesson(plans, credits, memory.target, chosen or None, settings.chosen_share), metrics

    def _weighed(self, imagined: Imagined | None) -> tuple[Plans, Tensor]:
        """Plans of the importance term, and the weight of each."""
        settings, memory = self.settings, self.memory
        if self.branches is not None:
            if not len(self.branches):  # then nothing is told of any plan
                return memory.replay, memory.no_credit()
            return self.branches, normalized(self.branches.credit / memory.deviation, settings)
        if settings.credit == "critic":
            assert imagined is not None
            return imagined.plans, normalized(imagined.credit, settings)
        return memory.replay, self.credit.weights(memory, self.planner)

    def compare(self, validation: Evaluation, run: Run, described: dict[str, Any]) -> None:
        """Note a validation: the best planner so far is kept, and a collapse goes back to it."""
        verdict = self.keeper.judge(validation.success_rate)
        if verdict == "best":
            state = {**described, **self._described_choice()}
            critic = None if self.critic is None else self.critic.critic
            keep(run.directory / "best", self.environment_steps, self.planner, critic, state)
        elif verdict == "collapsed":
            self.learner.go_back_to(kept(run.directory / "best"))

    def guard(self, success: list[bool], run: Run, pretrained: Planner) -> None:
        """Note how roll-outs ended: where they say that learning did harm, the best planner, or the first, goes on."""
        if self.keeper.set_back(success):
            best = kept(run.directory / "best") if self.keeper.scores else pretrained.state_dict()
            self.learner.go_back_to(best)

    def save(self, run: Run, described: dict[str, Any]) -> None:
        """Publish a checkpoint of everything."""
        tensors = {name: generator.get_state() for name, generator in self._generators().items()}
        for name, part in self._parts().items():
            tensors |= checkpoint.with_prefix(name, part.state_dict())
        for name, optimizer in self._optimizers().items():
            tensors |= checkpoint.with_prefix(name, checkpoint.optimizer_tensors(optimizer))
        counters = {key: getattr(holder, key) for key, holder in self._counters().items()}
        state = {**described, **self._described_choice(), "counters": counters}
        checkpoint.save(run.checkpoints, self.environment_steps, tensors, state)

    def _described_choice(self) -> dict[str, Any]:
        return {} if self.critic is None else described_choice(self.critic.critic, self.tested_best_of)

    def load(self, run: Run, start: str) -> bool:
        """Continue from the newest checkpoint; False where there is none.

        start: digest of the planner that came. Raises InputError where the run began with another.
        """
        found = checkpoint.load_latest(run.checkpoints)
        if found is None:
            return False
        step, tensors, state = found
        require_same_start(state, start, run.directory)
        with checkpoint.restoring(checkpoint.path_of(run.checkpoints, step)):
            self._restore(tensors, state)
        checkpoint.drop_after(run.directory / "best", self.environment_steps)
        log.info("resumed after %d episodes", self.episodes)
        return True

    def _restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        own = self._described_choice().get("critic")
        if set(self._counters()) - set(state["counters"]) or (
            own and own["activation"] != state["critic"].get("activation")
        ):
            raise InputError(
                "finetune: this run was begun with an earlier release, whose roll-outs or critic are of another kind; "
                "finish it there, or begin a new one (run_dir= names another folder)."
            )
        for name, generator in self._generators().items():
            checkpoint.restore_generator(generator, tensors[name])
        for name, part in self._parts().items():
            part.load_state_dict(checkpoint.without_prefix(name, tensors))
        for name, optimizer in self._optimizers().items():
            checkpoint.load_optimizer(optimizer, checkpoint.without_prefix(name, tensors))
        for key, holder in self._counters().items():
            setattr(holder, key, state["counters"][key])

    def _parts(self) -> dict[str, Any]:
        memory = self.memory
        parts = {"planner": self.planner, "value": self.credit.value, "scale": memory.scale}
        parts |= {"replay": memory.replay, "target": memory.target}
        parts |= {"branches": self.branches} if self.branches is not None else {}
        return parts if self.critic is None else {**parts, "critic": self.critic}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizers = {"optimizer": self.learner.optimizer, "value_optimizer": self.credit.optimizer}
        return {**optimizers, "large_optimizer": self.learner.large}

    def _generators(self) -> dict[str, torch.Generator]:
        return {"batches": self.learner.batches, "noise": self.learner.noise}

    def _counters(self) -> dict[str, Any]:
        """Who holds each number of a checkpoint's state."""
        own = dict.fromkeys(("episodes", "rolled_out", "environment_steps", "before"), self)
        kept = dict.fromkeys(("best", "scores", "slowed", "first", "recent"), self.keeper)
        return {**own, **kept, "rate_factor": self.learner, "outcomes": self.arms}
