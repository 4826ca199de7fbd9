"""Planners that come with a release of the project: archives beside the release's notes, and planners.json, their list.

    python -m sodp3d.sharing.release dist adroit_door

writes dist/planners.json of dist/*.zip, which a release's workflow does.

`sodp3d pull release` takes the newest release, `sodp3d pull v1.2.0` that one; a slash and a name behind it another
planner than the first of the list.
"""

import argparse
import json
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from sodp3d.core.cli import exit_status
from sodp3d.core.errors import InputError
from sodp3d.core.files import write_text
from sodp3d.sharing.manifest import Entry, entry_of
from sodp3d.sharing.sources import ARCHIVE, limited, opened

RELEASES: str | None = None  # https://github.com/<owner>/<name>/releases, once the project has a public address
VARIABLE = "SODP3D_RELEASES"  # names another
LIST = "planners.json"
_WHICH = re.compile(r"(release|v\d+\.\d+\.\d+[\w.+-]*)(?:/([\w.-]+))?", re.ASCII)


class Planner(NamedTuple):
    """One that a release has. entry: of its archive."""

    name: str
    address: str
    entry: Entry


def is_release(where: str) -> bool:
    """Whether that names a release: `release`, `v1.2.0`, or either with a planner behind a slash."""
    return _WHICH.fullmatch(where) is not None


def find_planner(where: str) -> Planner:
    """What `where` names. Raises InputError where there are no releases, not that one, or not that planner in it."""
    found = _WHICH.fullmatch(where)
    assert found is not None
    base = os.environ.get(VARIABLE) or RELEASES
    if base is None:
        raise InputError(
            f"{where}: the project has no public releases yet. Name an address (hf://, https:// or a folder), or say "
            f"where releases are: {VARIABLE}=https://github.com/<owner>/<name>/releases"
        )
    tag, name = found[1], found[2]
    folder = f"{base.rstrip('/')}/{'latest/download' if tag == 'release' else f'download/{tag}'}"
    planners = _read_list(folder)
    name = name or next(iter(planners))
    if name not in planners:
        raise InputError(f"{where}: expected one of {', '.join(planners)}, got {name!r}.")
    return Planner(name, f"{folder}/{name}{ARCHIVE}", planners[name])


def _read_list(folder: str) -> dict[str, Entry]:
    address = f"{folder}/{LIST}"
    with opened(address) as stream:
        content = limited(stream, address)
    try:
        found = {
            str(name): Entry(str(value["sha256"]), int(value["size"])) for name, value in json.loads(content).items()
        }
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{address}: no list of planners ({error}).") from None
    if not found or not all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in found):
        raise InputError(f"{address}: expected names of planners, got {', '.join(found) or 'none'}.")
    return found


def write_list(folder: Path, first: str) -> Path:
    """Write the list of all archives in a folder, that of `first` first; its path. Raises InputError without that."""
    archives = {path.stem: path for path in sorted(folder.glob(f"*{ARCHIVE}"))}
    if first not in archives:
        raise InputError(f"{folder}: {first}{ARCHIVE} is missing.")
    names = [first, *(name for name in archives if name != first)]
    listed = {name: asdict(entry_of(archives[name])) for name in names}
    write_text(folder / LIST, json.dumps(listed, indent=2) + "\n")  # not sorted: the first one counts
    return folder / LIST


def main(arguments: list[str] | None = None) -> int:
    """Command line: write the list. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sodp3d.sharing.release", description="Write a release's list.")
    parser.add_argument("folder", type=Path, help="folder of the archives")
    parser.add_argument("first", help="name of the planner that is pulled unless another is named")
    given = parser.parse_args(arguments)

    def job() -> None:
        sys.stdout.write(f"{write_list(given.folder, given.first)}\n")

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
