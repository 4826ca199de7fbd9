"""Files of a store: atomic replacement, the writer's lock, and checks that need no decoding.

Nothing here trusts a store: headers that could make a loader run code are refused, and chunks that are missing or
cut short are found before a decoder sees them.
"""

import contextlib
import fcntl
import json
import os
import socket
import struct
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sodp3d.errors import InputError

PARTIAL = ".partial"  # zarr's own suffix for files in the making


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader, or a kill at any moment, sees the old file or the new one whole."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def disk_errors(path: Path, consequence: str) -> Iterator[None]:
    """Turn a full disk, or any other error of the file system, into an InputError that says what it cost."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot write ({error.strerror or error}); {consequence}. Free space or mend the disk, then run "
            f"the same command again."
        ) from error


def plain(value: Any) -> Any:
    """`value` as strict JSON holds it: tuples become lists, infinities the strings "inf" and "-inf".

    `float` reads those strings back, so crop boxes survive the round trip.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value


def write_json(path: Path, value: Any) -> None:
    """Atomically write `value` as strict JSON. Raises InputError for what JSON cannot hold (NaN, objects)."""
    try:
        text = json.dumps(plain(value), indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path.name}: attributes must be plain JSON values: {error}.") from error
    replace_file(path, text.encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where the file is missing. Raises InputError when it cannot be parsed."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); the store is damaged.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}; the store is damaged.")
    return value


def check_header(folder: Path) -> dict[str, Any]:
    """The `.zarray` header of an array folder, refused unless plain: numeric, no filters, Blosc or no compression.

    Zarr's codec registry holds a pickle filter, so a foreign header could otherwise run code on the first read.
    """
    header = read_json(folder / ".zarray")
    kind = str(header.get("dtype", "")).lstrip("<>|=")[:1]
    compressor = header.get("compressor") or {"id": "blosc"}
    if kind not in tuple("biuf") or header.get("filters") or compressor.get("id") != "blosc":
        raise InputError(
            f"{folder}: expected a numeric array with Blosc or no compression and no filters, got dtype "
            f"{header.get('dtype')!r}, filters {header.get('filters')!r}, compressor {header.get('compressor')!r}; "
            f"this store was not written by sodp3d and is not opened."
        )
    return header


def chunk_fault(path: Path) -> str | None:
    """Why a Blosc-compressed chunk file cannot be whole, or None.

    A Blosc buffer names its own length in bytes 12..16 of its header; the decoder itself never sees the file's size.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        return f"chunk {path.name}: {error.strerror}"
    if len(head) < 16:
        return f"chunk {path.name} holds {size} bytes, fewer than a header"
    expected = struct.unpack("<I", head[12:16])[0]
    return None if size == expected else f"chunk {path.name} holds {size} bytes instead of {expected}"


_held: "weakref.WeakSet[WriterLock]" = weakref.WeakSet()


class WriterLock:
    """One writer at a time: an exclusive `flock` on a file beside the store, which the kernel drops with the process.

    The file names the holder, for the message a second writer gets. It stays behind, empty of meaning, when released.
    """

    def __init__(self, store: Path) -> None:
        """Take the lock of `store`. Raises InputError naming the process that holds it."""
        path = store.with_name(store.name + ".lock")
        with disk_errors(path, "nothing was changed"):
            store.parent.mkdir(parents=True, exist_ok=True)
            self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 200).decode(errors="replace").strip() or "another process"
            self.forget()
            raise InputError(
                f"{store}: {holder} is writing to this store. One writer at a time: wait for it or stop it, "
                f"or collect into another folder and merge."
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        _held.add(self)

    def forget(self) -> None:
        """Close this process's handle. In a forked child that leaves the parent's lock in place."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def release(self) -> None:
        """Let the next writer in."""
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self.forget()
        _held.discard(self)


def _forget_in_child() -> None:
    # A forked environment worker would otherwise keep the lock alive after its parent was killed.
    for lock in list(_held):
        lock.forget()


os.register_at_fork(after_in_child=_forget_in_child)
