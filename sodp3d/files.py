"""Files that survive a kill: atomic writes and advisory locks."""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sodp3d.errors import InputError

PROJECT = Path(__file__).resolve().parent.parent


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step: readers see the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented, key-sorted JSON; refuses NaN, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises InputError naming the file where it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: file is missing.") from None
    except json.JSONDecodeError as error:
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
def exclusive_lock(path: Path, what: str) -> Iterator[None]:
    """Hold an advisory lock; the kernel frees it when the process dies, however it dies.

    Raises InputError naming the process that holds it.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(f"{what} is in use by {holder}; wait for it or stop it first.") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
