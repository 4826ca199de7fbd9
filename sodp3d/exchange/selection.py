"""Which of a recording's arrays become which of a store's, and how they are brought into a store's units.

Shape letters: T steps, N points, H W image.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.exchange.episodes import Arrays, Facts, Kind, Offer, check_arrays
from sodp3d.settings import ImportSettings
from sodp3d.vision.camera import check_poses

JOINED = ("action", "agent_pos", "state")  # of one or several keys of numbers, one after the other
_SINGLE: dict[str, Kind] = {
    "depth": "depth",
    "image": "image",
    "point_cloud": "points",
    "camera_pose": "pose",
    "reward": "numbers",
    "success": "numbers",
}
_FARTHEST = 65_535  # millimetres, that 16 bit hold
_MOST_OF_A_POINT = 10  # numbers: x y z, a colour, a normal


@dataclass(frozen=True)
class Selection:
    """The recording's keys behind each key of the store; `beside`: those that go beside the joints."""

    keys: Mapping[str, tuple[str, ...]]
    beside: tuple[str, ...]
    lost: Mapping[str, str]  # the recording's keys that no store gets, and why

    @property
    def all(self) -> list[str]:
        """What must be read, each once."""
        return list(dict.fromkeys([key for keys in self.keys.values() for key in keys] + list(self.beside)))


def select(offers: Mapping[str, Offer], settings: ImportSettings, lost: Collection[str] = ()) -> Selection:
    """What the settings ask for, and the format's own choice for the rest. Raises InputError naming the option.

    lost: what the recording has and does not offer, which leave_out may name, too.
    """
    beside = tuple(_found(offers, "keys", settings.keys or [], "numbers"))
    left_out = _found(offers, "leave_out", [key for key in settings.leave_out or [] if key not in lost], None)
    keys: dict[str, tuple[str, ...]] = {}
    for target in JOINED:
        asked = getattr(settings, target)
        own = [key for key, offer in offers.items() if offer.becomes == target and key not in (*beside, *left_out)]
        chosen = own if asked is None else _found(offers, target, asked, "numbers")
        if chosen:
            keys[target] = tuple(chosen)
    for target, kind in _SINGLE.items():
        asked = getattr(settings, target, None)
        own = [key for key, offer in offers.items() if offer.becomes == target and key not in (*beside, *left_out)]
        chosen = own if asked is None else _found(offers, target, [asked], kind)
        if chosen:
            keys[target] = (chosen[0],)
    _require(offers, keys, beside)
    used = {key for group in keys.values() for key in group} | set(beside)
    unused = {key: _why(offer, key in left_out) for key, offer in offers.items() if key not in used}
    return Selection(keys, beside, unused)


def _found(offers: Mapping[str, Offer], option: str, asked: Sequence[str], kind: Kind | None) -> list[str]:
    for key in asked:
        fitting = [name for name, offer in offers.items() if kind in (None, offer.kind)]
        if key not in fitting:
            raise InputError(f"{option}: expected one of {', '.join(fitting) or 'none'}, got {key!r}.")
    return list(dict.fromkeys(asked))


def _require(offers: Mapping[str, Offer], keys: Mapping[str, Any], beside: Sequence[str]) -> None:
    numbers = ", ".join(key for key, offer in offers.items() if offer.kind == "numbers") or "none"
    if "action" not in keys:
        raise InputError(f"action: the recording has none by that name; name its keys, as action=[<key>]: {numbers}.")
    if "agent_pos" not in keys and not beside:
        raise InputError(
            f"agent_pos: the recording has nothing by that name that says what the robot feels of itself; name its "
            f"keys, as agent_pos=[<key>,<key>]: {numbers}."
        )


def _why(offer: Offer, left_out: bool) -> str:
    if left_out:
        return "left out, as asked"
    if offer.becomes and offer.becomes not in (*JOINED, *_SINGLE):
        return "recordings have no such array"
    if offer.kind == "numbers":
        return "no place for it unless told: keys=[...] puts it beside the joints"
    if offer.kind == "pose":
        return "the camera does not move"
    option = {"depth": "depth", "image": "image", "points": "point_cloud"}[offer.kind]
    return f"a store holds one of these; {option}=<key> chooses which"


def to_store(arrays: Arrays, selection: Selection, facts: Facts, where: str) -> tuple[Arrays, Arrays]:
    """The store's arrays, and those beside the joints, of one episode. Raises InputError naming `where`."""
    check_arrays(arrays, where)
    made: Arrays = {}
    for target, keys in selection.keys.items():
        if target in JOINED:
            parts = [arrays[key].reshape(len(arrays[key]), -1) for key in keys]
            made[target] = _rounded(np.concatenate(parts, axis=1), f"{where}: {target}")
        else:
            made[target] = _CONVERTED[target](arrays[keys[0]], facts, f"{where}: {keys[0]}")
    beside = {key: _rounded(arrays[key].reshape(len(arrays[key]), -1), f"{where}: {key}") for key in selection.beside}
    return made, beside


def _rounded(values: NDArray[Any], where: str) -> NDArray[np.float32]:
    """As float32. Raises InputError where that would make an infinity of a number."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    if not np.isfinite(rounded).all():
        raise InputError(f"{where}: holds numbers beyond what float32 can, up to {np.abs(values).max():g}; scale them.")
    return rounded


def to_depth(values: NDArray[Any], facts: Facts, where: str) -> NDArray[np.uint16]:
    """(T, H, W) millimetres; 0 where invalid. Raises InputError for what cannot be depth."""
    values = _squeezed(values)
    if values.ndim != 3:
        raise InputError(f"{where}: expected depth images (T, H, W), got {values.shape}.")
    if values.dtype == np.uint16 and facts.depth_scale in (None, 0.001):
        return values
    scale = facts.depth_scale or (0.001 if values.dtype.kind in "iu" else 1.0)
    millimetres = np.rint(values * np.float64(scale) * 1000)  # before the limit: float32 makes 65.535 a little more
    if millimetres.min() < 0 or millimetres.max() > _FARTHEST:
        least, most = millimetres.min() / 1000, millimetres.max() / 1000
        raise InputError(
            f"{where}: depth reaches from {least:g} to {most:g} metres, and 0 to {_FARTHEST / 1000} can be kept; "
            f"depth_scale=<metres of one unit> says what its numbers mean."
        )
    return millimetres.astype(np.uint16)


def to_image(values: NDArray[Any], _: Facts, where: str) -> NDArray[np.uint8]:
    """(T, 3, H, W) of 8 bit, from images with channels first or last. Raises InputError for other numbers."""
    if values.ndim == 4 and values.shape[1] != 3 and values.shape[-1] in (3, 4):
        values = np.moveaxis(values[..., :3], -1, 1)
    if values.ndim != 4 or values.shape[1] != 3:
        raise InputError(f"{where}: expected images (T, H, W, 3) or (T, 3, H, W), got {values.shape}.")
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.min() < 0 or values.max() > 255 or (values != np.rint(values)).any():
        raise InputError(f"{where}: expected whole numbers from 0 to 255, got {values.min():g} to {values.max():g}.")
    return np.ascontiguousarray(values.astype(np.uint8))


def to_points(values: NDArray[Any], _: Facts, where: str) -> NDArray[np.float32]:
    """(T, N, 3) metres: the coordinates of clouds that may have colours behind them. Raises InputError.

    Clouds (T, 3, N), of which three points of N numbers would be made, are refused.
    """
    if values.ndim != 3 or not 3 <= values.shape[-1] <= _MOST_OF_A_POINT:
        raise InputError(
            f"{where}: expected clouds (T, N, 3), or with colours behind up to {_MOST_OF_A_POINT} numbers a point, got "
            f"{values.shape}; write each point's numbers last, or leave this key out (leave_out)."
        )
    return _rounded(np.ascontiguousarray(values[..., :3]), where)


def _to_pose(values: NDArray[Any], _: Facts, where: str) -> NDArray[np.float64]:
    if values.shape[1:] not in ((4, 4), (16,)):
        raise InputError(f"{where}: expected 4 x 4 numbers of each step, got {values.shape[1:]}.")
    poses = values.reshape(-1, 4, 4).astype(np.float64)
    check_poses(poses, where)
    return poses


def _to_reward(values: NDArray[Any], _: Facts, where: str) -> NDArray[np.float32]:
    return _rounded(_one(values, where), where)


def _to_success(values: NDArray[Any], _: Facts, where: str) -> NDArray[np.uint8]:
    values = _one(values, where)
    if values.min() < 0 or values.max() > 255 or (values != np.rint(values)).any():
        raise InputError(f"{where}: expected 0 or 1 of each step, got {values.min():g} to {values.max():g}.")
    return values.astype(np.uint8)


def _one(values: NDArray[Any], where: str) -> NDArray[Any]:
    if values.size != len(values):
        raise InputError(f"{where}: expected one number of each step, got {values.shape[1:]}.")
    return values.reshape(len(values))


def _squeezed(values: NDArray[Any]) -> NDArray[Any]:
    """Images of one channel without it."""
    if values.ndim == 4 and values.shape[-1] == 1:
        return values[..., 0]
    return values[:, 0] if values.ndim == 4 and values.shape[1] == 1 else values


_CONVERTED: dict[str, Callable[[NDArray[Any], Facts, str], NDArray[Any]]] = {
    "depth": to_depth,
    "image": to_image,
    "point_cloud": to_points,
    "camera_pose": _to_pose,
    "reward": _to_reward,
    "success": _to_success,
}
