"""What practice of each task made of one planner of several: a table, tests by pairs of episodes, and two figures.

Reads finished runs and measures nothing: `train.py mode=pretrain` of a set, and fine-tunings of its tasks by any
algorithms and seeds; of a set's fine-tuning the runs that its runs.json names. A task without one counts as it was.

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
from timing import RESULTS
from weak import sign_test

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
    seed: int
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
    each, all_of_them = config["finetune"]["episodes_per_iteration"], result["episodes"]
    points = [(min(each * place, all_of_them), rate) for place, rate in enumerate(logged, start=1)]
    return Practised(task, config["algorithm"], config["seed"], outcomes_of(run, task, metric), points)


def by_algorithm(runs: Sequence[Practised]) -> dict[str, dict[str, list[Practised]]]:
    """The runs, one a seed, of each algorithm's tasks."""
    found: dict[str, dict[str, list[Practised]]] = {}
    for run in runs:
        found.setdefault(run.algorithm, {}).setdefault(run.task, []).append(run)
    return found


def by_seed(runs: Sequence[Practised]) -> dict[int, Outcomes]:
    """Test episodes after fine-tuning with each seed."""
    return {run.seed: run.outcomes for run in runs}


def all_of(runs: Sequence[Practised]) -> Outcomes:
    """Test episodes of all seeds."""
    return np.concatenate([run.outcomes for run in runs])


def rate(outcomes: Outcomes) -> str:
    """Success in % with its interval."""
    return f"{100 * outcomes.mean():.3g} {interval(outcomes.mean(), len(outcomes))}"


def mean_rate(tasks: Sequence[Outcomes]) -> str:
    """Mean over tasks, with the interval of all episodes as one sample."""
    mean = float(np.mean([outcomes.mean() for outcomes in tasks]))
    return f"**{100 * mean:.1f}** {interval(mean, sum(map(len, tasks)))}"


def interval(share: float, count: int) -> str:
    """Of a share of so many episodes, in %."""
    low, high = wilson_interval(share * count, count)
    return f"[{100 * low:.0f}, {100 * high:.0f}]"


def paired(ours: Mapping[int, Outcomes], theirs: Mapping[int, Outcomes]) -> tuple[int, int]:
    """Test episodes that the first succeeds in and the second does not, and the other way round, of the same seed."""
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    return sum(int((a & ~b).sum()) for a, b in pairs), sum(int((b & ~a).sum()) for a, b in pairs)


def told(pairs: Sequence[tuple[int, int]], independent: bool = True) -> str:
    """A comparison by pairs, of all tasks together; p only of pairs that do not share a test."""
    won, lost = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    return f"{won} won, {lost} lost" + (f", p = {sign_test(won, lost):.2g}" if independent else "")


def data_success(stores: Path, task: str, metric: str) -> float | None:
    """Share of a store's episodes that succeed; None where it is not there."""
    path = stores / task / "episodes.zarr"
    return float(EpisodeStore.open(path).metadata[f"success_{metric}"].mean()) if path.is_dir() else None


def table(before: Mapping[str, Outcomes], runs: Sequence[Practised], data: Mapping[str, float | None]) -> list[str]:
    """Lines of Markdown: tasks, their mean, and the comparisons."""
    made = by_algorithm(runs)
    lines = [" | ".join(["| success in %", "data", "pre-trained", *(f"`{name}`" for name in made)]) + " |"]
    lines.append("| --- " * (3 + len(made)) + "|")
    for task, outcomes in before.items():
        kept = data[task]
        cells = [task.split("_", 1)[-1], "-" if kept is None else f"{100 * kept:.0f}", rate(outcomes)]
        cells += [rate(all_of(tasks[task])) if task in tasks else "-" for tasks in made.values()]
        lines.append(f"| {' | '.join(cells)} |")
    known = [value for value in data.values() if value is not None]
    mean = f"{100 * np.mean(known):.1f}" if len(known) == len(before) else "-"
    after = [
        mean_rate([all_of(tasks[task]) if task in tasks else was for task, was in before.items()])
        for tasks in made.values()
    ]
    lines.append(" | ".join(["| **mean**", mean, mean_rate(list(before.values())), *after]) + " |")
    names = list(made)
    for place, name in enumerate(names):
        after_it = {task: by_seed(runs) for task, runs in made[name].items()}
        pairs = [paired(after_it[task], dict.fromkeys(after_it[task], before[task])) for task in after_it]
        once = all(len(each) == 1 for each in after_it.values())  # several seeds share the test before practice
        lines.append(f"{name} against before: {told(pairs, independent=once)}")
        for other in names[:place]:
            shared = [task for task in before if task in made[name] and task in made[other]]
            pairs = [paired(by_seed(made[other][task]), after_it[task]) for task in shared]
            lines += [f"  {other} against {name}: {told(pairs)}"] if pairs else []
            lines += [f"    {task}: {told([pair])}" for task, pair in zip(shared, pairs, strict=True)]
    return lines


def task_bars(before: Mapping[str, Outcomes], runs: Sequence[Practised], data: Mapping[str, float | None]) -> Figure:
    """Each task's data, its planner before practice, and after."""
    bars: dict[str, dict[str, Any]] = {
        "the data": {task: value for task, value in data.items() if value is not None},
        "pre-trained, told neither task nor reward": {task: outcomes.mean() for task, outcomes in before.items()},
    }
    for name, tasks in by_algorithm(runs).items():
        rates = {task: all_of(each).mean() for task, each in tasks.items()}
        bars[f"{name}, each task practised by itself"] = rates
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
    made = by_algorithm(runs)
    tasks = [task for task in before if any(task in practised_by for practised_by in made.values())]
    colours = dict(zip(made, COLOURS, strict=False))
    rows = -(-len(tasks) // COLUMNS)
    figure = Figure(figsize=(11, 2.3 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False).ravel()
    for panel in panels[len(tasks) :]:
        panel.set_axis_off()
    for place, (task, panel) in enumerate(zip(tasks, panels, strict=False)):
        for name, colour in colours.items():
            mine = made[name].get(task, [])
            drawing.mean_and_band(panel, [drawing.moving_mean(run.rollouts) for run in mine], color=colour)
            for run in mine:
                panel.scatter(run.rollouts[-1][0] / 1000, 100 * run.outcomes.mean(), s=30, color=colour, zorder=3)
        panel.scatter(0, 100 * before[task].mean(), s=30, color=drawing.SKY, zorder=3)
        drawing.percent_axes(panel, task.split("_", 1)[-1], "episodes", None if place % COLUMNS else "success (%)")
        panel.set_xlabel("episodes learned from")
        panel.xaxis.set_major_formatter(lambda thousands, _: f"{1000 * thousands:g}")
    drawing.legend_below(figure, colours, columns=len(colours))
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
    if unknown := sorted({run.task for run in runs} - set(before)):
        parser.error(f"{given.planner} has no test of {', '.join(unknown)}; name fine-tunings of its own tasks.")
    data = {task: data_success(given.stores, task, metric) for task in before}
    print(*table(before, runs, data), sep="\n")
    figures = RESULTS.with_name("figures")
    (figures / f"{given.name}_tasks.png").write_bytes(drawing.png(task_bars(before, runs, data)))
    (figures / f"{given.name}_curves.png").write_bytes(drawing.png(curves(before, runs)))


if __name__ == "__main__":
    main()
