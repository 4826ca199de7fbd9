"""From depth images to point clouds: unproject, crop, farthest-point sample; one converter for offline and online use.

Two backends select exactly the same points. `open3d` is the reference. `torch` computes a batch of frames at once, on
CPU or CUDA, with Open3D's arithmetic: depth divided in float32, everything after in float64 in the same order of
operations, ties in the farthest distance going to the first point, selected points kept in row-major pixel order.

Frames follow `vision/camera.py`: OpenCV camera axes, integer pixel centres; points are in the world frame, metres.
Neither torch nor Open3D is imported before a converter is made, so environment workers can import this module.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.values import check_keys, numbers
from sodp3d.vision.camera import POSE, Camera, check_poses

if TYPE_CHECKING:
    import torch

BACKENDS = ("open3d", "torch")
_MILLIMETRES = 1000.0
_FRAMES_PER_BATCH = {"cpu": 32, "cuda": 1024}  # on the CPU what fits the cache, elsewhere what fits the memory

Points = NDArray[np.float64]


@dataclass(frozen=True)
class CropConfig:
    """A box in the world frame, metres; points strictly inside are kept."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> "CropConfig":
        """Validate and build. Raises InputError on unknown or missing keys, wrong sizes, or an empty box."""
        check_keys(cls, mapping, "env.crop")
        low, high = numbers(mapping["low"], 3, "env.crop.low"), numbers(mapping["high"], 3, "env.crop.high")
        if any(bottom >= top for bottom, top in zip(low, high, strict=True)):
            raise InputError(f"env.crop: low {low} must be below high {high} on every axis.")
        return cls(low, high)


def unproject(depth: NDArray[np.uint16], camera: Camera) -> Points:
    """World points (M, 3) of the valid pixels of a depth image, in row-major order.

    depth: (H, W) uint16 millimetres along the optical axis, 0 = invalid. Source: the pinhole model as Open3D's
    `create_from_depth_image` computes it.
    """
    _check_depth(depth[None], camera)
    v, u = np.nonzero(depth)
    z = (depth[v, u].astype(np.float32) / np.float32(_MILLIMETRES)).astype(np.float64)
    (fx, _, cx), (_, fy, cy) = camera.intrinsics[0], camera.intrinsics[1]
    x, y = (u - cx) * z / fx, (v - cy) * z / fy
    return np.stack([row[0] * x + row[1] * y + row[2] * z + row[3] for row in _pose(camera)[:3]], axis=1)


def project(points: Points, camera: Camera) -> tuple[Points, Points, Points]:
    """Pixel coordinates u, v and depth z in metres, (M,) each, of world points (M, 3): the inverse of `unproject`.

    Not rounded to whole pixels; z <= 0 lies behind the camera.
    """
    pose = _pose(camera)
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    x, y, z = local.T
    (fx, _, cx), (_, fy, cy) = camera.intrinsics[0], camera.intrinsics[1]
    return fx * x / z + cx, fy * y / z + cy, z


def _pose(camera: Camera) -> NDArray[np.float64]:
    if camera.pose is None:
        raise InputError(f"camera: it moves, so it has no pose of its own; give the {POSE} of each image.")
    return camera.pose


def check_backend(backend: str, device: str) -> None:
    """Raise InputError for an unknown backend, or one that does not run on `device`."""
    if backend not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}.")
    if backend == "open3d" and device != "cpu":
        raise InputError(f"device: the open3d backend runs on the cpu, got {device!r}; use backend=torch.")


class Converter:
    """Depth images of one camera to clouds of exactly `points` points."""

    def __init__(self, camera: Camera, crop: CropConfig, points: int, backend: str = "open3d", device: str = "cpu"):
        """backend: "open3d" (CPU) or "torch" (any torch device). Raises InputError for unknown ones."""
        check_backend(backend, device)
        if points < 1:
            raise InputError(f"env.points: expected at least 1, got {points}.")
        self.camera, self.crop, self.points, self.backend = camera, crop, points, backend
        self._backend = _Open3D(camera, crop, points) if backend == "open3d" else _Torch(camera, crop, points, device)

    def convert(
        self, depth: NDArray[np.uint16], poses: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Clouds (T, N, 3) float32, world frame, metres, and how many points each frame had inside the crop (T,).

        depth: (T, H, W) uint16 millimetres, 0 = invalid. poses: (T, 4, 4) camera-to-world, metres, of a camera that
        moves; without them all frames have the camera's own. A point is kept strictly inside the crop. From more than N
        kept points N are chosen by farthest-point sampling from the first; fewer are repeated in order. Raises
        InputError for depth of another size or type, poses that are none, and a frame with no point inside the crop.
        """
        _check_depth(depth, self.camera)
        poses = _pose(self.camera)[None] if poses is None else _checked_poses(poses, len(depth))
        if len(depth) == 0:
            return np.zeros((0, self.points, 3), np.float32), np.zeros(0, np.int64)
        size = _FRAMES_PER_BATCH["cpu" if self._backend.device == "cpu" else "cuda"]
        batches = [slice(start, start + size) for start in range(0, len(depth), size)]
        parts = [self._backend.convert(depth[rows], poses[rows] if len(poses) > 1 else poses) for rows in batches]
        kept = np.concatenate([part[1] for part in parts])
        if (kept == 0).any():
            frame = int(np.argmin(kept))
            self._raise_empty(depth[frame], poses[frame if len(poses) > 1 else 0], frame)
        return np.concatenate([part[0] for part in parts]), kept

    def _raise_empty(self, depth: NDArray[np.uint16], pose: NDArray[np.float64], frame: int) -> None:
        points = unproject(depth, replace(self.camera, pose=pose))
        if len(points):
            low, high = np.round(points.min(0), 3).tolist(), np.round(points.max(0), 3).tolist()
            seen = f"the frame's {len(points)} points span {low} to {high}"
        else:
            seen = "the frame has no valid depth at all"
        raise InputError(
            f"env.crop: no point of frame {frame} lies inside low {list(self.crop.low)}, high {list(self.crop.high)} "
            f"(metres, world frame); {seen}. Widen env.crop, or check env.camera."
        )


def _check_depth(depth: NDArray[Any], camera: Camera) -> None:
    if depth.dtype != np.uint16 or depth.ndim != 3 or depth.shape[1:] != (camera.height, camera.width):
        raise InputError(
            f"depth: expected uint16 frames of {camera.height} x {camera.width} pixels (the camera's), got "
            f"{depth.dtype} {depth.shape}."
        )


def _checked_poses(poses: NDArray[Any], frames: int) -> NDArray[np.float64]:
    """Raises InputError unless there is a rigid pose for each frame."""
    poses = np.asarray(poses, dtype=np.float64)
    if poses.shape != (frames, 4, 4):
        raise InputError(f"{POSE}: expected a pose for each frame, {(frames, 4, 4)}, got {poses.shape}.")
    check_poses(poses, POSE)
    return poses


class _Open3D:
    device = "cpu"

    def __init__(self, camera: Camera, crop: CropConfig, points: int) -> None:
        import open3d

        self.open3d: Any = open3d  # its stubs know neither numpy images nor points
        self.points = points
        self.low, self.high = np.array(crop.low), np.array(crop.high)
        (fx, _, cx), (_, fy, cy) = camera.intrinsics[0], camera.intrinsics[1]
        self.intrinsics = open3d.camera.PinholeCameraIntrinsic(camera.width, camera.height, fx, fy, cx, cy)

    def convert(
        self, depth: NDArray[np.uint16], poses: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """poses: (T, 4, 4), or (1, 4, 4) for all frames."""
        clouds = np.zeros((len(depth), self.points, 3), np.float32)
        kept = np.zeros(len(depth), np.int64)
        for index, (frame, pose) in enumerate(zip(depth, np.broadcast_to(poses, (len(depth), 4, 4)), strict=True)):
            inside = self._inside(frame, pose)
            kept[index] = len(inside)
            if len(inside):
                clouds[index] = self._sample(inside)
        return clouds, kept

    def _inside(self, frame: NDArray[np.uint16], pose: NDArray[np.float64]) -> Points:
        # Unprojected in the camera frame and then moved: an extrinsic argument would be inverted inside Open3D,
        # whose rounding no other backend could repeat.
        # Copied, because Open3D does not take the explicit byte order of arrays read from a store for uint16.
        image = self.open3d.geometry.Image(frame.astype(np.dtype("uint16"), order="C"))
        cloud = self.open3d.geometry.PointCloud.create_from_depth_image(
            image, self.intrinsics, np.eye(4), depth_scale=_MILLIMETRES, depth_trunc=_MILLIMETRES
        )
        points = np.asarray(cloud.transform(np.ascontiguousarray(pose)).points)
        return np.asarray(points[((points > self.low) & (points < self.high)).all(axis=1)])

    def _sample(self, points: Points) -> Points:
        if len(points) > self.points:
            cloud = self.open3d.geometry.PointCloud(self.open3d.utility.Vector3dVector(points))
            points = np.asarray(cloud.farthest_point_down_sample(self.points).points)
        return points[np.arange(self.points) % len(points)]


class _Torch:
    def __init__(self, camera: Camera, crop: CropConfig, points: int, device: str) -> None:
        import torch

        try:
            self.device = device
            self.millimetres = torch.tensor([_MILLIMETRES], dtype=torch.float32, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device: torch cannot use {device!r} here ({error}).") from error
        self.camera, self.crop, self.points = camera, crop, points
        (fx, _, cx), (_, fy, cy) = camera.intrinsics[0], camera.intrinsics[1]
        # As tensors: CUDA divides by a plain number through its reciprocal, which rounds differently.
        self.focal = torch.tensor([[fx], [fy]], dtype=torch.float64, device=device)
        self.u = torch.arange(camera.width, dtype=torch.float64, device=device) - float(cx)
        self.v = (torch.arange(camera.height, dtype=torch.float64, device=device) - float(cy))[:, None]

    def convert(
        self, depth: NDArray[np.uint16], poses: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """poses: (T, 4, 4), or (1, 4, 4) for all frames."""
        import torch

        millimetres = torch.from_numpy(depth.astype(np.float32)).to(self.device)
        points, kept = self._inside(millimetres, torch.tensor(poses, dtype=torch.float64, device=self.device))
        rows = torch.arange(self.points, device=self.device) % kept.clamp(min=1)[:, None]
        crowded = torch.nonzero(kept > self.points)[:, 0]
        if len(crowded):
            rows[crowded] = farthest_points(points[:, crowded], kept[crowded], self.points)
        clouds = points.gather(2, rows.expand(3, -1, -1)).permute(1, 2, 0)
        return clouds.float().cpu().numpy(), kept.cpu().numpy()

    def _inside(self, millimetres: "torch.Tensor", poses: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        """World points inside the crop, (3, B, M) float64 padded to the fullest frame, and their number (B,)."""
        import torch

        z = (millimetres / self.millimetres).double()
        x, y = self.u * z / self.focal[0], self.v * z / self.focal[1]
        keep = z > 0
        rows = poses.permute(1, 2, 0)[:3, ..., None, None]  # (3, 4, B or 1, 1, 1)
        world = torch.stack([row[0] * x + row[1] * y + row[2] * z + row[3] for row in rows])
        for axis, low, high in zip(world, self.crop.low, self.crop.high, strict=True):
            keep &= (axis > low) & (axis < high)
        keep = keep.flatten(1)
        kept = keep.sum(dim=1)
        frame, pixel = keep.nonzero(as_tuple=True)  # row-major
        place = torch.arange(len(frame), device=frame.device) - (kept.cumsum(0) - kept)[frame]
        padded = world.new_zeros(3, len(kept), max(int(kept.max()), 1))
        padded[:, frame, place] = world.flatten(2)[:, frame, pixel]
        return padded, kept


def farthest_points(points: "torch.Tensor", count: "torch.Tensor", samples: int) -> "torch.Tensor":
    """Ascending indices (B, samples) int64 of a farthest-point sample that starts at index 0.

    points: (3, B, M) float64; only the first count[b] >= samples of frame b are looked at. Exact duplicates are chosen
    once, then the choice is repeated in order. On CUDA pytorch3d's kernel is used where it is installed; it works in
    float32, so there two nearly equal distances may be decided the other way.
    """
    kernel = _pytorch3d_sampler() if points.is_cuda else None
    if kernel is not None:
        origin = points[:, :, :1]  # keeps float32's resolution where the points are
        _, chosen = kernel((points - origin).permute(1, 2, 0).float().contiguous(), count, samples)
    else:
        chosen = _farthest_points(points, count, samples)
    chosen = chosen.sort(dim=1).values
    for frame in (chosen[:, 1:] == chosen[:, :-1]).any(dim=1).nonzero()[:, 0].tolist():
        unique = chosen[frame].unique()
        chosen[frame] = unique.repeat(-(-samples // len(unique)))[:samples]
    return chosen


def _farthest_points(points: "torch.Tensor", count: "torch.Tensor", samples: int) -> "torch.Tensor":
    import torch

    _, batch, length = points.shape
    nearest = points.new_full((batch, length), torch.inf)
    nearest[torch.arange(length, device=points.device) >= count[:, None]] = -1  # padding is never the farthest
    chosen = torch.zeros(batch, samples, dtype=torch.int64, device=points.device)
    offset = torch.empty_like(points)
    distance = offset[0]
    for sample in range(1, samples):
        last = chosen[:, sample - 1].expand(3, -1)[..., None]
        torch.sub(points, points.gather(2, last), out=offset)
        offset.square_()
        distance.add_(offset[1]).add_(offset[2])  # Open3D's order of addition, so that ties stay ties
        torch.minimum(nearest, distance, out=nearest)
        torch.argmax(nearest, dim=1, out=chosen[:, sample])
    return chosen


def _pytorch3d_sampler() -> Any:
    try:
        from pytorch3d.ops import sample_farthest_points
    except ImportError:
        return None
    return lambda points, count, samples: sample_farthest_points(points, lengths=count, K=samples)
