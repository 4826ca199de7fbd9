"""Pinhole cameras: intrinsics and true extrinsics, as they stand in the simulator's data at the moment of asking.

Frames: the world frame is MuJoCo's. The camera frame is OpenCV's (x right, y down, z forward), as Open3D expects.
Pixel (0, 0) is the *centre* of the top-left pixel, so the principal point of a W x H image is ((W-1)/2, (H-1)/2).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.values import check_keys, number, numbers

POSE = "camera_pose"  # beside each image of a camera that moves: (4, 4) float64, camera-to-world, metres
MOST_PIXELS = 4096  # of an image's side
_LEAST_NORM = 1e-6  # of a quaternion, below which it says nothing of a direction
_MOST_SKEW = 1e-3  # of a focal length; what is left out of a cloud then is below a thousandth of its width
_RIGID = 1e-3  # by how much a pose's axes may miss being perpendicular and of unit length


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    intrinsics: (3, 3) float64, pixels. pose: (4, 4) float64, camera-to-world, metres; None for a camera that moves, of
    which each image has its own. height, width: pixels. Raises InputError for a matrix that is none of these, such as a
    transposed or a scaled one: clouds would be wrong, and nobody would see it.
    """

    intrinsics: NDArray[np.float64]
    pose: NDArray[np.float64] | None
    height: int
    width: int

    def __post_init__(self) -> None:
        check_intrinsics(self.intrinsics, "camera.intrinsics")
        if self.pose is not None:
            check_poses(self.pose, "camera.pose")
        if min(self.height, self.width) <= 0:
            raise InputError(f"camera: expected a height and a width above 0, got {self.height} and {self.width}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {
            "intrinsics": self.intrinsics.tolist(),
            "pose": None if self.pose is None else self.pose.tolist(),
            "height": self.height,
            "width": self.width,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Camera":
        """Inverse of `to_dict`. Raises InputError naming what is missing or not of its kind."""
        return cls(
            _matrix(values.get("intrinsics"), 3, "camera.intrinsics"),
            None if values.get("pose") is None else _matrix(values["pose"], 4, "camera.pose"),
            number(values.get("height"), int, "camera.height"),
            number(values.get("width"), int, "camera.width"),
        )


def _matrix(values: Any, size: int, where: str) -> NDArray[np.float64]:
    """(size, size) numbers of nested lists."""
    if not isinstance(values, list | tuple) or len(values) != size:
        raise InputError(f"{where}: expected {size} x {size} numbers, got {values!r}.")
    return np.array([numbers(row, size, where) for row in values])


def check_intrinsics(matrix: NDArray[Any], where: str) -> None:
    """Raise InputError unless (3, 3) has focal lengths above 0, pixels that are rectangles, and 0 0 1 last."""
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape == (3, 3) and np.isfinite(matrix).all():
        (across, skew, _), (down_across, down, _), last = matrix.tolist()
        straight = max(abs(skew), abs(down_across)) <= _MOST_SKEW * max(across, down)
        if min(across, down) > 0 and straight and last == [0, 0, 1]:
            return
    told = matrix.tolist() if matrix.shape == (3, 3) else f"shape {matrix.shape}"
    raise InputError(
        f"{where}: expected finite (3, 3) with focal lengths above 0, in pixels, as [[fx, 0, cx], [0, fy, cy], "
        f"[0, 0, 1]], got {told}; transpose it where its rows are columns, and rectify images that are skewed."
    )


def check_poses(poses: NDArray[Any], where: str) -> None:
    """Raise InputError unless each of (..., 4, 4) is a rotation and a position; the first that is none is told."""
    poses = np.asarray(poses, np.float64)
    if poses.shape[-2:] != (4, 4):
        raise InputError(f"{where}: expected (4, 4), camera to world in metres, got shape {poses.shape}.")
    axes, finite = poses[..., :3, :3], np.isfinite(poses).all(axis=(-1, -2))
    with np.errstate(invalid="ignore", over="ignore"):  # of numbers that are not finite, which are refused
        misses = np.abs(axes @ np.swapaxes(axes, -1, -2) - np.eye(3)).max(axis=(-1, -2))
        rotation = (misses <= _RIGID) & (np.linalg.det(axes) > 0)
    wrong = np.argwhere(~(finite & rotation & (poses[..., 3, :] == (0, 0, 0, 1)).all(axis=-1)))
    if len(wrong):
        first = tuple(wrong[0].tolist())
        step = f" at step {first[0]}" if first else ""
        raise InputError(
            f"{where}: expected a rotation and a position, (4, 4) from camera to world in metres with 0 0 0 1 last, "
            f"got {np.round(poses[first], 4).tolist()}{step}; transpose it where its rows are columns; scale no axes."
        )


def intrinsics(fovy: float, height: int, width: int) -> NDArray[np.float64]:
    """(3, 3) matrix of a camera with square pixels and a vertical field of view of `fovy` degrees."""
    focal = height / (2 * np.tan(np.deg2rad(fovy) / 2))
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], dtype=np.float64)


def camera_pose(position: NDArray[np.float64], rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 4) camera-to-world of the camera at `data.cam_xpos[i]` (3,) and `data.cam_xmat[i]` (9,)."""
    pose = np.eye(4)
    # MuJoCo's cameras look along -z with y up; OpenCV's along z with y down.
    pose[:3, :3] = rotation.reshape(3, 3) * np.array([1.0, -1.0, -1.0])
    pose[:3, 3] = position
    return pose


def mujoco_camera(
    position: NDArray[np.float64], rotation: NDArray[np.float64], fovy: float, height: int, width: int
) -> Camera:
    """The camera at `data.cam_xpos[i]` (3,) and `data.cam_xmat[i]` (9,), with a vertical field of view in degrees."""
    return Camera(intrinsics(fovy, height, width), camera_pose(position, rotation), height, width)


@dataclass(frozen=True)
class CameraConfig:
    """A camera by pose, added at run time, or (both poses null) the model's own camera of that name.

    position: metres, world frame. quaternion: w x y z, world frame, MuJoCo's camera axes (looks along -z, y up).
    A null position or quaternion keeps the model's own. fovy: vertical field of view in degrees. height, width: pixels.
    """

    name: str
    position: tuple[float, ...] | None
    quaternion: tuple[float, ...] | None
    fovy: float
    height: int
    width: int

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("env.camera.name: expected a name, the model's or a new one, got none.")
        if not 0 < self.fovy < 180:
            raise InputError(f"env.camera.fovy: expected a number of degrees between 0 and 180, got {self.fovy}.")
        for key in ("height", "width"):
            if not 1 <= getattr(self, key) <= MOST_PIXELS:
                got = getattr(self, key)
                raise InputError(f"env.camera.{key}: expected a whole number from 1 to {MOST_PIXELS}, got {got}.")
        if self.position is not None and not np.isfinite(self.position).all():
            raise InputError(f"env.camera.position: expected three finite numbers, got {self.position}.")
        if self.quaternion is not None and not _LEAST_NORM < np.linalg.norm(self.quaternion) < np.inf:
            raise InputError(
                f"env.camera.quaternion: expected four numbers, not all 0 and all finite, got {self.quaternion}."
            )

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> "CameraConfig":
        """Validate and build. Raises InputError on unknown or missing keys and wrong sizes."""
        check_keys(cls, mapping, "env.camera")
        position, quaternion = mapping["position"], mapping["quaternion"]
        return cls(
            name=str(mapping["name"] or ""),
            position=None if position is None else numbers(position, 3, "env.camera.position"),
            quaternion=None if quaternion is None else numbers(quaternion, 4, "env.camera.quaternion"),
            fovy=number(mapping["fovy"], float, "env.camera.fovy"),
            height=number(mapping["height"], int, "env.camera.height"),
            width=number(mapping["width"], int, "env.camera.width"),
        )
