"""Where fine-tuning leads: the test episodes of a planner and of its fine-tuned ones as points (paper, figure 6).

An episode is its executed actions at MOMENTS equally distant moments, each action divided by its deviation over the
pre-trained planner's episodes. t-SNE puts all runs' episodes into one plane; a panel shows one run's, filled where they
succeed, over the pre-trained planner's in grey. Distances in the plane mean little, so the table has those between
episodes themselves: from a run's episodes to the nearest one of the pre-trained planner, and among themselves, both by
median and as a multiple of the pre-trained planner's own.

python benchmarks/trajectories.py <env name> <pre-trained run> <label>=<fine-tuned run> ... [--name trajectories]
-> results/benchmarks/<name>.json and results/figures/<name>.png. It needs scikit-learn, which the extra dev brings.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from timing import RESULTS, parse, write

from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json
from sodp3d.results import drawing
from sodp3d.rollouts.kept import ROLLOUTS, KeptRollouts

MOMENTS = 32
PRETRAINED = "pre-trained"
COLOURS = (drawing.GREEN, drawing.BLUE, drawing.VERMILION, drawing.PURPLE, drawing.ORANGE, drawing.SKY)

Vectors = NDArray[np.float64]  # (E, MOMENTS * Da), a row for each of E episodes


def vectors_of(kept: KeptRollouts) -> Vectors:
    """Each episode's actions at MOMENTS moments, straight between control steps."""
    rows = []
    for episode in range(len(kept.seeds)):
        actions = kept.actions_of(episode).astype(np.float64)
        moments = np.linspace(0, len(actions) - 1, MOMENTS)
        rows.append(np.column_stack([np.interp(moments, np.arange(len(actions)), column) for column in actions.T]))
    return np.array(rows).reshape(len(rows), -1)


def scaled(vectors: dict[str, Vectors]) -> dict[str, Vectors]:
    """Every action's deviation over the pre-trained planner's episodes and moments becomes 1."""
    actions = vectors[PRETRAINED].shape[1] // MOMENTS
    deviation = vectors[PRETRAINED].reshape(-1, actions).std(axis=0)
    factor = np.tile(1 / np.maximum(deviation, 1e-6), MOMENTS)
    return {label: found * factor for label, found in vectors.items()}


def nearest(from_: Vectors, to: Vectors) -> float:
    """Median distance from an episode to the nearest other one of `to`."""
    distances = cdist(from_, to)
    if from_ is to:
        np.fill_diagonal(distances, np.inf)
    return float(np.median(distances.min(axis=1)))


def table_of(vectors: dict[str, Vectors], succeeded: dict[str, NDArray[np.bool_]]) -> list[dict[str, float | str]]:
    """A row for each run: success, and how near its episodes are, in multiples of the pre-trained planner's own."""
    before = vectors[PRETRAINED]
    own = nearest(before, before)
    return [
        {
            "run": label,
            "episodes": len(found),
            "success": round(float(succeeded[label].mean()), 3),
            "to_pretrained": round(nearest(found, before) / own, 3),
            "among_themselves": round(nearest(found, found) / own, 3),
        }
        for label, found in vectors.items()
    ]


def embedded(vectors: dict[str, Vectors]) -> dict[str, Vectors]:
    """(E, 2) places of every run's episodes in one plane."""
    from sklearn.manifold import TSNE

    together = np.concatenate(list(vectors.values()))
    places = TSNE(init="pca", perplexity=min(30, len(together) // 4), random_state=0).fit_transform(together)
    ends = np.cumsum([len(found) for found in vectors.values()])[:-1]
    return dict(zip(vectors, np.split(places, ends), strict=True))


def draw(
    name: str,
    places: dict[str, Vectors],
    succeeded: dict[str, NDArray[np.bool_]],
    table: list[dict[str, float | str]],
    path: Path,
) -> None:
    """A panel for each fine-tuned run, over the pre-trained planner's episodes, which the first panel shows alone."""
    figure = Figure(figsize=(3.2 * len(places), 3.4), layout="constrained")
    panels = figure.subplots(1, len(places), sharex=True, sharey=True, squeeze=False)[0]
    colours = (drawing.GREY, *COLOURS)
    for panel, row, colour in zip(panels, table, colours, strict=False):
        label = str(row["run"])
        panel.scatter(*places[PRETRAINED].T, s=12, color=drawing.GREY, linewidths=0)
        edge = "black" if label == PRETRAINED else colour
        own = places[label][succeeded[label]], places[label][~succeeded[label]]
        panel.scatter(*own[0].T, s=16, color=edge, linewidths=0)
        panel.scatter(*own[1].T, s=16, facecolors="none", edgecolors=edge, linewidths=0.7)
        panel.set_title(f"{label}: {100 * float(row['success']):.0f} %", fontsize=10)
        panel.set_xticks([])
        panel.set_yticks([])
    figure.suptitle(f"{name}: test episodes by their actions (t-SNE). Filled: success; grey: pre-trained", fontsize=10)
    path.write_bytes(drawing.png(figure))


def read(directory: Path, name: str) -> tuple[KeptRollouts, NDArray[np.bool_]]:
    """A run's test episodes of one task, and which succeed by its headline metric."""
    folder = directory / "evaluation" / name
    if not (folder / "evaluation.json").is_file():
        raise InputError(f"{folder}: not there, or not whole; give runs that were tested on {name}.")
    kept = KeptRollouts.read(folder / ROLLOUTS)
    metric = read_json(folder / "evaluation.json")["headline_metric"]
    return kept, kept.succeeded(metric)


def main() -> None:
    """Read, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="the env's name: metaworld_basketball, adroit_pen")
    parser.add_argument("pretrained", type=Path, help="run directory of the planner before fine-tuning")
    parser.add_argument("--name", default="trajectories", help="of the table and the figure")
    given, labelled = parse(parser)
    named = [word.partition("=") for word in labelled]
    runs = {PRETRAINED: given.pretrained, **{label: Path(run) for label, _, run in named}}
    if not 1 < len(runs) <= 1 + len(COLOURS):
        parser.error(f"give 1 to {len(COLOURS)} fine-tuned runs, each as <label>=<run directory>.")
    try:
        found = {label: read(run, given.task) for label, run in runs.items()}
    except InputError as error:
        sys.exit(str(error))
    vectors = scaled({label: vectors_of(kept) for label, (kept, _) in found.items()})
    succeeded = {label: success for label, (_, success) in found.items()}
    table = table_of(vectors, succeeded)
    draw(given.task, embedded(vectors), succeeded, table, RESULTS.with_name("figures") / f"{given.name}.png")
    write(given.name, {"task": given.task, "runs": table})


if __name__ == "__main__":
    main()
