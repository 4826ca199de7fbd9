"""Every stage of a set by its one command, at the smallest size: stopped, with one task broken, and gone on with."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sodp3d.core.paths import CHECKOUT
from sodp3d.core.run import read_config, read_metrics, read_result

pytestmark = pytest.mark.slow
TASKS = ("metaworld_door-lock", "metaworld_reach")
SET = ("env=mt50", "env.tasks=[door-lock,reach]", "env.name=pair")
ALONE = ("env=metaworld", "env.task=reach")
SMALL = (
    "preset=quick device=cpu render=raycast tasks_at_once=2 "
    "env.camera.height=24 env.camera.width=24 env.points=16 env.episode_steps=9"
).split()
COLLECT = (
    "agent=scripted agent.policy=random collect.fraction=1 collect.environments=2 collect.evaluate_every=0 "
    "collect.agent_steps={}"
)
TRAIN = (
    "model.unet=small model.denoising_steps=4 model.sampling_steps=2 pretrain.steps=4 pretrain.batch_size=8 "
    "pretrain.log_every=2 pretrain.checkpoint_every=4 pretrain.evaluate_every=2 pretrain.evaluate_episodes=1 "
    "pretrain.balance=tasks finetune.episodes=4 finetune.episodes_per_iteration=2 finetune.updates_per_episode=1 "
    "finetune.batch_size=8 finetune.critic.first_updates=2 finetune.initial_attempts=2 finetune.evaluate_every=2 "
    "finetune.checkpoint_every=2 evaluation.episodes=2 evaluation.environments=2 evaluation.validation_episodes=2 "
    "evaluation.videos=0"
).split()


class Place:
    """A folder, and the commands that are given from it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.outputs = folder, folder / "data", folder / "outputs"

    def start(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(CHECKOUT / script), *SMALL, f"root={self.folder}", *arguments]
        return subprocess.Popen(command, cwd=self.folder, stderr=subprocess.PIPE, text=True)

    def run(self, script: str, *arguments: str, status: int = 0) -> str:
        return self.end(self.start(script, *arguments), status)

    def end(self, started: subprocess.Popen[str], status: int) -> str:
        with started:
            said = started.communicate(timeout=300)[1]
        assert started.returncode == status, said
        assert "Traceback" not in said, said
        return said

    def stopped(self, until: Callable[[], bool], script: str, *arguments: str) -> str:
        """What the command said that was stopped once something was there."""
        started, end = self.start(script, *arguments), time.monotonic() + 200
        while not until():
            assert started.poll() is None and time.monotonic() < end, started.communicate()[1]
            time.sleep(0.05)
        started.send_signal(signal.SIGTERM)
        return self.end(started, 128 + signal.SIGTERM)

    def runs(self, mode: str, label: str) -> list[Path]:
        return sorted((self.outputs / mode / label).glob("*"))

    def train(self, mode: str, *arguments: str, status: int = 0) -> str:
        return self.run("train.py", f"mode={mode}", *TRAIN, *arguments, status=status)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where the set was collected: stopped on the way, found half collected, and gone on with; then converted."""
    place = Place(tmp_path_factory.mktemp("set"))

    def both_have_some() -> bool:
        return all((place.data / name / "agent/metrics.jsonl").exists() for name in TASKS)

    said = place.stopped(both_have_some, "data_collection/collect.py", *SET, *COLLECT.format(100_000).split())
    assert "stopping 2 tasks: each saves first" in said and "the same command goes on" in said
    refused = place.train("pretrain", *SET, status=2)
    assert "2 of 2 stores are half collected" in refused and "env=metaworld env.task=reach" in refused
    assert not place.outputs.exists(), "one message before any work"
    place.run("data_collection/collect.py", *SET, *COLLECT.format(36).split())
    refused = place.train("pretrain", *SET, status=2)
    assert refused.count("holds no data/point_cloud; make it with") == 2
    said = place.run("data_collection/convert.py", *SET)
    assert all(f"{name}: card: " in said for name in TASKS)
    return place


@pytest.fixture(scope="module")
def planner(place: Place) -> Path:
    said = place.train("pretrain", *SET)
    assert re.search(r"metaworld_\w+: success \d+ % \(2 of 2 tasks\)", said), "each task's, as it ends"
    (run,) = place.runs("pretrain", "pair-pointcloud")
    return run


def finetuned(place: Place) -> Path:
    (run,) = place.runs("finetune", "pair-pointcloud-sodp")
    return run


@pytest.fixture(scope="module")
def record(place: Place, planner: Path) -> Path:
    """The set's fine-tuning: stopped, then with one task broken, then finished."""

    def one_has_begun() -> bool:
        return any(place.outputs.glob("finetune/metaworld_*/*/checkpoints/*"))

    place.stopped(one_has_begun, "train.py", "mode=finetune", *TRAIN, *SET)
    record = finetuned(place)
    assert not (record / "result.json").exists()
    directories = {name: record / path for name, path in json.loads((record / "runs.json").read_text()).items()}
    begun = [name for name in TASKS if (directories[name] / "config.yaml").exists()]
    broken = next(name for name in begun if not (directories[name] / "result.json").exists())
    (whole,) = set(TASKS) - {broken}
    config = (directories[broken] / "config.yaml").read_text()
    (directories[broken] / "config.yaml").write_text("env: [")
    said = place.train("finetune", *SET, status=2)
    assert re.search("1 of [12] tasks failed", said) and "not valid YAML" in said
    assert (directories[whole] / "result.json").exists() and not (record / "result.json").exists()
    (directories[broken] / "config.yaml").write_text(config)
    said = place.train("finetune", *SET)
    assert "1 of 2 tasks are left" in said and "after:  mean" in said
    return record


def test_a_planner_of_a_set_is_looked_at_and_tested_task_by_task(planner: Path) -> None:
    result = read_result(planner)
    assert tuple(sorted(result["tasks"])) == TASKS and result["mean"]["episodes"] == 4
    logged: dict[str, Any] = {}
    for line in read_metrics(planner):
        logged |= {f"{name}@{line['step']}": value for name, value in line.items()}
    for name in TASKS:
        assert {f"validation_success/{name}@2", f"train_loss/{name}@4", f"evaluation_success/{name}@4"} <= set(logged)
        assert (planner / "evaluation" / name / "evaluation.json").exists()
    assert {"validation/success_any@2", "evaluation/return@4", "train/loss@4"} <= set(logged)
    assert (planner / "curve.png").exists()


def test_fine_tuning_a_set_makes_a_run_a_task_and_a_record_of_all(place: Place, planner: Path, record: Path) -> None:
    result, tested = read_result(record), read_result(planner)
    assert finetuned(place) == record and (record / "tasks.png").exists()
    assert result["tasks_before"] == tested["tasks"] and result["mean_before"] == tested["mean"]
    for name in TASKS:
        (run,) = place.runs("finetune", f"{name}-pointcloud-sodp")
        assert (record / result["runs"][name]).resolve() == run
        own, config = read_result(run), read_config(run)
        assert result["tasks"][name] == own.get("best", own["evaluation"])
        assert sorted(own["trained_on"]) == list(TASKS) and "unseen" not in own
        assert (config["env"]["name"], config["env"]["tasks"], config["planner"]) == (name, [], str(planner))


def test_a_finished_task_s_own_command_begins_beside_it_and_finds_the_set_s_planner(place: Place, record: Path) -> None:
    place.train("finetune", *ALONE, "finetune.episodes=2", f"run_dir={place.folder}/alone")
    alone = place.folder / "alone"
    config, in_set = read_config(alone), read_config(record / read_result(record)["runs"]["metaworld_reach"])
    assert config.pop("finetune")["episodes"] == 2 and in_set.pop("finetune")["episodes"] == 4
    for resource in ("workers", "threads"):
        config.pop(resource), in_set.pop(resource)
    assert config == in_set


def test_an_evaluation_of_a_set_takes_each_task_s_own_planner(place: Place, record: Path, planner: Path) -> None:
    said = place.train("eval", *SET)
    (run,) = place.runs("eval", "pair-pointcloud")
    result = read_result(run)
    assert result["tasks"] == read_result(record)["tasks"] and "mean of 2 tasks" in said
    assert result["planner"] == str(record)
    place.train("eval", *SET, f"planner={planner}", f"run_dir={place.folder}/before")
    assert read_result(place.folder / "before")["tasks"] == read_result(planner)["tasks"]


def test_an_unseen_task_is_evaluated_and_told(place: Place, planner: Path) -> None:
    unseen = ("env=metaworld", "env.task=push", f"planner={planner}")
    said = place.train("eval", *unseen)
    (run,) = place.runs("eval", "metaworld_push-pointcloud")
    assert read_result(run)["unseen"] == ["metaworld_push"] and "unseen" in said
    refused = place.train("finetune", *unseen, "env.points=32", status=2)
    assert "which it has not seen" in refused and "env.points=16 there, 32 here" in refused
    assert "no finished pretrain run" in place.train("finetune", *unseen[:2], status=2)


def test_one_store_fewer_needs_a_word(place: Place, planner: Path) -> None:
    third = ("env=mt50", "env.tasks=[door-lock,reach,push]", "env.name=three")
    for command in (("data_collection/convert.py",), ("train.py", "mode=pretrain", *TRAIN)):
        refused = place.run(*command, *third, status=2)
        assert "1 of 3 tasks have no store" in refused and "collect.py env=metaworld env.task=push" in refused
    place.train("pretrain", *third, "partial=true", "pretrain.evaluate_every=0")
    (run,) = place.runs("pretrain", "three-pointcloud")
    assert tuple(sorted(read_result(run)["tasks"])) == TASKS
    assert read_config(run)["env"]["tasks"] == ["door-lock", "reach"]
