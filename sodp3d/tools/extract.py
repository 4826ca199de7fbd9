"""Some episodes of a store as a store of their own, e.g. the demonstrations that the imitation methods learn from:

    sodp3d extract data/adroit_door data/adroit_door-demonstrations \\
        --quality nearoptimal --success count --max-episodes 10

What is derived (clouds, images) is not carried over; converting a few episodes takes seconds:

    sodp3d convert env=adroit_door data=data/adroit_door-demonstrations again=image
"""

import argparse
import sys
from pathlib import Path

from sodp3d.core.cli import exit_status
from sodp3d.data.dataset import select_episodes
from sodp3d.data.hashing import data_hash
from sodp3d.data.merge import NOT_CARRIED, check_apart, copy_episodes, ordered_sources
from sodp3d.data.schema import QUALITIES
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import SUCCESS_METRICS
from sodp3d.tools.card import write_card


def extract(
    source: str | Path,
    target: str | Path,
    fraction: float = 1.0,
    max_episodes: int | None = None,
    success: str | None = None,
    quality: str = "all",
) -> EpisodeStore:
    """The episodes that `select_episodes` finds in the store `source`, in the store `target`; open for appending.

    They keep their order, seeds, agent steps and provenance; the attribute `extracted` says what was asked of which
    data. An extraction that was killed continues where it stopped; a complete one does nothing. Raises InputError as
    `select_episodes` does, and when `target` is the source, or holds other episodes, or those of another question.
    """
    check_apart([source], target)
    store = EpisodeStore.open(source)
    chosen = set(select_episodes(store, fraction, max_episodes, success, quality).tolist())
    sources = [found for found in ordered_sources([store]) if found.episode in chosen]
    asked = {"quality": quality, "fraction": fraction, "success": success, "max_episodes": max_episodes}
    attributes = {
        **{key: value for key, value in store.attributes.items() if key not in NOT_CARRIED},
        "extracted": {"data_hash": data_hash(store), "episodes": len(store), **asked},
    }
    return copy_episodes([store], sources, attributes, target)


def main(arguments: list[str] | None = None) -> int:
    """Command line: extract, and write the new store's card. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="sodp3d extract", description="Some episodes as a new store.")
    parser.add_argument("source", type=Path, help="folder of a store, data/<env>")
    parser.add_argument("target", type=Path, help="folder of the new store")
    parser.add_argument("--quality", choices=QUALITIES, default="all", help="the first, the last or all of the steps")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the steps that `quality` takes")
    parser.add_argument("--success", choices=SUCCESS_METRICS, help="only episodes that succeeded by this metric")
    parser.add_argument("--max-episodes", type=int, help="at most so many, the latest ones with --quality nearoptimal")
    given = parser.parse_args(arguments)

    def job() -> None:
        source, target = (folder / "episodes.zarr" for folder in (given.source, given.target))
        with extract(source, target, given.fraction, given.max_episodes, given.success, given.quality) as store:
            count, steps = len(store), store.steps
        sys.stdout.write(f"{count} episodes, {steps} steps (card: {write_card(given.target)})\n")

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
