"""The example package, installed beside sodp3d, through every stage; nothing in sodp3d knows it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sodp3d.core.paths import CHECKOUT

assert CHECKOUT is not None
SMALL = (
    "env=puck preset=quick threads=1 workers=1 device=cpu render=raycast env.camera.height=24 env.camera.width=24 "
    "env.points=16 env.episode_steps=12 "
).split()
COLLECT = "collect.agent_steps=120 collect.fraction=1 collect.environments=2 collect.evaluate_every=0".split()
TRAIN = (
    "model.encoder=mean_max algorithm=anchored pretrain.steps=4 pretrain.batch_size=8 finetune.episodes=2 "
    "finetune.episodes_per_iteration=2 finetune.updates_per_episode=1 finetune.batch_size=8 "
    "finetune.critic.first_updates=2 finetune.initial_attempts=2 finetune.evaluate_every=2 evaluation.episodes=2 "
    "evaluation.environments=2 evaluation.validation_episodes=2 evaluation.videos=0"
).split()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on which an interpreter finds the package and its entry point."""
    folder = tmp_path_factory.mktemp("packages")
    source = folder / "source"
    subprocess.run(["cp", "-r", str(CHECKOUT / "examples"), str(source)], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(source)], check=True, timeout=200)
    return folder / "site"


def run(installed: Path, folder: Path, *arguments: str, fails: bool = False) -> str:
    """`sodp3d <arguments>` from `folder`; what it said."""
    found = os.pathsep.join([str(installed), str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "sodp3d", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": found},
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_package_of_ones_own_goes_through_every_stage(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "collect", *SMALL, *COLLECT)
    run(installed, tmp_path, "convert", *SMALL)
    run(installed, tmp_path, "train", "mode=pretrain", *SMALL, *TRAIN)
    run(installed, tmp_path, "train", "mode=finetune", *SMALL, *TRAIN)
    said = run(installed, tmp_path, "eval", *SMALL, *TRAIN)
    assert "puck: success (final)" in said
    (finetuned,) = (tmp_path / "outputs/finetune").glob("*/*/result.json")
    assert finetuned.parent.parent.name == "puck-pointcloud-anchored"
    (evaluated,) = (tmp_path / "outputs/eval").glob("*/*/result.json")
    assert json.loads(evaluated.read_text())["planner"] == str(finetuned.parent), "not the pre-trained one"
    (state,) = (tmp_path / "outputs/pretrain").glob("*/*/checkpoints/00000004/state.json")
    planner = json.loads(state.read_text())["planner"]
    assert planner["encoder"] == "mean_max"
    run(installed, tmp_path, "results", "--output", "tables")
    assert "puck" in (tmp_path / "tables/tables.md").read_text()
    said = run(installed, tmp_path, "train", "mode=pretrain", *SMALL, *TRAIN, "env.crop.low=[0,0,0]", fails=True)
    assert "data/point_cloud was made with env.crop.low" in said, (
        "a new encoder is held to the camera and crop of its data"
    )


@pytest.mark.slow
def test_an_encoder_reads_only_what_it_says(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "collect", *SMALL, *COLLECT)
    said = run(installed, tmp_path, "train", "mode=pretrain", "obs=state", *SMALL, *TRAIN, fails=True)
    assert "mean_max reads obs=pointcloud, but obs=state came" in said and "Traceback" not in said


def test_a_plug_in_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sodp3d", "collect", "plugins=[no_such_package]", "env=adroit_door"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )  # fmt: skip
    assert done.returncode == 2 and "plugins: no_such_package cannot be imported" in done.stderr
