"""One interface to workers: each holds one object, and calls on it run side by side.

Collection, conversion and roll-outs go through it. There are two kinds of workers: local processes (here) and actors of
a Ray cluster (`ray_workers.py`); `make_workers` chooses. Local ones start with `spawn`, so that no GL context, lock or
thread is inherited; the object (with its environments and renderer) is made where it lives.

A worker that died is replaced by `revive`. What it held is gone: whoever gave it work begins that anew.
"""

import functools
import logging
import multiprocessing
import os
import re
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, Protocol

from sodp3d.errors import InputError

log = logging.getLogger(__name__)
ATTEMPTS = 4  # at one piece of work, before the deaths of its workers are taken to be its own doing

WorkerCount = (
    int | str | None
)  # the option `workers`: number of local processes (null: one per core), ray, ray:<number>
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


class LocalWorker:
    """A process of this machine, with `threads` CPU threads for its numerical libraries."""

    def __init__(self, factory: Callable[..., Any], values: tuple[Any, ...], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, factory, values), daemon=True)
        with _environment(OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads)):
            self._process.start()
        there.close()

    def start(self, method: str, arguments: tuple[Any, ...]) -> None:
        """As `Worker.start`."""
        with suppress(BrokenPipeError, ConnectionResetError):  # it died; `answer` says so
            self._connection.send((method, arguments))

    def answer(self) -> Answer:
        """As `Worker.answer`."""
        try:
            answer: Answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(timeout=5)
            died = f"process {self._process.pid} died with exit code {self._process.exitcode}"
            raise WorkerDiedError(died) from None
        return answer

    def stop(self) -> None:
        """As `Worker.stop`."""
        self._connection.close()

    def wait(self) -> None:
        """As `Worker.wait`."""
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


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


def make_workers(
    workers: WorkerCount, factory: Callable[..., Any], values: tuple[Any, ...], at_most: int, threads: int = 1
) -> Workers:
    """Workers that all hold `factory(*values)`: as many as the option `workers` says, `at_most` so many.

    Under Ray the number is that of the cluster's CPUs unless given. Raises InputError for anything but a number, null,
    ray and ray:<number>, and where Ray is not installed or no cluster answers.
    """
    count, on_ray = _parse(workers)
    if not on_ray:
        return Workers(factory, [values] * min(count or os.cpu_count() or 1, at_most), threads)
    try:
        from sodp3d.ray_workers import RayWorker, connect
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise InputError(
            f"workers: {workers} needs Ray, which is not installed: pip install sodp3d[scale], or give a number."
        ) from None
    cpus = connect()
    return Workers(factory, [values] * min(count or cpus, at_most), threads, RayWorker)


def _parse(workers: WorkerCount) -> tuple[int, bool]:
    """The number of workers (0: as many as fit), and whether Ray has them."""
    named = re.fullmatch(r"ray(?::([1-9]\d*))?", workers) if isinstance(workers, str) else None
    if named:
        return int(named[1] or 0), True
    if workers is None or (isinstance(workers, int) and not isinstance(workers, bool) and workers >= 0):
        return workers or 0, False
    raise InputError(f"workers: expected a number of processes, null, ray or ray:<number>, got {workers!r}.")


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


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables for the processes started inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, factory: Callable[..., Any], values: tuple[Any, ...]) -> None:
    """A local worker's life: answer calls until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it closes the pipe
    holder = Holder(factory, values)
    while True:
        try:
            method, arguments = connection.recv()
        except (EOFError, ConnectionResetError):  # the parent closed the pipe, or was killed
            return
        try:
            connection.send(holder.call(method, arguments))
        except BrokenPipeError:
            return
