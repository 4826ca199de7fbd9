"""Point clouds of a whole store: `data/point_cloud` beside the depth, episode by episode, resumable (`derived.py`)."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.mappings import plain
from sodp3d.core.paths import command_line
from sodp3d.data.absence import can_be_made
from sodp3d.data.derived import Derivation, Progress, derive, record_statistics
from sodp3d.data.schema import Field
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig
from sodp3d.parallel import WorkerCount
from sodp3d.vision.camera import POSE, Camera
from sodp3d.vision.pointcloud import Converter, CropConfig
from sodp3d.vision.stillness import FRAMES, stillness

log = logging.getLogger(__name__)
_WARN_SHARE = 0.01  # of frames with fewer than N points
_TELL_STILL = 0.3  # of points that never move
_TELLING = 8  # episodes from which on one can say so


def convert_store(
    path: str | Path,
    config: EnvConfig,
    backend: str = "open3d",
    device: str = "cpu",
    workers: WorkerCount = 0,
    output: str = "point_cloud",
    progress: Progress | None = None,
    replaces: bool = False,
) -> dict[str, Any]:
    """Convert every episode of the store at `path` that is not yet converted; the statistics of kept points.

    Crop and N come from `config`, the camera and, where it moves, its poses from the store. workers: as in
    `derived.derive`. output: the key of the clouds, (steps, N, 3) float32; `<output>_kept` (steps,) holds the number of
    points inside the crop before sampling. replaces: clouds of another crop or number, finished ones too.
    progress(done, total): called before the first episode and after each. Raises InputError when the key holds a
    finished conversion with other parameters, when a frame has no point in the crop, when another process writes to the
    store, or when the disk is full; what was converted by then stays.
    """
    with EpisodeStore.open(path, "a") as store:
        if store.attributes["env"] != config.name:
            raise InputError(f"{path}: holds episodes of {store.attributes['env']!r}, not of env {config.name!r}.")
        require_depth(store)
        require_poses(store)
        if config.crop is None:
            raise InputError(
                f"{path}: holds clouds as they were recorded. To make others of its depth, name them (output=<name>) "
                "and their box (env.crop.low=[x,y,z] env.crop.high=[x,y,z], metres)."
            )
        clouds = Derivation(
            fields={output: Field((config.points, 3), "float32"), f"{output}_kept": Field((), "int32")},
            parameters={**plain(asdict(config.crop)), "points": config.points, "backend": backend},
            factory=EpisodeConverter,
            arguments=(str(store.path.resolve()), config.crop, config.points, backend, device),
            free=("backend",),  # both choose the same points, so a conversion may go on with the other one
            replaces=replaces,
            replaced_by="again=clouds",
        )
        derive(store, clouds, workers, progress)
        return _finish(store, output, config.points)


def require_depth(store: EpisodeStore) -> None:
    """Raises InputError, with what to do, for a store of which some episodes have no depth."""
    if "depth" not in store.keys and not can_be_made(store, "depth"):
        clouds = " Its clouds were recorded as they are: obs=pointcloud learns from them as they are."
        there = clouds if "point_cloud" in store.specification else ""
        raise InputError(
            f"{store.path}: depth was not recorded, nor states of a simulator to draw it from, so no clouds can be "
            f"made.{there}"
        )
    drawn = store.readable("depth")
    if drawn < len(store):
        command = command_line("convert", *store.typed, "again=depth")
        raise InputError(
            f"{store.path}: was collected without depth (collect.depth=false), and {drawn} of {len(store)} episodes "
            f"have it by now. Clouds are made of it, so draw it first, from the simulator states: {command}"
        )


def require_poses(store: EpisodeStore) -> None:
    """Raises InputError for the depth of a camera that moves without its poses, of which no clouds can be made."""
    from sodp3d.envs import make_env

    camera = store.attributes["env_config"].get("camera") or {}
    placed = camera.get("position") is not None and camera.get("quaternion") is not None
    if _has_poses(store) or placed:
        return
    try:
        environment = make_env(EnvConfig.from_config(store.attributes["env_config"]), "raycast")
    except (InputError, ImportError):  # recorded elsewhere, or by a package that is not installed
        return
    moves = environment.camera_moves
    environment.close()
    if moves:
        again = command_line("convert", *store.typed, "again=depth", "output_data=<new folder>")
        raise InputError(
            f"{store.path}: its camera {camera['name']!r} moves, and the store does not say where it was: it has no "
            f"data/{POSE}. Draw its depth again, with poses, into a new store: {again}"
        )


def _has_poses(store: EpisodeStore) -> bool:
    """Whether the camera's pose was collected, or noted as depth was drawn later."""
    return POSE in store.specification or any(POSE in state["keys"] for state in store.conversions.values())


class EpisodeConverter:
    """Reads and converts single episodes of a store; lives in a worker process."""

    def __init__(self, path: str, crop: CropConfig, points: int, backend: str, device: str) -> None:
        self._store = EpisodeStore.open(path)
        camera = Camera.from_dict(self._store.attributes["camera"])
        self._converter = Converter(camera, crop, points, backend, device)

    def make(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Clouds (T, N, 3) and kept points (T,) of one episode."""
        depth = self._store.read("depth", index, index + 1)
        poses = self._store.read(POSE, index, index + 1) if _has_poses(self._store) else None
        try:
            clouds, kept = self._converter.convert(depth, poses)
        except InputError as error:
            raise InputError(f"{self._store.path}: episode {index}: {error}") from error
        return clouds, kept.astype(np.int32)


def _finish(store: EpisodeStore, output: str, points: int) -> dict[str, Any]:
    kept = store.read(f"{output}_kept")
    if len(kept) == 0:
        return {}
    names = ("p1", "p5", "p50", "p95", "p99")
    statistics = {
        "frames": len(kept),
        "minimum": int(kept.min()),
        "mean": round(float(kept.mean()), 2),
        "maximum": int(kept.max()),
        "below_points": round(float((kept < points).mean()), 6),
        **dict(zip(names, np.percentile(kept, [float(name[1:]) for name in names]).round(1).tolist(), strict=True)),
        **_still(store, output),
    }
    record_statistics(store, output, statistics)
    if statistics["below_points"] > _WARN_SHARE:
        log.warning(
            "%s: %.1f %% of the frames keep fewer than env.points=%d points inside env.crop (fewest %d); their points "
            "are repeated. Widen env.crop, raise the camera's resolution, or lower env.points.",
            store.path,
            100 * statistics["below_points"],
            points,
            statistics["minimum"],
        )
    if statistics.get("still", 0) > _TELL_STILL:
        log.warning(
            "%s: %s A tighter env.crop leaves more points for what does.", store.path, still_sentence(statistics)
        )
    return statistics


def still_sentence(statistics: Mapping[str, Any]) -> str:
    """What a conversion's statistics, which have "still", say of points that never move."""
    box = statistics["moves_within"]
    where = f" What moves lies within {box[0]} to {box[1]}." if box else ""
    return (
        f"{100 * statistics['still']:.0f} % of the points lie where nearly every frame has one: they never move.{where}"
    )


def _still(store: EpisodeStore, output: str) -> dict[str, Any]:
    """The share of points that never move and the corners of what does, by a frame each of episodes spread evenly."""
    if len(store) < _TELLING:
        return {}
    episodes = np.unique(np.linspace(0, len(store) - 1, FRAMES).astype(int)).tolist()
    frames = []
    for place, index in enumerate(episodes):
        clouds = store.read(output, index, index + 1)
        frames.append(clouds[place * 7919 % len(clouds)])  # at all times of an episode
    found = stillness(np.stack(frames))
    assert found is not None
    return {"still": round(found.share, 4), "moves_within": found.box and list(found.box)}
