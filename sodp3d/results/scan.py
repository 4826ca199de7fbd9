"""Find run directories and stores below some folders, and read what they record.

Nothing here depends on the order or the names of the folders given: runs are named by their path from `outputs/` or
`data/` on, and sorted by that name.
"""

import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.core.run import is_finished, read_config, read_metrics, read_result, read_versions, seconds_spent
from sodp3d.envs.config import SUCCESS_METRICS

ROOTS = ("outputs", "data")
STAGES = ("pretrain", "finetune", "distill", "eval")
STORE_RECORD = "store.json"  # stands for a store in kept records
BROKEN = (OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)  # of one run
_INSIDE_RUNS = {"checkpoints", "best", "tensorboard", "wandb", "videos", "evaluation", "card"}


@dataclass(frozen=True)
class Score:
    """Success of one planner on one task's evaluation episodes."""

    headline: str
    episodes: int
    seeds: tuple[int, int]
    successes: dict[str, int]  # by metric

    @classmethod
    def pooled(cls, scores: "Iterable[Score]") -> "Score":
        """Of a planner on several tasks: all their episodes, of which each task has as many."""
        found = list(scores)
        successes = {metric: sum(score.successes[metric] for score in found) for metric in SUCCESS_METRICS}
        return cls(found[0].headline, sum(score.episodes for score in found), found[0].seeds, successes)

    @classmethod
    def from_summary(cls, summary: dict[str, Any]) -> "Score":
        """From `Evaluation.summary()`; KeyError, TypeError or ValueError where it is not one."""
        count = int(summary["episodes"])
        first, last = summary["seeds"]
        successes = {metric: round(float(summary["success"][metric]["rate"]) * count) for metric in SUCCESS_METRICS}
        if summary["headline_metric"] not in SUCCESS_METRICS or count < 1:
            raise ValueError(f"headline_metric {summary['headline_metric']!r}, episodes {count}")
        return cls(summary["headline_metric"], count, (int(first), int(last)), successes)

    def rate(self, metric: str | None = None) -> float:
        """Share of successful episodes, 0..1, by `metric` or the task's headline metric."""
        return self.successes[metric or self.headline] / self.episodes


@dataclass(frozen=True)
class RunRecord:
    """A run directory of train.py, as found."""

    path: Path
    config: dict[str, Any]
    result: dict[str, Any] | None  # None: not finished

    @property
    def name(self) -> str:
        """The path from `outputs/` on."""
        return shown(self.path)

    @property
    def stage(self) -> str:
        """pretrain, finetune, distill or eval."""
        return self.config["mode"]

    @property
    def task(self) -> str:
        """The env's name."""
        return self.config["env"]["name"]

    @property
    def observation(self) -> str:
        """pointcloud, state or image."""
        return self.config["obs"]["name"]

    @property
    def seed(self) -> int:
        """The training seed."""
        return self.config["seed"]

    @property
    def time(self) -> str:
        """Sorts runs by their start, where the directory's name tells it."""
        return self.path.name

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Records of metrics.jsonl."""
        return read_metrics(self.path)

    @cached_property
    def scores(self) -> dict[str, Score]:
        """Of all but eval: `last`, `best` (by validation, on the test seeds) and `before`, where recorded.

        Of a set those of all its tasks together: `last` of the planners that other commands load, and `before`.
        """
        if self.stage != "eval" and self.task_scores:
            sets = {"last": self.task_scores, "before": self.task_scores_before}
            return {name: Score.pooled(scores.values()) for name, scores in sets.items() if scores}
        keys = {"last": "evaluation", "best": "best", "before": "before"}
        result = self.result or {}
        return {name: Score.from_summary(result[key]) for name, key in keys.items() if result.get(key)}

    @cached_property
    def task_scores(self) -> dict[str, Score]:
        """Of eval, and of any stage of a set: the score of each task."""
        return self._of_tasks("tasks")

    @cached_property
    def task_scores_before(self) -> dict[str, Score]:
        """Of a set's fine-tuning: the score of each task with which it began."""
        return self._of_tasks("tasks_before")

    def _of_tasks(self, key: str) -> dict[str, Score]:
        tasks = (self.result or {}).get(key, {})
        return {task: Score.from_summary(summary) for task, summary in sorted(tasks.items())}

    def best_of(self, task: str) -> int | None:
        """Of how many plans an evaluation of `task` took the best; None where neither told nor asked for."""
        told: dict[str, Any] = (self.result or {}).get("best_of", {})
        return told.get(task, self.config["evaluation"].get("best_of"))

    @property
    def unseen(self) -> list[str]:
        """Tasks that the planner which was evaluated or fine-tuned had not been trained on."""
        return list((self.result or {}).get("unseen", []))

    @property
    def trained_on(self) -> list[str]:
        """Of fine-tuning: the tasks that its planner had been trained on; [] where not recorded."""
        return list((self.result or {}).get("trained_on", []))

    @cached_property
    def validations(self) -> list[tuple[int, float]]:
        """(environment steps, success by the headline metric) of each validation of fine-tuning; [] of other runs."""
        if self.stage != "finetune":
            return []
        name = f"success_{self.config['env']['success_metric']}"
        found = [(record["step"], record.get(f"validation/{name}")) for record in self.metrics]
        if all(rate is None for _, rate in found):  # earlier runs logged them under the test's name, beside the losses
            losses = [record for record in self.metrics if any(key.startswith("train/") for key in record)]
            found = [(record["step"], record.get(f"evaluation/{name}")) for record in losses]
        return [(step, rate) for step, rate in found if rate is not None]

    @property
    def top5(self) -> float | None:
        """Mean of the five highest validations, of all of them while they are fewer; None without any."""
        best = sorted(rate for _, rate in self.validations)[-5:]
        return sum(best) / len(best) if best else (self.result or {}).get("validation_top5")

    @property
    def planner(self) -> str | None:
        """The name of the run whose planner was fine-tuned or evaluated."""
        given = self.config.get("planner") or (self.result or {}).get("planner")
        if not given:
            return None
        path = Path(given)
        while path.name in ("best", "checkpoints") or checkpoint.is_name(path.name):
            path = path.parent
        return shown(path)

    @cached_property
    def data_hash(self) -> str | None:
        """The start of the hash of the data behind the weights, from a checkpoint; None where none is left."""
        for folder in (self.path / "best", self.path / "checkpoints"):
            for step in reversed(checkpoint.steps(folder)):
                return checkpoint.read_state(checkpoint.path_of(folder, step)).get("data_hash")
        return None

    @property
    def content(self) -> str:
        """Configuration and result as text, without the machine's part of paths: the same of a run and its record."""
        return json.dumps(without_machine([self.config, self.result]), sort_keys=True)

    @property
    def has_weights(self) -> bool:
        """Whether a planner can be loaded from it; a kept record holds none."""
        return any(self.path.glob(f"*/*/{checkpoint.TENSORS}"))

    def check(self) -> None:
        """Read everything a table needs, so that what is missing shows here. Raises as reading a dict does."""
        texts = {"env.name": self.task, "obs.name": self.observation, "planner": self.planner or ""}
        texts |= {"data_hash": self.data_hash or "", "env.success_metric": self.config["env"]["success_metric"]}
        for name, value in texts.items():
            _require(name, value, str)
        _require("seed", self.seed, int)
        for task in self.task_scores:
            _require("best_of", self.best_of(task) or 1, int)
        _require("top5", self.top5 or 0, int | float)
        for step, rate in self.validations:
            _require("step", step, int | float)
            _require("validation", rate, int | float)
        for name in (*self.unseen, *self.trained_on):
            _require("unseen or trained_on", name, str)
        _ = self.scores, self.task_scores, self.task_scores_before, seconds(self.path), provenance(self.path)
        if self.stage not in STAGES:
            raise ValueError(f"mode {self.stage!r}")


def _require(name: str, value: Any, kind: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ValueError(f"{name} {value!r}")


@dataclass(frozen=True)
class Scan:
    """Everything found, each list sorted by name."""

    runs: list[RunRecord]  # finished
    unfinished: list[RunRecord]
    stores: list[Path]  # folders that hold episodes.zarr
    broken: list[tuple[str, str]]  # name and reason


def scan(folders: Iterable[Path]) -> Scan:
    """Look through `folders`; what cannot be read is listed, never raised. Raises InputError for a missing folder.

    Of a run or a store found beside the record that was kept of it, the original is taken.
    """
    runs: list[RunRecord] = []
    broken: list[tuple[str, str]] = []
    stores: set[Path] = set()
    for directory in sorted(set(_candidates(folders))):
        if (directory / "episodes.zarr").is_dir() or (directory / STORE_RECORD).is_file():
            stores.add(directory)
        if (directory / "config.yaml").is_file():
            try:
                record = _read_run(directory)
            except BROKEN as error:
                broken.append((shown(directory), reason(error, directory)))
            else:
                runs += [record] if record else []
    runs = _without_copies(runs)
    finished = [run for run in runs if run.result is not None]
    unfinished = [run for run in runs if run.result is None]
    return Scan(finished, unfinished, sorted(stores, key=lambda path: (shown(path), path)), sorted(broken))


def reason(error: BaseException, directory: Path) -> str:
    """Why a run is left out, without the machine's part of its path."""
    told = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return told.replace(str(directory), "...")


def _without_copies(runs: list[RunRecord]) -> list[RunRecord]:
    """Sorted by name; of equal ones the original, which still has its weights."""
    originals: dict[tuple[str, str], RunRecord] = {}
    for run in sorted(runs, key=lambda run: run.has_weights):
        originals[run.name, run.content] = run
    return [run for _, run in sorted(originals.items(), key=lambda item: item[0])]


def _candidates(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder or .tar.xz file; name what holds run directories, stores or records."
            )
        for directory, inside, _ in os.walk(folder.resolve()):
            inside[:] = sorted(name for name in inside if name not in _INSIDE_RUNS and not name.endswith(".zarr"))
            yield Path(directory)


def _read_run(directory: Path) -> RunRecord | None:
    """The run, or None for an agent's run directory, which belongs to its store."""
    config = read_config(directory)
    if "mode" not in config and "agent" in config:
        return None
    result = read_result(directory) if is_finished(directory) else None
    record = RunRecord(directory, config, result)
    record.check()
    return record


def seconds(directory: Path) -> float | None:
    """Wall-clock seconds of a run; for earlier runs the time between TensorBoard's first and last record; or None."""
    noted = seconds_spent(directory)
    if noted is not None:
        return noted
    files = sorted((directory / "tensorboard").glob("events.out.tfevents.*"))
    if not files:
        return None
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    spans = [[event.wall_time for event in EventFileLoader(str(file)).Load()] for file in files]
    return round(sum(times[-1] - times[0] for times in spans if times), 1)


def provenance(directory: Path) -> tuple[str, str]:
    """(command, commit) of a run; `unknown` where not recorded."""
    recorded = read_versions(directory)
    command = recorded.get("command")
    return portable(command) if command else "unknown", recorded.get("git_commit", "unknown")


def portable(command: str) -> str:
    """A recorded command without what belongs to the machine: `root=`, `run_dir=` and the heads of absolute paths."""
    try:
        program, *arguments = shlex.split(command)
    except ValueError:  # an apostrophe in a command recorded without quotes
        program, *arguments = command.split()
    if program == "python":  # made portable before
        program, *arguments = arguments
    kept = [argument for argument in arguments if argument.partition("=")[0] not in ("root", "run_dir")]
    kept = [re.sub(r"(?<=[=,\[])/[^,\]]+", lambda path: shown(Path(path[0])), argument) for argument in kept]
    if program == "sodp3d":  # the installed command, whose verb comes first
        return shlex.join([program, *kept])
    script = Path(program)
    folder = "data_collection/" if script.parent.name == "data_collection" else ""
    return shlex.join(["python", f"{folder}{script.name}", *kept])


def without_machine(value: Any) -> Any:
    """Plain values with every absolute path in them as `shown`."""
    if isinstance(value, dict):
        return {key: without_machine(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_machine(item) for item in value]
    return shown(Path(value)) if isinstance(value, str) and value.startswith("/") else value


def shown(path: Path) -> str:
    """A path without the machine's part: from its last `outputs` or `data` on, or else its last three parts."""
    parts = path.parts
    starts = [index for index, part in enumerate(parts) if part in ROOTS]
    return "/".join(parts[starts[-1] :] if starts else [part for part in parts if part != "/"][-3:])
