"""Planned against recorded actions of a held-out episode, as a picture."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.tools.plot import save_png

_LOOKS = {
    "policy": ("planned", "#d55e00"),
    "mean_action": ("mean action of what was learned from", "0.7"),
    "hold_last": ("last action held", "0.4"),
}
_MOST = 32  # numbers of an action that are drawn


def draw_offline(
    path: Path,
    name: str,
    found: Mapping[str, Any],
    recorded: NDArray[np.float32],
    planned: NDArray[np.float32],
    rate: float | None,
    plan_steps: int,
) -> None:
    """A plot for each number of the actions (T, Da) of one episode, and the errors of all held-out ones as bars.

    found: as offline.json holds it. rate: control steps a second, None where not recorded. plan_steps: of each plan.
    """
    from matplotlib.figure import Figure

    names = list(found["by_action"])[:_MOST]
    columns = min(len(names), 2 if len(names) in (2, 4) else 3)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.3 * rows + 2.9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[2.3 * rows, 2.4])
    axes = above.subplots(rows, columns, squeeze=False, sharex=True)
    time = np.arange(len(recorded)) / (rate or 1)
    for place, axis in enumerate(axes.flat):
        if place >= len(names):
            axis.set_axis_off()
            continue
        axis.plot(time, recorded[:, place], color="black", linewidth=1.4, label="recorded")
        axis.plot(time, planned[:, place], color="#d55e00", linewidth=1.2, label="planned")
        axis.plot(time[::plan_steps], planned[::plan_steps, place], ".", color="#d55e00", label="a plan begins")
        axis.set_ylabel(f"{names[place]}\n(as recorded)", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        if place + columns >= len(names):  # the lowest of its column
            axis.set_xlabel("control step" if rate is None else "time (s)", fontsize=8)
            axis.tick_params(labelbottom=True)
    axes[0, 0].legend(fontsize=7)
    left = len(found["by_action"]) - len(names)
    above.suptitle(
        f"{name}: actions of a held-out episode, recorded and as planned from what was recorded"
        + (f" ({left} more numbers in offline.json)" if left else ""),
        fontsize=10,
    )
    _draw_errors(below.subplots(), found, names)
    save_png(figure, path, dpi=110)


def _draw_errors(axes: Any, found: Mapping[str, Any], names: list[str]) -> None:
    """Mean absolute error of each number as a share of its range, beside those of what learns nothing."""
    for shift, (kind, (words, colour)) in zip((-0.27, 0.0, 0.27), _LOOKS.items(), strict=True):
        numbers = [found["by_action"][name] for name in names]
        spans = [number["high"] - number["low"] or 1.0 for number in numbers]
        shares = [100 * number[kind] / span for number, span in zip(numbers, spans, strict=True)]
        label = f"{words}, {100 * found['error'][kind]:.1f} % on average"
        axes.bar([place + shift for place in range(len(names))], shares, 0.26, color=colour, label=label)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.set_ylabel("mean error\n(% of the range)", fontsize=8)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title(f"All {found['episodes']} held-out episodes, {found['steps']} steps", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=7)
