"""BC-RNN (Mandlekar et al., 2021): a recurrent network imitates sequences with a mixture of Gaussians for each action.

Shape letters: B batch, S steps of a sequence, F = 128 features of a step, M members of the mixture, Da action size,
L layers, W width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn.functional import softplus

from sodp3d.core.sections import Count, Positive, section
from sodp3d.envs.config import EnvConfig
from sodp3d.models.encoders import FEATURE_SIZE
from sodp3d.models.policy import LearnedPolicy, Memory, Window, drawn, require_single_steps
from sodp3d.models.policy_config import MethodConfig
from sodp3d.settings import ModelSettings

State = tuple[Tensor, Tensor]  # of the recurrent network: (L, B, W) each


@section("model")
class BCRNNSettings(ModelSettings):
    """The section `model` of method=bcrnn."""

    sequence: Count = 10  # S, steps that are learned together, and after which acting forgets
    width: Count | None = None  # W; null: 400 from states, 1000 from what a camera sees
    layers: Count = 2
    members: Count = 5
    least_deviation: Positive = 1e-4  # of each member, normalized action units; all of it when acting


class BCRNN(LearnedPolicy):
    """Acts at every step; what it has seen is in the memory of the episode, afresh every S steps."""

    config: MethodConfig
    settings = BCRNNSettings

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        own, features = self.own, 2 * FEATURE_SIZE
        width = own.width or (400 if len(config.sensor_shape) == 1 else 1000)
        self.recurrent = nn.LSTM(features, width, own.layers, batch_first=True)
        self.head = nn.Linear(width, own.members * (1 + 2 * config.action_size))

    @property
    def own(self) -> BCRNNSettings:
        """The section that it was made with."""
        assert isinstance(self.config.model, BCRNNSettings)
        return self.config.model

    @classmethod
    def window(cls, task: EnvConfig, model: BCRNNSettings) -> Window:
        """S steps from the current one on, all observed."""
        require_single_steps("bcrnn", task, observed=1)
        return Window(model.sequence, model.sequence, 0)

    def losses(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Negative log-likelihood of each action. batch: raw "action" (B, S, Da), observations (B, S, ...)."""
        steps = batch["action"].shape[1]
        features = self.encode(batch, steps).unflatten(1, (steps, -1))
        logits, mean, deviation = self._mixture(self.recurrent(features)[0])
        parts = Categorical(logits=logits, validate_args=False), Normal(mean, deviation, validate_args=False)
        mixture = MixtureSameFamily(parts[0], Independent(parts[1], 1), validate_args=False)
        return -mixture.log_prob(self.normalizer.normalize("action", batch["action"])).mean(1)

    @torch.no_grad()
    def act(self, observation: Mapping[str, NDArray[Any]], memories: Sequence[Memory]) -> NDArray[Any]:
        """As `Policy.act`, with next to no noise (`least_deviation`), as its authors evaluate it."""
        features = self.encode(self.on_device(observation))
        output, state = self.recurrent(features[:, None], self._recalled(memories))
        logits, mean, _ = self._mixture(output[:, 0])
        chances = logits.softmax(-1).cpu()
        rows = zip(chances, memories, strict=True)
        member = torch.stack([torch.multinomial(row, 1, generator=memory.generator) for row, memory in rows])
        chosen = mean.cpu()[torch.arange(len(memories)), member[:, 0]]
        chosen = chosen + self.own.least_deviation * drawn(memories, mean.shape[-1])
        for row, memory in enumerate(memories):
            memory.held = state[0][:, row], state[1][:, row]
            memory.steps += 1
        return self.actions(chosen.to(self.device))[:, None].cpu().numpy()

    def _recalled(self, memories: Sequence[Memory]) -> State:
        """The state of each episode, zeros where one begins or S steps are over."""
        shape = self.recurrent.num_layers, self.recurrent.hidden_size
        zeros = torch.zeros(shape, device=self.device), torch.zeros(shape, device=self.device)
        held = [zeros if memory.steps % self.own.sequence == 0 else memory.held for memory in memories]
        hidden, cell = (torch.stack(parts, dim=1) for parts in zip(*held, strict=True))
        return hidden, cell

    def _mixture(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (..., W) -> logits (..., M), means and deviations (..., M, Da)."""
        members, size = self.own.members, self.config.action_size
        logits, mean, raw = self.head(output).split([members, members * size, members * size], dim=-1)
        mean, raw = mean.unflatten(-1, (members, size)), raw.unflatten(-1, (members, size))
        return logits, mean.tanh(), softplus(raw) + self.own.least_deviation
