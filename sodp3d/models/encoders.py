"""Observation encoders: a sensor (point cloud, state or image) and the proprioception of To steps -> one condition.

Shape letters: B batch, To observed steps, N points, Dp proprioception size, Ds state size, H W image.
Inputs are normalized (images excepted: they are uint8 and scaled here).
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from sodp3d.core import registry
from sodp3d.core.errors import InputError
from sodp3d.models.pooling import SharedMaximum, maximum
from sodp3d.vision.sensors import sensor

FEATURE_SIZE = 64


class SensorEncoder(Protocol):
    """What `model.encoder=` names: a module made from the shape of one step of what it reads."""

    sensors: tuple[str, ...]  # what it can read, as `obs=` names it

    def __init__(self, sensor_shape: tuple[int, ...]) -> None: ...

    def forward(self, values: Tensor) -> Tensor:
        """values (..., *sensor_shape), scaled to [-1, 1] where the sensor says so -> (..., FEATURE_SIZE)."""


class PointCloudEncoder(nn.Module):
    """DP3's encoder: shared MLP 3-64-128-256 (LayerNorm and ReLU after each), max over points, Linear 64, LayerNorm.

    On the CPU the maximum over points has a backward that touches only the points that win some channel
    (`pooling.SharedMaximum`): the same output, the same gradients of the parameters, a fraction of the time and
    memory. The cloud itself then receives no gradient.

    dense: take the straightforward path there too (the reference in tests, and the way to a gradient in the points).
    """

    sensors = ("pointcloud",)

    def __init__(self, sensor_shape: tuple[int, ...] = (0, 3), dense: bool = False) -> None:
        super().__init__()
        self.dense = dense
        layers: list[nn.Module] = []
        for size_in, size_out in ((3, 64), (64, 128), (128, 256)):
            layers += [nn.Linear(size_in, size_out), nn.LayerNorm(size_out), nn.ReLU(inplace=True)]
        self.shared = nn.Sequential(*layers)
        self.project = nn.Sequential(nn.Linear(256, FEATURE_SIZE), nn.LayerNorm(FEATURE_SIZE))

    def forward(self, points: Tensor) -> Tensor:
        """points: (..., N, 3) -> (..., 64)."""
        clouds = points.reshape(-1, *points.shape[-2:])
        if self.dense or clouds.device.type != "cpu":
            pooled = self.shared(clouds).max(dim=1).values
        elif torch.is_grad_enabled():
            pooled = SharedMaximum.apply(clouds, *self.shared.parameters())
        else:
            pooled = maximum(clouds, list(self.shared.parameters()))
        return self.project(pooled).view(*points.shape[:-2], FEATURE_SIZE)


class StateEncoder(nn.Module):
    """Low-dimensional state: (..., Ds) -> (..., 64), in place of the point encoder."""

    sensors = ("state",)

    def __init__(self, sensor_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(sensor_shape[0], 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
            nn.Linear(256, FEATURE_SIZE), nn.LayerNorm(FEATURE_SIZE),
        )  # fmt: skip

    def forward(self, state: Tensor) -> Tensor:
        """state: (..., Ds) -> (..., 64)."""
        return self.layers(state)


class ImageEncoder(nn.Module):
    """A small CNN for RGB of 64 to 256 px: (..., 3, H, W) uint8 -> (..., 64).

    GroupNorm rather than BatchNorm: the moving average of the weights and single observations then behave alike.
    """

    sensors = ("image",)

    def __init__(self, sensor_shape: tuple[int, ...] = (3, 0, 0)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size_in, size_out in ((3, 32), (32, 64), (64, 128), (128, 128)):
            layers += [
                nn.Conv2d(size_in, size_out, 3, stride=2, padding=1), nn.GroupNorm(8, size_out), nn.ReLU(inplace=True)
            ]  # fmt: skip
        # A 4 x 4 grid keeps where things are, which a global average would lose.
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.project = nn.Sequential(nn.Linear(128 * 16, FEATURE_SIZE), nn.LayerNorm(FEATURE_SIZE))

    def forward(self, image: Tensor) -> Tensor:
        """image: (..., 3, H, W) in 0..255 -> (..., 64)."""
        frames = image.reshape(-1, *image.shape[-3:]) / 127.5 - 1
        return self.project(self.layers(frames)).view(*image.shape[:-3], FEATURE_SIZE)


def make_sensor_encoder(observation: str, sensor_shape: tuple[int, ...], name: str | None = None) -> nn.Module:
    """The encoder `name`, or else the sensor's own; sensor_shape is one step's.

    Raises InputError on an unknown sensor or encoder, and for an encoder that does not read this sensor.
    """
    name = name or sensor(observation).encoder
    kind = registry.choose(registry.ENCODERS, name, "model.encoder")
    if observation not in kind.sensors:
        raise InputError(
            f"model.encoder: {name} reads obs={' or obs='.join(kind.sensors)}, but obs={observation} came; "
            f"use model.encoder={sensor(observation).encoder}, or leave it out."
        )
    encoder: nn.Module = kind(sensor_shape)
    return encoder


class ObservationEncoder(nn.Module):
    """Normalized observation of To steps -> condition (B, To * 128): per step 64 (sensor) + 64 (proprioception)."""

    def __init__(
        self, observation: str, sensor_shape: tuple[int, ...], proprioception_size: int, encoder: str | None = None
    ) -> None:
        super().__init__()
        self.sensor = make_sensor_encoder(observation, sensor_shape, encoder)
        self.key = sensor(observation).key
        self.proprioception = nn.Sequential(
            nn.Linear(proprioception_size, FEATURE_SIZE), nn.ReLU(), nn.Linear(FEATURE_SIZE, FEATURE_SIZE)
        )

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """observation: agent_pos (B, To, Dp) and the sensor's key (B, To, ...) -> (B, To * 128)."""
        features = [self.sensor(observation[self.key]), self.proprioception(observation["agent_pos"])]
        return torch.cat(features, dim=-1).flatten(1)
