"""A package brought into a folder: file by file beside it, each held to its digest, and then one rename.

A kill at any moment leaves no folder of that name. What was whole by then lies in `.<name>.unfinished` beside it, and
the same command goes on with the rest.
"""

import logging
import shutil
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import yaml

from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.core.files import (
    Lock,
    disk_errors,
    fsync,
    partial_path,
    remove,
    remove_leftovers,
    replace_file,
    require_space,
)
from sodp3d.core.progress import LINE_SECONDS
from sodp3d.core.run import read_config, read_result, read_versions
from sodp3d.data.store import EpisodeStore
from sodp3d.models.loading import checkpoint_of
from sodp3d.rollouts.kept import ROLLOUTS, KeptRollouts
from sodp3d.sharing.manifest import MANIFEST, PLANNER, Entry, Manifest, is_whole
from sodp3d.sharing.sources import Source
from sodp3d.tools.runs import run_options

log = logging.getLogger(__name__)
_INCOMING = ".incoming"  # of files that have not been looked at yet
_LOCK = ".lock"
_MOST_ROLLOUTS = 2**30  # bytes of kept roll-outs, unpacked; those of 1000 episodes have 10 MB


def bring(source: Source, target: Path, most: int) -> Manifest:
    """The package of `source` in the folder `target`, and what it holds. One that is there already is checked.

    most: bytes that are taken at most. Raises InputError where `target` holds anything else, for a package that is too
    large, names or holds what it should not, or does not match its digests, and where the disk refuses.
    """
    manifest = Manifest.read(source.manifest(), source.name)
    if _is_there(target, manifest):
        log.info("%s holds it already, whole", target)
        return manifest
    if manifest.size > most:
        raise InputError(
            f"{source.name}: {manifest.size / 1e9:.2f} GB, and at most {most / 1e9:g} GB are taken; allow more with "
            "--most-gigabytes."
        )
    source.check(manifest)
    staging = target.with_name(f".{target.name}.unfinished")
    with disk_errors(target, "what is whole of it is kept"):
        staging.mkdir(parents=True, exist_ok=True)
        with Lock(staging / _LOCK, f"{target}: {{holder}} is writing it; wait for it or stop it first."):
            _fill(source, manifest, staging)
            _require_readable(manifest.kind, staging)
            for folder in {(staging / name).parent for name in manifest.files}:
                fsync(folder)
            staging.rename(target)
            fsync(target.parent)
            (target / _LOCK).unlink()
    return manifest


def write_archive(source: Source, target: Path) -> Manifest:
    """The package of `source` as one .zip file. The same package gives the same bytes.

    Raises InputError where `target` exists and is not that package, and where the disk refuses.
    """
    manifest = Manifest.read(source.manifest(), source.name)
    with disk_errors(target, "no archive was written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        partial = partial_path(target)
        try:
            with zipfile.ZipFile(partial, "w") as archive:
                archive.writestr(zipfile.ZipInfo(MANIFEST), manifest.content(), zipfile.ZIP_DEFLATED)
                for name, entry in manifest.files.items():
                    with (
                        _incoming(source, name, entry, target) as path,
                        path.open("rb") as stream,
                        archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member,
                    ):
                        shutil.copyfileobj(stream, member, 2**20)
            fsync(partial)
            if not target.exists():
                partial.replace(target)
            elif checkpoint.digest(partial) != checkpoint.digest(target):
                raise InputError(f"{target}: exists and is not overwritten; name another file.")
        finally:
            remove(partial)
    return manifest


@contextmanager
def _incoming(source: Source, name: str, entry: Entry, beside: Path) -> Iterator[Path]:
    """A file of the package, held to its digest, beside the archive that it goes into."""
    path = partial_path(beside)
    try:
        source.fetch(name, entry, path)
        _require_whole(path, name, entry, source)
        yield path
    finally:
        remove(path)


def _is_there(target: Path, manifest: Manifest) -> bool:
    """Whether the package is in `target`, whole. Raises InputError where anything else is there."""
    if target.is_dir() and not any(target.iterdir()):
        return False
    if not target.exists():
        return False
    same = (target / MANIFEST).is_file() and (target / MANIFEST).read_bytes() == manifest.content()
    if not same:
        raise InputError(f"{target}: exists, holds something else, and is not overwritten; name another folder.")
    for name, entry in manifest.files.items():
        if not is_whole(target / name, entry):
            raise InputError(
                f"{target / name}: is missing or was changed since it came here, and is not overwritten; name another "
                "folder."
            )
    return True


def _fill(source: Source, manifest: Manifest, staging: Path) -> None:
    """Fetch into `staging` what is not whole there yet, and nothing else stays there."""
    wanted = {staging / name for name in manifest.files}
    keep = {staging / _LOCK, staging / _INCOMING, *wanted, *(parent for path in wanted for parent in path.parents)}
    for path in sorted(staging.rglob("*")):
        if path not in keep and staging / _INCOMING not in path.parents:
            remove(path)
    missing = {name: entry for name, entry in manifest.files.items() if not is_whole(staging / name, entry)}
    require_space(staging, sum(entry.size for entry in missing.values()))
    (staging / _INCOMING).mkdir(exist_ok=True)
    for path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
    _fetch_all(source, missing, staging)
    remove(staging / _INCOMING)
    replace_file(staging / MANIFEST, manifest.content(), durable=True)


def _fetch_all(source: Source, missing: dict[str, Entry], staging: Path) -> None:
    """Several at once, where the source is far away. The first that is wrong ends it."""
    total, done, told = sum(entry.size for entry in missing.values()), 0, time.monotonic()
    pool = ThreadPoolExecutor(source.at_once)
    try:
        left = {pool.submit(_fetch, source, name, entry, staging): entry for name, entry in missing.items()}
        while left:
            finished, _ = wait(left, timeout=LINE_SECONDS, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                done += left.pop(future).size
            if time.monotonic() - told > LINE_SECONDS:
                told = time.monotonic()
                log.info("%.1f of %.1f MB", done / 1e6, total / 1e6)
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch(source: Source, name: str, entry: Entry, staging: Path) -> None:
    incoming = staging / _INCOMING / name.replace("/", "+")
    source.fetch(name, entry, incoming)
    _require_whole(incoming, name, entry, source)
    fsync(incoming)
    incoming.replace(staging / name)


def _require_whole(path: Path, name: str, entry: Entry, source: Source) -> None:
    if not is_whole(path, entry):
        size = path.stat().st_size
        remove(path)
        what = f"its {size} bytes are not the {entry.size}" if size != entry.size else "its sha256 is not the one"
        raise InputError(
            f"{source.name}: {name}: {what} of {MANIFEST}: it was damaged or changed; nothing of it is used."
        )


def _require_readable(kind: str, folder: Path) -> None:
    """Raise InputError where the package is not what a command could use: nobody has looked into its files yet."""
    if kind != PLANNER:
        EpisodeStore.open(folder / "episodes.zarr")
        return
    checkpoint.load(checkpoint_of(folder))
    _require_plain(folder / "config.yaml")
    with checkpoint.restoring(folder):
        run_options(read_config(folder))
    read_versions(folder)
    if (folder / "result.json").exists():
        read_result(folder)
    for path in folder.glob(f"evaluation/*/{ROLLOUTS}"):
        try:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
        except zipfile.BadZipFile as error:
            raise InputError(f"{path}: damaged ({error}).") from None
        if unpacked > _MOST_ROLLOUTS:
            raise InputError(f"{path}: {unpacked / 1e9:.1f} GB when unpacked, which no evaluation has.")
        KeptRollouts.read(path)


def _require_plain(path: Path) -> None:
    """Raise InputError for YAML with aliases, of which a few lines can stand for more than memory holds."""
    try:
        aliased = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(path.read_bytes(), yaml.SafeLoader))
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from None
    if aliased:
        raise InputError(f"{path}: holds aliases, which a pushed configuration has none of; nothing of it is used.")
