"""The tables, as rows of plain values: every writer (Markdown, CSV, JSON) starts from these."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sodp3d.envs.config import SUCCESS_METRICS
from sodp3d.results.groups import (
    DIRECT_BC,
    METHODS,
    PRETRAINED,
    REGULARIZED,
    Estimate,
    Group,
    distinguishing,
    estimate,
    estimate_top5,
    of_one_length,
    representative,
    sharing_a_planner,
)
from sodp3d.results.paper import AVERAGES, TABLE8, TABLE9, TASKS, Row
from sodp3d.results.scan import RunRecord, provenance, seconds
from sodp3d.results.stores import StoreRecord

Record = dict[str, Any]  # column to value; None is a cell that was not measured
_MAIN = (("pretrain", PRETRAINED), ("finetune", REGULARIZED["none"]), ("finetune", REGULARIZED["bc"]))  # always shown


def table8(groups: Sequence[Group]) -> list[Record]:
    """Every method and observation we have, one row each, below the paper's rows."""
    wanted = {("pointcloud", *row): (False, "pointcloud", METHODS.index(row[1]), row[1], "") for row in _MAIN}
    for group in groups:
        if group.task in TASKS:
            key = group.observation, group.stage, group.label
            wanted[key] = group.observation != "pointcloud", group.observation, *group.rank
    return _paper(TABLE8) + [row for key in sorted(wanted, key=lambda key: wanted[key]) for row in _ours(groups, *key)]


def table9(groups: Sequence[Group]) -> list[Record]:
    """One pre-trained model of each task from point clouds and what each regularizer makes of it, below the paper's.

    All of a task's rows had as many episodes to learn from.
    """
    wanted = [("pretrain", PRETRAINED), *(("finetune", label) for label in (*REGULARIZED.values(), DIRECT_BC))]
    among = [group for task in TASKS for group in of_one_length(sharing_a_planner(groups, task, "pointcloud"))]
    return _paper(TABLE9) + [row for key in wanted for row in _ours(groups, "pointcloud", *key, among)]


def _paper(rows: Mapping[str, Row]) -> list[Record]:
    return [
        {
            "who": "paper",
            "method": method,
            "measure": "top 5",
            **{task: _printed(*cell) for task, cell in zip(TASKS, row, strict=True)},
            "average": round(AVERAGES[row] / 100, 3),
            "measured on": None,
            "settings": None,
        }
        for method, row in rows.items()
    ]


def _printed(mean: int, deviation: int) -> Estimate:
    return Estimate(mean / 100, None, None, deviation / 100, 3, ())


def _ours(
    groups: Sequence[Group], observation: str, stage: str, label: str, among: Sequence[Group] | None = None
) -> list[Record]:
    """One row by the reported planner's test episodes, and for fine-tuning one by the paper's measure.

    among: the groups to choose from, where that is not all of `groups`, by whose order they are named.
    """
    among = groups if among is None else among
    chosen = {}
    for task in TASKS:
        alike = [g for g in among if (g.task, g.observation, g.stage, g.label) == (task, observation, stage, label)]
        chosen[task] = representative(alike)
    method = label if observation == "pointcloud" else f"{label} (obs={observation})"
    numbers = [groups.index(group) + 1 for group in chosen.values() if group]
    tested = {task: estimate(group.reported[1]) if group else None for task, group in chosen.items()}
    used = sorted({group.reported[0] for group in chosen.values() if group})
    rows = [_row(method, "/".join(used) or None, tested, numbers)]
    highest = {task: estimate_top5(group) if group else None for task, group in chosen.items()}
    if stage == "finetune" and any(highest.values()):
        rows.append(_row(method, "top 5", highest, numbers))
    return rows


def _row(method: str, measure: str | None, cells: Mapping[str, Estimate | None], numbers: list[int]) -> Record:
    present = [cell for cell in cells.values() if cell]
    complete = len(present) == len(cells)
    return {
        "who": "ours",
        "method": method,
        "measure": measure,
        **cells,
        "average": sum(cell.rate for cell in present) / len(present) if complete else None,
        "measured on": ", ".join(dict.fromkeys(cell.basis for cell in present)) or None,
        "settings": ", ".join(f"S{number}" for number in numbers) or None,
    }


def settings_table(groups: Sequence[Group], names: Mapping[str, str]) -> list[Record]:
    """One row for each configuration; `names`: path of a run to its number in the list of runs."""
    rows = []
    for number, (group, differing) in enumerate(zip(groups, distinguishing(groups), strict=True), start=1):
        scores = {f"{which} {metric}": estimate(group.scores(which), metric) for which, metric in _columns()}
        times = [spent for run in group.runs if (spent := seconds(run.path)) is not None]
        steps = [run.metrics[-1]["step"] for run in group.runs if run.metrics]
        rows.append(
            {
                "settings": f"S{number}",
                "task": group.task,
                "obs": group.observation,
                "method": group.label,
                "differs by": differing or None,
                "seeds": ", ".join(str(run.seed) for run in group.runs),
                "episodes": _joined(score.episodes for run in group.runs for score in run.scores.values()),
                "metric": _joined(score.headline for run in group.runs for score in run.scores.values()),
                "before": estimate(group.scores("before")),
                **scores,
                "top 5": estimate_top5(group),
                "steps": _joined(steps),
                "wall time": sum(times) / len(times) if len(times) == len(group.runs) else None,
                "runs": ", ".join(names[str(run.path)] for run in group.runs),
            }
        )
    return rows


def _columns() -> list[tuple[str, str]]:
    return [(which, metric) for which in ("last", "best") for metric in SUCCESS_METRICS]


def _joined(values: Iterable[Any]) -> str | None:
    return "/".join(str(value) for value in sorted(set(values))) or None


def evaluation_table(runs: Sequence[RunRecord], names: Mapping[str, str]) -> list[Record]:
    """One row for each task of each mode=eval run: the sampler and all three metrics."""
    return [
        {
            "task": task,
            "obs": run.observation,
            "planner": run.planner,
            "eta": run.config["evaluation"].get("eta"),
            "sigma_floor": run.config["evaluation"].get("sigma_floor"),
            "episodes": score.episodes,
            "episode seeds": f"{score.seeds[0]}-{score.seeds[1]}",
            "metric": score.headline,
            **{metric: estimate([score], metric) for metric in SUCCESS_METRICS},
            "runs": names[str(run.path)],
        }
        for run in runs
        if run.stage == "eval"
        for task, score in run.task_scores.items()
    ]


def collection_table(stores: Sequence[StoreRecord]) -> list[Record]:
    """One row for each store."""
    rows = []
    for record in stores:
        evaluations = record.curve(f"evaluation/success_{record.headline}")
        rows.append(
            {
                "store": record.name,
                "env": record.env,
                "agent": record.agent,
                "seed": record.seed,
                "transitions": record.transitions,
                "episodes": len(record.agent_step),
                "metric": record.headline,
                **{f"kept {metric}": rate for metric, rate in record.success_rates.items()},
                "agent, last": evaluations[-1][1] if evaluations else None,
                "agent, best": max(rate for _, rate in evaluations) if evaluations else None,
                "wall time": record.seconds,
                "frames/s": record.frames_per_second,
                "megabytes": record.bytes / 1e6,
                "data_hash": record.data_hash,
                "commit": record.commit,
                "command": record.command,
            }
        )
    return rows


def run_table(runs: Sequence[RunRecord], names: Mapping[str, str]) -> list[Record]:
    """Where each number came from and how to make it again."""
    hashes, rows = {run.name: run.data_hash for run in runs}, []
    for run in runs:
        command, commit = provenance(run.path)
        rates = {f"{which} {metric}": _rate(run, which, metric) for which, metric in _columns()}
        rows.append(
            {
                "run": names[str(run.path)],
                "directory": run.name,
                "task": run.task,
                "obs": run.observation,
                "stage": run.stage,
                "seed": run.seed,
                **rates,
                "top 5": run.top5 if run.stage == "finetune" else None,
                "wall time": seconds(run.path),
                "data_hash": run.data_hash or hashes.get(run.planner or ""),
                "planner": run.planner,
                "commit": commit,
                "command": command,
                "videos": ", ".join(run.videos) or None,
            }
        )
    return rows


def _rate(run: RunRecord, which: str, metric: str) -> float | None:
    score = run.scores.get(which)
    return score.rate(metric) if score else None
