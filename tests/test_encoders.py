"""Encoders: shapes, sizes, and the sparse backward of the point encoder against the dense one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sodp3d.core.errors import InputError
from sodp3d.models.encoders import ImageEncoder, ObservationEncoder, PointCloudEncoder, StateEncoder
from sodp3d.models.pooling import first_maximum


def trained_like(seed: int) -> PointCloudEncoder:
    """An encoder whose norms are not at their start values: negative and zero weights, biases both ways."""
    torch.manual_seed(seed)
    encoder = PointCloudEncoder()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        encoder.shared[7].weight[0] = 0.0
        encoder.shared[7].weight[1] = -1.0
    return encoder


def outputs_and_gradients(encoder: PointCloudEncoder, points: Tensor, weight: Tensor) -> list[Tensor]:
    encoder.zero_grad()
    output = encoder(points)
    (output * weight).sum().backward()
    return [output.detach(), *(parameter.grad.clone() for parameter in encoder.parameters())]


def assert_same_as_dense(encoder: PointCloudEncoder, points: Tensor, tolerance: float) -> None:
    weight = torch.randn(*points.shape[:-2], 64, dtype=points.dtype)
    sparse = outputs_and_gradients(encoder, points, weight)
    encoder.dense = True
    dense = outputs_and_gradients(encoder, points, weight)
    for ours, reference in zip(sparse, dense, strict=True):
        assert (ours - reference).norm() <= tolerance * reference.norm().clamp(min=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
@pytest.mark.parametrize("shape", [(3, 2, 512, 3), (40, 64, 3), (1, 1, 3), (70, 1, 3)])
def test_sparse_backward_equals_dense(dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]) -> None:
    encoder = trained_like(0).to(dtype)
    assert_same_as_dense(encoder, torch.randn(shape, dtype=dtype), tolerance)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 3), size=st.integers(1, 100), levels=st.integers(1, 30))
def test_first_maximum_equals_torch(seed: int, count: int, size: int, levels: int) -> None:
    """With few distinct values, so that ties are common: the first index wins."""
    x = torch.randint(levels, (count, size, 5), generator=torch.Generator().manual_seed(seed)).float()
    values, indices = first_maximum(x)
    assert torch.equal(values, x.amax(1))
    assert torch.equal(indices, (x == values[:, None]).to(torch.uint8).cumsum(1).eq(0).sum(1))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 5), size=st.integers(1, 90), copies=st.integers(1, 3))
def test_sparse_backward_with_repeated_points(seed: int, count: int, size: int, copies: int) -> None:
    """Clouds with too few points repeat some of them, which makes ties in every channel."""
    encoder = trained_like(seed).double()
    points = torch.randn(count, size, 3, dtype=torch.float64).repeat(1, copies, 1)
    assert_same_as_dense(encoder, points, 1e-10)


def test_no_gradient_path_equals_dense() -> None:
    encoder, points = trained_like(1), torch.randn(5, 2, 200, 3)
    with torch.no_grad():
        sparse = encoder(points)
        encoder.dense = True
        torch.testing.assert_close(sparse, encoder(points), rtol=1e-5, atol=1e-5)


def test_permutation_of_points_changes_nothing() -> None:
    encoder, points = trained_like(2), torch.randn(2, 100, 3)
    torch.testing.assert_close(encoder(points[:, torch.randperm(100)]), encoder(points), rtol=1e-5, atol=1e-5)


def test_sizes_are_those_of_dp3() -> None:
    """facts: 59.1 k parameters of the point encoder, 64,832 with the proprioception of 24 joint angles."""
    encoder = ObservationEncoder("pointcloud", (512, 3), 24)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 64_832


@pytest.mark.parametrize(
    ("observation", "shape", "key"),
    [("pointcloud", (32, 3), "point_cloud"), ("state", (39,), "state"), ("image", (3, 84, 84), "image")],
)
def test_observation_encoder_flattens_steps_and_trains(observation: str, shape: tuple[int, ...], key: str) -> None:
    encoder = ObservationEncoder(observation, shape, 9)
    sensor = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8) if key == "image" else torch.randn(2, 3, *shape)
    features = encoder({"agent_pos": torch.randn(2, 3, 9), key: sensor, "other": torch.zeros(1)})
    assert features.shape == (2, 3 * 128)
    features.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_state_and_image_encoders_take_any_leading_shape() -> None:
    assert StateEncoder((5,))(torch.randn(4, 5)).shape == (4, 64)
    assert ImageEncoder()(torch.zeros(3, 128, 128, dtype=torch.uint8)).shape == (64,)


def test_unknown_observation_is_refused() -> None:
    with pytest.raises(InputError, match="expected one of pointcloud, state, image, got 'depth'"):
        ObservationEncoder("depth", (1,), 9)
