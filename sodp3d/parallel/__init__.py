"""One interface to workers: each holds one object, and calls on it run side by side.

Collection, conversion and roll-outs go through it. There are two kinds of workers, local processes (`local.py`) and
actors of a Ray cluster (`ray.py`); `make_workers` chooses. The object (with its environments and renderer) is made
where it lives. A worker that died is replaced by `Workers.revive`. What it held is gone: whoever gave it work begins
that anew.
"""

import re
from collections.abc import Callable
from typing import Any

from sodp3d.core.errors import InputError
from sodp3d.core.machine import core_count
from sodp3d.parallel.local import LocalWorker
from sodp3d.parallel.pool import ATTEMPTS, Workers
from sodp3d.parallel.worker import Answer, Holder, Worker, WorkerDiedError, WorkerError

__all__ = [
    "ATTEMPTS",
    "Answer",
    "Holder",
    "LocalWorker",
    "Worker",
    "WorkerCount",
    "WorkerDiedError",
    "WorkerError",
    "Workers",
    "make_workers",
]

# The option `workers`: number of local processes (null: one per core), ray, ray:<number>.
WorkerCount = int | str | None


def make_workers(
    workers: WorkerCount, factory: Callable[..., Any], values: tuple[Any, ...], at_most: int, threads: int = 1
) -> Workers:
    """Workers that all hold `factory(*values)`: as many as the option `workers` says, `at_most` so many.

    Under Ray the number is that of the cluster's CPUs unless given. Raises InputError for anything but a number, null,
    ray and ray:<number>, and where Ray is not installed or no cluster answers.
    """
    count, on_ray = _parse(workers)
    if not on_ray:
        return Workers(factory, [values] * min(count or core_count(), at_most), threads)
    try:
        from sodp3d.parallel.ray import RayWorker, connect
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise InputError(
            f"workers: {workers} needs Ray, which is not installed: pip install 'ray>=2.60,<3', or give a number."
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
