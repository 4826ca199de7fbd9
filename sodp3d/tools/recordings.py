"""Episodes for Rerun's viewer, one .rrd file each: depth, cloud, camera, colour, actions and rewards on one time line.

    sodp3d view data/<env> --viewer rerun     # collected episodes, with what the store has of them
    sodp3d replay run=<run> viewer=rerun      # a planner's roll-outs, made again in the simulator

At step t stands what was seen before action t, and the reward that followed it, as in stores. It needs the extra
`rerun`.
"""

import importlib.util
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.files import disk_errors, replace_file
from sodp3d.data.store import CorruptEpisode, EpisodeStore
from sodp3d.envs import make_env
from sodp3d.envs.base import RobotEnv
from sodp3d.envs.config import EnvConfig
from sodp3d.tools.frames import action_names, actuator_names, environment_of, stored_views
from sodp3d.tools.video import chosen_rollouts, frame_rate
from sodp3d.vision.camera import POSE, Camera
from sodp3d.vision.sensors import POINT_CLOUD

log = logging.getLogger(__name__)
APPLICATION = "sodp3d"
CAMERA = "world/camera"
_MAGIC = b"RRF"  # every .rrd file begins with it
_WHITE = (255, 255, 255)  # the cloud that a planner sees, beside all pixels of the depth image


@dataclass(frozen=True)
class Step:
    """A control step; None for what was not seen or recorded."""

    action: NDArray[np.float32]  # (Da,)
    reward: float | None
    goal: int | None  # raw frames with the goal achieved
    depth: NDArray[np.uint16] | None  # (H, W) millimetres
    cloud: NDArray[np.float32] | None  # (N, 3) metres, world frame
    colour: NDArray[np.uint8] | None  # (H, W, 3)
    pose: NDArray[np.float64] | None  # (4, 4) camera-to-world, metres


def require_rerun() -> None:
    """Raise InputError where Rerun's package is not installed."""
    if importlib.util.find_spec("rerun") is None:
        raise InputError(
            "viewer: rerun needs rerun-sdk, which is not installed: pip install 'rerun-sdk>=0.41,<1' (the extra "
            "rerun), or leave the option out."
        )


def write_store_recordings(store: EpisodeStore, episodes: Sequence[int], output: Path) -> list[Path]:
    """Write `output/<env>-episode<index>.rrd` of collected episodes; the paths.

    The environment is not needed, only asked for names and time. A damaged episode is left out with a warning. Raises
    InputError without Rerun, for an episode that is not there, a file that is not ours, or where the disk refuses.
    """
    require_rerun()
    missing = [index for index in episodes if not 0 <= index < len(store)]
    if missing:
        raise InputError(f"episodes: {missing[0]} is not in the store, which holds episodes 0 to {len(store) - 1}.")
    env, told, lens = environment_of(store), store.attributes.get("rate"), store.attributes.get("camera")
    rate = told if env is None else float(frame_rate(env))
    names, camera = action_names(store), None if lens is None else Camera.from_dict(lens)
    name = re.sub(r"[^\w-]+", "-", store.attributes["env"])  # a file's name, whatever the store calls itself
    written = []
    for index in episodes:
        path = output / f"{name}-episode{index:05d}.rrd"
        try:
            steps = list(stored_steps(store, index))
        except CorruptEpisode as error:
            log.warning("%s It is left out.", error)
            continue
        written.append(write_recording(path, steps, camera, names, rate))
    return written


def write_rollout_recordings(
    directory: Path, config: EnvConfig, renderer: str, count: int, output: Path, only: Sequence[int] = ()
) -> list[Path]:
    """Write `output/<env>-seed<seed>-<outcome>.rrd` of roll-outs that `chosen_rollouts` chooses; the paths.

    Raises InputError as that does, and as `write_store_recordings`.
    """
    require_rerun()
    chosen = chosen_rollouts(directory, config, count, only)
    env = make_env(config, renderer)
    written = []
    for name, seed, actions in chosen:
        steps, names = list(rollout_steps(env, seed, actions)), actuator_names(env, actions.shape[1])
        path = output / f"{name}.rrd"
        written.append(write_recording(path, steps, env.recorded_camera(), names, frame_rate(env)))
    env.close()
    return written


def stored_steps(store: EpisodeStore, index: int) -> Iterator[Step]:
    """An episode as it is stored. Raises CorruptEpisode."""
    outcomes = [key for key in ("reward", "success") if key in store.specification]
    values = store.episode(index, ["action", *outcomes])
    seen = stored_views(store, index, ("depth", "point_cloud", "image", POSE))
    fixed = (store.attributes.get("camera") or {}).get("pose")
    for step, action in enumerate(values["action"]):
        reward, goal = (values[key][step].item() if key in values else None for key in ("reward", "success"))
        depth, cloud, image, pose = (None if array is None else array[step] for array in seen.values())
        colour = None if image is None else image.transpose(1, 2, 0)
        where = pose if fixed is None else np.array(fixed, np.float64)
        yield Step(action, reward, goal, depth, cloud, colour, where)


def rollout_steps(env: RobotEnv, seed: int, actions: NDArray[np.float32]) -> Iterator[Step]:
    """The episode that `seed` and `actions` (T, Da) determine, with all that the camera sees of it."""
    assert POINT_CLOUD.converter is not None
    convert = POINT_CLOUD.converter(env, "open3d", "cpu")
    env.reset(seed=seed)
    for action in actions:
        depth, pose, cloud = env.render_depth(), env.camera_pose(), None
        with suppress(InputError):  # nothing inside the crop, which a planner of states does not mind
            cloud = convert(depth[None], *([pose[None]] if env.camera_moves else []))[0]
        colour = None if env.renderer_name == "raycast" else env.render_rgb()
        _, reward, _, _, info = env.step(action)
        yield Step(action, float(reward), int(info["goal_steps"]), depth, cloud, colour, pose)


def write_recording(
    path: Path, steps: Sequence[Step], camera: Camera | None, names: Sequence[str], rate: float | None
) -> Path:
    """Write one episode to `path`, in one step; makes its folder.

    camera: None of clouds that come without one. names: of the numbers of an action. rate: control steps per second;
    None: unknown, and then there are no seconds.
    Raises InputError where a file is in the way that is not ours, and where the disk refuses.
    """
    import rerun

    _require_ours(path)
    recording = rerun.RecordingStream(APPLICATION, recording_id=path.stem)
    stream = recording.binary_stream()
    recording.set_log_time_enabled(False)  # of the writing, which says nothing of the episode
    recording.set_log_tick_enabled(False)
    recording.send_recording_name(path.stem)
    images = [name for name in ("depth", "colour") if any(getattr(step, name) is not None for step in steps)]
    recording.send_blueprint(_blueprint(images))
    _log_scene(recording, camera)
    for number, step in enumerate(steps):
        recording.set_time("step", sequence=number)
        if rate is not None:
            recording.set_time("seconds", duration=number / rate)
        _log_step(recording, step, names)
    content = stream.read()
    assert content is not None
    with disk_errors(path, "no recording was written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    return path


def _require_ours(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes() if path.is_file() else b""
    if not (content.startswith(_MAGIC) and APPLICATION.encode() in content):
        raise InputError(f"{path}: was not made by sodp3d and is not replaced; move it away, or choose another output.")


def _blueprint(images: Sequence[str]) -> Any:
    """The scene at the left, the camera's images in the middle, curves at the right."""
    import rerun.blueprint as layout

    curves = layout.Vertical(
        layout.TimeSeriesView(origin="action", name="action"),
        layout.TimeSeriesView(contents=["reward", "goal"], name="reward, frames at the goal"),
    )
    seen = [layout.Spatial2DView(origin=f"{CAMERA}/{name}", name=name) for name in images]
    columns = [layout.Spatial3DView(origin="world", name="scene"), *([layout.Vertical(*seen)] if seen else []), curves]
    return layout.Blueprint(layout.Horizontal(*columns, column_shares=[2, 1, 1][: len(columns)]), collapse_panels=True)


def _log_scene(recording: Any, camera: Camera | None) -> None:
    """What stays as it is: the world's axes and the camera's intrinsics. Rerun's camera axes are OpenCV's, as ours."""
    import rerun

    recording.log("world", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    if camera is None:
        return
    lens = rerun.Pinhole(
        image_from_camera=camera.intrinsics,
        width=camera.width,
        height=camera.height,
        camera_xyz=rerun.ViewCoordinates.RDF,
        image_plane_distance=0.2,
    )
    recording.log(CAMERA, lens, static=True)


def _log_step(recording: Any, step: Step, names: Sequence[str]) -> None:
    import rerun

    if step.pose is not None:
        pose = rerun.Transform3D(translation=step.pose[:3, 3], mat3x3=step.pose[:3, :3])
        recording.log(CAMERA, pose)
    if step.depth is not None:
        recording.log(
            f"{CAMERA}/depth", rerun.DepthImage(step.depth, meter=1000.0, colormap="viridis", point_fill_ratio=0.3)
        )
    if step.colour is not None:
        recording.log(f"{CAMERA}/colour", rerun.Image(step.colour))
    if step.cloud is not None:
        recording.log("world/cloud", rerun.Points3D(step.cloud, colors=_WHITE, radii=rerun.Radius.ui_points(2)))
    for name, value in zip(names, step.action, strict=True):
        recording.log(rerun.new_entity_path(["action", name]), rerun.Scalars(value))
    for name, number in (("reward", step.reward), ("goal", step.goal)):
        if number is not None:
            recording.log(name, rerun.Scalars(number))
