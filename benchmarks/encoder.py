"""The point encoder: dense backward against the winners-only backward, forward + backward of 2 x 256 clouds.

python benchmarks/encoder.py [--clouds 512] [--points 512] [--rounds 5] -> docs/results/benchmarks/encoder.json
"""

import argparse

import torch
from timing import compare, write

from sodp3d.models.encoders import PointCloudEncoder


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


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in (("--clouds", 512), ("--points", 512), ("--rounds", 5)):
        parser.add_argument(option, type=int, default=default)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    encoder, clouds = PointCloudEncoder(), surface_clouds(arguments.clouds, arguments.points)

    def step(dense: bool) -> list[torch.Tensor]:
        encoder.dense = dense
        encoder.zero_grad()
        encoder(clouds).square().sum().backward()
        return [parameter.grad.clone() for parameter in encoder.parameters()]

    pairs = zip(step(True), step(False), strict=True)
    difference = max(float((sparse - dense).norm() / dense.norm()) for dense, sparse in pairs)
    seconds = compare({"dense": lambda: step(True), "winners_only": lambda: step(False)}, arguments.rounds)
    write(
        "encoder",
        {
            **vars(arguments),
            "seconds": seconds,
            "ratio": seconds["dense"] / seconds["winners_only"],
            "largest_relative_difference_of_gradients": difference,
        },
    )


if __name__ == "__main__":
    main()
