"""What a planner of clouds can see: how well its features tell where Meta-World's objects and goals are.

A small network learns the places of object and goal, which stores note in their states, from windows of clouds. Given
a planner, it learns from that planner's features as they are; without one, a fresh encoder of the same kind learns
with it, which tells what clouds show at all. Errors are of episodes that were held out.

python benchmarks/sight.py [--planner <run>] [--steps 3000] [--name sight] env=mt10_paper env.points=512
    [data=... and more options of train.py]
-> results/benchmarks/<name>.json
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pretraining import parts_of
from timing import parse, write
from torch import Tensor, nn

from sodp3d import load_planner
from sodp3d.core.cli import compose
from sodp3d.learning.mixture import Mixture
from sodp3d.learning.opening import begin
from sodp3d.learning.pretrain import new_policy
from sodp3d.learning.windows import to_device
from sodp3d.models.policy import LearnedPolicy

PLACES = {"object": slice(4, 7), "goal": slice(36, 39)}  # within a state of Meta-World, metres
WINDOWS, BATCH, RATE = 5000, 64, 1e-3
Windows = tuple[dict[str, Tensor], Tensor, NDArray[np.int64]]


def windows_of(mixture: Mixture, count: int, generator: np.random.Generator, device: torch.device) -> Windows:
    """Windows with the places (B, 6) of object and goal in their current step, and which task each is of."""
    drawn, tasks = mixture.sample(count, generator)
    windows = to_device(drawn, device)
    state = windows.pop("state")[:, -1]
    return windows, torch.cat([state[:, place] for place in PLACES.values()], dim=1), tasks


class Sight(nn.Module):
    """The places of object and goal from a policy's features. fixed: the features stay as they are."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, policy: LearnedPolicy, places: Tensor, fixed: bool) -> None:
        super().__init__()
        self.policy, self.fixed = policy, fixed
        self.head = nn.Sequential(
            nn.Linear(policy.config.feature_size, 256), nn.ReLU(), nn.Linear(256, places.shape[1])
        )
        self.register_buffer("mean", places.mean(0))
        self.register_buffer("deviation", places.std(0))

    def forward(self, windows: dict[str, Tensor]) -> Tensor:
        """Windows -> places (B, 6), metres."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.fixed):
            features = self.policy.encode(windows)
        return self.head(features) * self.deviation + self.mean


def learn(sight: Sight, draw: Callable[[int], Windows], steps: int) -> None:
    """Least squares of scaled places."""
    learned = [*sight.head.parameters(), *([] if sight.fixed else sight.policy.encoder.parameters())]
    optimizer = torch.optim.Adam(learned, RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        windows, places, _ = draw(BATCH)
        loss = (((sight(windows) - places) / sight.deviation) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(f"  {step}: {loss.item():.4f}", flush=True)


@torch.no_grad()
def errors(sight: Sight, windows: Windows, tasks: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Of each task the median distance from what was told to where it is, in centimetres."""
    observed, places, task = windows
    parts = [{key: values[i : i + 250] for key, values in observed.items()} for i in range(0, len(places), 250)]
    away = (torch.cat([sight(part) for part in parts]) - places).unflatten(1, (len(PLACES), 3)).norm(dim=2) * 100
    return {
        name: {what: round(float(away[task == place, i].median()), 2) for i, what in enumerate(PLACES)}
        for place, name in enumerate(tasks)
    }


def main() -> None:
    """Learn, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planner", type=Path, help="a run whose features are read; without one an encoder is taught")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--name", default="sight")
    given, options = parse(parser)
    config = compose("train", ["mode=pretrain", "obs=pointcloud", "threads=1", *options])
    tasks, device = begin(config)
    learned, held = parts_of(config, tasks, ["agent_pos", "point_cloud", "state"])
    mixtures, generator = [Mixture(part, "tasks") for part in (learned, held)], np.random.default_rng(0)
    policy = load_planner(given.planner).to(device) if given.planner else new_policy(config, tasks, learned).to(device)
    test = windows_of(mixtures[1], WINDOWS, generator, device)
    torch.manual_seed(0)
    sight = Sight(policy, windows_of(mixtures[0], WINDOWS, generator, device)[1], fixed=given.planner is not None)
    learn(sight.to(device), lambda count: windows_of(mixtures[0], count, generator, device), given.steps)
    found = errors(sight, test, mixtures[1].tasks)
    means = {what: round(float(np.mean([task[what] for task in found.values()])), 2) for what in PLACES}
    told = [option for option in options if not option.startswith(("root=", "data="))]
    facts = {"planner": given.planner and given.planner.name, "options": told, "steps": given.steps}
    write(given.name, {**facts, "mean of medians, cm": means, "tasks": found})


if __name__ == "__main__":
    main()
