"""Other methods through the real command line, at the smallest size: one task from clouds, and a set from states."""

import json
from pathlib import Path

import pytest
from test_pipeline import COLLECT, run, runs

TRAIN = (
    "pretrain.steps=4 pretrain.batch_size=4 pretrain.log_every=1 pretrain.checkpoint_every=2 "
    "pretrain.successful_only=false "
    "evaluation.episodes=2 evaluation.environments=2 evaluation.validation_episodes=2 evaluation.videos=1"
).split()
SMALL = {
    "bcrnn": ["model.width=16"],
    "ibc": ["model.width=16", "model.negatives=8", "model.samples=8"],
    "mtbc": ["model.width=16"],
    "mtdiff": "model.width=16 model.layers=1 model.heads=2 model.denoising_steps=4 model.sampling_steps=2".split(),
}  # fmt: skip
SET = ["env=metaworld", "env.name=pair", "env.task=''", "env.tasks=[reach,push]", "env.episode_steps=9", "obs=state"]


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clouds of one task."""
    folder = tmp_path_factory.mktemp("door")
    run("data_collection/collect.py", *COLLECT, folder=folder)
    run("data_collection/convert.py", folder=folder)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the experience of two tasks."""
    folder = tmp_path_factory.mktemp("pair")
    run("data_collection/collect.py", *COLLECT, *SET[:-1], folder=folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bcrnn", "ibc", "mtdiff"])
def test_a_method_is_trained_evaluated_watched_and_named_in_the_results(door: Path, method: str) -> None:
    options = [*TRAIN, f"method={method}", *SMALL[method]]
    run("train.py", "mode=pretrain", *options, folder=door)
    label = f"adroit_door-pointcloud-{method}"
    (trained,) = [path.parent for path in runs(door, "pretrain") if path.parent.parent.name == label]
    assert list((trained / "videos").glob("*.mp4")) and (trained / "curve.png").is_file()
    said = run("train.py", "mode=eval", *options, folder=door)
    assert "success (count)" in said and "on 2 episodes" in said
    (evaluated,) = [path.parent for path in runs(door, "eval") if path.parent.parent.name == label]
    assert list((evaluated / "videos").glob("*.mp4"))
    reported = json.loads((trained / "result.json").read_text())["evaluation"]
    assert json.loads((evaluated / "result.json").read_text())["tasks"]["adroit_door"] == reported
    said = run("train.py", "mode=finetune", *options, folder=door, fails=True)
    assert f"and method={method} has none" in said


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mtbc", "mtdiff"])
def test_a_set_of_tasks_is_trained_and_evaluated_task_by_task(pair: Path, method: str) -> None:
    options = [*SET, *TRAIN, f"method={method}", *SMALL[method]]
    run("train.py", "mode=pretrain", *options, folder=pair)
    said = run("train.py", "mode=eval", *options, folder=pair)
    assert "metaworld_reach: success" in said and "metaworld_push: success" in said
    evaluated = [path.parent for path in runs(pair, "eval") if path.parent.parent.name == f"pair-state-{method}"]
    assert len(list((evaluated[0] / "videos").glob("*.mp4"))) == 2
