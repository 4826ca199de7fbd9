"""True extrinsics: scenes whose surfaces are known exactly, seen by every camera, and known sites found in images."""

import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_env import config

from sodp3d.core.errors import InputError
from sodp3d.envs import make_env
from sodp3d.vision import gl
from sodp3d.vision.camera import Camera, intrinsics, mujoco_camera
from sodp3d.vision.pointcloud import project, unproject
from sodp3d.vision.renderer import Renderer

HEIGHT, WIDTH, FOVY = 60, 80, 50.0
BOX, BALL = np.array([0.3, -0.2, 0.15]), np.array([-0.5, 0.4, 0.1])
SCENE = f"""
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="first" pos="5 5 5"/>
    <camera name="above" pos="0.1 0.2 2" fovy="{FOVY}"/>
    <camera name="oblique" pos="1 -1.2 1.1" xyaxes="1.2 1 0 -0.5 0.6 1" fovy="{FOVY}"/>
    <geom name="floor" type="plane" size="3 3 0.1"/>
    <geom name="box" type="box" size="0.1 0.2 0.15" pos="{BOX[0]} {BOX[1]} {BOX[2]}"/>
    <geom name="ball" type="sphere" size="0.1" pos="{BALL[0]} {BALL[1]} {BALL[2]}"/>
    <geom name="invisible" type="box" size="0.5 0.5 0.1" pos="0 0 1" group="4"/>
    <site name="marker" size="0.05" pos="0 -0.5 0.3"/>
    <site name="unmarked" size="0.3" pos="0 0 0.5"/>
    <body name="arm" pos="0 0 1.5">
      <joint name="turn" axis="0 1 0"/>
      <camera name="wrist" pos="0.3 0 0.2" euler="10 20 30" fovy="{FOVY}"/>
      <geom size="0.01" pos="0 0 3"/>
    </body>
  </worldbody>
  <visual><map znear="0.01" zfar="20"/></visual>
</mujoco>
"""
CAMERAS = ("above", "oblique", "wrist")


@pytest.fixture(scope="module")
def scene() -> tuple[mujoco.MjModel, mujoco.MjData]:
    spec = mujoco.MjSpec.from_string(SCENE)
    Renderer.prepare(spec)
    model = spec.compile()
    data = mujoco.MjData(model)
    data.joint("turn").qpos[0] = 0.3  # the wrist camera is where the data says, not where the model says
    mujoco.mj_forward(model, data)
    return model, data


@pytest.fixture(params=["opengl", "raycast"])
def backend(request: pytest.FixtureRequest) -> str:
    chosen = gl.choose("auto")
    if request.param == "raycast":
        return "raycast"
    if chosen == "raycast":
        pytest.skip("no OpenGL on this machine")
    return chosen


def view(data: mujoco.MjData, name: str) -> tuple[int, Camera]:
    camera = data.model.camera(name).id
    return camera, mujoco_camera(data.cam_xpos[camera], data.cam_xmat[camera], FOVY, HEIGHT, WIDTH)


def distance_to_scene(points: np.ndarray) -> np.ndarray:
    """To the nearest surface of floor, box, ball and marker."""
    outside = np.abs(points - BOX) - [0.1, 0.2, 0.15]
    box = np.linalg.norm(np.maximum(outside, 0), axis=1) + np.minimum(outside.max(axis=1), 0)
    ball = np.linalg.norm(points - BALL, axis=1) - 0.1
    marker = np.linalg.norm(points - [0, -0.5, 0.3], axis=1) - 0.05
    return np.min(np.abs([points[:, 2], box, ball, marker]), axis=0)


@pytest.mark.parametrize("name", CAMERAS)
def test_points_lie_on_the_surfaces(scene: tuple, backend: str, name: str) -> None:
    model, data = scene
    index, camera = view(data, name)
    assert index != 0
    renderer = Renderer(model, backend, (model.site("marker").id,))
    depth = renderer.depth(data, index, HEIGHT, WIDTH)
    points = unproject(depth, camera)
    assert len(points) > 0.5 * HEIGHT * WIDTH
    assert distance_to_scene(points).max() < 0.002
    seen = [np.abs(points[:, 2]) < 0.002, np.linalg.norm(points - BALL, axis=1) < 0.102, points[:, 2] > 0.25]
    assert all(part.any() for part in (seen if name != "wrist" else seen[:1]))


@pytest.mark.parametrize("name", ["above", "oblique"])
def test_a_known_object_is_at_its_projected_pixel(scene: tuple, backend: str, name: str) -> None:
    """Row 0 is the top, column 0 the left: a flipped or turned image would have the floor there."""
    model, data = scene
    index, camera = view(data, name)
    depth = Renderer(model, backend).depth(data, index, HEIGHT, WIDTH)
    (u,), (v,), (z,) = project(BALL[None], camera)
    assert 0 < u < WIDTH - 1 and 0 < v < HEIGHT - 1
    assert depth[round(v), round(u)] / 1000 == pytest.approx(z - 0.1, abs=0.01)  # the pixel nearest to its centre
    for row, column in ((HEIGHT - 1 - round(v), round(u)), (round(v), WIDTH - 1 - round(u))):
        assert abs(depth[row, column] / 1000 - (z - 0.1)) > 0.02


def test_depth_is_along_the_optical_axis(scene: tuple, backend: str) -> None:
    model, data = scene
    index, _ = view(data, "above")
    depth = Renderer(model, backend).depth(data, index, HEIGHT, WIDTH)
    assert depth.dtype == np.uint16 and depth[0, 0] == depth[0, -1] == 2000  # a corner of the floor, seen obliquely


def test_nothing_and_too_far_are_zero(backend: str) -> None:
    spec = mujoco.MjSpec.from_string(
        """<mujoco><visual><map zfar="2000"/></visual><statistic extent="1"/><worldbody><camera name="c" fovy="90"/>
        <geom type="box" size="100 100 1" pos="0 -100 -70.5"/><geom type="box" size="9 9 1" pos="9 9 -61"/>
        </worldbody></mujoco>"""
    )
    Renderer.prepare(spec)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    depth = Renderer(model, backend).depth(data, 0, 40, 40)
    assert (depth[20:] == 0).all()  # the wide box at 69.5 m is beyond what 16 bits hold
    assert (depth[:14] == 0).all() and (depth[:, :20] == 0).all()  # nothing there
    np.testing.assert_allclose(depth[15:20, 20:23], 60000, atol=5)


@pytest.mark.parametrize(
    ("name", "site", "margin"),
    [("adroit_door", "S_handle", 0.03), ("adroit_hammer", "nail_goal", 0.02), ("adroit_pen", "target_top", 0.02)],
)
def test_sites_of_real_scenes_are_found_in_their_images(name: str, site: str, margin: float) -> None:
    """Sites lie within a known distance of a visible surface; a wrong pose would be off by decimetres."""
    env = make_env(config(name), "raycast")
    for seed in range(3):
        env.reset(seed=seed)
        camera, position = env.camera_parameters(), env.data.site(site).xpos
        (u,), (v,), _ = project(position[None], camera)
        depth = env.render_depth()
        only = np.zeros_like(depth)
        only[round(v), round(u)] = depth[round(v), round(u)]
        assert np.linalg.norm(unproject(only, camera)[0] - position) < margin


def test_goal_of_reach_is_seen_where_it_is(backend: str) -> None:
    env = make_env(config("metaworld"), backend)
    env.reset(seed=2)
    goal = env.task.state()[-3:]
    points = unproject(env.render_depth(), env.camera_parameters())
    radii = np.linalg.norm(points - goal, axis=1)
    assert (np.abs(radii - 0.02) < 0.002).sum() >= 5 and radii.min() > 0.018


MATRIX = intrinsics(45, 48, 64)
POSE = np.array([[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"intrinsics": MATRIX.T}, "intrinsics: expected finite .* transpose it"),
        ({"intrinsics": MATRIX + 3 * np.eye(3, k=1) * [0, 1, 0]}, "intrinsics: .* rectify images that are skewed"),
        ({"intrinsics": 2 * MATRIX}, r"intrinsics: .*\[0, 0, 1\]\], got"),
        ({"intrinsics": -MATRIX}, "intrinsics: .* focal lengths above 0"),
        ({"intrinsics": MATRIX * np.nan}, "intrinsics: expected (finite|a number)"),
        ({"pose": POSE.T}, "pose: expected a rotation and a position, .* transpose it"),
        ({"pose": POSE * [[1000], [1000], [1000], [1]]}, "pose: expected a rotation"),
        ({"pose": POSE * [[-1], [1], [1], [1]]}, "pose: expected a rotation"),
        ({"pose": POSE * [1, 1, 1, np.inf]}, "pose: expected a rotation"),
        ({"height": 0}, "expected a height and a width above 0, got 0 and 64"),
    ],
)
def test_a_camera_that_would_make_wrong_clouds_is_refused(changes: dict, told: str) -> None:
    given = {"intrinsics": MATRIX, "pose": POSE, "height": 48, "width": 64}
    assert Camera.from_dict(Camera(**given).to_dict()).pose is not None
    with pytest.raises(InputError, match=f"camera.*{told}"):
        Camera(**{**given, **changes})
    listed = {key: value if isinstance(value, int) else value.tolist() for key, value in {**given, **changes}.items()}
    with pytest.raises(InputError, match=f"camera.*{told}"):
        Camera.from_dict(listed)


@given(
    st.floats(20, 100),
    st.integers(4, 200),
    st.integers(4, 200),
    st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1),
)
def test_camera_survives_json_and_agrees_with_mujoco(
    fovy: float, height: int, width: int, position: list[float], quaternion: list[float]
) -> None:
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, np.array(quaternion) / np.linalg.norm(quaternion))
    camera = mujoco_camera(np.array(position), rotation, fovy, height, width)
    again = Camera.from_dict(camera.to_dict())
    np.testing.assert_array_equal(again.pose, camera.pose)
    np.testing.assert_array_equal(again.intrinsics, intrinsics(fovy, height, width))
    assert np.linalg.det(camera.pose[:3, :3]) == pytest.approx(1)
    # A point at the middle of the upper edge, 1 m along MuJoCo's -z axis, is half a pixel above the first row.
    local = np.array([0, np.tan(np.deg2rad(fovy) / 2), -1])
    (u,), (v,), (z,) = project((rotation.reshape(3, 3) @ local + position)[None], camera)
    assert (u, v, z) == pytest.approx(((width - 1) / 2, -0.5, 1), abs=1e-6)
