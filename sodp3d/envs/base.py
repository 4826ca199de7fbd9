"""The one environment class; tasks plug into it through the small `Task` protocol.

Shape letters: Da action, Dp proprioception, Ds state, S simulator state, H W image.
"""

import copy
import functools
import logging
from dataclasses import replace
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.envs.config import EnvConfig
from sodp3d.envs.divergence import DivergedError, simulate
from sodp3d.vision import gl
from sodp3d.vision.camera import Camera, CameraConfig, camera_pose, mujoco_camera
from sodp3d.vision.renderer import Renderer
from sodp3d.vision.simulator import mujoco

log = logging.getLogger(__name__)

Observation = dict[str, NDArray[np.float32]]

# What a simulation needs to go on exactly. Forces applied from outside are left out: no task applies any.
_PHYSICS = (
    mujoco.mjtState.mjSTATE_FULLPHYSICS
    | mujoco.mjtState.mjSTATE_WARMSTART
    | mujoco.mjtState.mjSTATE_CTRL
    | mujoco.mjtState.mjSTATE_EQ_ACTIVE
    | mujoco.mjtState.mjSTATE_MOCAP_POS
    | mujoco.mjtState.mjSTATE_MOCAP_QUAT
)
_ORTHOGRAPHIC = ("orthographic", "proj")  # of a model's camera: 0 for perspective, by either name in releases of MuJoCo


class Task(Protocol):
    """What an environment family provides: raw simulator frames, without action repeat, rendering or time limits.

    A family may also have static methods: `score_states(task, states)`, reward and goal flag of state vectors alone
    (then demonstrations can be scored); `expert(task)`, an object whose `get_action(state)` acts well; `require(task)`,
    which raises InputError for a name that it does not have (then a set is refused before any of its tasks is begun).
    """

    model: mujoco.MjModel
    data: mujoco.MjData
    action_size: int
    frame_skip: int  # simulator steps of a raw frame
    count_threshold: int  # success_count: more raw frames than this with the goal achieved
    visible_sites: tuple[int, ...]  # sites that depth images show, because they mark the goal

    def reset(self, seed: int) -> None:
        """Start an episode that `seed` fully determines."""

    def step(self, action: NDArray[np.float64]) -> tuple[float, bool, bool]:
        """Simulate one raw frame. Returns reward, whether the goal is achieved, and whether the episode is over."""

    def forward(self) -> None:
        """Recompute everything that positions and velocities determine."""

    def state(self) -> NDArray[np.float64]:
        """(Ds,) the task's own state vector."""

    def proprioception(self) -> NDArray[np.float64]:
        """(Dp,) what the robot feels of itself."""

    def get_variables(self) -> NDArray[np.float64]:
        """(V,) all that varies outside MuJoCo's state: moved bodies, targets, earlier frames."""

    def set_variables(self, values: NDArray[np.float64]) -> None:
        """Inverse of `get_variables`."""


def add_camera(spec: mujoco.MjSpec, camera: CameraConfig) -> None:
    """Give `spec` the camera described by `camera`: a new one, or the model's own of that name with parts replaced.

    Raises InputError where a null position or quaternion leaves a new camera without a pose, where one is given to a
    camera that moves with a body, or where the model's own has no perspective.
    """
    existing = {item.name: item for item in spec.cameras}
    target = existing.get(camera.name)
    if target is None:
        if camera.position is None or camera.quaternion is None:
            raise InputError(
                f"env.camera.name: the model has no camera {camera.name!r} (it has {', '.join(sorted(existing))}). "
                "Name one of those, or give both env.camera.position and env.camera.quaternion."
            )
        target = spec.worldbody.add_camera(name=camera.name)
    elif (camera.position or camera.quaternion) and target.parent.name != "world":
        raise InputError(
            f"env.camera.name: camera {camera.name!r} moves with body {target.parent.name!r}, so it cannot be placed "
            "in the world frame. Choose a name that the model does not use."
        )
    elif any(getattr(target, name, 0) for name in _ORTHOGRAPHIC):
        raise InputError(
            f"env.camera.name: camera {camera.name!r} is orthographic, and depth is of cameras with perspective. "
            "Choose another, or a name that the model does not use."
        )
    if camera.position is not None:
        target.pos = camera.position
    if camera.quaternion is not None:
        target.alt.type = mujoco.mjtOrientation.mjORIENTATION_QUAT
        target.quat = camera.quaternion
    if camera.position is not None and camera.quaternion is not None:
        target.mode = mujoco.mjtCamLight.mjCAMLIGHT_FIXED
    target.fovy = camera.fovy
    target.sensor_size = (0, 0)  # of one with a sensor MuJoCo would take the field of view from that, and not from fovy


def compile_model(spec: mujoco.MjSpec, camera: CameraConfig) -> mujoco.MjModel:
    """The model of `spec` with the depth camera in it, ready for every renderer. Raises InputError as `add_camera`."""
    add_camera(spec, camera)
    Renderer.prepare(spec)
    model: mujoco.MjModel = spec.compile()
    return model


@functools.lru_cache(maxsize=1)  # a task's environments are made in a row, and compiling is most of the work
def _compiled(path: str, camera: CameraConfig) -> mujoco.MjModel:
    return compile_model(mujoco.MjSpec.from_file(path), camera)


def with_camera(environment: type, camera: CameraConfig) -> type:
    """`environment` (a gymnasium MujocoEnv class), loading its model with the camera in it and smooth round geoms."""

    class WithCamera(environment):
        def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
            model = copy.copy(_compiled(self.fullpath, camera))
            return model, mujoco.MjData(model)

    WithCamera.__name__ = WithCamera.__qualname__ = environment.__name__
    return WithCamera


class RobotEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """A task with action repeat, a time limit, three success metrics, a depth camera and exact state.

    Observations are computed from positions and velocities at the end of each raw frame, so a restored state gives the
    same observation and the same image.

    Episodes: `reset(seed)` determines the whole episode; without a seed one is drawn from `np_random`. Either way
    `info["seed"]` says which. An episode truncates after `config.episode_steps` control steps; stepping on is an error.
    An episode whose simulation diverges ends there, truncated and failed, as it was before that step.
    """

    def __init__(self, config: EnvConfig, task: Task, renderer: str = "auto", render_mode: str | None = None) -> None:
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": self._frames_per_second(config, task)}
        if render_mode not in (None, "rgb_array"):
            raise InputError(f"render_mode: expected None or 'rgb_array', got {render_mode!r}.")
        if renderer not in ("auto", *gl.BACKENDS):
            raise InputError(f"render: expected one of auto, {', '.join(gl.BACKENDS)}, got {renderer!r}.")
        self.config = config
        self.render_mode = render_mode
        self.task = task
        self.model, self.data = task.model, task.data
        self._camera = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_CAMERA, config.camera.name)
        self._backend = renderer
        self._renderer: Renderer | None = None
        self._seed: int | None = None  # of the episode
        self._frames = self._goal_frames = 0  # control steps done; raw frames with the goal achieved
        self._achieved = self._over = False
        task.reset(0)  # so that sizes are known and a state can be set before the first reset
        self.action_space = spaces.Box(-1.0, 1.0, (task.action_size,), np.float32)
        sizes = {"agent_pos": task.proprioception().size, "state": task.state().size}
        boxes: dict[str, spaces.Space[Any]] = {
            key: spaces.Box(-np.inf, np.inf, (size,), np.float32) for key, size in sizes.items()
        }
        self.observation_space: spaces.Dict = spaces.Dict(boxes)  # type: ignore[assignment]

    @staticmethod
    def _frames_per_second(config: EnvConfig, task: Task) -> int:
        return round(1 / (task.model.opt.timestep * task.frame_skip * config.action_repeat))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode. `info` holds `seed`, the number that brings this very episode back."""
        super().reset(seed=seed)
        episode_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self.task.reset(episode_seed)
        self._seed = episode_seed
        self._frames = self._goal_frames = 0
        self._achieved = self._over = False
        return self._observation(), {"seed": episode_seed, **self._info(0)}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply `action` (Da,), clipped to [-1, 1], for `action_repeat` raw frames; the reward is their sum.

        info: goal_steps (raw frames of this step with the goal achieved), success_final, success_count, success_any,
        and diverged, which says that the simulation did in this step: then its reward is 0 and nothing succeeded.
        Raises InputError on a non-finite action or one of another size, and RuntimeError after the episode's end.
        """
        if self._over:
            raise RuntimeError("The episode is over: call reset() before step().")
        command = np.asarray(action, dtype=np.float64)
        if command.shape != (self.task.action_size,) or not np.isfinite(command).all():
            raise InputError(f"action: expected {self.task.action_size} finite numbers, got {action!r}.")
        before = self.get_state()
        try:
            total, goal_steps, terminated = self._simulate(np.clip(command, -1, 1))
        except DivergedError:
            return self._end_diverged(before)
        self._frames += 1
        self._goal_frames += goal_steps
        truncated = self._frames >= self.config.episode_steps
        self._over = terminated or truncated
        return self._observation(), total, terminated, truncated, self._info(goal_steps)

    def _simulate(self, command: NDArray[np.float64]) -> tuple[float, int, bool]:
        """Reward, raw frames with the goal achieved, and whether the task ended the episode. Raises DivergedError."""
        total, goal_steps, terminated = 0.0, 0, False
        for _ in range(self.config.action_repeat):
            reward, self._achieved, terminated = simulate(self.task, command)
            total += reward
            goal_steps += self._achieved
            if terminated:
                break
        return total, goal_steps, terminated

    def _end_diverged(self, before: NDArray[np.float64]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        step = self._frames
        log.warning(
            "%s: the simulation diverged at step %d of the episode of seed %s, which ends there as failed.",
            self.config.name,
            step,
            self._seed,
        )
        observation = self.set_state(before)  # the last that means something, and can be drawn
        self._frames, self._goal_frames, self._achieved, self._over = step + 1, 0, False, True
        return observation, 0.0, False, True, {**self._info(0), "diverged": True}

    def _observation(self) -> Observation:
        return {
            "agent_pos": self.task.proprioception().astype(np.float32),
            "state": self.task.state().astype(np.float32),
        }

    def _info(self, goal_steps: int) -> dict[str, Any]:
        return {
            "goal_steps": goal_steps,
            "success_final": self._achieved,
            "success_count": self._goal_frames > self.task.count_threshold,
            "success_any": self._goal_frames > 0,
            "diverged": False,
        }

    @property
    def steps_left(self) -> int:
        """Control steps until the episode truncates."""
        return self.config.episode_steps - self._frames

    def get_state(self) -> NDArray[np.float64]:
        """(S,) all that determines the rest of the episode: physics, what reset randomised, and the step counters."""
        physics = np.empty(mujoco.mj_stateSize(self.model, int(_PHYSICS)))
        mujoco.mj_getState(self.model, self.data, physics, int(_PHYSICS))
        counters = [self._frames, self._goal_frames, self._achieved, self._over]
        return np.concatenate([counters, physics, self.task.get_variables()])

    def set_state(self, vector: NDArray[np.float64]) -> Observation:
        """Restore what `get_state` returned, here or in another environment of its config; returns the observation.

        Raises InputError on a vector of another size or with non-finite numbers.
        """
        size = mujoco.mj_stateSize(self.model, int(_PHYSICS))
        expected = 4 + size + self.task.get_variables().size
        values = np.asarray(vector, dtype=np.float64)
        if values.shape != (expected,) or not np.isfinite(values).all():
            raise InputError(
                f"state: expected {expected} finite numbers of {self.config.name}, got shape {values.shape}."
            )
        self._frames, self._goal_frames = int(values[0]), int(values[1])
        self._achieved, self._over = bool(values[2]), bool(values[3])
        physics = values[4 : 4 + size]
        self.task.set_variables(values[4 + size :])
        mujoco.mj_setState(self.model, self.data, physics, int(_PHYSICS))
        self.task.forward()
        # The solver started from its own result in forward(); restore its start to continue bit for bit.
        mujoco.mj_setState(self.model, self.data, physics, int(_PHYSICS))
        return self._observation()

    @property
    def camera_moves(self) -> bool:
        """Whether the depth camera's pose may change: it is fixed to a body, or follows one."""
        camera = self._camera
        return bool(self.model.cam_bodyid[camera] or self.model.cam_mode[camera] != mujoco.mjtCamLight.mjCAMLIGHT_FIXED)

    def camera_pose(self) -> NDArray[np.float64]:
        """(4, 4) camera-to-world, metres, as it is now."""
        return camera_pose(self.data.cam_xpos[self._camera], self.data.cam_xmat[self._camera])

    def recorded_camera(self) -> Camera:
        """The depth camera as stores record it: without a pose where it moves, because every step has its own."""
        camera = self.camera_parameters()
        return replace(camera, pose=None) if self.camera_moves else camera

    def camera_parameters(self) -> Camera:
        """Intrinsics and pose of the depth camera as they are now in the simulator's data."""
        camera, data = self.config.camera, self.data
        position, rotation = data.cam_xpos[self._camera], data.cam_xmat[self._camera]
        return mujoco_camera(position, rotation, camera.fovy, camera.height, camera.width)

    @property
    def renderer(self) -> Renderer:
        """The renderer, made at first use: the process that steps the environment must be the one that draws it."""
        if self._renderer is None:
            self._renderer = Renderer(self.model, self._backend, self.task.visible_sites)
        return self._renderer

    @property
    def renderer_name(self) -> str:
        """egl, osmesa or raycast: what draws the depth images."""
        return self.renderer.name

    def render_depth(self) -> NDArray[np.uint16]:
        """(H, W) uint16 millimetres along the optical axis, 0 = nothing within reach; row 0 is the top."""
        camera = self.config.camera
        return self.renderer.depth(self.data, self._camera, camera.height, camera.width)

    def render_rgb(self, height: int | None = None, width: int | None = None) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 colour image from the depth camera, of the given size or the camera's; row 0 is the top."""
        camera = self.config.camera
        return self.renderer.rgb(self.data, self._camera, height or camera.height, width or camera.width)

    def render(self) -> NDArray[np.uint8] | None:
        """Gymnasium's render: a colour frame for videos where render_mode is "rgb_array", None otherwise."""
        return self.render_rgb(256, 256) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Let go of the renderer. The process's GL context stays for other environments."""
        self._renderer = None
