"""The U-Net on short horizons: torch's convolutions against one product per output step, and films shared by steps.

python benchmarks/unet.py [--batch 256] [--rounds 5] -> docs/results/benchmarks/unet.json
"""

import argparse

import torch
from convolutions import with_torchs_convolutions
from timing import compare, write

from sodp3d.models.unet import UNETS, UNet1d

CASES = (("simple_dp3", 28, 4), ("simple_dp3", 4, 12), ("simple_dp3", 28, 16))


def measure(name: str, action_size: int, horizon: int, batch: int, rounds: int) -> dict[str, object]:
    """Forward + backward, and the ten forward passes of sampling for fifty observations."""
    torch.manual_seed(0)
    network = UNet1d(action_size, 256, UNETS[name])
    inputs = torch.randn(batch, horizon, action_size), torch.randint(100, (batch,)), torch.randn(batch, 256)
    fifty = tuple(value[:50] for value in inputs)

    def train() -> None:
        network.zero_grad()
        network(*inputs).square().mean().backward()

    def sample() -> None:
        with torch.no_grad():
            for _ in range(10):
                network(*fifty)

    def sample_with_shared_films() -> None:
        with torch.no_grad():
            observed = network.observe(fifty[2])
            for _ in range(10):
                network(fifty[0], fifty[1][:1], observed)

    training = compare({"torch": with_torchs_convolutions(network, train), "sodp3d": train}, rounds)
    ways = {
        "torch": with_torchs_convolutions(network, sample),
        "own_convolutions": sample,
        "sodp3d": sample_with_shared_films,
    }
    sampling = compare(ways, rounds)
    return {
        "unet": name,
        "action_size": action_size,
        "horizon": horizon,
        "training_seconds": training,
        "training_ratio": training["torch"] / training["sodp3d"],
        "sampling_seconds": sampling,
        "sampling_ratio": sampling["torch"] / sampling["sodp3d"],
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cases = [measure(*case, arguments.batch, arguments.rounds) for case in CASES]
    write("unet", {**vars(arguments), "cases": cases})


if __name__ == "__main__":
    main()
