"""Cameras that cannot see, and cameras that move."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toy_env import config

from sodp3d.collection.environments import CollectionGroup
from sodp3d.core.errors import InputError
from sodp3d.envs import EnvConfig, make_env
from sodp3d.vision.simulator import mujoco

SMALL = ("env.camera.height=16", "env.camera.width=16", "env.points=16", "env.episode_steps=2")


def seen_by(task: EnvConfig, **changes: Any) -> EnvConfig:
    return replace(task, camera=replace(task.camera, **changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": ""}, r"env\.camera\.name: expected a name"),
        ({"fovy": 180.0}, r"env\.camera\.fovy: .* between 0 and 180, got 180"),
        ({"fovy": -45.0}, r"env\.camera\.fovy: .* between 0 and 180, got -45"),
        ({"fovy": float("nan")}, r"env\.camera\.fovy: .* got nan"),
        ({"quaternion": (0.0, 0.0, 0.0, 1e-9)}, r"env\.camera\.quaternion: expected four numbers, not all 0"),
        ({"quaternion": (1.0, 0.0, 0.0, float("nan"))}, r"env\.camera\.quaternion: .* all finite"),
        ({"height": 0}, r"env\.camera\.height: .* from 1 to 4096, got 0"),
        ({"width": 4097}, r"env\.camera\.width: .* from 1 to 4096, got 4097"),
    ],
)
def test_a_camera_that_cannot_see_is_refused_by_key(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        seen_by(config("adroit_door"), **changes)


def test_more_pixels_than_opengl_draws_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env(seen_by(config("adroit_door"), height=700), "auto")
    if env.renderer_name == "raycast":
        pytest.skip("no OpenGL on this machine")
    env.reset(seed=0)

    def fails(*_: Any) -> None:
        raise mujoco.FatalError("Offscreen framebuffer is not complete, error 0x8cdd")

    with monkeypatch.context() as patched:
        patched.setattr(mujoco, "mjr_resizeOffscreen", fails)
        with pytest.raises(InputError, match=r"env\.camera\.height, .* cannot draw 700 x 84 pixels .* not complete"):
            env.render_depth()
    assert np.count_nonzero(env.render_depth()) > 0.5 * 700 * 84


def test_images_that_show_next_to_nothing_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    upwards = seen_by(config("adroit_door", *SMALL), quaternion=(0.0, 1.0, 0.0, 0.0))
    group, silent = CollectionGroup(upwards, "raycast"), CollectionGroup(upwards, "raycast")
    group.describe()  # asked of one worker of all
    for each in (group, silent):
        for seed in (3, 4):
            each.reset([seed], record=True)
            for _ in range(2):
                each.step(np.zeros((1, 28), np.float32))
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "adroit_door: 100.0 % of the depth image at step 0 of the episode of seed 3 show nothing" in told
    assert "env.camera" in told
