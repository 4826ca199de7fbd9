"""IBC (Florence et al., 2022): an energy of actions, learned against random ones, whose minimum is searched to act.

Shape letters: B batch, F features, N negatives or samples of one state, Da action size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sodp3d.core import draws
from sodp3d.core.sections import Count, Fraction, NotNegative, section
from sodp3d.data.dataset import WindowDataset
from sodp3d.envs.config import EnvConfig
from sodp3d.models.policy import LearnedPolicy, Memory, Window, require_single_steps
from sodp3d.models.policy_config import MethodConfig
from sodp3d.settings import ModelSettings

OBSERVED = 2  # To


@section("model")
class IBCSettings(ModelSettings):
    """The section `model` of method=ibc."""

    width: Count = 1024
    layers: Count = 4  # hidden ones
    dropout: Fraction = 0.1
    negatives: Count = 1024  # of each action in training
    positive_noise: NotNegative = 1e-4  # standard deviation, normalized action units
    samples: Count = 1024  # of each search
    iterations: Count = 5  # of it
    resampling_noise: NotNegative = 0.03  # standard deviation, normalized action units


class IBC(LearnedPolicy):
    """Acts at every step by the samples that an energy likes: drawn in the data's range, resampled around the best."""

    config: MethodConfig
    settings = IBCSettings
    low: Tensor
    high: Tensor

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        own = self.own
        self.of_features = nn.Linear(config.feature_size, own.width)
        self.of_action = nn.Linear(config.action_size, own.width, bias=False)
        hidden = [layer for _ in range(own.layers - 1) for layer in self._block(nn.Linear(own.width, own.width))]
        self.rest = nn.Sequential(nn.Dropout(own.dropout), nn.ReLU(), *hidden, nn.Linear(own.width, 1, bias=False))
        self.register_buffer("low", -torch.ones(config.action_size))  # range of the data's normalized actions
        self.register_buffer("high", torch.ones(config.action_size))

    def _block(self, layer: nn.Module) -> tuple[nn.Module, ...]:
        return layer, nn.Dropout(self.own.dropout), nn.ReLU()

    @property
    def own(self) -> IBCSettings:
        """The section that it was made with."""
        assert isinstance(self.config.model, IBCSettings)
        return self.config.model

    @classmethod
    def window(cls, task: EnvConfig, model: IBCSettings) -> Window:
        """The current step and the one before."""
        require_single_steps("ibc", task, OBSERVED)
        return Window(OBSERVED, OBSERVED, OBSERVED - 1)

    def prepare(self, dataset: WindowDataset) -> None:
        """As `LearnedPolicy.prepare`, and the range of actions, which is a point for one that never changes."""
        super().prepare(dataset)
        for buffer, values in zip((self.low, self.high), dataset.ranges["action"], strict=True):
            buffer.copy_(self.normalizer.normalize("action", torch.as_tensor(values, dtype=torch.float32)))

    def forward(self, features: Tensor, actions: Tensor) -> Tensor:
        """features (B, F), normalized actions (B, N, Da) -> logits (B, N), higher where the energy is lower."""
        return self.rest(self.of_features(features)[:, None] + self.of_action(actions)).squeeze(-1)

    def losses(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """InfoNCE: how surely each action is found among uniform ones. batch: "action" (B, 2, Da), observations."""
        positive = self.normalizer.normalize("action", batch["action"])[:, -1:]
        size, device = (len(positive), self.own.negatives, positive.shape[-1]), positive.device
        positive = positive + self.own.positive_noise * draws.normal(positive.shape, generator, device=device)
        negative = self._within(draws.uniform(size, generator, device=device))
        logits = self(self.encode(batch), torch.cat([positive, negative], dim=1))
        return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device), reduction="none")

    def _within(self, share: Tensor) -> Tensor:
        """From [0, 1] to the data's range."""
        return self.low + (self.high - self.low) * share

    @torch.no_grad()
    def act(self, observation: Mapping[str, NDArray[Any]], memories: Sequence[Memory]) -> NDArray[Any]:
        """As `Policy.act`: samples are drawn anew by their chances and moved a little, `iterations` times."""
        own, features = self.own, self.encode(self.on_device(observation))
        shape = own.samples, self.config.action_size
        share = torch.stack([torch.rand(shape, generator=memory.generator) for memory in memories])
        samples = self._within(share.to(self.device))
        for _ in range(own.iterations - 1):
            samples = self._drawn_again(features, samples, memories, own.samples)
            noise = torch.stack([torch.randn(shape, generator=memory.generator) for memory in memories])
            moved = samples + own.resampling_noise * noise.to(self.device)
            samples = moved.clamp(self.low, self.high)
        return self.actions(self._drawn_again(features, samples, memories, 1)).cpu().numpy()

    def _drawn_again(self, features: Tensor, samples: Tensor, memories: Sequence[Memory], count: int) -> Tensor:
        """`count` of each state's samples (B, N, Da), by their chances, each episode by its own generator."""
        chances = self(features, samples).softmax(dim=-1).cpu()
        drawn = [
            torch.multinomial(row, count, replacement=True, generator=memory.generator)
            for row, memory in zip(chances, memories, strict=True)
        ]
        index = torch.stack(drawn).to(samples.device)
        return samples.gather(1, index[..., None].expand(-1, -1, samples.shape[-1]))
