"""A folder of images per class, cropped and resized for classification as ImageNet is in VRL3's stage 1.

Every random choice follows from (seed, epoch, place of the image), so it does not matter who loads an image, or when.

Shape letters: S side of the square images.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from sodp3d.core.errors import InputError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
_AREA = (0.08, 1.0)  # of the image, kept by a random crop
_RATIO = (3 / 4, 4 / 3)  # of its width to its height
_ATTEMPTS = 10
_SHORTER_SIDE = 100  # to which validation images are resized before their centre is cut out


def list_images(folder: Path, classes: Sequence[str] | None = None) -> tuple[list[Path], list[int], list[str]]:
    """Images under folder/<class>/, their labels, and the names of the classes, in alphabetical order.

    Raises InputError where there are none, or other classes than `classes`.
    """
    if not folder.is_dir():
        raise InputError(f"images: there is no folder {folder}; expected train/<class>/* and val/<class>/* in images=.")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if classes is not None and names != list(classes):
        odd = sorted(set(names) ^ set(classes))
        raise InputError(f"images: {folder} does not hold the classes of train/; these are in one only: {odd[:5]}.")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in _SUFFIXES)
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise InputError(f"images: {folder} holds no images in folders of classes ({', '.join(_SUFFIXES)}).")
    return paths, labels, names


class ImageFolder(Dataset[tuple[NDArray[np.uint8], int]]):
    """Images (3, S, S) uint8 and labels. seed: of random crops and flips in `epoch`; None: the centre, as it is."""

    def __init__(
        self, paths: Sequence[Path], labels: Sequence[int], size: int, seed: int | None = None, epoch: int = 0
    ) -> None:
        self._paths, self._labels = paths, labels
        self._size, self._seed, self._epoch = size, seed, epoch

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        try:
            with Image.open(self._paths[index]) as file:
                picture = file.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of these
            raise InputError(f"images: {self._paths[index]} cannot be read ({error}); remove or replace it.") from error
        if self._seed is None:
            image = centre(picture, self._size)
        else:
            image = random_crop(picture, self._size, np.random.default_rng((self._seed, self._epoch, index)))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)), self._labels[index]


def random_crop(picture: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """A crop of random area and aspect ratio, resized to `size`, mirrored half of the time."""
    width, height = picture.size
    for _ in range(_ATTEMPTS):
        area = width * height * random.uniform(*_AREA)
        ratio = math.exp(random.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            break
    else:  # the whole image, but for what exceeds the aspect ratios
        w, h = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
    left, top = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
    crop = picture.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else crop


def centre(picture: Image.Image, size: int) -> Image.Image:
    """The middle `size` x `size` pixels of the picture, resized so that its shorter side is 100 (for `size` 84)."""
    width, height = picture.size
    scale = _SHORTER_SIDE / min(width, height)
    w, h = max(round(width * scale), size), max(round(height * scale), size)
    left, top = (w - size) // 2, (h - size) // 2
    return picture.resize((w, h), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
