"""Workers on a Ray cluster, for `workers=ray`: the one module that imports Ray.

Every machine of the cluster needs this package. Collection and roll-outs send episodes back to the process that asked
for them; conversion reads the store by its path, so that path must lead to the same files on every machine.

Workers reserve no CPU, because the groups of workers of one command (roll-outs and their evaluation) take turns. Ray
does not spread what reserves nothing evenly, so each worker names the machine it prefers: they go round by CPUs.
"""

import itertools
import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sodp3d.core import registry
from sodp3d.core.errors import InputError
from sodp3d.parallel.worker import Answer, Holder, WorkerDiedError

log = logging.getLogger(__name__)


class _Host:
    """The actor. The factory stays pickled until the number of threads is set: libraries read it when imported."""

    def __init__(self, work: bytes, threads: int, plugins: str) -> None:
        os.environ.update(OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads))
        os.environ[registry.VARIABLE] = plugins
        self._work = work
        self._holder: Holder | None = None

    def call(self, call: bytes) -> bytes:
        """The pickled Answer of a pickled (method, arguments)."""
        if self._holder is None:
            self._holder = Holder(*pickle.loads(self._work))
        return pickle.dumps(self._holder.call(*pickle.loads(call)), protocol=pickle.HIGHEST_PROTOCOL)


_ACTOR = ray.remote(_Host)
_turn = itertools.count()


class RayWorker:
    """A Ray actor, with `threads` CPU threads for its numerical libraries (as `workers.Worker`).

    What goes there and back is pickled here and not by Ray, whose arrays would be read-only views of its object store.
    """

    def __init__(self, factory: Callable[..., Any], values: tuple[Any, ...], threads: int) -> None:
        places = _places()
        place = NodeAffinitySchedulingStrategy(places[next(_turn) % len(places)], soft=True) if places else None
        plugins = os.environ.get(registry.VARIABLE, "")
        work = pickle.dumps((factory, values))
        self._actor: Any = _ACTOR.options(scheduling_strategy=place).remote(work, threads, plugins)
        self._call: Any = None

    def start(self, method: str, arguments: tuple[Any, ...]) -> None:
        """As `Worker.start`."""
        self._call = self._actor.call.remote(pickle.dumps((method, arguments)))

    def answer(self) -> Answer:
        """As `Worker.answer`. A result that was lost with its machine counts as a death too."""
        call, self._call = self._call, None  # lets the object store forget the result
        try:
            answer: Answer = pickle.loads(ray.get(call))
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())
            raise WorkerDiedError(f"{type(error).__name__}: {reason}") from None
        return answer

    def stop(self) -> None:
        """As `Worker.stop`."""
        ray.kill(self._actor)

    def wait(self) -> None:
        """Nothing to wait for: Ray ends it."""


def connect() -> int:
    """Join the cluster at RAY_ADDRESS, or the one that runs on this machine, or start one here; its number of CPUs.

    Raises InputError where nothing answers at RAY_ADDRESS, and for a cluster without CPUs.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here reports to nobody
        handler, main = signal.getsignal(signal.SIGTERM), threading.current_thread() is threading.main_thread()
        try:
            ray.init(logging_level=logging.WARNING)
        except (ConnectionError, ValueError) as error:
            raise InputError(
                f"RAY_ADDRESS: no Ray cluster answers at {os.environ.get('RAY_ADDRESS')} ({error}). Start one with "
                f"ray start --head, and add machines with ray start --address=<head>."
            ) from error
        finally:
            if main:
                signal.signal(signal.SIGTERM, handler)  # Ray sets its own, but commands have theirs
    places = _places()
    log.info("Ray cluster of %d machines with %d CPUs", len(set(places)), len(places))
    if not places:
        raise InputError("workers: no machine of the Ray cluster has a CPU to work with; add one with ray start.")
    return len(places)


def share_cluster() -> int:
    """Join or start a cluster as `connect`, which processes started from here then join too; its number of CPUs."""
    cpus = connect()
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    return cpus


def _places() -> list[str]:
    """Ids of the living machines, each as often as it has CPUs: all once, then those with two or more again, ..."""
    cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
    return [node for turn in range(max(cpus.values(), default=0)) for node in sorted(cpus) if cpus[node] > turn]
