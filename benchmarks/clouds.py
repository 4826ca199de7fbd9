"""Point clouds for the benchmarks."""

import torch


def surface_clouds(clouds: int, points: int) -> torch.Tensor:
    """Points on spheres and boxes of random place and size: clouds of surfaces, as depth cameras see them."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(clouds, points, 3, generator=generator)
    norm = torch.where(
        torch.rand(clouds, points, 1, generator=generator) < 0.5,
        directions.norm(dim=-1, keepdim=True),
        directions.abs().amax(-1, keepdim=True),
    )
    size, place = torch.rand(2, clouds, 1, 3, generator=generator)
    return (directions / norm) * (0.2 + 0.6 * size) + 0.4 * (place - 0.5)
