"""What pre-training costs as tasks grow: time and memory of one, ten and fifty stores of clouds, in memory and mapped.

Every case is a process of its own, so that its memory is its own. Stores are made up, at Meta-World's sizes.

python benchmarks/tasks.py [--transitions 2000] [--batches 100] [--steps 10] [options of train.py]
-> results/benchmarks/tasks.json
"""

import argparse
import gc
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mapped import SIZES, seconds, step_seconds, windows
from reading import make_store
from timing import write

from sodp3d.core.cli import compose
from sodp3d.core.device import prepare_torch
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import task_configs
from sodp3d.learning.lookup import with_sampler

COUNTS = (1, 10, 50)


def resident() -> int:
    """Bytes of memory that are this process's alone; what it maps of files is the kernel's to take back."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def measure(paths: list[Path], memory: str, batches: int, steps: int, options: list[str]) -> dict[str, Any]:
    """Of pre-training on these stores: to have its windows ready, a batch, a step, and the memory they take."""
    config = with_sampler(compose("train", ["mode=pretrain", *SIZES, *options]))
    task, batch = task_configs(config)[0], config["pretrain"]["batch_size"]
    prepare_torch(config)
    before, start = resident(), time.perf_counter()
    data = windows([EpisodeStore.open(path) for path in paths], task, memory)
    ready = time.perf_counter() - start
    gc.collect()
    held = resident() - before
    taken = seconds(data, batch, 2 * batches)[batches:]
    return {
        "stores": len(paths),
        "memory": memory,
        "transitions": len(data),
        "seconds_until_ready": ready,
        "megabytes_of_windows": held / 1e6,
        "seconds_a_batch": float(np.median(taken)),
        "seconds_a_step": step_seconds(config, data, task, steps),
        "megabytes_at_most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=2000, help="of each store")
    parser.add_argument("--batches", type=int, default=100, help="to read, after as many to warm up")
    parser.add_argument("--steps", type=int, default=10, help="of pre-training")
    parser.add_argument("options", nargs="*", help="of train.py")
    given = parser.parse_args()
    task = task_configs(compose("train", ["mode=pretrain", *SIZES, *given.options]))[0]
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # not in /tmp, which may be memory
        paths = [Path(folder) / f"{number}.zarr" for number in range(max(COUNTS))]
        for path in paths:
            make_store(path, task, given.transitions)
        for count in COUNTS:
            for memory in ("ram", "mapped", "mapped"):  # made, then found
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                    asked = paths[:count], memory, given.batches, given.steps, given.options
                    cases.append(alone.submit(measure, *asked).result())
    write("tasks", {"points": task.points, "transitions_of_each": given.transitions, "cases": cases})


if __name__ == "__main__":
    main()
