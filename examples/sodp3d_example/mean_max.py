"""An encoder of point clouds: each point through a small network, then mean and maximum over the points.

Shape letters: N points.
"""

import torch
from torch import Tensor, nn

from sodp3d.models.encoders import FEATURE_SIZE


class MeanMaxEncoder(nn.Module):
    """As `sodp3d.models.encoders.SensorEncoder`."""

    sensors = ("pointcloud",)

    def __init__(self, sensor_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(sensor_shape[-1], 64), nn.ReLU(), nn.Linear(64, 64))
        self.together = nn.Sequential(nn.Linear(128, FEATURE_SIZE), nn.LayerNorm(FEATURE_SIZE))

    def forward(self, values: Tensor) -> Tensor:
        """Clouds (..., N, 3), scaled to [-1, 1] -> (..., FEATURE_SIZE)."""
        points = self.each(values)
        return self.together(torch.cat([points.mean(dim=-2), points.amax(dim=-2)], dim=-1))
