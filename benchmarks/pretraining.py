"""What makes pre-training cheap: denoisers and what they predict, each for the same seconds of one core.

Every variant learns from the same episodes, and plans for the same ones that were held out. Its error is the mean
absolute difference between the mean of four plans, in their executed steps, and what was recorded; normalized units.
Actions that were noisy when they were recorded leave an error that nothing can lower.

python benchmarks/pretraining.py [--variants narrow-sample simple_dp3-epsilon ...] [--seconds 120] [--name pretraining]
    env=mt10_paper obs=state data=... [more options of train.py]
-> results/benchmarks/<name>.json and results/figures/<name>.png
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from timing import RESULTS, parse, write
from torch import Tensor

from sodp3d.core.cli import compose
from sodp3d.data.dataset import WindowDataset, hold_out, select_episodes
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.lookup import open_stores
from sodp3d.learning.opening import begin
from sodp3d.learning.pretrain import Pretraining, new_policy
from sodp3d.learning.windows import to_device
from sodp3d.models.planner import Planner
from sodp3d.results import drawing
from sodp3d.settings import TrainSettings
from sodp3d.vision.sensors import sensor

VARIANTS = ("simple_dp3-epsilon", "simple_dp3-sample", "narrow-epsilon", "narrow-sample", "small-sample")
COLOURS = (drawing.GREY, drawing.BLUE, drawing.ORANGE, drawing.VERMILION, drawing.GREEN, drawing.PURPLE, drawing.SKY)
LOOKS = 5  # the first after 1/16 of the time, each after twice as much as the one before
HELD_OUT, WINDOWS, PLANS = 0.1, 250, 4


def parts_of(
    config: dict[str, Any], tasks: list[EnvConfig], keys: Sequence[str]
) -> tuple[WindowDataset, WindowDataset]:
    """Windows with `keys` of the episodes that are learned from, and of those that are held out."""
    stores = open_stores(config, tasks)
    learned, held = hold_out([select_episodes(store, quality="all") for store in stores], HELD_OUT, "HELD_OUT")
    steps = tasks[0].horizon, tasks[0].n_obs_steps, tasks[0].n_action_steps
    return WindowDataset(stores, keys, *steps, learned), WindowDataset(stores, keys, *steps, held)


def data_of(config: dict[str, Any]) -> tuple[WindowDataset, dict[str, Tensor]]:
    """What is learned from, and windows of episodes that are not."""
    tasks, device = begin(config)
    first, second = parts_of(config, tasks, ["agent_pos", sensor(config["obs"]["name"]).key])
    return first, to_device(second.sample(WINDOWS, np.random.default_rng(0)), device)


@torch.no_grad()
def action_error(planner: Planner, windows: dict[str, Tensor]) -> float:
    """Of the mean of several plans, by executed steps, in normalized units."""
    seen = {key: windows[key].repeat_interleave(PLANS, dim=0) for key in planner.config.observation_shapes()}
    plans = planner.plan(seen, generator=torch.Generator().manual_seed(0)).unflatten(0, (-1, PLANS)).mean(1)
    planned, recorded = (planner.normalizer.normalize("action", actions) for actions in (plans, windows["action"]))
    return float(planner.executed(planned - recorded).abs().mean())


def learn(config: dict[str, Any], learned: WindowDataset, held: dict[str, Tensor], seconds: float) -> dict[str, Any]:
    """Pre-train until the processor time is used up; steps and errors by seconds."""
    settings, tasks = TrainSettings.from_config(config), begin(config)[0]
    planner = new_policy(config, tasks, learned)
    training = Pretraining(planner, settings.pretrain, settings.common.seed)
    used, looks = 0.0, [seconds / 2**place for place in reversed(range(LOOKS))]
    found: dict[str, Any] = {"weights": sum(part.numel() for part in planner.parameters()), "looks": []}
    while looks:
        begun = time.process_time()
        batch = learned.sample(settings.pretrain.batch_size, training.batches)
        training.update(to_device(batch, planner.device))
        used += time.process_time() - begun
        if used >= looks[0]:
            looks.pop(0)
            assert isinstance(training.ema.planner, Planner)
            error = action_error(training.ema.planner, held)
            found["looks"].append({"seconds": used, "steps": training.step, "error": error})
            print(f"  {used:.0f} s, {training.step} steps: {error:.4f}", flush=True)
    return found


def draw(found: dict[str, Any]) -> Figure:
    """Errors by seconds, a line for each variant."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, variant), colour in zip(found.items(), itertools.cycle(COLOURS)):
        points = [(look["seconds"], look["error"]) for look in variant["looks"]]
        axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=name.replace("-", ", "))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("pre-training, seconds of one core")
    axes.set_ylabel("action error, held-out episodes")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    """Measure, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="<model.unet>-<model.prediction>")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--name", default="pretraining")
    given, options = parse(parser)
    shared = ["mode=pretrain", "pretrain.batch_size=64", "pretrain.schedule=constant", "threads=1", *options]
    learned, held = data_of(compose("train", shared))
    found = {}
    for variant in given.variants:
        unet, prediction = variant.rsplit("-", 1)
        print(variant)
        config = compose("train", [*shared, f"model.unet={unet}", f"model.prediction={prediction}"])
        found[variant] = learn(config, learned, held, given.seconds)
    told = [option for option in shared if not option.startswith(("root=", "data="))]
    facts = {"options": told, "episodes": len(learned.episode_ends), "held_out_windows": WINDOWS}
    write(given.name, {**facts, "variants": found}, show=False)
    path = RESULTS.with_name("figures") / f"{given.name}.png"
    path.write_bytes(drawing.png(draw(found)))


if __name__ == "__main__":
    main()
