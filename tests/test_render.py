"""Backends: their choice, their agreement, and several environments in one process."""

import hashlib
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import mujoco
import numpy as np
import pytest
from toy_env import config, slider_env

from sodp3d.core.errors import InputError
from sodp3d.envs import EnvConfig, RobotEnv, expand, make_env
from sodp3d.vision import gl
from sodp3d.vision.pointcloud import unproject
from sodp3d.vision.renderer import Renderer, _GLScene

TESTS = Path(__file__).parent
ADROIT = ("adroit_hammer", "adroit_door", "adroit_pen")


@pytest.fixture(scope="module")
def opengl() -> str:
    chosen = gl.choose("auto")
    if chosen == "raycast":
        pytest.skip("no OpenGL on this machine")
    return chosen


def benchmark_tasks() -> list[EnvConfig]:
    tasks = {task.name: task for name in ("mt10", "mt10_paper") for task in expand(config(name))}
    return [*(config(name) for name in ADROIT), *tasks.values()]


def inside_crop(depth: np.ndarray, env: RobotEnv) -> np.ndarray:
    """(H, W) pixels whose point is inside the crop."""
    mask = depth > 0
    points = unproject(depth, env.camera_parameters())
    mask[mask] = ((points > env.config.crop.low) & (points < env.config.crop.high)).all(axis=1)
    return mask


@pytest.mark.parametrize("task", benchmark_tasks(), ids=lambda task: task.name)
def test_ray_casting_agrees_with_opengl_inside_the_crop(task: EnvConfig, opengl: str) -> None:
    env = make_env(task, opengl)
    camera = task.camera
    rays = Renderer(env.model, "raycast", env.task.visible_sites)
    env.action_space.seed(0)
    for seed, steps in ((0, 0), (1, 12)):
        env.reset(seed=seed)
        for _ in range(steps):
            env.step(env.action_space.sample())
        drawn, cast = env.render_depth(), rays.depth(env.data, env._camera, camera.height, camera.width)
        crop = inside_crop(drawn, env) | inside_crop(cast, env)
        difference = np.abs(drawn.astype(int) - cast)[crop]
        assert crop.sum() >= 512
        assert np.mean(difference <= 5) >= 0.99 and np.mean(difference <= 1) >= 0.95


def test_environments_of_one_process_do_not_disturb_each_other(opengl: str) -> None:
    """Two tasks and two environments of one task, drawn in turn, against one alone in its own process."""
    cases = [("adroit_door", 0), ("adroit_pen", 1), ("adroit_door", 2), ("adroit_hammer", 3)]
    program = (
        "import sys, hashlib\nfrom toy_env import config\nfrom sodp3d.envs import make_env\n"
        f"env = make_env(config(sys.argv[1]), {opengl!r})\nenv.reset(seed=int(sys.argv[2]))\n"
        "sys.stdout.write(hashlib.sha256(env.render_depth().tobytes() + env.render_rgb().tobytes()).hexdigest())"
    )
    environments = [make_env(config(name), opengl) for name, _ in cases]
    for env, (_, seed) in zip(environments, cases, strict=True):
        env.reset(seed=seed)
    together = []
    for _ in range(2):
        images = [env.render_depth().tobytes() + env.render_rgb().tobytes() for env in environments]
        together.append([hashlib.sha256(image).hexdigest() for image in images])
    assert together[0] == together[1]
    (name, seed), digest = cases[1], together[0][1]
    command = [sys.executable, "-c", program, name, str(seed)]
    alone = subprocess.run(command, capture_output=True, text=True, cwd=TESTS)
    assert alone.stdout == digest, alone.stderr
    again = make_env(config("adroit_door"), opengl)  # drawn last, after all others
    again.reset(seed=0)
    np.testing.assert_array_equal(again.render_depth(), environments[0].render_depth())


@pytest.mark.parametrize("name", ["adroit_door", "metaworld"])
def test_a_stored_state_is_drawn_again_exactly(name: str, opengl: str) -> None:
    for backend in (opengl, "raycast"):
        env, other = make_env(config(name), backend), make_env(config(name), backend)
        env.reset(seed=0)
        for _ in range(3):
            env.step(env.action_space.sample())
        other.set_state(env.get_state())
        np.testing.assert_array_equal(other.render_depth(), env.render_depth())


@pytest.mark.parametrize("name", ["adroit_hammer", "metaworld"])
def test_what_is_out_of_view_is_not_drawn_and_changes_no_pixel(name: str, opengl: str) -> None:
    env = make_env(config(name), opengl)
    env.reset(seed=0)
    scene, view = env.renderer._gl, env.data.cam_xmat[env._camera]
    assert scene is not None
    own = np.empty(4)
    mujoco.mju_mat2Quat(own, view)
    shares = []
    for orientation in [own, *np.random.default_rng(0).normal(size=(12, 4))]:
        mujoco.mju_quat2Mat(view, orientation / np.linalg.norm(orientation))
        for height, width in ((48, 96), (96, 48)):
            image = env.renderer.depth(env.data, env._camera, height, width)
            drawn = scene._scene.ngeom
            with patch.object(_GLScene, "_out_of_view", lambda *_: np.zeros(env.model.ngeom, dtype=bool)):
                np.testing.assert_array_equal(env.renderer.depth(env.data, env._camera, height, width), image)
            shares.append(drawn / scene._scene.ngeom)
    assert np.mean(shares) < 0.8


def test_drawing_changes_nothing(opengl: str) -> None:
    for backend in (opengl, "raycast"):
        env = make_env(config("metaworld"), backend)
        env.reset(seed=0)
        boxes, state = env.model.geom_aabb.copy(), env.get_state()
        groups = [env.model.site_group.copy(), env.model.geom_group.copy()]
        env.render_depth()
        env.render_rgb()
        np.testing.assert_array_equal(env.model.geom_aabb, boxes)
        np.testing.assert_array_equal(env.model.site_group, groups[0])
        np.testing.assert_array_equal(env.model.geom_group, groups[1])
        np.testing.assert_array_equal(env.get_state(), state)


def test_colour_images_of_any_size(opengl: str) -> None:
    env = make_env(config("adroit_door"), opengl, render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    assert frame is not None and frame.shape == (256, 256, 3) and frame.std() > 20
    large = env.render_rgb(600, 800)  # larger than the frame buffer made at first
    assert large.shape == (600, 800, 3) and large[:, 700:].std() > 5
    assert make_env(config("adroit_door"), opengl).render() is None


def test_ray_casting_needs_no_opengl() -> None:
    program = (
        "import sys\nfrom toy_env import config\nfrom sodp3d.envs import make_env\n"
        "env = make_env(config('adroit_door'), 'raycast')\nenv.reset(seed=0)\nenv.render_depth()\nenv.render_rgb()\n"
        "sys.stdout.write(env.renderer_name + str('OpenGL' in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=TESTS)
    assert result.stdout == "raycastFalse", result.stderr


def test_grey_images_without_opengl_show_the_ball_brightest() -> None:
    env = slider_env()
    env.reset(seed=0)
    image = env.render_rgb()
    assert image.shape == (32, 32, 3) and image[16, 16, 0] == image.max() and image[0, 0, 0] == 0


def test_renderers_stay_in_their_process() -> None:
    env = slider_env()
    with pytest.raises(TypeError, match="stay in their process"):
        pickle.dumps(env.renderer)


def test_contexts_do_not_survive_fork(opengl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env(config("adroit_door"), opengl)
    env.reset(seed=0)
    env.render_depth()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="spawn"):
        env.render_depth()


def test_one_opengl_backend_per_process(opengl: str) -> None:
    other = {"egl": "osmesa", "osmesa": "egl"}[opengl]
    with pytest.raises(InputError, match=f"already draws with {opengl}"):
        gl.choose(other)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As in a process that has drawn nothing yet; nothing is really opened."""
    monkeypatch.setattr(gl, "_context", None)
    monkeypatch.setattr(gl, "_bound", lambda: None)
    monkeypatch.setattr(gl, "current", lambda backend: None)
    monkeypatch.setenv("SODP3D_GL", "")
    return monkeypatch


def probes(**renderers: str | None) -> object:
    return lambda backend: gl.Probe(backend, renderers[backend], None if renderers[backend] else "ImportError: gone")


@pytest.mark.parametrize(
    ("egl", "osmesa", "chosen", "message"),
    [
        ("NVIDIA H200", "llvmpipe", "egl", None),
        ("llvmpipe (LLVM 15)", "llvmpipe", "egl", "EGL draws in software"),
        (None, "llvmpipe", "osmesa", None),  # and says why not egl
        (None, None, "raycast", "apt-get install -y libosmesa6"),
    ],
)
def test_auto_takes_the_first_that_works_and_says_so(
    egl: str | None,
    osmesa: str | None,
    chosen: str,
    message: str | None,
    fresh: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fresh.setattr(gl, "probe", probes(egl=egl, osmesa=osmesa))
    caplog.set_level(logging.INFO)
    assert gl.choose("auto") == chosen
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (message is not None) and all(message in warning for warning in warnings if message)
    assert f"takes {chosen}" in caplog.text and (egl is not None or "ImportError: gone" in caplog.text)
    fresh.setattr(gl, "probe", None)  # the next process of this one's children need not try again
    assert gl.choose("auto") == chosen


@pytest.mark.parametrize(
    ("backend", "failure", "words"),
    [
        ("egl", "AttributeError: 'NoneType' object has no attribute 'eglQueryString'", "apt-get install -y libegl1"),
        ("osmesa", "AttributeError: 'NoneType' object has no attribute 'glGetError'", "apt-get install -y libosmesa6"),
        ("egl", "ImportError: Cannot initialize a EGL device display.", "driver's EGL"),
        (
            "egl",
            "RuntimeError: The MUJOCO_EGL_DEVICE_ID environment variable must be",
            "MUJOCO_EGL_DEVICE_ID=99 is none",
        ),
    ],
)
def test_advice_is_about_what_failed(backend: str, failure: str, words: str, fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    assert words in gl.advice(backend, failure)


def choose_in_a_process(renderer: str, **variables: str) -> str:
    """What a process with these variables says when it chooses, as commands do."""
    program = (
        "import logging, sys\nlogging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stdout)\n"
        "from sodp3d.envs import make_env\nfrom sodp3d.vision import gl\nfrom sodp3d.core.errors import InputError\n"
        f"try: sys.stdout.write('chosen: ' + gl.choose({renderer!r}))\n"
        "except InputError as error: sys.stdout.write(str(error))\n"
    )
    prefixes = ("MUJOCO_", "PYOPENGL_", "SODP3D_GL")
    unset = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**unset, **variables})
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("renderer", "variables", "words"),
    [
        ("egl", {"MUJOCO_EGL_DEVICE_ID": "99"}, "render=egl does not work here"),
        ("auto", {"MUJOCO_GL": "vulkan"}, "MUJOCO_GL: expected egl, osmesa or nothing, got 'vulkan'"),
        ("egl", {"MUJOCO_GL": "vulkan"}, "MUJOCO_GL: expected egl, osmesa or nothing, got 'vulkan'"),
        ("raycast", {"MUJOCO_GL": "vulkan"}, "chosen: raycast"),
        (
            "auto",
            {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "egl"},
            "MUJOCO_GL asks for osmesa, but PYOPENGL_PLATFORM for egl",
        ),
        ("auto", {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "99"}, "render=auto takes raycast (egl: "),
    ],
)
def test_contradictory_variables_and_missing_devices_are_one_message(
    renderer: str, variables: dict[str, str], words: str
) -> None:
    said = choose_in_a_process(renderer, **variables)
    assert words in said and "Traceback" not in said and len(said.splitlines()) <= 2


def test_a_hanging_driver_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl, "_PROBE", "import time; time.sleep(60)  # {backend}")
    monkeypatch.setattr(gl, "_PROBE_SECONDS", 0.2)
    assert "did not answer" in str(gl.probe("egl").failure)
