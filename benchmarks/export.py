"""A planner in ONNX Runtime beside the same planner here: seconds of one plan, and of a call for 50.

python benchmarks/export.py [--unet simple_dp3] [--points 512] [--rounds 10] [--threads 2]
-> results/benchmarks/export.json

The planner is of Adroit door's sizes, with random weights: time does not depend on them.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import onnxruntime
import torch
from timing import compare, write

from sodp3d.core import checkpoint
from sodp3d.models.graph import PlanGraph, export_onnx, largest_difference, onnx_runner
from sodp3d.models.planner import Planner, PlannerConfig

ALONE, TOGETHER = 1, 50


def save(folder: Path, config: PlannerConfig) -> Planner:
    """A checkpoint of a new planner."""
    torch.manual_seed(0)
    planner = Planner(config).eval()
    state = {"format": 1, "planner": config.to_dict(), "tasks": ["adroit_door"], "view": {}, "data_hash": "none"}
    checkpoint.save(folder, 0, checkpoint.with_prefix("planner", planner.state_dict()), state)
    return planner


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unet", default="simple_dp3")
    for option, default in (("--points", 512), ("--rounds", 10), ("--threads", 2)):
        parser.add_argument(option, type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = PlannerConfig(
        observation="pointcloud", sensor_shape=(arguments.points, 3), proprioception_size=24, action_size=28,
        n_obs_steps=2, horizon=4, n_action_steps=3, unet=arguments.unet,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        planner, path = save(Path(folder), config), Path(folder) / "planner.onnx"
        export_onnx(Path(folder), path)
        run, graph, megabytes = onnx_runner(path), PlanGraph(planner), path.stat().st_size / 1e6
        difference = largest_difference(graph, planner, run)
        seconds = {}
        for size in (ALONE, TOGETHER):
            inputs = graph.inputs(size)
            observation = {key: inputs[key] for key in config.observation_shapes()}
            noise = torch.from_numpy(inputs["noise"])
            seconds[f"plans_{size}"] = compare(
                {
                    "sodp3d": partial(planner.plan, observation, noise),
                    "onnxruntime": partial(run, inputs),
                },
                arguments.rounds,
            )
    write(
        "export",
        {
            **vars(arguments),
            "onnxruntime": onnxruntime.__version__,
            "seconds": seconds,
            "ratio": {name: found["sodp3d"] / found["onnxruntime"] for name, found in seconds.items()},
            "largest_difference": difference,
            "megabytes": round(megabytes, 1),
        },
    )


if __name__ == "__main__":
    main()
