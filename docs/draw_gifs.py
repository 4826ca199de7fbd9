"""Draw the README's GIFs from replay videos: python docs/draw_gifs.py results/videos docs/images

Each video `<task>-before.mp4` or `<task>-after.mp4`, as `replay.py` writes them, gives a GIF of the same name.
"""

import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE = 160  # pixels of a GIF's side
FRAMES = 26  # at most
MILLISECONDS = 100  # of a frame
HOLD = 1500  # milliseconds of the last frame
COLOURS = 160
GREEN = (40, 200, 60)
BAR = 8  # rows at the bottom of a video, green in steps that achieve the goal
VIEWS = {"hammer": (48, 0, 160), "door": (0, 0, 248), "pen": (85, 75, 140)}  # left, top, side of what a GIF shows


def picture(frame: NDArray[np.uint8], view: tuple[int, int, int]) -> Image.Image:
    """The part `view` of a video frame's colour half (H, 2H, 3), with a green edge where the goal is achieved."""
    left, top, side = view
    shown = Image.fromarray(frame[top : top + side, left : left + side]).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    achieved = np.abs(frame[-BAR // 2, : frame.shape[0]].mean(0) - GREEN).max() < 30
    if achieved:
        ImageDraw.Draw(shown).rectangle((0, 0, SIZE - 1, SIZE - 1), outline=GREEN, width=4)
    return shown


def draw_gif(video: Path, output: Path) -> None:
    """One GIF of one video, with one palette for all of its frames."""
    frames = iio.imread(video)
    chosen = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
    view = VIEWS.get(video.stem.partition("-")[0], (0, 0, frames.shape[1] - BAR))
    pictures = [picture(frames[index], view) for index in chosen]
    strip = Image.fromarray(np.concatenate([np.asarray(one) for one in pictures]))
    palette = strip.quantize(COLOURS)
    quantized = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in pictures]
    durations = [MILLISECONDS] * (len(quantized) - 1) + [HOLD]
    quantized[0].save(output, save_all=True, append_images=quantized[1:], duration=durations, loop=0, optimize=True)


def main() -> None:
    """Draw a GIF for each video of the folder that comes first into the folder that comes second."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    for video in sorted([*source.glob("*-before.mp4"), *source.glob("*-after.mp4")]):
        draw_gif(video, target / f"{video.stem}.gif")


if __name__ == "__main__":
    main()
