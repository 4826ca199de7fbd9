"""The worked example of docs/import-export.md, small: a simulated recording as a plain folder, learned from."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sodp3d.core.paths import CHECKOUT
from sodp3d.data.store import EpisodeStore

pytestmark = pytest.mark.slow
SIMULATED = (
    "plugins=[sodp3d_example] env=puck preset=quick threads=1 workers=1 device=cpu render=raycast "
    "env.camera.height=24 env.camera.width=24 env.episode_steps=12 "
    "agent=proportional collect.agent_steps=60 collect.fraction=1 collect.environments=2 collect.evaluate_every=0"
).split()
RECORDED = "env=recorded data=data/pick env.points=16 env.horizon=4 env.n_action_steps=2 threads=1 workers=1".split()
TRAIN = (
    "mode=pretrain obs=pointcloud device=cpu model.denoising_steps=4 model.sampling_steps=2 model.unet=small "
    "pretrain.steps=4 pretrain.batch_size=4"
).split()


def run(folder: Path, *arguments: str) -> str:
    """`sodp3d <arguments>` from `folder`; what it printed."""
    around = {**os.environ, "PYTHONPATH": os.pathsep.join([f"{CHECKOUT}", f"{CHECKOUT}/examples"])}
    around.pop("SODP3D_ROOT", None)
    command = [sys.executable, "-m", "sodp3d", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=around)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_simulated_recording_is_imported_learned_from_and_exported(tmp_path: Path) -> None:
    run(tmp_path, "collect", *SIMULATED)
    run(tmp_path, "export", "data/puck", "folder", "recordings/pick", "keys=[agent_pos,depth]")
    (episode, *_) = sorted((tmp_path / "recordings/pick").iterdir())
    assert sorted(each.name for each in episode.iterdir()) == ["camera.json", "depth", "episode.json", "steps.csv"]
    said = run(tmp_path, "import", "folder", "recordings/pick", "data/pick")
    assert "kept  depth" in said and "reward" not in EpisodeStore.open(tmp_path / "data/pick/episodes.zarr").keys
    run(tmp_path, "convert", *RECORDED)
    run(tmp_path, "train", *RECORDED, *TRAIN)
    assert len(list((tmp_path / "outputs/pretrain").glob("*/*/result.json"))) == 1
    pytest.importorskip("pyarrow")
    run(tmp_path, "export", "data/pick", "lerobot", "datasets/pick", "rate=20")
    run(tmp_path, "import", "lerobot", "datasets/pick", "data/back")
    one, other = (EpisodeStore.open(tmp_path / f"data/{name}/episodes.zarr") for name in ("pick", "back"))
    for key in ("action", "agent_pos", "depth", "point_cloud"):
        np.testing.assert_array_equal(one.read(key), other.read(key))
