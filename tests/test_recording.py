"""Stores of what robots recorded: what is absent stays absent, and everything that reads stores copes with it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_recorded import CAMERA, NAMES, POINTS, POSE, depth_episode, make_recorded_store, recorded_episode
from toy_store import make_store

from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.data.conversion import convert_store
from sodp3d.data.dataset import WindowDataset, select_episodes
from sodp3d.data.hashing import data_hash, identify, learned_hashes
from sodp3d.data.merge import merge
from sodp3d.data.recording import RecordedEpisode, as_recorded, create_recorded_store, names_of
from sodp3d.data.schema import METADATA
from sodp3d.data.store import EpisodeStore, NotRecorded
from sodp3d.data.views import require_same_view
from sodp3d.envs import make_env
from sodp3d.envs.config import EnvConfig, task_configs
from sodp3d.results.stores import StoreRecord
from sodp3d.tools.card import write_card
from sodp3d.tools.extract import extract
from sodp3d.tools.frames import store_frames
from sodp3d.tools.video import write_store_videos
from sodp3d.vision.sensors import sensor


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "arm" / "episodes.zarr"


def configured(path: Path, *options: str) -> dict[str, Any]:
    """What a command gets for `env=recorded data=<path>`."""
    return as_recorded(compose("train", ["env=recorded", f"data={path}", *options]))


def test_holds_what_was_recorded_and_nothing_else(path: Path) -> None:
    store = make_recorded_store(path, [recorded_episode(number) for number in range(3)])
    assert len(store) == 3 and store.verify() == []
    assert set(store.keys) == {"action", "agent_pos", "point_cloud"} and dict(store.metadata) == {}
    assert {folder.name for folder in (path / "meta").iterdir() if folder.is_dir()} == {"episode_ends", "checksum"}
    shown = recorded_episode(1)
    parts = [shown.agent_pos, np.asarray(shown.beside["gripper"])[:, None], shown.beside["force"]]
    np.testing.assert_array_equal(store.read("agent_pos", 1, 2), np.concatenate(parts, axis=1).astype(np.float32))
    assert names_of(store, "agent_pos") == ["x", "y", "gripper", "force 0", "force 1"]
    assert names_of(store, "action") == NAMES["action_names"] and store.attributes["rate"] == 10


@pytest.mark.parametrize("key", ["reward", "success", "sim_state", "state", "depth", "image"])
def test_an_absent_value_is_one_clear_message(path: Path, key: str) -> None:
    store = make_recorded_store(path, [recorded_episode(0)])
    with pytest.raises(NotRecorded, match=rf"data/{key} was not recorded; there are action, agent_pos, point_cloud"):
        store.read(key)
    with pytest.raises(NotRecorded, match=r"seed of episodes was not recorded; there are none"):
        _ = store.metadata["seed"]


def test_rewards_and_success_give_what_follows_from_them(path: Path) -> None:
    success = np.array([0, 1, 0])
    episodes = [
        recorded_episode(number, 3, reward=np.array([1.0, 2.0, 0.5]), success=success, values={"seed": number})
        for number in range(2)
    ]
    store = make_recorded_store(path, episodes)
    assert store.metadata["episode_return"].tolist() == [3.5, 3.5] and store.metadata["seed"].tolist() == [0, 1]
    assert store.metadata["success_any"].all() and not store.metadata["success_final"].any()
    assert set(METADATA) - set(store.metadata) == {"agent_step", "success_count"}
    assert select_episodes(store, success="any").tolist() == [0, 1]
    with pytest.raises(NotRecorded, match="success_count of episodes was not recorded"):
        select_episodes(store, success="count")


def test_a_store_goes_on_after_a_kill_and_takes_nothing_else(path: Path) -> None:
    make_recorded_store(path, [recorded_episode(0)], source={"from": "a bag"})
    store = make_recorded_store(path, [recorded_episode(number) for number in range(3)], source={"from": "a bag"})
    assert len(store) == 3
    with pytest.raises(InputError, match=r"holds recordings of .*a bag.*write to another folder"):
        create_recorded_store(path, "arm", recorded_episode(0), **NAMES, source={"from": "another"})
    for changes, told in [
        ({"rate": 20}, "rate = 10"),
        ({"action_names": ["a", "b", "c"]}, r"action_names\[0\] = 'dx'"),
    ]:
        with pytest.raises(InputError, match=told):
            create_recorded_store(path, "arm", recorded_episode(0), **{**NAMES, "source": {"from": "a bag"}, **changes})
    with pytest.raises(InputError, match=r"episode_values"):
        create_recorded_store(path, "arm", recorded_episode(0, values={"seed": 1}), **NAMES, source={"from": "a bag"})
    with pytest.raises(InputError, match="env = 'arm'"):
        create_recorded_store(path, "leg", recorded_episode(0), **NAMES)
    with (
        create_recorded_store(path, "arm", recorded_episode(0), **NAMES, source={"from": "a bag"}) as again,
        pytest.raises(InputError, match=r"unknown \['seed'\]"),
    ):
        again.append(recorded_episode(4).steps, {"seed": 4})
    assert EpisodeStore.open(path).verify() == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"agent_pos": None, "beside": {}}, "episode.agent_pos: nothing is known"),
        ({"point_cloud": np.zeros((9, 5, 6))}, r"episode.point_cloud: expected shape \(T, N, 3\), got \(9, 5, 6\)"),
        ({"image": np.zeros((9, 4, 4, 3), np.uint8)}, r"episode.image: expected shape \(T, 3, H, W\)"),
        ({"image": np.zeros((9, 3, 4, 4))}, "episode.image: expected uint8, got float64"),
        ({"depth": np.ones((9, 4, 4))}, "episode.depth: expected uint16, got float64"),
        ({"beside": {"force": np.zeros(8)}}, r"episode.beside\['force'\]: expected numbers \(9,\)"),
        ({"values": {"sucess": True}}, "episode.values: unknown name 'sucess'"),
        ({"action": np.zeros((0, 3))}, "episode.action: expected shape"),
        ({"camera_pose": np.stack([POSE] * 8 + [POSE.T])}, "episode.camera_pose: expected a rotation .* at step 8"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        recorded_episode(0, **changes)


def test_depth_needs_its_camera(path: Path) -> None:
    for camera, told in [
        (None, "depth needs its camera"),
        (replace(CAMERA, pose=None), "camera_pose of each step"),
        (replace(CAMERA, height=5), r"\(12, 12\) pixels, but the camera has \(5, 12\)"),
    ]:
        with pytest.raises(InputError, match=told):
            make_recorded_store(path, [depth_episode(0)], camera=camera)
    moving = depth_episode(0, camera_pose=np.stack([POSE] * 9))
    assert "camera_pose" in make_recorded_store(path, [moving], camera=replace(CAMERA, pose=None)).keys


@given(
    kept=st.sets(st.sampled_from(["state", "point_cloud", "image", "reward", "success"])),
    values=st.sets(st.sampled_from(sorted(METADATA))),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
)
@settings(max_examples=25, deadline=None)
def test_any_choice_of_values_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, kept: set[str], values: set[str], lengths: list[int]
) -> None:
    def one(number: int, length: int) -> RecordedEpisode:
        random = np.random.default_rng(number)
        everything = {
            "state": random.normal(size=(length, 4)),
            "point_cloud": random.normal(size=(length, 5, 3)),
            "image": random.integers(0, 255, (length, 3, 4, 4)).astype(np.uint8),
            "reward": random.normal(size=length),
            "success": random.integers(0, 2, length),
        }
        arrays = {key: everything[key] if key in kept else None for key in everything}
        return recorded_episode(number, length, **arrays, values=dict.fromkeys(values, number % 2))

    path = tmp_path_factory.mktemp("any") / "episodes.zarr"
    episodes = [one(number, length) for number, length in enumerate(lengths)]
    store = make_recorded_store(path, episodes)
    assert store.verify() == []
    for index, episode in enumerate(episodes):
        assert set(store.keys) == set(episode.steps) and set(store.metadata) == set(episode.metadata)
        for key, array in store.episode(index).items():
            np.testing.assert_array_equal(array, episode.steps[key])
        for name, column in store.metadata.items():
            assert column[index] == episode.metadata[name]


# -- what reads stores ---------------------------------------------------------------------------------------------


def test_merge_and_extract_keep_the_order_and_take_an_episode_once(tmp_path: Path) -> None:
    one = make_recorded_store(tmp_path / "one" / "episodes.zarr", [recorded_episode(number) for number in (5, 2)])
    make_recorded_store(tmp_path / "two" / "episodes.zarr", [recorded_episode(number) for number in (2, 7)])
    shards = [tmp_path / "one" / "episodes.zarr", tmp_path / "two" / "episodes.zarr"]
    for _ in range(2):  # the second time all is there
        with merge(shards, tmp_path / "all" / "episodes.zarr") as merged:
            assert len(merged) == 3 and merged.verify() == []
            np.testing.assert_array_equal(merged.read("action", 2, 3), recorded_episode(7).steps["action"])
            np.testing.assert_array_equal(merged.read("action", 0, 2), one.read("action"))
            assert dict(merged.metadata) == {} and names_of(merged, "action") == NAMES["action_names"]
    with extract(one.path, tmp_path / "some" / "episodes.zarr", max_episodes=1) as some:
        np.testing.assert_array_equal(some.read("action"), recorded_episode(5).steps["action"])
    with pytest.raises(InputError, match="not the first of those asked for"):
        merge(shards[1:], tmp_path / "some" / "episodes.zarr")


def test_shards_must_agree_on_all_that_any_of_them_tells(tmp_path: Path) -> None:
    shards = [tmp_path / name / "episodes.zarr" for name in ("none", "ten", "twenty")]
    for number, (shard, rate) in enumerate(zip(shards, (None, 10, 20), strict=True)):
        make_recorded_store(shard, [recorded_episode(number)], rate=rate)
    with pytest.raises(InputError, match=r"twenty/episodes\.zarr: holds data with rate = 20, but 10 came"):
        merge(shards, tmp_path / "all.zarr")
    assert not (tmp_path / "all.zarr").exists()
    with merge(shards[:2], tmp_path / "all.zarr") as merged:
        assert merged.attributes["rate"] == 10


def test_hashes_are_of_what_was_recorded(tmp_path: Path) -> None:
    hashes = set()
    for number, changes in enumerate(
        [{}, {"values": {"seed": 3}}, {"values": {"agent_step": 3}}, {"reward": np.ones(9)}]
    ):
        store = make_recorded_store(tmp_path / str(number) / "episodes.zarr", [recorded_episode(1, **changes)])
        hashes.add(data_hash(store))
        assert learned_hashes(store)["point_cloud"] == identify([store], ["agent_pos", "point_cloud"]).current
    assert len(hashes) == 4


@pytest.mark.parametrize("memory", ["ram", "mapped"])
def test_windows_come_from_recorded_clouds(path: Path, memory: Any) -> None:
    store = make_recorded_store(path, [recorded_episode(number) for number in range(3)])
    dataset = WindowDataset([store], ["agent_pos", "point_cloud"], 4, 2, 3, memory=memory, half=["point_cloud"])
    windows = dataset.windows(np.array([4]))
    np.testing.assert_allclose(windows["point_cloud"][0], recorded_episode(0).steps["point_cloud"][3:5], atol=1e-3)


def test_card_page_and_replay_say_what_was_not_recorded(path: Path) -> None:
    store = make_recorded_store(path, [recorded_episode(number) for number in range(2)], source={"from": "a <b>bag"})
    text = write_card(path.parent).read_text()
    assert "| control steps a second | 10 |" in text and "x, y, gripper, force 0, force 1" in text
    assert "| success any | not recorded |" in text and "| depth image | not recorded |" in text
    assert f"recorded as they are, {POINTS} points each" in text and "a &lt;b&gt;bag" in text
    assert "camera intrinsics" not in text and "point_cloud.png" in text
    data = json.loads(json.dumps(store_frames(store, 2, 10**6, 5)))
    shown = data["episodes"][0]
    assert shown["seed"] is shown["return"] is shown["successes"] is shown["rewards"] is None
    assert shown["frames"][0]["cloud"] and shown["frames"][0]["depth"] is None
    assert data["actionNames"] == NAMES["action_names"] and data["actionUnit"] == "as recorded"
    with pytest.raises(InputError, match=r"holds no simulator states.*sodp3d view"):
        write_store_videos(store, "auto", [0], path.parent)


def test_depth_is_converted_and_clouds_without_depth_are_not(tmp_path: Path) -> None:
    seen = tmp_path / "seen" / "episodes.zarr"
    make_recorded_store(seen, [depth_episode(0)])
    task = task_configs(configured(seen, "env.points=20"))[0]
    convert_store(seen, task)
    again = task_configs(configured(seen))[0]
    assert again.points == 20 and again.crop == task.crop and again.camera is None
    clouds = tmp_path / "clouds" / "episodes.zarr"
    make_recorded_store(clouds, [recorded_episode(0)])
    with pytest.raises(InputError, match=r"depth was not recorded.*obs=pointcloud learns from them as they are"):
        convert_store(clouds, task_configs(configured(clouds))[0])


def test_clouds_beside_recorded_ones_need_a_name_and_a_box(tmp_path: Path) -> None:
    seen = tmp_path / "seen" / "episodes.zarr"
    both = depth_episode(0, point_cloud=recorded_episode(0).point_cloud)
    make_recorded_store(seen, [both])
    with pytest.raises(InputError, match=r"holds clouds as they were recorded.*output=<name>.*env\.crop\.low="):
        convert_store(seen, task_configs(configured(seen))[0])
    boxed = configured(seen, "env.points=20", "env.crop.low=[-9,-9,-9]", "env.crop.high=[9,9,9]")
    with pytest.raises(InputError, match="'point_cloud' is a collected key"):
        convert_store(seen, task_configs(boxed)[0])
    convert_store(seen, task_configs(boxed)[0], output="cloud2")
    assert EpisodeStore.open(seen).read("cloud2").shape == (9, 20, 3)


def test_tables_of_results_leave_recordings_out_and_say_why(path: Path) -> None:
    make_recorded_store(path, [recorded_episode(0)])
    with pytest.raises(NotRecorded, match="agent_step of episodes was not recorded"):
        StoreRecord.read(path.parent)


# -- env=recorded --------------------------------------------------------------------------------------------------


def test_the_store_tells_the_environment(path: Path) -> None:
    make_recorded_store(path, [recorded_episode(0, 7), recorded_episode(1, 11)])
    task = task_configs(configured(path))[0]
    assert (task.name, task.points, task.episode_steps, task.crop) == ("arm", POINTS, 11, None)
    with pytest.raises(InputError, match=r"recordings cannot be reset or stepped.*docs/extending\.md"):
        make_env(task)


def test_what_is_no_recording_is_refused(tmp_path: Path, path: Path) -> None:
    with pytest.raises(InputError, match="data: env=recorded needs the store of the recordings"):
        as_recorded(compose("train", ["env=recorded"]))
    with pytest.raises(InputError, match=r"no store at .*create_recorded_store"):
        configured(tmp_path / "nowhere")
    with pytest.raises(InputError, match="recordings cannot be reset or stepped"):
        EnvConfig.from_config(compose("collect", ["env=recorded"])["env"])
    make_recorded_store(path, [recorded_episode(0)])
    other = tmp_path / "leg" / "episodes.zarr"
    make_recorded_store(other, [recorded_episode(0)], name="leg")
    with pytest.raises(InputError, match="recordings of arm, leg"):
        as_recorded(compose("train", ["env=recorded", f"data=[{path},{other}]"]))
    simulated = make_store(tmp_path / "sim" / "episodes.zarr", [0])
    attributes = json.loads((simulated.path / ".zattrs").read_text())
    attributes["env_config"]["family"] = "adroit"
    (simulated.path / ".zattrs").write_text(json.dumps(attributes))
    with pytest.raises(InputError, match="was collected in a simulated environment"):
        configured(simulated.path)


def test_recordings_that_are_learned_together_agree_on_their_numbers(tmp_path: Path) -> None:
    paths = [tmp_path / name / "episodes.zarr" for name in ("none", "ten", "other")]
    for changes, told in [
        ({"rate": 20}, "tells rate = 20, but a store before it 10"),
        ({"action_names": ["turn", "dx", "grip"]}, r"tells action_names\[0\] = 'turn', but a store before it 'dx'"),
        ({"agent_pos_names": ["y", "x"]}, r"tells agent_pos_names\[0\] = 'y', but a store before it 'x'"),
    ]:
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        for path, own in zip(paths, ({"rate": None}, {}, changes), strict=True):
            if not path.exists():
                make_recorded_store(path, [recorded_episode(0)], **own)
        with pytest.raises(InputError, match=told):
            as_recorded(compose("train", ["env=recorded", f"data=[{paths[0]},{paths[1]},{paths[2]}]"]))
    found = as_recorded(compose("train", ["env=recorded", f"data=[{paths[0]},{paths[1]}]"]))
    assert found["env"]["name"] == "arm"


def test_clouds_that_are_learned_together_were_made_alike(tmp_path: Path) -> None:
    """A planner is told one crop, by which a server crops the robot's depth."""
    clouds, made = sensor("pointcloud"), []
    for name, low, high in (("one", "[-9,-9,-9]", "[9,9,9]"), ("two", "[-8,-9,-9]", "[9,9,8]")):
        made.append(tmp_path / name / "episodes.zarr")
        make_recorded_store(made[-1], [depth_episode(0)])
        box = (f"env.crop.low={low}", f"env.crop.high={high}", "env.points=20")
        convert_store(made[-1], task_configs(configured(made[-1], *box))[0])
    one, two = (EpisodeStore.open(path) for path in made)

    def told(data: str, *options: str) -> EnvConfig:
        return task_configs(as_recorded(compose("train", ["env=recorded", f"data={data}", *options])))[0]

    both = told(f"[{made[0]},{made[1]}]")
    assert both.points == 20 and both.crop.low == (-9.0, -9.0, -9.0)
    require_same_view(one, clouds, both)
    require_same_view(two, sensor("state"), both)
    with pytest.raises(InputError, match=r"crop\.high\[2\] = 8\.0, but the planner would be told 9\.0") as refused:
        require_same_view(two, clouds, both)
    words = ("convert", f"data={made[1].parent}", "again=clouds", "env.crop.high=[9.0,9.0,9.0]", "env.crop.low=[-9.0,")
    assert all(word in str(refused.value) for word in words)
    for option, match in (("crop.low=[-1,-1,-1]", r"crop\.low\[0\] = -9\.0"), ("points=30", "points = 20")):
        with pytest.raises(InputError, match=rf"was made with env\.{match}, but the planner would be told -?[13]"):
            require_same_view(one, clouds, told(str(made[0]), f"env.{option}"))


def test_clouds_as_they_are_are_not_learned_beside_those_of_a_crop(tmp_path: Path) -> None:
    plain, made = (tmp_path / name / "episodes.zarr" for name in ("plain", "made"))
    make_recorded_store(plain, [recorded_episode(0)])
    make_recorded_store(made, [depth_episode(0)])
    convert_store(made, task_configs(configured(made, f"env.points={POINTS}"))[0])
    for data in (f"[{plain},{made}]", f"[{made},{plain}]"):
        task = task_configs(as_recorded(compose("train", ["env=recorded", f"data={data}"])))[0]
        require_same_view(EpisodeStore.open(plain), sensor("pointcloud"), task)
        with pytest.raises(
            InputError, match="made of depth within a crop, but that of another store was recorded as it"
        ):
            require_same_view(EpisodeStore.open(made), sensor("pointcloud"), task)
    with pytest.raises(
        InputError, match=rf"env\.points: .*clouds of {POINTS} points as they were recorded, but 20 came"
    ):
        configured(plain, "env.points=20")


def test_absence_is_not_for_stores_that_say_nothing_of_it(tmp_path: Path) -> None:
    """A store without the attribute has all values, as before; one that lists what there is not is refused."""
    store = make_store(tmp_path / "episodes.zarr", [0, 1])
    assert set(store.metadata) == set(METADATA)
    attributes = json.loads((store.path / ".zattrs").read_text())
    for wrong in ["seed", ["sed"], {}]:
        (store.path / ".zattrs").write_text(json.dumps({**attributes, "episode_values": wrong}))
        with pytest.raises(InputError, match=re.escape("attribute episode_values: expected a list")):
            EpisodeStore.open(store.path)
