"""Episodes of stores into one: shards that parallel collectors wrote side by side, or a choice of one store's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sodp3d.core.errors import InputError
from sodp3d.core.mappings import differences, plain
from sodp3d.data.absence import identities
from sodp3d.data.attributes import IMPORTED, check_identity, each
from sodp3d.data.schema import check_same_specification
from sodp3d.data.store import EpisodeStore

NOT_CARRIED = ("conversion", IMPORTED)  # attributes of what is derived, and of an import, which a copy of it is not
_CHECKED_APART = ("env_config", "camera", "specification", "schema_version")  # on opening, as far as they matter


class Source(NamedTuple):
    """Where an episode is found: the number of its store and its index there; and what tells it from others.

    identity: agent step and seed, or where these were not recorded a checksum (`absence.identities`).
    """

    identity: tuple[Any, ...]
    store: int
    episode: int


def merge(shards: Sequence[str | Path], target: str | Path) -> EpisodeStore:
    """All episodes of `shards` in the store `target`, ordered by agent step, then seed; returned open for appending.

    Recordings without these stay in the order of `shards`, and of their episodes.
    The result is the same however the episodes were spread over shards. An episode that two shards hold (work done
    again after a worker died) enters once. A merge that was killed continues where it stopped; a complete one does
    nothing. Point clouds are not carried over: convert the merged store. Raises InputError when shards differ in
    environment, camera, renderer or keys, when two different episodes claim the same agent step and seed, when `target`
    is one of the shards, or holds anything but the beginning of this very merge.
    """
    check_apart(shards, target)
    stores = [EpisodeStore.open(shard) for shard in shards]
    if not stores:
        raise InputError("merge: no shards given.")
    told = stores[0].attributes  # then by all shards so far: the first may not tell everything
    for store in stores[1:]:
        check_identity(store.attributes, told, str(store.path))
        check_same_specification(store.specification, stores[0].specification, str(store.path))
        told = {**store.attributes, **told}
    return copy_episodes(stores, ordered_sources(stores), _common_attributes(stores), target)


def check_apart(sources: Sequence[str | Path], target: str | Path) -> None:
    """Raise InputError where `target` is one of the stores that are copied from."""
    if Path(target).resolve() in [Path(source).resolve() for source in sources]:
        raise InputError(
            f"target: {target} is the source itself, or one of them, and stays as it is; name a new folder."
        )


def copy_episodes(
    stores: Sequence[EpisodeStore], sources: Sequence[Source], attributes: Mapping[str, Any], target: str | Path
) -> EpisodeStore:
    """The episodes that `sources` name, in their order, in the store `target`; returned open for appending.

    A copy that was killed continues where it stopped. Raises InputError when `target` holds anything but the beginning
    of this very copy, of other episodes or with other `attributes`.
    """
    specification = stores[0].specification
    if Path(target).exists():
        copied = EpisodeStore.open(target, "a", attributes, specification)
    else:
        copied = EpisodeStore.create(target, attributes, specification)
    try:
        _check_beginning(copied, stores, sources)
        _check_provenance(copied, plain(dict(attributes)))
        metadata = [store.metadata for store in stores]
        for source in sources[len(copied) :]:
            values = {name: array[source.episode].item() for name, array in metadata[source.store].items()}
            copied.append(stores[source.store].episode(source.episode), values)
    except BaseException:
        copied.close()
        raise
    return copied


def ordered_sources(stores: Sequence[EpisodeStore]) -> list[Source]:
    """Every distinct episode once, by agent step and seed, or where these were not recorded as they come."""
    sources = [
        Source(identity, number, episode)
        for number, store in enumerate(stores)
        for episode, identity in enumerate(identities(store))
    ]
    if all(len(source.identity) == 2 for source in sources):
        sources.sort()
    distinct: dict[tuple[Any, ...], Source] = {}
    for source in sources:
        if distinct.setdefault(source.identity, source) is not source:
            _check_equal(stores, distinct[source.identity], source)
    return list(distinct.values())


def _check_equal(stores: Sequence[EpisodeStore], one: Source, other: Source) -> None:
    first, second = (stores[source.store].episode(source.episode) for source in (one, other))
    for key, values in first.items():
        if not np.array_equal(values, second[key]):
            raise InputError(
                f"merge: {stores[one.store].path} episode {one.episode} and {stores[other.store].path} episode "
                f"{other.episode} both claim {_told(one)} but differ in data/{key}; "
                f"give every collector its own seeds."
            )


def _check_beginning(copied: EpisodeStore, stores: Sequence[EpisodeStore], sources: Sequence[Source]) -> None:
    found = identities(copied)
    if found != [source.identity for source in sources[: len(found)]]:
        raise InputError(
            f"{copied.path}: holds {len(found)} episodes that are not the first of those asked for from "
            f"{[str(store.path) for store in stores]}; name a new folder."
        )


def _check_provenance(copied: EpisodeStore, given: Mapping[str, Any]) -> None:
    """Raises InputError where the store says that it came to be otherwise: it would say so of what is added, too."""
    for key in sorted({*copied.attributes, *given} - {*NOT_CARRIED, *_CHECKED_APART}):
        for name, old, new in differences(copied.attributes.get(key), given.get(key), key):
            raise InputError(
                f"{copied.path}: was begun with {name} = {str(old)[:80]}, but {str(new)[:80]} came: of other options, "
                f"or of data that has changed since. It is never changed; name a new folder."
            )


def _told(source: Source) -> str:
    """What an episode claims for itself alone."""
    return "agent step {} and seed {}".format(*source.identity) if len(source.identity) == 2 else "one checksum"


def _common_attributes(stores: Sequence[EpisodeStore]) -> dict[str, Any]:
    """What all shards agree on as it is; where they differ, the distinct values in a fixed order."""
    common: dict[str, Any] = {}
    for key in sorted(set().union(*(store.attributes for store in stores)).difference(NOT_CARRIED)):
        values = [store.attributes[key] for store in stores if key in store.attributes]
        if key in ("env_config", "camera") or all(value == values[0] for value in values):
            common[key] = values[0]
        else:  # a shard that was merged itself may hold several
            distinct = sorted({repr(value): value for value in each(values)}.items())
            common[key] = [value for _, value in distinct]
    return common
