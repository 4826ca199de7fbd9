"""What this process may use of the machine: cores, idle ones, memory; and a word where steps take far too long."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 2**62
_LOOK = 0.2  # seconds, over which cores are watched


def core_count() -> int:
    """Cores that this process may run on: its affinity, and its container's quota, rounded up; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota()))


def idle_cores() -> int:
    """How many of them nothing else uses at the moment, rounded; at least 1."""
    cores, before = core_count(), _ticks()
    time.sleep(_LOOK)
    watched = [
        (idle - before[core][0]) / max(total - before[core][1], 1)
        for core, (idle, total) in _ticks().items()
        if core in before
    ]
    return max(1, min(cores, round(sum(watched)))) if watched else cores


def free_bytes() -> int:
    """Memory that can be taken without swapping: four fifths of what the machine and the container have left."""
    return int(0.8 * min(_machine_memory(), *_container_memory()))


def _quota() -> int:
    """Whole cores of the container's quota, versions 2 and 1; without one more than any machine has."""
    whole = _words(CGROUP / "cpu.max")
    if len(whole) == 2 and whole[0].isdigit():
        return -(-int(whole[0]) // int(whole[1]))
    quota, period = (_words(CGROUP / f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    if quota and period and int(quota[0]) > 0:
        return -(-int(quota[0]) // int(period[0]))
    return UNLIMITED


def _ticks() -> dict[int, tuple[int, int]]:
    """Of each core that this process may run on: ticks spent idle, and in all."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    found = {}
    for line in _text(PROC / "stat").splitlines():
        name, *counts = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in allowed:
            ticks = [int(count) for count in counts[:8]]
            found[int(name[3:])] = ticks[3] + ticks[4], sum(ticks)  # idle, and waiting for a disk
    return found


def _machine_memory() -> int:
    for line in _text(PROC / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return UNLIMITED  # not Linux: trust the operating system


def _container_memory() -> list[int]:
    """What each limit leaves: a container's files are its own reclaimable memory, so they count as free."""
    names = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    left = []
    for folder, limit, used in ((folder, *names[kind]) for kind in names for folder in _control_groups(kind)):
        words = _words(folder / limit)
        if words and words[0].isdigit() and int(words[0]) < UNLIMITED:
            taken = int((_words(folder / used) or ["0"])[0])
            lines = _text(folder / "memory.stat").splitlines()
            files = dict(line.split() for line in lines if len(line.split()) == 2)
            left.append(int(words[0]) - taken + int(files.get("inactive_file", files.get("total_inactive_file", 0))))
    return left or [UNLIMITED]


def _control_groups(controller: str) -> list[Path]:
    """Folders of this process's group and of all around it: a job of a cluster sits below its node's root.

    controller: of version 1; "" for version 2.
    """
    root = CGROUP / controller
    for line in _text(PROC / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            inside = Path(path.lstrip("/"))
            return [root / part for part in (inside, *inside.parents)]
    return [root]


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


class Pace:
    """Tells, at most once a minute, when a step took ten times its usual time, as beside other work."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self._clock = what, clock
        self._started = self._told = clock() - 60.0
        self._steps: list[float] = []
        self._usual: float | None = None  # the median of the quickest twenty steps in a row

    def begin(self) -> None:
        """A step begins."""
        self._started = self._clock()

    def end(self) -> None:
        """A step is done."""
        seconds = self._clock() - self._started
        if self._usual is not None and seconds > 10 * self._usual and self._clock() - self._told >= 60:
            self._told = self._clock()
            log.warning(
                "%s: a step took %.2g s instead of %.2g s, as beside other work on the same cores; a learner on the "
                "CPU loses least with threads=1",
                self.what,
                seconds,
                self._usual,
            )
        self._steps.append(seconds)
        if len(self._steps) == 20:
            median = sorted(self._steps)[10]
            self._usual = median if self._usual is None else min(self._usual, median)
            self._steps.clear()
