"""Point clouds of a whole store: `data/point_cloud` beside the depth, episode by episode, resumable.

The attribute `conversion` maps each output key to {keys, episodes, parameters, statistics}: `episodes` counts the
converted ones and is raised, atomically, only after an episode's clouds are on disk.
"""

import contextlib
import logging
from collections.abc import Callable, Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.data.files import plain
from sodp3d.data.pointcloud import Converter
from sodp3d.data.schema import Field
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.camera import Camera
from sodp3d.envs.config import CropConfig, EnvConfig
from sodp3d.errors import InputError
from sodp3d.workers import Workers

_log = logging.getLogger(__name__)
_WARN_SHARE = 0.01  # of frames with fewer than N points

Result = tuple[NDArray[np.float32], NDArray[np.int64]]
Progress = Callable[[int, int], None]


def convert_store(
    path: str | Path,
    config: EnvConfig,
    backend: str = "open3d",
    device: str = "cpu",
    workers: int = 0,
    output: str = "point_cloud",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Convert every episode of the store at `path` that is not yet converted; the statistics of kept points.

    Crop and N come from `config`, the camera from the store. workers: 0 converts in this process, n in n spawned
    ones; this process alone writes. output: the key of the clouds, (steps, N, 3) float32; `<output>_kept` (steps,)
    holds the number of points inside the crop before sampling. progress(done, total): called after each episode.
    Raises InputError when the key holds a finished conversion with other parameters, when a frame has no point in the
    crop, when another process writes to the store, or when the disk is full; what was converted by then stays.
    """
    with EpisodeStore.open(path, "a") as store:
        if store.attributes["env"] != config.name:
            raise InputError(f"{path}: holds episodes of {store.attributes['env']!r}, not of env {config.name!r}.")
        parameters = {**plain(asdict(config.crop)), "points": config.points, "backend": backend}
        state = _prepare(store, output, parameters)
        first, total = int(state["episodes"]), len(store)
        if progress is not None:
            progress(first, total)
        arguments = (str(path), config.crop, config.points, backend, device)
        results = _episodes(arguments, range(first, total), workers)
        with contextlib.closing(results):
            for index, (clouds, kept) in zip(range(first, total), results, strict=True):
                store.write_rows(output, index, clouds)
                store.write_rows(f"{output}_kept", index, kept.astype(np.int32))
                _record(store, output, {**state, "episodes": index + 1})
                if progress is not None:
                    progress(index + 1, total)
        return _finish(store, output, config.points)


def _prepare(store: EpisodeStore, output: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The output's state, newly made or checked against the parameters now asked for."""
    if output in store.specification:
        raise InputError(f"output: {output!r} is a collected key of {store.path}; choose another name.")
    state = store.conversions.get(output)
    if state is None or _may_start_over(store, output, state, parameters):
        state = {"keys": [output, f"{output}_kept"], "episodes": 0, "parameters": parameters, "statistics": {}}
        _record(store, output, state)
        store.add_array(output, Field((parameters["points"], 3), "float32"))
        store.add_array(f"{output}_kept", Field((), "int32"))
    return dict(state)


def _may_start_over(store: EpisodeStore, output: str, state: dict[str, Any], parameters: dict[str, Any]) -> bool:
    """Whether nothing is converted yet, or a conversion with other parameters never came to its end.

    Raises InputError when it did: clouds that may have been trained on are not overwritten.
    """
    # Both backends choose the same points, so a conversion may go on with the other one.
    differing = [key for key, value in parameters.items() if key != "backend" and state["parameters"].get(key) != value]
    if differing and state["statistics"]:
        key = differing[0]
        raise InputError(
            f"{store.path}: data/{output} was converted with {key} = {state['parameters'].get(key)}, now {key} = "
            f"{parameters[key]} is asked for. Clouds are not overwritten: use the stored value, or output=<another "
            f"key> for a second conversion."
        )
    if differing and state["episodes"]:
        _log.warning("%s: an unfinished conversion with another %s starts over", store.path, differing[0])
    return bool(differing) or state["episodes"] == 0


def _record(store: EpisodeStore, output: str, state: dict[str, Any]) -> None:
    store.update_attributes({"conversion": {**store.conversions, output: state}})


def _episodes(arguments: tuple[Any, ...], indices: range, workers: int) -> Generator[Result, None, None]:
    """The converted episodes in order. Each worker has one episode in work while its last one is written."""
    if workers == 0:
        yield from map(EpisodeConverter(*arguments).convert, indices)
        return
    count = min(workers, len(indices))
    with Workers(EpisodeConverter, [arguments] * count) as pool:
        for place, index in enumerate(indices[:count]):
            pool.start(place, "convert", index)
        for place, index in enumerate(indices):
            result = pool.result(place % count)
            if index + count < indices.stop:
                pool.start(place % count, "convert", index + count)
            yield result


class EpisodeConverter:
    """Reads and converts single episodes of a store; lives in a worker process."""

    def __init__(self, path: str, crop: CropConfig, points: int, backend: str, device: str) -> None:
        self._store = EpisodeStore.open(path)
        camera = Camera.from_dict(self._store.attributes["camera"])
        self._converter = Converter(camera, crop, points, backend, device)

    def convert(self, index: int) -> Result:
        """Clouds (T, N, 3) and kept points (T,) of one episode."""
        depth = self._store.read("depth", index, index + 1)
        try:
            return self._converter.convert(depth)
        except InputError as error:
            raise InputError(f"{self._store.path}: episode {index}: {error}") from error


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
    }
    state = store.conversions[output]
    if state["statistics"] != statistics:
        _record(store, output, {**state, "statistics": statistics})
    if statistics["below_points"] > _WARN_SHARE:
        _log.warning(
            "%s: %.1f %% of the frames keep fewer than env.points=%d points inside env.crop (fewest %d); their points "
            "are repeated. Widen env.crop, raise the camera's resolution, or lower env.points.",
            store.path,
            100 * statistics["below_points"],
            points,
            statistics["minimum"],
        )
    return statistics
