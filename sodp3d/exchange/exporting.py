"""A store into a recording of another format: made beside its place, and renamed when it is whole."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sodp3d.core.errors import InputError
from sodp3d.core.files import disk_errors, partial_path, remove, remove_leftovers
from sodp3d.data.schema import METADATA, Specification
from sodp3d.data.store import EpisodeStore
from sodp3d.exchange import formats
from sodp3d.exchange.episodes import Facts, positive
from sodp3d.settings import ExportSettings
from sodp3d.vision.camera import Camera


@dataclass(frozen=True)
class Exported:
    """What came of an export. kept: the store's keys, and what they are called there. lost: and why."""

    episodes: int
    steps: int
    kept: Mapping[str, str]
    lost: Mapping[str, str]


def export_recording(settings: ExportSettings, progress: Callable[[int, int], None]) -> Exported:
    """The episodes of the store `settings.store`/episodes.zarr as a recording; what was kept and lost.

    Raises InputError where the path exists, the format cannot hold what it must, or an episode cannot be read; then
    nothing is there. progress: as of `import_recording`.
    """
    assert settings.format is not None and settings.path is not None and settings.store is not None
    form = formats.choose(settings.format)
    path = Path(settings.path).expanduser()
    if path.exists():
        raise InputError(f"path: {path} exists already and is never overwritten; name a new one.")
    if form.suffix and path.suffix not in (form.suffix, ".h5"):
        raise InputError(f"path: {settings.format} is one file; name it <name>{form.suffix}, got {path}.")
    store = EpisodeStore.open(Path(settings.store).expanduser() / "episodes.zarr")
    if not len(store):
        raise InputError(f"store: {store.path} holds no episodes.")
    specification, lost = _chosen(store, settings)
    facts = _facts(store, settings)
    remove_leftovers(path)
    partial = partial_path(path)
    try:
        with disk_errors(path, "nothing was exported"):
            path.parent.mkdir(parents=True, exist_ok=True)
            sink = form.sink(partial, specification, facts, settings)
            count, steps = _write(store, sink, specification, settings, progress)
            if path.exists():
                raise InputError(f"path: {path} was made meanwhile, and is not overwritten; name a new one.")
            partial.rename(path)
    except BaseException:
        remove(partial)
        raise
    return Exported(count, steps, sink.kept, {**lost, **sink.lost})


def _write(
    store: EpisodeStore,
    sink: formats.Sink,
    specification: Specification,
    settings: ExportSettings,
    progress: Callable[[int, int], None],
) -> tuple[int, int]:
    """Number of episodes and steps that were written."""
    count = min(len(store), settings.episodes or len(store))
    keys, metadata = [key for key in specification if key in sink.kept], store.metadata
    progress(0, count)
    for index in range(count):
        outcomes = {name: metadata[name][index].item() for name in METADATA if name in metadata}
        sink.add(store.episode(index, keys), outcomes)
        progress(index + 1, count)
    sink.finish()
    return count, int(store.episode_ends[count - 1])


def _chosen(store: EpisodeStore, settings: ExportSettings) -> tuple[Specification, dict[str, str]]:
    """The arrays to write; and those that are there for some episodes only, with the reason."""
    lost: dict[str, str] = {}
    found: Specification = {}
    for key in [*store.specification, *_derived(store)]:
        if store.readable(key) < len(store):
            lost[key] = f"only {store.readable(key)} of {len(store)} episodes have it by now; convert the store first"
        else:
            found[key] = store.field(key)
    for key in settings.keys or ():
        if key not in found:
            raise InputError(f"keys: expected some of {', '.join(found)}, got {key!r}{_because(lost, key)}.")
    if settings.keys is None:
        return found, lost
    lost |= dict.fromkeys((key for key in found if key not in settings.keys), "not among keys=")
    chosen = {key: field for key, field in found.items() if key in settings.keys or key == "action"}
    lost.pop("action", None)
    return chosen, lost


def _because(lost: Mapping[str, str], key: str) -> str:
    return f" ({lost[key]})" if key in lost else ""


def _derived(store: EpisodeStore) -> Iterator[str]:
    """What conversions made, without their counts of points."""
    for output, state in store.conversions.items():
        yield from (key for key in state["keys"] if key != f"{output}_kept" and key not in store.specification)


def _facts(store: EpisodeStore, settings: ExportSettings) -> Facts:
    attributes: Mapping[str, Any] = store.attributes
    camera = attributes.get("camera")
    names = {key: attributes.get(f"{key}_names") for key in ("action", "agent_pos")}
    task = (attributes.get("source") or {}).get("task") if isinstance(attributes.get("source"), dict) else None
    return Facts(
        camera=None if camera is None else Camera.from_dict(camera),
        rate=settings.rate or positive(attributes.get("rate"), f"{store.path}: rate"),
        task=settings.task or task or attributes["env"],
        names={key: tuple(each) for key, each in names.items() if isinstance(each, list)},
    )
