"""Files that survive a kill: atomic writes, and locks that the kernel drops with their process."""

import fcntl
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import socket
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sodp3d.core.errors import InputError

log = logging.getLogger(__name__)
PARTIAL = ".partial"  # zarr's own suffix for files in the making
_ABANDONED = 3600.0  # seconds after which nobody can still be writing a partial file
_NUMBERED_IN = Path("/proc/self/ns/pid")  # containers of one name count their processes apart
_SPACE = os.readlink(_NUMBERED_IN) if _NUMBERED_IN.is_symlink() else ""
_MACHINE = hashlib.sha256(f"{socket.gethostname()}{_SPACE}".encode()).hexdigest()[:8]


def partial_path(path: Path) -> Path:
    """A name beside `path` for what becomes it when it is whole; `remove_leftovers` knows it, and its writer, again."""
    return path.with_name(f"{path.name}.{_MACHINE}-{os.getpid()}-{uuid.uuid4().hex}{PARTIAL}")


def remove_leftovers(path: Path, seconds: float = _ABANDONED) -> None:
    """Remove what killed writers of `path` left beside it.

    That is what a process of this machine left that lives no more, and what nobody touched in the last `seconds`.
    seconds: 0 for a caller who knows, by a lock, that nobody else writes `path`.
    """
    pattern = re.compile(
        rf"\.?{re.escape(path.name)}\.(?:({_MACHINE})-(\d+)-|\w+-\d+-)?[0-9a-f]{{32}}{re.escape(PARTIAL)}"
    )
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            found = pattern.fullmatch(entry.name)
            if found is None:
                continue
            with suppress(OSError):
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if age >= seconds or (found[1] and not _lives(int(found[2]))):
                    remove(Path(entry.path))


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes, durable: bool = False) -> None:
    """Write `content` to `path` so that a reader, or a kill at any moment, sees the old file or the new one whole.

    What killed writers of this file left is removed. durable: wait until the content is on the disk, so that
    a power cut cannot leave the new name without it.
    """
    remove_leftovers(path)
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """`replace_file`, durably, by text. Raises InputError where the disk refuses."""
    with disk_errors(path, "what was there stays"):
        replace_file(path, text.encode(), durable=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented, key-sorted JSON. Raises InputError for what JSON cannot hold (NaN, objects)."""
    try:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: expected plain JSON values: {error}.") from error
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises InputError naming the file where it is missing, unreadable or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: file is missing.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror or error}).") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from None


def claim_folder(path: Path) -> Path:
    """Make a new folder of that name, or of `<name>-2`, `<name>-3`, ... where others were first; return it."""
    with disk_errors(path, "nothing was changed"):
        path.parent.mkdir(parents=True, exist_ok=True)
        for name in itertools.chain([path.name], (f"{path.name}-{number}" for number in itertools.count(2))):
            with suppress(FileExistsError):
                path.with_name(name).mkdir()
                return path.with_name(name)
    raise AssertionError("names do not end")


def fsync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_space(path: Path, needed_bytes: int) -> None:
    """Raise InputError unless the disk of `path` has `needed_bytes` free."""
    free = shutil.disk_usage(path).free
    if free < needed_bytes:
        raise InputError(
            f"{path}: {needed_bytes / 1e6:.0f} MB are needed but only {free / 1e6:.0f} MB are free; "
            "nothing was written. Free some space and run the same command again."
        )


@contextmanager
def disk_errors(path: Path, consequence: str) -> Iterator[None]:
    """Turn a full disk, or any other error of the file system, into an InputError that says what it cost."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        taken = next((place for place in (path, *path.parents) if place.is_file()), path)
        raise InputError(
            f"{path}: cannot write, as {taken} is a file, not a folder; {consequence}. Name another."
        ) from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot write ({error.strerror or error}); {consequence}. Free space or mend the disk, then run "
            f"the same command again."
        ) from error


_held: "weakref.WeakSet[Lock]" = weakref.WeakSet()


class Lock:
    """An exclusive `flock`, which the kernel drops with the process however it dies; a context manager.

    The file names the holder, for the message that a second taker gets. It stays behind, empty of meaning.

    Args:
        path: the lock's file; its folder is made.
        taken: what to tell the second taker; "{holder}" in it is replaced.
        wait: whether that one then waits until the lock is free.
    """

    def __init__(self, path: Path, taken: str, wait: bool = False) -> None:
        """Raises InputError where another process holds it and `wait` is not set, or the disk refuses or is full."""
        self._file: int | None = None
        with disk_errors(path, "nothing was changed"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._take(taken, wait)
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            except BaseException:  # taken, or a disk that is full, or one that knows no locks
                self.forget()
                raise
        _held.add(self)

    def _take(self, taken: str, wait: bool) -> None:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 200).decode(errors="replace").strip() or "another process"
            told = taken.replace("{holder}", holder)
            if not wait:
                raise InputError(told) from None
            log.info("%s", told)
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def forget(self) -> None:
        """Close this process's handle. In a forked child that leaves the parent's lock in place."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def release(self) -> None:
        """Let the next taker in."""
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self.forget()
        _held.discard(self)

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _forget_in_child() -> None:
    # A forked environment worker would otherwise keep the lock alive after its parent was killed.
    for lock in list(_held):
        lock.forget()


os.register_at_fork(after_in_child=_forget_in_child)
