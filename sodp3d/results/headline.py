"""The headline as a picture: success before and after fine-tuning on each task, ours beside the paper's."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from sodp3d.results import drawing
from sodp3d.results.estimates import Estimate
from sodp3d.results.naming import PRETRAINED, REGULARIZED
from sodp3d.results.paper import TASKS
from sodp3d.results.tables import TOP5, Record, fine_tuned

_WIDTH = 0.2


def draw_headline(rows: Sequence[Record]) -> bytes:
    """PNG of bars from the rows of `table9`; intervals as lines, where a row has them."""
    bars = (  # who, method, colour
        ("paper", PRETRAINED, "#F3C9AE"),
        ("paper", REGULARIZED["bc"], drawing.VERMILION),
        ("ours", PRETRAINED, "#A9D3EC"),
        ("ours", fine_tuned(rows), drawing.BLUE),
    )
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    for index, (who, method, colour) in enumerate(bars):
        found = [row for row in rows if (row["who"], row["method"]) == (who, method)]
        row = next((row for row in found if who == "paper" or row["measure"] != TOP5), None)
        if row is not None:
            _bars(axes, row, (index - 1.5) * _WIDTH, colour)
    axes.set_xticks(range(len(TASKS)), [task.removeprefix("adroit_") for task in TASKS])
    drawing.bar_axes(axes, top=112)
    axes.set_title("Adroit from point clouds; lines: 95 % interval (ours), deviation of seeds (paper)", fontsize=10)
    drawing.legend_below(figure, {f"{who}, {method}": colour for who, method, colour in bars}, columns=2)
    return drawing.png(figure)


def _bars(axes: Any, row: Record, offset: float, colour: str) -> None:
    for position, task in enumerate(TASKS):
        estimate: Estimate | None = row[task]
        if estimate is None:
            continue
        place, height = position + offset, 100 * estimate.rate
        axes.bar(place, height, 0.9 * _WIDTH, color=colour)
        low, high = _bounds(estimate)
        axes.vlines(place, low, high, color="black", linewidth=1)
        axes.text(place, max(height, high) + 1, f"{round(height, 1):g}", ha="center", va="bottom", fontsize=8)


def _bounds(estimate: Estimate) -> tuple[float, float]:
    if estimate.low is not None and estimate.high is not None:
        return 100 * estimate.low, 100 * estimate.high
    deviation = estimate.deviation or 0.0
    return 100 * (estimate.rate - deviation), 100 * (estimate.rate + deviation)
