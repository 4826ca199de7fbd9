"""What a package says that it holds: its kind, and the size and sha256 of each file. Everything read is held to it.

A package is a folder (or an archive, or a repository) with a file sodp3d.json:

    {"format": 1, "kind": "planner", "files": {"config.yaml": {"sha256": "<64 hex digits>", "size": 4711}, ...}}

Only names that a package of its kind can have are taken: no others, no folders above, no absolute paths, no links.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sodp3d.core.checkpoint import digest
from sodp3d.core.errors import InputError

MANIFEST = "sodp3d.json"
MANIFEST_BYTES = 64 * 2**20  # of a manifest at most; one of ten thousand files has 1.5 MB
FORMAT = 1
PLANNER, STORE = "planner", "store"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"  # of a path
_FILES = {  # all that a package of each kind can hold: none of it is code, none of it is pickled
    PLANNER: re.compile(
        r"README\.md|config\.yaml|versions\.json|result\.json"
        r"|checkpoints/[0-9]{8,20}/(tensors\.safetensors|state\.json)"
        rf"|evaluation/{_PART}/(evaluation\.json|rollouts\.npz)"
    ),
    STORE: re.compile(
        rf"README\.md|card/{_PART}\.png|episodes\.zarr/(\.zgroup|\.zattrs|(data|meta)/(\.zgroup|\.zattrs"
        rf"|{_PART}/(\.zarray|\.zattrs|[0-9]+(\.[0-9]+)*)))"
    ),
}


@dataclass(frozen=True)
class Entry:
    """One file: its sha256 in hex, and its bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """kind: planner | store. files: paths with `/` between their parts, as the package has them."""

    kind: str
    files: Mapping[str, Entry]

    @classmethod
    def of(cls, kind: str, files: Mapping[str, Path]) -> "Manifest":
        """Of files by their names in the package. Raises InputError for a name that no such package has."""
        for name in files:
            _check_name(kind, name, "push")
        return cls(kind, {name: entry_of(path) for name, path in sorted(files.items())})

    @classmethod
    def read(cls, content: bytes, where: str) -> "Manifest":
        """From a manifest's bytes; where: whose, for messages.

        Raises InputError where it is none, of another format, or names anything that a package of its kind cannot hold.
        """
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: {MANIFEST} is not valid JSON ({error}).") from None
        form, kind, files = (
            values.get(key) if isinstance(values, dict) else None for key in ("format", "kind", "files")
        )
        if form != FORMAT or kind not in list(_FILES):
            told = f"{str(form)[:40]} and {str(kind)[:40]}"
            raise InputError(
                f"{where}: {MANIFEST}: expected format {FORMAT} and kind {' or '.join(_FILES)}, got {told}; it is no "
                "package, or one of a later sodp3d."
            )
        if not isinstance(files, dict) or not files:
            raise InputError(f"{where}: {MANIFEST}: expected the package's files by name.")
        for name in files:
            _check_name(kind, name, where)
        return cls(kind, {name: _entry(entry, f"{where}: {name}") for name, entry in files.items()})

    def content(self) -> bytes:
        """The bytes that `read` takes; the same for the same package."""
        files = {name: asdict(entry) for name, entry in self.files.items()}
        return (
            json.dumps({"format": FORMAT, "kind": self.kind, "files": files}, indent=1, sort_keys=True) + "\n"
        ).encode()

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())

    def told(self) -> str:
        """What it is, for people."""
        return f"{self.kind}, {len(self.files)} files, {self.size / 1e6:.1f} MB"


def entry_of(path: Path) -> Entry:
    """Of a file as it is."""
    return Entry(digest(path), path.stat().st_size)


def is_whole(path: Path, entry: Entry) -> bool:
    """Whether a file is there, is no link, and is that of the entry, byte for byte."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != entry.size:
        return False
    return digest(path) == entry.sha256


def belongs(kind: str, name: str) -> bool:
    """Whether a package of that kind can hold a file of that name."""
    return _FILES[kind].fullmatch(name) is not None


def _check_name(kind: str, name: str, where: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\", "~")) or ":" in name or {"", ".", ".."}.intersection(parts):
        raise InputError(f"{where}: {name!r} leads out of the package; nothing of it is taken.")
    if not belongs(kind, name):
        raise InputError(f"{where}: {name!r} is no file that a {kind} consists of; nothing of it is taken.")


def _entry(value: Any, where: str) -> Entry:
    sha256, size = (value.get("sha256"), value.get("size")) if isinstance(value, dict) else (None, None)
    if (
        not isinstance(sha256, str)
        or not re.fullmatch("[0-9a-f]{64}", sha256)
        or not isinstance(size, int)
        or isinstance(size, bool)
        or not 0 <= size < 2**62
    ):
        raise InputError(f"{where}: expected its sha256 and size in {MANIFEST}, got {str(value)[:80]}.")
    return Entry(sha256, size)
