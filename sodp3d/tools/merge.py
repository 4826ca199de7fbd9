"""Stores that were collected apart, as one: `sodp3d merge <target> <shard> [<shard> ...]`."""

import argparse
import sys
from pathlib import Path

from sodp3d.core.cli import exit_status
from sodp3d.data.merge import merge
from sodp3d.tools.card import write_card


def main(arguments: list[str] | None = None) -> int:
    """Command line: merge, and write the new store's card. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="sodp3d merge", description="All episodes of several stores in one, ordered by agent step, then seed."
    )
    parser.add_argument("target", type=Path, help="folder of the new store, or of an unfinished merge")
    parser.add_argument("shards", type=Path, nargs="+", help="folders of the stores to merge")
    given = parser.parse_args(arguments)

    def job() -> None:
        with merge([shard / "episodes.zarr" for shard in given.shards], given.target / "episodes.zarr"):
            pass
        sys.stdout.write(f"{write_card(given.target)}\n")

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
