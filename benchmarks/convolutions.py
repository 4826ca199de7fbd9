"""The U-Net's convolutions by torch, for the benchmarks."""

from collections.abc import Callable

from torch import nn

from sodp3d.models.convolution import Convolution


def with_torchs_convolutions(network: nn.Module, run: Callable[[], object]) -> Callable[[], None]:
    """`run`, with every convolution of the network computed by torch's own while it lasts."""
    found = [module for module in network.modules() if isinstance(module, Convolution)]
    longest = found[0].longest

    def reference() -> None:
        for convolution in found:
            convolution.longest = 0
        run()
        for convolution in found:
            convolution.longest = longest

    return reference
