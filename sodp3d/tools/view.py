"""Look at a dataset in the browser: one HTML file with everything in it, which works without a network.

    sodp3d view data/<env>

writes view.html into the folder: depth image, interactive 3-D cloud, actions and rewards, with sliders for the episode
and the frame.
"""

import argparse
import base64
import html
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.cli import exit_status
from sodp3d.core.errors import InputError
from sodp3d.core.files import replace_file
from sodp3d.data.store import CorruptEpisode, EpisodeStore
from sodp3d.tools.view_page import PAGE

_BYTES = 9_000_000  # of data; plotly.js adds about 5 MB
_MOST_FRAMES = 50


def write_view(folder: str | Path, episodes: int = 10, output: str | Path | None = None) -> Path:
    """Write the page of `folder`/episodes.zarr to `output` (view.html in the folder by default); its path.

    Shows up to `episodes` episodes spread over the store, each with as many evenly spaced frames as keep the file
    near 15 MB; the page says how many. Raises InputError without a store or without a readable episode.
    """
    from plotly.offline import get_plotlyjs

    folder = Path(folder)
    store = EpisodeStore.open(folder / "episodes.zarr")
    if episodes < 1:
        raise InputError(f"episodes: expected at least 1, got {episodes}.")
    data = _page_data(store, episodes)
    title = html.escape(f"{store.attributes['env']}: {len(store)} episodes, {store.steps} steps")
    # "</" cannot end the script element early; JSON reads the escaped form as the same text.
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    path = Path(output) if output is not None else folder / "view.html"
    page = PAGE.replace("@TITLE@", title).replace("@PLOTLY@", get_plotlyjs()).replace("@DATA@", text)
    try:
        replace_file(path, page.encode())
    except OSError as error:
        raise InputError(f"{path}: cannot write ({error.strerror or error}).") from error
    return path


def _page_data(store: EpisodeStore, episodes: int) -> dict[str, Any]:
    chosen = sorted({round(index) for index in np.linspace(0, len(store) - 1, episodes)}) if len(store) else []
    frames = _frames_per_episode(store, len(chosen))
    shown, skipped = [], []
    for index in chosen:
        try:
            shown.append(_episode_data(store, index, frames))
        except CorruptEpisode:
            skipped.append(index)
    if not shown:
        raise InputError(f"{store.path}: none of {len(store)} episodes can be shown; collect some first.")
    note = f"{len(shown)} of {len(store)} episodes, up to {frames} evenly spaced frames of each."
    if skipped:
        note += f" Left out because their files are damaged: episodes {', '.join(map(str, skipped))}."
    return {
        "env": store.attributes["env"],
        "note": note,
        "width": store.field("depth").shape[1],
        "actionSize": store.field("action").shape[0],
        "episodes": shown,
    }


def _frames_per_episode(store: EpisodeStore, episodes: int) -> int:
    numbers = int(np.prod(store.field("depth").shape))
    if "point_cloud" in store.keys:
        numbers += int(np.prod(store.field("point_cloud").shape))
    frame_bytes = 2 * numbers * 4 / 3  # base64
    return int(np.clip(_BYTES / (max(episodes, 1) * frame_bytes), 1, _MOST_FRAMES))


def _episode_data(store: EpisodeStore, index: int, frames: int) -> dict[str, Any]:
    values = store.episode(index, ("action", "reward", "success", "depth"))
    metadata = {name: column[index].item() for name, column in store.metadata.items()}
    converted = "point_cloud" in store.keys and index < store.readable("point_cloud")
    clouds = store.read("point_cloud", index, index + 1) if converted else None
    length = len(values["action"])
    steps = sorted({round(step) for step in np.linspace(0, length - 1, frames)})
    return {
        "index": index,
        "length": length,
        "seed": metadata["seed"],
        "return": metadata["episode_return"],
        "successes": [name for name in ("final", "count", "any") if metadata[f"success_{name}"]],
        "actions": _pack(values["action"], "<f4"),
        "rewards": _pack(values["reward"], "<f4"),
        "success": _pack(values["success"], "u1"),
        "frames": [
            {
                "step": step,
                "depth": _pack(values["depth"][step], "<u2"),
                "cloud": None if clouds is None else _pack_millimetres(clouds[step]),
            }
            for step in steps
        ],
    }


def _pack(values: NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode()


def _pack_millimetres(points: NDArray[np.float32]) -> str:
    return _pack(np.clip(np.rint(1000 * points), -32768, 32767), "<i2")


def main(arguments: list[str] | None = None) -> int:
    """Command line: write the page and say where it is. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="sodp3d view", description="Write a page to look at a dataset.")
    parser.add_argument("folder", type=Path, help="folder of the store, data/<env>")
    parser.add_argument("--episodes", type=int, default=10, help="how many episodes to show (10)")
    parser.add_argument("--output", type=Path, help="file to write (view.html in the folder)")
    options = parser.parse_args(arguments)

    def job() -> None:
        path = write_view(options.folder, options.episodes, options.output)
        sys.stdout.write(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser\n")

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
