"""What the newest runs of an environment say: before and after fine-tuning, for the summary and the report."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.mappings import flat, plain
from sodp3d.core.registry import has_config
from sodp3d.core.run import begun, read_config, read_result, readable_config
from sodp3d.envs.config import EnvConfig
from sodp3d.rollouts.evaluate import check_summary

log = logging.getLogger(__name__)
MODES = ("pretrain", "finetune", "distill", "eval")
_MEASURED = ("before", "evaluation", "best")  # keys of summaries in a result
_BY_TASK = ("tasks", "tasks_before")  # and of summaries by task
_OF_SET = {"before": "mean_before", "evaluation": "mean"}  # what a set has instead


@dataclass(frozen=True)
class Result:
    """One evaluated planner. summary: what `Evaluation.summary` wrote."""

    words: str
    summary: dict[str, Any]

    @property
    def headline(self) -> dict[str, float]:
        """rate, low95 and high95 (0..1) by the task's own metric."""
        return self.summary["success"][self.summary["headline_metric"]]

    def line(self) -> str:
        """The rate with its 95 % interval, in one line for people."""
        rate = self.headline
        return (
            f"{100 * rate['rate']:.0f} % [{100 * rate['low95']:.0f}, {100 * rate['high95']:.0f}] "
            f"of {self.summary['episodes']} episodes"
        )


def env_options(env: str) -> list[str]:
    """What to type for the environment of this name: `env=<name>`, or of a family `env=<family> env.task=<task>`."""
    family, _, task = env.partition("_")
    return (
        [f"env={env}"]
        if has_config("env", env) or not has_config("env", family)
        else [f"env={family}", f"env.task={task}"]
    )


def run_options(config: Mapping[str, Any]) -> list[str]:
    """What to type, beside the planner, to see and act as a recorded run did."""
    method = [f"method={config['method']}"] if config.get("method", "sodp") != "sodp" else []
    chosen = [*EnvConfig.from_config(config["env"]).choice.split(), f"obs={config['obs']['name']}", *method]
    try:
        composed = plain(flat(compose("train", chosen)["env"]))
    except InputError:  # of a plug-in that is not here
        return chosen
    recorded = plain(flat(config["env"])).items()
    differing = [(name, value) for name, value in recorded if name in composed and composed[name] != value]
    return [
        *chosen,
        *(f"env.{name}={_typed(value)}" for name, value in differing if not name.startswith("recommended.")),
    ]


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def may_be_env(env: str) -> bool:
    """Whether there is an environment of this name, or a family of its first word."""
    return has_config("env", env) or has_config("env", env.partition("_")[0])


def newest_runs(outputs: Path, env: str) -> dict[str, Path]:
    """The newest finished run of each mode for `env`, whatever it sees and whichever method made it.

    With a fine-tuning, the pre-training run is the one that it began with, or none where that is not there: before and
    after are of the same planner. A damaged run is left out, with a warning.
    """
    found: dict[str, Path | None] = {}
    for mode in MODES:
        finished = [path.parent for path in (outputs / mode).glob("*/*/result.json") if _is_of(path.parent, env)]
        found[mode] = max(finished, key=begun, default=None)
    if found["finetune"] is not None:
        found["pretrain"] = _origin(found["finetune"], outputs, env)
    return {mode: run for mode, run in found.items() if run is not None}


def results(runs: dict[str, Path]) -> list[Result]:
    """Before and after fine-tuning, as far as `runs` (of `newest_runs`) have got."""
    names = {}
    if "finetune" in runs:
        names = {"before": "before fine-tuning", "evaluation": "after fine-tuning", "best": "best by validation"}
    elif "pretrain" in runs:
        names = {"evaluation": "before fine-tuning"}
    told = read_result(runs["finetune" if "finetune" in runs else "pretrain"]) if names else {}
    unseen = ", unseen" if told.get("unseen") else ""
    found = [Result(words, told[key]) for key, words in names.items() if told.get(key)]
    for key, mean in _OF_SET.items():
        if key in names and told.get(mean):
            found.append(Result(f"{names[key]}, mean of {told[mean]['tasks']} tasks", told[mean]))
    if "distill" in runs:
        found.append(Result("distilled", read_result(runs["distill"])["evaluation"]))
    return [Result(f"{result.words}{unseen}", result.summary) for result in found]


def offline_sentence(found: Mapping[str, Any]) -> str:
    """What was measured on held-out recordings (`learning/offline.py`), in words for people."""
    percent = {name: f"{100 * found['error'][name]:.1f} %" for name in ("policy", "mean_action", "hold_last")}
    return (
        f"on {found['episodes']} held-out episodes actions are off by {percent['policy']} of their range; the mean "
        f"action is by {percent['mean_action']}, the last one held by {percent['hold_last']}"
    )


def offline_result(runs: Mapping[str, Path]) -> dict[str, Any] | None:
    """What the newest pre-training on recordings measured offline; None where there was none."""
    found = read_result(runs["pretrain"]).get("offline") if "pretrain" in runs else None
    return found if isinstance(found, dict) else None


def _is_of(run: Path, env: str, sets: bool = False) -> bool:
    """Whether a finished run is of `env`, or with `sets` of several tasks, and whole."""
    config = readable_config(run) if (run / "config.yaml").is_file() else None
    if config is None:
        return False
    try:
        if config["env"]["name"] != env and not (sets and config["env"].get("tasks")):
            return False
        EnvConfig.from_config(config["env"])
        _check_result(run)
    except (InputError, LookupError, TypeError, ValueError, AttributeError) as error:
        log.warning("%s: damaged (%s); this run is left out.", run, error)
        return False
    return True


def _check_result(run: Path) -> None:
    """Raises ValueError where what a run told last is not what the stages tell."""
    result = read_result(run)
    if result.get("offline"):
        offline_sentence(result["offline"])
    by_task = [result.get(key, {}) for key in _BY_TASK]
    if not all(isinstance(tasks, dict) for tasks in by_task):
        raise ValueError("result.json: tasks")
    each = [summary for tasks in by_task for summary in tasks.values()]
    for summary in [*(result[key] for key in _MEASURED if result.get(key)), *each]:
        check_summary(summary)
    for key in _OF_SET.values():
        if result.get(key):
            check_summary({"env": f"{int(result[key]['tasks'])} tasks", "return_mean": 0.0, **result[key]})


def _origin(finetuned: Path, outputs: Path, env: str) -> Path | None:
    """The pre-training run, of `env` or a set, that a fine-tuning run began with.

    None where it is gone, damaged or was no pre-training.
    """
    planner = Path(str(read_config(finetuned).get("planner")))
    run = planner.parents[1] if planner.parent.name == "checkpoints" else planner
    moved = outputs / "pretrain" / run.parent.name / run.name  # the whole root may have been copied
    there = [path for path in (run, moved) if path.parent.parent.name == "pretrain" and _is_of(path, env, sets=True)]
    return there[0] if there else None
