"""Draw docs/pipeline.png: one frame of a store on its way through the pipeline, and what fine-tuning gained.

    python docs/draw_pipeline.py data/adroit_door <pre-training run> <fine-tuning run> [output, docs/pipeline.png]

The store is a converted one of an Adroit task, the planner one that sees its point clouds. Of the fine-tuning run only
`result.json` is read, so that a run's record will do.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import mujoco
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from numpy.typing import NDArray
from PIL import Image

from sodp3d import EnvConfig, EpisodeStore, Planner, RobotEnv, load_planner, make_env
from sodp3d.core.files import read_json
from sodp3d.tools.video import colour_depth
from sodp3d.vision.pointcloud import unproject

SIZE = (15.0, 4.6)  # inches
DOTS = 160  # an inch
COLOURS = 256
PIXELS = 384  # of a rendered picture's side
MOMENT = 0.05  # of an episode: the hand is on its way
PARTS = (0, 0.5, 0.7, 1)  # of the denoising chain: after which its latent is shown
NOISE_SEED = 2
EDGE = 0.08  # of a rendered picture, cut from each side of the hand's poses
FIRST_COLOUR, LAST_COLOUR = "0.65", "tab:green"  # before, after
CAPTIONS = (
    ("1  collect", "An RL agent learns the task.\nEvery step it takes is kept,\ngood or bad."),
    ("2  depth", "Kept of each step: depth in mm\n(bright is near), joint angles,\nthe action, the simulator's state."),
    (
        "3  convert",
        "Depth becomes points in space (grey).\nOf those in the workspace\n{points} are kept (coloured by height).",
    ),
    (
        "4  pre-train",
        "The planner learns to turn noise\ninto plans. Here: where one plan puts\nthe hand, as its noise is removed.",
    ),
    ("5  fine-tune", "The planner practises the task:\nreward (PPO) and copies of its own\nbest episodes (BC)."),
)


def main() -> None:
    """Five panels from left to right, all of them real."""
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    data, pretrained, finetuned = (Path(argument) for argument in sys.argv[1:4])
    output = Path(sys.argv[4]) if len(sys.argv) == 5 else Path(__file__).parent / "pipeline.png"
    planner = load_planner(pretrained)
    with EpisodeStore.open(data / "episodes.zarr") as store:
        frames = moment(store, planner.config.n_obs_steps)
        env = make_env(EnvConfig.from_config(store.attributes["env_config"]))
    figure = plt.figure(figsize=SIZE, dpi=DOTS)
    axes = [figure.add_axes((0.012 + 0.2 * column, 0.27, 0.168, 0.168 * SIZE[0] / SIZE[1])) for column in range(5)]
    draw_scene(axes[0], env, frames)
    axes[1].imshow(colour_depth(frames["depth"][-1], PIXELS))
    draw_cloud(figure, axes[2], inside_crop(env, frames["depth"][-1]), frames["point_cloud"][-1])
    draw_denoising(axes[3], env, planner, frames)
    draw_gain(axes[4], read_json(finetuned / "result.json"))
    label(figure, axes, len(frames["point_cloud"][-1]))
    figure.savefig(output)
    Image.open(output).convert("RGB").quantize(COLOURS).save(output, optimize=True)


def moment(store: EpisodeStore, observed: int) -> dict[str, NDArray[np.generic]]:
    """`observed` consecutive steps of the last successful episode, key to (To, ...)."""
    index = int(np.flatnonzero(store.metadata["success_count"])[-1])
    episode = store.episode(index, ("depth", "point_cloud", "sim_state", "agent_pos"))
    step = round(MOMENT * len(episode["depth"]))
    return {key: values[step + 1 - observed : step + 1] for key, values in episode.items()}


def draw_scene(axis: Axes, env: RobotEnv, frames: dict[str, NDArray[np.generic]]) -> None:
    """What the depth camera would see in colour."""
    env.set_state(frames["sim_state"][-1])
    axis.imshow(env.render_rgb(PIXELS, PIXELS))


def inside_crop(env: RobotEnv, depth: NDArray[np.generic]) -> NDArray[np.float64]:
    """All points (M, 3) of a depth image that lie within the crop, metres, world frame."""
    points = unproject(depth, env.camera_parameters())
    return points[((points > env.config.crop.low) & (points < env.config.crop.high)).all(axis=1)]


def draw_cloud(figure: Figure, axis: Axes, seen: NDArray[np.float64], kept: NDArray[np.generic]) -> None:
    """All points seen (M, 3) in grey and the kept ones (N, 3) by their height, from the side."""
    box = axis.get_position()
    axis.remove()
    space = figure.add_axes(
        (box.x0 - 0.02, box.y0 - 0.09, box.width + 0.04, box.height + 0.12), projection="3d", computed_zorder=False
    )
    space.scatter(*seen.T, color="0.8", s=2, zorder=1, depthshade=False)
    space.scatter(*kept.T, c=kept[:, 2], s=14, cmap="viridis", zorder=2, depthshade=False)
    space.set_box_aspect(np.ptp(seen, axis=0), zoom=1.3)
    space.view_init(38, -80)
    space.set_axis_off()


def draw_denoising(axis: Axes, env: RobotEnv, planner: Planner, frames: dict[str, NDArray[np.generic]]) -> None:
    """The poses that the first executed action of a plan commands, at four steps of its denoising chain."""
    keys = planner.config.observation_shapes()
    observation = {key: torch.as_tensor(frames[key], dtype=planner.dtype)[None] for key in keys}
    noise = planner.noise(1, torch.Generator().manual_seed(NOISE_SEED))
    with torch.no_grad():
        latents = planner.sample_chain(observation, noise, planner.sampler).latents[0]  # (K'+1, Tp, Da)
        actions = planner.executed(planner.actions(latents))[:, 0].numpy()
    axis.set_axis_off()
    last = len(latents) - 1
    for place, step in enumerate(round(part * last) for part in PARTS):
        row, column = divmod(place, 2)
        part = axis.inset_axes((0.51 * column, 0.51 * (1 - row), 0.49, 0.49))
        part.imshow(commanded(env, frames["sim_state"][-1], actions[step]))
        words = {0: "noise", last: "the plan"}.get(step, f"step {step} of {last}")
        part.text(
            0.04,
            0.95,
            words,
            transform=part.transAxes,
            va="top",
            fontsize=10,
            bbox={"fc": "white", "ec": "none", "pad": 2},
        )
        frame_of(part)


def commanded(env: RobotEnv, state: NDArray[np.float64], action: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A picture of the hand where `action` (Da,) tells its position-controlled joints to go."""
    env.set_state(state)
    model, data = env.model, env.data
    low, high = model.actuator_ctrlrange.T
    data.qpos[model.jnt_qposadr[model.actuator_trnid[:, 0]]] = (low + high) / 2 + action * (high - low) / 2
    mujoco.mj_forward(model, data)
    edge = round(EDGE * PIXELS)
    return env.render_rgb(PIXELS, PIXELS)[edge:-edge, edge:-edge]


def draw_gain(axis: Axes, result: dict[str, dict]) -> None:
    """Success before and after fine-tuning, with 95 % intervals."""
    metric = result["evaluation"]["headline_metric"]
    for place, (key, words) in enumerate((("before", "before"), ("evaluation", "after"))):
        measured = result[key]["success"][metric]
        rate, low, high = (100 * measured[name] for name in ("rate", "low95", "high95"))
        axis.bar(place, rate, width=0.7, color=(FIRST_COLOUR, LAST_COLOUR)[place])
        axis.errorbar(place, rate, [[rate - low], [high - rate]], color="0.2", capsize=5)
        axis.text(place, -3, f"{words}: {rate:.0f} %", ha="center", va="top", fontsize=10.5, fontweight="bold")
    axis.set(ylim=(0, 109), xlim=(-0.6, 1.6), xticks=[], yticks=[])
    axis.spines[["left", "right", "top"]].set_visible(False)
    axis.text(
        0.5,
        0.985,
        f"success on {result['evaluation']['episodes']} test episodes",
        transform=axis.transAxes,
        ha="center",
        va="top",
        fontsize=9.5,
    )


def label(figure: Figure, axes: list[Axes], points: int) -> None:
    """Titles, captions and the arrows between panels."""
    for column, (title, caption) in enumerate(CAPTIONS):
        centre = 0.096 + 0.2 * column
        figure.text(centre, 0.9, title, ha="center", fontsize=15, fontweight="bold")
        figure.text(centre, 0.2, caption.format(points=points), ha="center", va="top", fontsize=10.5, linespacing=1.4)
        if column:
            x = 0.2 * column - 0.004
            figure.add_artist(FancyArrowPatch((x - 0.013, 0.545), (x + 0.013, 0.545), mutation_scale=22, color="0.3"))
    for axis in axes[:2]:
        frame_of(axis)


def frame_of(axis: Axes) -> None:
    """A thin frame and no ticks."""
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color="0.5", linewidth=0.8)


if __name__ == "__main__":
    main()
