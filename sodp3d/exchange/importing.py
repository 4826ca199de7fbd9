"""A recording into a store: episode by episode, so that a killed import goes on where it was.

The store grows as importing.zarr, which no other command takes for one, and gets its name when it is whole.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sodp3d.core.errors import InputError
from sodp3d.core.files import Lock, disk_errors, read_json, remove
from sodp3d.data.attributes import IMPORTED
from sodp3d.data.recording import RecordedEpisode, create_recorded_store
from sodp3d.data.store import EpisodeStore
from sodp3d.exchange import formats
from sodp3d.exchange.camera_file import read_camera
from sodp3d.exchange.episodes import Facts
from sodp3d.exchange.fingerprint import fingerprints
from sodp3d.exchange.selection import Selection, select, to_store
from sodp3d.settings import ImportSettings
from sodp3d.vision.camera import POSE

UNFINISHED = "importing.zarr"
_FREE = ("format", "path", "store", "skip_bad")  # of the settings: do not change what an episode becomes


@dataclass(frozen=True)
class Imported:
    """What came of an import. kept: the store's keys, and of what. lost, left_out: names, and why."""

    episodes: int
    steps: int
    kept: dict[str, str]
    lost: dict[str, str]
    left_out: list[tuple[str, str]] = field(default_factory=list)


def import_recording(settings: ImportSettings, progress: Callable[[int, int], None]) -> Imported:
    """All episodes of a recording in the store `settings.store`/episodes.zarr; what was kept and lost.

    progress(done, total): called before the first episode and after each. Raises InputError where something is wrong
    with the recording or an option; an episode that is bad ends it, unless `skip_bad`. What was imported by then stays.
    Raises InputError as well where the store, whole or not, is of something else, or of files that changed since.
    """
    assert settings.format is not None and settings.path is not None and settings.store is not None
    folder = Path(settings.store).expanduser()
    source = formats.choose(settings.format).source(Path(settings.path).expanduser(), settings)
    try:
        selection = select(source.offers, settings, source.lost)
        recording = _Recording(source, selection, _facts(source, selection, settings), settings)
        with Lock(folder / "episodes.zarr.lock", f"{folder}: {{holder}} writes into this folder; wait for it."):
            return _import(recording, folder, progress)
    finally:
        source.close()


class _Recording:
    """Episodes of a source as a store takes them, in order."""

    def __init__(self, source: formats.Source, selection: Selection, facts: Facts, settings: ImportSettings) -> None:
        self.source, self.selection, self.facts, self.settings = source, selection, facts, settings
        self.count = min(len(source.episodes), settings.episodes or len(source.episodes))
        self.values, self.lost = self._known_of_all()
        self._shapes: dict[str, tuple[int, ...]] = {}  # of a step of the first good episode, which all must have
        assert settings.path is not None and settings.store is not None
        self.path = Path(settings.path).expanduser().resolve()
        camera = None if settings.camera is None else Path(settings.camera).expanduser()
        self.files = fingerprints(self.path, source.episodes, camera, Path(settings.store).expanduser())

    def _known_of_all(self) -> tuple[set[str], dict[str, str]]:
        """Which values every good episode has: only those can be a column of a store."""
        known: list[set[str]] = []
        for index in range(self.count):
            try:
                known.append(set(self.source.outcomes(index)))
            except InputError:
                if not self.settings.skip_bad:
                    raise
        common = set.intersection(*known) if known else set()
        some = set().union(*known) - common
        return common, dict.fromkeys(sorted(some), "not known of every episode")

    def episode(self, index: int) -> RecordedEpisode:
        """Raises InputError naming the episode, or its file."""
        where = f"{self.settings.path}: {self.source.episodes[index]}"
        arrays = self.source.read(index, self.selection.all)
        made, beside = to_store(arrays, self.selection, self.facts, where)
        outcomes = self.source.outcomes(index)
        try:
            values = {name: outcomes[name] for name in outcomes if name in self.values}
            episode = RecordedEpisode(**made, beside=beside, values=values)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        shapes = {key: array.shape[1:] for key, array in episode.steps.items()}
        self._shapes = self._shapes or shapes
        for key, shape in shapes.items():
            if shape != self._shapes[key]:
                raise InputError(f"{where}: {key}: has {shape} at each step, but the first one {self._shapes[key]}.")
        return episode

    def names(self, key: str) -> list[str] | None:
        """Of each number of `action` or `agent_pos`, where they come from named or several keys."""
        sources = self.selection.keys.get(key, ())
        offers = [self.source.offers[source] for source in sources]
        if not any(offer.names for offer in offers) and len(sources) < 2:
            return None
        found: list[str] = []
        for source, offer in zip(sources, offers, strict=True):
            size = offer.shape[0] if offer.shape else 1
            named = len(offer.names) == size
            found += list(offer.names) if named else [f"{source} {index}" for index in range(size)]
        return found if len(set(found)) == len(found) else None

    def good(self, start: int, left_out: list[tuple[str, str]]) -> Iterator[tuple[int, RecordedEpisode]]:
        """(index, episode) from `start` on; bad ones are noted in `left_out`, or raise InputError."""
        for index in range(start, self.count):
            try:
                yield index, self.episode(index)
            except InputError as error:
                if not self.settings.skip_bad:
                    raise InputError(f"{error} (skip_bad=true leaves such episodes out and goes on.)") from None
                left_out.append((self.source.episodes[index], str(error)))


def _facts(source: formats.Source, selection: Selection, settings: ImportSettings) -> Facts:
    """What holds for all episodes, as the options say it. Raises InputError where depth has no camera."""
    facts = source.facts
    depth = selection.keys.get("depth")
    if settings.camera is not None:
        path = Path(settings.camera).expanduser()
        shape = [size for size in source.offers[depth[0]].shape if size > 1] if depth else []
        camera, scale = read_camera(path, (shape[0], shape[1]) if len(shape) == 2 else None)
        facts = replace(facts, camera=camera, depth_scale=scale)
    if settings.depth_scale is not None:
        facts = replace(facts, depth_scale=settings.depth_scale)
    if depth and facts.camera is None:
        raise InputError(
            f"camera: the recording has depth, but does not say where its camera was; give camera=<camera.json>, or "
            f"leave_out=[{depth[0]}]."
        )
    if facts.camera is not None and POSE in selection.keys:
        facts = replace(facts, camera=replace(facts.camera, pose=None))
    return facts


def _import(recording: _Recording, folder: Path, progress: Callable[[int, int], None]) -> Imported:
    path, whole = folder / UNFINISHED, folder / "episodes.zarr"
    if whole.exists():
        return _finished(recording, whole)
    left_out: list[tuple[str, str]] = []
    first = next(recording.good(0, left_out), None)
    if first is None:
        raise InputError(f"{recording.settings.path}: no episode can be read; the first: {left_out[0][1]}")
    with _open(recording, path, first[1]) as store:
        at = _progress(store.attributes) or {"next": 0, "kept": 0, "left_out": []}
        ahead = len(store) - at["kept"]  # 1 where a kill came between an episode and its note
        left_out[:] = [(name, reason) for name, reason in at["left_out"]]
        progress(at["next"], recording.count)
        for index, episode in recording.good(at["next"], left_out):
            if ahead:
                ahead -= 1
                _check_same(store, episode)
            else:
                store.append(episode.steps, episode.metadata)
            _note(recording, store, index + 1, left_out)
            progress(index + 1, recording.count)
        _note(recording, store, recording.count, left_out)
        made = _imported(recording, store)
    with disk_errors(folder, f"{UNFINISHED} holds all episodes"):
        path.rename(whole)
    remove(path.with_name(f"{path.name}.lock"))
    return made


def _finished(recording: _Recording, whole: Path) -> Imported:
    """What this very import has made before. Raises InputError where the store there is another."""
    store = EpisodeStore.open(whole)
    if not _is_of(recording, store.attributes) or _progress(store.attributes).get("kept") != len(store):
        raise InputError(
            f"store: {whole} exists already and is never overwritten. It is of something else, or of files that "
            f"changed since, or was changed itself; remove it, or name a new folder."
        )
    return _imported(recording, store)


def _imported(recording: _Recording, store: EpisodeStore) -> Imported:
    kept = {key: ", ".join(keys) for key, keys in recording.selection.keys.items()}
    beside = [kept["agent_pos"]] if "agent_pos" in kept else []
    kept["agent_pos"] = ", ".join([*beside, *recording.selection.beside])
    kept |= {f"{name} of each episode": name for name in sorted(recording.values)}
    lost = {**recording.source.lost, **recording.selection.lost, **recording.lost}
    left_out = [(name, reason) for name, reason in store.attributes[IMPORTED]["left_out"]]
    return Imported(len(store), store.steps, kept, lost, left_out)


def _source(recording: _Recording) -> dict[str, Any]:
    """What makes an import this import, as the store notes it."""
    settings, names = recording.settings, recording.source.episodes
    options = {key: value for key, value in vars(settings).items() if key not in _FREE and value is not None}
    return {
        "format": settings.format,
        "path": str(recording.path),
        "options": options,
        "episodes": len(names),
        "names": hashlib.sha256("\n".join(names).encode()).hexdigest()[:16],
        "task": recording.facts.task,
    }


def _progress(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """How far an import has come, {} where none tells; merged stores of earlier releases may tell of several."""
    told = attributes.get(IMPORTED)
    return told if isinstance(told, dict) else {}


def _is_of(recording: _Recording, attributes: Mapping[str, Any]) -> bool:
    """Whether a store is of this very import, and no file changed of what it holds."""
    at = _progress(attributes)
    same = attributes.get("source") == _source(recording)
    return same and at.get("files") == recording.files[at.get("next", 0)]


def _open(recording: _Recording, path: Path, like: RecordedEpisode) -> EpisodeStore:
    """The unfinished store of this very import, to go on with, or a new one. Raises InputError for another's."""
    source, facts = _source(recording), recording.facts
    told = read_json(path / ".zattrs") if path.exists() else {}
    if told.get("source") == source and IMPORTED not in told:
        remove(path)  # killed at its first episode, which may be another by now
    elif path.exists() and not _is_of(recording, told):
        raise _of_others(path)
    name = re.sub(r"[^\w.-]+|^[.-]+", "_", path.parent.resolve().name)  # it names folders and files, too
    return create_recorded_store(
        path,
        name or "recorded",
        like,
        rate=facts.rate,
        camera=facts.camera,
        action_names=recording.names("action"),
        agent_pos_names=recording.names("agent_pos"),
        source=source,
    )


def _check_same(store: EpisodeStore, episode: RecordedEpisode) -> None:
    """Raises InputError unless the store's last episode is this one."""
    kept = store.episode(len(store) - 1)
    if not all(np.array_equal(kept[key], values) for key, values in episode.steps.items()):
        raise _of_others(store.path)


def _of_others(path: Path) -> InputError:
    return InputError(
        f"store: {path} is an unfinished import of something else, or of files that changed since; remove it to begin "
        f"anew, or name a new folder."
    )


def _note(recording: _Recording, store: EpisodeStore, place: int, left_out: list[tuple[str, str]]) -> None:
    at = {"next": place, "kept": len(store), "left_out": left_out, "files": recording.files[place]}
    store.update_attributes({IMPORTED: at})
