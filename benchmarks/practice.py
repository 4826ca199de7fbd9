"""What practice of each task made of one planner of several: a table, tests by pairs of episodes, and two figures.

Reads finished runs and measures nothing: `train.py mode=pretrain` of a set, and fine-tunings of its tasks by any
algorithms and seeds, each task by itself or as a set. A task without a fine-tuning counts as it was before.

python benchmarks/practice.py <pre-training run> <fine-tuning runs> [--stores data] [--name mt10_practised]
-> the table in Markdown, with the data's success where --stores holds it, and results/figures/<name>_tasks.png and
<name>_curves.png.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest
from timing import RESULTS

from sodp3d.core.run import read_config, read_metrics, read_result
from sodp3d.data.store import EpisodeStore
from sodp3d.results import drawing
from sodp3d.rollouts.evaluate import wilson_interval
from sodp3d.rollouts.kept import ROLLOUTS, KeptRollouts

COLOURS = (drawing.BLUE, drawing.GREEN, drawing.ORANGE, drawing.VERMILION, drawing.PURPLE)
COLUMNS = 4  # panels of curves beside each other

Outcomes = NDArray[np.bool_]  # of a task's test episodes


@dataclass(frozen=True)
class Practised:
    """One task's fine-tuning. roll-outs: success of each iteration's, by the episodes learned from after it."""

    task: str
    algorithm: str
    outcomes: Outcomes
    rollouts: list[tuple[float, float]]


def outcomes_of(run: Path, task: str, metric: str) -> Outcomes:
    """Which episodes of a run's test succeeded."""
    return KeptRollouts.read(run / "evaluation" / task / ROLLOUTS).succeeded(metric)


def practised(run: Path) -> Practised:
    """What one finished fine-tuning of one task came to."""
    config, result = read_config(run), read_result(run)
    metric, task = config["env"]["success_metric"], result["evaluation"]["env"]
    logged = [line[f"rollout/success_{metric}"] for line in read_metrics(run) if f"rollout/success_{metric}" in line]
    each = config["finetune"]["episodes_per_iteration"]
    points = [(each * place, rate) for place, rate in enumerate(logged, start=1)]
    return Practised(task, config["algorithm"], outcomes_of(run, task, metric), points)


def rate(outcomes: Sequence[Outcomes]) -> str:
    """Success in % with its interval, of all episodes together."""
    together = np.concatenate(list(outcomes))
    low, high = wilson_interval(int(together.sum()), len(together))
    return f"{100 * together.mean():.3g} [{100 * low:.0f}, {100 * high:.0f}]"


def mean_rate(tasks: Sequence[Sequence[Outcomes]]) -> str:
    """Mean over tasks, with the interval of all episodes as one sample."""
    rates = [np.concatenate(list(outcomes)).mean() for outcomes in tasks]
    count = sum(len(outcomes) for each in tasks for outcomes in each)
    low, high = wilson_interval(float(np.mean(rates)) * count, count)
    return f"**{100 * np.mean(rates):.1f}** [{100 * low:.0f}, {100 * high:.0f}]"


def paired(ours: Sequence[Outcomes], theirs: Sequence[Outcomes]) -> tuple[int, int]:
    """Test episodes that the first succeeds in and the second does not, and the other way round; each with each."""
    pairs = [(one, other) for one in ours for other in theirs]
    return (
        sum(int((one & ~other).sum()) for one, other in pairs),
        sum(int((other & ~one).sum()) for one, other in pairs),
    )


def told(won: int, lost: int) -> str:
    """A comparison by pairs, with the exact test of signs."""
    p = binomtest(won, won + lost).pvalue if won + lost else 1.0
    return f"{won} won, {lost} lost, p = {p:.2g}"


def data_success(stores: Path, task: str, metric: str) -> float | None:
    """Share of a store's episodes that succeed; None where it is not there."""
    path = stores / task / "episodes.zarr"
    return float(EpisodeStore.open(path).metadata[f"success_{metric}"].mean()) if path.is_dir() else None


def table(before: Mapping[str, Outcomes], runs: Sequence[Practised], data: Mapping[str, float | None]) -> list[str]:
    """Lines of Markdown: tasks, their mean, and the comparisons."""
    algorithms = list(dict.fromkeys(run.algorithm for run in runs))
    found = {
        (task, name): [run.outcomes for run in runs if (run.task, run.algorithm) == (task, name)]
        for task in before
        for name in algorithms
    }
    lines = [" | ".join(["| success in %", "data", "pre-trained", *(f"`{name}`" for name in algorithms)]) + " |"]
    lines.append("| --- " * (3 + len(algorithms)) + "|")
    for task, outcomes in before.items():
        kept = data[task]
        cells = [task.split("_", 1)[-1], "-" if kept is None else f"{100 * kept:.0f}", rate([outcomes])]
        cells += [rate(found[task, name]) if found[task, name] else "-" for name in algorithms]
        lines.append(f"| {' | '.join(cells)} |")
    known = [value for value in data.values() if value is not None]
    mean = f"{100 * np.mean(known):.1f}" if len(known) == len(before) else "-"
    after = [mean_rate([found[task, name] or [was] for task, was in before.items()]) for name in algorithms]
    lines.append(" | ".join(["| **mean**", mean, mean_rate([[was] for was in before.values()]), *after]) + " |")
    for name in algorithms:
        pairs = [paired(found[task, name], [was]) for task, was in before.items() if found[task, name]]
        lines.append(f"{name} against before: {told(*(sum(side) for side in zip(*pairs, strict=True)))}")
        for other in algorithms[: algorithms.index(name)]:
            shared = [task for task in before if found[task, name] and found[task, other]]
            pairs = [paired(found[task, other], found[task, name]) for task in shared]
            lines += [f"  {other} against {name}: {told(*map(sum, zip(*pairs, strict=True)))}"] if pairs else []
            lines += [f"    {task}: {told(*pair)}" for task, pair in zip(shared, pairs, strict=True)]
    return lines


def task_bars(before: Mapping[str, Outcomes], runs: Sequence[Practised], data: Mapping[str, float | None]) -> Figure:
    """Each task's data, its planner before practice, and after."""
    algorithms = list(dict.fromkeys(run.algorithm for run in runs))
    bars: dict[str, dict[str, Any]] = {
        "the data": {task: value for task, value in data.items() if value is not None},
        "pre-trained, told neither task nor reward": {task: outcomes.mean() for task, outcomes in before.items()},
    }
    for name in algorithms:
        made = {
            task: [run.outcomes.mean() for run in runs if (run.task, run.algorithm) == (task, name)] for task in before
        }
        bars[f"{name}, each task practised by itself"] = {task: np.mean(rates) for task, rates in made.items() if rates}
    colours = dict(zip(bars, (drawing.GREY, drawing.SKY, *COLOURS), strict=False))
    figure = Figure(figsize=(1.1 * len(before), 3.6), layout="constrained")
    axes, width = figure.subplots(), 0.85 / len(bars)
    for index, (name, values) in enumerate(bars.items()):
        places = [list(before).index(task) + (index - (len(bars) - 1) / 2) * width for task in values]
        axes.bar(places, [100 * value for value in values.values()], width, color=colours[name])
    axes.set_xticks(range(len(before)), [task.split("_", 1)[-1] for task in before], rotation=15)
    drawing.bar_axes(axes, 105)
    drawing.legend_below(figure, colours, columns=2)
    return figure


def curves(before: Mapping[str, Outcomes], runs: Sequence[Practised]) -> Figure:
    """Training roll-outs of each practised task, the mean of the last five iterations; circles are the tests."""
    tasks = [task for task in before if any(run.task == task for run in runs)]
    algorithms = list(dict.fromkeys(run.algorithm for run in runs))
    rows = -(-len(tasks) // COLUMNS)
    figure = Figure(figsize=(11, 2.3 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False).ravel()
    for panel in panels[len(tasks) :]:
        panel.set_axis_off()
    for place, (task, panel) in enumerate(zip(tasks, panels, strict=False)):
        for name, colour in zip(algorithms, COLOURS, strict=False):
            mine = [run for run in runs if (run.task, run.algorithm) == (task, name)]
            drawing.mean_and_band(panel, [drawing.moving_mean(run.rollouts) for run in mine], color=colour)
            ends = [(run.rollouts[-1][0], 100 * run.outcomes.mean()) for run in mine]
            for end, success in ends:
                panel.scatter(end / 1000, success, s=30, color=colour, zorder=3)
        panel.scatter(0, 100 * before[task].mean(), s=30, color=drawing.SKY, zorder=3)
        drawing.percent_axes(panel, task.split("_", 1)[-1], "episodes", None if place % COLUMNS else "success (%)")
        panel.set_xlabel("episodes learned from")
        panel.xaxis.set_major_formatter(lambda thousands, _: f"{1000 * thousands:g}")
    drawing.legend_below(figure, dict(zip(algorithms, COLOURS, strict=False)), columns=len(algorithms))
    return figure


def main() -> None:
    """Print the table and draw both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("planner", type=Path, help="finished pre-training of a set")
    parser.add_argument("runs", type=Path, nargs="+", help="finished fine-tunings of its tasks")
    parser.add_argument("--stores", type=Path, default=Path("data"), help="folder of the stores learned from")
    parser.add_argument("--name", default="mt10_practised", help="of the figures")
    given = parser.parse_args()
    metric = read_config(given.planner)["env"]["success_metric"]
    before = {task: outcomes_of(given.planner, task, metric) for task in read_result(given.planner)["tasks"]}
    runs = [practised(run) for run in given.runs]
    data = {task: data_success(given.stores, task, metric) for task in before}
    print(*table(before, runs, data), sep="\n")
    figures = RESULTS.with_name("figures")
    (figures / f"{given.name}_tasks.png").write_bytes(drawing.png(task_bars(before, runs, data)))
    (figures / f"{given.name}_curves.png").write_bytes(drawing.png(curves(before, runs)))


if __name__ == "__main__":
    main()
