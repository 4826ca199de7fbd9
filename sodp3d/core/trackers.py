"""Who is told a run's numbers beside metrics.jsonl (`tracker=`): TensorBoard, a dashboard, nobody.

A tracker only looks on. It never decides what a run computes, whether one is continued, or whether it comes to its end.
"""

import importlib.util
import logging
import math
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sodp3d.core import registry
from sodp3d.core.errors import InputError

log = logging.getLogger(__name__)
TENSORBOARD = "tensorboard"  # the default


class Tracker(ABC):
    """One run's numbers, for people to look at. Methods may raise anything: then the run goes on without it."""

    needs: ClassVar[tuple[str, ...]] = ()  # packages beyond the package's own needs
    empty: bool = True  # whether it knows nothing of this run yet; then it is told all that was logged before

    @abstractmethod
    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        """directory: the run's own, where a tracker notes what a later process needs to go on. config: as recorded."""

    @abstractmethod
    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step, by names such as `train/loss`; not finite ones too. A step may come again."""

    @abstractmethod
    def close(self) -> None:
        """This process adds no more."""


class NoTracker(Tracker):
    """`tracker=none`."""

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        pass

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def require_tracker(name: str) -> None:
    """Raise InputError where `tracker=` names none, or one whose packages are not installed."""
    kind: type[Tracker] = registry.choose(registry.TRACKERS, name, "tracker")
    missing = [package for package in kind.needs if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(
            f"tracker: {name} needs {' and '.join(missing)}, which is not installed: pip install {' '.join(missing)} "
            f"(the extra {name}), or choose another tracker, such as tracker={TENSORBOARD}."
        )


class Telling:
    """What a run holds: its tracker, made when there is something to tell. Where it fails, one warning says so.

    records: all that was logged so far, that of the first call of `add` included.
    """

    def __init__(
        self, name: str, directory: Path, config: Mapping[str, Any], records: Callable[[], list[dict[str, Any]]]
    ) -> None:
        self._name, self._directory, self._config, self._records = name, directory, config, records
        self._tracker: Tracker | None = None
        self._failed = False

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Tell numbers that are logged already."""
        self._guarded(lambda: self._add(step, values))

    def close(self) -> None:
        """This process tells no more."""
        if self._tracker is not None:
            self._guarded(self._tracker.close)

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        if self._tracker is not None:
            self._tracker.add(step, values)
            return
        self._tracker = registry.choose(registry.TRACKERS, self._name, "tracker")(self._directory, self._config)
        if not self._tracker.empty:
            self._tracker.add(step, values)
            return
        for record in self._records():
            numbers = {name: math.nan if value is None else value for name, value in record.items() if name != "step"}
            self._tracker.add(record["step"], numbers)

    def _guarded(self, act: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            with _same_randomness():
                act()
        except Exception as error:  # of any kind: packages that are not ours, networks, disks
            self._failed = True
            log.warning(
                "tracker=%s failed (%s: %s). The run goes on without it: metrics.jsonl has every number, and the next "
                "start of this run tries it again.",
                self._name,
                type(error).__name__,
                " ".join(str(error).split()),
            )
            with suppress(Exception):
                if self._tracker is not None:
                    self._tracker.close()


@contextmanager
def _same_randomness() -> Iterator[None]:
    """Leave the generators of random numbers that all code shares as they are: learning may draw from them too."""
    shared, arrays, torch = random.getstate(), np.random.get_state(), sys.modules.get("torch")
    devices = [torch.cuda.current_device()] if torch is not None and torch.cuda.is_initialized() else []
    try:
        with nullcontext() if torch is None else torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(shared)
        np.random.set_state(arrays)
