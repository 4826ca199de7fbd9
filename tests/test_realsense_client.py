"""The client example: on a recorded folder, on a store, and with a camera that says what a RealSense says."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from toy_env import config
from toy_serving import CLOUDS, INTRINSICS, POSE, depth_frames, frames, make_served, serving

pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from sodp3d.core.errors import InputError
from sodp3d.core.paths import CHECKOUT
from sodp3d.serving.client import PolicyClient

assert CHECKOUT is not None
STEPS = 6
DEPTH, JOINTS = depth_frames(STEPS), frames(CLOUDS, STEPS)["agent_pos"]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    specification = util.spec_from_file_location("realsense_client", CHECKOUT / "examples" / "realsense_client.py")
    assert specification is not None and specification.loader is not None
    module = util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(make_served(CLOUDS), max_age=5) as server:
        yield server.url


def record(folder: Path, numbered: str = "06d", steps: int = STEPS) -> Path:
    (folder / "depth").mkdir(parents=True)
    for step in range(steps):
        imageio.imwrite(folder / "depth" / f"{step:{numbered}}.png", DEPTH[step % STEPS])
    lines = [
        "step,agent_pos.0,agent_pos.1,agent_pos.2",
        *(f"{i}," + ",".join(map(str, JOINTS[i % STEPS])) for i in range(steps)),
    ]
    (folder / "steps.csv").write_text("\n".join(lines) + "\n")
    (folder / "camera.json").write_text(json.dumps({"intrinsics": INTRINSICS.tolist(), "pose": POSE.tolist()}))
    return folder


def first_action(url: str, seed: int) -> np.ndarray:
    """What the server plans for the first frame."""
    with PolicyClient(url) as client:
        client.reset(seed)
        shown = {"depth": DEPTH[0], "agent_pos": JOINTS[0], "intrinsics": INTRINSICS, "camera_pose": POSE}
        answer: np.ndarray = client.infer(shown, timestamp=client.now())["actions"][0]
        return answer


def test_recorded_frames_give_an_action_each(
    example: ModuleType, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = record(tmp_path / "cup")
    assert example.main([url, "--frames", str(folder), "--rate", "0", "--seed", "3"]) == 0
    captured = capsys.readouterr()
    actions = np.array([line.split(",") for line in captured.out.splitlines()], float)
    assert actions.shape == (STEPS, 2) and "came too late: " in captured.err
    np.testing.assert_allclose(actions[0], first_action(url, 3), atol=1e-5)


def test_frames_of_a_store_are_the_same(example: ModuleType, tmp_path: Path) -> None:
    from sodp3d.data.store import EpisodeStore

    specification = {"depth": ((16, 24), "uint16"), "agent_pos": ((3,), "float32"), "action": ((2,), "float32")}
    specification |= {"reward": ((), "float32"), "success": ((), "uint8")}
    camera = {"intrinsics": INTRINSICS.tolist(), "pose": POSE.tolist(), "height": 16, "width": 24}
    described = dataclasses.asdict(config("adroit_door"))
    attributes = {"env": "cup", "env_config": described, "camera": camera, "renderer": "camera"}
    outcome = {"episode_return": 0.0, "success_final": False, "success_count": False, "success_any": False}
    zeros = {"action": np.zeros((STEPS, 2), np.float32), "reward": np.zeros(STEPS, np.float32)}
    with EpisodeStore.create(tmp_path / "episodes.zarr", attributes, specification) as store:
        episode = {"depth": DEPTH, "agent_pos": JOINTS, **zeros, "success": np.zeros(STEPS, np.uint8)}
        store.append(episode, {"seed": 0, "agent_step": 0, **outcome})
    recorded = list(example.folder_frames(record(tmp_path / "cup")))
    stored = list(example.store_frames(tmp_path, 0))
    record(tmp_path / "several" / "episode_000001")
    assert len(list(example.folder_frames(tmp_path / "several", 1))) == STEPS
    with pytest.raises(InputError, match=r"--episode: .* has 1 episodes, counted from 0, got 99"):
        next(example.store_frames(tmp_path, 99))
    assert len(stored) == len(recorded) == STEPS
    for one, other in zip(stored, recorded, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_allclose(one[key], other[key], atol=1e-6)


def test_a_camera_s_own_units_become_millimetres(
    example: ModuleType, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names are RealSense's; this camera counts in tenths of a millimetre."""
    raw = iter(DEPTH.astype(np.int64) * 10)
    lens = SimpleNamespace(fx=20.0, fy=20.0, ppx=11.5, ppy=7.5)
    stream = SimpleNamespace(as_video_stream_profile=lambda: SimpleNamespace(get_intrinsics=lambda: lens))
    device = SimpleNamespace(first_depth_sensor=lambda: SimpleNamespace(get_depth_scale=lambda: 1e-4))
    stopped: list[bool] = []
    started: list[Any] = []

    class Pipeline:
        def start(self, wanted: Any) -> Any:
            return SimpleNamespace(get_device=lambda: device, get_stream=lambda kind: stream)

        def wait_for_frames(self) -> Any:
            frame = SimpleNamespace(get_data=lambda: next(raw))
            return SimpleNamespace(get_depth_frame=lambda: frame)

        def stop(self) -> None:
            stopped.append(True)

    class Config:
        def enable_stream(self, *what: Any) -> None:
            started.append(what)

    class Robot:
        def __init__(self) -> None:
            self.seen, self.sent = iter(JOINTS.tolist()), list[np.ndarray]()

        def joints(self) -> list[float]:
            return next(self.seen)

        def send(self, action: np.ndarray) -> None:
            self.sent.append(action)

    names = {"stream": SimpleNamespace(depth="depth"), "format": SimpleNamespace(z16="z16")}
    monkeypatch.setitem(sys.modules, "pyrealsense2", SimpleNamespace(pipeline=Pipeline, config=Config, **names))
    robot = Robot()
    monkeypatch.setitem(sys.modules, "my_robot", SimpleNamespace(connect=lambda: robot))
    camera = record(tmp_path / "cup") / "camera.json"
    options = ["--robot", "my_robot:connect", "--camera", str(camera), "--size", "24", "16"]
    assert example.main([url, *options, "--steps", "4", "--rate", "0", "--seed", "3"]) == 0
    assert started == [("depth", 24, 16, "z16", 30)] and stopped == [True] and len(robot.sent) == 4
    np.testing.assert_allclose(robot.sent[0], first_action(url, 3), atol=1e-6)


def test_the_names_are_those_of_the_real_package() -> None:
    realsense = pytest.importorskip("pyrealsense2")
    for owner, names in {
        realsense.pipeline: ("start", "stop", "wait_for_frames"),
        realsense.config: ("enable_stream",),
        realsense.pipeline_profile: ("get_device", "get_stream"),
        realsense.device: ("first_depth_sensor",),
        realsense.depth_sensor: ("get_depth_scale",),
        realsense.stream_profile: ("as_video_stream_profile",),
        realsense.video_stream_profile: ("get_intrinsics",),
        realsense.intrinsics: ("fx", "fy", "ppx", "ppy"),
        realsense.composite_frame: ("get_depth_frame",),
        realsense.depth_frame: ("get_data",),
    }.items():
        assert not [name for name in names if not hasattr(owner, name)]
    assert realsense.stream.depth and realsense.format.z16


def test_mistakes_are_one_line(
    example: ModuleType, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example.main([url]) == 2 and "--robot: name it" in capsys.readouterr().err
    assert example.main(["ws://127.0.0.1:1", "--frames", str(tmp_path)]) == 2
    assert "error: server: cannot connect to ws://127.0.0.1:1" in capsys.readouterr().err
    assert example.main([url, "--frames", str(tmp_path)]) == 2
    assert "--frames: there is no" in capsys.readouterr().err
    assert example.main([url, "--robot", "no_such_module:connect"]) == 2
    assert "--robot: expected module:function" in capsys.readouterr().err
    folder = record(tmp_path / "cup")
    (folder / "depth" / "000000.png").unlink()
    assert example.main([url, "--frames", str(folder)]) == 2
    assert "cup/depth: expected as many images as rows in steps.csv, 6, got 5" in capsys.readouterr().err
    assert example.main([url, "--frames", str(folder), "--episode", "3"]) == 2
    assert "--episode: " in capsys.readouterr().err


def test_frames_are_those_that_an_import_reads(example: ModuleType, tmp_path: Path) -> None:
    """Units of depth, names without zeros before them, a mark at the beginning of the table, one camera for all."""
    several = tmp_path / "cups"
    folder = record(several / "cup_10", "d", 12)
    record(several / "cup_9")
    (several / "cup_9/camera.json").unlink()
    camera = json.loads((folder / "camera.json").read_text())
    (folder / "camera.json").unlink()
    (several / "camera.json").write_text(json.dumps({**camera, "depth_scale": 0.002}))
    table = (folder / "steps.csv").read_text()
    (folder / "steps.csv").write_text("\ufeff" + without_first_column(table), encoding="utf-8")
    found = list(example.folder_frames(several, 1))
    assert len(found) == 12
    np.testing.assert_array_equal([each["agent_pos"] for each in found], JOINTS[np.arange(12) % STEPS])
    doubled = DEPTH[np.arange(12) % STEPS] * 2
    np.testing.assert_array_equal([each["depth"] for each in found], doubled)
    np.testing.assert_array_equal(found[0]["camera_pose"], POSE)


def test_frames_of_a_moving_camera_have_a_pose_each(example: ModuleType, tmp_path: Path) -> None:
    folder = record(tmp_path / "cup")
    camera = json.loads((folder / "camera.json").read_text())
    (folder / "camera.json").write_text(json.dumps({**camera, "pose": None}))
    with pytest.raises(InputError, match=r"--frames: there is no .*camera\.json with pose, nor columns camera_pose\.0"):
        next(example.folder_frames(folder))
    with pytest.raises(InputError, match=r"camera\.json: pose: expected 4 x 4 numbers, .* got None"):
        example.read_pose(folder / "camera.json")
    poses = np.random.default_rng(0).normal(size=(STEPS, 16))
    head, *rows = (folder / "steps.csv").read_text().splitlines()
    lines = [",".join([head, *(f"camera_pose.{place}" for place in range(16))])]
    lines += [",".join([row, *map(str, pose)]) for row, pose in zip(rows, poses.tolist(), strict=True)]
    (folder / "steps.csv").write_text("\n".join(lines) + "\n")
    found = [each["camera_pose"] for each in example.folder_frames(folder)]
    np.testing.assert_array_equal(found, poses.reshape(STEPS, 4, 4))


def without_first_column(table: str) -> str:
    return "\n".join(line.partition(",")[2] for line in table.splitlines()) + "\n"
