"""How much each remembered plan counts, from its chunk's reward to a value head's advantage.

Shape letters: C chunks of an episode, E episodes, F features.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sodp3d.learning.memory import Memory
from sodp3d.learning.ppo import CreditOptions, ValueHead, credits_and_targets
from sodp3d.models.planner import Planner
from sodp3d.settings import FinetuneSettings


class Credit:
    """Weights of plans; and the value head, with its optimizer, for those that need one."""

    def __init__(self, settings: FinetuneSettings, planner: Planner) -> None:
        self.settings = settings
        self.value = ValueHead(planner.config.feature_size).to(planner.device)
        self.optimizer = torch.optim.Adam(self.value.parameters(), lr=settings.value_learning_rate)

    @property
    def options(self) -> CreditOptions:
        """How rewards become credit."""
        settings = self.settings
        return CreditOptions(settings.credit, settings.baseline, settings.discount, settings.gae_lambda)

    def weights(self, memory: Memory, planner: Planner) -> Tensor:
        """(sum of C,) the weight of each plan in the replay buffer; the value head learns from it first."""
        rewards = memory.rewards()
        estimates = self._fitted_values(rewards, memory, planner) if self.options.needs_value else ()
        credit = credits_and_targets(rewards, self.options, *estimates)[0]
        return normalized(credit, self.settings)

    def _fitted_values(
        self, rewards: list[Tensor], memory: Memory, planner: Planner
    ) -> tuple[list[Tensor], list[float]]:
        """`values`, after the value head has learned from the replay buffer."""
        features = self.features(memory, planner)
        first = self.settings.value_warmup if not self.optimizer.state else 0
        for _ in range(first + self.settings.value_updates):
            _, targets = credits_and_targets(rewards, self.options, *self.values(features, memory, planner))
            loss = (self._estimate(features, memory) - targets.to(features)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return self.values(features, memory, planner)

    @torch.no_grad()
    def features(self, memory: Memory, planner: Planner) -> Tensor:
        """(sum of C, F) features of all plans of the replay buffer, by today's encoder where it is tuned."""
        rows = memory.replay.rows
        parts = [
            planner.features(on_device({key: value[index] for key, value in rows.items()}, planner))
            for index in torch.arange(memory.replay.chunks).split(self.settings.batch_size)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def values(self, features: Tensor, memory: Memory, planner: Planner) -> tuple[list[Tensor], list[float]]:
        """Estimates per episode, E of (C_e,), and of the state after each, E.

        The latter is 0 where the task terminated, and with discount 1, whose return is that of the time limit's steps
        (without a limit there would be none). Below 1 the limit is none of the task's: what would follow is estimated.
        """
        replay = memory.replay
        final = torch.zeros(len(replay))
        if self.settings.discount < 1:
            after = planner.features(on_device(replay.finals, planner))
            final = torch.where(replay.facts["terminated"], final, self.value(after, final.to(after)).cpu())
        return replay.per_episode(self._estimate(features, memory).cpu()), final.tolist()

    def _estimate(self, features: Tensor, memory: Memory) -> Tensor:
        """(sum of C,) of all plans in memory. With discount 1 a return is of the time left, so that is told."""
        elapsed = memory.replay.rows["elapsed"].to(features)
        return self.value(features, elapsed if self.settings.discount == 1 else torch.zeros_like(elapsed))


def normalized(credit: Tensor, settings: FinetuneSettings) -> Tensor:
    """Divided by their deviation where the settings say so; by that alone, so that signs are kept."""
    return credit / credit.std(correction=0).clamp(min=1e-8) if settings.normalize_credit else credit


def on_device(rows: Mapping[str, Tensor], planner: Planner) -> dict[str, Tensor]:
    """Rows of memory, which is the main one's, where the planner is."""
    return {key: value.to(planner.device) for key, value in rows.items()}
