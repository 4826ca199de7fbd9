"""What a store does not hold: values that were not recorded are absent, not zero, and who reads one is told so."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.data.schema import METADATA
from sodp3d.envs.config import RECORDED
from sodp3d.vision.camera import POSE

if TYPE_CHECKING:
    from sodp3d.data.store import EpisodeStore

EPISODE_VALUES = "episode_values"  # attribute: which of METADATA a store has; stores without it have all
_NEVER_MADE = ("action", "agent_pos", "state", "reward", "success", "sim_state", POSE)  # of nothing else in a store


class NotRecorded(InputError):  # noqa: N818
    """A value was asked for that the store at `path` does not have, as it was never recorded."""

    def __init__(self, path: Path, what: str, there: Iterable[str]) -> None:
        super().__init__(f"{path}: {what} was not recorded; there are {', '.join(there) or 'none'}.")


class EpisodeValues(dict[str, NDArray[Any]]):
    """(E,) values of each episode by name. Asking for one that was not recorded raises NotRecorded; `in` tells."""

    def __init__(self, path: Path, values: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, name: str) -> NDArray[Any]:
        raise NotRecorded(self._path, f"{name} of episodes", self)


def episode_values(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Name to type of the values that a store with these attributes has of each episode."""
    names = attributes.get(EPISODE_VALUES, METADATA)
    return {name: dtype for name, dtype in METADATA.items() if name in names}


def is_recorded(attributes: Mapping[str, Any]) -> bool:
    """Whether a store with these attributes holds recordings that nothing simulates."""
    return bool(attributes["env_config"].get("family") == RECORDED)


def can_be_made(store: "EpisodeStore", key: str) -> bool:
    """Whether data/`key`, which was not collected, may follow from what was: of states all, of depth clouds."""
    if key in _NEVER_MADE:
        return False
    return "sim_state" in store.specification or ("depth" in store.specification and key not in ("depth", "image"))


def identities(store: "EpisodeStore") -> list[tuple[Any, ...]]:
    """What tells each episode from others: its agent step and seed, or where these are absent its values' checksum."""
    values = store.metadata
    columns = [values[name] for name in ("agent_step", "seed") if name in values]
    if len(columns) < 2:
        columns = [np.asarray(store.checksums)]
    return list(zip(*(column.tolist() for column in columns), strict=True))
