"""Run directories and collections with known numbers, for the tests of results."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from toy_store import ATTRIBUTES, SPECIFICATION, episode, metadata

from sodp3d.core import checkpoint
from sodp3d.core.run import Run
from sodp3d.data.store import EpisodeStore
from sodp3d.results.__main__ import make_results
from sodp3d.results.tables import Record
from sodp3d.rollouts.evaluate import Evaluation

TASKS = ("adroit_hammer", "adroit_door", "adroit_pen")


def summary(successes: int, episodes: int = 10, env: str = "adroit_door") -> dict[str, Any]:
    """As training notes it: by the class that training uses."""
    config = SimpleNamespace(name=env, success_metric="count")
    flags = [index < successes for index in range(episodes)]
    done = [
        SimpleNamespace(success={"final": False, "count": flag, "any": True}, seed=100 + index, episode_return=0.0)
        for index, flag in enumerate(flags)
    ]
    return Evaluation(config, done).summary()  # type: ignore[arg-type]


def make_run(
    root: Path, mode: str, successes: int | None, seed: int = 0, env: str = "adroit_door", **more: Any
) -> Path:
    """A run directory whose planner succeeds in so many of 10 test episodes; None: not finished."""
    reg, best, day, data_hash = more.get("reg", "bc"), more.get("best"), more.get("day", 1), more.get("data_hash", "d")
    config: dict[str, Any] = {
        "seed": seed,
        "mode": mode,
        "env": {"name": env, "success_metric": "count", "unet": "simple_dp3"},
        "obs": {"name": more.get("obs", "pointcloud")},
        "model": {"prediction": "epsilon", "unet": "simple_dp3", "sampling_steps": more.get("sampling_steps", 10)},
        "evaluation": {"episodes": 10, "eta": 1.0, "sigma_floor": 0.0},
    }
    if mode == "pretrain":
        config |= {
            "pretrain": {
                "steps": more.get("steps", 100),
                "successful_only": more.get("only", False),
                "quality": more.get("quality", "suboptimal"),
                "fraction": more.get("fraction", 1.0),
            },
            "data": None,
        }
    if mode == "finetune":
        tuning = {"importance_weight": more.get("weight", 0.1), "episodes": more.get("episodes", 8)}
        tuning |= {key: more[key] for key in ("from_scratch", "offline") if key in more}
        config |= {"finetune": tuning, "reg": {"name": reg, "weight": 0.0 if reg == "none" else 1.0}}
        config |= {"algorithm": more["algorithm"]} if "algorithm" in more else {}
    if mode == "distill":
        config |= {"distill": {"steps": more.get("steps", 1), "updates": 100}}
    if mode in ("finetune", "distill"):
        config |= {"planner": str(more["planner"]) if "planner" in more else None}
    directory = root / "outputs" / mode / f"{env}-{config['obs']['name']}-{reg}" / f"202601{day:02d}-000000-000-s{seed}"
    with Run(directory, config) as run:
        for step, rate in enumerate(more.get("validations", []), start=1):
            run.log(100 * step, {"train/loss": 1.0, "rollout/success_count": rate, "validation/success_count": rate})
        checkpoint.save(run.checkpoints, 1, {}, {"data_hash": data_hash})
        if successes is not None:
            result = {"evaluation": summary(successes, env=env)}
            run.finish(result | ({"best": summary(best, env=env)} if best is not None else {}))
    return directory


def cells(rows: Sequence[Record], method: str, measure: str | None) -> list[str]:
    """Hammer, door, pen as text, of our row of `method`."""
    (row,) = [row for row in rows if (row["who"], row["method"], row["measure"]) == ("ours", method, measure)]
    return [str(row[task]) for task in TASKS]


def break_runs(root: Path) -> None:
    """One unfinished run and six that cannot be read."""
    make_run(root, "finetune", None, day=10, validations=[0.5])
    for day, (file, content) in enumerate(
        [
            ("result.json", "{"),
            ("result.json", '{"evaluation": {"episodes": 3}}'),
            ("result.json", "[]"),
            ("config.yaml", "mode: [finetune"),
            ("config.yaml", "mode: finetune"),
            ("wall_time.json", "{}"),
        ],
        start=11,
    ):
        (make_run(root, "finetune", 5, day=day) / file).write_text(content)


def page_of(folders: Sequence[Path], output: Path) -> dict[str, bytes]:
    """Every file that the command makes."""
    make_results(folders, output)
    return {path.name: path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}


def make_toy_collection(root: Path, prior: dict[str, Any] | None = None) -> Path:
    """A store of 12 episodes of 9 steps, its agent's metrics, and 54 s of work."""
    folder = root / "data" / "toy"
    config = ATTRIBUTES["env_config"] | {"success_metric": "count"}
    recorded = {"command": "data_collection/collect.py env=toy root=/x", "git_commit": "c" * 12}
    attributes = ATTRIBUTES | {"env_config": config, "versions": recorded, "prior": prior}
    with EpisodeStore.create(folder / "episodes.zarr", attributes, SPECIFICATION) as store:
        for number in range(12):
            store.append(episode(number, 9), metadata(number) | {"agent_step": 9 * (number + 1)})
    with Run(folder / "agent", {"agent": {"name": "toy"}, "seed": 7}) as run:
        run.log(-10, {"offline/loss": 1.0})
        for step, rate in ((0, 0.5), (54, 0.9), (108, 0.8)):
            run.log(step, {"train/success_count": rate / 2, "train/return": 1.0})
            run.log(step, {"evaluation/success_count": rate})
    (folder / "agent" / "wall_time.json").write_text('{"seconds": 54.0}')
    return folder
