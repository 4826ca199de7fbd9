"""Pre-training with windows from a mapped file: the losses of memory, and data of any size."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sodp3d.core.cli import compose
from sodp3d.core.mappings import plain
from sodp3d.core.run import Run
from sodp3d.data.schema import METADATA
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig, task_configs
from sodp3d.learning.lookup import with_sampler
from sodp3d.learning.pretrain import Pretraining, pretrain
from sodp3d.settings import differences
from sodp3d.vision.camera import Camera, intrinsics

OPTIONS = "mode=pretrain obs=pointcloud preset=quick env.points=16 pretrain.steps=3 pretrain.batch_size=4 "
OPTIONS += "pretrain.log_every=1 device=cpu threads=1"


def configuration(folder: Path, memory: str) -> dict[str, Any]:
    return with_sampler(compose("train", [*OPTIONS.split(), f"pretrain.memory={memory}", f"data={folder}"]))


def cloud_store(path: Path, task: EnvConfig) -> None:
    """Two episodes of random clouds."""
    random, size = np.random.default_rng(0), (task.camera.height, task.camera.width)
    camera = Camera(intrinsics(task.camera.fovy, *size), np.eye(4), *size).to_dict()
    attributes = {"env": task.name, "env_config": plain(asdict(task)), "camera": camera, "renderer": "none"}
    shapes = {"action": (28,), "agent_pos": (24,), "reward": (), "point_cloud": (task.points, 3)}
    with EpisodeStore.create(path, attributes, {key: (shape, "float32") for key, shape in shapes.items()}) as store:
        for _ in range(2):
            steps = {key: random.uniform(-1, 1, (9, *shape)).astype(np.float32) for key, shape in shapes.items()}
            store.append(steps, dict.fromkeys(METADATA, 0))


class Unmeasured:
    """Nothing is measured."""

    def validate(self, planner: Any, run: Run) -> dict[str, float]:
        return {}

    def test(self, planner: Any, run: Run) -> None:
        return None


def losses(folder: Path, name: str, memory: str) -> list[float]:
    """Of a run that is begun, or goes on."""
    config = configuration(folder, memory)
    with Run(folder / name, config) as run:
        pretrain(config, run, task_configs(config), torch.device("cpu"), Unmeasured())
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


def test_losses_are_the_same_and_a_run_goes_on_with_the_other_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ram, mapped = (configuration(tmp_path, memory) for memory in ("ram", "mapped"))
    assert differences(ram, mapped) == []
    cloud_store(tmp_path / "episodes.zarr", task_configs(ram)[0])
    expected = losses(tmp_path, "ram", "ram")
    assert len(expected) == 3 and losses(tmp_path, "mapped", "mapped") == expected
    with monkeypatch.context() as patch:
        update, made = Pretraining.update, []

        def stopping(self: Pretraining, *batch: Any) -> torch.Tensor:
            made.append(self.step)
            return update(self, *batch)

        patch.setattr(Pretraining, "update", stopping)
        patch.setattr(Run, "stop_requested", property(lambda _: len(made) >= 1, lambda *_: None), raising=False)
        assert losses(tmp_path, "both", "ram") == expected[:1]
    assert losses(tmp_path, "both", "mapped") == expected


@pytest.mark.slow
def test_windows_of_100_gigabytes_are_trained_on_within_4(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    script = str(Path(__file__).with_name("huge_mapped.py"))
    done = subprocess.run(
        [sys.executable, script, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["bytes"] > 100e9 and found["peak"] < 2e9 and np.isfinite(found["losses"]).all()
    assert len(found["losses"]) == 3
