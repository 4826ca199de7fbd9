"""The tables, as rows of plain values: Markdown and CSV start from these."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sodp3d.data import experience
from sodp3d.envs.config import SUCCESS_METRICS
from sodp3d.results.choose import of_one_length, representative, sharing_a_planner
from sodp3d.results.differences import distinguishing
from sodp3d.results.estimates import Estimate, estimate, estimate_top5
from sodp3d.results.groups import Group
from sodp3d.results.interactions import interactions
from sodp3d.results.naming import ALGORITHMS, DIRECT_BC, METHODS, PRETRAINED, REGULARIZED
from sodp3d.results.paper import AVERAGES, TABLE8, TABLE9, TASKS, Row
from sodp3d.results.scan import RunRecord, Score, provenance, seconds
from sodp3d.results.stores import StoreRecord

Record = dict[str, Any]  # column to value; None is a cell that was not measured
TOP5 = "top 5"
_HEADLINE = (REGULARIZED["bc"], DIRECT_BC, REGULARIZED["pl"], REGULARIZED["kl"], REGULARIZED["none"], PRETRAINED)
_ORDER = tuple(dict.fromkeys([*_HEADLINE, *METHODS]))
_ALWAYS_SHOWN = (REGULARIZED["bc"], REGULARIZED["none"], PRETRAINED)


def table8(groups: Sequence[Group]) -> list[Record]:
    """Every method and observation we have, one row each, the plain methods first; then the paper's rows."""
    wanted = {("pointcloud", _stage(label), label): place("pointcloud", label, label) for label in _ALWAYS_SHOWN}
    for group in groups:
        if group.task in TASKS:
            key = group.observation, group.stage, group.label
            wanted[key] = place(group.observation, group.method, group.label)
    rows = [row for key in sorted(wanted, key=lambda key: wanted[key]) for row in _ours(groups, *key)]
    return rows + _paper(TABLE8)


def table9(groups: Sequence[Group]) -> list[Record]:
    """What each algorithm makes of one pre-trained planner of each task from point clouds; then the paper's rows.

    All of a task's rows had as many episodes to learn from.
    """
    among = [group for task in TASKS for group in of_one_length(sharing_a_planner(groups, task, "pointcloud"))]
    there = {group.label for group in among}
    shown = [label for label in _ORDER if label in _HEADLINE or label in there]
    rows = [row for label in shown for row in _ours(among, "pointcloud", _stage(label), label)]
    return rows + _paper(TABLE9)


def fine_tuned(rows: Sequence[Record]) -> str:
    """The method of `table9` that stands for fine-tuning: SODP, by the name under which it ran on the most tasks."""
    names = (ALGORITHMS["sodp"], ALGORITHMS["sodp_chunk"], REGULARIZED["bc"])
    measured = {row["method"]: sum(row[task] is not None for task in TASKS) for row in rows if row["who"] == "ours"}
    found = max(names, key=lambda name: measured.get(name, 0))
    return found if measured.get(found) else REGULARIZED["bc"]


def _stage(label: str) -> str:
    return "pretrain" if label == PRETRAINED else "finetune"


def place(observation: str, method: str, label: str) -> tuple[Any, ...]:
    """Sorts point clouds before other observations, plain methods before variants, then as the headline does."""
    rank = _ORDER.index(method) if method in _ORDER else len(_ORDER)
    return observation != "pointcloud", observation, label != method, rank, label


def _paper(rows: Mapping[str, Row]) -> list[Record]:
    return [
        {
            "who": "paper",
            "method": method,
            "measure": TOP5,
            **{task: _printed(*cell) for task, cell in zip(TASKS, row, strict=True)},
            "average": round(AVERAGES[row] / 100, 3),
            "measured on": None,
        }
        for method, row in reversed(list(rows.items()))
    ]


def _printed(mean: int, deviation: int) -> Estimate:
    return Estimate(mean / 100, None, None, deviation / 100, 3, ())


def _ours(groups: Sequence[Group], observation: str, stage: str, label: str) -> list[Record]:
    """One row by the reported planner's test episodes, and for fine-tuning one by the paper's measure.

    A pre-trained planner is reported by the test with which its fine-tuning began, where that had more episodes.
    """
    chosen = {}
    for task in TASKS:
        alike = [g for g in groups if (g.task, g.observation, g.stage, g.label) == (task, observation, stage, label)]
        chosen[task] = representative(alike)
    method = label if observation == "pointcloud" else f"{label} (obs={observation})"
    scores = {task: list(group.reported[1]) if group else [] for task, group in chosen.items()}
    if stage == "pretrain":
        scores = {task: _larger(scores[task], _starts(groups, chosen[task])) for task in TASKS}
    used = sorted({group.reported[0] for group in chosen.values() if group})
    taken = _range(count for group in chosen.values() if group for count in map(interactions, group.runs))
    rows = [_row(method, "/".join(used) or None, {task: estimate(found) for task, found in scores.items()}, taken)]
    highest = {task: estimate_top5(group) if group else None for task, group in chosen.items()}
    if stage == "finetune" and any(highest.values()):
        rows.append(_row(method, TOP5, highest, taken))
    return rows


def _starts(groups: Sequence[Group], planner: Group | None) -> list[Score]:
    """The largest test with which a fine-tuning of the planner's newest run began; [] without one."""
    if planner is None or len(planner.runs) != 1:
        return []
    first = planner.runs[0]
    tuned = [run for group in groups for run in group.runs if run.planner == first.name]
    tuned = [run for run in tuned if _sampler(run) == _sampler(first)]
    found = [run.scores["before"] for run in tuned if "before" in run.scores]
    return [max(found, key=lambda score: score.episodes)] if found else []


def _sampler(run: RunRecord) -> tuple[Any, ...]:
    """How a run's planner was sampled in its tests; None: as the planner keeps it."""
    evaluation = run.config["evaluation"]
    return run.config["model"].get("sampling_steps"), evaluation.get("eta"), evaluation.get("sigma_floor")


def _larger(one: list[Score], other: list[Score]) -> list[Score]:
    return max(one, other, key=lambda scores: sum(score.episodes for score in scores))


def _row(method: str, measure: str | None, cells: Mapping[str, Estimate | None], taken: str | None) -> Record:
    present = [cell for cell in cells.values() if cell]
    complete = len(present) == len(cells)
    return {
        "who": "ours",
        "method": method,
        "measure": measure,
        **cells,
        "average": sum(cell.rate for cell in present) / len(present) if complete else None,
        "interactions": taken,
        "measured on": ", ".join(dict.fromkeys(cell.basis for cell in present)) or None,
    }


def settings_table(groups: Sequence[Group], made_by: Mapping[str, str]) -> list[Record]:
    """One row for each configuration. made_by: `labels`."""
    rows = []
    for group, differing in zip(groups, distinguishing(groups), strict=True):
        scores = {f"{which} {metric}": estimate(group.scores(which), metric) for which, metric in _columns()}
        times = [spent for run in group.runs if (spent := seconds(run.path)) is not None]
        steps = [run.metrics[-1]["step"] for run in group.runs if run.metrics]
        rows.append(
            {
                "task": group.task,
                "obs": group.observation,
                "stage": group.stage,
                "method": group.label,
                "differs by": differing or None,
                "data made by": made_by.get(group.settings.get("data_hash") or ""),
                "seeds": ", ".join(str(run.seed) for run in group.runs),
                "episodes": _joined(score.episodes for run in group.runs for score in run.scores.values()),
                "metric": _joined(score.headline for run in group.runs for score in run.scores.values()),
                "before": estimate(group.scores("before")),
                **scores,
                TOP5: estimate_top5(group),
                "interactions": _range(map(interactions, group.runs)),
                "steps": _joined(steps),
                "wall time": sum(times) / len(times) if len(times) == len(group.runs) else None,
                "runs": " ".join(run.name for run in group.runs),
            }
        )
    return rows


def _columns() -> list[tuple[str, str]]:
    return [(which, metric) for which in ("last", "best") for metric in SUCCESS_METRICS]


def _joined(values: Iterable[Any]) -> str | None:
    return "/".join(str(value) for value in sorted(set(values))) or None


def _range(values: Iterable[int | None]) -> str | None:
    found = [value for value in values if value is not None]
    ends = (min(found), max(found)) if found else ()
    return " to ".join(str(end) for end in dict.fromkeys(ends)) or None


def described(groups: Sequence[Group]) -> dict[str, tuple[str, str]]:
    """Name of a run to its method and what differs in it, older runs of a seed included."""
    found: dict[str, tuple[str, str]] = {}
    for group, differing in zip(groups, distinguishing(groups), strict=True):
        found |= {run.name: (group.label, differing) for run in (*group.repeated, *group.runs)}
    return found


def set_table(groups: Sequence[Group]) -> list[Record]:
    """Planners of sets of tasks and their fine-tunings: the mean of each, then a row for each task."""
    rows = []
    for group, differing in zip(groups, distinguishing(groups), strict=True):
        tasks = sorted({task for run in group.runs for task in run.task_scores})
        if not tasks:
            continue
        named = {"set": group.task, "obs": group.observation, "method": group.label, "differs by": differing or None}
        mean: Record = {
            "task": f"mean of {len(tasks)}",
            "before": group.scores("before"),
            "success": group.scores("last"),
        }
        each: list[Record] = [
            {
                "task": task,
                "unseen": any(task in run.unseen for run in group.runs) or None,
                "before": [run.task_scores_before[task] for run in group.runs if task in run.task_scores_before],
                "success": [run.task_scores[task] for run in group.runs if task in run.task_scores],
            }
            for task in tasks
        ]
        for row in (mean, *each):
            success = estimate(row["success"])
            found = {"before": estimate(row["before"]), "success": success, "measured on": success and success.basis}
            rows.append({**named, "task": row["task"], "unseen": row.get("unseen"), **found})
    return rows


def evaluation_table(runs: Sequence[RunRecord], groups: Sequence[Group]) -> list[Record]:
    """One row for each task of each mode=eval run, and for the mean of several.

    Each names the planner, the sampler, of how many plans the best was taken, and all three metrics.
    """
    known, seeds = described(groups), {run.name: run.seed for run in runs}
    return [
        {
            "task": task,
            "obs": run.observation,
            "method": known.get(run.planner or "", (None, None))[0],
            "differs by": known.get(run.planner or "", (None, None))[1] or None,
            "seed": seeds.get(run.planner or ""),
            "eta": run.config["evaluation"].get("eta"),
            "sigma_floor": run.config["evaluation"].get("sigma_floor"),
            "sampling_steps": run.config.get("model", {}).get("sampling_steps"),
            "best_of": run.best_of(task),
            "episodes": score.episodes,
            "episode seeds": f"{score.seeds[0]} to {score.seeds[1]}",
            "metric": score.headline,
            **{metric: estimate([score], metric) for metric in SUCCESS_METRICS},
            "planner": run.planner,
            "directory": run.name,
            **({"unseen": True} if task in run.unseen else {}),
        }
        for run in runs
        if run.stage == "eval"
        for task, score in _with_mean(run).items()
    ]


def _with_mean(run: RunRecord) -> dict[str, Score]:
    """The scores of an evaluation by task, after the mean of several under the set's name."""
    if len(run.task_scores) < 2:
        return run.task_scores
    return {f"{run.task}, mean of {len(run.task_scores)}": Score.pooled(run.task_scores.values()), **run.task_scores}


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
                "prior data": experience.told(record.priors),
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
                "learned_hashes": " ".join(f"{key}={name}" for key, name in sorted(record.learned_hashes.items())),
                "commit": record.commit,
                "command": record.command,
            }
        )
    return rows


def kept_table(stores: Sequence[StoreRecord]) -> list[Record]:
    """One row for each store: success of its kept episodes over time, of an expert's and in tenths of the agent's."""
    numbers = range(1, experience.PARTS + 1)
    return [
        {
            "store": record.name,
            "env": record.env,
            "made by": record.made_by,
            "seed": record.seed,
            "metric": record.headline,
            "scripted": (rates := record.success_over_time).get(0),
            **{f"to {100 * number // experience.PARTS} %": rates.get(number) for number in numbers},
        }
        for record in stores
    ]


def labels(stores: Sequence[StoreRecord]) -> dict[str, str]:
    """How the data of each hash was made."""
    return {name: record.made_by for record in stores for name in record.hashes}


def run_table(runs: Sequence[RunRecord], groups: Sequence[Group], made_by: Mapping[str, str]) -> list[Record]:
    """Where each number came from and how to make it again. made_by: `labels`."""
    hashes, known, rows = {run.name: run.data_hash for run in runs}, described(groups), []
    for run in runs:
        command, commit = provenance(run.path)
        method, differing = known.get(run.name) or known.get(run.planner or "") or (None, None)
        rates = {f"{which} {metric}": _rate(run, which, metric) for which, metric in _columns()}
        rows.append(
            {
                "directory": run.name,
                "task": run.task,
                "obs": run.observation,
                "stage": run.stage,
                "method": method,
                "differs by": differing or None,
                "seed": run.seed,
                **rates,
                TOP5: run.top5 if run.stage == "finetune" else None,
                "interactions": interactions(run),
                "wall time": seconds(run.path),
                "data_hash": (data := run.data_hash or hashes.get(run.planner or "")),
                "data made by": made_by.get(data or ""),
                "planner": run.planner,
                "commit": commit,
                "command": command,
            }
        )
    return rows


def _rate(run: RunRecord, which: str, metric: str) -> float | None:
    score = run.scores.get(which)
    return score.rate(metric) if score else None
