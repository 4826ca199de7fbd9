"""Environment configs by name, and a task small enough to check every number by hand."""

import functools
from dataclasses import replace
from typing import Any

import mujoco
import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sodp3d.core.paths import CHECKOUT
from sodp3d.envs.base import RobotEnv
from sodp3d.envs.config import EnvConfig
from sodp3d.vision.camera import CameraConfig


@functools.cache
def config(name: str, *overrides: str) -> EnvConfig:
    """configs/env/<name>.yaml with overrides such as `env.task=push`."""
    with initialize_config_dir(str(CHECKOUT / "configs"), version_base="1.3"):
        composed = compose(f"env/{name}", list(overrides))
    return EnvConfig.from_config(OmegaConf.to_container(composed.env, resolve=True))


SLIDER = """
<mujoco>
  <option timestep="0.002" gravity="0 0 0"/>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="top" pos="0 0 2"/>
    <body><joint name="x" type="slide" axis="1 0 0"/><geom name="ball" size="0.1" rgba="1 0 0 1"/></body>
  </worldbody>
</mujoco>
"""


class Slider:
    """A ball that moves by 0.1 m times the action per raw frame. Reward: x; goal: x > 0.25; ends at x > 1."""

    action_size = 1
    frame_skip = 5
    count_threshold = 2
    visible_sites = ()

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(SLIDER)
        self.data = mujoco.MjData(self.model)

    def reset(self, seed: int) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.forward()

    def step(self, action: np.ndarray) -> tuple[float, bool, bool]:
        self.data.qpos[0] += 0.1 * action[0]
        self.forward()
        return self.data.qpos[0], bool(self.data.qpos[0] > 0.25), bool(self.data.qpos[0] > 1)

    def forward(self) -> None:
        mujoco.mj_forward(self.model, self.data)

    def state(self) -> np.ndarray:
        return self.data.qpos.copy()

    def proprioception(self) -> np.ndarray:
        return self.data.qpos.copy()

    def get_variables(self) -> np.ndarray:
        return np.zeros(0)

    def set_variables(self, values: np.ndarray) -> None:
        pass


def slider_env(**changes: Any) -> RobotEnv:
    """The slider with action repeat 2, 6 control steps, To / Ta = 2 / 3, and a 32-pixel camera from above."""
    base = config("adroit_door")
    camera = CameraConfig("top", (0.0, 0.0, 2.0), (1.0, 0.0, 0.0, 0.0), 45.0, 32, 32)
    changes = {"name": "slider", "episode_steps": 6, "camera": camera, **changes}
    return RobotEnv(replace(base, **changes), Slider(), "raycast")
