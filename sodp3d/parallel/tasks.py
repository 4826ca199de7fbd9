"""Tasks side by side: each in a process of its own, whose lines are named, whose failure stops no other.

A job is one task of a set: its collection, its conversion, its fine-tuning. It keeps what it makes on the disk, so that
nothing but its outcome comes back, and what a stop or a kill left is gone on with by the same command.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from sodp3d.core.cli import MENDABLE
from sodp3d.core.errors import AlreadyFinishedError, InputError
from sodp3d.core.machine import core_count
from sodp3d.core.progress import LINE_SECONDS, LINE_VARIABLE
from sodp3d.core.stopping import Stopped, on_signal, stop_at_once
from sodp3d.parallel.local import environment_variables
from sodp3d.parallel.worker import WorkerError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """`function(*values)` for the task `name`. Both must be picklable: a function of a module, plain values."""

    name: str
    function: Callable[..., None]
    values: tuple[Any, ...]


def at_once(config: Mapping[str, Any], tasks: int) -> int:
    """How many of so many tasks run side by side: `tasks_at_once`, or one for each core."""
    return max(1, min(config.get("tasks_at_once") or core_count(), tasks))


def share_of(config: Mapping[str, Any], together: int) -> dict[str, Any]:
    """The configuration of one of several tasks that run `together`: one thread, and its part of the workers.

    What `threads=` and `workers=` name is taken for each task as it is. Tasks on Ray share one cluster.
    """
    if together == 1:
        return dict(config)
    workers = config["workers"]
    if workers == "ray":
        from sodp3d.parallel.ray import share_cluster

        workers = f"ray:{max(1, share_cluster() // together)}"
    elif workers is None:
        workers = max(1, core_count() // together)
    return {**config, "threads": config["threads"] or 1, "workers": workers}


def run_side_by_side(jobs: Sequence[Job], together: int, finished: Callable[[str], None] = lambda name: None) -> None:
    """Do all jobs, `together` of them at once; `finished(name)` is called, here, after each that came to its end.

    A job that fails stops no other. Raises InputError at the end where some failed by what a user can mend, WorkerError
    where one broke or died; Stopped after a signal, once every job has saved what it does.
    """
    waiting, running, failed = list(jobs), list[_Running](), dict[str, tuple[str, str]]()
    signals: list[int] = []

    def halt(number: int) -> None:
        if not signals and running:
            log.warning("stopping %d tasks: each saves first (once more to stop at once)", len(running))
        signals.append(number)
        for task in running:
            task.terminate()

    with on_signal(halt):
        try:
            while running or (waiting and not signals):
                while waiting and len(running) < together and not signals:
                    running.append(_Running(waiting.pop(0), together))
                    if signals:  # which came while it was started
                        running[-1].terminate()
                for task in _ended(running):
                    running.remove(task)
                    kind, message = task.outcome()
                    if kind == "done":
                        finished(task.job.name)
                    elif not signals:
                        failed[task.job.name] = kind, message
                        log.error("%s failed: %s", task.job.name, message)
        finally:
            for task in running:
                task.kill()
    if signals:
        raise Stopped(signals[-1])
    _raise_failures({job.name: failed[job.name] for job in jobs if job.name in failed}, len(jobs))


def _raise_failures(failed: Mapping[str, tuple[str, str]], count: int) -> None:
    if not failed:
        return
    lines = "".join(f"\n  {name}: {message}" for name, (_, message) in failed.items())
    told = (
        f"{len(failed)} of {count} tasks failed, and the others came to their end:{lines}\n"
        "The same command does only what is left."
    )
    raise InputError(told) if all(kind == "error" for kind, _ in failed.values()) else WorkerError(told)


class _Running:
    """A job in its process, and the thread that passes on its lines."""

    def __init__(self, job: Job, together: int) -> None:
        self.job = job
        context = multiprocessing.get_context("spawn")
        self.told, told_there = context.Pipe()
        said, said_there = context.Pipe(duplex=False)
        work = (told_there, said_there, job.function, job.values)
        self._process = context.Process(target=_work, args=work, name=job.name)
        variables = {LINE_VARIABLE: str(LINE_SECONDS * together)}
        if together > 1:
            variables |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with environment_variables(**variables):
            self._process.start()
        told_there.close()
        said_there.close()
        self._reader = threading.Thread(target=_pass_on, args=(said, job.name), daemon=True)
        self._reader.start()

    def terminate(self) -> None:
        """Ask it to save and stop; a second time, to stop at once."""
        self._process.terminate()

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self.outcome()

    def outcome(self) -> tuple[str, str]:
        """("done" | "error" | "broken" | "stopped", message), once it has ended."""
        try:
            found: tuple[str, str] | None = self.told.recv()
        except (EOFError, ConnectionResetError):
            found = None
        self._process.join()
        self._reader.join(timeout=5)  # a process that outlives it may hold its lines open
        self.told.close()
        return found or ("broken", f"its process died with exit code {self._process.exitcode}")


def _ended(running: Sequence[_Running]) -> list[_Running]:
    """Those that have told their outcome, or died; waits for the first."""
    ready = wait([task.told for task in running])
    return [task for task in running if task.told in ready]


def _pass_on(said: Connection, name: str) -> None:
    """Show a job's lines, each with its name."""
    with os.fdopen(os.dup(said.fileno()), encoding="utf-8", errors="replace") as lines:
        said.close()
        for line in lines:
            if line.strip():
                sys.stderr.write(line if line.startswith(name) else f"{name}: {line}")


def _work(told: Connection, said: Connection, function: Callable[..., None], values: tuple[Any, ...]) -> None:
    """A job's life, in its own process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle, which asks by SIGTERM
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    threading.Thread(target=_end_with_parent, args=(told,), daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    outcome = _done(function, values)
    sys.stdout.flush()
    told.send(outcome)


def _end_with_parent(told: Connection) -> None:
    """A parent that was killed leaves no job behind, which would hold what the same command goes on with."""
    try:
        told.recv()
    except (EOFError, OSError):
        os._exit(1)


def _done(function: Callable[..., None], values: tuple[Any, ...]) -> tuple[str, str]:
    try:
        with on_signal(stop_at_once):
            function(*values)
    except AlreadyFinishedError:
        return "done", ""
    except MENDABLE as error:
        return "error", str(error)
    except KeyboardInterrupt as error:
        return "stopped", str(error)
    except Exception as error:
        traceback.print_exc()
        return "broken", f"{type(error).__name__}: {error}"
    return "done", ""
