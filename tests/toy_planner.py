"""Small planners for tests."""

from dataclasses import replace

import numpy as np
import torch

from sodp3d.models.planner import Planner, PlannerConfig

STATE = PlannerConfig(
    observation="state", sensor_shape=(5,), proprioception_size=3, action_size=2,
    n_obs_steps=2, horizon=4, n_action_steps=3, unet="small",
)  # fmt: skip
SLIDER = replace(STATE, sensor_shape=(1,), proprioception_size=1, action_size=1)  # of toy_slider's environment


def make_planner(config: PlannerConfig = STATE, seed: int = 0) -> Planner:
    """A planner with random weights, its normalizer fitted on random data of uneven ranges."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    planner = Planner(config)
    arrays = {
        "action": random.uniform(-0.5, 0.8, (100, config.action_size)).astype(np.float32),
        "agent_pos": random.uniform(-3, 1, (100, config.proprioception_size)).astype(np.float32),
    }
    if config.observation != "image":
        shape = config.sensor_shape if config.observation == "pointcloud" else (100, *config.sensor_shape)
        arrays[config.sensor_key] = random.uniform(0, 2, shape).astype(np.float32)
    planner.normalizer.fit(arrays)
    return planner


def make_observation(config: PlannerConfig = STATE, size: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of random raw observations, (size, To, ...)."""
    generator = torch.Generator().manual_seed(seed)
    observation = {
        key: torch.rand(size, *shape, generator=generator) for key, shape in config.observation_shapes().items()
    }
    if "image" in observation:
        observation["image"] = (255 * observation["image"]).to(torch.uint8)
    return observation
