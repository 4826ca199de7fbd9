"""The figure of a collected data set: how its agent learned, and when the kept episodes were made."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sodp3d.data import experience
from sodp3d.results import drawing
from sodp3d.results.stores import StoreRecord

_BINS = 12


def draw_collection(record: StoreRecord) -> bytes:
    """PNG. Left: the agent's success while it learns. Right: kept episodes over agent time, successful ones below."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    learning, kept = figure.subplots(1, 2)
    name = f"success_{record.headline}"
    waves = drawing.moving_mean(record.curve(f"train/{name}"))
    drawing.line(learning, waves, color=drawing.VERMILION, label="kept episodes, mean of 5 waves")
    evaluations = record.curve(f"evaluation/{name}")
    drawing.line(learning, evaluations, color=drawing.BLUE, marker="o", label="evaluation episodes, without noise")
    seed = "unknown" if record.seed is None else record.seed
    if not waves and not evaluations:
        learning.text(0.5, 0.5, "no record of the agent", ha="center", transform=learning.transAxes)
    prior = experience.told(record.priors)
    began = "" if prior is None else f", from {prior}"
    title, success = f"The {record.agent} agent learns{began}, seed {seed}", f"success by {record.headline} (%)"
    drawing.percent_axes(learning, title, "agent steps", success)
    _stack(kept, record)
    found = [axes.get_legend_handles_labels() for axes in (learning, kept)]
    handles, labels = (one + other for one, other in zip(*found, strict=True))
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.suptitle(f"Collection: {record.name}", fontsize=12)
    return drawing.png(figure)


def _stack(axes: Any, record: StoreRecord) -> None:
    """Kept episodes in equal parts of agent time; the share that succeeds stands above each."""
    steps, success = record.over_time
    scripted = experience.scripted_rows(record.priors, steps)
    if scripted.any():
        axes.axvspan(0, steps[scripted].max() / 1000, color=drawing.BLUE, alpha=0.15, label="made by a scripted expert")
    edges = np.linspace(0, max(steps.max(), 1), _BINS + 1) / 1000
    every = np.histogram(steps / 1000, edges)[0]
    good = np.histogram(steps[success] / 1000, edges)[0]
    axes.stairs(every, edges, fill=True, color=drawing.GREY, label="failed episodes")
    axes.stairs(good, edges, fill=True, color=drawing.GREEN, label="successful episodes")
    for left, right, part, total in zip(edges[:-1], edges[1:], good, every, strict=True):
        if total:
            share = f"{100 * part / total:.0f}%"
            axes.text((left + right) / 2, total, share, ha="center", va="bottom", fontsize=8)
    axes.set_ylim(0, 1.1 * every.max())
    axes.set_title(f"{len(steps)} kept episodes, {100 * success.mean():.0f} % successful", fontsize=10)
    axes.set_xlabel("agent steps (thousands)")
    axes.set_ylabel("kept episodes (number)")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.vlines(edges[1:-1], 0, np.maximum(every[:-1], every[1:]), color="white", linewidth=0.8)
