"""What the newest runs of an environment say: before and after fine-tuning, for the summary and the report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sodp3d.core.files import read_json
from sodp3d.core.paths import CONFIGS
from sodp3d.core.run import read_config

MODES = ("pretrain", "finetune", "eval")


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
    of_family = not (CONFIGS / "env" / f"{env}.yaml").is_file() and (CONFIGS / "env" / f"{family}.yaml").is_file()
    return [f"env={family}", f"env.task={task}"] if of_family else [f"env={env}"]


def newest_runs(outputs: Path, env: str) -> dict[str, Path]:
    """The newest finished run of each mode for `env`, whatever it sees and whichever method made it.

    The pre-training run is the one that the newest fine-tuning began with, where it is still there.
    """
    found = {}
    for mode in MODES:
        finished = [path.parent for path in (outputs / mode).glob("*/*/result.json") if _is_of(path.parent, env)]
        if finished:
            found[mode] = max(finished, key=lambda run: run.name)
    if "finetune" in found:
        found |= _origin(found["finetune"], outputs)
    return found


def results(runs: dict[str, Path]) -> list[Result]:
    """Before and after fine-tuning, as far as `runs` (of `newest_runs`) have got."""
    found = []
    if "finetune" in runs:
        told = read_json(runs["finetune"] / "result.json")
        names = {"before": "before fine-tuning", "evaluation": "after fine-tuning", "best": "best by validation"}
        found = [Result(words, told[key]) for key, words in names.items() if told.get(key)]
    elif "pretrain" in runs:
        told = read_json(runs["pretrain"] / "result.json")
        found = [Result("before fine-tuning", told["evaluation"])] if told.get("evaluation") else []
    return found


def _is_of(run: Path, env: str) -> bool:
    return (run / "config.yaml").is_file() and read_config(run)["env"]["name"] == env


def _origin(finetuned: Path, outputs: Path) -> dict[str, Path]:
    """The pre-training run that a fine-tuning run began with; {} where it is gone or was no pre-training."""
    planner = Path(read_config(finetuned)["planner"])
    run = planner.parents[1] if planner.parent.name == "checkpoints" else planner
    moved = outputs / "pretrain" / run.parent.name / run.name  # the whole root may have been copied
    return next(
        ({"pretrain": path} for path in (run, moved) if path.parents[1].name == "pretrain" and path.is_dir()), {}
    )
