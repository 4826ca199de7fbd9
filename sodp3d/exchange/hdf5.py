"""HDF5 files read without trusting them: nothing outside the file is followed, and sizes are checked before reading."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError

MOST_BYTES = 2**31  # of one array of one episode: a small file can claim any size
FAULTS = (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, OverflowError)


@contextmanager
def reading(path: Path, where: str) -> Iterator[None]:
    """Turn what h5py says of a damaged file into an InputError that names `where`."""
    try:
        yield
    except InputError:
        raise
    except FAULTS as error:
        raise InputError(f"{where} is damaged or not a dataset of plain arrays ({error}).") from error


def member(group: h5py.Group, key: str, kind: type, where: str) -> Any:
    """What a group itself holds under a name. Raises InputError for a link, which may lead anywhere.

    where: the file, in messages.
    """
    link = group.get(key, getlink=True)
    if link is None:
        raise InputError(f"{where} is damaged or not a dataset of plain arrays ({group.name} has no {key}).")
    if not isinstance(link, h5py.HardLink):
        raise InputError(
            f"{where}: {group.name} has a {type(link).__name__} instead of {key}, which is not followed; take the set "
            f"from another source."
        )
    found = group[key]
    if not isinstance(found, kind):
        raise InputError(f"{where}{found.name}: expected a {kind.__name__.lower()}, got another thing.")
    return found


def local(group: h5py.Group, key: str, where: str) -> h5py.Dataset:
    """A dataset of any type that lies in this file. Raises InputError."""
    found = member(group, key, h5py.Dataset, where)
    if found.external or found.is_virtual:
        raise InputError(
            f"{where}{group.name}/{key} lies in another file, which is not read; take the set from another source."
        )
    return found


def is_group(group: h5py.Group, key: str) -> bool:
    """Whether a name is that of a group, without following links."""
    return isinstance(group.get(key, getlink=True), h5py.HardLink) and isinstance(group[key], h5py.Group)


def dataset(group: h5py.Group, key: str, where: str) -> h5py.Dataset:
    """A dataset that lies in this file, is of numbers, and claims no more bytes than an episode may have."""
    found, named = local(group, key, where), f"{where}{group.name}/{key}"
    if found.dtype.kind not in "biuf":
        raise InputError(f"{named}: expected numbers, got {found.dtype}.")
    if found.nbytes > MOST_BYTES:
        raise InputError(f"{named}: claims {found.nbytes} bytes, more than any episode has.")
    return found


def check_numbers(where: str, dtype: np.dtype[Any], values: NDArray[Any]) -> None:
    """Raises InputError unless all values are finite numbers."""
    if dtype.kind not in "biuf":
        raise InputError(f"{where}: expected numbers, got {dtype}.")
    if not np.isfinite(values).all():
        raise InputError(f"{where} holds numbers that are not finite.")


def number(name: str) -> tuple[int, str]:
    """The order of names such as demo_2 and demo_10."""
    digits = "".join(letter for letter in name if letter.isascii() and letter.isdecimal())
    return int(digits or 0), name
