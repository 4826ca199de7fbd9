"""One interface to worker processes: each holds one object, and calls on it run side by side.

Collection, conversion and roll-outs go through it. The local kind starts processes with `spawn`, so that no GL context,
lock or thread is inherited; the object (with its environments and renderer) is made inside its process.
"""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from sodp3d.errors import InputError


class WorkerError(RuntimeError):
    """A worker died or its call failed; the message holds the worker's own traceback."""


class Workers:
    """Local processes, each holding `factory(*arguments)`.

    Args:
        factory: picklable by name (a module-level class or function).
        arguments: one tuple per worker.
        threads: CPU threads that numerical libraries may use inside each worker.
    """

    def __init__(self, factory: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], threads: int = 1):
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        self._processes = []
        with _environment(OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads)):
            for values in arguments:
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(there, factory, values), daemon=True)
                process.start()
                there.close()
                self._connections.append(here)
                self._processes.append(process)

    def __len__(self) -> int:
        return len(self._processes)

    def start(self, worker: int, method: str, *arguments: Any) -> None:
        """Begin a call on one worker; `result` waits for it."""
        try:
            self._connections[worker].send((method, arguments))
        except (BrokenPipeError, ConnectionResetError):
            raise self._died(worker) from None

    def result(self, worker: int) -> Any:
        """The answer of the call begun on that worker. Raises what the call raised, or WorkerError."""
        try:
            kind, value = self._connections[worker].recv()
        except (EOFError, ConnectionResetError):
            raise self._died(worker) from None
        if kind == "input error":
            raise InputError(value)
        if kind == "error":
            raise WorkerError(f"worker {worker} failed:\n{value}")
        return value

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call `method` on every worker at once, worker i with `arguments[i]`; answers in that order."""
        for worker, values in enumerate(arguments):
            self.start(worker, method, *values)
        return [self.result(worker) for worker in range(len(arguments))]

    def close(self) -> None:
        """Stop all workers."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _died(self, worker: int) -> WorkerError:
        process = self._processes[worker]
        process.join(timeout=5)
        return WorkerError(f"worker {worker} (process {process.pid}) died with exit code {process.exitcode}.")


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
    """A worker's life: make the object, answer calls until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it closes the pipe
    made: Any = None
    while True:
        try:
            method, arguments = connection.recv()
        except (EOFError, ConnectionResetError):  # the parent closed the pipe, or was killed
            return
        try:
            if made is None:
                made = factory(*values)
            answer: tuple[str, Any] = ("value", getattr(made, method)(*arguments))
        except InputError as error:
            answer = ("input error", str(error))
        except Exception:
            answer = ("error", traceback.format_exc())
        try:
            connection.send(answer)
        except BrokenPipeError:
            return
