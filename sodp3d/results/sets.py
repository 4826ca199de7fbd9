"""Planners of a set of tasks as a picture: the success of each, and of its fine-tunings, on every task."""

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from sodp3d.results import drawing
from sodp3d.results.estimates import Estimate
from sodp3d.results.tables import Record

_COLOURS = (drawing.SKY, drawing.GREEN, drawing.BLUE, drawing.ORANGE, drawing.VERMILION, drawing.PURPLE, drawing.GREY)


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
    figure = Figure(figsize=(max(6.0, 1.1 * len(tasks)), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.85 / len(methods)
    for index, (method, colour) in enumerate(zip(methods, _COLOURS, strict=False)):
        for row in (row for row in rows if told_apart(row) == method and row["success"] is not None):
            success: Estimate = row["success"]
            place = tasks.index(row["task"]) + (index - (len(methods) - 1) / 2) * width
            axes.bar(place, 100 * success.rate, 0.92 * width, color=colour)
            if success.low is not None and success.high is not None:
                axes.vlines(place, 100 * success.low, 100 * success.high, color="black", linewidth=0.8)
    names = [task.split("_", 1)[-1] for task in tasks]
    axes.set_xticks(range(len(tasks)), names, rotation=30, ha="right", fontsize=9)
    drawing.bar_axes(axes, top=103)
    told = [textwrap.shorten(method, 90, placeholder=" ...") for method in methods]  # what fits below the bars
    drawing.legend_below(figure, dict(zip(told, _COLOURS, strict=False)), columns=1)
    return figure
