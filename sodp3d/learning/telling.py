"""A second lesson for the encoder while pre-training: where the simulator says that things are.

Actions alone teach it slowly what to look at. Stores of simulations hold the state beside each picture, and a head that
tells it from the features teaches the encoder at once. The head is thrown away, and the planner never sees a state.

Shape letters: B batch, To observed steps, Ds state size, F = To * 128 features.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from sodp3d.core.errors import InputError
from sodp3d.data.dataset import WindowDataset
from sodp3d.models.encoders import FEATURE_SIZE
from sodp3d.models.planner import Planner
from sodp3d.models.policy import LearnedPolicy, method_class
from sodp3d.settings import TrainSettings
from sodp3d.vision.sensors import STATE

_WIDTH, _ROWS = 256, 5000  # of the head; of the data, evenly spread, by which numbers are scaled
_SMOOTH = 0.1  # deviations, below which the error is squared
_CONSTANT = 1e-6  # deviation below which a number says nothing


def require_states(settings: TrainSettings) -> None:
    """Raise InputError where states are to be told of what sees them, by no planner, or of clouds that are turned."""
    asked = settings.pretrain.state_weight
    if not asked:
        return
    told = f"pretrain.state_weight: {asked:g} teaches a planner's encoder to tell the state, but "
    if settings.obs.name == STATE.key:
        raise InputError(f"{told}obs=state sees it; use 0, or obs=pointcloud.")
    if not issubclass(method_class(settings.stage.method), Planner):
        raise InputError(f"{told}method={settings.stage.method} makes none; use 0, or method=sodp.")
    if settings.pretrain.augment.rotation:
        raise InputError(f"{told}pretrain.augment.rotation turns what it would be told of; use 0 of one of them.")


class StateTelling(nn.Module):
    """A planner with a head that tells the state of each observed step from its features."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, planner: LearnedPolicy, dataset: WindowDataset, weight: float) -> None:
        super().__init__()
        self.planner, self.weight = planner, weight
        rows = np.linspace(0, len(dataset) - 1, min(len(dataset), _ROWS)).astype(np.int64)
        states = torch.from_numpy(dataset.steps(STATE.key, rows))
        self.register_buffer("mean", states.mean(0))
        self.register_buffer("deviation", states.std(0))
        size = states.shape[1]
        self.head = nn.Sequential(nn.Linear(2 * FEATURE_SIZE, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, size))

    def losses(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """(B,) the planner's own of each window, and `weight` times the error of its states, in deviations.

        batch: as the planner's, with raw "state" (B, To, Ds). The error is absolute beyond a tenth of a deviation: what
        nobody can see, as how a ball is turned, would otherwise drown what can be learned.
        """
        features = self.planner.encode(batch)
        varies = self.deviation > _CONSTANT
        scaled = (batch[STATE.key] - self.mean) / torch.where(varies, self.deviation, 1.0)
        told = self.head(features.unflatten(1, (self.planner.config.n_obs_steps, -1)))
        errors = smooth_l1_loss(told, scaled, reduction="none", beta=_SMOOTH) * varies
        missed = errors.sum((1, 2)) / (varies.sum() * told.shape[1]).clamp(min=1)
        return self.planner.losses({**batch, "features": features}, generator) + self.weight * missed
