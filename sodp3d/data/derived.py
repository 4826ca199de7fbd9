"""Per-step arrays that follow from what was collected: made beside it, episode by episode, by workers, resumable.

The attribute `conversion` maps each output key to {keys, episodes, parameters, statistics, checked}. `episodes` counts
the finished ones and is raised, atomically, only after an episode's values are on the disk: `EpisodeStore.write_rows`
waits for that, so a power cut leaves no episode that counts as made and is not there. `checked` is {episodes,
checksums}: for each key one checksum of all values so far, missing or behind where an earlier release has worked.
"""

import contextlib
import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.data.columns import continued_checksum
from sodp3d.data.schema import Field, is_key
from sodp3d.data.store import EpisodeStore
from sodp3d.parallel import WorkerCount, make_workers

log = logging.getLogger(__name__)

EpisodeValues = tuple[NDArray[Any], ...]
Progress = Callable[[int, int], None]  # (episodes done, episodes in all)


class EpisodeMaker(Protocol):
    """What a worker holds: makes one episode's arrays (T, ...) from its index."""

    def make(self, index: int) -> EpisodeValues:
        """The arrays of episode `index`."""


@dataclass(frozen=True)
class Derivation:
    """What to make, and how.

    fields: the arrays in the order in which the maker gives them; the first is the output that names them all.
    parameters: recorded with the result; those named in `free` do not change it. factory(*arguments): an EpisodeMaker,
    picklable by name. replaces: what was finished with other parameters, too; replaced_by: the option for that.
    """

    fields: dict[str, Field]
    parameters: dict[str, Any]
    factory: Callable[..., EpisodeMaker]
    arguments: tuple[Any, ...]
    free: tuple[str, ...] = ()
    replaces: bool = False
    replaced_by: str | None = None

    @property
    def output(self) -> str:
        """Key of the first array."""
        return next(iter(self.fields))


def derive(store: EpisodeStore, derivation: Derivation, workers: WorkerCount, progress: Progress | None = None) -> None:
    """Make the arrays of every episode of `store` (open for appending) that does not have them yet.

    workers: 0 works in this process, n in n spawned ones, `ray` on a cluster; this process alone writes. Raises
    InputError when the output is finished with other parameters, what the maker raises, or when the disk is full; what
    was made by then stays.
    """
    state = _prepare(store, derivation)
    first, total = int(state["episodes"]), len(store)
    checksums = dict(state["checked"]["checksums"]) if state.get("checked") else {}
    if progress is not None:
        progress(first, total)
    results = in_order(derivation.factory, derivation.arguments, range(first, total), workers)
    with contextlib.closing(results):
        for index, values in zip(range(first, total), results, strict=True):
            for (key, field), array in zip(derivation.fields.items(), values, strict=True):
                array = np.asarray(array, field.dtype)
                store.write_rows(key, index, array)
                if state.get("checked"):
                    checksums[key] = continued_checksum(checksums[key], array)
            if state.get("checked"):
                state = {**state, "checked": {"episodes": index + 1, "checksums": checksums}}
            _record(store, derivation.output, {**state, "episodes": index + 1})
            if progress is not None:
                progress(index + 1, total)


def in_order(
    factory: Callable[..., EpisodeMaker], arguments: tuple[Any, ...], indices: range, workers: WorkerCount
) -> Generator[EpisodeValues, None, None]:
    """The made episodes in order. Each worker has one episode in work while its last one is written.

    The episode of a worker that died is made by a fresh one.
    """
    if not indices:
        return
    if workers == 0:
        yield from map(factory(*arguments).make, indices)
        return
    with make_workers(workers, factory, arguments, at_most=len(indices)) as pool:
        count = len(pool)
        for place, index in enumerate(indices[:count]):
            pool.start(place, "make", index)
        for place, index in enumerate(indices):
            result = pool.finish(place % count)
            if index + count < indices.stop:
                pool.start(place % count, "make", index + count)
            yield result


def record_statistics(store: EpisodeStore, output: str, statistics: dict[str, Any]) -> None:
    """Note that `output` is finished; from then on it is not overwritten with other parameters."""
    state = store.conversions[output]
    if state["statistics"] != statistics:
        _record(store, output, {**state, "statistics": statistics})


def _prepare(store: EpisodeStore, derivation: Derivation) -> dict[str, Any]:
    """The output's state, newly made or checked against the parameters now asked for."""
    output, keys = derivation.output, list(derivation.fields)
    _check_names(store, output, keys)
    state = store.conversions.get(output)
    if state is None or _may_start_over(store, derivation, state):
        if derivation.replaces and state is not None and state["episodes"]:
            derivation.factory(*derivation.arguments).make(0)  # one that fails does so here: what is there stays
        checked = {"episodes": 0, "checksums": dict.fromkeys(keys, "")}
        state = {"keys": keys, "episodes": 0, "parameters": derivation.parameters, "statistics": {}, "checked": checked}
        _record(store, output, state)
        for key, field in derivation.fields.items():
            store.add_array(key, field)
    for key, field in derivation.fields.items():
        if (found := store.field(key)) != field:
            raise InputError(
                f"{store.path}: data/{key} holds {found.dtype} {found.shape} per step instead of {field.dtype} "
                f"{field.shape}; remove it to make it again, or choose output=<another key>."
            )
    if state.get("checked") and state["checked"]["episodes"] != state["episodes"]:
        return {**state, "checked": None}  # an earlier release has gone on without
    return dict(state)


def _check_names(store: EpisodeStore, output: str, keys: list[str]) -> None:
    """Raises InputError unless arrays of these names are this output's, or may become so."""
    if not is_key(output):
        raise InputError(f"output: expected a name of letters, digits, '_', '-' and '.', got {output!r}.")
    if output in store.specification:
        raise InputError(f"output: {output!r} is a collected key of {store.path}; choose another name.")
    state = store.conversions.get(output)
    if state is not None and state["keys"] != keys:
        raise InputError(f"output: {output!r} of {store.path} is made of {state['keys']}, not {keys}; choose another.")
    others = {key for name, other in store.conversions.items() if name != output for key in other["keys"]}
    for key in keys:
        if key in others or (state is None and (store.path / "data" / key).exists()):
            raise InputError(
                f"output: {store.path / 'data' / key} was not made as output={output} and is not overwritten; choose "
                f"another output=, or move it away."
            )


def _may_start_over(store: EpisodeStore, derivation: Derivation, state: dict[str, Any]) -> bool:
    """Whether nothing is made yet or left, or what has other parameters never came to its end.

    Raises InputError when it did: data that may have been trained on is not overwritten.
    """
    missing = [key for key in state["keys"] if key not in store.keys]
    if missing and state["episodes"]:
        log.warning("%s: data/%s is gone, so all its episodes are made again", store.path, missing[0])
        return True
    wanted, stored = derivation.parameters, state["parameters"]
    differing = [key for key in wanted if key not in derivation.free and stored.get(key) != wanted[key]]
    if differing and state["statistics"] and not derivation.replaces:
        key = differing[0]
        replacing = f"{derivation.replaced_by} replaces it, " if derivation.replaced_by else "use the stored value, or "
        raise InputError(
            f"{store.path}: data/{derivation.output} was made with {key} = {stored.get(key)}, now {key} = "
            f"{wanted[key]} is asked for. It is not overwritten unasked: {replacing}output=<key> makes a second."
        )
    if differing and state["episodes"]:
        kind = "the" if state["statistics"] else "an unfinished"
        log.warning("%s: %s conversion with another %s is made anew", store.path, kind, differing[0])
    return bool(differing) or state["episodes"] == 0


def _record(store: EpisodeStore, output: str, state: dict[str, Any]) -> None:
    store.update_attributes({"conversion": {**store.conversions, output: state}})
