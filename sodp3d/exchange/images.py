"""PNG and other still images, read without trusting their sizes, and written without loss."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sodp3d.core.errors import InputError
from sodp3d.vision.camera import MOST_PIXELS

_DEPTH_MODES = ("I;16", "I;16B", "I;16L", "I", "F")  # 16 bit, and what TIFF holds beside it
_MOST_BYTES = 2**27  # of a file: all pixels that are read, and as much again
_FAULTS = (OSError, ValueError, SyntaxError, EOFError, struct.error, UnidentifiedImageError, MemoryError)


def read_depth(source: Path | bytes, where: str) -> NDArray[Any]:
    """(H, W) as it is stored: 16 bit, or 32 of TIFF. Raises InputError naming `where`."""
    image = _open(source, where)
    if image.mode not in _DEPTH_MODES:
        raise InputError(
            f"{where}: expected an image of 16 bit in grey, got mode {image.mode}; depth of 8 bit is too coarse, and "
            f"colours are no depth."
        )
    values = _load(image, where)
    return values.astype(np.uint16) if image.mode.startswith("I;16") else values


def read_color(source: Path | bytes, where: str) -> NDArray[np.uint8]:
    """(3, H, W) of an image of 8 bit, grey ones with three equal channels. Raises InputError naming `where`."""
    image = _open(source, where)
    if image.mode not in ("RGB", "RGBA", "L", "P"):
        raise InputError(f"{where}: expected an image of 8 bit colours, got mode {image.mode}.")
    try:
        image = image.convert("RGB")
    except _FAULTS as error:
        raise InputError(f"{where}: cannot be read whole ({error}); get it again, or leave out this episode.") from None
    return np.ascontiguousarray(_load(image, where).transpose(2, 0, 1))


def size_of(source: Path | bytes, where: str) -> tuple[int, int]:
    """Height and width, by the file's head alone. Raises InputError naming `where`."""
    width, height = _open(source, where).size
    return height, width


def png(pixels: NDArray[Any]) -> bytes:
    """A PNG file of (H, W) uint16 or (3, H, W) uint8."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels if pixels.ndim == 2 else pixels.transpose(1, 2, 0))
    image.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def _open(source: Path | bytes, where: str) -> Image.Image:
    try:
        if isinstance(source, Path) and source.stat().st_size > _MOST_BYTES:
            raise InputError(f"{where}: has {source.stat().st_size} bytes, more than any image that is read.")
        image = Image.open(io.BytesIO(source if isinstance(source, bytes) else source.read_bytes()))
    except InputError:
        raise
    except (*_FAULTS, Image.DecompressionBombError) as error:
        raise InputError(f"{where}: is no image that can be read ({error}); get it again.") from None
    if max(image.size) > MOST_PIXELS or min(image.size) < 1:
        raise InputError(f"{where}: claims {image.size[0]} x {image.size[1]} pixels; at most {MOST_PIXELS} are read.")
    return image


def _load(image: Image.Image, where: str) -> NDArray[Any]:
    try:
        return np.asarray(image)
    except _FAULTS as error:
        raise InputError(f"{where}: cannot be read whole ({error}); get it again, or leave out this episode.") from None
