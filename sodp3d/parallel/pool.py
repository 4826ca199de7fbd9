"""Several workers as one: calls go to each, answers come back in order, the dead are replaced."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from sodp3d.core.errors import InputError
from sodp3d.parallel.local import LocalWorker
from sodp3d.parallel.worker import Worker, WorkerDiedError, WorkerError

log = logging.getLogger(__name__)
ATTEMPTS = 4  # at one piece of work, before the deaths of its workers are taken to be its own doing


class Workers:
    """Workers, each holding `factory(*values)`; a context manager.

    Args:
        factory: picklable by name (a module-level class or function).
        arguments: the values of each worker.
        threads: CPU threads that numerical libraries may use inside each worker.
        kind: LocalWorker | RayWorker.
    """

    def __init__(
        self,
        factory: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
        threads: int = 1,
        kind: Callable[..., Worker] = LocalWorker,
    ) -> None:
        self._hire = [functools.partial(kind, factory, values, threads) for values in arguments]
        self._workers = [hire() for hire in self._hire]
        self._calls: list[tuple[str, tuple[Any, ...]]] = [("", ())] * len(arguments)

    def __len__(self) -> int:
        return len(self._workers)

    def start(self, worker: int, method: str, *arguments: Any) -> None:
        """Begin a call on one worker; `result` or `finish` waits for it."""
        self._calls[worker] = (method, arguments)
        self._workers[worker].start(method, arguments)

    def result(self, worker: int) -> Any:
        """The answer of the call begun on that worker. Raises InputError as the call did, or WorkerError."""
        try:
            kind, value = self._workers[worker].answer()
        except WorkerDiedError as error:
            raise WorkerDiedError(f"worker {worker} ({error}).") from None
        if kind == "input error":
            raise InputError(value)
        if kind == "error":
            raise WorkerError(f"worker {worker} failed:\n{value}")
        return value

    def finish(self, worker: int) -> Any:
        """`result` of a call that needs nothing from those before it: where the worker dies, a fresh one makes it."""
        for attempt in range(2, ATTEMPTS + 1):
            try:
                return self.result(worker)
            except WorkerDiedError as error:
                log.warning("%s A fresh one takes over (attempt %d of %d).", error, attempt, ATTEMPTS)
            self.revive(worker)
            method, arguments = self._calls[worker]
            self.start(worker, method, *arguments)
        return self.result(worker)

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call `method`, as for `finish`, on as many workers as there are `arguments`; answers in that order."""
        for worker, values in enumerate(arguments):
            self.start(worker, method, *values)
        return [self.finish(worker) for worker in range(len(arguments))]

    def revive(self, worker: int) -> None:
        """Put a fresh worker in the place of one that died."""
        self._workers[worker].stop()
        self._workers[worker].wait()
        self._workers[worker] = self._hire[worker]()

    def start_anew(
        self, worker: int, death: WorkerDiedError, deaths: list[int], episodes: int, method: str, *arguments: Any
    ) -> Any:
        """Where work in many calls died with its worker: the answer of its first call, made by a fresh one.

        deaths: how often each worker and those put in its place have died so far; this one is added. Raises `death`
        when it is the `ATTEMPTS`-th. episodes: how many begin anew.
        """
        deaths[worker] += 1
        if deaths[worker] == ATTEMPTS:
            raise death
        log.warning("%s Its %d unfinished episodes start anew.", death, episodes)
        self.revive(worker)
        self.start(worker, method, *arguments)
        return self.finish(worker)

    def close(self) -> None:
        """Stop all workers."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.wait()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
