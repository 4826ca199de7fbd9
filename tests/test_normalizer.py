"""Min-max scaling: range, inverse, constant channels, state dict."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sodp3d.core.errors import InputError
from sodp3d.data.normalizer import Normalizer


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    data=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 20), st.integers(1, 4)), elements=st.floats(-100, 100, width=32)
    )
)
def test_inverse_and_range(data: np.ndarray) -> None:
    normalizer = Normalizer({"x": data.shape[1]}).fit({"x": data})
    value = torch.from_numpy(data)
    scaled = normalizer.normalize("x", value)
    assert torch.isfinite(scaled).all()
    span = data.max(axis=0).astype(np.float64) - data.min(axis=0)
    torch.testing.assert_close(normalizer.unnormalize("x", scaled), value, rtol=1e-4, atol=1e-4)
    for channel, width in enumerate(span):
        # float32 holds a range of 1e-4 around 100 to a few per cent only: the tolerance follows.
        slack = 1e-5 + 1e-4 / max(width, 1e-4) * abs(data[:, channel]).max()
        if width < 1e-4:
            assert scaled[:, channel].abs().max() <= 1e-3
        else:
            assert abs(scaled[:, channel].min() + 1) <= slack and abs(scaled[:, channel].max() - 1) <= slack


def test_known_values() -> None:
    data = np.array([[0.0, 5.0], [4.0, 5.0]], np.float32)
    normalizer = Normalizer({"x": 2}).fit({"x": data})
    expected = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.5]])  # constant: shifted, never scaled
    torch.testing.assert_close(normalizer.normalize("x", torch.tensor([[0.0, 5.0], [4.0, 5.0], [2.0, 5.5]])), expected)


def test_clouds_share_one_range_per_axis() -> None:
    clouds = np.random.default_rng(0).uniform(-1, 3, (7, 50, 3)).astype(np.float32)
    normalizer = Normalizer({"point_cloud": 3}).fit({"point_cloud": clouds, "ignored": clouds})
    scaled = normalizer.normalize("point_cloud", torch.from_numpy(clouds))
    torch.testing.assert_close(scaled.amin((0, 1)), -torch.ones(3))
    torch.testing.assert_close(scaled.amax((0, 1)), torch.ones(3))


def test_travels_with_the_state_dict() -> None:
    data = {"a": np.random.default_rng(0).normal(size=(9, 2)), "b": np.random.default_rng(1).normal(size=(9, 3))}
    fitted, fresh = Normalizer({"a": 2, "b": 3}).fit(data), Normalizer({"a": 2, "b": 3})
    value = torch.randn(4, 3)
    torch.testing.assert_close(fresh.normalize("b", value), value)  # the identity until fitted
    fresh.load_state_dict(fitted.state_dict())
    torch.testing.assert_close(fresh.normalize("b", value), fitted.normalize("b", value))
    assert list(fitted.parameters()) == []


def test_wrong_input_is_named() -> None:
    normalizer = Normalizer({"a": 2})
    with pytest.raises(InputError, match="no data for 'a'"):
        normalizer.fit({"b": np.zeros((3, 2))})
    with pytest.raises(InputError, match="2 channels"):
        normalizer.fit({"a": np.zeros((3, 4))})
    with pytest.raises(InputError, match="2 channels"):
        normalizer.fit({"a": np.zeros((0, 2))})
    for wrong in (np.nan, np.inf):
        with pytest.raises(InputError, match="NaN or infinity"):
            normalizer.fit({"a": np.array([[0, 1], [wrong, 2]])})
    for key, shape in (("b", (2,)), ("a", (3,)), ("a", ())):
        with pytest.raises(InputError, match="does not fit"):
            normalizer.normalize(key, torch.zeros(shape))
