"""MTBC: behaviour cloning of several tasks by one network that is told the task (paper, section D).

Shape letters: B batch, F features, Da action size, Z size of a task's latent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sodp3d.core.sections import Count, section
from sodp3d.envs.config import EnvConfig
from sodp3d.models.policy import LearnedPolicy, Memory, Window, require_single_steps
from sodp3d.models.policy_config import MethodConfig
from sodp3d.settings import ModelSettings


@section("model")
class MTBCSettings(ModelSettings):
    """The section `model` of method=mtbc."""

    width: Count = 256
    latent: Count = 64  # Z


class MTBC(LearnedPolicy):
    """A 3-layer MLP of features and the task's latent, which another 3-layer MLP makes of the task's number."""

    config: MethodConfig
    settings = MTBCSettings
    labels = ("task",)

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        own = self.own
        self.of_task = three_layers(1, own.width, own.latent)
        self.actor = three_layers(config.feature_size + own.latent, own.width, config.action_size)

    @property
    def own(self) -> MTBCSettings:
        """The section that it was made with."""
        assert isinstance(self.config.model, MTBCSettings)
        return self.config.model

    @classmethod
    def window(cls, task: EnvConfig, model: MTBCSettings) -> Window:
        """The current step alone."""
        require_single_steps("mtbc", task, observed=1)
        return Window(1, 1, 0)

    def forward(self, features: Tensor, task: Tensor) -> Tensor:
        """features (B, F), places of tasks (B,) -> normalized actions (B, Da)."""
        latent = self.of_task(task[:, None].to(features))
        return self.actor(torch.cat([features, latent], dim=-1))

    def losses(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """MSE of normalized actions. batch: raw "action" (B, 1, Da), observations (B, 1, ...), "task" (B,)."""
        target = self.normalizer.normalize("action", batch["action"])[:, 0]
        return mse_loss(self(self.encode(batch), batch["task"]), target, reduction="none").mean(1)

    @torch.no_grad()
    def act(self, observation: Mapping[str, NDArray[Any]], memories: Sequence[Memory]) -> NDArray[Any]:
        """As `Policy.act`."""
        task = torch.tensor([memory.task for memory in memories], device=self.device)
        return self.actions(self(self.encode(self.on_device(observation)), task))[:, None].cpu().numpy()


def three_layers(size_in: int, width: int, size_out: int) -> nn.Sequential:
    """A 3-layer MLP with Mish: (..., size_in) -> (..., size_out)."""
    layers = nn.Linear(size_in, width), nn.Mish(), nn.Linear(width, width), nn.Mish(), nn.Linear(width, size_out)
    return nn.Sequential(*layers)
