"""Formats of recordings: what one writes it reads as it was, and what is wrong in a file is named."""

import contextlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from toy_exchange import (
    ALONE,
    CAMERA,
    FACTS,
    FORMATS,
    JOINTS,
    SPECIFICATION,
    assert_equal,
    opened,
    read,
    steps_of,
    write,
)

from sodp3d.core.errors import InputError
from sodp3d.core.paths import PACKAGE
from sodp3d.exchange import formats, selection
from sodp3d.exchange.episodes import Facts


def path_of(name: str, folder: Path) -> Path:
    return folder / f"recording{formats.choose(name).suffix}"


# ---- what is written is read as it was ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_all_that_a_store_may_hold_comes_back(name: str, tmp_path: Path) -> None:
    path, episodes = path_of(name, tmp_path), [steps_of(0), steps_of(1, 7)]
    sink = write(name, path, episodes)
    assert set(sink.kept) == set(SPECIFICATION) and not sink.lost
    for number, episode in enumerate(episodes):
        assert_equal(read(name, path, number), episode)
    source = opened(name, path)
    assert source.facts.camera is not None and source.facts.camera.to_dict() == CAMERA.to_dict()
    assert source.facts.rate == 10 and source.facts.task == "lift the cup"
    assert source.outcomes(1) == {"seed": 1, "success_final": False}
    joints = next(offer for offer in source.offers.values() if offer.becomes == "agent_pos")
    assert joints.names == JOINTS
    source.close()


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_robot_does_not_have_stays_absent(name: str, tmp_path: Path) -> None:
    path, episode = path_of(name, tmp_path), steps_of(0, 3, ALONE)
    write(name, path, [episode], Facts(rate=5.0))
    assert_equal(read(name, path), episode)
    source = opened(name, path)
    assert source.facts.camera is None and not {"reward", "success"} & {each.becomes for each in source.offers.values()}
    source.close()


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    extra=st.sets(st.sampled_from(sorted(set(SPECIFICATION) - set(ALONE)))),
    seed=st.integers(0, 2**16),
)
def test_any_keys_and_lengths_come_back(
    name: str, tmp_path_factory: pytest.TempPathFactory, lengths: list[int], extra: set[str], seed: int
) -> None:
    path = path_of(name, tmp_path_factory.mktemp("any"))
    episodes = [steps_of(seed + number, length, [*ALONE, *sorted(extra)]) for number, length in enumerate(lengths)]
    write(name, path, episodes)
    for number, episode in enumerate(episodes):
        assert_equal(read(name, path, number), episode)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("numbers", [[0.1, -0.0], [1e-42, 3.4e38], [1 / 3, np.float32(16777217)]])
def test_numbers_come_back_to_the_last_bit(name: str, tmp_path: Path, numbers: list[float]) -> None:
    episode = steps_of(0, 1, ALONE)
    episode["action"][:] = numbers
    write(name, path_of(name, tmp_path), [episode])
    assert read(name, path_of(name, tmp_path))["action"].tobytes() == episode["action"].tobytes()


# ---- what is chosen, and what becomes of it ------------------------------------------------------------------------


def test_further_numbers_go_beside_the_joints(tmp_path: Path) -> None:
    write("folder", tmp_path / "rec", [steps_of(0)])
    found = read("folder", tmp_path / "rec", keys=["state"], leave_out=["depth", "image", "point_cloud", "reward"])
    assert sorted(found) == ["action", "agent_pos", "state", "success"]
    np.testing.assert_array_equal(found["state"], steps_of(0)["state"])
    joined = read("folder", tmp_path / "rec", agent_pos=["agent_pos", "state"])["agent_pos"]
    np.testing.assert_array_equal(joined, np.concatenate([steps_of(0)["agent_pos"], steps_of(0)["state"]], axis=1))


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"keys": ["force"]}, r"keys: expected one of action, .*, got 'force'"),
        ({"depth": "image"}, r"depth: expected one of depth, got 'image'"),
        ({"leave_out": ["action"]}, r"action: the recording has none by that name; name its keys"),
        ({"leave_out": ["agent_pos"]}, r"agent_pos: the recording has nothing by that name"),
    ],
)
def test_options_that_do_not_fit_are_told(tmp_path: Path, option: dict[str, Any], told: str) -> None:
    write("folder", tmp_path / "rec", [steps_of(0)])
    with pytest.raises(InputError, match=told):
        read("folder", tmp_path / "rec", **option)


def test_depth_in_other_units_becomes_millimetres() -> None:
    tenths = np.array([[[0, 12_340]]], np.uint16)
    assert selection.to_depth(tenths, Facts(depth_scale=1e-4), "x").tolist() == [[[0, 1234]]]
    assert selection.to_depth(np.array([[[[0.0], [1.2344]]]]), Facts(), "x").tolist() == [[[0, 1234]]]
    with pytest.raises(InputError, match=r"x: depth reaches from 0 to 1234 metres.*depth_scale="):
        selection.to_depth(np.array([[[0.0, 1234.0]]]), Facts(), "x")


def test_only_columns_without_any_number_are_words(tmp_path: Path) -> None:
    """An empty cell in the first row must not shorten the action."""
    for episode in (0, 1):
        (tmp_path / f"rec/{episode}").mkdir(parents=True)
        rows = [f"{step},1,{'' if episode == step == 0 else 2},{note},open" for step, note in enumerate(["", "3"])]
        (tmp_path / f"rec/{episode}/steps.csv").write_text(
            "\n".join(["agent_pos.0,action.0,action.1,note,word", *rows])
        )
    source = opened("folder", tmp_path / "rec")
    assert source.offers["action"].shape == (2,) and "note" in source.offers
    assert source.lost == {"word": "a column of words"}
    with pytest.raises(InputError, match=r"0/steps\.csv: step 0: action\.1: expected a number, got ''"):
        read("folder", tmp_path / "rec", 0)
    assert read("folder", tmp_path / "rec", 1)["action"].tolist() == [[1, 2], [1, 2]]
    for key in ("success", "reward", "state.0", "camera_pose.3", "agent_position"):
        (tmp_path / "rec/0/steps.csv").write_text(f"agent_pos.0,action.0,{key}\n1,2,yes\n")
        assert not opened("folder", tmp_path / "rec").lost.get(key)


def test_what_only_other_episodes_have_is_told(tmp_path: Path) -> None:
    why = "the first episode has none, and a store holds what all have"
    write("folder", tmp_path / "rec", [steps_of(0), steps_of(1)])
    for name in ("color", "depth"):
        shutil.rmtree(tmp_path / "rec/episode_000000" / name)
    (tmp_path / "rec/episode_000000/point_cloud.npy").unlink()
    steps = tmp_path / "rec/episode_000000/steps.csv"
    steps.write_text(steps.read_text().replace("reward", "force"))
    (tmp_path / "rec/episode_000001/episode.json").write_text('{"task": "pour"}')
    source = opened("folder", tmp_path / "rec")
    assert source.lost.pop("task") == "episodes are of 2 tasks, and a store notes one of all"
    assert source.lost == dict.fromkeys(["depth", "image", "point_cloud", "reward"], why)
    assert source.facts.task is None
    assert opened("folder", tmp_path / "rec", episodes=1).lost == {}
    for name, file, episode in (
        ("robomimic", "recording.hdf5", "data/demo_1"),
        ("minari", "recording/data/main_data.hdf5", "episode_1"),
    ):
        write(name, path_of(name, tmp_path), [steps_of(0), steps_of(1)])
        with h5py.File(tmp_path / file, "a") as written:
            written[episode]["force"] = np.zeros(4)
        source = opened(name, path_of(name, tmp_path))
        assert source.lost["force"] == why
        source.close()


def test_groups_of_robomimic_that_are_not_read_are_told(tmp_path: Path) -> None:
    write("robomimic", tmp_path / "lift.hdf5", [steps_of(0)])
    with h5py.File(tmp_path / "lift.hdf5", "a") as file:
        file["data/demo_0/next_obs/agent_pos"] = np.zeros((4, 3))
    source = opened("robomimic", tmp_path / "lift.hdf5")
    assert source.lost["next_obs"] == "a group; only obs is read"
    source.close()


def test_colours_and_clouds_of_other_shapes_are_taken() -> None:
    pixels = np.arange(24, dtype=np.float32).reshape(1, 2, 4, 3)
    np.testing.assert_array_equal(selection.to_image(pixels, Facts(), "x"), np.moveaxis(pixels, -1, 1))
    with pytest.raises(InputError, match=r"expected whole numbers from 0 to 255, got 0 to 0\.5"):
        selection.to_image(np.array([0, 0.5] * 12).reshape(1, 2, 4, 3), Facts(), "x")
    clouds = np.arange(12, dtype=np.float64).reshape(1, 2, 6)
    np.testing.assert_array_equal(selection.to_points(clouds, Facts(), "x"), clouds[..., :3])
    for wrong in (np.zeros((2, 3, 64)), np.zeros((2, 64, 2)), np.zeros((2, 64))):
        with pytest.raises(InputError, match=r"x: expected clouds \(T, N, 3\).*write each point's numbers last"):
            selection.to_points(wrong, Facts(), "x")


def test_poses_that_are_none_are_refused() -> None:
    poses = np.stack([np.eye(4)] * 3)
    np.testing.assert_array_equal(selection._to_pose(poses.reshape(3, 16), Facts(), "x"), poses)
    poses[2, 0, 0] = 2
    with pytest.raises(InputError, match=r"x: expected a rotation and a position, .* at step 2"):
        selection._to_pose(poses, Facts(), "x")


# ---- files of the real libraries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_dp3_files_of_zarr_are_read(tmp_path: Path, version: Any) -> None:
    """As DP3's script for real robots writes them: state, depth in metres, clouds with colours, as float64."""
    random = np.random.default_rng(0)
    arrays = {
        "state": random.normal(size=(7, 3)).astype(np.float32),
        "action": random.normal(size=(7, 2)).astype(np.float32),
        "point_cloud": random.normal(size=(7, 4, 6)),
        "img": random.integers(0, 256, (7, 6, 8, 3)).astype(np.uint8),
    }
    root = zarr.open_group(tmp_path / "real.zarr", mode="w", zarr_format=version)
    for key, values in arrays.items():
        root.create_array(f"data/{key}", data=values, chunks=(3, *values.shape[1:]))
    root.create_array("meta/episode_ends", data=np.array([3, 7]))
    found = read("dp3", tmp_path / "real.zarr", 1)
    assert sorted(found) == ["action", "agent_pos", "image", "point_cloud"]
    np.testing.assert_array_equal(found["agent_pos"], arrays["state"][3:])
    np.testing.assert_array_equal(found["point_cloud"], arrays["point_cloud"][3:, :, :3].astype(np.float32))
    np.testing.assert_array_equal(found["image"], np.moveaxis(arrays["img"][3:], -1, 1))


def test_what_is_written_for_dp3_is_what_its_loader_expects(tmp_path: Path) -> None:
    episodes = [steps_of(0), steps_of(1, 6)]
    write("dp3", tmp_path / "out.zarr", episodes)
    root: Any = zarr.open(str(tmp_path / "out.zarr"), mode="r")
    ends = root["meta"]["episode_ends"][:]
    assert ends.tolist() == [4, 10] and ends.dtype == np.int64
    assert json.loads((tmp_path / "out.zarr/.zgroup").read_text()) == {"zarr_format": 2}
    for _, array in root["data"].arrays():
        assert array.shape[0] == ends[-1] and array.metadata.zarr_format == 2
    cloud, state, action = (root["data"][key][:] for key in ("point_cloud", "state", "action"))
    assert (cloud.dtype, state.dtype, action.dtype) == (np.float32,) * 3
    assert (cloud.shape, state.shape, action.shape) == ((10, 5, 3), (10, 3), (10, 2))
    np.testing.assert_array_equal(state[4:], episodes[1]["agent_pos"])
    assert root["data"]["img"].shape == (10, 6, 8, 3)


def test_a_zip_file_of_a_zarr_group_is_read(tmp_path: Path) -> None:
    """As diffusion_policy gives its data sets away."""
    episodes = [steps_of(0), steps_of(1, 6)]
    write("dp3", tmp_path / "whole", episodes)
    path = Path(shutil.make_archive(str(tmp_path / "demos.zarr"), "zip", tmp_path / "whole"))
    for number, episode in enumerate(episodes):
        assert_equal(read("dp3", path, number), episode)
    cut_file(path)
    with pytest.raises(InputError, match=r"demos\.zarr\.zip: is no Zarr group that can be read"):
        read("dp3", path)


def test_robomimic_files_are_read(tmp_path: Path) -> None:
    random, path = np.random.default_rng(0), tmp_path / "lift.hdf5"
    joints = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
    with h5py.File(path, "w") as file:
        for number in (0, 1, 10, 2):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = np.full((5, 7), float(number))
            demo["rewards"], demo["dones"] = np.zeros(5), np.zeros(5, int)
            for key, size in {**joints, "object": 10}.items():
                demo[f"obs/{key}"] = random.normal(size=(5, size))
            demo["obs/agentview_image"] = random.integers(0, 256, (5, 6, 8, 3)).astype(np.uint8)
            demo["obs/robot0_eye_in_hand_image"] = np.zeros((5, 6, 8, 3), np.uint8)
            demo.attrs["num_samples"], demo.attrs["model_file"] = 5, "<mujoco/>"
    source = opened("robomimic", path)
    assert list(source.episodes) == ["demo_0", "demo_1", "demo_2", "demo_10"]
    source.close()
    found = read("robomimic", path, 3, keys=["object"])
    assert found["action"][0, 0] == 10 and found["agent_pos"].shape == (5, 9) and found["object"].shape == (5, 10)
    assert sorted(found) == ["action", "agent_pos", "image", "object", "reward"]


def minari_buffer(number: int) -> Any:
    from minari.data_collector import EpisodeBuffer

    random, steps = np.random.default_rng(number), 4
    seen = {
        "joints": random.normal(size=(steps + 1, 3)).astype(np.float32),
        "camera": random.integers(0, 256, (steps + 1, 16, 16, 3)).astype(np.uint8),
    }
    actions = random.uniform(-1, 1, (steps, 2)).astype(np.float32)
    flags = [False] * steps
    return EpisodeBuffer(
        id=number, seed=number + 5, observations=seen, actions=actions, rewards=[1.0, 0.0, 2.0, 0.5],
        terminations=flags, truncations=[*flags[1:], True], infos={"success": [False, True, True, True, True]},
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("jpeg", [False, True])
def test_minari_s_own_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jpeg: bool) -> None:
    import minari
    from gymnasium import spaces

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    seen = spaces.Dict({"joints": spaces.Box(-9, 9, (3,)), "camera": spaces.Box(0, 255, (16, 16, 3), np.uint8)})
    buffers = [minari_buffer(number) for number in range(2)]
    minari.create_dataset_from_buffers(
        "toy/cup-v0", buffers, observation_space=seen, action_space=spaces.Box(-1, 1, (2,)), jpeg_encoding=jpeg,
        algorithm_name="none", author="nobody", author_email="nobody", code_permalink="none", description="toy",
    )  # fmt: skip
    found = read("minari", tmp_path / "toy/cup-v0", 1, agent_pos=["observations/joints"])
    np.testing.assert_array_equal(found["agent_pos"], buffers[1].observations["joints"][:-1])
    np.testing.assert_array_equal(found["action"], buffers[1].actions)
    assert found["reward"].tolist() == [1, 0, 2, 0.5] and found["success"].tolist() == [1, 1, 1, 1]
    pixels = np.moveaxis(buffers[1].observations["camera"][:-1], -1, 1)
    assert found["image"].shape == pixels.shape
    assert jpeg or (found["image"] == pixels).all()
    assert opened("minari", tmp_path / "toy/cup-v0", agent_pos=["x"]).outcomes(1)["seed"] == 6


def test_minari_opens_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    episode = steps_of(0)
    write("minari", tmp_path / "cup-v0", [episode, steps_of(1, 6, SPECIFICATION)])
    dataset = minari.load_dataset("cup-v0")
    first = next(iter(dataset))
    assert dataset.total_episodes == 2 and dataset.total_steps == 10
    np.testing.assert_array_equal(first.actions, episode["action"])
    np.testing.assert_array_equal(first.rewards, episode["reward"])
    np.testing.assert_array_equal(first.observations["agent_pos"][:-1], episode["agent_pos"])
    assert dataset.observation_space["depth"].contains(first.observations["depth"][0])


# ---- what is damaged, or not what it should be ---------------------------------------------------------------------


def folder(path: Path) -> Path:
    write("folder", path, [steps_of(0), steps_of(1)])
    return path / "episode_000001"


def cut_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_each_fault_of_a_folder_is_named(tmp_path: Path) -> None:
    whole = folder(tmp_path / "whole")
    line = (whole / "steps.csv").read_text().splitlines()[2]

    def told(break_it: Any, match: str) -> None:
        shutil.rmtree(tmp_path / "broken", ignore_errors=True)
        shutil.copytree(whole.parent, tmp_path / "broken")
        break_it(tmp_path / "broken/episode_000001")
        assert_equal(read("folder", tmp_path / "broken", 0), steps_of(0))
        with pytest.raises(InputError, match=match):
            read("folder", tmp_path / "broken", 1)

    eight = np.zeros((6, 8), np.uint8)
    told(lambda at: (at / "steps.csv").unlink(), r"episode_000001/steps\.csv: is missing")
    told(lambda at: replaced(at / "steps.csv", line, line[:30]), r"steps\.csv: step 1 has \d+ values of 11; was it cut")
    told(lambda at: replaced(at / "steps.csv", line, "x" + line), r"step 1: action\.0: expected a number, got 'x")
    told(lambda at: replaced(at / "steps.csv", line, "nan," + line.partition(",")[2]), r"action: NaN .* at step 1")
    told(
        lambda at: replaced(at / "steps.csv", "action.0", "acts"),
        r"expected 2 columns of action, .*got \['action\.1'\]",
    )
    told(
        lambda at: (at / "depth/000002.png").unlink(), r"depth: expected as many images as rows in steps\.csv, 4, got 3"
    )
    told(lambda at: cut_file(at / "color/000002.png"), r"color/000002\.png: cannot be read whole")
    told(lambda at: (at / "depth/000000.png").write_bytes(b"no"), r"depth/000000\.png: is no image")
    told(
        lambda at: Image.fromarray(eight).save(at / "depth/000001.png"),
        r"expected an image of 16 bit in grey, got mode L",
    )
    told(lambda at: cut_file(at / "point_cloud.npy"), r"point_cloud\.npy: is no array of numbers, or cut")
    told(lambda at: np.save(at / "point_cloud.npy", np.array([{}]), allow_pickle=True), r"no array of numbers")
    told(lambda at: replaced(at / "camera.json", "0.2", "0.3"), r"camera\.json: another camera, or another place")
    told(lambda at: replaced(at / "camera.json", "{", "["), r"camera\.json: not valid JSON")
    told(lambda at: replaced(at / "episode.json", "10.0", "20.0"), r"episode\.json: rate: 20 .* the first .* tells 10")
    told(
        lambda at: replaced(
            at / "steps.csv", "agent_pos.shoulder,agent_pos.elbow", "agent_pos.elbow,agent_pos.shoulder"
        ),
        r"expected 3 columns of agent_pos, \['agent_pos\.shoulder', .* as in the first .*, got \['agent_pos\.elbow'",
    )
    (whole / "episode.json").write_text('{"seed": 1.5}')
    with pytest.raises(InputError, match=r"episode_000001/episode\.json: seed: expected a whole number, got 1\.5"):
        opened("folder", whole.parent).outcomes(1)


def test_an_image_that_claims_to_be_huge_is_not_read(tmp_path: Path) -> None:
    episode = folder(tmp_path / "rec")
    Image.new("I;16", (5000, 1)).save(episode / "depth/000000.png")
    with pytest.raises(InputError, match=r"claims 5000 x 1 pixels; at most 4096 are read"):
        read("folder", tmp_path / "rec", 1)


def test_each_fault_of_a_zarr_group_is_named(tmp_path: Path) -> None:
    write("dp3", tmp_path / "whole.zarr", [steps_of(0), steps_of(1)])

    def told(break_it: Any, match: str) -> None:
        shutil.rmtree(tmp_path / "broken.zarr", ignore_errors=True)
        shutil.copytree(tmp_path / "whole.zarr", tmp_path / "broken.zarr")
        break_it(tmp_path / "broken.zarr")
        with pytest.raises(InputError, match=match):
            read("dp3", tmp_path / "broken.zarr", 1)

    def grown(at: Path) -> None:
        zarr.open_group(at)["meta/episode_ends"][:] = [4, 99]  # type: ignore[index]

    def pickled(at: Path) -> None:
        array = zarr.create_array(
            at / "data/more", shape=(8,), dtype="i4", zarr_format=2, filters=[numcodecs.Pickle()], overwrite=True
        )
        assert array.shape == (8,)

    told(lambda at: shutil.rmtree(at / "meta"), r"meta/episode_ends is missing, or its header is damaged")
    told(
        lambda at: cut_file(at / "data/depth/0.0.0"), r"episode 1: data/depth: chunk 0\.0\.0 holds \d+ bytes instead of"
    )
    told(lambda at: (at / "data/action/.zarray").write_text("{"), r"data/action is missing, or its header is damaged")
    told(grown, r"episode 1: data/\w+: holds 8 rows, but this episode ends at row 99")
    told(lambda at: shutil.rmtree(at / "data/action"), r"action: the recording has none by that name")
    with pytest.raises(InputError, match=r"nothing is there; name a folder such as demos\.zarr"):
        read("dp3", tmp_path / "none.zarr")


def test_each_fault_of_meta_is_named(tmp_path: Path) -> None:
    write("dp3", tmp_path / "whole.zarr", [steps_of(0), steps_of(1)])

    def told(break_it: Any, match: str) -> None:
        shutil.rmtree(tmp_path / "broken.zarr", ignore_errors=True)
        shutil.copytree(tmp_path / "whole.zarr", tmp_path / "broken.zarr")
        break_it(tmp_path / "broken.zarr/meta")
        with pytest.raises(InputError, match=match):
            opened("dp3", tmp_path / "broken.zarr")

    def reshaped(at: Path, shape: list[int], chunks: list[int]) -> None:
        header = json.loads((at / "episode_ends/.zarray").read_text())
        (at / "episode_ends/.zarray").write_text(json.dumps({**header, "shape": shape, "chunks": chunks}))

    told(lambda at: cut_file(at / "episode_ends/0"), r"meta/episode_ends: chunk 0 holds \d+ bytes instead of")
    told(lambda at: (at / "episode_ends/0").write_bytes(b""), r"meta/episode_ends: chunk 0 holds 0 bytes")
    told(lambda at: reshaped(at, [10**13], [100]), r"meta/episode_ends: claims 80000000000000 bytes")
    told(
        lambda at: reshaped(at, [2, 1], [2, 1]), r"meta/episode_ends: expected one number of each episode, got \(2, 1\)"
    )
    told(lambda at: cut_file(at / "seed/0"), r"meta/seed: chunk 0 holds \d+ bytes instead of")


def zipped(folder: Path, path: Path) -> Path:
    """A zip file of a folder, its files packed, as most programs write one."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for each in sorted(folder.rglob("*")):
            if each.is_file():
                file.write(each, each.relative_to(folder))
    return path


def test_each_fault_of_a_zip_file_is_an_input_error(tmp_path: Path) -> None:
    write("dp3", tmp_path / "whole", [steps_of(0), steps_of(1)])
    chunk = tmp_path / "whole/data/depth/0.0.0"
    whole = chunk.read_bytes()
    for first, told in ((4, "unpacks to 1000000000 bytes"), (12, r"holds \d+ bytes instead of 1000000000")):
        chunk.write_bytes(whole[:first] + (10**9).to_bytes(4, "little") + whole[first + 4 :])
        with pytest.raises(InputError, match=rf"data/depth: chunk 0\.0\.0 {told}"):
            read("dp3", zipped(tmp_path / "whole", tmp_path / "demos.zarr.zip"))
    chunk.write_bytes(whole)
    path = zipped(tmp_path / "whole", tmp_path / "demos.zarr.zip")
    content, random = path.read_bytes(), np.random.default_rng(0)
    with zipfile.ZipFile(path) as file:
        packed = [member.header_offset + 70 for member in file.infolist()]  # behind each name
    for place in [*packed, *random.integers(0, len(content), 60)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            read("dp3", path)


def test_arrays_of_a_zarr_group_that_are_no_numbers_are_lost(tmp_path: Path) -> None:
    path = tmp_path / "rec.zarr"
    episode = steps_of(0, 4, [*ALONE, "depth"])
    write("dp3", path, [episode])
    header = json.loads((path / "data/depth/.zarray").read_text())

    def add(key: str, **changes: Any) -> None:
        (path / "data" / key).mkdir(exist_ok=True)
        (path / "data" / key / ".zarray").write_text(json.dumps({**header, **changes}))

    add("words", dtype="|S10", fill_value=None)
    add("img", compressor={"id": "imagecodecs_jpegxl"})
    add("odd", chunks=[1])
    (path / "data/more").mkdir()
    (path / "data/more/.zgroup").write_text('{"zarr_format": 2}')
    source = opened("dp3", path)
    assert source.lost["words"].startswith("data/words: expected numbers in plain codecs, got |S10")
    assert source.lost["img"].startswith("data/img: is packed in a way that is not read (codec not available")
    assert source.lost["odd"].startswith("data/odd is missing, or its header is damaged")
    assert source.lost["more"] == "data/more: expected an array, got a group."
    assert_equal(read("dp3", path), episode)
    assert_equal(read("dp3", path, leave_out=["words", "img", "odd", "more"]), episode)
    with pytest.raises(InputError, match=r"data/img: is packed in a way that is not read"):
        opened("dp3", path, image="img")
    add("depth", chunks=[1])
    with pytest.raises(InputError, match=r"data/depth is missing, or its header is damaged"):
        opened("dp3", path)
    assert_equal(read("dp3", path, leave_out=["depth"]), {key: episode[key] for key in ALONE})


def test_a_zarr_filter_that_would_run_code_is_refused(tmp_path: Path) -> None:
    write("dp3", tmp_path / "bad.zarr", [steps_of(0)])
    header = json.loads((tmp_path / "bad.zarr/data/action/.zarray").read_text())
    header |= {"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}], "fill_value": None}
    (tmp_path / "bad.zarr/data/action/.zarray").write_text(json.dumps(header))
    with pytest.raises(InputError, match=r"data/action"):
        read("dp3", tmp_path / "bad.zarr")
    header |= {"dtype": "<f4"}
    (tmp_path / "bad.zarr/data/action/.zarray").write_text(json.dumps(header))
    with pytest.raises(InputError, match=r"data/action"):
        read("dp3", tmp_path / "bad.zarr")


def test_each_fault_of_an_hdf5_file_is_named(tmp_path: Path) -> None:
    write("robomimic", tmp_path / "whole.hdf5", [steps_of(0), steps_of(1)])

    def told(break_it: Any, match: str) -> None:
        path = tmp_path / "broken.hdf5"
        shutil.copy(tmp_path / "whole.hdf5", path)
        with h5py.File(path, "a") as file:
            break_it(file["data/demo_1"])
        with pytest.raises(InputError, match=match):
            read("robomimic", path, 1)

    def another(demo: h5py.Group, key: str, values: Any) -> None:
        del demo[key]
        demo[key] = values

    def claim(demo: h5py.Group) -> None:
        del demo["actions"]
        demo.create_dataset("actions", (2**30, 2), "f4", chunks=(1024, 2))

    told(lambda demo: demo.__delitem__("actions"), r"/data/demo_1 has no actions")
    told(lambda demo: another(demo, "actions", np.zeros((3, 2))), r"episode 1: expected as many steps of each key")
    told(lambda demo: another(demo, "actions", np.full((4, 2), np.nan)), r"actions: NaN or infinity at step 0")
    told(
        lambda demo: another(demo, "actions", h5py.ExternalLink("other.hdf5", "/x")), r"ExternalLink instead of actions"
    )
    told(lambda demo: another(demo, "actions", [b"word"] * 4), r"actions: expected numbers, got")
    told(claim, r"actions: claims \d+ bytes, more than any episode has")
    cut_file(tmp_path / "whole.hdf5")
    with pytest.raises(InputError, match=r"whole\.hdf5 is damaged or not a dataset of plain arrays"):
        read("robomimic", tmp_path / "whole.hdf5")


def test_facts_of_ours_are_not_taken_on_trust() -> None:
    for values in ([], {"names": {"action": [1]}}, {"keys": 3}, {"task": 3}, {"rate": -1}, {"camera": {"pose": 3}}):
        with pytest.raises(InputError, match=r"^file: "):
            Facts.from_dict(values, "file")
    with pytest.raises(InputError, match=r"file: camera: expected an object with intrinsics, .*, got 'D435'"):
        Facts.from_dict({"camera": "D435"}, "file")
    assert Facts.from_dict(FACTS.to_dict(), "file").to_dict() == FACTS.to_dict()


def test_minari_files_of_ours_and_damaged_ones(tmp_path: Path) -> None:
    shipped = PACKAGE / "collection/demonstrations/adroit_door"
    found = read("minari", shipped)
    assert sorted(found) == ["action", "agent_pos", "reward"] and found["agent_pos"].shape[1:] == (39,)
    with pytest.raises(InputError, match=r"metadata\.json: file is missing"):
        read("minari", tmp_path)
    shutil.copytree(shipped, tmp_path / "door")
    cut_file(tmp_path / "door/data/main_data.hdf5")
    with pytest.raises(InputError, match=r"main_data\.hdf5 is damaged or not a dataset of plain arrays"):
        read("minari", tmp_path / "door")
    replaced(tmp_path / "door/data/metadata.json", '"hdf5"', '"arrow"')
    with pytest.raises(InputError, match=r"expected a Minari dataset of data_format hdf5"):
        read("minari", tmp_path / "door")
