"""Planners of a set of tasks as a picture: the success of each, and of its fine-tunings, on every task."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from sodp3d.results import drawing
from sodp3d.results.estimates import Estimate
from sodp3d.results.tables import Record

_COLOURS = (drawing.SKY, drawing.GREEN, drawing.BLUE, drawing.ORANGE, drawing.VERMILION, drawing.PURPLE, drawing.GREY)

_IN_A_PANEL = 17  # tasks; with the mean, fifty fill three


def told_apart(row: Record) -> str:
    """What one planner, or one way of fine-tuning, is called among those of its set."""
    return ", ".join(str(row[key]) for key in ("method", "differs by") if row[key])


def draw_set(rows: Sequence[Record]) -> bytes:
    """PNG of `set_bars`."""
    return drawing.png(set_bars(rows))


def set_bars(rows: Sequence[Record]) -> Figure:
    """Bars from the rows of `set_table` of one set, seen in one way; lines are 95 % intervals."""
    tasks, methods = (list(dict.fromkeys(found)) for found in ([r["task"] for r in rows], map(told_apart, rows)))
    methods = methods[: len(_COLOURS)]
    panels = math.ceil(len(tasks) / _IN_A_PANEL)
    beside = math.ceil(len(tasks) / panels)
    figure = Figure(figsize=(max(6.0, 1.1 * beside), 4.2 if panels == 1 else 3.0 * panels), layout="constrained")
    for panel, axes in enumerate(figure.subplots(panels, squeeze=False)[:, 0]):
        some = tasks[panel * beside : (panel + 1) * beside]
        _bars(axes, some, methods, rows)
        axes.set_xlim(-0.6, beside - 0.4)  # bars are as wide in the last panel, which may have fewer
    drawing.legend_below(figure, dict(zip(legend(rows)[: len(_COLOURS)], _COLOURS, strict=False)), columns=1)
    return figure


def legend(rows: Sequence[Record]) -> list[str]:
    """What fits below the bars, for each that `told_apart` tells: its method, and what the others of it do not have."""
    found = {told_apart(row): (str(row["method"]), str(row["differs by"] or "").split(", ")) for row in rows}
    labels: list[str] = []
    for method, parts in found.values():
        others = [other for name, other in found.values() if name == method and other != parts]
        own = [part for part in parts if part and not all(part in other for other in others)]
        label = textwrap.shorten(", ".join([method, *own]), 110, placeholder=" ...")
        same = sum(other == label or other.startswith(f"{label} (") for other in labels)
        labels.append(f"{label} ({same + 1})" if same else label)
    return labels


def _bars(axes: Any, tasks: Sequence[str], methods: Sequence[str], rows: Sequence[Record]) -> None:
    """The bars of some of the tasks, beside each other."""
    width = 0.85 / len(methods)
    for index, (method, colour) in enumerate(zip(methods, _COLOURS, strict=False)):
        for row in (row for row in rows if row["task"] in tasks and told_apart(row) == method):
            success: Estimate | None = row["success"]
            if success is None:
                continue
            place = tasks.index(row["task"]) + (index - (len(methods) - 1) / 2) * width
            axes.bar(place, 100 * success.rate, 0.92 * width, color=colour)
            if success.low is not None and success.high is not None:
                axes.vlines(place, 100 * success.low, 100 * success.high, color="black", linewidth=0.8)
    names = [task.split("_", 1)[-1] for task in tasks]
    axes.set_xticks(range(len(tasks)), names, rotation=30, ha="right", fontsize=9)
    drawing.bar_axes(axes, top=103)
