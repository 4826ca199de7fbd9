"""Where generated files go: a file that was not generated here is never replaced.

Markdown pages begin with a mark. Tables and figures, which cannot, are listed with their hashes in `generated.txt`.
"""

import hashlib
from collections.abc import Mapping, Set
from pathlib import Path

from sodp3d.core.errors import InputError
from sodp3d.core.files import replace_file

MARK = "<!-- Made by `sodp3d results`; not to be edited. -->"
LIST = "generated.txt"
_LIST_MARK = "# Made by `sodp3d results`: the tables and figures that it may replace, with the start of their sha256."


def write_all(output: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write `files` (path below `output` to content) and the list of them; the paths written.

    The list names what is there and what comes before anything is replaced: after a kill the same command goes on.

    Raises InputError, before anything is written, where a file of that name was not made by this command or was
    changed since; OSError.
    """
    known = _read_list(output / LIST)
    for name in files:
        path = output / name
        if path.exists() and not _is_ours(path, known.get(name, set())):
            raise InputError(
                f"{path}: was not made by `sodp3d results`, or was changed since, and is not replaced; move it away, "
                "or choose another --output."
            )
    left = {name: digests for name, digests in known.items() if (output / name).exists()}
    made = {name: {_digest(content)} for name, content in files.items() if not name.endswith(".md")}
    _write_list(output / LIST, {name: left.get(name, set()) | made.get(name, set()) for name in left | made})
    for name, content in files.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(output / name, content)
    _write_list(output / LIST, left | made)
    return [output / name for name in (*files, LIST)]


def _is_ours(path: Path, digests: Set[str]) -> bool:
    if path.suffix == ".md":
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().rstrip("\n") == MARK
    return path.is_file() and _digest(path.read_bytes()) in digests


def _write_list(path: Path, listed: Mapping[str, Set[str]]) -> None:
    lines = [_LIST_MARK, *(f"{digest}  {name}" for name in sorted(listed) for digest in sorted(listed[name]))]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(f"{line}\n" for line in lines).encode())


def _read_list(path: Path) -> dict[str, set[str]]:
    """File name to digest, or to several after a kill. Raises InputError where a foreign file has that name."""
    if not path.exists():
        return {}
    first, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    if first != _LIST_MARK:
        raise InputError(f"{path}: was not made by `sodp3d results` and is not replaced; move it away.")
    listed: dict[str, set[str]] = {}
    for digest, separator, name in (line.partition("  ") for line in lines):
        if separator:
            listed.setdefault(name, set()).add(digest)
    return listed


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
