"""The statistics that LeRobot keeps of each feature, of every episode and of all: what its policies normalize by."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_MOST_IMAGES = 100  # of an episode that are looked at

Values = dict[str, NDArray[np.float64]]


class Statistics:
    """Collects them episode by episode."""

    def __init__(self) -> None:
        self._total: dict[str, Values] = {}

    def add(self, features: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Count an episode of (T, ...) arrays; its own statistics, as the table of episodes has them."""
        row: dict[str, Any] = {}
        for name, values in features.items():
            own = _of(values)
            self._total[name] = _together(self._total[name], own) if name in self._total else own
            row |= {f"stats/{name}/{kind}": _plain(kind, number) for kind, number in own.items()}
        return row

    def total(self) -> dict[str, dict[str, Any]]:
        """Of all episodes: exact but for quantiles, which are means of the episodes' own."""
        return {name: {kind: _plain(kind, value) for kind, value in own.items()} for name, own in self._total.items()}


def _of(values: NDArray[Any]) -> Values:
    """Of each number of a row, each coordinate of a point; of images (T, 3, H, W), (T, H, W) each channel, 0 to 1 of
    colours."""
    if values.ndim >= 3 and values.dtype.kind == "u":
        chosen = values[np.linspace(0, len(values) - 1, min(len(values), _MOST_IMAGES)).astype(int)]
        channels = chosen if chosen.ndim == 4 else chosen[:, None]
        pixels = channels.swapaxes(0, 1).reshape(channels.shape[1], -1).T / (255 if values.dtype == np.uint8 else 1)
        found = _summary(pixels)
        made = {kind: value.reshape(-1, 1, 1) for kind, value in found.items()}
        return {**made, "count": np.array([len(chosen)], np.float64)}
    rows = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values[:, None]
    return {**_summary(rows.astype(np.float64)), "count": np.array([len(values)], np.float64)}


def _summary(rows: NDArray[np.float64]) -> Values:
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    return {**found, **dict(zip(_QUANTILES, np.quantile(rows, list(_QUANTILES.values()), axis=0), strict=True))}


def _together(one: Values, other: Values) -> Values:
    count = one["count"] + other["count"]
    share = other["count"] / count
    mean = one["mean"] + share * (other["mean"] - one["mean"])
    variance = (1 - share) * (one["std"] ** 2 + (one["mean"] - mean) ** 2)
    variance = variance + share * (other["std"] ** 2 + (other["mean"] - mean) ** 2)
    return {
        "min": np.minimum(one["min"], other["min"]),
        "max": np.maximum(one["max"], other["max"]),
        "mean": mean,
        "std": np.sqrt(variance),
        **{kind: one[kind] + share * (other[kind] - one[kind]) for kind in _QUANTILES},
        "count": count,
    }


def _plain(kind: str, values: NDArray[np.float64]) -> Any:
    return values.astype(np.int64).tolist() if kind == "count" else values.tolist()
