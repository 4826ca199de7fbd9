"""Curves of a run, from its metrics.jsonl; and how figures are written."""

from pathlib import Path
from typing import Any

from sodp3d.core.files import read_json

LABELS = {"pretrain": "gradient steps", "finetune": "environment steps", "collect": "agent steps"}


def plot_run(directory: Path, mode: str, records: list[dict[str, Any]]) -> Path:
    """Write curve.png: success rates above, losses and returns below, over the run's own step counter."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted({name for record in records for name in record if name != "step"})
    success = [name for name in names if "success" in name]
    losses = [name for name in names if name in ("train/loss", "train/bc_loss", "train/regularizer", "train/imp_loss")]
    returns = [name for name in names if name in ("rollout/return", "evaluation/return")]
    groups = [group for group in (success, losses, returns) if group]
    figure, axes = plt.subplots(len(groups) or 1, 1, figsize=(7, 3 * (len(groups) or 1)), squeeze=False, sharex=True)
    for axis, group in zip(axes[:, 0], groups, strict=False):
        for name in group:
            points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
            axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 50 else None)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
        if group is success:
            axis.set_ylim(-0.02, 1.02)
    axes[-1, 0].set_xlabel(LABELS.get(mode, "steps"))
    axes[0, 0].set_title(_title(directory), fontsize=9)
    figure.tight_layout()
    path = directory / "curve.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def save_png(figure: Any, path: Path) -> None:
    """Write a matplotlib Figure in one step, without a display; equal figures give equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial.png")
    FigureCanvasAgg(figure).print_figure(partial, dpi=100, metadata={"Software": None})
    partial.replace(path)


def _title(directory: Path) -> str:
    versions = directory / "versions.json"
    commit = read_json(versions)["git_commit"] if versions.exists() else "unknown"
    return f"{directory.parent.parent.name} {directory.parent.name} ({commit})"
