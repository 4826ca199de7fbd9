"""Served planners small enough for tests, and what clients send them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from toy_planner import STATE as TEN_STEPS
from toy_planner import make_planner

from sodp3d.models.critic import Choice, Critic, CriticConfig
from sodp3d.models.planner import PlannerConfig
from sodp3d.serving.planning import ServedPlanner
from sodp3d.serving.server import PolicyServer, serve_in_background
from sodp3d.settings import ServeSettings

STATE = replace(TEN_STEPS, inference_steps=2)
CLOUDS = replace(STATE, observation="pointcloud", sensor_shape=(16, 3))
# A camera 2 m above the ground, looking down, and a box that holds what it sees.
INTRINSICS = np.array([[20.0, 0, 11.5], [0, 20.0, 7.5], [0, 0, 1]])
POSE = np.array([[1.0, 0, 0, 0.1], [0, -1, 0, 0], [0, 0, -1, 2], [0, 0, 0, 1]])
VIEW = {"crop": {"low": [-5.0, -5.0, "-inf"], "high": [5.0, 5.0, 1.9]}, "points": 16}


def make_served(config: PlannerConfig = STATE, best_of: int = 1, backend: str = "torch") -> ServedPlanner:
    """A planner with random weights as it would come from a checkpoint."""
    planner, choice = make_planner(config), None
    if best_of > 1:
        torch.manual_seed(1)
        chunk = config.n_action_steps * config.action_size
        sizes = CriticConfig(config.feature_size, chunk, members=2, width=8, layers=2, timed=True)
        choice = Choice(Critic(sizes).eval(), best_of)
    state = {
        "format": 1, "planner": config.to_dict(), "tasks": ["slider"], "data_hash": "none",
        "view": VIEW if config.observation == "pointcloud" else {},
    }  # fmt: skip
    return ServedPlanner(planner, state, "0" * 64, choice, backend)


@contextmanager
def serving(served: ServedPlanner | None = None, token: str | None = None, **settings: Any) -> Iterator[PolicyServer]:
    """A server on a free port of this machine."""
    with serve_in_background(served or make_served(), ServeSettings(port=0, **settings), token) as server:
        yield server


def frames(config: PlannerConfig = STATE, steps: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """What a robot sees in so many control steps, (steps, ...) of each key."""
    random = np.random.default_rng(seed)
    shapes = {key: shape[1:] for key, shape in config.observation_shapes().items()}
    return {key: random.uniform(0, 1, (steps, *shape)).astype(np.float32) for key, shape in shapes.items()}


def depth_frames(steps: int = 6, seed: int = 0) -> np.ndarray:
    """(steps, 16, 24) uint16 millimetres, a few of them invalid."""
    random = np.random.default_rng(seed)
    depth = random.integers(500, 2100, (steps, 16, 24)).astype(np.uint16)
    return np.where(random.uniform(size=depth.shape) < 0.1, 0, depth).astype(np.uint16)


def step_of(frames: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    """One control step, without a time axis."""
    return {key: values[step] for key, values in frames.items()}


def window_of(frames: dict[str, np.ndarray], step: int, observed: int = 2) -> dict[str, np.ndarray]:
    """The last `observed` steps up to this one, the first repeated where there were none before."""
    rows = np.maximum(np.arange(step - observed + 1, step + 1), 0)
    return {key: values[rows] for key, values in frames.items()}
