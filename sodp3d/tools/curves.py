"""The report's curves, as plain values that its page draws: titles, axes with units, lines."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sodp3d.core.run import read_metrics
from sodp3d.tools.card import TrainingPart
from sodp3d.tools.plot import LABELS

Curve = dict[str, Any]


def data_curves(parts: Iterable[TrainingPart]) -> list[Curve]:
    """Success of the collected episodes over agent time."""
    parts = list(parts)
    middles = [(part.first + part.last) / 2 for part in parts]
    names = {
        "any": "goal at any time",
        "count": "goal held long enough",
        "final": "goal at the end",
    }
    lines = [_line(words, middles, [100 * part.rates[name] for part in parts]) for name, words in names.items()]
    return (
        [_curve("data", "The agent while collecting", "agent steps", "successful episodes (%)", lines)] if parts else []
    )


def run_curves(runs: dict[str, Path]) -> list[Curve]:
    """Loss while pre-training, success and return while fine-tuning, of `runs` by mode."""
    curves = []
    if "pretrain" in runs:
        records = read_metrics(runs["pretrain"])
        lines = _lines(records, {"train/loss": "loss", "validation/loss": "loss on held-out episodes"})
        curves.append(_curve("training", "Pre-training", LABELS["pretrain"], "denoising loss (squared error)", lines))
    if "finetune" in runs:
        records = read_metrics(runs["finetune"])
        metric = next((name for record in records for name in record if name.startswith("rollout/success_")), "")
        success = {
            metric: "training roll-outs",
            metric.replace("rollout", "validation"): "validation seeds",
            metric.replace("rollout", "evaluation"): "test seeds",
        }
        returns = {name.replace(metric.split("/")[-1], "return"): words for name, words in success.items()}
        steps = LABELS["finetune"]
        lines = _lines(records, success, 100)
        curves.append(_curve("training", "Fine-tuning: success", steps, "successful episodes (%)", lines))
        curves.append(
            _curve("training", "Fine-tuning: return", steps, "return (sum of rewards)", _lines(records, returns))
        )
    return [curve for curve in curves if curve["lines"]]


def _curve(section: str, title: str, x: str, y: str, lines: list[dict[str, Any]]) -> Curve:
    percent = "(%)" in y
    return {"section": section, "title": title, "x": x, "y": y, "percent": percent, "lines": lines}


def _lines(records: list[dict[str, Any]], names: dict[str, str], scale: float = 1) -> list[dict[str, Any]]:
    found = []
    for name, words in names.items():
        points = [(record["step"], scale * record[name]) for record in records if record.get(name) is not None]
        if points:
            found.append(_line(words, *map(list, zip(*points, strict=True))))
    return found


def _line(name: str, x: list[float], y: list[float]) -> dict[str, Any]:
    return {"name": name, "x": x, "y": [round(float(value), 5) for value in y]}
