"""Curves of a run, from its metrics.jsonl; and how figures are written."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sodp3d.core.errors import InputError
from sodp3d.core.files import disk_errors, replace_file
from sodp3d.core.run import read_versions

LABELS = {
    "pretrain": "gradient steps",
    "finetune": "environment steps",
    "distill": "gradient steps",
    "collect": "agent steps",
}
_MADE_BY = "sodp3d"

_LOSSES = ("train/loss", "train/bc_loss", "train/regularizer", "train/imp_loss", "validation/loss", "evaluation/loss")


def plot_run(directory: Path, mode: str, records: list[dict[str, Any]]) -> Path:
    """Write curve.png: success rates above, losses and returns below, over the run's own step counter."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted({name for record in records for name in record if name != "step"})
    each = [name for name in names if name.startswith("validation_success/")]  # of the tasks of a set
    success = [name for name in names if "success" in name and "_success/" not in name]
    losses = [name for name in names if name in _LOSSES]
    errors = [name for name in names if name.endswith("/action_error")]  # on recordings that are held out
    returns = [name for name in names if name in ("rollout/return", "validation/return", "evaluation/return")]
    groups = [group for group in (success, each, losses, errors, returns) if group]
    figure, axes = plt.subplots(len(groups) or 1, 1, figsize=(7, 3 * (len(groups) or 1)), squeeze=False, sharex=True)
    for axis, group in zip(axes[:, 0], groups, strict=False):
        for name in group:
            points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
            axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 50 else None)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7 if len(group) <= 10 else 4)
        if group in (success, each):
            axis.set_ylim(-0.02, 1.02)
        if group is errors:
            axis.set_ylabel("error (share of the range)", fontsize=8)
    axes[-1, 0].set_xlabel(LABELS.get(mode, "steps"))
    axes[0, 0].set_title(_title(directory), fontsize=9)
    figure.tight_layout()
    save_png(figure, directory / "curve.png", dpi=110)
    plt.close(figure)
    return directory / "curve.png"


def plot_tasks(path: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Success of each task of a set before and after fine-tuning, as bars, from summaries of evaluations by task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 0.6 * len(before) + 2), 4), layout="constrained")
    axes = figure.subplots()
    for shift, (words, found) in zip((-0.2, 0.2), (("before", before), ("after", after)), strict=True):
        rates = [summary["success"][summary["headline_metric"]] for summary in found.values()]
        middles = [100 * rate["rate"] for rate in rates]
        spread = [[100 * (r["rate"] - r["low95"]) for r in rates], [100 * (r["high95"] - r["rate"]) for r in rates]]
        places = [place + shift for place in range(len(rates))]
        axes.bar(places, middles, 0.38, yerr=[[max(0.0, s) for s in side] for side in spread], capsize=2, label=words)
    axes.set_xticks(range(len(before)), list(before), rotation=40, ha="right", fontsize=8)
    axes.set_ylim(0, 105)
    axes.set_ylabel("success (%), 95 % interval")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)  # a bar may be 100 % high
    save_png(figure, path)


def plot_calibration(path: Path, values: Sequence[float], returns: Sequence[float]) -> None:
    """What a critic expected of plans, and what came of them, in units of the rewards' deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.2), layout="constrained")
    axes = figure.subplots()
    low, high = min(*values, *returns), max(*values, *returns)
    axes.plot([low, high], [low, high], color="0.6", linewidth=1, label="as expected")
    axes.plot(returns, values, ".", markersize=3, alpha=0.5)
    axes.set_xlabel("return that came (rewards' deviations)")
    axes.set_ylabel("value that the critic gave before")
    axes.set_title(f"The critic on {len(values)} new plans", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_png(figure, path)


def save_png(figure: Any, path: Path, dpi: int = 100) -> None:
    """Write a matplotlib Figure in one step, without a display; equal figures give equal bytes.

    Raises InputError where the disk refuses.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(content, format="png", dpi=dpi, metadata={"Software": _MADE_BY})
    with disk_errors(path, "no picture was written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content.getvalue())


def is_own_png(path: Path) -> bool:
    """Whether a picture was written by `save_png`; earlier releases left no mark."""
    return path.is_file() and b"Software\0" + _MADE_BY.encode() in path.read_bytes()[:1000]


def _title(directory: Path) -> str:
    try:
        commit = read_versions(directory).get("git_commit", "unknown")
    except InputError:
        commit = "unknown"
    return f"{directory.parent.parent.name} {directory.parent.name} ({commit})"
