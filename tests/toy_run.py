"""A run directory with a small planner and all that a fine-tuning leaves beside it, for tests of what is shared."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from toy_planner import STATE, make_planner

from sodp3d.core import checkpoint
from sodp3d.core.cli import compose
from sodp3d.core.files import write_json
from sodp3d.core.mappings import plain
from sodp3d.models.critic import Critic, CriticConfig, described_choice
from sodp3d.models.planner import PlannerConfig
from sodp3d.rollouts.kept import KeptRollouts

QUICK = replace(STATE, inference_steps=2)


def save_planner(folder: Path, config: PlannerConfig = QUICK, best_of: int = 1, step: int = 12) -> Path:
    """A checkpoint as fine-tuning saves it: averaged weights, others, an optimizer's, with best_of > 1 a critic's."""
    planner = make_planner(config)
    tensors = checkpoint.with_prefix("ema", planner.state_dict())
    tensors |= checkpoint.with_prefix("planner", make_planner(config, seed=1).state_dict())
    tensors |= {"optimizer.0.exp_avg": torch.ones(1000), "noise": torch.zeros(8, dtype=torch.uint8)}
    state: dict[str, Any] = {
        "format": 1, "planner": config.to_dict(), "tasks": ["adroit_door"], "view": {"camera": {"height": 84}},
        "data_hash": "v2-1234", "counters": {"episodes": 4},
    }  # fmt: skip
    if best_of > 1:
        torch.manual_seed(2)
        chunk = config.n_action_steps * config.action_size
        critic = Critic(CriticConfig(config.feature_size, chunk, members=2, width=8, layers=2, timed=True))
        tensors |= checkpoint.with_prefix("critic.critic", critic.state_dict())
        state |= described_choice(critic, best_of)
    return checkpoint.save(folder, step, tensors, state)


def summary(successes: int, episodes: int) -> dict[str, Any]:
    """As `Evaluation.summary` has it."""
    rate = {"rate": successes / episodes, "low95": 0.1, "high95": 0.9}
    success = dict.fromkeys(("final", "count", "any"), rate)
    return {
        "env": "adroit_door", "headline_metric": "count", "success": success, "episodes": episodes,
        "seeds": [100000, 99999 + episodes], "return_mean": 1.5,
    }  # fmt: skip


def make_run(folder: Path, best_of: int = 1) -> Path:
    """The run directory `folder`, finished and evaluated on three episodes, of which two succeeded."""
    path = save_planner(folder / "best", best_of=best_of)
    config = compose("train", ["mode=finetune", "obs=state", "env.points=64", "planner=/home/alice/outputs/pretrain/x"])
    folder.joinpath("config.yaml").write_text(yaml.safe_dump(config))
    command = "/home/alice/sodp3d/train.py mode=finetune planner=/home/alice/outputs/pretrain/x"
    write_json(folder / "versions.json", {"git_commit": "abc", "command": command})
    write_json(folder / "result.json", {"before": summary(1, 3), "best": summary(2, 3), "planner": "/home/alice/x"})
    digest = checkpoint.digest_of(path)
    kept = KeptRollouts(
        seeds=np.arange(100000, 100003), ends=np.array([2, 4, 6]), actions=np.zeros((6, 2), np.float32),
        success=np.array([[1, 1, 1], [1, 1, 1], [0, 0, 0]], bool), returns=np.array([1.0, 2.0, 1.5]),
        planner=digest if best_of == 1 else f"{digest}, best of {best_of}",
    )  # fmt: skip
    place = folder / "evaluation" / "best" / "adroit_door"
    place.mkdir(parents=True)
    place.joinpath("rollouts.npz").write_bytes(kept.content())
    write_json(place / "evaluation.json", plain(summary(2, 3)))
    folder.joinpath("notes.txt").write_text("mine")
    return folder
