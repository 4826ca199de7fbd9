"""A set of two toy tasks, whose stores differ in size, for tests that need no environment."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from test_conversion import CONFIG
from toy_store import ATTRIBUTES, SPECIFICATION, episode, metadata

from sodp3d.core import checkpoint
from sodp3d.core.cli import compose
from sodp3d.core.mappings import plain
from sodp3d.core.run import Run
from sodp3d.core.stopping import Stopped
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig
from sodp3d.models.planner import Planner

TASKS = [replace(CONFIG, name=f"toy_{task}", family="toy", task=task) for task in ("a", "b")]
STEPS = {"toy_a": 30, "toy_b": 6}


def make_stores(root: Path, steps: Mapping[str, int] = STEPS) -> None:
    """The stores of these tasks where they are looked for, with episodes of three steps."""
    for name, count in steps.items():
        attributes = {**ATTRIBUTES, "env": name, "env_config": {**ATTRIBUTES["env_config"], "name": name}}
        with EpisodeStore.create(root / "data" / name / "episodes.zarr", attributes, SPECIFICATION) as store:
            for number in range(count // 3):
                store.append(episode(number, 3), metadata(number))


def set_config(root: Path, *options: str) -> dict[str, Any]:
    """What `train` would compose for the set `toys`, seen as states."""
    shared: dict[str, Any] = {key: value for key, value in asdict(TASKS[0]).items() if key != "tasks"}
    env = {**plain(shared), "name": "toys", "task": "", "tasks": [task.task for task in TASKS]}
    small = ("obs=state", "model.unet=small", "threads=1", "device=cpu", "pretrain.batch_size=8")
    return {**compose("train", [*small, *options]), "env": env, "root": str(root)}


def tasks_of(config: Mapping[str, Any]) -> list[str]:
    return [f"toy_{task}" for task in EnvConfig.from_config(config["env"]).tasks]


class Looks:
    """Measurements that are made up. stop: the look that a signal ends."""

    def __init__(self, stop: int = 0) -> None:
        self.stop, self.seen = stop, list[int]()

    def validate(self, planner: Planner, run: Run) -> dict[str, float]:
        (*_, newest) = checkpoint.steps(run.checkpoints)
        self.seen.append(newest)
        if len(self.seen) == self.stop:
            raise Stopped(15)
        return {"validation/success_any": newest / 10}

    def test(self, planner: Planner, run: Run) -> tuple[dict[str, float], dict[str, Any]]:
        return {"evaluation/success_any": 1.0}, {"tasks": {}}
