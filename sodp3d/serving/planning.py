"""A planner as it is served: what clients are told of it, and plans for many of them in one call.

Shape letters: B observations, To observed steps, Tp planned steps, Da actions, N plans of one state, K' sampling steps.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.models.critic import Choice
from sodp3d.models.loading import TOLD_OF_PLANNERS, checkpoint_of, load_choice, load_planner_and_state
from sodp3d.models.planner import Planner
from sodp3d.models.sampled import plans_of
from sodp3d.vision.camera import Camera
from sodp3d.vision.pointcloud import Converter, CropConfig, check_backend
from sodp3d.vision.sensors import POINT_CLOUD, sensor


@dataclass(frozen=True)
class Rows:
    """Observations to plan from, of one client."""

    observation: dict[str, NDArray[Any]]  # (B, To, ...)
    noise: Tensor  # (B, N, K'+1, Tp, Da) of unit normal
    elapsed: Tensor  # (B,) share of the time limit that is gone

    def __len__(self) -> int:
        return len(self.noise)


class ServedPlanner:
    """A planner, how it chooses among several plans, and what its checkpoint says of it.

    Args:
        state: as `models.loading.planner_state` has it. digest: of the planner's weights.
        backend, device: who makes clouds of depth: open3d (cpu) | torch, and where.
    """

    def __init__(
        self,
        planner: Planner,
        state: dict[str, Any],
        digest: str,
        choice: Choice | None = None,
        backend: str = "open3d",
        device: str = "cpu",
    ) -> None:
        check_backend(backend, device)
        self.planner, self.choice, self.state, self.digest = planner.eval(), choice, state, digest
        self.config = planner.config
        self._converting = (backend, device)
        view = state.get("view", {})
        self._crop = (
            CropConfig.from_config(view["crop"])
            if self.config.sensor_key == POINT_CLOUD.key and "crop" in view
            else None
        )

    @property
    def plans_drawn(self) -> int:
        """N: how many plans are drawn for each that is given."""
        return plans_of(self.choice)

    @property
    def takes_depth(self) -> bool:
        """Whether clients can send depth: of planners that see clouds, whose checkpoint tells their crop."""
        return self._crop is not None

    def dtype(self, key: str) -> np.dtype[Any]:
        """Of an observation's key, as it is planned from."""
        seen = sensor(self.config.observation)
        return np.dtype(seen.dtype if key == seen.key else np.float32)

    def converter(self, intrinsics: NDArray[np.float64], height: int, width: int) -> Converter:
        """Depth of such a camera to clouds with the crop and the number of points that the planner learned from."""
        if self._crop is None:
            raise InputError(f"observation.depth: this planner makes nothing of depth; send {self.config.sensor_key}.")
        camera = Camera(intrinsics, None, height, width)
        return Converter(camera, self._crop, self.config.sensor_shape[0], *self._converting)

    def metadata(self) -> dict[str, Any]:
        """What a client is told first: the planner's checkpoint in words, and what it can be asked."""
        return {
            **{name: self.state[name] for name in TOLD_OF_PLANNERS if name in self.state},
            "planner": self.config.to_dict(),  # as it is served, which may be with another sampler
            "digest": self.digest,
            "best_of": self.plans_drawn,
            "takes_depth": self.takes_depth,
        }

    def plan(self, requests: Sequence[Rows]) -> list[NDArray[np.float32]]:
        """Plans (B, Tp, Da) of each request, all in one call; what they hold has been checked."""
        keys = requests[0].observation
        noise = torch.cat([rows.noise for rows in requests])
        plans = self.planner.plan(
            {key: np.concatenate([rows.observation[key] for rows in requests]) for key in keys},
            noise=noise if self.choice is not None else noise[:, 0],
            choice=self.choice,
            elapsed=torch.cat([rows.elapsed for rows in requests]),
        )
        ends = np.cumsum([len(rows) for rows in requests])
        return np.split(plans, ends[:-1])

    def warm_up(self) -> None:
        """Plan once and, where depth is taken, load what makes clouds: the first client need not wait for that."""
        shapes = self.config.observation_shapes()
        observation = {key: np.zeros((1, *shape), self.dtype(key)) for key, shape in shapes.items()}
        self.plan([Rows(observation, self.planner.noise(self.plans_drawn)[None], torch.zeros(1))])
        if self.takes_depth:
            self.converter(np.eye(3), 1, 1)


def load_served(
    path: str | Path,
    device: torch.device | str = "cpu",
    best_of: int | None = None,
    sampling_steps: int | None = None,
    backend: str = "open3d",
) -> ServedPlanner:
    """The planner in a run directory or a checkpoint, ready to be served. Raises InputError as `load_planner` does."""
    directory = checkpoint_of(Path(path).expanduser())
    planner, state = load_planner_and_state(directory, device, sampling_steps=sampling_steps)
    choice = load_choice(directory, device, best_of, "best_of")
    where = str(device) if backend == "torch" else "cpu"
    return ServedPlanner(planner, state, checkpoint.digest_of(directory), choice, backend, where)


def require_packages() -> None:
    """Raise InputError where what serving needs beyond the package's own needs is not installed."""
    missing = [name for name in ("websockets", "msgpack") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"serving: {' and '.join(missing)} not installed; pip install websockets msgpack (the extra serve)."
        )
