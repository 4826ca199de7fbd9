"""What all figures share: colours, axes with titles and units, and PNG bytes that depend on nothing but the figure."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

# Okabe and Ito's colours, told apart with any kind of colour vision.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY = "#BBBBBB"

SEEN_AS = {"pointcloud": "point clouds", "state": "states", "image": "images"}

Points = Sequence[tuple[float, float]]


def png(figure: Figure) -> bytes:
    """The figure as a PNG file; equal figures give equal bytes."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(content, dpi=100, metadata={"Software": None})
    return content.getvalue()


def moving_mean(points: Points, width: int = 5) -> list[tuple[float, float]]:
    """Each value replaced by the mean of the last `width`."""
    values = [value for _, value in points]
    means = [float(np.mean(values[max(0, index + 1 - width) : index + 1])) for index in range(len(values))]
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]


def over_seeds(curves: Sequence[Points]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(P,) steps that all curves cover and (seeds, P) values there, straight between the points of each."""
    first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    steps = np.unique([step for curve in curves for step, _ in curve if first <= step <= last])
    values = [np.interp(steps, *np.array(curve, dtype=float).T) for curve in curves]
    return steps, np.array(values)


def line(axes: Any, points: Points, **look: Any) -> None:
    """Points joined by a line, over thousands of steps, in %."""
    if points:
        steps, values = np.array(points, dtype=float).T
        axes.plot(steps / 1000, 100 * values, **look)


def mean_and_band(axes: Any, curves: Sequence[Points], **look: Any) -> None:
    """The mean of several seeds' curves as a line, and from the lowest to the highest of them a band."""
    found = [curve for curve in curves if curve]
    if not found:
        return
    steps, values = over_seeds(found)
    if not len(steps):  # curves without a common stretch
        for curve in found:
            line(axes, curve, **look)
        return
    axes.plot(steps / 1000, 100 * values.mean(axis=0), **look)
    if len(found) > 1:
        band = 100 * values.min(axis=0), 100 * values.max(axis=0)
        axes.fill_between(steps / 1000, *band, color=look["color"], alpha=0.15, linewidth=0)


def percent_axes(axes: Any, title: str, steps: str, success: str | None) -> None:
    """Success in % over thousands of `steps`."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(f"{steps} (thousands)")
    if success:
        axes.set_ylabel(success)
    axes.set_ylim(-3, 103)
    axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    axes.grid(alpha=0.3)


def bar_axes(axes: Any, top: float) -> None:
    """Success in % as bars, with room up to `top`."""
    axes.set_ylim(0, top)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("success (%)")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def legend_below(figure: Figure, colours: Mapping[str, str], columns: int) -> None:
    """What each colour is, below the axes."""
    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
