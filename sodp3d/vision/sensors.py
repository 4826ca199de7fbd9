"""What a planner can see beside proprioception (`obs=`): one `Sensor` a kind, and everything that depends on it.

Shape letters: n frames, N points, H W image, Ds state size. How a planner reads it is `model.encoder=`.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core import registry
from sodp3d.core.mappings import plain
from sodp3d.vision.pointcloud import Converter

Frame = NDArray[Any]
# Raw frames (n, ...) to what planners see (n, ...); of a camera that moves, given its poses (n, 4, 4) too.
Convert = Callable[..., NDArray[Any]]


@dataclass(frozen=True)
class Sensor:
    """One kind of observation.

    Environments are `envs.RobotEnv`, configurations `envs.EnvConfig`; both are floors above, so they are not named.
    """

    key: str  # its array in observations and stores
    encoder: str  # what reads it, unless model.encoder says otherwise
    frame: Callable[[Any, Mapping[str, NDArray[Any]]], Frame]  # (environment, its observation) to one raw frame
    shape: Callable[[Any], tuple[int, ...]]  # (environment) to the shape of one step
    dtype: type = np.float32
    half: bool = False  # whether training holds it as float16, where that is fine enough
    converter: Callable[[Any, str, str], Convert] | None = None  # (environment, backend, device); None: as they are
    view: tuple[str, ...] = ()  # parts of the env's configuration that shape values
    parameters: Callable[[Any], dict[str, Any]] = lambda config: {}  # what its conversion depends on
    draws: bool = True  # whether roll-outs need a renderer
    one_renderer: bool = False  # renderers differ in what they show, so roll-outs take the one that drew the data
    scaled: bool = True  # by the normalizer, along the last axis; False: the encoder takes raw values
    made_by: str | None = None  # what option of `convert` makes the store's array ("" for none); None: it is collected

    def view_of(self, config: Any) -> dict[str, Any]:
        """The parts of an env's configuration that a planner's checkpoint remembers, as plain values; None left out."""
        parts = {part: getattr(config, part) for part in self.view}
        return {
            part: plain(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value)
            for part, value in parts.items()
            if value is not None
        }


@functools.cache
def sensor(name: str) -> Sensor:
    """The sensor that `obs=name` names. Raises InputError for an unknown one."""
    found: Sensor = registry.choose(registry.SENSORS, name, "obs")
    return found


def _cloud_converter(environment: Any, backend: str, device: str) -> Convert:
    config = environment.config
    converter = Converter(environment.recorded_camera(), config.crop, config.points, backend, device)
    return lambda depth, poses=None: converter.convert(depth, poses)[0]


POINT_CLOUD = Sensor(  # (N, 3) float32 metres, world frame
    key="point_cloud",
    encoder="dp3",
    half=True,  # within 2 m of the world's origin at most 0.5 mm off, as the millimetres of its depth are
    frame=lambda environment, observation: environment.render_depth(),
    shape=lambda environment: (environment.config.points, 3),
    converter=_cloud_converter,
    view=("camera", "crop", "points"),
    parameters=lambda config: {
        **{f"crop.{side}": value for side, value in plain(asdict(config.crop)).items()},
        "points": config.points,
    },
    made_by="",
)
STATE = Sensor(  # (Ds,) float32
    key="state",
    encoder="mlp",
    frame=lambda environment, observation: observation["state"],
    shape=lambda environment: (environment.task.state().size,),
    draws=False,
)
IMAGE = Sensor(  # (3, H, W) uint8
    key="image",
    encoder="cnn",
    frame=lambda environment, observation: environment.render_rgb().transpose(2, 0, 1),
    shape=lambda environment: (3, environment.config.camera.height, environment.config.camera.width),
    dtype=np.uint8,
    view=("camera",),
    parameters=lambda config: {"camera.height": config.camera.height, "camera.width": config.camera.width},
    one_renderer=True,
    scaled=False,
    made_by="again=image",
)
