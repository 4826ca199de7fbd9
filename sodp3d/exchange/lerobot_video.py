"""Videos of LeRobot datasets: colours, and depth in codes of 12 bit; read frame by frame by FFmpeg.

Shape letters: T frames, H W image.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError

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


def read_color(path: Path, start: int, count: int, rate: float, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(T, 3, H, W) of `count` frames from frame `start` on; size: (H, W).

    Raises InputError for a file that is cut or damaged, or has images of another size.
    """
    pixels = _read(path, start, count, rate, "rgb24", 3 * size[0] * size[1])
    return np.ascontiguousarray(pixels.reshape(count, *size, 3).transpose(0, 3, 1, 2))


def read_depth(
    path: Path, start: int, count: int, rate: float, size: tuple[int, int], codes: DepthCodes
) -> NDArray[np.uint16]:
    """(T, H, W) millimetres. Raises InputError as `read_color` does."""
    height, width = size
    color = 2 * (-(-height // 2)) * (-(-width // 2))
    # Not as grey: that would stretch the range of the luma, which holds the codes as they are.
    planes = _read(path, start, count, rate, "yuv420p12le", 2 * (height * width + color)).view("<u2")
    return codes.millimetres(planes[:, : height * width].reshape(count, height, width))


def _read(path: Path, start: int, count: int, rate: float, pixels: str, frame_bytes: int) -> NDArray[np.uint8]:
    """(T, bytes of a frame)."""
    if count * frame_bytes > _MOST_BYTES:
        raise InputError(f"{path}: claims {count * frame_bytes} bytes of images in an episode, more than any has.")
    seek = ["-ss", f"{(start - 0.5) / rate:.6f}"] if start else []  # between two frames, so that rounding is harmless
    limits = ["-frames:v", str(count), "-fs", str(count * frame_bytes + 1), "-fps_mode", "passthrough"]
    source = [*_ONLY_THIS_FILE, *seek, "-i", str(path.resolve())]
    done = _ffmpeg([*source, "-map", "0:v:0", *limits, "-f", "rawvideo", "-pix_fmt", pixels, "-"])
    if len(done.stdout) != count * frame_bytes:
        told = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        reason = (
            told[0] if told else f"it holds {len(done.stdout) / frame_bytes:.4g} of {count} frames, from {start} on"
        )
        raise InputError(
            f"{path}: cannot be read as a video of such images ({reason}); get it again, or leave this episode out."
        )
    return np.frombuffer(done.stdout, np.uint8).reshape(count, frame_bytes)


def write_color(path: Path, images: NDArray[np.uint8], rate: float) -> None:
    """An mp4 (H.264) of (T, 3, H, W). Raises InputError for odd sizes, which it cannot hold."""
    height, width = images.shape[2:]
    if height % 2 or width % 2:
        raise InputError(f"video: expected images of even height and width, got {height} x {width}; use video=false.")
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{rate:.6g}", "-i", "-"]
    target = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "2", "-crf", "18", "-movflags", "+faststart", str(path)]
    done = _ffmpeg([*source, *target], np.ascontiguousarray(images.transpose(0, 2, 3, 1)).tobytes())
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace").strip().splitlines()[-1])


def _ffmpeg(arguments: list[str], content: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    import imageio_ffmpeg

    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y"]
    return subprocess.run([*program, *arguments], input=content, capture_output=True, check=False)
