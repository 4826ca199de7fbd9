"""A whole pre-training step and whole plans of door's planner: this project's way against torch's own building blocks.

The same networks, losses and numbers either way, which is checked first. torch's way (reference.py): the encoder's
gradient through every point, its own convolutions, channels first or last, and films made anew at every denoising step.
`ratio` is to channels first, as DP3 has it.

python benchmarks/training.py [--batch 256] [--rounds 5] -> results/benchmarks/training.json
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from clouds import surface_clouds
from reference import ratios, reference_planners
from timing import compare, write
from torch import Tensor

from sodp3d.learning.pretrain import Pretraining
from sodp3d.models.planner import Planner, PlannerConfig
from sodp3d.settings import PretrainSettings

STEPS, POINTS, JOINTS, HORIZON, ACTIONS = 2, 512, 24, 4, 28
SETTINGS = PretrainSettings(steps=10**6, schedule="constant", warmup_steps=0)


def make_planner() -> Planner:
    """Door's planner with random weights."""
    torch.manual_seed(0)
    config = PlannerConfig(
        observation="pointcloud", sensor_shape=(POINTS, 3), proprioception_size=JOINTS, action_size=ACTIONS,
        n_obs_steps=STEPS, horizon=HORIZON, n_action_steps=3, unet="simple_dp3",
    )  # fmt: skip
    planner = Planner(config)
    planner.normalizer.fit(
        {
            "action": torch.rand(100, ACTIONS).numpy(),
            "agent_pos": torch.rand(100, JOINTS).numpy(),
            "point_cloud": surface_clouds(8, POINTS).flatten(0, 1).numpy(),
        }
    )
    return planner


def check_equal(planner: Planner, reference: Planner, batch: dict[str, Tensor]) -> None:
    """Raises AssertionError where their losses, the gradients in their encoders, or their plans differ."""
    losses, gradients, plans = [], [], []
    for one in (planner, reference):
        losses.append(one.loss(batch, torch.Generator().manual_seed(0)))
        gradients.append(torch.autograd.grad(losses[-1], list(one.encoder.parameters())))
        plans.append(one.plan(batch, generator=torch.Generator().manual_seed(0)))
    for found in (losses, gradients, plans):
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    planner = make_planner()
    planners = {**reference_planners(planner), "sodp3d": planner}
    clouds = surface_clouds(arguments.batch * STEPS, POINTS).view(arguments.batch, STEPS, POINTS, 3)
    observation = {"point_cloud": clouds, "agent_pos": torch.rand(arguments.batch, STEPS, JOINTS)}
    batch = {**observation, "action": torch.rand(arguments.batch, HORIZON, ACTIONS)}
    for reference in planners.values():
        check_equal(planner, reference, batch)

    def train(planner: Planner) -> Callable[[], Tensor]:
        training = Pretraining(planner, SETTINGS, seed=0)
        return lambda: training.update(dict(batch))

    def plan(count: int, planner: Planner) -> Callable[[], Tensor]:
        seen = {key: value[:count] for key, value in observation.items()}
        return lambda: planner.plan(seen)

    work: dict[str, Callable[[Planner], Callable[[], Any]]] = {
        "training_step": train,
        "plan_for_fifty": partial(plan, 50),
        "plan_for_one": partial(plan, 1),
    }
    found = {}
    for name, prepare in work.items():
        seconds = compare({way: prepare(planner) for way, planner in planners.items()}, arguments.rounds)
        found[name] = {"seconds": seconds, **ratios(seconds)}
    write("training", {**vars(arguments), **found})


if __name__ == "__main__":
    main()
