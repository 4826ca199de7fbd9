"""What CUDA does with door's planner: pre-training steps in each precision, plans, fine-tuning updates, clouds.

The CPU's figures beside them are of the same machine, with its own, faster, layers (benchmarks/training.py).

python benchmarks/on_cuda.py [--batch 256] [--rounds 5] [--threads 8] -> results/benchmarks/on_cuda.json
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from clouds import surface_clouds
from timing import compare, write
from torch import Tensor
from training import ACTIONS, HORIZON, JOINTS, POINTS, SETTINGS, STEPS, make_planner

from sodp3d.core.cli import compose
from sodp3d.envs import make_env
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.buffers import EpisodeRecord
from sodp3d.learning.pretrain import Pretraining
from sodp3d.learning.tuning import Finetuning
from sodp3d.models.planner import Planner
from sodp3d.settings import FinetuneSettings, RegularizerSettings
from sodp3d.vision.pointcloud import Converter

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32", "compile": False},
    "float32_compiled": {"precision": "float32", "compile": True},
    "bfloat16": {"precision": "bfloat16", "compile": False},
    "bfloat16_compiled": {"precision": "bfloat16", "compile": True},
}
CHUNKS, EPISODES, FRAMES = 34, 64, 100


def pretraining(planners: dict[str, Planner], batches: dict[str, dict[str, Tensor]], rounds: int) -> dict[str, Any]:
    """Seconds of a step on the CPU and in each precision on CUDA, and how many times faster than in float32 there."""
    made: dict[str, tuple[str, dict[str, Any]]] = {"cpu": ("cpu", {})} | {
        name: ("cuda", options) for name, options in PRECISIONS.items()
    }
    ways = {}
    for name, (device, options) in made.items():
        training = Pretraining(copy.deepcopy(planners[device]), replace(SETTINGS, **options), seed=0)
        ways[name] = repeated(partial(_update, training, batches[device]), 20)
    seconds = {name: value / 20 for name, value in compare(ways, rounds).items()}
    return {"seconds": seconds, "times_faster": {name: seconds["float32"] / value for name, value in seconds.items()}}


def _update(training: Pretraining, batch: dict[str, Tensor]) -> None:
    """Takes from a copy, as the trainer's batches are used up."""
    training.update(dict(batch))


def repeated(function: Callable[[], Any], times: int) -> Callable[[], None]:
    """So often that launching is part of what is timed, and waiting for the end is not."""

    def run() -> None:
        for _ in range(times):
            function()

    return run


def finetuning(planner: Planner) -> Finetuning:
    """With `algorithm=sodp_chunk`, and a full replay buffer of successes."""
    tuning = Finetuning(
        planner,
        FinetuneSettings(**compose("train", ["algorithm=sodp_chunk"])["finetune"]),
        RegularizerSettings(),
        seed=0,
    )
    with torch.no_grad():
        for seed in range(EPISODES):
            generator = torch.Generator().manual_seed(seed)
            features = torch.rand(CHUNKS, planner.config.feature_size, generator=generator)
            noise = planner.noise(CHUNKS, generator)
            chain = planner.sample_chain(features.to(planner.device), noise, tuning.learner.options)
            observation = {"features": features}
            record = EpisodeRecord(
                observation, chain.latents.cpu(), chain.means.cpu(), torch.rand(CHUNKS, generator=generator),
                torch.full((CHUNKS,), planner.config.n_action_steps), torch.arange(CHUNKS) / CHUNKS,
                success=True, terminated=False, final={"features": features[-1]},
            )  # fmt: skip
            tuning.memory.take([record])
    return tuning


def converters() -> dict[str, Callable[[], Any]]:
    """Of the same frames of door, by torch on both devices."""
    task = EnvConfig.from_config(compose("convert", ["env=adroit_door"])["env"])
    environment = make_env(task, "raycast")
    environment.reset(seed=0)
    depth = np.repeat(environment.render_depth()[None], FRAMES, axis=0)
    camera = environment.camera_parameters()
    made = {device: Converter(camera, task.crop, POINTS, "torch", device) for device in ("cpu", "cuda")}
    return {device: partial(converter.convert, depth) for device, converter in made.items()}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    planners = {"cpu": make_planner()}
    planners["cuda"] = copy.deepcopy(planners["cpu"]).cuda()
    clouds = surface_clouds(arguments.batch * STEPS, POINTS).view(arguments.batch, STEPS, POINTS, 3)
    seen = {"point_cloud": clouds, "agent_pos": torch.rand(arguments.batch, STEPS, JOINTS)}
    batch = {**seen, "action": torch.rand(arguments.batch, HORIZON, ACTIONS)}
    batches = {device: {key: value.to(device) for key, value in batch.items()} for device in planners}
    found: dict[str, Any] = {"pretraining_step": pretraining(planners, batches, arguments.rounds)}
    tunings = {device: finetuning(copy.deepcopy(planner)) for device, planner in planners.items()}

    def plans(count: int) -> dict[str, Callable[[], Any]]:
        observation = {key: value[:count].numpy() for key, value in seen.items()}
        return {device: partial(planner.plan, observation) for device, planner in planners.items()}

    work: dict[str, dict[str, Callable[[], Any]]] = {
        "plan_for_fifty": plans(50),
        "plan_for_one": plans(1),
        "ten_finetuning_updates": {device: partial(tuning.learn, 10) for device, tuning in tunings.items()},
        "clouds_of_100_frames": converters(),
    }
    for name, ways in work.items():
        seconds = compare(ways, arguments.rounds)
        found[name] = {"seconds": seconds, "times_faster_than_cpu": seconds["cpu"] / seconds["cuda"]}
    write("on_cuda", {**vars(arguments), **found})


if __name__ == "__main__":
    main()
