"""Actors on a state vector, and VRL3's twin critics, laid out for speed on a CPU.

Shape letters: B batch, Ds state size, Da action size, M actions per state, F trunk features, h hidden width.
Both critics live in one module whose parameters hold them side by side, so that each layer is a single product.
"""

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sodp3d.collection.agents.memory import Batch, Trajectory

_LOG_DEVIATIONS = (-20.0, 2.0)  # as SAC bounds them
_FLOAT_EDGE = 1e-6  # keeps clamped actions inside the open interval, as DrQ-v2 does


class StateScaler(nn.Module):
    """VRL3's encoder of state vectors: standardization by the demonstrations' statistics, once `fit` is called.

    Its interface is that of `pixels.PixelEncoder`.
    """

    image_size: int | None = None  # it sees no images
    mean: Tensor
    scale: Tensor

    def __init__(self, state_size: int, limit: float = 10.0) -> None:
        super().__init__()
        self.features, self.limit = state_size, limit
        self.register_buffer("mean", torch.zeros(state_size))
        self.register_buffer("scale", torch.ones(state_size))

    def fit(self, trajectories: list[Trajectory]) -> None:
        """`standardize` all their states."""
        self.standardize(np.concatenate([trajectory.states for trajectory in trajectories]))

    def standardize(self, states: np.ndarray, floor: float = 0.01) -> None:
        """Take mean and deviation of states (B, Ds); deviations below `floor` count as `floor`."""
        self.mean.copy_(torch.as_tensor(states.mean(0), dtype=torch.float32))
        self.scale.copy_(torch.as_tensor(np.maximum(states.std(0), floor), dtype=torch.float32))

    def forward(self, states: Tensor) -> Tensor:
        """states (..., Ds) -> standardized, clamped to +-limit: states far from the data must not blow up the nets."""
        return ((states - self.mean) / self.scale).clamp(-self.limit, self.limit)

    def look(self, observations: np.ndarray, device: torch.device) -> Tensor:
        """States (E, Ds) -> what the actor takes in, for acting."""
        return self(torch.as_tensor(observations, dtype=torch.float32, device=device))

    def learn(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch's states and next states as actor and critics take them in."""
        return self(batch.states), self(batch.next_states)


def side_by_side(parameters: Iterable[nn.Parameter]) -> nn.Parameter:
    """Parameters moved into one flat tensor, of which they are views from now on; returned.

    An optimizer's step and a slow average are then one operation each. Move modules to their device before.
    """
    parameters = list(parameters)
    block = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    views = block.data.split([parameter.numel() for parameter in parameters])
    for parameter, view in zip(parameters, views, strict=True):
        parameter.data = view.view_as(parameter)
    return block


def _orthogonal(shape: tuple[int, ...], generator: torch.Generator) -> nn.Parameter:
    """Orthogonal matrices with (input, output) as the last two dimensions, one per leading index."""
    weight = torch.empty(shape)
    for matrix in weight.view(-1, *shape[-2:]):
        nn.init.orthogonal_(matrix, generator=generator)
    return nn.Parameter(weight)


class Trunk(nn.Module):
    """Linear -> LayerNorm -> tanh to a few features (VRL3: 50)."""

    def __init__(self, inputs: int, features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = _orthogonal((inputs, features), generator)
        self.bias = nn.Parameter(torch.zeros(features))
        self.norm = nn.LayerNorm(features)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, inputs) -> (B, F)."""
        return torch.tanh(self.norm(torch.addmm(self.bias, x, self.weight)))


class Actor(nn.Module):
    """Trunk, two hidden layers, and the mean action before the tanh.

    dtype: of the hidden layers' products and activations; parameters, trunk and last layer stay in float32.
    """

    def __init__(
        self,
        state_size: int,
        action_size: int,
        features: int,
        hidden: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.trunk = Trunk(state_size, features, generator)
        sizes = (features, hidden, hidden, action_size)
        self.weights = nn.ParameterList(
            _orthogonal((inputs, outputs), generator) for inputs, outputs in pairwise(sizes)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in sizes[1:])

    def forward(self, states: Tensor) -> Tensor:
        """Scaled states (B, Ds) -> pre-tanh means (B, Da)."""
        x = self.trunk(states).to(self.dtype)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = torch.addmm(bias.to(self.dtype), x, weight.to(self.dtype)).relu()
        return torch.addmm(self.biases[-1], x.float(), self.weights[-1])


class GaussianActor(nn.Module):
    """SAC's actor: hidden layers of one width, and a Gaussian for each action before the tanh."""

    def __init__(self, state_size: int, action_size: int, width: int, layers: int) -> None:
        super().__init__()
        sizes = [state_size, *[width] * layers, 2 * action_size]
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled states (B, Ds) -> means and logarithms of deviations (B, Da), of actions before the tanh."""
        x = states
        for layer in self.layers[:-1]:
            x = layer(x).relu_()
        mean, log_deviation = self.layers[-1](x).chunk(2, dim=-1)
        return mean, log_deviation.clamp(*_LOG_DEVIATIONS)

    def sample(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B, Da) in [-1, 1] made of Gaussian noise (B, Da), and the logarithms of their densities (B,)."""
        mean, log_deviation = self(states)
        before = torch.addcmul(mean, log_deviation.exp(), noise)
        shrinking = 2 * (math.log(2) - before - functional.softplus(-2 * before))  # log(1 - tanh^2)
        density = -0.5 * noise.square() - log_deviation - 0.5 * math.log(2 * math.pi) - shrinking
        return torch.tanh(before), density.sum(-1)


class TwinCritic(nn.Module):
    """Two action-value heads (leading dimension 2) over one trunk.

    layer_norm: normalize hidden layers too, which bounds the values of actions far from the data (RLPD; not in VRL3).
    dtype: of the hidden layers' products and activations; parameters, trunk and last layer stay in float32.
    """

    def __init__(
        self,
        state_size: int,
        action_size: int,
        features: int,
        hidden: int,
        generator: torch.Generator,
        layer_norm: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.layer_norm, self.dtype = layer_norm, dtype
        self.trunk = Trunk(state_size, features, generator)
        # An orthogonal (F + Da, h) matrix per head, stored as its state rows and its action rows: the state's part
        # of the first layer is then computed once per state, however many actions are asked about.
        first = torch.cat([_orthogonal((features + action_size, hidden), generator).detach() for _ in range(2)], dim=1)
        self.state_weight = nn.Parameter(first[:features].clone())  # (F, 2h)
        self.action_weight = nn.Parameter(first[features:].clone())  # (Da, 2h)
        self.first_bias = nn.Parameter(torch.zeros(2 * hidden))
        self.hidden_weight = _orthogonal((2, hidden, hidden), generator)
        self.hidden_bias = nn.Parameter(torch.zeros(2, 1, hidden))
        self.value_weight = _orthogonal((2, hidden, 1), generator)
        self.value_bias = nn.Parameter(torch.zeros(2, 1, 1))

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """Scaled states (B, Ds), actions (B, M, Da) -> values (2, B, M)."""
        batch, count, _ = actions.shape
        cast = self.dtype
        from_state = torch.addmm(self.first_bias.to(cast), self.trunk(states).to(cast), self.state_weight.to(cast))
        x = from_state[:, None] + actions.to(cast) @ self.action_weight.to(cast)  # (B, M, 2h)
        x = self._activate(x.view(batch * count, 2, -1)).transpose(0, 1)  # (2, B M, h)
        x = self._activate(torch.baddbmm(self.hidden_bias.to(cast), x, self.hidden_weight.to(cast)))
        return torch.baddbmm(self.value_bias, x.float(), self.value_weight).view(2, batch, count)

    def _activate(self, x: Tensor) -> Tensor:
        return functional.relu(functional.layer_norm(x, x.shape[-1:]) if self.layer_norm else x)


def noisy_action(pre_tanh: Tensor, std: float, generator: torch.Generator | None, clip: float | None = None) -> Tensor:
    """tanh(pre_tanh) plus Gaussian noise of deviation `std`, the noise clipped to +-`clip`, the sum to (-1, 1).

    The clamp is straight-through, so the gradient reaches the mean (DrQ-v2's truncated normal). No generator, no noise.
    """
    mean = torch.tanh(pre_tanh)
    if generator is None or std == 0.0:
        return mean
    noise = std * torch.randn(mean.shape, generator=generator, device=mean.device)
    if clip is not None:
        noise = noise.clamp(-clip, clip)
    sample = mean + noise
    return sample + (sample.clamp(-1 + _FLOAT_EDGE, 1 - _FLOAT_EDGE) - sample).detach()
