"""The U-Net on short horizons: torch's convolutions against one product per output step, and films shared by steps.

The references are the same network with torch's convolutions, channels first and channels last (reference.py); that
their outputs and gradients are equal is checked first. `ratio` is to channels first, as DP3 has it.

python benchmarks/unet.py [--batch 256] [--rounds 5] -> results/benchmarks/unet.json
"""

import argparse
from collections.abc import Callable

import torch
from reference import ratios, reference_unets
from timing import compare, write
from torch import Tensor, nn

from sodp3d.models.unet import UNETS, UNet1d

CASES = (("simple_dp3", 28, 4), ("simple_dp3", 4, 12), ("simple_dp3", 28, 16), ("chi", 4, 12))
CONDITION, DENOISING_STEPS, SAMPLING_STEPS, PLANS = 256, 100, 10, 50

Inputs = tuple[Tensor, Tensor, Tensor]  # noisy plans (B, Tp, Da), timesteps (B,), conditions (B, F)


def check_equal(network: nn.Module, reference: nn.Module, inputs: Inputs) -> None:
    """Raises AssertionError where the outputs, or the gradients in plans and conditions, differ."""
    plans, timesteps, conditions = inputs
    leaves = plans.clone().requires_grad_(), conditions.clone().requires_grad_()
    outputs = [module(leaves[0], timesteps, leaves[1]) for module in (network, reference)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(output.square().sum(), leaves) for output in outputs]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def measure(name: str, action_size: int, horizon: int, batch: int, rounds: int) -> dict[str, object]:
    """Forward + backward, and the ten forward passes of sampling for fifty observations."""
    torch.manual_seed(0)
    network = UNet1d(action_size, CONDITION, UNETS[name])
    references = reference_unets(network)
    plans, timesteps = torch.randn(batch, horizon, action_size), torch.randint(DENOISING_STEPS, (batch,))
    inputs = plans, timesteps, torch.randn(batch, CONDITION)
    fifty = plans[:PLANS], timesteps[:PLANS], inputs[2][:PLANS]
    for reference in references.values():
        check_equal(network, reference, fifty)

    def train(module: nn.Module) -> Callable[[], None]:
        def run() -> None:
            module.zero_grad()
            module(*inputs).square().mean().backward()

        return run

    def sample(module: nn.Module) -> Callable[[], None]:
        @torch.no_grad()
        def run() -> None:
            for _ in range(SAMPLING_STEPS):
                module(*fifty)

        return run

    @torch.no_grad()
    def sample_with_shared_films() -> None:
        observed = network.observe(fifty[2])
        for _ in range(SAMPLING_STEPS):
            network(fifty[0], fifty[1][:1], observed)

    training = compare({way: train(module) for way, module in {**references, "sodp3d": network}.items()}, rounds)
    ways = {way: sample(module) for way, module in {**references, "own_convolutions": network}.items()}
    sampling = compare({**ways, "sodp3d": sample_with_shared_films}, rounds)
    return {
        "unet": name,
        "action_size": action_size,
        "horizon": horizon,
        "training_seconds": training,
        **ratios(training, "training_"),
        "sampling_seconds": sampling,
        **ratios(sampling, "sampling_"),
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
