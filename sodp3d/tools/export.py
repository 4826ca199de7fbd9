"""A planner or a store in another program's format: `sodp3d export <planner or store> <format> <path>`.

    sodp3d export outputs/finetune/adroit_door-pointcloud-sodp/<run> onnx door.onnx

Formats stand in `registry.EXPORTS`.
"""

import argparse
import sys
from pathlib import Path

from sodp3d.core import registry
from sodp3d.core.cli import exit_status


def main(arguments: list[str] | None = None) -> int:
    """Command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="sodp3d export", description="Write a planner or a store in another program's format."
    )
    parser.add_argument("source", type=Path, help="a run directory or checkpoint of a planner, or a store's folder")
    parser.add_argument("format", help=f"one of {', '.join(registry.EXPORTS)}")
    parser.add_argument("path", type=Path, help="what to write; nothing that is there is overwritten")
    given = parser.parse_args(arguments)

    def job() -> None:
        export = registry.choose(registry.EXPORTS, given.format, "format")
        sys.stdout.write(f"{export(given.source.expanduser(), given.path.expanduser())}\n")

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
