"""A family of environments: a puck on a table, to be pushed onto a target that only the depth camera shows.

Shape letters: Da = 2 action size (velocity along x and y).
"""

import mujoco
import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.envs.base import compile_model
from sodp3d.envs.config import EnvConfig

REACH = 0.04  # metres between puck and target that count as reached
TABLE = 0.25  # half of the table's side, metres
SCENE = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <light pos="0 0 2"/>
    <geom name="table" type="plane" size="0.5 0.5 0.1" rgba="0.6 0.6 0.6 1"/>
    <body name="target"><geom type="box" size="0.03 0.03 0.01" pos="0 0 0.01" rgba="0 0.7 0 1" contype="0"/></body>
    <body name="puck" pos="0 0 0.03">
      <joint name="x" type="slide" axis="1 0 0"/><joint name="y" type="slide" axis="0 1 0"/>
      <geom type="cylinder" size="0.02 0.02" rgba="0.8 0 0 1" contype="0"/>
    </body>
  </worldbody>
</mujoco>
"""


class Puck:
    """As `sodp3d.envs.base.Task`; env.task: push.

    state: puck x and y, then target x and y, metres. Proprioception: the puck alone. Reward: minus their distance.
    """

    action_size = 2
    count_threshold = 5
    visible_sites: tuple[int, ...] = ()  # the target is a body

    def __init__(self, config: EnvConfig) -> None:
        if config.task != "push":
            raise InputError(f"env.task: env.family=table has the task push, got {config.task!r}.")
        self.model = compile_model(mujoco.MjSpec.from_string(SCENE), config.camera)
        self.data = mujoco.MjData(self.model)
        self.frame_skip = 5
        self._target = self.model.body("target").pos  # a view into the model

    def reset(self, seed: int) -> None:
        """Puck and target anywhere on the table."""
        mujoco.mj_resetData(self.model, self.data)
        random = np.random.default_rng(seed)
        self.data.qpos[:] = random.uniform(-TABLE, TABLE, 2)
        self._target[:2] = random.uniform(-TABLE, TABLE, 2)
        self.forward()

    def step(self, action: NDArray[np.float64]) -> tuple[float, bool, bool]:
        """Move for one raw frame at up to 0.5 m/s."""
        self.data.qvel[:] = 0.5 * action
        mujoco.mj_step(self.model, self.data, self.frame_skip)
        self.data.qpos[:] = np.clip(self.data.qpos, -TABLE, TABLE)
        self.forward()
        distance = float(np.linalg.norm(self.data.qpos - self._target[:2]))
        return -distance, distance < REACH, False

    def forward(self) -> None:
        """Everything that follows from positions."""
        mujoco.mj_forward(self.model, self.data)

    def state(self) -> NDArray[np.float64]:
        """(4,) puck and target."""
        return np.concatenate([self.data.qpos, self._target[:2]])

    def proprioception(self) -> NDArray[np.float64]:
        """(2,) the puck."""
        return self.data.qpos.copy()

    def get_variables(self) -> NDArray[np.float64]:
        """(3,) where the target is, which MuJoCo's state leaves out."""
        return self._target.copy()

    def set_variables(self, values: NDArray[np.float64]) -> None:
        """Inverse of `get_variables`."""
        self._target[:] = values

    @staticmethod
    def expert(task: str) -> "Straight":
        """For agent=scripted."""
        return Straight()


class Straight:
    """Goes to the target on a straight line."""

    def get_action(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        """state (4,) -> action (2,), clipped by the environment."""
        return 10 * (state[2:] - state[:2])
