"""What fine-tuning remembers: recent episodes, proficient ones, and the scale of all rewards.

Shape letters: C chunks of an episode, E episodes.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from sodp3d.envs.config import LASTING, EnvConfig
from sodp3d.learning.buffers import EpisodeRecord, ReplayBuffer, TargetBuffer
from sodp3d.learning.ppo import RunningScale
from sodp3d.rollouts.rollout import Episode
from sodp3d.settings import FinetuneSettings


class Memory:
    """Where episodes go, whoever made them: `replay`, what acted lately; `target`, what is worth cloning."""

    def __init__(self, settings: FinetuneSettings) -> None:
        self.replay = ReplayBuffer(settings.replay_episodes)
        self.target = TargetBuffer(settings.target_episodes, settings.best_returns)
        self.cut = settings.cloned_until == "success"
        self.scale = RunningScale()
        self.scale_reward = settings.scale_reward

    def take(self, records: Iterable[EpisodeRecord]) -> None:
        """Remember episodes."""
        for record in records:
            self.replay.add(record)
            proficient = record.until_success()
            if proficient is not None:
                self.target.add(proficient if self.cut else record)
            self.scale.update(record.reward)

    def no_credit(self) -> Tensor:
        """(sum of C,) zeros: all that is known of plans whose worth was not measured."""
        return torch.zeros(self.replay.chunks)

    @property
    def deviation(self) -> float:
        """What rewards are divided by; 1 where the settings leave them as they are."""
        return self.scale.deviation if self.scale_reward else 1.0

    def rewards(self) -> list[Tensor]:
        """Chunk rewards of the recent episodes, E of (C_e,), divided by their deviation where the settings say so."""
        rewards = self.replay.rewards()
        return [self.scale(reward) for reward in rewards] if self.scale_reward else rewards


def to_record(episode: Episode, task: EnvConfig, frozen: bool) -> EpisodeRecord:
    """A roll-out as memory keeps it: features where the encoder is frozen, else raw observations."""
    if frozen:
        assert episode.final_features is not None, "roll-outs to learn from keep their chains"
        observation, final = {"features": torch.stack(episode.features)}, {"features": episode.final_features}
    else:
        keys = episode.observations[0]
        observation = {key: torch.from_numpy(np.stack([o[key] for o in episode.observations])) for key in keys}
        final = {key: torch.as_tensor(episode.final_observation[key]) for key in keys}
    executed = torch.tensor([len(rewards) for rewards in episode.rewards])
    return EpisodeRecord(
        observation,
        torch.stack(episode.latents),
        torch.stack(episode.means),
        episode.chunk_rewards,
        executed,
        (episode.begun + executed.cumsum(0) - executed) / task.episode_steps,
        episode.success[task.success_metric],
        episode.terminated,
        final,
        episode.achieved.get(task.success_metric) if task.success_metric in LASTING else None,
    )
