"""Workers that are processes of this machine, started with `spawn`: they inherit no GL context, lock or thread."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from sodp3d.parallel.worker import Answer, Holder, WorkerDiedError


class LocalWorker:
    """A process of this machine, with `threads` CPU threads for its numerical libraries."""

    def __init__(self, factory: Callable[..., Any], values: tuple[Any, ...], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, factory, values), daemon=True)
        with environment_variables(OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads)):
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


@contextmanager
def environment_variables(**values: str) -> Iterator[None]:
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
