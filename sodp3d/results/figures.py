"""Learning curves of fine-tuning and of agents, and success over agent time, drawn without a display."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sodp3d.results.groups import DIRECT_BC, REGULARIZED, Group, sharing_a_planner
from sodp3d.results.stores import StoreRecord
from sodp3d.tools.plot import save_png

# Okabe and Ito's colours, told apart with any kind of colour vision.
_COLOURS = {
    REGULARIZED["bc"]: "#0072B2",
    REGULARIZED["none"]: "#D55E00",
    DIRECT_BC: "#009E73",
    REGULARIZED["kl"]: "#CC79A7",
    REGULARIZED["pl"]: "#E69F00",
}
_OTHER, _LIGHT = "#56B4E9", "#BBBBBB"
_STYLES: Sequence[Any] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
_BINS = 12

Points = Sequence[tuple[int, float]]


def draw_figures(folder: Path, groups: Sequence[Group], stores: Sequence[StoreRecord]) -> list[tuple[str, str]]:
    """Write one figure of curves for each task and observation and one for each store; (title, path) of each.

    Curves are those of one pre-trained planner, as in Table 9. Paths are relative to the folder's parent.
    """
    drawn = []
    for task, observation in sorted({(group.task, group.observation) for group in groups if group.stage == "finetune"}):
        among = sharing_a_planner(groups, task, observation)
        chosen = [group for group in groups if group in among and group.stage == "finetune"]
        numbers = [groups.index(group) + 1 for group in chosen]
        path = folder / f"curves_{task}_{observation}.png"
        save_png(_finetuning(f"{task}, obs={observation}", chosen, numbers), path)
        drawn.append((f"fine-tuning {task} from {observation}", path))
    for record in stores:
        same = [other for other in stores if other.name == record.name]
        apart = f"_{record.data_hash[:8]}" if len(same) > 1 else ""
        name = record.name.removeprefix("data/").replace("/", "_") + apart
        path = folder / f"collection_{name}.png"
        save_png(_collection(record), path)
        drawn.append((f"collection of {record.env} by {record.agent}", path))
    return [(title, f"{path.parent.name}/{path.name}") for title, path in drawn]


def _finetuning(title: str, groups: Sequence[Group], numbers: Sequence[int]) -> Figure:
    """Left: held-out success, by validation while training and by test at both ends. Right: the roll-outs."""
    figure = Figure(figsize=(10, 3.4 + 0.17 * math.ceil(len(groups) / 2)), layout="constrained")
    held_out, training = figure.subplots(1, 2, sharey=True)
    seen: dict[str, int] = {}
    for group, number in zip(groups, numbers, strict=True):
        style = _STYLES[seen.setdefault(group.method, 0) % len(_STYLES)]
        seen[group.method] += 1
        colour = _COLOURS.get(group.method, _OTHER)
        for index, run in enumerate(group.runs):
            seeds = ", ".join(str(each.seed) for each in group.runs)
            look: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": 1.2, "alpha": 0.9}
            if index == 0:
                held_out.plot([], [], label=f"S{number} {group.label}, seed {seeds}", **look)
            _line(held_out, run.validations, marker=".", **look)
            metric = run.config["env"]["success_metric"]
            ends = [(0, run.scores["before"].rate())] if "before" in run.scores else []
            ends += (
                [(run.metrics[-1]["step"], run.scores["last"].rate())] if run.metrics and "last" in run.scores else []
            )
            _line(held_out, ends, marker="o", color=colour, linestyle="", markerfacecolor="none", markersize=8)
            rollouts = [(r["step"], r[f"rollout/success_{metric}"]) for r in run.metrics if _has(r, metric)]
            _line(training, _smooth(rollouts), **look)
    held_out.set_title("held-out episodes (line: validation, circles: test)", fontsize=9)
    training.set_title("training roll-outs (mean of 5 iterations)", fontsize=9)
    held_out.set_ylabel(f"success ({groups[0].runs[0].config['env']['success_metric']})")
    for axes in (held_out, training):
        _dress(axes, "environment steps")
    figure.suptitle(title, fontsize=10)
    figure.legend(*held_out.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    return figure


def _collection(record: StoreRecord) -> Figure:
    """Left: the agent's success while it learns. Right: kept episodes over agent time, successful ones below."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    learning, kept = figure.subplots(1, 2)
    name = f"success_{record.headline}"
    waves = _smooth(record.curve(f"train/{name}"))
    _line(learning, waves, color=_COLOURS[REGULARIZED["none"]], label="kept episodes, mean of 5 waves")
    evaluations = record.curve(f"evaluation/{name}")
    _line(learning, evaluations, color=_COLOURS[REGULARIZED["bc"]], marker="o", label="evaluation (no noise)")
    learning.set_ylabel(f"success ({record.headline})")
    learning.set_title(f"{record.agent} agent, seed {'-' if record.seed is None else record.seed}", fontsize=9)
    _dress(learning, "agent steps")
    steps, success = record.over_time
    edges = np.linspace(0, steps.max(), _BINS + 1)
    every, good = np.histogram(steps, edges)[0], np.histogram(steps[success], edges)[0]
    kept.stairs(every, edges, fill=True, color=_LIGHT, label="failed episodes")
    kept.stairs(good, edges, fill=True, color=_COLOURS[DIRECT_BC], label="successful episodes")
    for left, right, part, total in zip(edges[:-1], edges[1:], good, every, strict=True):
        if total:
            kept.text((left + right) / 2, total, f"{100 * part / total:.0f}%", ha="center", va="bottom", fontsize=7)
    kept.set_ylim(0, 1.1 * every.max())
    kept.set_ylabel("kept episodes")
    kept.set_xlabel("agent steps")
    kept.set_title(f"{len(steps)} episodes, {100 * success.mean():.0f}% successful", fontsize=9)
    kept.yaxis.get_major_locator().set_params(integer=True)
    kept.vlines(edges[1:-1], 0, np.maximum(every[:-1], every[1:]), color="white", linewidth=0.8)
    handles, labels = (one + other for one, other in zip(*_legends(learning, kept), strict=True))
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(record.name, fontsize=10)
    return figure


def _legends(*all_axes: Any) -> list[tuple[list[Any], list[str]]]:
    return [axes.get_legend_handles_labels() for axes in all_axes]


def _has(record: dict[str, Any], metric: str) -> bool:
    return record.get(f"rollout/success_{metric}") is not None


def _smooth(points: Points, width: int = 5) -> Points:
    """Each value replaced by the mean of the last `width`."""
    values = [value for _, value in points]
    means = [float(np.mean(values[max(0, index + 1 - width) : index + 1])) for index in range(len(values))]
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]


def _line(axes: Any, points: Points, **look: Any) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), **look)


def _dress(axes: Any, label: str) -> None:
    axes.set_xlabel(label)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    axes.grid(alpha=0.3)
