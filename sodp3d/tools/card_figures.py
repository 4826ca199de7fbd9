"""Pictures of a dataset card: depth frames and point clouds of a few episodes, drawn without a display."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.data.store import CorruptEpisode, EpisodeStore
from sodp3d.tools.plot import is_own_png, save_png

log = logging.getLogger(__name__)
_EPISODES, _FRAMES = 4, 3


def draw_figures(store: EpisodeStore, folder: Path, listed: Collection[str] = ()) -> list[str]:
    """Write depth.png, and point_cloud.png and image.png where there are any; paths relative to the folder's parent.

    Takes a few episodes spread over the store, each at its start, middle and end; damaged ones are left out. A picture
    of that name that is neither marked nor among `listed`, those of an earlier card, is somebody else's and left alone.
    Raises InputError when the folder cannot be written.
    """
    drawn = []
    for key in ("depth", "point_cloud", "image"):
        count = store.readable(key) if key in store.keys else 0
        episodes = sorted({round(index) for index in np.linspace(0, count - 1, _EPISODES)}) if count else []
        samples = [sample for index in episodes if (sample := _sample(store, key, index))]
        name = f"{folder.name}/{key}.png"
        path = folder.parent / name
        if path.exists() and name not in listed and not is_own_png(path):
            log.warning("%s was not made by sodp3d and is left alone.", path)
        elif samples:
            _draw(path, key, samples)
            drawn.append(name)
    return drawn


def _sample(store: EpisodeStore, key: str, index: int) -> list[tuple[str, NDArray[Any]]]:
    """Titles and frames of one episode."""
    try:
        values = store.read(key, index, index + 1)
    except CorruptEpisode:
        return []
    steps = np.linspace(0, len(values) - 1, _FRAMES).round().astype(int)
    return [(f"episode {index}, step {step}", values[step]) for step in steps]


def _draw(path: Path, key: str, samples: list[list[tuple[str, NDArray[Any]]]]) -> None:
    from matplotlib.figure import Figure

    # No pyplot: it would pick a backend for the whole process.
    figure = Figure(figsize=(2.6 * _FRAMES, 2.6 * len(samples)), layout="constrained")
    for row, frames in enumerate(samples):
        for column, (title, frame) in enumerate(frames):
            place = (len(samples), _FRAMES, row * _FRAMES + column + 1)
            if key == "depth":
                axes = figure.add_subplot(*place)
                image = axes.imshow(np.where(frame == 0, np.nan, frame / 1000.0), cmap="viridis")
                axes.set_axis_off()
                figure.colorbar(image, ax=axes, shrink=0.7, label="m")
            elif key == "image":
                axes = figure.add_subplot(*place)
                axes.imshow(frame.transpose(1, 2, 0))
                axes.set_axis_off()
            else:
                axes = figure.add_subplot(*place, projection="3d")
                axes.scatter(*frame.T, s=2, c=frame[:, 2], cmap="viridis")
                axes.set_aspect("equal")
                axes.tick_params(labelsize=5, pad=-3)
            axes.set_title(title, fontsize=7)
    save_png(figure, path)
