"""camera.json: where a camera was and how it sees, as people write it down beside their recordings.

    {"intrinsics": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], "pose": (4, 4) camera to world, "depth_scale": 0.001}

Pixels and metres; OpenCV's axes. Without a pose the camera moves. height and width may be added, and are else those of
the images. depth_scale: metres of one unit of depth.
"""

from pathlib import Path

from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json
from sodp3d.exchange.episodes import positive
from sodp3d.vision.camera import Camera

NAME = "camera.json"


def read_camera(path: Path, size: tuple[int, int] | None) -> tuple[Camera | None, float | None]:
    """The camera, None where nobody knows its images' size; and metres of one unit of depth, where it says so.

    size: height and width of its images, unless the file says them. Raises InputError naming the file.
    """
    told = read_json(path)
    if not isinstance(told, dict) or "intrinsics" not in told:
        raise InputError(f"{path}: expected an object with intrinsics (3, 3), in pixels, and pose (4, 4), in metres.")
    scale = positive(told.get("depth_scale"), f"{path}: depth_scale")
    height, width = told.get("height"), told.get("width")
    if height is None or width is None:
        if size is None:
            return None, scale
        height, width = size
    try:
        return Camera.from_dict({**told, "height": height, "width": width}), scale
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
