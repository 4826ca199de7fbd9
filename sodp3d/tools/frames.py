"""What the pages show of a store: some episodes, with evenly spaced frames of depth, cloud and RGB, packed for JSON."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.paths import command_line
from sodp3d.data.absence import can_be_made, is_recorded
from sodp3d.data.recording import names_of
from sodp3d.data.store import CorruptEpisode, EpisodeStore
from sodp3d.envs.config import SUCCESS_METRICS, EnvConfig

if TYPE_CHECKING:
    from sodp3d.envs.base import RobotEnv


def store_frames(store: EpisodeStore, episodes: int, size: int, most_frames: int) -> dict[str, Any]:
    """Up to `episodes` episodes spread over the store, with as many frames each as fit in `size` bytes.

    An episode has null for what was not recorded of it. A frame has a step, and where the store has them depth (H * W
    uint16 millimetres, base64), a cloud (N * 3 int16 millimetres, base64) and an image (PNG, base64). Damaged episodes
    are left out, and the note says so. Raises InputError where none can be shown.
    """
    chosen = spread(len(store), episodes)
    frames = _frames_per_episode(store, len(chosen), size, most_frames)
    shown, skipped = [], []
    for index in chosen:
        try:
            shown.append(_episode(store, index, frames))
        except CorruptEpisode:
            skipped.append(index)
    if not shown:
        raise InputError(f"{store.path}: none of {len(store)} episodes can be shown; collect some first.")
    note = f"{len(shown)} of {len(store)} episodes, up to {frames} evenly spaced frames of each."
    if skipped:
        note += f" Left out because their files are damaged: episodes {', '.join(map(str, skipped))}."
    camera = store.attributes.get("camera") or {}
    return {
        "env": store.attributes["env"],
        "note": note,
        "width": store.field("depth").shape[1] if "depth" in store.keys else camera.get("width"),
        "actionNames": action_names(store),
        "actionUnit": "as recorded" if is_recorded(store.attributes) else "share of its range, -1 to 1",
        "noClouds": _no_clouds(store),
        "episodes": shown,
    }


def spread(length: int, count: int) -> list[int]:
    """Up to `count` indices spread evenly over 0 .. length - 1, both ends included."""
    return sorted({round(index) for index in np.linspace(0, length - 1, count)}) if length else []


def action_names(store: EpisodeStore) -> list[str]:
    """A name for each number of an action: of the attribute `action_names`, where a store has it, or the actuator's."""
    size = store.field("action").shape[0]
    if store.attributes.get("action_names"):
        return names_of(store, "action")
    return actuator_names(environment_of(store), size)


def _no_clouds(store: EpisodeStore) -> str:
    """What to say of an episode without clouds."""
    if not can_be_made(store, "point_cloud"):
        return "Not recorded: neither point clouds nor depth, of which they are made."
    return f"No point clouds of this episode yet. Make them with: {command_line('convert', *store.typed)}"


def actuator_names(env: "RobotEnv | None", size: int) -> list[str]:
    """Names of the model's actuators, where each number of an action has one; else "action 0", "action 1", ..."""
    names = [env.model.actuator(index).name.removeprefix("A_") for index in range(env.model.nu)] if env else []
    return _fitting(names, size) or [f"action {index}" for index in range(size)]


def _fitting(names: Any, size: int) -> list[str]:
    return [str(name) for name in names] if isinstance(names, list) and len(names) == size else []


def environment_of(store: EpisodeStore) -> "RobotEnv | None":
    """The store's environment; None where it was recorded elsewhere, or by a package that is not installed."""
    from sodp3d.envs import make_env

    try:
        return make_env(EnvConfig.from_config(store.attributes["env_config"]))
    except (InputError, ImportError):
        return None


def stored_views(store: EpisodeStore, index: int, keys: Sequence[str]) -> dict[str, NDArray[Any] | None]:
    """Arrays (T, ...) of one episode by key; None for one that the store does not have of it. Raises CorruptEpisode."""
    return {
        key: store.read(key, index, index + 1) if key in store.keys and index < store.readable(key) else None
        for key in keys
    }


def _frames_per_episode(store: EpisodeStore, episodes: int, size: int, most: int) -> int:
    numbers = {"depth": 2, "point_cloud": 2, "image": 0.5}  # bytes of each; PNG halves images
    frame = sum(
        width * int(np.prod(store.field(key).shape)) * 4 / 3  # base64
        for key, width in numbers.items()
        if key in store.keys
    )
    return int(np.clip(size / max(episodes * frame, 1), 1, most))


def _episode(store: EpisodeStore, index: int, frames: int) -> dict[str, Any]:
    values = store.episode(index, [key for key in ("action", "reward", "success") if key in store.specification])
    metadata = {name: column[index].item() for name, column in store.metadata.items()}
    successes = [name for name in SUCCESS_METRICS if f"success_{name}" in metadata]
    depth, clouds, images = stored_views(store, index, ("depth", "point_cloud", "image")).values()
    length = len(values["action"])
    steps = spread(length, frames)
    return {
        "index": index,
        "length": length,
        "seed": metadata.get("seed"),
        "return": metadata.get("episode_return"),
        "successes": [name for name in successes if metadata[f"success_{name}"]] if successes else None,
        "actions": _pack(values["action"], "<f4"),
        "rewards": _pack(values["reward"], "<f4") if "reward" in values else None,
        "success": _pack(values["success"], "u1") if "success" in values else None,
        "frames": [
            {
                "step": step,
                "depth": None if depth is None else _pack(depth[step], "<u2"),
                "cloud": None if clouds is None else _pack_millimetres(clouds[step]),
                "image": None if images is None else _png(images[step]),
            }
            for step in steps
        ],
    }


def _pack(values: NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode()


def _pack_millimetres(points: NDArray[np.float32]) -> str:
    return _pack(np.clip(np.rint(1000 * points), -32768, 32767), "<i2")


def _png(image: NDArray[np.uint8]) -> str:
    """A (3, H, W) picture as PNG, base64."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
