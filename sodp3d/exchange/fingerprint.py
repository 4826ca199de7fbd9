"""Whether a recording is the one that was imported before: by its files' names, sizes and times, not by contents."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from sodp3d.core.errors import InputError


def fingerprints(path: Path, episodes: Sequence[str], beside: Path | None, store: Path) -> list[str]:
    """The k-th tells the files of the first k episodes, k from 0 to all, and those that are of no single episode.

    So an episode that is mended before its turn changes nothing that was told until then. Files are of one episode
    where they lie in a folder of its name.

    path: of the recording, a file or a folder. beside: a file that is read, too. store: a folder whose files do not
    count, for it may lie inside the recording. Raises InputError for a folder that cannot be read.
    """
    folders = [path / name for name in episodes]
    digest = hashlib.sha256()
    found = []
    try:
        common = [*_files(path, {each.resolve() for each in (store, *folders)}), *([beside] if beside else [])]
        _tell(digest, common, path)
        found.append(digest.hexdigest()[:16])
        for folder in folders:
            _tell(digest, _files(folder, {store.resolve()}) if folder.is_dir() else (), path)
            found.append(digest.hexdigest()[:16])
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror or error}).") from None
    return found


def _files(path: Path, passed: set[Path]) -> Iterator[Path]:
    """Files below a path, by name, links followed. passed: folders that are not entered, or not again.

    Hidden folders are left out: other programs keep there what they like.
    """
    if not path.is_dir():
        yield from [path] if path.exists() else []
    elif path.resolve() not in passed:
        passed.add(path.resolve())
        for each in sorted(path.iterdir()):
            if not (each.name.startswith(".") and each.is_dir()):
                yield from _files(each, passed)


def _tell(digest: "hashlib._Hash", files: Iterator[Path] | Sequence[Path], root: Path) -> None:
    for file in files:
        name = file.relative_to(root) if file.is_relative_to(root) else file
        found = file.stat()
        digest.update(f"{name} {found.st_size} {found.st_mtime_ns}\n".encode(errors="surrogateescape"))
