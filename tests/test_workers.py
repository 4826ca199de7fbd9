import os
import signal

import pytest

from sodp3d.errors import InputError
from sodp3d.workers import WorkerError, Workers


class Counter:
    def __init__(self, start: int):
        self.value = start

    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    def process(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise KeyError("missing")

    def refuse(self) -> None:
        raise InputError("key: wrong")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_each_worker_keeps_its_own_object_in_its_own_process() -> None:
    with Workers(Counter, [(0,), (100,)]) as workers:
        assert workers.call("add", [(1,), (2,)]) == [1, 102]
        assert workers.call("add", [(1,), (2,)]) == [2, 104]
        processes = workers.call("process", [(), ()])
        assert len({*processes, os.getpid()}) == 3


def test_errors_and_deaths_are_told_and_others_go_on() -> None:
    with Workers(Counter, [(0,), (0,)]) as workers:
        workers.start(0, "fail")
        with pytest.raises(WorkerError, match="KeyError: 'missing'"):
            workers.result(0)
        workers.start(0, "refuse")
        with pytest.raises(InputError, match=r"^key: wrong$"):
            workers.result(0)
        workers.start(1, "die")
        with pytest.raises(WorkerError, match="died with exit code -9"):
            workers.result(1)
        workers.start(0, "add", 5)
        assert workers.result(0) == 5
