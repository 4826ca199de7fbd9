"""The U-Net: sizes of the published networks, horizons, gradients, and the fast convolutions against torch's."""

import pytest
import torch

from sodp3d.core.errors import InputError
from sodp3d.models.convolution import Convolution, GroupNorm
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


def torch_convolution(layer: Convolution, x: torch.Tensor) -> torch.Tensor:
    convolve = torch.nn.functional.conv_transpose1d if layer.transposed else torch.nn.functional.conv1d
    return convolve(x.mT, layer.weight.mT, layer.bias, layer.stride, layer.padding).mT


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 12])
@pytest.mark.parametrize(
    ("width", "stride", "padding", "transposed"), [(5, 1, 2, False), (3, 2, 1, False), (4, 2, 1, True), (3, 1, 0, True)]
)
def test_convolution_equals_torch(length: int, width: int, stride: int, padding: int, transposed: bool) -> None:
    layer = Convolution(6, 7, width, stride, padding, transposed).double()
    x = torch.randn(5, length, 6, dtype=torch.float64, requires_grad=True)
    output, reference = layer(x), torch_convolution(layer, x)
    torch.testing.assert_close(output, reference, rtol=1e-12, atol=1e-12)
    # A gradient that is not contiguous and one that is broadcast: both occur inside the network.
    for gradient in (
        torch.randn(output.shape[::-1], dtype=torch.float64).permute(2, 1, 0),
        torch.ones_like(output[:1, :1]),
    ):
        gradient = gradient.expand(output.shape)
        ours = torch.autograd.grad(output, (x, layer.weight, layer.bias), gradient, retain_graph=True)
        theirs = torch.autograd.grad(reference, (x, layer.weight, layer.bias), gradient, retain_graph=True)
        for mine, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_long_inputs_go_to_torch_and_agree() -> None:
    layer, x = Convolution(6, 8, 5, padding=2), torch.randn(2, 10, 6)
    short = layer(x)
    layer.longest = 4
    torch.testing.assert_close(layer(x), short, rtol=1e-5, atol=1e-5)


def test_group_norm_equals_torch() -> None:
    norm, x = GroupNorm(8, 32), torch.randn(4, 3, 32)
    torch.nn.init.normal_(norm.weight)
    expected = torch.nn.functional.group_norm(x.mT, 8, norm.weight, norm.bias).mT
    torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=1e-5)


def test_films_shared_by_the_steps_of_a_plan_give_the_same_output() -> None:
    torch.manual_seed(0)
    for name in ("small", "chi"):
        network = UNet1d(3, 8, UNETS[name])
        x, condition = torch.randn(5, 4, 3), torch.randn(5, 8)
        observed = network.observe(condition)
        for step in (0, 7, 99):
            expected = network(x, torch.full((5,), step), condition)
            torch.testing.assert_close(network(x, torch.tensor([step]), observed), expected, rtol=1e-4, atol=1e-5)
