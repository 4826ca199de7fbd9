"""What the simulator states of a store show when drawn again, without the agent: RGB beside the depth (`data/image`),
depth of a store that was collected without (`data/depth`), or, in a new store, depth of another camera or size.

Shape letters: T steps of an episode, H W image.
"""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.mappings import differences, option, plain
from sodp3d.core.paths import command_line
from sodp3d.data.derived import Derivation, Progress, derive, in_order, record_statistics
from sodp3d.data.schema import NO_RENDERER, Field
from sodp3d.data.store import EpisodeStore
from sodp3d.envs import RobotEnv, make_env
from sodp3d.envs.config import EnvConfig
from sodp3d.parallel import WorkerCount
from sodp3d.vision.camera import POSE, CameraConfig
from sodp3d.vision.gl import settle

log = logging.getLogger(__name__)
_DRAWN = ("depth", POSE)  # what a new camera changes


class EpisodeRenderer:
    """Draws single episodes of a store from their simulator states; lives in a worker process."""

    def __init__(self, path: str, config: EnvConfig, renderer: str, kind: str) -> None:
        """kind: image | depth. Raises InputError where the renderer does not work here."""
        self._store, self._kind = EpisodeStore.open(path), kind
        self._environment = make_env(config, renderer)

    def make(self, index: int) -> tuple[NDArray[Any], ...]:
        """Of one episode images (T, 3, H, W) uint8, or depth (T, H, W) uint16 millimetres.

        With depth come the poses (T, 4, 4) of a camera that moves.
        """
        states = self._store.read("sim_state", index, index + 1)
        try:
            drawn = [self._draw(state) for state in states]
        except InputError as error:
            raise InputError(f"{self._store.path}: episode {index}: {error}") from error
        return tuple(np.stack(values) for values in zip(*drawn, strict=True))

    def _draw(self, state: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
        environment = self._environment
        environment.set_state(state)
        if self._kind == "image":
            return (environment.render_rgb().transpose(2, 0, 1),)
        return (environment.render_depth(), *([environment.camera_pose()] if environment.camera_moves else []))


def render_images(
    path: str | Path,
    config: EnvConfig,
    renderer: str = "auto",
    workers: WorkerCount = 0,
    output: str = "image",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Draw RGB of every episode of the store at `path` that has none yet: `output` (steps, 3, H, W) uint8.

    The camera is the store's, and `config` must have the same. renderer: auto takes the one that drew the images so
    far, or else the depth. workers: as in `derived.derive`. Raises InputError for a store of another task or camera or
    without simulator states, where the renderer does not work here, and as `derived.derive` does.
    """
    with EpisodeStore.open(path, "a") as store:
        _require_states(store, config.name)
        _require_camera(store, config.camera)
        recorded = _recorded_config(store)
        chosen = _renderer(store, renderer, output, "depth")
        if chosen == "raycast":
            log.warning("%s: ray casting has no colours; its images are shades of depth. Use render=egl.", path)
        size = {"height": recorded.camera.height, "width": recorded.camera.width}
        images = Derivation(
            fields={output: Field((3, *size.values()), "uint8")},
            parameters={"renderer": chosen, **size},
            factory=EpisodeRenderer,
            arguments=(str(store.path.resolve()), recorded, chosen, "image"),
        )
        derive(store, images, workers, progress)
        statistics = {"frames": store.steps} if len(store) else {}
        record_statistics(store, output, statistics)
        return statistics


def add_depth(
    path: str | Path,
    config: EnvConfig,
    renderer: str = "auto",
    workers: WorkerCount = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Draw depth of every episode that has none yet, in a store that was collected without.

    It is what collection would have drawn: `depth` (steps, H, W) uint16 millimetres, and of a camera that moves its
    poses `camera_pose` (steps, 4, 4). The camera is the store's, and `config` must have the same. renderer: auto takes
    the one that drew so far, or else the best that there is. workers: as in `derived.derive`. Raises InputError for a
    store that was collected with depth, as `render_images` does, and as `derived.derive` does.
    """
    with EpisodeStore.open(path, "a") as store:
        _require_states(store, config.name)
        if "depth" in store.specification:
            raise InputError(
                f"output_data: names the new store's folder. {path} was collected with depth, which is not overwritten."
            )
        _require_camera(store, config.camera)
        recorded, chosen = _recorded_config(store), _renderer(store, renderer, "depth")
        environment = make_env(recorded, chosen)
        size = {"height": recorded.camera.height, "width": recorded.camera.width}
        depth = Derivation(
            fields={"depth": Field(tuple(size.values()), "uint16"), **_poses(environment)},
            parameters={"renderer": environment.renderer_name, **size},  # one that fails does so here
            factory=EpisodeRenderer,
            arguments=(str(store.path.resolve()), recorded, chosen, "depth"),
        )
        environment.close()
        derive(store, depth, workers, progress)
        statistics = {"frames": store.steps} if len(store) else {}
        record_statistics(store, "depth", statistics)
        return statistics


def _poses(environment: RobotEnv) -> dict[str, Field]:
    return {POSE: Field((4, 4), "float64")} if environment.camera_moves else {}


def _renderer(store: EpisodeStore, wanted: str, *outputs: str) -> str:
    """`wanted`, or where that is auto, who drew the first of `outputs` that is there, or collected depth."""
    if wanted != "auto":
        return wanted
    parameters = [store.conversions.get(output, {}).get("parameters", {}) for output in outputs]
    drawn = [str(found["renderer"]) for found in parameters if "renderer" in found]
    noted = [*drawn, str(store.attributes["renderer"])][0]
    return settle("auto") if noted == NO_RENDERER else noted


def render_depth(
    source_path: str | Path,
    target_path: str | Path,
    config: EnvConfig,
    renderer: str = "auto",
    workers: WorkerCount = 0,
    progress: Progress | None = None,
) -> None:
    """A new store of the same episodes with depth drawn by `config.camera`; the source is only read.

    Everything else is copied: actions, states, rewards, simulator states, per-episode values, provenance. Continues an
    unfinished target, and takes in what has been collected since. renderer: auto takes the source's. workers: as in
    `derived.derive`. Raises InputError for a source of another task or without simulator states, for a target that is
    the source, holds other episodes, or was drawn by another camera or renderer; and where the renderer does not work.
    """
    source = EpisodeStore.open(source_path)
    _require_states(source, config.name)
    if Path(target_path).resolve() == source.path.resolve():
        raise InputError(f"output_data: {target_path} is the source itself, which is never changed; name a new folder.")
    chosen = _renderer(source, renderer, "depth")
    drawn = replace(_recorded_config(source), camera=config.camera)
    arguments = (str(source.path.resolve()), drawn, chosen, "depth")
    with _open_target(source, Path(target_path), drawn, chosen) as target:
        first, total = len(target), len(source)
        if progress is not None:
            progress(first, total)
        copied, metadata = [key for key in source.specification if key not in _DRAWN], source.metadata
        results = in_order(EpisodeRenderer, arguments, range(first, total), workers)
        with contextlib.closing(results):
            for index, drawn_again in zip(range(first, total), results, strict=True):
                values = {name: column[index].item() for name, column in metadata.items()}
                target.append({**source.episode(index, copied), **dict(zip(_DRAWN, drawn_again, strict=False))}, values)
                if progress is not None:
                    progress(index + 1, total)


def _open_target(source: EpisodeStore, path: Path, config: EnvConfig, renderer: str) -> EpisodeStore:
    """The target of `render_depth`, new or checked, open for appending."""
    from sodp3d.core.versions import recorded_versions

    environment = make_env(config, renderer)
    attributes = {
        **{key: value for key, value in source.attributes.items() if key != "conversion"},
        "env_config": {**source.attributes["env_config"], "camera": plain(asdict(config.camera))},
        "camera": environment.recorded_camera().to_dict(),
        "renderer": environment.renderer_name,  # tried here, so that one that fails leaves no store behind
        "rendered_again": {
            "camera": source.attributes["env_config"]["camera"],
            "renderer": source.attributes["renderer"],
            "versions": recorded_versions(),
        },
    }
    environment.close()
    size = (config.camera.height, config.camera.width)
    specification = {key: field for key, field in source.specification.items() if key not in _DRAWN}
    specification |= {"depth": Field(size, "uint16"), **_poses(environment)}
    if not path.exists():
        return EpisodeStore.create(path, attributes, specification)
    target = EpisodeStore.open(path, "a", attributes, specification)
    if not _is_beginning(target, source):
        target.close()
        raise InputError(
            f"output_data: {path} holds {len(target)} episodes that are not the first of {source.path}; "
            f"name a new folder."
        )
    return target


def _is_beginning(target: EpisodeStore, source: EpisodeStore) -> bool:
    count = len(target)
    if not np.array_equal(target.episode_ends, source.episode_ends[:count]):
        return False
    columns = source.metadata
    if any(not np.array_equal(values, columns[name][:count]) for name, values in target.metadata.items()):
        return False
    return np.array_equal(target.read("action"), source.read("action", 0, count))


def _recorded_config(store: EpisodeStore) -> EnvConfig:
    return EnvConfig.from_config(store.attributes["env_config"])


def _require_states(store: EpisodeStore, name: str) -> None:
    if store.attributes["env"] != name:
        raise InputError(f"{store.path}: holds episodes of {store.attributes['env']!r}, not of env {name!r}.")
    if "sim_state" not in store.specification:
        raise InputError(f"{store.path}: holds no data/sim_state, without which nothing can be drawn again.")


def _require_camera(store: EpisodeStore, camera: CameraConfig) -> None:
    """Raises InputError naming the first value in which `camera` is not the one of `store`."""
    recorded: Mapping[str, Any] = store.attributes["env_config"]["camera"]
    for name, stored, given in differences(recorded, plain(asdict(camera)), "env.camera"):
        wanted = option(name, {"env": {"camera": plain(asdict(camera))}})
        other = command_line("convert", *store.typed, "again=depth", "output_data=<new folder>", wanted)
        raise InputError(
            f"{store.path}: its images are of {name} = {stored!r}, but {given!r} came. Use the stored camera, or make "
            f"a store of the other: {other}, then again=image."
        )
