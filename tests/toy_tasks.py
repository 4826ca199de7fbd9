"""Jobs of several tasks, which keep what they did in files. Light, because each process imports it."""

import os
import signal
import sys
import time
from pathlib import Path

from sodp3d.core.errors import InputError
from sodp3d.core.stopping import Stopped, on_signal
from sodp3d.parallel.tasks import Job, run_side_by_side


def work(folder: Path, name: str) -> None:
    """Say two lines, note the process and its threads."""
    sys.stderr.write(f"{name}: one\ntwo\n")
    (folder / name).write_text(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')}")


def mistake(folder: Path, name: str) -> None:
    """What a user can mend."""
    raise InputError(f"key: {name} is wrong.")


def crash(folder: Path, name: str) -> None:
    """What nobody foresaw."""
    raise KeyError(name)


def die(folder: Path, name: str) -> None:
    """As for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait(folder: Path, name: str) -> None:
    """Work until a signal asks to save."""
    asked: list[int] = []
    with on_signal(asked.append):
        work(folder, name)
        while not asked:
            time.sleep(0.01)
        (folder / f"{name}-saved").touch()
    raise Stopped(asked[0])


def on_ray(folder: Path, name: str, workers: str) -> None:
    """Let a worker of the cluster count."""
    from toy_workers import Counter

    from sodp3d.parallel import make_workers

    with make_workers(workers, Counter, (5,), at_most=2) as counting:
        (folder / name).write_text(str(counting.call("add", [(1,)])))


if __name__ == "__main__":  # two that wait, until a signal
    run_side_by_side([Job(name, wait, (Path(sys.argv[1]), name)) for name in ("a", "b")], 2)
