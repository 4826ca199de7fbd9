"""What was written before the package had rooms is read today: a store, its planners, their runs."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sodp3d import EpisodeStore, WindowDataset, load_planner
from sodp3d.core.cli import compose
from sodp3d.core.run import is_finished, read_config, read_metrics
from sodp3d.data.hashing import earlier_data_hash, identify
from sodp3d.data.views import require_same_view
from sodp3d.envs.config import task_configs
from sodp3d.learning.lookup import find_planner
from sodp3d.models.loading import load_planner_and_state, require_fitting
from sodp3d.tools.runs import newest_runs
from sodp3d.tools.summary import before_and_after
from sodp3d.vision.sensors import sensor

FIXTURE = Path(__file__).parent / "fixtures" / "before_rooms"
SMALL = ["env=adroit_door", "env.camera.height=32", "env.camera.width=32", "env.points=64", "env.episode_steps=9"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the old data/ and outputs/."""
    folder = tmp_path_factory.mktemp("before")
    for name in ("store", "runs"):
        with tarfile.open(FIXTURE / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def store(root: Path) -> EpisodeStore:
    return EpisodeStore.open(root / "data/adroit_door/episodes.zarr")


def test_the_store_is_read_and_sound(store: EpisodeStore) -> None:
    assert len(store) == 2 and store.steps == 18 and store.verify() == []
    assert {"action", "agent_pos", "depth", "point_cloud", "sim_state", "state"} <= set(store.keys)
    assert store.attributes["git_commit"] == "5300e95e4388" and store.choice == "env=adroit_door"
    clouds = store.read("point_cloud", 0, 2)
    assert clouds.shape == (18, 64, 3) and np.isfinite(clouds).all() and (clouds[..., 2] > 0.001).all()


def test_its_windows_are_those_that_the_old_planner_saw(store: EpisodeStore) -> None:
    plans = np.load(FIXTURE / "plans.npz")
    dataset = WindowDataset([store], ("agent_pos", "point_cloud"), horizon=4, n_obs_steps=2, n_action_steps=3)
    windows = dataset.windows(np.array([3, 12]))  # the windows whose first rows are 2 and 11
    for key in ("agent_pos", "point_cloud"):
        np.testing.assert_array_equal(windows[key], plans[key])
    assert windows["action"].shape == (2, 4, 28)


def test_roll_outs_of_today_see_what_the_store_holds(store: EpisodeStore) -> None:
    (task,) = task_configs(compose("train", SMALL))
    require_same_view(store, sensor("pointcloud"), task)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_old_planners_plan_as_they_did(root: Path, stage: str) -> None:
    plans = np.load(FIXTURE / "plans.npz")
    run = newest_runs(root / "outputs", "adroit_door")[stage]
    observation = {key: plans[key] for key in ("agent_pos", "point_cloud")}
    planned = load_planner(run).plan(observation, noise=torch.as_tensor(plans["noise"]))
    np.testing.assert_allclose(planned, plans[stage], atol=1e-4)  # another CPU may round otherwise


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_old_runs_are_found_and_told(root: Path, store: EpisodeStore, stage: str) -> None:
    run = newest_runs(root / "outputs", "adroit_door")[stage]
    assert is_finished(run) and read_metrics(run)[-1]["step"] > 0
    config = read_config(run)
    (task,) = task_configs(config)
    assert (config["mode"], task.name, task.camera.width) == (stage, "adroit_door", 32)
    said = before_and_after({stage: run}, "adroit_door")
    assert any("of 2" in line or "2 episodes" in line for line in said), said
    planner, state = load_planner_and_state(run)
    require_fitting(state, planner, config, task)
    assert earlier_data_hash(store).startswith(state["data_hash"])
    assert identify([store], ["agent_pos", "point_cloud"]).agreeing_with(state["data_hash"]) == state["data_hash"]


def test_the_next_stage_takes_the_old_planner(root: Path) -> None:
    config = compose("train", [*SMALL, f"root={root}", "mode=eval"])
    assert find_planner(config, ("finetune", "pretrain")).parent.parent == root / "outputs/finetune"
    config = compose("train", [*SMALL, f"root={root}", "mode=finetune"])
    assert find_planner(config, ("pretrain",)).parent.parent == root / "outputs/pretrain"
