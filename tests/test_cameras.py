"""Cameras that cannot see, and cameras that move."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_env import config

from sodp3d.collection.collect import open_store
from sodp3d.collection.environments import CollectionGroup
from sodp3d.collection.loop import metadata
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.data.conversion import convert_store
from sodp3d.data.redraw import render_depth
from sodp3d.data.store import EpisodeStore
from sodp3d.data.views import require_same_view
from sodp3d.envs import EnvConfig, RobotEnv, make_env
from sodp3d.envs.base import compile_model
from sodp3d.envs.wrappers import ChunkedEnv
from sodp3d.rollouts.group import EnvironmentGroup
from sodp3d.vision.camera import POSE, Camera, CameraConfig
from sodp3d.vision.pointcloud import Converter, CropConfig, unproject
from sodp3d.vision.sensors import sensor
from sodp3d.vision.simulator import mujoco

SMALL = ("env.camera.height=16", "env.camera.width=16", "env.points=16", "env.episode_steps=2")


def seen_by(task: EnvConfig, **changes: Any) -> EnvConfig:
    return replace(task, camera=replace(task.camera, **changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": ""}, r"env\.camera\.name: expected a name"),
        ({"fovy": 180.0}, r"env\.camera\.fovy: .* between 0 and 180, got 180"),
        ({"fovy": -45.0}, r"env\.camera\.fovy: .* between 0 and 180, got -45"),
        ({"fovy": float("nan")}, r"env\.camera\.fovy: .* got nan"),
        ({"quaternion": (0.0, 0.0, 0.0, 1e-9)}, r"env\.camera\.quaternion: expected four numbers, not all 0"),
        ({"quaternion": (1.0, 0.0, 0.0, float("nan"))}, r"env\.camera\.quaternion: .* all finite"),
        ({"height": 0}, r"env\.camera\.height: .* from 1 to 4096, got 0"),
        ({"width": 4097}, r"env\.camera\.width: .* from 1 to 4096, got 4097"),
    ],
)
def test_a_camera_that_cannot_see_is_refused_by_key(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        seen_by(config("adroit_door"), **changes)


def test_more_pixels_than_opengl_draws_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env(seen_by(config("adroit_door"), height=700), "auto")
    if env.renderer_name == "raycast":
        pytest.skip("no OpenGL on this machine")
    env.reset(seed=0)

    def fails(*_: Any) -> None:
        raise mujoco.FatalError("Offscreen framebuffer is not complete, error 0x8cdd")

    with monkeypatch.context() as patched:
        patched.setattr(mujoco, "mjr_resizeOffscreen", fails)
        with pytest.raises(InputError, match=r"env\.camera\.height, .* cannot draw 700 x 84 pixels .* not complete"):
            env.render_depth()
    assert np.count_nonzero(env.render_depth()) > 0.5 * 700 * 84


def test_images_that_show_next_to_nothing_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    upwards = seen_by(config("adroit_door", *SMALL), quaternion=(0.0, 1.0, 0.0, 0.0))
    group, silent = CollectionGroup(upwards, "raycast"), CollectionGroup(upwards, "raycast")
    group.describe()  # asked of one worker of all
    for each in (group, silent):
        for seed in (3, 4):
            each.reset([seed], record=True)
            for _ in range(2):
                each.step(np.zeros((1, 28), np.float32))
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "adroit_door: 100.0 % of the depth image at step 0 of the episode of seed 3 show nothing" in told
    assert "env.camera" in told


OWN = """<mujoco><worldbody>
  <camera name="sensor" pos="0 0 2" sensorsize="0.0036 0.0024" focal="0.003 0.003" resolution="640 480"/>
  <camera name="flat" pos="0 0 2" orthographic="true"/><geom size="0.1"/>
</worldbody></mujoco>"""


def test_a_models_own_camera_has_the_field_of_view_that_was_asked_for() -> None:
    """Rays, images and the matrix that clouds are made with go by one `fovy`, whatever sensor the model gives it."""
    asked = CameraConfig("sensor", None, None, 45.0, 24, 32)
    model = compile_model(mujoco.MjSpec.from_string(OWN), asked)
    camera = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "sensor")
    assert model.cam_fovy[camera] == 45 and not model.cam_sensorsize[camera].any()
    with pytest.raises(InputError, match=r"env\.camera\.name: camera 'flat' is orthographic"):
        compile_model(mujoco.MjSpec.from_string(OWN), replace(asked, name="flat"))


# ---- cameras that move ----------------------------------------------------------------------------------------------

STEPS = 24
EVERYTHING = CropConfig((-10.0,) * 3, (10.0,) * 3)
FIXED = replace(
    config("metaworld", "env.task=reach", f"env.episode_steps={STEPS}", "env.points=64", "env.camera.height=32",
           "env.camera.width=32"),
    crop=EVERYTHING,
)  # fmt: skip
WRIST = seen_by(FIXED, name="gripperPOV", position=None, quaternion=None)
ACTIONS = np.tile(np.float32([1.0, 1.0, 0.3, 0.0]), (STEPS, 1))  # away from where it began


def distance(cloud: np.ndarray, env: RobotEnv) -> float:
    """Of the cloud's farthest point from the surface that the camera sees now, metres."""
    surface = unproject(env.render_depth(), env.camera_parameters())
    return max(float(np.linalg.norm(surface - point, axis=1).min()) for point in cloud)


def make_wrist_store(folder: Path, task: EnvConfig = WRIST) -> Path:
    group = CollectionGroup(task, "raycast")
    facts = group.describe()
    with open_store(folder, task, facts, compose("collect", ["env=metaworld"])) as store:
        group.reset([5], record=True)
        for action in ACTIONS:
            _, (finished,) = group.step(action[None])
        assert finished is not None
        store.append(finished.steps, metadata(finished, STEPS))
    return folder / "episodes.zarr"


@pytest.fixture(scope="module")
def wrist_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One episode seen from the wrist, with clouds."""
    path = make_wrist_store(tmp_path_factory.mktemp("wrist"))
    convert_store(path, WRIST)
    return path


@pytest.mark.parametrize("camera", ["gripperPOV", "behindGripper"])
def test_clouds_of_a_camera_that_moves_lie_on_the_surface_at_every_step(camera: str) -> None:
    env = make_env(seen_by(WRIST, name=camera), "raycast")
    chunks = ChunkedEnv(env, "pointcloud")
    observation, _ = chunks.reset(seed=5)
    start = env.camera_pose()
    for chunk in range(STEPS // 8):
        assert distance(observation["point_cloud"][-1], env) < 0.005
        observation, *_ = chunks.step(ACTIONS[8 * chunk : 8 * chunk + 8])
    assert np.linalg.norm(env.camera_pose()[:3, 3] - start[:3, 3]) > 0.05, "the camera has hardly moved"


def test_a_store_keeps_the_poses_and_its_clouds_lie_on_the_surface_at_every_step(wrist_store: Path) -> None:
    store, env = EpisodeStore.open(wrist_store), make_env(WRIST, "raycast")
    assert store.field(POSE) == ((4, 4), "float64") and store.attributes["camera"]["pose"] is None
    states, poses, clouds = (store.read(key) for key in ("sim_state", POSE, "point_cloud"))
    for state, pose, cloud in zip(states, poses, clouds, strict=True):
        env.set_state(state)
        np.testing.assert_array_equal(pose, env.camera_pose())
        assert distance(cloud, env) < 0.005
    require_same_view(store, sensor("pointcloud"), WRIST)


@pytest.mark.parametrize("backend", ["open3d", "torch"])
def test_roll_outs_see_what_the_store_holds(wrist_store: Path, backend: str) -> None:
    clouds = EpisodeStore.open(wrist_store).read("point_cloud")
    group = EnvironmentGroup(WRIST, "pointcloud", "raycast", backend)
    seen = group.reset([5])
    np.testing.assert_array_equal(seen["point_cloud"][0], clouds[[0, 0]])
    for chunk in range(STEPS // 8 - 1):
        seen = group.step([0], ACTIONS[None, 8 * chunk : 8 * chunk + 8])["observation"]
        assert seen.keys() == {"agent_pos", "point_cloud"}
        np.testing.assert_array_equal(seen["point_cloud"][0], clouds[8 * chunk + 7 : 8 * chunk + 9])


def test_depth_drawn_again_from_the_wrist_and_back(wrist_store: Path, tmp_path: Path) -> None:
    source = EpisodeStore.open(wrist_store)
    render_depth(wrist_store, tmp_path / "fixed.zarr", FIXED)
    fixed = EpisodeStore.open(tmp_path / "fixed.zarr")
    assert POSE not in fixed.keys and fixed.attributes["camera"]["pose"] is not None
    render_depth(tmp_path / "fixed.zarr", tmp_path / "back.zarr", WRIST)
    back = EpisodeStore.open(tmp_path / "back.zarr")
    assert set(back.specification) == set(source.specification)
    for key in source.specification:
        np.testing.assert_array_equal(back.read(key), source.read(key))


def test_stores_of_fixed_cameras_are_as_before(tmp_path: Path) -> None:
    store = EpisodeStore.open(make_wrist_store(tmp_path, FIXED))
    assert set(store.keys) == {"action", "state", "agent_pos", "reward", "success", "depth", "sim_state"}
    assert np.shape(store.attributes["camera"]["pose"]) == (4, 4)


def test_a_store_of_a_moving_camera_without_poses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(RobotEnv, "camera_moves", False)  # what was thought of every camera
        path = make_wrist_store(tmp_path)
    told = r"camera 'gripperPOV' moves, .* no data/camera_pose\. Draw its depth again.*again=depth"
    with pytest.raises(InputError, match=told):
        convert_store(path, WRIST)
    with monkeypatch.context() as earlier:
        earlier.setattr(RobotEnv, "camera_moves", False)
        convert_store(path, WRIST)
    with pytest.raises(InputError, match=told):
        require_same_view(EpisodeStore.open(path), sensor("pointcloud"), WRIST)
    render_depth(path, tmp_path / "again.zarr", WRIST)
    convert_store(tmp_path / "again.zarr", WRIST)


@pytest.mark.parametrize("backend", ["open3d", "torch"])
def test_each_frame_has_its_own_pose(backend: str) -> None:
    camera = Camera(np.array([[8.0, 0, 3.5], [0, 8.0, 3.5], [0, 0, 1]]), None, 8, 8)
    assert Camera.from_dict(camera.to_dict()).pose is None
    depth = np.random.default_rng(0).integers(500, 900, (40, 8, 8)).astype(np.uint16)
    poses = np.tile(np.eye(4), (40, 1, 1))
    poses[:, 0, 3] = np.linspace(-1, 1, 40)
    converter = Converter(camera, EVERYTHING, 16, backend)
    clouds, _ = converter.convert(depth, poses)
    for index in (0, 13, 39):
        alone, _ = Converter(replace(camera, pose=poses[index]), EVERYTHING, 16, backend).convert(depth[[index]])
        np.testing.assert_array_equal(clouds[index], alone[0])
    for wrong in (poses[:3], 2 * poses, np.full_like(poses, np.nan), poses * [[-1], [1], [1], [1]]):
        with pytest.raises(InputError, match="camera_pose: expected"):
            converter.convert(depth, wrong)
    with pytest.raises(InputError, match="it moves, so it has no pose of its own"):
        converter.convert(depth)
