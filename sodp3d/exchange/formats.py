"""What a format is: something that opens recordings, and something that writes them. Chosen by name, as all is."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sodp3d.core import registry
from sodp3d.data.schema import Specification
from sodp3d.exchange.episodes import Arrays, Facts, Offer
from sodp3d.settings import ExportSettings, ImportSettings


class Source(Protocol):
    """A recording that is open for reading. Whatever is wrong in it raises InputError, naming the file or episode."""

    @property
    def facts(self) -> Facts:
        """What holds for all episodes."""

    @property
    def offers(self) -> Mapping[str, Offer]:
        """The arrays that the recording has at every step."""

    @property
    def lost(self) -> Mapping[str, str]:
        """What of it no store can hold, and why."""

    @property
    def episodes(self) -> Sequence[str]:
        """Names of the episodes, in order."""

    def read(self, index: int, keys: Sequence[str]) -> Arrays:
        """Arrays (T, ...) of these keys of one episode, as they are stored."""

    def outcomes(self, index: int) -> dict[str, Any]:
        """What is known of an episode as a whole, of `episodes.OUTCOMES`."""

    def close(self) -> None:
        """Close what is open."""


class Sink(Protocol):
    """A recording that is being written, at a path that nobody else sees yet."""

    @property
    def kept(self) -> Mapping[str, str]:
        """The store's key to what it is called there."""

    @property
    def lost(self) -> Mapping[str, str]:
        """What is not written, and why."""

    def add(self, arrays: Arrays, outcomes: Mapping[str, Any]) -> None:
        """Write one episode: the store's keys to (T, ...)."""

    def finish(self) -> None:
        """Write what is written last, and close."""


class Format(NamedTuple):
    """A row of the table `registry.FORMATS`.

    source(path, settings): raises InputError where there is no such recording. sink(path, specification, facts,
    settings): `specification` tells the store's arrays; raises InputError where the format cannot hold what it must.
    suffix: of the files that the format writes, "" for a folder.
    """

    source: Callable[[Path, ImportSettings], Source]
    sink: Callable[[Path, Specification, Facts, ExportSettings], Sink]
    suffix: str = ""


def choose(name: str) -> Format:
    """The format of that name. Raises InputError naming those that there are."""
    found: Format = registry.choose(registry.FORMATS, name, "format")
    return found
