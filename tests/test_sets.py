"""Pre-training on a set: its stores, how its tasks are mixed and looked at, and which planner is found for what."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toy_planner import STATE, make_planner
from toy_results import summary
from toy_sets import STEPS, TASKS, Looks, make_stores, set_config, tasks_of

from sodp3d.core import checkpoint
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.run import Run, read_metrics
from sodp3d.core.stopping import Stopped
from sodp3d.data.completeness import note_asked, steps_asked
from sodp3d.data.dataset import WindowDataset
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig, expand
from sodp3d.learning.lookup import as_data_was_seen, find_planner, planner_of, with_tasks_there
from sodp3d.learning.measuring import metrics_of
from sodp3d.learning.mixture import Mixture, TaskLosses
from sodp3d.learning.pretrain import pretrain
from sodp3d.learning.sets import as_task, finetune_set, is_of_set
from sodp3d.models.loading import is_unseen, planner_state, require_fitting
from sodp3d.rollouts.evaluate import Evaluation, mean_summary, sentence, wilson_interval


def stores(root: Path) -> list[EpisodeStore]:
    return [EpisodeStore.open(root / "data" / name / "episodes.zarr") for name in STEPS]


# ---- what is there ----------------------------------------------------------------------------------------------


def test_missing_stores_are_named_each_with_its_command(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = set_config(tmp_path)
    make_stores(tmp_path, {"toy_a": 6})
    with pytest.raises(InputError) as refused:
        with_tasks_there(config, TASKS, partial=False)
    first, *lines = str(refused.value).splitlines()
    assert "1 of 2 tasks have no store" in first and "partial=true" in first
    assert len(lines) == 1 and "toy_b" in lines[0] and "collect.py env=toy env.task=b" in lines[0]
    changed, there = with_tasks_there(config, TASKS, partial=True)
    assert [task.name for task in there] == tasks_of(changed) == ["toy_a"] and "without toy_b" in caplog.text
    with pytest.raises(InputError, match="2 of 2 tasks have no store"):
        with_tasks_there({**config, "root": str(tmp_path / "empty")}, TASKS, partial=True)


def test_half_collected_stores_need_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_stores(tmp_path)
    config = set_config(tmp_path)
    assert with_tasks_there(config, TASKS, partial=False) == (config, TASKS), "nothing is known of what was asked"
    for name in STEPS:
        (tmp_path / "data" / name / "agent").mkdir()
    note_asked(tmp_path / "data/toy_a", 30)
    note_asked(tmp_path / "data/toy_b", 40)
    assert [steps_asked(store) for store in stores(tmp_path)] == [30, 40]
    with pytest.raises(
        InputError, match=r"1 of 2 stores are half collected(.|\n)*toy_b.* holds 6 of 40 steps.*env=toy_b"
    ):
        with_tasks_there(config, TASKS, partial=False)
    assert with_tasks_there(config, TASKS, partial=True) == (config, TASKS) and "6 of 40 steps" in caplog.text
    caplog.clear()
    assert with_tasks_there(config, TASKS[1:], partial=False) == (config, TASKS[1:]) and "6 of 40 steps" in caplog.text
    (tmp_path / "data/toy_b/agent/asked.json").write_text('{"steps": "many"}')
    with pytest.raises(InputError, match=r"asked\.json: steps: expected a whole number"):
        with_tasks_there(config, TASKS, partial=True)


def test_named_stores_must_be_of_all_tasks(tmp_path: Path) -> None:
    make_stores(tmp_path)
    config = {**set_config(tmp_path), "data": [str(tmp_path / "data/toy_b")]}
    with pytest.raises(InputError, match="data: holds no episodes of toy_a, which env= asks for too"):
        with_tasks_there(config, TASKS, partial=False)
    assert [task.name for task in with_tasks_there(config, TASKS, partial=True)[1]] == ["toy_b"]


def test_stores_of_another_camera_or_without_clouds_are_named_each(tmp_path: Path) -> None:
    make_stores(tmp_path)
    config = {**set_config(tmp_path), "obs": {"name": "pointcloud", "backend": "open3d", "device": "cpu"}}
    with pytest.raises(InputError) as refused:
        as_data_was_seen(config, TASKS)
    lines = str(refused.value).splitlines()
    assert len(lines) == 2 and all("holds no data/point_cloud; make it with" in line for line in lines)


def test_a_list_of_tasks_needs_a_name_of_its_own() -> None:
    with pytest.raises(InputError, match=r"env\.name: a list of tasks .* but metaworld_reach is that of one task"):
        EnvConfig.from_config(compose("train", ["env=metaworld", "env.tasks=[push,reach]"])["env"])
    pair = EnvConfig.from_config(compose("train", ["env=metaworld", "env.tasks=[push,reach]", "env.name=pair"])["env"])
    assert [task.name for task in expand(pair)] == ["metaworld_push", "metaworld_reach"]


# ---- learning from it -------------------------------------------------------------------------------------------


def dataset(root: Path) -> WindowDataset:
    make_stores(root)
    return WindowDataset(stores(root), ["agent_pos", "state"], 4, 2, 3)


def test_windows_are_drawn_by_steps_as_ever_or_by_tasks(tmp_path: Path) -> None:
    windows = dataset(tmp_path)
    alone, _ = Mixture(windows, "steps").sample(6, np.random.default_rng(0))
    for key, values in windows.sample(6, np.random.default_rng(0)).items():
        np.testing.assert_array_equal(alone[key], values)
    share = {
        balance: Mixture(windows, balance).sample(4000, np.random.default_rng(1))[1].mean()
        for balance in ("steps", "tasks")
    }
    assert share["steps"] == pytest.approx(6 / 36, abs=0.03) and share["tasks"] == pytest.approx(0.5, abs=0.03)
    drawn = windows.draw(4000, np.random.default_rng(2), np.array([0.5, 0.5]))
    assert set(drawn.tolist()) == set(range(36)), "every step of both"
    assert (windows.store_of(drawn) == (drawn >= 30)).all()


def test_two_stores_of_one_task_count_as_one_task(tmp_path: Path) -> None:
    make_stores(tmp_path)
    both = [*stores(tmp_path), EpisodeStore.open(tmp_path / "data/toy_b/episodes.zarr")]
    mixture = Mixture(WindowDataset(both, ["agent_pos", "state"], 4, 2, 3), "tasks")
    assert mixture.tasks == ("toy_a", "toy_b")
    assert mixture.sample(4000, np.random.default_rng(1))[1].mean() == pytest.approx(0.5, abs=0.03)


def test_losses_of_tasks_are_the_means_of_their_windows() -> None:
    losses = TaskLosses(["a", "b", "c"])
    losses.add(torch.tensor([1.0, 2.0, 6.0]), np.array([0, 0, 2]))
    again = TaskLosses(["a", "b", "c"])
    again.load_state(json.loads(json.dumps(losses.state())))
    again.add(torch.tensor([3.0]), np.array([0]))
    assert again.take() == {"train_loss/a": 2.0, "train_loss/c": 6.0} and again.take() == {}
    with pytest.raises(ValueError, match="of 3 tasks, not of 2"):
        TaskLosses(["a", "b"]).load_state(losses.state())
    single = TaskLosses(["a"])
    single.add(torch.tensor([1.0]), np.array([0]))
    assert single.take() == {}


def test_the_loss_is_the_mean_of_its_errors() -> None:
    planner = make_planner()
    batch = {key: torch.rand(8, *shape) for key, shape in planner.config.observation_shapes().items()}
    batch["action"] = torch.rand(8, planner.config.horizon, planner.config.action_size)

    noise = torch.Generator().manual_seed(0)
    losses = planner.losses(batch, noise)
    clean = planner.normalizer.normalize("action", batch["action"])
    reference = planner.denoising_loss(planner.features(batch), clean, noise.manual_seed(0))
    assert losses.shape == (8,)
    torch.testing.assert_close(losses.mean(), reference)


def learn(root: Path, name: str, looks: Looks) -> dict[str, Any] | None:
    options = [f"pretrain.{key}" for key in ("steps=6", "evaluate_every=2", "log_every=3", "checkpoint_every=4")]
    config = set_config(root, *options, "pretrain.balance=tasks")
    with Run(root / name, config) as run:
        return pretrain(config, run, TASKS, torch.device("cpu"), looks)


def test_a_look_that_was_stopped_is_made_when_the_run_goes_on(tmp_path: Path) -> None:
    make_stores(tmp_path)
    whole, broken, rest = Looks(), Looks(stop=2), Looks()
    assert learn(tmp_path, "whole", whole) == {"steps": 6, "tasks": {}} and whole.seen == [2, 4]
    with pytest.raises(Stopped):
        learn(tmp_path, "broken", broken)
    learn(tmp_path, "broken", rest)
    assert broken.seen == [2, 4] and rest.seen == [4], "that of step 2 was made"
    logged = read_metrics(tmp_path / "whole")
    assert logged == read_metrics(tmp_path / "broken")
    assert [record["step"] for record in logged] == [2, 3, 4, 6, 6]
    assert {"train/loss", "train_loss/toy_a", "train_loss/toy_b"} <= set(logged[1])
    digests = {checkpoint.digest_of(tmp_path / name / "checkpoints/00000006") for name in ("whole", "broken")}
    assert len(digests) == 1


# ---- which planner is found, and what it may do -------------------------------------------------------------------


def finished(root: Path, mode: str, name: str, result: dict[str, Any], *options: str) -> Path:
    config = {**compose("train", [f"mode={mode}", *options]), "root": str(root)}
    with Run(root / "outputs" / mode / name / f"2026{len(list(root.rglob('result.json'))):04d}-s0", config) as run:
        run.finish(result)
    return run.directory


def test_a_task_finds_the_newest_planner_whose_set_has_it(tmp_path: Path) -> None:
    def found(*options: str) -> Path:
        return find_planner({**compose("train", [*options]), "root": str(tmp_path)}, ("finetune", "pretrain"))

    reach = finished(tmp_path, "pretrain", "reach", {}, "env=metaworld")
    ten = finished(tmp_path, "pretrain", "ten", {}, "env=mt10_paper")
    assert found("env=metaworld") == found("env=metaworld", "env.task=basketball") == found("env=mt10_paper") == ten
    some = ("env=mt50", "env.tasks=[reach,push]", "env.name=some")
    assert found(*some) == ten, "a set whose tasks another one has"
    for other in (["env=mt10"], *(["env=metaworld", more] for more in ("env.task=sweep", "obs=state", "method=dp3"))):
        with pytest.raises(InputError, match="no finished finetune or pretrain run"):
            found(*other)
    newer = finished(tmp_path, "pretrain", "reach", {}, "env=metaworld")
    assert found("env=metaworld") == newer and found("env=metaworld", "env.task=push") == ten and reach != newer


def test_a_named_run_that_is_not_finished_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = {**compose("train", ["mode=eval", f"planner={tmp_path / 'run'}"]), "root": str(tmp_path)}
    with Run(tmp_path / "run", config) as run:
        for step in (5, 10):
            checkpoint.save(run.checkpoints, step, {}, {})
        assert find_planner(config, ("pretrain",)) == run.directory
        (told,) = caplog.messages
        assert "is not finished, so it is as of 00000010. To keep to that one" in told
        newest = run.checkpoints / "00000010"
        assert told.endswith(f"planner={newest}") and find_planner({**config, "planner": str(newest)}, ()) == newest
        run.finish({})
    assert find_planner(config, ("pretrain",)) == run.directory and len(caplog.messages) == 1


def test_the_record_of_a_set_stands_for_a_planner_of_each_task(tmp_path: Path) -> None:
    (reach,) = expand(EnvConfig.from_config(compose("train", ["env=metaworld"])["env"]))
    run = finished(tmp_path, "finetune", "reach", {"episodes": 1}, "env=metaworld")
    places = {"metaworld_reach": f"../../reach/{run.name}", "metaworld_push": "../../push/x"}
    pair = ("env=metaworld", "env.tasks=[reach,push]", "env.name=pair")
    record = finished(tmp_path, "finetune", "pair", {"runs": places}, *pair)

    def found(*options: str) -> Path:
        return find_planner({**compose("train", [*options]), "root": str(tmp_path)}, ("finetune",))

    assert found(*pair) == record and planner_of(record, reach) == run
    assert found("env=metaworld") == run and planner_of(run, reach) == run
    other = expand(EnvConfig.from_config(compose("train", ["env=metaworld", "env.task=sweep"])["env"]))[0]
    with pytest.raises(
        InputError, match="is a fine-tuning of metaworld_push, metaworld_reach, not of env=metaworld_sw"
    ):
        planner_of(record, other)


def test_a_set_s_task_is_configured_as_by_its_own_command() -> None:
    of_set = compose("train", ["env=mt10_paper", "mode=finetune", "preset=paper"])
    task = next(task for task in expand(EnvConfig.from_config(of_set["env"])) if task.task == "push")
    assert as_task(of_set, task) == compose(
        "train", ["env=metaworld", "env.task=push", "mode=finetune", "preset=paper"]
    )
    assert is_of_set(of_set, task) and not is_of_set(as_task(of_set, task), task)


def test_an_unseen_task_must_be_like_those_that_were_seen(tmp_path: Path) -> None:
    options = ("obs=state", "env=adroit_door", "env.horizon=4")
    config = compose("train", [*options])
    door = EnvConfig.from_config(config["env"])
    fields = {"sensor_shape": (39,), "proprioception_size": 24, "action_size": 28, "n_obs_steps": 2}
    planner = make_planner(STATE.__class__(**{**STATE.to_dict(), **fields}))
    state = planner_state(planner, [door], "hash")
    assert not is_unseen(state, door)
    require_fitting(state, planner, config, door)
    pen = EnvConfig.from_config(compose("train", ["obs=state", "env=adroit_pen"])["env"])
    assert is_unseen(state, pen)
    with pytest.raises(InputError) as refused:
        require_fitting(state, planner, config, pen)
    told = str(refused.value)
    assert "trained on adroit_door" in told and "env=adroit_pen, which it has not seen" in told
    assert "action_size=28 there, 24 here" in told and "sensor_shape=(39,) there, (45,) here" in told
    same = EnvConfig.from_config({**config["env"], "name": "another_door"})
    require_fitting(state, planner, config, same)
    assert is_unseen(state, same)


@pytest.mark.parametrize(
    ("option", "more"), [("n_obs_steps", -1), ("n_action_steps", -1), ("horizon", 4), ("action_repeat", 1)]
)
def test_a_planner_acts_in_steps_as_those_it_learned(option: str, more: int) -> None:
    config = compose("train", ["obs=state", "env=adroit_door", "env.horizon=4"])
    door = EnvConfig.from_config(config["env"])
    fields = {"sensor_shape": (39,), "proprioception_size": 24, "action_size": 28, "n_obs_steps": 2}
    planner = make_planner(STATE.__class__(**{**STATE.to_dict(), **fields}))
    state = planner_state(planner, [door], "hash")
    learned = getattr(door, option)
    other = EnvConfig.from_config({**config["env"], option: learned + more})
    with pytest.raises(InputError, match=rf"trained with env\.{option}={learned}, but {learned + more} came"):
        require_fitting(state, planner, config, other)


# ---- what is told -------------------------------------------------------------------------------------------------


def test_the_mean_of_tasks_counts_each_task_once_and_every_episode() -> None:
    mean = mean_summary([summary(2), summary(6)])
    low, high = wilson_interval(8, 20)
    assert mean["success"]["count"] == {"rate": pytest.approx(0.4), "low95": pytest.approx(low), "high95": high}
    assert (mean["tasks"], mean["episodes"], mean["headline_metric"]) == (2, 20, "count")
    assert sentence(mean).startswith("mean of 2 tasks: success (count) 40% [22%, 61%] on 20 episodes; ")


def test_of_each_task_its_headline_success_is_logged_beside_the_means() -> None:
    done: list[Any] = [
        SimpleNamespace(success={"final": flag, "count": flag, "any": True}, seed=0, episode_return=2.0)
        for flag in (True, False)
    ]
    found = {task.name: Evaluation(task, done[:count]) for count, task in enumerate(TASKS, start=1)}
    logged = metrics_of(found, "validation")
    assert logged["validation/success_count"] == 0.75 and logged["validation/return"] == 2.0
    assert {name: logged[f"validation_success/{name}"] for name in found} == {
        name: evaluation.success_rate for name, evaluation in found.items()
    }


@pytest.mark.parametrize("asked", [1, 2])
def test_as_many_tasks_are_fine_tuned_at_once_as_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    found: list[int] = []

    def side_by_side(jobs: Any, together: int, finished: Any) -> None:
        found.append(together)
        raise Stopped(15)

    monkeypatch.setattr("sodp3d.learning.sets.run_side_by_side", side_by_side)
    parts = {task.name: {"tasks_at_once": asked, "threads": None, "workers": None} for task in TASKS}
    with Run(tmp_path / "record", {"planner": "somewhere"}) as run, pytest.raises(Stopped):
        finetune_set(run, parts, lambda name: tmp_path / name, lambda config: None)
    assert found == [asked]
