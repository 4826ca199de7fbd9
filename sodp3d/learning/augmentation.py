"""Clouds changed anew each time that they are learned from, so that little data is not learned by heart (R3D).

Shape letters: B batch, To observed steps, N points.
"""

import math
from dataclasses import asdict

import torch
from torch import Tensor

from sodp3d.core import draws
from sodp3d.core.errors import InputError
from sodp3d.settings import AugmentationSettings
from sodp3d.vision.sensors import sensor

CLOUD = "point_cloud"


def require_clouds(settings: AugmentationSettings, observation: str) -> None:
    """Raise InputError where other observations than clouds are to be changed. observation: what `obs.name` says."""
    asked = [key for key, value in asdict(settings).items() if value]
    if asked and sensor(observation).key != CLOUD:
        raise InputError(
            f"pretrain.augment.{asked[0]}: it changes clouds, but obs={observation} learns from others; use 0, or "
            "obs=pointcloud."
        )


def augmented(
    batch: dict[str, Tensor], settings: AugmentationSettings, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """The batch with changed clouds (B, To, N, 3), where it has any; everything else, actions too, as it was."""
    if CLOUD not in batch or not (settings.jitter or settings.dropout or settings.rotation):
        return batch
    cloud = batch[CLOUD]
    if settings.rotation:
        cloud = turned(cloud, math.radians(settings.rotation), generator)
    if settings.jitter:
        cloud = cloud + settings.jitter * _normal(cloud.shape, cloud, generator)
    if settings.dropout:
        cloud = thinned(cloud, settings.dropout, generator)
    return {**batch, CLOUD: cloud}


def turned(cloud: Tensor, most: float, generator: torch.Generator | None = None) -> Tensor:
    """Each sample's clouds (B, To, N, 3) turned about the vertical through their common centre, by up to +-most rad."""
    angle = (2 * _uniform((len(cloud),), cloud, generator) - 1) * most
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero, zero, zero, one]
    rotation = torch.stack(rows, dim=-1).view(-1, 1, 3, 3)
    centre = cloud.mean((1, 2), keepdim=True)
    return (cloud - centre) @ rotation.transpose(-1, -2) + centre


def thinned(cloud: Tensor, most: float, generator: torch.Generator | None = None) -> Tensor:
    """Clouds (B, To, N, 3) of which up to `most` of the points are replaced by their first, as if they were not there.

    The encoder takes a maximum over points, so a point that is there twice counts once.
    """
    share = most * _uniform((*cloud.shape[:2], 1), cloud, generator)
    dropped = _uniform(cloud.shape[:3], cloud, generator) < share
    return torch.where(dropped[..., None], cloud[:, :, :1], cloud)


def _uniform(shape: tuple[int, ...] | torch.Size, like: Tensor, generator: torch.Generator | None) -> Tensor:
    return draws.uniform(shape, generator, device=like.device, dtype=like.dtype)


def _normal(shape: torch.Size, like: Tensor, generator: torch.Generator | None) -> Tensor:
    return draws.normal(shape, generator, device=like.device, dtype=like.dtype)
