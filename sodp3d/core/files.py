"""Files that survive a kill: atomic writes, and locks that the kernel drops with their process."""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import socket
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sodp3d.core.errors import InputError

PARTIAL = ".partial"  # zarr's own suffix for files in the making


def replace_file(path: Path, content: bytes, durable: bool = False) -> None:
    """Write `content` to `path` so that a reader, or a kill at any moment, sees the old file or the new one whole.

    What writers of this file left that were killed is removed. durable: wait until the content is on the disk, so that
    a power cut cannot leave the new name without it.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}.{_writer('*')}{PARTIAL}"):
        if not _lives(int(left.name.split(".")[-3])):
            left.unlink(missing_ok=True)
    partial = path.with_name(f"{path.name}.{_writer(str(os.getpid()))}{PARTIAL}")
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


def _writer(process: str) -> str:
    """In names of partial files: the machine, the process on it, and what tells that process's files apart."""
    machine = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    return f"{machine}.{process}.{uuid.uuid4().hex[:8] if process != '*' else '*'}"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


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
    """Parse a JSON file. Raises InputError naming the file where it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: file is missing.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror or error}).") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from None


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
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
    except OSError as error:
        raise InputError(
            f"{path}: cannot write ({error.strerror or error}); {consequence}. Free space or mend the disk, then run "
            f"the same command again."
        ) from error


_held: "weakref.WeakSet[Lock]" = weakref.WeakSet()


class Lock:
    """An exclusive `flock`, taken at once, which the kernel drops with the process however it dies; a context manager.

    The file names the holder, for the message that a second taker gets. It stays behind, empty of meaning.

    Args:
        path: the lock's file; its folder is made.
        taken: what to tell the second taker; "{holder}" in it is replaced.
    """

    def __init__(self, path: Path, taken: str) -> None:
        """Raises InputError where another process holds it, or the disk refuses."""
        with disk_errors(path, "nothing was changed"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 200).decode(errors="replace").strip() or "another process"
            self.forget()
            raise InputError(taken.replace("{holder}", holder)) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        _held.add(self)

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
