"""A whole pre-training step and whole plans of door's planner: this project's way against torch's own building blocks.

The same networks, losses and numbers either way. torch's way: the point encoder's gradient through every point, its own
convolutions, and films made anew at every denoising step.

python benchmarks/training.py [--batch 256] [--rounds 5] -> docs/results/benchmarks/training.json
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from clouds import surface_clouds
from convolutions import with_torchs_convolutions
from timing import compare, write

from sodp3d.learning.pretrain import Pretraining
from sodp3d.models.encoders import PointCloudEncoder
from sodp3d.models.planner import Planner, PlannerConfig
from sodp3d.models.unet import UNet1d

STEPS, POINTS, JOINTS, HORIZON, ACTIONS = 2, 512, 24, 4, 28
SETTINGS = {
    "precision": "float32", "compile": False, "learning_rate": 1e-3, "warmup_steps": 0, "steps": 10**6,
    "schedule": "constant",
}  # fmt: skip


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


@contextmanager
def torchs_encoder_and_films(planner: Planner) -> Iterator[None]:
    """Encoder and films by torch's own building blocks while it lasts."""
    encoders = [module for module in planner.modules() if isinstance(module, PointCloudEncoder)]
    observe, forward = UNet1d.observe, UNet1d.forward
    each_step_anew = {
        "observe": lambda unet, condition: condition,
        "forward": lambda unet, x, timestep, condition: forward(unet, x, timestep, observe(unet, condition)),
    }
    for encoder in encoders:
        encoder.dense = True
    with patch.multiple(UNet1d, **each_step_anew):
        yield
    for encoder in encoders:
        encoder.dense = False


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    planner = make_planner()
    training = Pretraining(planner, SETTINGS, seed=0)
    clouds = surface_clouds(arguments.batch * STEPS, POINTS).view(arguments.batch, STEPS, POINTS, 3)
    observation = {"point_cloud": clouds, "agent_pos": torch.rand(arguments.batch, STEPS, JOINTS)}
    batch = {**observation, "action": torch.rand(arguments.batch, HORIZON, ACTIONS)}

    def train() -> None:
        training.update(dict(batch))

    def plan(count: int) -> None:
        planner.plan({key: value[:count] for key, value in observation.items()})

    work = {"training_step": train, "plan_for_fifty": lambda: plan(50), "plan_for_one": lambda: plan(1)}
    found = {}
    for name, run in work.items():

        def reference(run: Callable[[], object] = run) -> None:
            with torchs_encoder_and_films(planner):
                run()

        alternatives = {"torch": with_torchs_convolutions(planner, reference), "sodp3d": run}
        seconds = compare(alternatives, arguments.rounds)
        found[name] = {"seconds": seconds, "ratio": seconds["torch"] / seconds["sodp3d"]}
    write("training", {**vars(arguments), **found})


if __name__ == "__main__":
    main()
