"""Geometry and sampling of point clouds: projection, Open3D, a slow oracle, and both backends against each other."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.vision.camera import Camera, intrinsics
from sodp3d.vision.pointcloud import BACKENDS, Converter, CropConfig, farthest_points, project, unproject

EVERYTHING = CropConfig((-np.inf,) * 3, (np.inf,) * 3)
common = settings(max_examples=40, deadline=None, derandomize=True)


def random_camera(generator: np.random.Generator, height: int, width: int) -> Camera:
    """A camera somewhere within 2 m of the origin, looking anywhere."""
    rotation, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    rotation[:, 0] *= np.sign(np.linalg.det(rotation))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, generator.uniform(-2, 2, 3)
    return Camera(intrinsics(generator.uniform(20, 100), height, width), pose, height, width)


def scene(generator: np.random.Generator, frames: int, height: int, width: int) -> NDArray[np.uint16]:
    """Frames like a table with boxes: large planes of one depth, so farthest distances tie, and holes."""
    depth = np.full((frames, height, width), generator.integers(900, 2000), np.uint16)
    for frame in depth:
        for _ in range(5):
            row, column = generator.integers(0, height), generator.integers(0, width)
            frame[row : row + height // 3, column : column + width // 3] = generator.integers(300, 900)
    depth[generator.random(depth.shape) < 0.1] = 0
    return depth


def oracle(depth: NDArray[np.uint16], camera: Camera, crop: CropConfig, count: int) -> NDArray[np.float32]:
    """One frame, written as the definition reads."""
    (fx, _, cx), (_, fy, cy), _ = camera.intrinsics
    inside = []
    for row in range(camera.height):
        for column in range(camera.width):
            z = float(np.float32(depth[row, column]) / np.float32(1000))
            local = ((column - cx) * z / fx, (row - cy) * z / fy, z)
            point = [axis[0] * local[0] + axis[1] * local[1] + axis[2] * local[2] + axis[3] for axis in camera.pose[:3]]
            if z > 0 and all(low < value < high for low, value, high in zip(crop.low, point, crop.high, strict=True)):
                inside.append(point)
    points = np.array(inside)
    if len(points) > count:
        chosen, nearest = [0], np.full(len(points), np.inf)
        while len(chosen) < count:
            squares = (points - points[chosen[-1]]) ** 2
            nearest = np.minimum(nearest, squares[:, 0] + squares[:, 1] + squares[:, 2])
            chosen.append(int(np.argmax(nearest)))
        points = points[sorted(chosen)]
    return points[np.arange(count) % len(points)].astype(np.float32)


@common
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 40), width=st.integers(1, 40))
def test_unproject_and_project_are_inverse(seed: int, height: int, width: int) -> None:
    generator = np.random.default_rng(seed)
    camera = random_camera(generator, height, width)
    depth = generator.integers(0, 2**16, (height, width)).astype(np.uint16)
    v, u = np.nonzero(depth)
    points = unproject(depth, camera)
    assert points.shape == (len(v), 3) and points.dtype == np.float64
    across, down, forward = project(points, camera)
    np.testing.assert_allclose(across, u, atol=1e-8)
    np.testing.assert_allclose(down, v, atol=1e-8)
    np.testing.assert_allclose(forward, depth[v, u] / 1000, rtol=1e-6)
    np.testing.assert_array_equal(np.rint(1000 * forward), depth[v, u])


@common
@given(seed=st.integers(0, 2**32 - 1))
def test_unproject_agrees_with_open3d_and_its_extrinsic(seed: int) -> None:
    import open3d

    generator = np.random.default_rng(seed)
    camera = random_camera(generator, 24, 32)
    depth = scene(generator, 1, 24, 32)[0]
    (fx, _, cx), (_, fy, cy), _ = camera.intrinsics
    cloud = open3d.geometry.PointCloud.create_from_depth_image(
        open3d.geometry.Image(depth),
        open3d.camera.PinholeCameraIntrinsic(32, 24, fx, fy, cx, cy),
        np.linalg.inv(camera.pose),  # Open3D wants world-to-camera
    )
    np.testing.assert_allclose(unproject(depth, camera), np.asarray(cloud.points), atol=1e-12)


def test_image_axes_and_origin() -> None:
    """A camera at (0, 0, 1) looking down, x right, y down the image: top-left pixel is at -x, +y of the world."""
    pose = np.array([[1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, -1.0, 1], [0, 0, 0, 1]])
    camera = Camera(intrinsics(90, 3, 3), pose, 3, 3)
    depth = np.zeros((3, 3), np.uint16)
    depth[0, 0], depth[1, 1] = 1000, 500
    # 90 degrees over 3 pixels: the focal length is 1.5 pixels, the centre pixel looks along the axis.
    np.testing.assert_allclose(unproject(depth, camera), [[-2 / 3, 2 / 3, 0], [0, 0, 0.5]], atol=1e-7)


@common
@given(
    seed=st.integers(0, 2**32 - 1),
    frames=st.integers(1, 5),
    height=st.integers(4, 30),
    width=st.integers(4, 30),
    count=st.integers(1, 200),
    tight=st.booleans(),
)
def test_both_backends_choose_the_same_points(
    seed: int, frames: int, height: int, width: int, count: int, tight: bool
) -> None:
    generator = np.random.default_rng(seed)
    camera, depth = random_camera(generator, height, width), scene(generator, frames, height, width)
    depth[:, 0, 0] = 1000
    crop = EVERYTHING
    if tight:  # a box around the middle of the cloud
        points = unproject(depth[0], camera)
        middle = np.median(points, axis=0)
        crop = CropConfig(tuple((middle - 0.4).tolist()), tuple((middle + 0.4).tolist()))
    results = []
    for backend in BACKENDS:
        try:
            results.append(Converter(camera, crop, count, backend).convert(depth))
        except InputError as error:
            results.append(str(error))
    if isinstance(results[0], str):
        assert results[0] == results[1]
        return
    (clouds, kept), (other_clouds, other_kept) = results
    np.testing.assert_array_equal(kept, other_kept)
    np.testing.assert_array_equal(clouds, other_clouds)
    assert clouds.shape == (frames, count, 3) and clouds.dtype == np.float32
    for frame in range(frames):
        np.testing.assert_array_equal(clouds[frame], oracle(depth[frame], camera, crop, count))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("valid", [1, 5, 16, 17, 40])
def test_exactly_n_real_points(backend: str, valid: int) -> None:
    """Fewer than N points are repeated in order, never padded with zeros; exactly N stay; more become a subset."""
    generator = np.random.default_rng(valid)
    camera = random_camera(generator, 8, 8)
    depth = np.zeros((1, 8, 8), np.uint16)
    depth.reshape(-1)[generator.permutation(64)[:valid]] = generator.integers(500, 900, valid)
    (cloud,), (kept,) = Converter(camera, EVERYTHING, 16, backend).convert(depth)
    points = unproject(depth[0], camera).astype(np.float32)
    assert kept == valid == len(points)
    if valid <= 16:
        np.testing.assert_array_equal(cloud, points[np.arange(16) % valid])
    else:
        assert len(np.unique(cloud, axis=0)) == 16
        assert {tuple(point) for point in cloud.tolist()} < {tuple(point) for point in points.tolist()}


def test_farthest_points_spread() -> None:
    """No point left out lies farther from the chosen ones than those lie from each other."""
    points = np.random.default_rng(3).normal(size=(300, 3))
    rows = farthest_points(torch.tensor(points.T[:, None]), torch.tensor([300]), 40)[0].numpy()
    chosen = points[rows]
    between = np.linalg.norm(chosen[:, None] - chosen[None], axis=-1)
    np.fill_diagonal(between, np.inf)
    to_chosen = np.linalg.norm(points[:, None] - chosen[None], axis=-1).min(axis=1)
    assert to_chosen.max() <= between.min()
    assert rows[0] == 0 and (np.diff(rows) > 0).all()


def test_duplicate_points_are_chosen_once() -> None:
    """Open3D marks chosen points, so duplicates fall out there too; both then repeat in order."""
    distinct = np.random.default_rng(0).normal(size=(10, 3))
    points = np.repeat(distinct, 5, axis=0)
    rows = farthest_points(torch.tensor(points.T[:, None]), torch.tensor([50]), 24)[0].numpy()
    np.testing.assert_array_equal(points[rows], distinct[np.arange(24) % 10])
    converter = Converter(random_camera(np.random.default_rng(0), 2, 2), EVERYTHING, 24)
    np.testing.assert_array_equal(converter._backend._sample(points), points[rows])


@pytest.mark.parametrize("backend", BACKENDS)
def test_crop_is_strict_and_empty_ones_are_explained(backend: str) -> None:
    pose = np.array([[1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, -1.0, 1], [0, 0, 0, 1]])
    camera = Camera(intrinsics(60, 4, 4), pose, 4, 4)
    depth = np.full((3, 4, 4), 500, np.uint16)  # everything at exactly z = 0.5
    inside = CropConfig((-9, -9, 0.49), (9, 9, 0.51))
    assert Converter(camera, inside, 4, backend).convert(depth)[1].tolist() == [16] * 3
    for low, high in ((0.5, 0.6), (0.4, 0.5)):
        with pytest.raises(InputError, match=r"env\.crop: no point of frame 0 .* span .*0\.5\].*env\.camera"):
            Converter(camera, CropConfig((-9, -9, low), (9, 9, high)), 4, backend).convert(depth)
    depth[1] = 0
    with pytest.raises(InputError, match=r"frame 1 .*no valid depth"):
        Converter(camera, inside, 4, backend).convert(depth)


def test_wrong_input_is_named() -> None:
    camera = random_camera(np.random.default_rng(0), 4, 6)
    converter = Converter(camera, EVERYTHING, 4)
    with pytest.raises(InputError, match=r"4 x 6 pixels .* float32 \(1, 4, 6\)"):
        converter.convert(np.ones((1, 4, 6), np.float32))
    with pytest.raises(InputError, match=r"uint16 \(1, 6, 4\)"):
        converter.convert(np.ones((1, 6, 4), np.uint16))
    with pytest.raises(InputError, match="open3d, torch"):
        Converter(camera, EVERYTHING, 4, "pcl")
    with pytest.raises(InputError, match="backend=torch"):
        Converter(camera, EVERYTHING, 4, "open3d", "cuda")
    with pytest.raises(InputError, match="'warp:3'"):
        Converter(camera, EVERYTHING, 4, "torch", "warp:3")
    assert converter.convert(np.zeros((0, 4, 6), np.uint16))[0].shape == (0, 4, 3)


def test_many_frames_are_split_into_batches() -> None:
    generator = np.random.default_rng(0)
    camera, depth = random_camera(generator, 6, 6), generator.integers(500, 900, (70, 6, 6)).astype(np.uint16)
    clouds, kept = Converter(camera, EVERYTHING, 9, "torch").convert(depth)
    other, _ = Converter(camera, EVERYTHING, 9, "open3d").convert(depth)
    assert len(kept) == 70
    np.testing.assert_array_equal(clouds, other)


def test_importing_loads_neither_torch_nor_open3d() -> None:
    code = "import sys, sodp3d.vision.pointcloud; sys.exit(bool({'torch', 'open3d', 'zarr'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_chooses_the_same_points() -> None:
    """As torch on the CPU, which the tests above hold to Open3D's."""
    generator = np.random.default_rng(0)
    camera, depth = random_camera(generator, 84, 84), scene(generator, 8, 84, 84)
    clouds, _ = Converter(camera, EVERYTHING, 512, "torch", "cuda").convert(depth)
    other, _ = Converter(camera, EVERYTHING, 512, "torch").convert(depth)
    np.testing.assert_array_equal(clouds, other)
