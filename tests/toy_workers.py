"""A worker's object that counts, and goes wrong in every way. Light, because each worker imports it."""

import os
import signal

import numpy as np

from sodp3d.core.errors import InputError
from sodp3d.parallel import WorkerError, Workers


class Counter:
    def __init__(self, start: int):
        self.value = start

    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    def process(self) -> int:
        return os.getpid()

    def threads(self) -> str:
        return os.environ["OMP_NUM_THREADS"]

    def array(self, size: int) -> np.ndarray:
        return np.arange(size)

    def fail(self) -> None:
        raise KeyError("missing")

    def refuse(self) -> None:
        raise InputError("key: wrong")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def die_unless(self, path: str) -> int:
        """Dies at its first call for `path`, as if by chance."""
        if not os.path.exists(path):
            open(path, "w").close()
            self.die()
        return self.value


class MortalMaker:
    """Makes episode i as the array [i]; dies at the first attempt at every third."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def make(self, index: int) -> tuple[np.ndarray]:
        if index % 3 == 0:
            Counter(0).die_unless(os.path.join(self.folder, f"died-{index}"))
        return (np.array([index]),)


def assert_errors_are_told(workers: Workers) -> None:
    """What a call of worker 0 raises reaches the caller, by either kind of worker."""
    import pytest

    workers.start(0, "fail")
    with pytest.raises(WorkerError, match="KeyError: 'missing'"):
        workers.result(0)
    workers.start(0, "refuse")
    with pytest.raises(InputError, match=r"^key: wrong$"):
        workers.result(0)
