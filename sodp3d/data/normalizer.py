"""Per-channel min-max scaling to [-1, 1], stored with the planner (DP3's `limits` mode)."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sodp3d.core.errors import InputError

_CONSTANT = 1e-4  # a narrower range is a constant channel: shifted to 0, not blown up (DP3)


class Normalizer(nn.Module):
    """x -> scale * x + offset over the last axis of each key; the identity until `fit`.

    The buffers `scale_<key>` and `offset_<key>`, (channels,) float32, travel with the state dict, so a module of the
    same `sizes` loads them.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """sizes: channels (length of the last axis) of each key."""
        super().__init__()
        self.sizes = dict(sizes)
        for key, size in self.sizes.items():
            self.register_buffer(f"scale_{key}", torch.ones(size))
            self.register_buffer(f"offset_{key}", torch.zeros(size))

    def fit(self, arrays: Mapping[str, NDArray[np.generic]]) -> "Normalizer":
        """Take each key's range from arrays (..., channels) of the training data.

        Raises InputError for a missing key, another number of channels, no data, or values that are not finite.
        """
        ranges = {}
        for key, size in self.sizes.items():
            if key not in arrays:
                raise InputError(f"normalizer: no data for {key!r}; it has {sorted(arrays)}.")
            values = arrays[key]
            if values.shape[-1] != size or values.size == 0:
                raise InputError(f"normalizer: {key} needs data of {size} channels, got shape {values.shape}.")
            rows = values.reshape(-1, size)
            ranges[key] = rows.min(axis=0), rows.max(axis=0)
        return self.fit_ranges(ranges)

    def fit_ranges(self, ranges: Mapping[str, tuple[NDArray[np.generic], NDArray[np.generic]]]) -> "Normalizer":
        """`fit` by the lowest and highest value of each channel, (channels,) each, of the training data.

        Raises InputError for a missing key, another number of channels, or values that are not finite.
        """
        for key, size in self.sizes.items():
            if key not in ranges:
                raise InputError(f"normalizer: no range for {key!r}; it has {sorted(ranges)}.")
            low, high = (values.astype(np.float64) for values in ranges[key])
            if low.shape != (size,) or high.shape != (size,):
                raise InputError(f"normalizer: {key} needs ranges of {size} channels, got shape {low.shape}.")
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise InputError(f"normalizer: {key} holds NaN or infinity; verify the data.")
            constant = high - low < _CONSTANT
            span = np.where(constant, 2.0, high - low)
            scale = 2.0 / span
            offset = np.where(constant, -low, -1.0 - scale * low)
            self.get_buffer(f"scale_{key}").copy_(torch.from_numpy(scale))
            self.get_buffer(f"offset_{key}").copy_(torch.from_numpy(offset))
        return self

    def normalize(self, key: str, value: Tensor) -> Tensor:
        """Raw units (..., channels) to [-1, 1] over the range of the training data."""
        self._check(key, value)
        return value * self.get_buffer(f"scale_{key}") + self.get_buffer(f"offset_{key}")

    def unnormalize(self, key: str, value: Tensor) -> Tensor:
        """Inverse of `normalize`."""
        self._check(key, value)
        return (value - self.get_buffer(f"offset_{key}")) / self.get_buffer(f"scale_{key}")

    def _check(self, key: str, value: Tensor) -> None:
        if key not in self.sizes or value.shape[-1:] != (self.sizes[key],):
            raise InputError(
                f"normalizer: {key!r} of shape {tuple(value.shape)} does not fit; keys and channels are {self.sizes}."
            )
