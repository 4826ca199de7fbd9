"""Demonstrations: brought to control rate, checked, written in a form that Minari reads, and refused when foreign."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sodp3d.collection import demos
from sodp3d.collection.agents.memory import Trajectory
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CHECKOUT
from sodp3d.envs import EnvConfig, score_states

DOOR = EnvConfig.from_config(yaml.safe_load((CHECKOUT / "configs/env/adroit_door.yaml").read_text()))
SIZES = (39, 28)
ANGLE = 28  # of the door, in the state vector


def raw_door(steps: int, opened: int, seed: int = 0) -> Trajectory:
    """A recording of `steps` raw steps, the door open in the last `opened` of them."""
    random = np.random.default_rng(seed)
    states = random.normal(size=(steps + 1, 39))
    states[:, ANGLE] = 0.0
    states[steps + 1 - opened :, ANGLE] = 1.4
    return Trajectory(states, random.uniform(-1.5, 1.5, (steps, 28)), random.normal(size=steps))


def write_minari(folder: Path, episodes: list[Trajectory], metadata: dict[str, Any]) -> Path:
    """A dataset as Minari stores it, in raw steps."""
    (folder / "data").mkdir(parents=True)
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for index, episode in enumerate(episodes):
            group = file.create_group(f"episode_{index}")
            group["observations"], group["actions"] = episode.states, episode.actions
            group["rewards"], group["terminations"] = episode.rewards, np.zeros(len(episode.actions), bool)
    (folder / "data" / "metadata.json").write_text(json.dumps({"data_format": "hdf5", **metadata}))
    return folder


@given(steps=st.integers(2, 21), opened=st.integers(0, 10), repeat=st.integers(1, 3), seed=st.integers(0, 99))
def test_raw_steps_become_control_steps(steps: int, opened: int, repeat: int, seed: int) -> None:
    raw = raw_door(max(steps, repeat), min(opened, steps), seed)
    env = replace(DOOR, action_repeat=repeat)
    made, goals = demos.to_control_rate(env, raw)
    rewards, achieved = score_states(env, raw.states[1:])
    used = 0
    for t in range(len(raw.actions) // repeat):
        group = slice(t * repeat, (t + 1) * repeat)
        np.testing.assert_array_equal(made.states[t], raw.states[t * repeat])
        np.testing.assert_allclose(made.actions[t], np.clip(raw.actions[group], -1, 1).mean(0))
        assert made.rewards[t] == pytest.approx(rewards[group].sum())
        used = group.stop
    np.testing.assert_array_equal(made.states[-1], raw.states[used])
    assert goals == achieved[:used].sum()


def test_successes_are_counted_by_the_environments_threshold(tmp_path: Path) -> None:
    folder = write_minari(tmp_path, [raw_door(60, opened) for opened in (0, 25, 26, 40)], {"dataset_id": "a/b-v0"})
    shown = demos.load(DOOR, str(folder), SIZES, count_threshold=25)
    assert shown.successes == 2 and len(shown.trajectories) == 4
    assert shown.summary() == "demonstrations a/b-v0: 4 episodes, 120 control steps, 2 of them successful (count)"
    assert len(demos.load(DOOR, str(folder), SIZES, 25, limit=3).trajectories) == 3


def test_minari_ids_are_looked_up_where_minari_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_minari(tmp_path / "mine" / "door-v0", [raw_door(4, 0)], {})
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert demos.find(DOOR, "mine/door-v0") == tmp_path / "mine" / "door-v0" / "data"
    with pytest.raises(InputError, match=r"'mine/other-v0' is neither .* get it with: minari download mine/other-v0"):
        demos.find(DOOR, "mine/other-v0")


def test_missing_default_names_the_minari_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demos, "SHIPPED", tmp_path)
    with pytest.raises(
        InputError, match=r"none are shipped for env=adroit_door; .*minari download D4RL/door/expert-v2"
    ):
        demos.find(DOOR, None)


def test_own_format_round_trips_and_minari_reads_it(tmp_path: Path) -> None:
    made = [demos.to_control_rate(DOOR, raw_door(20, 6, seed))[0] for seed in range(3)]
    facts = {"dataset_id": "sodp3d/adroit_door-v0", "algorithm_name": "test", "successes": 2}
    demos.write(tmp_path / "set", DOOR, made, [5, 6, 7], facts)
    shown = demos.load(DOOR, str(tmp_path / "set"), SIZES, count_threshold=25)
    assert shown.successes == 2
    for one, other in zip(made, shown.trajectories, strict=True):
        np.testing.assert_array_equal(one.states.astype(np.float32), other.states)
        np.testing.assert_array_equal(one.actions.astype(np.float32), other.actions)
        np.testing.assert_allclose(one.rewards, other.rewards, rtol=1e-6)
        assert not other.terminated
    read = minari.MinariDataset(tmp_path / "set" / "data")
    assert read.total_episodes == 3 and read.total_steps == 30
    episode = next(iter(read.iterate_episodes()))
    assert read.observation_space.contains(episode.observations[0]) and read.action_space.contains(episode.actions[0])
    with pytest.raises(InputError, match="exists already and is never overwritten"):
        demos.write(tmp_path / "set", DOOR, made, [5, 6, 7], facts)


def test_demonstrations_of_another_task_or_rate_are_refused(tmp_path: Path) -> None:
    folder = str(write_minari(tmp_path / "raw", [raw_door(4, 0)], {"dataset_id": "x/y-v0"}))
    with pytest.raises(InputError, match=r"observations of x/y-v0 have 39 numbers, but env=adroit_door has 46\."):
        demos.load(DOOR, folder, (46, 28), 25)
    with pytest.raises(InputError, match=r"actions of x/y-v0 have 28 numbers, but .* has 26\. .*minari download"):
        demos.load(DOOR, folder, (39, 26), 25)
    own = tmp_path / "own"
    demos.write(own, DOOR, [demos.to_control_rate(DOOR, raw_door(4, 0))[0]], [0], {"dataset_id": "own-v0"})
    with pytest.raises(InputError, match="own-v0 shows adroit_door, but env=other was asked for"):
        demos.load(replace(DOOR, name="other"), str(own), SIZES, 25)
    with pytest.raises(InputError, match="own-v0 has action_repeat 2, but env=adroit_door has 1"):
        demos.load(replace(DOOR, action_repeat=1), str(own), SIZES, 25)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    folder = write_minari(tmp_path / "cut", [raw_door(4, 0)], {})
    file = folder / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match=r"main_data\.hdf5 is damaged or not a dataset of plain arrays"):
        demos.load(DOOR, str(folder), SIZES, 25)
    broken = raw_door(4, 0)
    broken.states[1, 3] = np.nan
    folder = write_minari(tmp_path / "nan", [broken], {})
    with pytest.raises(InputError, match="states hold numbers that are not finite"):
        demos.load(DOOR, str(folder), SIZES, 25)
    with pytest.raises(InputError, match="holds no episodes"):
        demos.load(DOOR, str(write_minari(tmp_path / "empty", [], {})), SIZES, 25)
    (tmp_path / "arrow" / "data").mkdir(parents=True)
    (tmp_path / "arrow" / "data" / "metadata.json").write_text('{"data_format": "arrow"}')
    with pytest.raises(InputError, match="is in Minari's 'arrow' format; expected an 'hdf5' dataset"):
        demos.load(DOOR, str(tmp_path / "arrow"), SIZES, 25)


def test_loading_runs_no_code_named_by_the_dataset(tmp_path: Path) -> None:
    spec = json.dumps({"id": "X-v0", "entry_point": "os:abort", "kwargs": {}})
    folder = write_minari(tmp_path, [raw_door(4, 0)], {"env_spec": spec})  # without spaces Minari makes that env
    assert len(demos.load(DOOR, str(folder), SIZES, 25).trajectories) == 1
