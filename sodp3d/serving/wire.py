"""What goes over the wire: msgpack, with NumPy arrays as `openpi-client` writes them. Nothing that is read runs code.

An array is a map {"__ndarray__": True, "data": bytes, "dtype": "<f4", "shape": [2, 3]}, a NumPy number a map
{"__npgeneric__": True, "data": 0.5, "dtype": "<f4"}; their keys are bytes or texts. Only numbers and booleans are
arrays: no objects, no structures. A message is bounded before it is read: by its size, which the server limits, and
here by how many values it may hold, so that a few bytes cannot fill the memory.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError

MOST_IN_MAP, MOST_IN_LIST, MOST_VALUES, MOST_DIMENSIONS = 128, 1024, 65_536, 8
_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248])")
_ARRAY, _NUMBER = "__ndarray__", "__npgeneric__"


def pack(value: Any) -> bytes:
    """A tree of maps, lists, texts, numbers and arrays as bytes. Raises InputError for anything else."""
    import msgpack

    try:
        return bytes(msgpack.packb(value, default=_described))
    except InputError:  # which is a ValueError too
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"message: cannot be written as msgpack ({error}).") from None


def _described(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic) or not _DTYPE.fullmatch(value.dtype.str):
        what = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(f"message: expected texts, numbers, lists, maps and arrays of numbers, got {what}.")
    if isinstance(value, np.generic):
        return {_NUMBER.encode(): True, b"data": value.item(), b"dtype": value.dtype.str}
    return {_ARRAY.encode(): True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": list(value.shape)}


def unpack(data: bytes) -> Any:
    """Inverse of `pack`; keys of maps become texts, arrays are read-only. Raises InputError for what is none.

    Two calls share nothing, and one holds at most a few times the bytes that it reads.
    """
    import msgpack

    values = 0

    def counted(number: int) -> None:
        nonlocal values
        values += number
        if values > MOST_VALUES:
            raise InputError(f"message: more than {MOST_VALUES} values; send numbers as arrays, not as lists.")

    def listed(items: list[Any]) -> list[Any]:
        counted(len(items))
        return items

    def mapped(entries: dict[Any, Any]) -> Any:
        counted(len(entries))
        return _value({key.decode() if isinstance(key, bytes) else key: value for key, value in entries.items()})

    try:
        return msgpack.unpackb(
            data, object_hook=mapped, list_hook=listed, max_map_len=MOST_IN_MAP, max_array_len=MOST_IN_LIST,
            max_ext_len=0, strict_map_key=True,
        )  # fmt: skip
    except InputError:
        raise
    except Exception as error:  # whatever the decoder has to say of bytes from outside
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"message: not msgpack as it is expected here ({told}).") from None


def _value(entries: Mapping[str, Any]) -> Any:
    """The map itself, or the array or the number that it stands for."""
    if _ARRAY in entries:
        return _array(entries)
    if _NUMBER in entries:
        number = entries.get("data")
        if not isinstance(number, int | float):
            raise InputError(f"message: expected a number in {_NUMBER}, got {type(number).__name__}.")
        return number
    return entries


def _array(entries: Mapping[str, Any]) -> NDArray[Any]:
    data, name, shape = entries.get("data"), entries.get("dtype"), entries.get("shape")
    if isinstance(name, bytes):
        name = name.decode()
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise InputError(f"message: expected an array of numbers, got one of dtype {str(name)[:40]!r}.")
    sizes = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not isinstance(shape, list) or not sizes or len(shape) > MOST_DIMENSIONS:
        raise InputError(f"message: expected an array's shape as a list of whole numbers, got {str(shape)[:80]}.")
    dtype = np.dtype(name)
    if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        told = len(data) if isinstance(data, bytes) else type(data).__name__
        raise InputError(f"message: an array of shape {shape} and dtype {name} has other data than that ({told}).")
    return np.frombuffer(data, dtype).reshape(shape)
