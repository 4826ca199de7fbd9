"""Give a planner or a store to others: into a folder, an archive, or a repository of Hugging Face.

    sodp3d push outputs/finetune/adroit_door-pointcloud-sodp/<run> hf://<owner>/door --license mit
    sodp3d push data/adroit_door hf://datasets/<owner>/door-experience
    sodp3d push outputs/finetune/adroit_door-pointcloud-sodp/<run> door.zip

What is pushed of it, `sodp3d.sharing.contents` says. A new repository is private unless `--public` is given.
"""

import argparse
import logging
import sys
from pathlib import Path

from sodp3d.core.cli import exit_status
from sodp3d.core.errors import InputError
from sodp3d.sharing.contents import package_of
from sodp3d.sharing.fetching import bring, write_archive
from sodp3d.sharing.hub import SCHEME, Repository, push_to_hub
from sodp3d.sharing.sources import ARCHIVE


def push(
    what: Path, where: str, evaluation: Path | None = None, licence: str | None = None, public: bool = False
) -> str:
    """Push the run directory or store `what`; where it is now, and what it holds.

    Arguments as `package_of`. Raises InputError where `what` is neither, or `where` cannot take it.
    """
    repository = Repository.of(where) if where.startswith(SCHEME) else None
    if repository is None and "://" in where:
        raise InputError(
            f"{where}: can be pulled from only; push to hf://<owner>/<name>, a folder or a {ARCHIVE} file."
        )
    address = where if repository else "<address>"
    with package_of(what.expanduser(), evaluation, licence, address) as files:
        if repository is not None:
            now = push_to_hub(files, repository, public)
        else:
            now = str(target := Path(where).expanduser().absolute())
            if target.suffix == ARCHIVE:
                write_archive(files, target)
            else:
                bring(files, target, files.described.size)
        return f"{now} ({files.described.told()})"


def main(arguments: list[str] | None = None) -> int:
    """Command line. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(prog="sodp3d push", description="Give a planner or a store to others.")
    parser.add_argument("what", type=Path, help="a run directory with a planner, or the folder of a store, data/<env>")
    parser.add_argument("where", help=f"hf://owner/name, hf://datasets/owner/name, a new folder, or a {ARCHIVE} file")
    parser.add_argument(
        "--evaluation", type=Path, help="a mode=eval run of this planner, whose episodes the card tells"
    )
    parser.add_argument("--license", help="of what is pushed, for the card: mit, cc-by-4.0, ...")
    parser.add_argument("--public", action="store_true", help="of a new repository: for everybody to see")
    given = parser.parse_args(arguments)

    def job() -> None:
        sys.stdout.write(f"{push(given.what, given.where, given.evaluation, given.license, given.public)}\n")

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
