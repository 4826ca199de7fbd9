"""The U-Net: sizes of the published networks, horizons, gradients, and the fast convolutions against torch's."""

import pytest
import torch

from sodp3d.errors import InputError
from sodp3d.models.unet import UNETS, UNet1d, UNetConfig

SMALL = UNetConfig((16, 24, 32), blocks_per_level=1, mid_blocks=1, time_size=16)


@pytest.mark.parametrize(
    ("name", "action", "condition", "millions"),
    [("simple_dp3", 28, 256, 7.39), ("dp3", 28, 256, 255.1), ("chi", 4, 78, 68.9)],
)
def test_sizes_are_the_published_ones(name: str, action: int, condition: int, millions: float) -> None:
    with torch.device("meta"):
        network = UNet1d(action, condition, UNETS[name])
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, rel=2e-3)


@pytest.mark.parametrize("horizon", [4, 8, 12, 16, 20])
def test_any_horizon_divisible_by_four(horizon: int) -> None:
    network = UNet1d(3, 10, SMALL)
    assert network(torch.randn(2, horizon, 3), torch.tensor([0, 99]), torch.randn(2, 10)).shape == (2, horizon, 3)


@pytest.mark.parametrize("horizon", [1, 2, 6, 13])
def test_other_horizons_are_refused(horizon: int) -> None:
    with pytest.raises(InputError, match=f"divisible by 4, got {horizon}"):
        UNet1d(3, 10, SMALL)(torch.randn(2, horizon, 3), torch.tensor([0, 99]), torch.randn(2, 10))


def test_gradient_reaches_every_parameter() -> None:
    network = UNet1d(3, 10, UNetConfig((16, 24, 32), 2, 2, 16, condition_size=8))
    network(torch.randn(4, 16, 3), torch.arange(4), torch.randn(4, 10)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_time_and_condition_matter() -> None:
    network, x, condition = UNet1d(3, 10, SMALL), torch.randn(1, 4, 3), torch.randn(1, 10)
    output = network(x, torch.tensor([5]), condition)
    assert not torch.allclose(output, network(x, torch.tensor([6]), condition))
    assert not torch.allclose(output, network(x, torch.tensor([5]), condition + 1))
