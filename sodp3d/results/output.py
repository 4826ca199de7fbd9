"""Where generated files go: a file that was not generated here is never replaced.

Markdown pages begin with a mark. Tables and figures, which cannot, are listed with their hashes in `generated.txt`.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from sodp3d.core.errors import InputError
from sodp3d.core.files import replace_file

MARK = "<!-- Made by `sodp3d results`; not to be edited. -->"
LIST = "generated.txt"
_LIST_MARK = "# Made by `sodp3d results`: the tables and figures that it may replace, with the start of their sha256."


def write_all(output: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write `files` (path below `output` to content) and the list of them; the paths written.

    Raises InputError, before anything is written, where a file of that name was not made by this command or was
    changed since; OSError.
    """
    known = _read_list(output / LIST)
    for name in files:
        path = output / name
        if path.exists() and not _is_ours(path, known.get(name)):
            raise InputError(
                f"{path}: was not made by `sodp3d results`, or was changed since, and is not replaced; move it away, "
                "or choose another --output."
            )
    for name, content in files.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(output / name, content)
    left = {name: digest for name, digest in known.items() if (output / name).exists()}
    listed = left | {name: _digest(content) for name, content in files.items() if not name.endswith(".md")}
    lines = [_LIST_MARK, *(f"{digest}  {name}" for name, digest in sorted(listed.items()))]
    replace_file(output / LIST, "".join(f"{line}\n" for line in lines).encode())
    return [output / name for name in (*files, LIST)]


def _is_ours(path: Path, digest: str | None) -> bool:
    if path.suffix == ".md":
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().rstrip("\n") == MARK
    return digest is not None and path.is_file() and _digest(path.read_bytes()) == digest


def _read_list(path: Path) -> dict[str, str]:
    """File name to digest. Raises InputError where a foreign file has that name."""
    if not path.exists():
        return {}
    first, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    if first != _LIST_MARK:
        raise InputError(f"{path}: was not made by `sodp3d results` and is not replaced; move it away.")
    pairs = [line.split("  ", 1) for line in lines]
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
