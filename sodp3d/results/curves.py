"""Learning curves of fine-tuning: held-out success and training roll-outs, mean and band over seeds."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sodp3d.results import drawing
from sodp3d.results.groups import Group, canonical
from sodp3d.results.naming import ALGORITHMS, DIRECT_BC, REGULARIZED
from sodp3d.results.scan import RunRecord

_COLOURS = {
    REGULARIZED["bc"]: drawing.BLUE,
    REGULARIZED["none"]: drawing.VERMILION,
    DIRECT_BC: drawing.GREEN,
    REGULARIZED["kl"]: drawing.PURPLE,
    REGULARIZED["pl"]: drawing.ORANGE,
    ALGORITHMS["sodp"]: drawing.BLUE,
    ALGORITHMS["sodp_none"]: drawing.VERMILION,
    ALGORITHMS["sodp_kl"]: drawing.PURPLE,
    ALGORITHMS["sodp_pl"]: drawing.ORANGE,
}
_STYLES: Sequence[Any] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
# Settings that tell lines of one method apart, the most telling first; a legend has room for few.
_TELLING = ("finetune.episodes", "finetune.updates_per_episode", "finetune.learning_rate", "finetune.batch_size")
_MOST_TOLD = 3
_LONG_NAME = 70  # letters, with which two columns do not fit


def draw_finetuning(groups: Sequence[Group]) -> bytes:
    """PNG of fine-tuning groups of one task and observation.

    Left: success of held-out episodes, by validation while training and by test at both ends. Right: the roll-outs.
    """
    rows = math.ceil((len(groups) + 2) / 2)
    figure = Figure(figsize=(11, 4.0 + 0.19 * rows), layout="constrained")
    held_out, training = figure.subplots(1, 2, sharey=True)
    styles: dict[str, int] = {}
    variants = {group.variant for group in groups}
    shared = variants.pop() if len(variants) == 1 else ""  # told once, in the title
    names = _names(groups, shared)
    for group, name in zip(groups, names, strict=True):
        colour = _COLOURS.get(group.method, drawing.SKY)
        style = _STYLES[styles.setdefault(colour, 0) % len(_STYLES)]
        styles[colour] += 1
        look: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": 1.8}
        held_out.plot([], [], label=name, **look)  # named also where only roll-outs were noted
        drawing.mean_and_band(held_out, [run.validations for run in group.runs], marker=".", **look)
        _circles(held_out, group, look["color"])
        drawing.mean_and_band(training, [drawing.moving_mean(_rollouts(run)) for run in group.runs], **look)
    held_out.scatter([], [], s=60, facecolors="none", edgecolors="black", label="circles: test, before and after")
    held_out.fill_between([], [], [], color=drawing.GREY, label="bands: lowest to highest seed")
    _dress(groups[0], held_out, training)
    columns = 1 if max(len(name) for name in names) > _LONG_NAME else 2
    legend = {"loc": "outside lower center", "ncols": columns, "fontsize": 8, "frameon": False, "handlelength": 3.5}
    figure.legend(*held_out.get_legend_handles_labels(), **legend)
    seen = drawing.SEEN_AS.get(groups[0].observation, groups[0].observation)
    figure.suptitle(f"Fine-tuning {groups[0].task}, seen as {seen}{f' ({shared})' if shared else ''}", fontsize=12)
    return drawing.png(figure)


def _dress(first: Group, held_out: Any, training: Any) -> None:
    """Titles, units, and the stretch of success in which there is something to see."""
    success = f"success by {first.runs[0].config['env']['success_metric']} (%)"
    steps = "environment steps"
    lowest = min((value for axes in (held_out, training) for value in _values(axes)), default=0.0)
    drawing.percent_axes(held_out, "Held-out episodes: validation (lines), test (circles)", steps, success)
    drawing.percent_axes(training, "Training roll-outs, mean of 5 iterations", steps, None)
    held_out.set_ylim(bottom=10 * math.floor(max(lowest - 5, 0) / 10) - 3)


def _values(axes: Any) -> list[float]:
    return [float(value) for line in axes.get_lines() for value in line.get_ydata()]


def _circles(axes: Any, group: Group, colour: str) -> None:
    """Test success before and after, each the mean over the seeds that have it."""
    ends: list[tuple[float, float]] = []
    before = [run.scores["before"].rate() for run in group.runs if "before" in run.scores]
    after = [run for run in group.runs if run.metrics and "last" in run.scores]
    if before:
        ends.append((0.0, float(np.mean(before))))
    if after:
        steps = float(np.mean([run.metrics[-1]["step"] for run in after]))
        ends.append((steps, float(np.mean([run.scores["last"].rate() for run in after]))))
    drawing.line(
        axes, ends, marker="o", color=colour, linestyle="", markerfacecolor="none", markersize=8, clip_on=False
    )


def _rollouts(run: RunRecord) -> list[tuple[float, float]]:
    name = f"rollout/success_{run.config['env']['success_metric']}"
    return [(record["step"], record[name]) for record in run.metrics if record.get(name) is not None]


def _names(groups: Sequence[Group], shared: str) -> list[str]:
    """Method, variant and number of seeds; where several lines share a method, the settings that tell them apart."""
    names = []
    for group in groups:
        alike = [other for other in groups if other.label == group.label]
        told = [f"{setting.rpartition('.')[2]} {group.settings.get(setting, '-')}" for setting in _telling(alike)]
        seeds = f"{len(group.runs)} seed{'s' if len(group.runs) > 1 else ''}"
        variant = [group.variant] if group.variant not in ("", shared) else []
        names.append(", ".join([group.method, *variant, *told, seeds]))
    return names


def _telling(alike: Sequence[Group]) -> list[str]:
    """The fewest settings, in the order of how much they tell, by which groups of one label are told apart."""
    names = sorted({name for group in alike for name in group.settings if not _is_of_evaluation(name)})
    told: list[str] = []
    for name in [*_TELLING, *(name for name in names if name not in _TELLING)]:
        if len(told) < _MOST_TOLD and _apart(alike, [*told, name]) > _apart(alike, told):
            told.append(name)
    return told


def _is_of_evaluation(name: str) -> bool:
    return name.startswith("evaluation.") or name.endswith("evaluate_every")


def _apart(alike: Sequence[Group], names: Sequence[str]) -> int:
    """How many different groups there are by these settings."""
    return len({tuple(canonical(group.settings.get(name, "-")) for name in names) for group in alike})
