"""sodp3d: from sub-optimal experience seen through a depth camera to working visual policies.

Everything public is importable from here; it is loaded at its first use, so that `import sodp3d` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sodp3d.core.errors import InputError
    from sodp3d.data.dataset import WindowDataset
    from sodp3d.data.recording import RecordedEpisode, create_recorded_store
    from sodp3d.data.store import CorruptEpisode, EpisodeStore, NotRecorded
    from sodp3d.envs import make_env
    from sodp3d.envs.base import RobotEnv
    from sodp3d.envs.config import EnvConfig
    from sodp3d.models.loading import load_choice, load_planner, load_policy
    from sodp3d.models.planner import Planner, PlannerConfig
    from sodp3d.models.policy import LearnedPolicy, Policy
    from sodp3d.rollouts.evaluate import evaluate
    from sodp3d.rollouts.rollout import Rollouts
    from sodp3d.vision.camera import Camera, CameraConfig
    from sodp3d.vision.pointcloud import Converter, CropConfig

_HOMES = {
    "Camera": "vision.camera",
    "CameraConfig": "vision.camera",
    "Converter": "vision.pointcloud",
    "CorruptEpisode": "data.store",
    "CropConfig": "vision.pointcloud",
    "EnvConfig": "envs.config",
    "EpisodeStore": "data.store",
    "InputError": "core.errors",
    "LearnedPolicy": "models.policy",
    "NotRecorded": "data.store",
    "Planner": "models.planner",
    "PlannerConfig": "models.planner",
    "Policy": "models.policy",
    "RecordedEpisode": "data.recording",
    "RobotEnv": "envs.base",
    "Rollouts": "rollouts.rollout",
    "WindowDataset": "data.dataset",
    "create_recorded_store": "data.recording",
    "evaluate": "rollouts.evaluate",
    "load_choice": "models.loading",
    "load_planner": "models.loading",
    "load_policy": "models.loading",
    "make_env": "envs",
}

__all__ = [
    "Camera",
    "CameraConfig",
    "Converter",
    "CorruptEpisode",
    "CropConfig",
    "EnvConfig",
    "EpisodeStore",
    "InputError",
    "LearnedPolicy",
    "NotRecorded",
    "Planner",
    "PlannerConfig",
    "Policy",
    "RecordedEpisode",
    "RobotEnv",
    "Rollouts",
    "WindowDataset",
    "create_recorded_store",
    "evaluate",
    "load_choice",
    "load_planner",
    "load_policy",
    "make_env",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sodp3d' has no attribute {name!r}")
    return getattr(import_module(f"sodp3d.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
