"""What a worker is: it holds one object, and calls on it run beside those of others."""

import traceback
from collections.abc import Callable
from typing import Any, Protocol

from sodp3d.core.errors import InputError

Answer = tuple[str, Any]  # ("value", value), ("input error", message) or ("error", traceback)


class WorkerError(RuntimeError):
    """A worker's call failed; the message holds the worker's own traceback."""


class WorkerDiedError(WorkerError):
    """A worker died, and with it what it held."""


class Worker(Protocol):
    """Where one object lives: `factory(*values)`, made at the first call. One call at a time."""

    def start(self, method: str, arguments: tuple[Any, ...]) -> None:
        """Begin a call. Never raises for a dead worker: `answer` will."""

    def answer(self) -> Answer:
        """Wait for the call. Raises WorkerDiedError."""

    def stop(self) -> None:
        """Let it end."""

    def wait(self) -> None:
        """Wait for that end, or force it."""


class Holder:
    """What a worker of either kind runs: makes the object at the first call, turns what calls raise into answers."""

    def __init__(self, factory: Callable[..., Any], values: tuple[Any, ...]) -> None:
        self._factory, self._values = factory, values
        self._held: Any = None

    def call(self, method: str, arguments: tuple[Any, ...]) -> Answer:
        """The answer of one call on the object."""
        try:
            if self._held is None:
                self._held = self._factory(*self._values)
            return "value", getattr(self._held, method)(*arguments)
        except InputError as error:
            return "input error", str(error)
        except Exception:
            return "error", traceback.format_exc()
