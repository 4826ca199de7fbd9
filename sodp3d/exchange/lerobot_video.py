"""Videos of LeRobot datasets: colours, and depth in codes of 12 bit; read frame by frame by FFmpeg.

Shape letters: T frames, H W image.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.vision.camera import MOST_PIXELS

_CODES = 4095  # of 12 bit
# Only the file itself, as what it says it is: a play list could name other files, and servers.
_ONLY_THIS_FILE = ["-f", "mov", "-protocol_whitelist", "file"]
_MOST_BYTES = 2**32  # of an episode's frames


class DepthCodes(NamedTuple):
    """How LeRobot makes codes of metres: code 0 stands for `least` and what is nearer, or invalid."""

    least: float = 0.01
    most: float = 10.0
    shift: float = 3.5
    logarithmic: bool = True

    @classmethod
    def of(cls, info: Mapping[str, Any], where: str) -> "DepthCodes":
        """As a feature's `info` says. Raises InputError for numbers that make no sense."""
        names = {"least": "depth_min", "most": "depth_max", "shift": "shift", "logarithmic": "use_log"}
        given = {ours: info.get(name, info.get(f"video.{name}")) for ours, name in names.items()}
        codes = cls(**{key: value for key, value in given.items() if value is not None})
        numbers = [codes.least, codes.most, codes.shift]
        sound = all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers)
        if not sound or not 0 <= codes.least < codes.most < 1e4 or not -codes.least < codes.shift < 1e4:
            raise InputError(f"{where}: expected depth_min below depth_max, and a shift that fits, got {numbers}.")
        return codes

    def millimetres(self, codes: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """Depth of codes; 0 where they say nothing."""
        share = np.arange(_CODES + 1) / _CODES
        if self.logarithmic:
            first, last = np.log(self.least + self.shift), np.log(self.most + self.shift)
            metres = np.exp(first + share * (last - first)) - self.shift
        else:
            metres = self.least + share * (self.most - self.least)
        table = np.clip(np.rint(metres * 1000), 0, 65_535).astype(np.uint16)
        table[0] = 0
        return table[np.minimum(codes, _CODES)]


def read_color(path: Path, start: int, count: int, rate: float) -> NDArray[np.uint8]:
    """(T, 3, H, W) of `count` frames from frame `start` on. Raises InputError for a file that is cut or damaged."""
    frames, (height, width) = _read(path, start, count, rate, "rgb24", 24)
    pixels = np.frombuffer(frames, np.uint8).reshape(count, height, width, 3)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def read_depth(path: Path, start: int, count: int, rate: float, codes: DepthCodes) -> NDArray[np.uint16]:
    """(T, H, W) millimetres. Raises InputError as `read_color` does."""
    # Not as grey: that would stretch the range of the luma, which holds the codes as they are.
    frames, (height, width) = _read(path, start, count, rate, "yuv420p12le", 24)
    planes = np.frombuffer(frames, "<u2").reshape(count, -1)
    return codes.millimetres(planes[:, : height * width].reshape(count, height, width))


def _read(path: Path, start: int, count: int, rate: float, pixels: str, bits: int) -> tuple[bytes, tuple[int, int]]:
    """Bytes of the frames, and height and width."""
    import imageio_ffmpeg

    seek = ["-ss", f"{(start - 0.5) / rate:.6f}"] if start else []  # between two frames, so that rounding is harmless
    output = ["-frames:v", str(count), "-fps_mode", "passthrough"]
    try:
        reader = imageio_ffmpeg.read_frames(
            str(path), pixels, bits_per_pixel=bits, input_params=[*_ONLY_THIS_FILE, *seek], output_params=output
        )
        width, height = next(reader)["source_size"]
        if max(width, height) > MOST_PIXELS or width * height * bits // 8 * count > _MOST_BYTES:
            raise InputError(f"{path}: claims {width} x {height} pixels in {count} frames, which are not read.")
        frames = list(reader)
    except (OSError, RuntimeError, ValueError, KeyError, StopIteration, SyntaxError, IndexError) as error:
        raise _damaged(path, str(error)) from None
    if len(frames) < count:
        raise _damaged(path, f"it holds {len(frames)} of {count} frames from frame {start} on")
    return b"".join(frames[:count]), (height, width)


def _damaged(path: Path, reason: str) -> InputError:
    last = [line for line in reason.splitlines() if line.strip()] or ["nothing was read"]
    return InputError(
        f"{path}: cannot be read as a video ({last[-1].strip()}); get it again, or leave this episode out."
    )


def write_color(path: Path, images: NDArray[np.uint8], rate: float) -> None:
    """An mp4 (H.264) of (T, 3, H, W). Raises InputError for odd sizes, which it cannot hold."""
    import imageio_ffmpeg

    height, width = images.shape[2:]
    if height % 2 or width % 2:
        raise InputError(f"video: expected images of even height and width, got {height} x {width}; use video=false.")
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=rate,
        codec="libx264",
        macro_block_size=1,
        output_params=["-g", "2", "-crf", "18", "-movflags", "+faststart"],
    )
    writer.send(None)
    for image in images:
        writer.send(np.ascontiguousarray(image.transpose(1, 2, 0)))
    writer.close()
