"""Images for VRL3: demonstrations played back, committed episodes drawn again, and the real command, killed."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from toy_env import config

from sodp3d.collection import demos
from sodp3d.collection.agents.memory import Trajectory
from sodp3d.collection.collect import build_agent
from sodp3d.collection.environments import CollectionGroup, Finished
from sodp3d.collection.loop import stored_trajectory, trajectory
from sodp3d.collection.playback import watch
from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CHECKOUT
from sodp3d.data.store import EpisodeStore
from sodp3d.envs import make_env

STEPS, SIZE = 6, 84
DOOR = replace(
    config("adroit_door"), episode_steps=STEPS, camera=replace(config("adroit_door").camera, height=16, width=16)
)
SIZES = (39, 28)


class OneWorker:
    """`sodp3d.parallel.Workers` with one worker, in this process."""

    def __init__(self) -> None:
        self.group = CollectionGroup(DOOR, "auto")

    def __len__(self) -> int:
        return 1

    def call(self, method: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        return [getattr(self.group, method)(*values) for values in arguments]


@pytest.fixture(scope="module")
def worker() -> OneWorker:
    return OneWorker()


@pytest.fixture(scope="module")
def episode(worker: OneWorker) -> Finished:
    """An episode as it was seen while it happened."""
    random = np.random.default_rng(0)
    (start,) = worker.group.reset([123], record=True, image_size=SIZE)
    assert start["image"].shape == (3, SIZE, SIZE) and start["agent_pos"].shape == (24,)
    for _ in range(STEPS):
        (now,), (finished,) = worker.group.step(random.uniform(-1, 1, (1, 28)).astype(np.float32))
    assert finished is not None
    np.testing.assert_array_equal(finished.seen["image"][-1], now["image"])
    return finished


@pytest.fixture
def recorded(episode: Finished, tmp_path: Path) -> Path:
    """The episode as one of our data sets."""
    shown = Trajectory(episode.states, episode.actions, episode.rewards)
    demos.write(tmp_path / "set", DOOR, [shown], [episode.seed], {"dataset_id": "ours-v0"})
    return tmp_path / "set"


# ---- images ----------------------------------------------------------------------------------------------------------


def test_agents_see_what_the_environment_shows_before_each_action(episode: Finished) -> None:
    env = make_env(DOOR)
    observation, _ = env.reset(seed=123)
    for step in range(STEPS + 1):
        np.testing.assert_array_equal(episode.seen["image"][step], env.render_rgb(SIZE, SIZE).transpose(2, 0, 1))
        np.testing.assert_array_equal(episode.seen["agent_pos"][step], observation["agent_pos"])
        if step < STEPS:
            observation, *_ = env.step(episode.actions[step])
    assert len(np.unique(episode.seen["image"])) > 20
    seen = trajectory(episode)
    assert seen.images is episode.seen["image"] and seen.states is episode.seen["agent_pos"]


def test_an_agent_of_states_gets_states_and_the_same_episode(worker: OneWorker, episode: Finished) -> None:
    states = worker.group.reset([123], record=True)
    np.testing.assert_array_equal(states, episode.states[:1])
    for action in episode.actions:
        states, (finished,) = worker.group.step(action[None])
    assert isinstance(states, np.ndarray) and finished is not None and finished.seen == {}
    for key, values in episode.steps.items():
        np.testing.assert_array_equal(finished.steps[key], values, err_msg=key)


def test_committed_episodes_are_drawn_again_as_they_were_seen(worker: OneWorker, episode: Finished) -> None:
    worker.group.reset([5], record=False)  # somebody else's episode in the same environment
    images = worker.group.draw(episode.steps["sim_state"], SIZE)
    np.testing.assert_array_equal(images, episode.seen["image"][:-1])


def test_a_stored_episode_has_the_images_of_its_steps(episode: Finished) -> None:
    class Store:
        def __init__(self, limit: int) -> None:
            self.attributes = {"env_config": {"episode_steps": limit}}

        def episode(self, index: int, keys: tuple[str, ...]) -> dict[str, Any]:
            return {key: episode.steps[key] for key in keys}

    images = episode.seen["image"][:-1]
    cut = stored_trajectory(Store(STEPS), 0, images)  # type: ignore[arg-type]
    np.testing.assert_array_equal(cut.states, episode.seen["agent_pos"][:-1])
    assert cut.images is not None and len(cut.images) == STEPS and not cut.terminated
    ended = stored_trajectory(Store(STEPS + 1), 0, images)  # type: ignore[arg-type] - the task ended it
    assert ended.images is not None and len(ended.images) == len(ended.states) == STEPS + 1 and ended.terminated


# ---- demonstrations --------------------------------------------------------------------------------------------------


def test_own_demonstrations_are_played_back_exactly(worker: OneWorker, episode: Finished, recorded: Path) -> None:
    (seen,) = watch(demos.load(DOOR, str(recorded), SIZES, 25), worker, SIZE)  # type: ignore[arg-type]
    np.testing.assert_array_equal(seen.images, episode.seen["image"])
    np.testing.assert_array_equal(seen.states, episode.seen["agent_pos"])
    np.testing.assert_array_equal(seen.actions, episode.actions)


@pytest.mark.parametrize("by_seed", [True, False])
def test_raw_recordings_are_played_back_from_their_seed_or_initial_state(
    worker: OneWorker, tmp_path: Path, by_seed: bool
) -> None:
    """As Minari stores what Gymnasium's environment did: raw steps, and derived positions one simulator step late."""
    env = make_env(DOOR, "auto")
    env.reset(seed=9)
    initial = {"qpos": env.data.qpos.copy(), "qvel": env.data.qvel.copy(), "door_body_pos": env.task.get_variables()}
    states, images = [env.task.state()], [env.render_rgb(SIZE, SIZE).transpose(2, 0, 1)]
    actions = np.random.default_rng(1).uniform(-1, 1, (7, 28))
    raw = env.task._env  # type: ignore[attr-defined]
    for step, action in enumerate(actions):
        raw.do_simulation(raw.act_mean + action * raw.act_rng, raw.frame_skip)
        states.append(env.task.state())
        if step % 2 == 1:
            env.task.forward()
            images.append(env.render_rgb(SIZE, SIZE).transpose(2, 0, 1))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.json").write_text(json.dumps({"data_format": "hdf5"}))
    with h5py.File(tmp_path / "data" / "main_data.hdf5", "w") as file:
        group = file.create_group("episode_0")
        group["observations"], group["actions"] = np.stack(states), actions
        group["rewards"], group["terminations"] = np.zeros(7), np.zeros(7, bool)
        if by_seed:
            group.attrs["seed"] = 9
        else:
            group.attrs.update({f"options/initial_state_dict/{key}": value for key, value in initial.items()})
    (seen,) = watch(demos.load(DOOR, str(tmp_path), SIZES, 25), worker, SIZE)  # type: ignore[arg-type]
    assert seen.images is not None and len(seen.images) == 4 and len(seen.actions) == 3  # an odd raw step is left out
    np.testing.assert_array_equal(seen.images, np.stack(images))


def test_recordings_that_do_not_play_back_are_left_out_and_none_is_an_error(
    worker: OneWorker, recorded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shown = demos.load(DOOR, str(recorded), SIZES, 25)
    good = shown.recordings[0]
    drifting = good.states.copy()
    drifting[4:, 3:8] += 0.2
    bad = [
        replace(good, seed=4),
        replace(good, states=drifting),
        replace(good, seed=None),
        replace(good, initial={"qpos": np.zeros(3)}),
    ]
    several = replace(shown, recordings=[bad[0], good, *bad[1:]], trajectories=shown.trajectories * 5)
    assert len(watch(several, worker, SIZE)) == 1  # type: ignore[arg-type]
    for words in ("episode 0: played back, its state at step 0", "episode 2: played back, its state at step 4"):
        assert words in caplog.text
    with pytest.raises(InputError, match=r"no recording of ours-v0 plays back .*neither a seed nor a complete initial"):
        watch(replace(shown, recordings=bad[2:]), worker, SIZE)  # type: ignore[arg-type]


def test_ray_casting_is_refused_because_it_has_no_colours() -> None:
    facts = CollectionGroup(DOOR, "raycast").describe()
    with pytest.raises(InputError, match=r"agent\.encoder=pixels needs colour images, and ray casting has none"):
        build_agent({"name": "vrl3", "encoder": "pixels", "hidden": 8}, DOOR, facts, 0, "cpu", fresh=True)


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_command_continues_without_repeating_stage_2(worker: OneWorker, recorded: Path, tmp_path: Path) -> None:
    options = [
        "env=adroit_door", f"env.episode_steps={STEPS}", "env.camera.height=16", "env.camera.width=16", "workers=1",
        "agent.encoder=pixels", "agent.hidden=8", "agent.batch_size=8", "agent.conservative_actions=2",
        "agent.offline_updates=3", "agent.updates_per_step=0.5", f"demos={recorded}", "threads=1", "device=cpu",
        "collect.fraction=1", "collect.agent_steps=48", "collect.environments=2", "collect.checkpoint_every=1000",
        "collect.evaluate_every=0", f"root={tmp_path}",
    ]  # fmt: skip
    command = [sys.executable, str(CHECKOUT / "data_collection" / "collect.py"), *options]
    folder = tmp_path / "data" / "adroit_door"
    path = folder / "episodes.zarr"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not (path / ".zattrs").exists() or len(EpisodeStore.open(path)) < 2):
            time.sleep(0.02)
        assert process.poll() is None, "it ended before it could be killed"
        process.kill()
    committed = len(EpisodeStore.open(path))
    assert checkpoint.steps(folder / "agent" / "checkpoints") == [3], "the last checkpoint is that of stage 2"
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    metrics = [json.loads(line) for line in (folder / "agent" / "metrics.jsonl").read_text().splitlines()]
    assert sum("offline/critic_loss" in record for record in metrics) == 1
    newest, tensors, state = checkpoint.load_latest(folder / "agent" / "checkpoints") or pytest.fail("no checkpoint")
    assert newest == 3 + 48 and state["agent"]["offline_done"] == 3
    assert state["agent"]["replay"]["demos"] == STEPS
    assert state["agent"]["replay"]["added"] == 48 - committed  # the last states of recovered episodes are unknown
    number = STEPS + 1  # of the first image after the demonstration's
    for index in range(8):
        drawn = worker.group.draw(EpisodeStore.open(path).read("sim_state", index, index + 1), SIZE)
        held = tensors[f"replay.frames.{number}"]
        assert len(held) == (STEPS if index < committed else STEPS + 1)
        np.testing.assert_array_equal(held[:STEPS], drawn, err_msg=f"episode {index}")
        number += len(held)
