"""Checks of a store's files that need no decoding.

Nothing here trusts a store: headers that could make a loader run code are refused, and chunks that are missing or
cut short are found before a decoder sees them.
"""

import os
import struct
from pathlib import Path
from typing import Any

from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, {} where the file is missing. Raises InputError where it holds anything else."""
    if not path.exists():
        return {}
    try:
        value = read_json(path)
    except InputError as error:
        raise InputError(f"{error} The store is damaged.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}; the store is damaged.")
    return value


def check_header(folder: Path) -> dict[str, Any]:
    """The `.zarray` header of an array folder, refused unless plain: numeric, no filters, Blosc or no compression.

    Zarr's codec registry holds a pickle filter, so a foreign header could otherwise run code on the first read.
    """
    header = read_object(folder / ".zarray")
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
