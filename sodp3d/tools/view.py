"""Look at a dataset in the browser: one HTML file with everything in it, which works without a network.

    sodp3d view data/<env>
    sodp3d view data/<env> --viewer rerun     # .rrd files for Rerun's viewer instead (`recordings.py`)

writes view.html into the folder: depth, RGB where the store has some, an interactive 3-D cloud, actions and rewards.
Sliders, a play button and keys choose the episode and the frame.
"""

import argparse
import sys
from pathlib import Path

from sodp3d.core.cli import exit_status
from sodp3d.core.errors import InputError
from sodp3d.data.store import EpisodeStore
from sodp3d.tools.frames import spread, store_frames
from sodp3d.tools.pages import render, require_page, write_page

_BYTES = 9_000_000  # of frames; plotly.js adds about 5 MB
_MOST_FRAMES = 50


def write_view(folder: str | Path, episodes: int = 10, output: str | Path | None = None) -> Path:
    """Write the page of `folder`/episodes.zarr to `output` (view.html in the folder by default); its path.

    Shows up to `episodes` episodes spread over the store, each with as many evenly spaced frames as keep the file
    near 15 MB; the page says how many. Raises InputError without a store or a readable episode, and as `require_page`.
    """
    folder = Path(folder)
    path = Path(output) if output is not None else folder / "view.html"
    require_page(path)
    store = _opened(folder, episodes)
    data = store_frames(store, episodes, _BYTES, _MOST_FRAMES)
    title = f"{store.attributes['env']}: {len(store)} episodes, {store.steps} steps"
    write_page(path, render("view.html", title=title, data=data))
    return path


def write_view_recordings(folder: str | Path, episodes: int = 10, output: str | Path | None = None) -> list[Path]:
    """An .rrd file of each of up to `episodes` episodes spread over the store, in `output` (folder/rerun by default).

    Raises InputError as `write_view` and `write_store_recordings`.
    """
    from sodp3d.tools.recordings import require_rerun, write_store_recordings

    require_rerun()
    folder = Path(folder)
    store = _opened(folder, episodes)
    written = write_store_recordings(store, spread(len(store), episodes), Path(output or folder / "rerun"))
    if not written:
        raise InputError(f"{store.path}: none of {len(store)} episodes can be shown; collect some first.")
    return written


def _opened(folder: Path, episodes: int) -> EpisodeStore:
    store = EpisodeStore.open(folder / "episodes.zarr")
    if episodes < 1:
        raise InputError(f"episodes: expected at least 1, got {episodes}.")
    return store


def main(arguments: list[str] | None = None) -> int:
    """Command line: write the page and say where it is. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="sodp3d view", description="Write a page to look at a dataset.")
    parser.add_argument("folder", type=Path, help="folder of the store, data/<env>")
    parser.add_argument("--episodes", type=int, default=10, help="how many episodes to show (10)")
    parser.add_argument(
        "--output", type=Path, help="file to write (view.html in the folder); of rerun a folder (rerun)"
    )
    parser.add_argument(
        "--viewer", choices=("page", "rerun"), default="page", help="for a browser, or for Rerun (page)"
    )
    options = parser.parse_args(arguments)

    def job() -> None:
        if options.viewer == "rerun":
            written = write_view_recordings(options.folder, options.episodes, options.output)
            sys.stdout.write(f"{len(written)} episodes: rerun {written[0].parent}/*.rrd\n")
            return
        path = write_view(options.folder, options.episodes, options.output)
        sys.stdout.write(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser\n")

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
