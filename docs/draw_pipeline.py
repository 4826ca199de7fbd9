"""Draws docs/pipeline.png from a collected and converted store: python docs/draw_pipeline.py data/adroit_door"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch

from sodp3d.data.store import EpisodeStore
from sodp3d.envs import make_env
from sodp3d.envs.config import EnvConfig

STAGES = (
    ("collect", "an RL agent learns;\nits experience is kept"),
    ("depth", "every step: uint16 mm,\njoints, action, simulator state"),
    ("convert", "Open3D: unproject, crop,\nfarthest points"),
    ("pretrain", "diffusion planner on all data,\nno rewards, no labels"),
    ("finetune", "PPO over the denoising chain\n+ BC on its own successes"),
)


def main() -> None:
    """Five panels, left to right; three of them real data of one frame."""
    store = EpisodeStore.open(Path(sys.argv[1]) / "episodes.zarr")
    index = int(np.flatnonzero(store.metadata["success_count"])[-1])
    episode = store.episode(index, ("depth", "point_cloud", "sim_state", "action"))
    step = len(episode["depth"]) // 2
    env = make_env(EnvConfig.from_config(store.attributes["env_config"]))
    env.set_state(episode["sim_state"][step])
    figure = plt.figure(figsize=(15, 3.6))
    for column, (name, text) in enumerate(STAGES):
        three = name == "convert"
        axis = figure.add_axes((0.01 + 0.2 * column, 0.2, 0.17, 0.64), projection="3d" if three else None)
        axis.set_title(name, fontsize=13, fontweight="bold")
        figure.text(0.095 + 0.2 * column, 0.03, text, ha="center", fontsize=9.5)
        if name == "collect":
            axis.imshow(env.render_rgb(256, 256))
        elif name == "depth":
            frame = episode["depth"][step].astype(float)
            axis.imshow(np.where(frame > 0, frame, np.nan), cmap="viridis_r")
        elif three:
            cloud = episode["point_cloud"][step]
            axis.scatter(*cloud.T, c=cloud[:, 2], s=3, cmap="viridis")
            axis.set_box_aspect(np.ptp(cloud, axis=0))
            axis.view_init(35, -70)
        elif name == "pretrain":
            noise = np.random.default_rng(0).normal(size=(4, episode["action"].shape[1]))
            plan = np.concatenate([noise * a + episode["action"][step : step + 4] * (1 - a) for a in (1, 0.6, 0.3, 0)])
            axis.imshow(plan, cmap="coolwarm", vmin=-1.5, vmax=1.5, aspect="auto")
        else:
            returns = store.metadata["episode_return"]
            axis.hist(returns, bins=20, color="0.6")
            axis.axvline(returns[store.metadata["success_count"].astype(bool)].mean(), color="tab:green", lw=3)
        if name not in ("finetune",):
            axis.set_axis_off()
        else:
            axis.set_yticks([])
            axis.set_xlabel("return: data (grey), successes (green)", fontsize=8)
        if column:
            x = 0.2 * column
            arrow = FancyArrowPatch((x - 0.018, 0.52), (x + 0.006, 0.52), mutation_scale=18, color="0.3")
            figure.add_artist(arrow)
    figure.savefig(Path(__file__).parent / "pipeline.png", dpi=80)


if __name__ == "__main__":
    main()
