"""The point encoder: dense backward against the winners-only backward, forward + backward of 2 x 256 clouds.

python benchmarks/encoder.py [--clouds 512] [--points 512] [--rounds 5] -> results/benchmarks/encoder.json
"""

import argparse

import torch
from clouds import surface_clouds
from timing import compare, write

from sodp3d.models.encoders import PointCloudEncoder


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
        return [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]

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
