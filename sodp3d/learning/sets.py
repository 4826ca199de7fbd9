"""Fine-tuning a set: a run for each task, in the form of that task's own command, and one record of the whole.

outputs/finetune/<set>-<obs>-<algorithm>/<time>-s<seed>/
  config.yaml        what was asked of all tasks
  runs.json          task to its run directory, relative to this one; written before any is begun
  result.json        each task before and after, and the mean, once all have come to their end
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json, write_json
from sodp3d.core.run import Run, is_finished, read_result
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.lookup import RUNS
from sodp3d.parallel.tasks import Job, at_once, run_side_by_side, share_of
from sodp3d.rollouts.evaluate import mean_summary
from sodp3d.tools.plot import plot_tasks

log = logging.getLogger(__name__)
_PLACES = "runs.json"
Stage = Callable[[dict[str, Any]], None]


def as_task(config: Mapping[str, Any], task: EnvConfig) -> dict[str, Any]:
    """A set's configuration as that task's own command would compose it."""
    return {**config, "env": {**config["env"], "name": task.name, "task": task.task, "tasks": []}}


def is_of_set(config: Mapping[str, Any], task: EnvConfig) -> bool:
    """Whether a recorded configuration is of a set that holds the task."""
    tasks = config["env"].get("tasks") or []
    return task.task in tasks and config["env"].get("family") == task.family


def finetune_set(run: Run, parts: Mapping[str, dict[str, Any]], new_run: Callable[[str], Path], stage: Stage) -> None:
    """Fine-tune every task that is not finished, several at once, then publish the result of all.

    parts: task to the configuration of its command. new_run: where a task's run goes that this set has not begun yet.
    stage: what such a command does. Raises as `run_side_by_side`.
    """
    directories = _directories(run.directory, list(parts), new_run)
    left = [name for name in parts if not is_finished(directories[name])]
    together = at_once(next(iter(parts.values())), len(left) or 1)  # the run's own record has no such options
    log.info("%d of %d tasks are left to fine-tune, %d at once", len(left), len(parts), together)
    jobs = [
        Job(name, stage, ({**share_of(parts[name], together), "run_dir": str(directories[name])},)) for name in left
    ]
    done = [name for name in parts if name not in left]

    def finished(name: str) -> None:
        done.append(name)
        log.info("%s (%d of %d tasks)", _told(name, read_result(directories[name])), len(done), len(parts))

    run_side_by_side(jobs, together, finished)
    result = _result(run, directories)
    log.info("before: mean %s", _percent(result["mean_before"]))
    log.info("after:  mean %s", _percent(result["mean"]))
    plot_tasks(run.directory / "tasks.png", result["tasks_before"], result["tasks"])
    run.finish(result)


def _directories(folder: Path, names: Sequence[str], new_run: Callable[[str], Path]) -> dict[str, Path]:
    """Where each task's run is: as noted, or noted now."""
    path = folder / _PLACES
    if not path.exists():
        write_json(path, {name: os.path.relpath(new_run(name), folder) for name in names})
    noted = read_json(path)
    if not isinstance(noted, dict) or set(noted) != set(names):
        raise InputError(f"{path}: expected a run directory for each of {', '.join(names)}, got {noted!r}.")
    return {name: (folder / str(noted[name])).resolve() for name in names}


def _result(run: Run, directories: Mapping[str, Path]) -> dict[str, Any]:
    results = {name: read_result(directory) for name, directory in directories.items()}
    before = {name: result["before"] for name, result in results.items()}
    after = {name: reported(result) for name, result in results.items()}
    unseen = [name for name, result in results.items() if result.get("unseen")]
    counts: dict[str, int] = {}
    for result in results.values():
        for purpose, count in result.get("interactions", {}).items():
            counts[purpose] = counts.get(purpose, 0) + count
    return {
        "planner": run.config["planner"],
        RUNS: {name: os.path.relpath(directory, run.directory) for name, directory in directories.items()},
        "tasks_before": before,
        "tasks": after,
        "mean_before": mean_summary(list(before.values())),
        "mean": mean_summary(list(after.values())),
        "interactions": counts,
        **({"unseen": unseen} if unseen else {}),
    }


def reported(result: Mapping[str, Any]) -> dict[str, Any]:
    """The test of the planner that other commands load: the best by validations where there is one, or the last."""
    summary: dict[str, Any] = result.get("best") or result["evaluation"]
    return summary


def _told(name: str, result: Mapping[str, Any]) -> str:
    unseen = ", unseen before" if result.get("unseen") else ""
    return f"{name}: {_percent(result['before'])} before, {_percent(reported(result))} after fine-tuning{unseen}"


def _percent(summary: Mapping[str, Any]) -> str:
    rate = summary["success"][summary["headline_metric"]]
    return f"{rate['rate']:.0%} [{rate['low95']:.0%}, {rate['high95']:.0%}]"
