"""Pinhole cameras: intrinsics and true extrinsics, as they stand in the simulator's data at the moment of asking.

Frames: the world frame is MuJoCo's. The camera frame is OpenCV's (x right, y down, z forward), as Open3D expects.
Pixel (0, 0) is the *centre* of the top-left pixel, so the principal point of a W x H image is ((W-1)/2, (H-1)/2).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    intrinsics: (3, 3) float64, pixels. pose: (4, 4) float64, camera-to-world, metres. height, width: pixels.
    """

    intrinsics: NDArray[np.float64]
    pose: NDArray[np.float64]
    height: int
    width: int

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {
            "intrinsics": self.intrinsics.tolist(),
            "pose": self.pose.tolist(),
            "height": self.height,
            "width": self.width,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Camera":
        """Inverse of `to_dict`."""
        return cls(
            np.array(values["intrinsics"], dtype=np.float64),
            np.array(values["pose"], dtype=np.float64),
            int(values["height"]),
            int(values["width"]),
        )


def intrinsics(fovy: float, height: int, width: int) -> NDArray[np.float64]:
    """(3, 3) matrix of a camera with square pixels and a vertical field of view of `fovy` degrees."""
    focal = height / (2 * np.tan(np.deg2rad(fovy) / 2))
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], dtype=np.float64)


def mujoco_camera(
    position: NDArray[np.float64], rotation: NDArray[np.float64], fovy: float, height: int, width: int
) -> Camera:
    """The camera at `data.cam_xpos[i]` (3,) and `data.cam_xmat[i]` (9,), with a vertical field of view in degrees."""
    pose = np.eye(4)
    # MuJoCo's cameras look along -z with y up; OpenCV's along z with y down.
    pose[:3, :3] = rotation.reshape(3, 3) * np.array([1.0, -1.0, -1.0])
    pose[:3, 3] = position
    return Camera(intrinsics(fovy, height, width), pose, height, width)
