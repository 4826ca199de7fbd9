"""Demonstrations: brought to control rate, checked, written in a form that Minari reads, and refused when foreign."""

import json
import os
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


def test_states_may_end_with_the_last_action() -> None:
    """As Minari files may: the group whose last state is missing is left out."""
    whole = raw_door(20, 5, 0)
    cut = Trajectory(whole.states[:-1], whole.actions, whole.rewards, whole.terminated)
    one, other = (demos.to_control_rate(replace(DOOR, action_repeat=2), raw)[0] for raw in (whole, cut))
    assert len(one.actions) == 10 and len(other.actions) == 9
    np.testing.assert_array_equal(other.states, one.states[:-1])


@pytest.mark.parametrize("steps", [1, 2])
def test_an_episode_without_a_control_step_is_refused(steps: int) -> None:
    whole = raw_door(20, 5, 0)
    cut = Trajectory(whole.states[:steps], whole.actions[:steps], whole.rewards[:steps], False)
    with pytest.raises(InputError, match=rf"{steps} steps and {steps} observations holds no control step"):
        demos.to_control_rate(replace(DOOR, action_repeat=2), cut)


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
    with pytest.raises(InputError, match="observations holds numbers that are not finite"):
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


def one_episode(folder: Path) -> Path:
    """A dataset of one episode; the path of its file."""
    return write_minari(folder, [raw_door(4, 0)], {"dataset_id": "x/y-v0"}) / "data" / "main_data.hdf5"


def load(file: Path) -> demos.Demonstrations:
    return demos.load(DOOR, str(file.parent.parent), SIZES, 25)


@pytest.mark.parametrize("how", ["external link", "soft link", "linked episode", "external storage", "virtual"])
def test_nothing_outside_the_file_is_read(tmp_path: Path, how: str) -> None:
    """HDF5 follows links and storage into other files: a downloaded set could show a user's own."""
    file, secret = one_episode(tmp_path / "set"), tmp_path / "secret"
    np.ones((4, 28)).tofile(secret)
    with h5py.File(tmp_path / "secret.hdf5", "w") as other:
        other["actions"] = np.ones((4, 28))
        other["episode_0/actions"] = np.ones((4, 28))
    with h5py.File(file, "r+") as opened:
        group = opened["episode_0"]
        if how == "linked episode":
            opened["episode_1"] = h5py.ExternalLink(str(tmp_path / "secret.hdf5"), "/episode_0")
        else:
            del group["actions"]
        if how == "external link":
            group["actions"] = h5py.ExternalLink(str(tmp_path / "secret.hdf5"), "/actions")
        elif how == "soft link":
            group["actions"] = h5py.SoftLink("/episode_0/observations")
        elif how == "external storage":
            group.create_dataset("actions", (4, 28), "f8", external=[(str(secret), 0, 4 * 28 * 8)])
        elif how == "virtual":
            layout = h5py.VirtualLayout((4, 28), "f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.hdf5"), "actions", shape=(4, 28))
            group.create_virtual_dataset("actions", layout)
    with pytest.raises(InputError, match=r"not followed|lies in another file, which is not read"):
        load(file)


ACTIONS = np.full((4, 28), 0.5)


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("actions", ACTIONS * 2e6, "actions reach 1e[+]06, but the action space ends at -1 and 1"),
        ("actions", ACTIONS * 1j, r"expected numbers \(steps, size\), got complex128"),
        ("actions", ACTIONS[0], r"expected numbers \(steps, size\), got float64 \(28,\)"),
        ("actions", ACTIONS[:3], "3 actions, 4 rewards and 4 terminations do not fit"),
        ("actions", np.array([["x"] * 28] * 4, dtype="S1"), "expected numbers"),
        ("observations", np.zeros((5, 39), complex), "expected numbers"),
        ("observations", np.zeros((2, 39)), "2 observations, 4 actions"),
        ("rewards", np.full(4, np.inf), "rewards holds numbers that are not finite"),
        ("terminations", np.zeros(0, bool), "0 terminations do not fit"),
    ],
)
def test_arrays_that_are_none_of_an_episode_are_refused(tmp_path: Path, key: str, values: Any, words: str) -> None:
    file = one_episode(tmp_path)
    with h5py.File(file, "r+") as opened:
        del opened["episode_0"][key]
        opened["episode_0"][key] = values
    with pytest.raises(InputError, match=words):
        load(file)


def test_our_own_recordings_keep_to_the_action_space(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those of others may lie a little beyond, where the simulator cuts them; that is told."""
    assert len(load(one_episode(tmp_path / "raw")).trajectories) == 1  # up to 1.5
    assert "1 episodes of x/y-v0 have actions beyond -1 and 1" in caplog.text
    own = demos.to_control_rate(DOOR, raw_door(4, 0))[0]
    demos.write(tmp_path / "own", DOOR, [replace(own, actions=own.actions + 2)], [0], {"dataset_id": "own-v0"})
    with pytest.raises(InputError, match="the action space ends at -1 and 1"):
        demos.load(DOOR, str(tmp_path / "own"), SIZES, 25)


def _rename(file: h5py.File) -> None:
    file.move("episode_0", "episode_x")


def _flatten(file: h5py.File) -> None:
    del file["episode_0"]
    file["episode_0"] = np.zeros(3)


def _nest(file: h5py.File) -> None:
    del file["episode_0"]["observations"]
    file["episode_0"].create_group("observations")


def _attribute(key: str, value: Any) -> Any:
    return lambda file: file["episode_0"].attrs.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_rename, "expected names such as episode_0, got 'episode_x'"),
        (_flatten, "expected a group"),
        (_nest, "expected a dataset"),
        (_attribute("seed", "five"), "attribute seed: expected a whole number"),
        (_attribute("seed", -1), "attribute seed"),
        (_attribute("seed", 1.5), "attribute seed"),
        (_attribute("seed", [1, 2]), "attribute seed"),
        (_attribute("options/initial_state_dict/qpos", "x"), "qpos: expected numbers"),
        (_attribute("options/initial_state_dict/qpos", [np.nan]), "qpos holds numbers that are not finite"),
    ],
)
def test_odd_names_and_attributes_of_a_file_are_one_message(tmp_path: Path, change: Any, words: str) -> None:
    file = one_episode(tmp_path)
    with h5py.File(file, "r+") as opened:
        change(opened)
    with pytest.raises(InputError, match=words):
        load(file)


@pytest.mark.parametrize("key", ["data_format", "dataset_id", "sodp3d_env", "action_repeat", "successes"])
@pytest.mark.parametrize("value", [None, [], {}, 1.5, True])
def test_odd_metadata_is_one_message_and_null_is_nothing(tmp_path: Path, key: str, value: Any) -> None:
    file = write_minari(tmp_path, [raw_door(4, 0)], {key: value}) / "data" / "main_data.hdf5"
    if value is None:
        assert len(load(file).trajectories) == 1
    else:
        with pytest.raises(InputError, match=f"{key}: expected a"):
            load(file)
    (file.parent / "metadata.json").write_text("[]")
    with pytest.raises(InputError, match="expected a JSON object, got list"):
        load(file)
    file.unlink()
    with pytest.raises(InputError, match="expected a JSON object, got list"):
        demos.find(DOOR, str(tmp_path))


def test_an_array_that_claims_to_be_endless_is_not_read(tmp_path: Path) -> None:
    file = one_episode(tmp_path)
    with h5py.File(file, "r+") as opened:
        del opened["episode_0"]["actions"]
        opened["episode_0"].create_dataset("actions", (10**9, 28), "f8", chunks=(1000, 28))
    with pytest.raises(InputError, match="claims 224000000000 bytes"):
        load(file)


def test_what_a_killed_writer_left_does_not_stop_the_next(tmp_path: Path) -> None:
    left = tmp_path / f"set.{'0' * 32}.partial"
    (left / "data").mkdir(parents=True)
    os.utime(left, (0, 0))
    demos.write(tmp_path / "set", DOOR, [demos.to_control_rate(DOOR, raw_door(4, 0))[0]], [0], {})
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
