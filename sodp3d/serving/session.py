"""One client: what it has shown, and what a message of it asks for, once every value in it has been checked.

Shape letters: B observations, To observed steps, Dp proprioception, H W depth image, N plans of one state,
K' sampling steps, Tp planned steps, Da actions.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.serving.planning import Rows, ServedPlanner
from sodp3d.vision.camera import MOST_PIXELS, POSE, check_intrinsics, check_poses
from sodp3d.vision.pointcloud import Converter
from sodp3d.vision.sensors import POINT_CLOUD

DEPTH, INTRINSICS = "depth", "intrinsics"
OPTIONS = ("reset", "seed", "plan", "offset", "whole_plan", "timestamp", "elapsed", "noise")
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """What a checked message asks for."""

    rows: Rows | None  # to plan from; None: no plan is wanted
    batched: bool = False  # whether the message had the leading axis B
    offset: int = 0  # steps after the observation at which the wanted actions begin
    whole_plan: bool = False
    taken: float | None = None  # when the observation was, UNIX seconds; looked at where there is a `max_age`
    remembered: int = 0  # steps of history after it


class Session:
    """A client's episode: the last To steps it has shown, its camera, its random numbers.

    Args:
        max_age: seconds; None: timestamps are not looked at. max_rows: B at most, of one message.
    """

    def __init__(self, served: ServedPlanner, max_age: float | None = None, max_rows: int = 64) -> None:
        self._served, self._max_age, self._max_rows = served, max_age, max_rows
        self._keys = tuple(served.config.observation_shapes())
        camera = (DEPTH, INTRINSICS, POSE) if served.takes_depth else ()
        self._valid = (*self._keys, *camera, *OPTIONS)
        self._history: dict[str, NDArray[Any]] = {}  # (1 to To, ...) of each key
        self._camera: tuple[NDArray[np.float64] | None, NDArray[np.float64] | None] = (None, None)
        self._converter: Converter | None = None
        self._generator = torch.Generator()
        self._generator.seed()

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """An error inside the context leaves the session as it was before: history, camera and random numbers."""
        before, noise = (dict(self._history), self._camera, self._converter), self._generator.get_state()
        try:
            yield
        except BaseException:
            self._history, self._camera, self._converter = before
            self._generator.set_state(noise)
            raise

    def take(self, message: Any) -> Request:
        """Check a message whole, and then remember what it shows.

        Raises InputError for what is missing, unknown, of another shape or type, not finite, or too old; nothing is
        remembered then.
        """
        message = self._known(message)
        batched = _is_batch(message)
        begins, seed = _flag(message, "reset", False), message.get("seed")
        if seed is not None and (not begins or type(seed) is not int or not 0 <= seed < 2**63):
            raise InputError(f"seed: expected a whole number from 0 to 2**63 - 1, with reset=True, got {_told(seed)}.")
        wanted, whole = _flag(message, "plan", True), _flag(message, "whole_plan", False)
        offset, taken = self._offset(message), self._taken(message)
        if not set(message) - set(OPTIONS):
            if not begins:
                raise InputError(f"observation: keys {', '.join(self._keys)} are missing, and nothing else is asked.")
            self._begin(seed)
            return Request(None)
        if batched:
            return Request(self._batch(message), True, offset, whole, taken)
        elapsed, noise = _elapsed(message, 1), self._noise(message, 1)
        steps = self._frames(message)  # last of all checks: it remembers the camera
        if begins:
            self._begin(seed)
        self._remember(steps)
        remembered = len(self._history["agent_pos"])
        if not wanted:
            return Request(None, remembered=remembered)
        noise = self._drawn(1) if noise is None else noise
        rows = Rows({key: self._observed(key)[None] for key in self._keys}, noise, elapsed)
        return Request(rows, False, offset, whole, taken, remembered)

    def require_fresh(self, taken: float | None) -> None:
        """Raise InputError where an observation of that time is too old to plan from, or not of this time at all."""
        if self._max_age is None or taken is None:
            return
        age = time.time() - taken
        if abs(age) > self._max_age:
            told = f"{age:.3f} s old" if age > 0 else f"from {-age:.3f} s ahead of the server's clock"
            raise InputError(f"timestamp: expected an observation at most {self._max_age:g} s old, got one {told}.")

    def _known(self, message: Any) -> Message:
        if not isinstance(message, Mapping):
            raise InputError(f"message: expected a map of keys and values, got {type(message).__name__}.")
        unknown = [key for key in message if key not in self._valid]
        if unknown:
            raise InputError(f"message: unknown key {_told(unknown[0])}; valid keys are {', '.join(self._valid)}.")
        return message

    def _offset(self, message: Message) -> int:
        config, offset = self._served.config, message.get("offset", 0)
        most = config.horizon - config.n_obs_steps
        if type(offset) is not int or not 0 <= offset <= most:
            raise InputError(f"offset: expected a whole number of steps from 0 to {most}, got {_told(offset)}.")
        return offset

    def _taken(self, message: Message) -> float | None:
        taken = message.get("timestamp")
        if taken is None and self._max_age is not None and set(message) - set(OPTIONS):
            raise InputError(
                f"timestamp: missing; this server takes observations at most {self._max_age:g} s old, so send when it "
                "was taken, in UNIX seconds."
            )
        if taken is not None:
            taken = _real("timestamp", taken)
            self.require_fresh(taken)
        return taken

    def _begin(self, seed: int | None) -> None:
        self._history = {}
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def _frames(self, message: Message) -> dict[str, NDArray[Any]]:
        """The steps that a message shows, (n, ...) of each key with n 1 or To; depth made clouds."""
        config = self._served.config
        shapes = {key: shape[1:] for key, shape in config.observation_shapes().items()}
        found = {}
        for key, shape in shapes.items():
            if key == POINT_CLOUD.key and DEPTH in message:
                if key in message:
                    raise InputError(f"observation: {key} and {DEPTH} came; send one of them.")
                continue
            found[key] = self._array(message, key, shape)
        for name in (INTRINSICS, POSE):
            if name in message and DEPTH not in message:
                raise InputError(f"observation.{name}: belongs to {DEPTH}, which did not come.")
        counts = {key: len(value) for key, value in found.items()}
        if DEPTH in message:
            counts[DEPTH] = len(_depth(message[DEPTH], config.n_obs_steps))
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{key} {count}" for key, count in counts.items())
            raise InputError(f"observation: expected as many steps of each key, got {told}.")
        if DEPTH in message:
            found[POINT_CLOUD.key] = self._clouds(message)
        return found

    def _array(self, message: Message, key: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """(n, *shape) of one key, n 1 or To, as it is planned from."""
        value, steps = _present(message, key), self._served.config.n_obs_steps
        if value.shape not in (shape, (1, *shape), (steps, *shape)):
            raise InputError(
                f"observation.{key}: expected shape {shape}, or {(steps, *shape)} for all observed steps, got "
                f"{value.shape}."
            )
        return _finite(key, value.reshape(-1, *shape), self._served.dtype(key))

    def _clouds(self, message: Message) -> NDArray[np.float32]:
        """Clouds (n, N, 3) of a message's depth, by the camera that it tells, or told before."""
        depth = _depth(message[DEPTH], self._served.config.n_obs_steps)
        intrinsics, pose = self._camera
        converter = self._converter
        if INTRINSICS in message:
            given = _intrinsics(message)
            if intrinsics is None or (given != intrinsics).any():
                intrinsics, converter = given, None
        if POSE in message:
            pose = _finite(POSE, _present(message, POSE), np.dtype(np.float64))
            if pose.shape not in ((4, 4), (len(depth), 4, 4)):
                raise InputError(
                    f"observation.{POSE}: expected shape (4, 4), or {(len(depth), 4, 4)}, got {pose.shape}."
                )
            check_poses(pose, f"observation.{POSE}")
        if intrinsics is None or pose is None:
            raise InputError(
                f"observation: depth needs its camera, {INTRINSICS} (3, 3) in pixels and {POSE} (4, 4) from camera to "
                "world in metres, until another is told."
            )
        size = depth.shape[1:]
        if converter is None or (converter.camera.height, converter.camera.width) != size:
            converter = self._served.converter(intrinsics, *size)
        clouds, _ = converter.convert(depth, np.array(np.broadcast_to(pose, (len(depth), 4, 4))))
        self._converter, self._camera = converter, (intrinsics, pose if pose.ndim == 2 else pose[-1])
        return clouds

    def _remember(self, steps: Mapping[str, NDArray[Any]]) -> None:
        most = self._served.config.n_obs_steps
        for key, new in steps.items():
            before = self._history.get(key)
            shown = new if before is None else np.concatenate([before, new])
            self._history[key] = shown[-most:].copy()  # without what it was cut from

    def _observed(self, key: str) -> NDArray[Any]:
        """(To, ...): the first step stands for those before it, as where roll-outs begin."""
        shown, steps = self._history[key], self._served.config.n_obs_steps
        return np.concatenate([np.repeat(shown[:1], steps - len(shown), axis=0), shown])

    def _batch(self, message: Message) -> Rows:
        """Observations (B, To, ...) that have nothing to do with the history."""
        found = {}
        for key, shape in self._served.config.observation_shapes().items():
            value = _present(message, key)
            if value.shape[1:] != shape or not 1 <= len(value) <= self._max_rows:
                raise InputError(
                    f"observation.{key}: expected shape (B, {str(shape)[1:-1]}) with B from 1 to {self._max_rows}, got "
                    f"{value.shape}."
                )
            found[key] = _finite(key, value, self._served.dtype(key))
        if DEPTH in message or len({len(value) for value in found.values()}) > 1:
            raise InputError("observation: expected one batch size for all keys, and no depth in a batch.")
        size = len(found["agent_pos"])
        noise = self._noise(message, size)
        return Rows(found, self._drawn(size) if noise is None else noise, _elapsed(message, size))

    def _noise(self, message: Message, size: int) -> torch.Tensor | None:
        if "noise" not in message:
            return None
        config = self._served.config
        shape = (size, self._served.plans_drawn, config.inference_steps + 1, config.horizon, config.action_size)
        value = _present(message, "noise")
        if value.shape != shape:
            raise InputError(f"observation.noise: expected shape {shape}, got {value.shape}.")
        return torch.from_numpy(_finite("noise", value, np.dtype(np.float32)).copy())

    def _drawn(self, size: int) -> torch.Tensor:
        drawn = [self._served.planner.noise(self._served.plans_drawn, self._generator) for _ in range(size)]
        return torch.stack(drawn).cpu()


def _told(value: Any) -> str:
    """A value as a message tells it, however large it is."""
    if isinstance(value, str | bytes):
        return repr(value[:40])
    return repr(value) if value is None or isinstance(value, int | float) else f"a {type(value).__name__}"


def _is_batch(message: Message) -> bool:
    """Whether it shows (B, To, ...). Raises InputError where it asks for what only an episode has."""
    shown = message.get("agent_pos")
    if not isinstance(shown, np.ndarray) or shown.ndim != 3:
        return False
    for key, default in (("reset", False), ("seed", None), ("plan", True)):
        if message.get(key, default) is not default:
            raise InputError(
                f"{key}: expected none with a batch (B, To, ...), which belongs to no episode, got "
                f"{_told(message[key])}; leave it out, or send it in a message of its own."
            )
    return True


def _flag(message: Message, key: str, default: bool) -> bool:
    value = message.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"{key}: expected true or false, got {_told(value)}.")
    return value


def _real(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{key}: expected a finite number, got {_told(value)}.")
    return float(value)


def _present(message: Message, key: str) -> NDArray[Any]:
    if key not in message:
        raise InputError(f"observation: key {key!r} is missing; got {', '.join(sorted(message))}.")
    value = message[key]
    if not isinstance(value, np.ndarray):
        raise InputError(f"observation.{key}: expected an array, got {type(value).__name__}.")
    return value


def _finite(key: str, value: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The same numbers as `dtype`: any float for floats, exactly that type for whole numbers."""
    if value.dtype.newbyteorder("=") != dtype and not (value.dtype.kind == dtype.kind == "f"):
        raise InputError(f"observation.{key}: expected an array of {dtype}, got one of {value.dtype}.")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        made = value.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(made).all():
        place = tuple(int(index[0]) for index in np.nonzero(~np.isfinite(made)))
        raise InputError(f"observation.{key}: expected finite numbers, got {made[place]} at index {place}.")
    return made


def _elapsed(message: Message, size: int) -> torch.Tensor:
    """(B,) of the share of the time limit that is gone, 0 where it is not told."""
    given = message.get("elapsed", 0.0)
    values = given if isinstance(given, np.ndarray) else np.array(_real("elapsed", given))
    if values.dtype.kind not in "iuf" or values.shape not in ((), (size,)) or not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"elapsed: expected a share from 0 to 1, or {size} of them, got {_told(given)}.")
    return torch.from_numpy(np.broadcast_to(values, size).astype(np.float32))


def _depth(value: Any, steps: int) -> NDArray[np.uint16]:
    """(n, H, W), n 1 or To."""
    if not isinstance(value, np.ndarray) or value.dtype.newbyteorder("=") != np.uint16:
        told = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(f"observation.{DEPTH}: expected an array of uint16 millimetres, got {told}.")
    shaped = value[None] if value.ndim == 2 else value
    if shaped.ndim != 3 or len(shaped) not in (1, steps) or not min(shaped.shape[1:]) >= 1:
        raise InputError(f"observation.{DEPTH}: expected shape (H, W), or ({steps}, H, W), got {value.shape}.")
    if max(shaped.shape[1:]) > MOST_PIXELS:
        raise InputError(f"observation.{DEPTH}: expected at most {MOST_PIXELS} pixels a side, got {value.shape}.")
    return shaped.astype(np.uint16)


def _intrinsics(message: Message) -> NDArray[np.float64]:
    value = _finite(INTRINSICS, _present(message, INTRINSICS), np.dtype(np.float64))
    check_intrinsics(value, f"observation.{INTRINSICS}")
    return value
