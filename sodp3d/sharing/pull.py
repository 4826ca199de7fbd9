"""Take a planner or a store from others: a repository of Hugging Face, a folder, an archive, a web address, a release.

    sodp3d pull release                                     # the project's planner of Adroit's door
    sodp3d pull hf://<owner>/door planners/door
    sodp3d pull hf://datasets/<owner>/door-experience data/adroit_door
    sodp3d pull https://<server>/door.zip

Each file is held to its sha256 before it is used, and none of them can hold code. A killed pull leaves no folder of the
name asked for, and goes on when it is repeated. Nothing that is there is overwritten.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sodp3d.core.cli import exit_status
from sodp3d.core.errors import InputError
from sodp3d.core.paths import command_line, data_root, outputs_root
from sodp3d.core.run import read_config
from sodp3d.sharing.cards import makes_planners, of_recordings
from sodp3d.sharing.fetching import bring
from sodp3d.sharing.hub import SCHEME, HubSource, Repository
from sodp3d.sharing.manifest import PLANNER, Entry, Manifest, is_whole
from sodp3d.sharing.release import find_planner, is_release
from sodp3d.sharing.sources import ARCHIVE, Archive, Folder, Source, Web, download
from sodp3d.tools.runs import run_options

MOST_GIGABYTES = 20.0


def pull(where: str, to: Path | None = None, most_gigabytes: float = MOST_GIGABYTES) -> tuple[Path, Manifest]:
    """Bring the package at `where` into the folder `to`; where it is now, and what it holds.

    to: by default outputs/pulled/<name> for planners, data/<name> for stores. most_gigabytes: that are taken at most.
    Raises InputError as `fetching.bring`, and where `where` is no package or cannot be reached.
    """
    most = int(most_gigabytes * 1e9)
    with _source(where, most) as source:
        if to is None:
            kind = Manifest.read(source.manifest(), source.name).kind
            to = (outputs_root() / "pulled" if kind == PLANNER else data_root()) / _name(where)
        to = to.expanduser().absolute()
        return to, bring(source, to, most)


@contextmanager
def _source(where: str, most: int) -> Iterator[Source]:
    if where.startswith(SCHEME):
        yield HubSource(Repository.of(where))
    elif is_release(where):
        planner = find_planner(where)
        with _downloaded(planner.address, planner.entry.size, planner.entry, most) as archive:
            yield archive
    elif "://" in where and where.endswith(ARCHIVE):
        with _downloaded(where, most, None, most) as archive:
            yield archive
    elif "://" in where:
        yield Web(where)
    elif where.endswith(ARCHIVE):
        local = Archive(Path(where).expanduser())
        try:
            yield local
        finally:
            local.close()
    else:
        yield Folder(Path(where).expanduser())


@contextmanager
def _downloaded(address: str, size: int, entry: Entry | None, most: int) -> Iterator[Archive]:
    """An archive on the web, as long as the context. entry: what it must be, where that is known."""
    if size > most:
        raise InputError(f"{address}: {size / 1e9:.2f} GB; allow more with --most-gigabytes.")
    with tempfile.TemporaryDirectory(prefix="sodp3d-pull-") as folder:
        path = Path(folder) / "package.zip"
        download(address, path, size)
        if path.stat().st_size > size or (entry is not None and not is_whole(path, entry)):
            what = "is not the file that the release lists" if entry else f"has more than {most / 1e9:g} GB"
            raise InputError(f"{address}: {what}; nothing of it is used.")
        archive = Archive(path, address)
        try:
            yield archive
        finally:
            archive.close()


def _name(where: str) -> str:
    """Of the folder that it comes into: the last part of its address."""
    if is_release(where):
        return find_planner(where).name
    last = where.rstrip("/").rpartition("/")[2].partition("@")[0]
    name = last.removesuffix(ARCHIVE)
    if not name or name.startswith("."):
        raise InputError(f"{where}: name the folder that it shall come into, too.")
    return name


def what_now(path: Path, kind: str) -> str:
    """The commands to go on with, a line each."""
    if kind != PLANNER:
        return f"look at it: {command_line('view', str(path))}\n"
    config = read_config(path)
    if of_recordings(config):
        served = f"serve it to a robot: {command_line('serve', f'run={path}')}\n" if makes_planners(config) else ""
        return f"{served}load it in Python: sodp3d.load_policy({str(path)!r})\n"
    videos = f"watch it: {command_line('replay', f'run={path}')}\n" if (path / "evaluation").is_dir() else ""
    return f"{videos}evaluate it: {command_line('eval', *run_options(config), f'planner={path}')}\n"


def main(arguments: list[str] | None = None) -> int:
    """Command line. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(prog="sodp3d pull", description="Take a planner or a store from others.")
    parser.add_argument(
        "where", help=f"hf://owner/name[@revision], https://..., a folder, a {ARCHIVE} file, release, v1.2.0"
    )
    parser.add_argument(
        "to", type=Path, nargs="?", help="a new folder (outputs/pulled/<name>, or data/<name> for a store)"
    )
    parser.add_argument("--most-gigabytes", type=float, default=MOST_GIGABYTES, help="that are taken at most (20)")
    given = parser.parse_args(arguments)

    def job() -> None:
        path, manifest = pull(given.where, given.to, given.most_gigabytes)
        sys.stdout.write(f"{path} ({manifest.told()})\n{what_now(path, manifest.kind)}")

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
