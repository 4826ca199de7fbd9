"""Drive a robot by a served planner, with a RealSense depth camera; or look at what it would do on recorded frames.

    python examples/realsense_client.py ws://127.0.0.1:8000 --robot my_robot:connect --camera camera.json
    python examples/realsense_client.py ws://127.0.0.1:8000 --frames recordings/cup --rate 0
    python examples/realsense_client.py ws://127.0.0.1:8000 --store data/adroit_door --episode 3

`my_robot.connect()` is yours: it gives an object with `joints()`, the numbers (Dp,) that the planner knows as
agent_pos, and `send(action)`, which executes one action (Da,). A recording is a plain folder with depth, as
`sodp3d import folder` reads it (docs/import-export.md); actions are printed, a line each. camera.json holds "pose",
(4, 4) from camera to world in metres.
"""

import argparse
import contextlib
import importlib
import itertools
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sodp3d import EpisodeStore, InputError
from sodp3d.core.files import read_json
from sodp3d.exchange.episodes import check_arrays
from sodp3d.exchange.folder import FolderSource, episode_folders
from sodp3d.exchange.selection import to_depth
from sodp3d.serving.client import BLENDS, ActionStream, PolicyClient
from sodp3d.settings import ImportSettings
from sodp3d.vision.camera import POSE

Observation = dict[str, Any]


def realsense_frames(
    width: int, height: int, rate: int, pose: np.ndarray, joints: Callable[[], Any]
) -> Generator[Any, None, None]:
    """Observations from the first RealSense camera that is found: depth in millimetres, camera, joints."""
    import pyrealsense2 as realsense  # pip install pyrealsense2

    pipeline, wanted = realsense.pipeline(), realsense.config()
    wanted.enable_stream(realsense.stream.depth, width, height, realsense.format.z16, rate)
    profile = pipeline.start(wanted)
    try:
        millimetres = 1000 * profile.get_device().first_depth_sensor().get_depth_scale()
        lens = profile.get_stream(realsense.stream.depth).as_video_stream_profile().get_intrinsics()
        intrinsics = np.array([[lens.fx, 0, lens.ppx], [0, lens.fy, lens.ppy], [0, 0, 1]], np.float64)
        while True:
            raw = np.asanyarray(pipeline.wait_for_frames().get_depth_frame().get_data())
            depth = np.rint(raw * millimetres).clip(0, 65_535).astype(np.uint16)
            yield {"depth": depth, "intrinsics": intrinsics, "camera_pose": pose, "agent_pos": numbers(joints())}
    finally:
        pipeline.stop()


def folder_frames(folder: Path, episode: int = 0) -> Iterator[Observation]:
    """Observations of a recorded folder; or of one episode of several there, by its number in episode_000000."""
    folder = episode_folder(folder, episode)
    source = FolderSource(folder, ImportSettings(format="folder", path=str(folder), store="none"))
    camera, moves = source.facts.camera, POSE in source.offers
    keys = ["depth", "agent_pos", *([POSE] if moves else [])]
    for key in keys:
        if key not in source.offers:
            raise InputError(f"--frames: {folder} has no {key}; a planner sees depth and agent_pos of each step.")
    if camera is None or (camera.pose is None and not moves):
        raise InputError(
            f"--frames: there is no {folder / 'camera.json'} with pose, nor columns {POSE}.0, {POSE}.1, ..."
        )
    steps = source.read(0, keys)
    count = check_arrays(steps, str(folder))
    depth, joints = to_depth(steps["depth"], source.facts, str(folder)), numbers(steps["agent_pos"])
    poses = steps[POSE].reshape(-1, 4, 4) if moves else np.broadcast_to(np.asarray(camera.pose), (count, 4, 4))
    for step in range(count):
        seen = {"depth": depth[step], "agent_pos": joints[step]}
        yield {**seen, "intrinsics": camera.intrinsics, "camera_pose": poses[step]}


def episode_folder(folder: Path, episode: int) -> Path:
    """The folder of one episode: the one that is numbered so, or else the one at that place."""
    try:
        found = episode_folders(folder)
    except InputError as error:
        raise InputError(f"--frames: there is no recording: {error}") from None
    numbered = folder / f"episode_{episode:06d}"
    if numbered in found:
        return numbered
    if not 0 <= episode < len(found):
        raise InputError(f"--episode: {folder} has {len(found)} episodes, counted from 0, got {episode}.")
    return found[episode]


def store_frames(folder: Path, episode: int) -> Iterator[Observation]:
    """Observations of one episode of a store."""
    store = EpisodeStore.open(folder / "episodes.zarr")
    if not 0 <= episode < len(store):
        raise InputError(f"--episode: {folder} has {len(store)} episodes, counted from 0, got {episode}.")
    camera = store.attributes["camera"]
    fixed = {"intrinsics": np.array(camera["intrinsics"])}
    if camera["pose"] is not None:
        fixed["camera_pose"] = np.array(camera["pose"])
    keys = ["depth", "agent_pos", *(["camera_pose"] if camera["pose"] is None else [])]
    steps = store.episode(episode, keys)
    for step in range(len(steps["depth"])):
        yield {**fixed, **{key: steps[key][step] for key in keys}}


def read_pose(path: Path) -> np.ndarray:
    """(4, 4) camera to world of a camera.json. Raises InputError where it has none."""
    told = read_json(path)
    given = told.get("pose") if isinstance(told, dict) else None
    try:
        pose = np.array(given, np.float64)
    except (TypeError, ValueError):
        pose = np.empty(0)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise InputError(f"{path}: pose: expected 4 x 4 numbers, camera to world in metres, got {given!r}.")
    return pose


def numbers(values: Any) -> np.ndarray:
    """(n,) float32."""
    return np.asarray(values, np.float32)


def drive(
    client: PolicyClient, frames: Iterator[Observation], send: Callable[[np.ndarray], None], options: argparse.Namespace
) -> int:
    """One episode: an action for each frame, `rate` times a second. Returns how often a plan came too late."""
    with ActionStream(client, options.every, options.blend) as stream:
        stream.reset(options.seed)
        due = time.monotonic()
        for frame in itertools.islice(frames, options.steps):
            send(stream.act({**frame, "timestamp": client.now()}))
            due = max(due + (1 / options.rate if options.rate else 0), time.monotonic())
            time.sleep(due - time.monotonic() if due > time.monotonic() else 0)
        return stream.stalls


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of sodp3d serve; the token is read from SODP3D_TOKEN")
    parser.add_argument("--robot", help="module:function that connects to your robot; needed with a camera")
    parser.add_argument("--camera", type=Path, default=Path("camera.json"), help="where the camera is")
    parser.add_argument("--frames", type=Path, help="a recorded folder instead of a camera")
    parser.add_argument("--store", type=Path, help="a store's folder instead of a camera")
    parser.add_argument("--episode", type=int, default=0, help="of the store, or of a folder of several")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), help="width and height of the camera's depth")
    parser.add_argument("--rate", type=float, default=10.0, help="control steps a second; 0: as fast as it goes")
    parser.add_argument("--steps", type=int, help="at most so many")
    parser.add_argument("--every", type=int, help="steps from one plan to the next")
    parser.add_argument("--blend", choices=BLENDS, default="crossfade", help="how overlapping plans are joined")
    parser.add_argument("--seed", type=int, help="of the planner's noise")
    options = parser.parse_args(arguments)
    try:
        with PolicyClient(options.url) as client:
            if options.frames or options.store:
                read, folder = (folder_frames, options.frames) if options.frames else (store_frames, options.store)
                stalls = drive(client, read(folder, options.episode), show, options)
            else:
                if not options.robot:
                    raise InputError("--robot: name it, as my_robot:connect; or look at --frames or --store.")
                robot = connect(options.robot)
                pose = read_pose(options.camera)
                camera = realsense_frames(*options.size, 30, pose, robot.joints)
                with contextlib.closing(camera):
                    stalls = drive(client, camera, robot.send, options)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stderr.write(f"plans that came too late: {stalls}\n")
    return 0


def connect(name: str) -> Any:
    """Your robot, by module:function."""
    module, _, function = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--robot: expected module:function that can be imported, got {name!r} ({error}).") from error
    return made()


def show(action: np.ndarray) -> None:
    """Print an action that no robot executes."""
    sys.stdout.write(",".join(f"{number:.5f}" for number in action) + "\n")


if __name__ == "__main__":
    sys.exit(main())
