"""How many pre-training steps one and two processes take in a second, with the same whole batch of door's planner.

Each process has one thread, so that two of them have two cores; beside them one process with both. What each round
begins takes turns. On a machine with two cores, which nothing else uses, or the figures mean little.

python benchmarks/processes.py [--batch 256] [--steps 8] [--rounds 3] -> results/benchmarks/processes.json
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time

import torch
from clouds import surface_clouds
from timing import write
from training import ACTIONS, HORIZON, JOINTS, POINTS, SETTINGS, STEPS, make_planner

from sodp3d.learning.pretrain import Pretraining
from sodp3d.learning.processes import join

WAYS = {"one": (1, 1), "one_with_two_threads": (1, 2), "two": (2, 1)}  # processes, threads of each


def step_seconds(batch: int, steps: int) -> float:
    """The median of this process's steps, after two to warm up."""
    with join(torch.device("cpu")) as processes:
        training = Pretraining(make_planner(), SETTINGS, seed=0, processes=processes)
        rows = processes.rows(batch)
        size = rows.stop - rows.start
        clouds = surface_clouds(size * STEPS, POINTS).view(size, STEPS, POINTS, 3)
        windows = {"point_cloud": clouds, "agent_pos": torch.rand(size, STEPS, JOINTS)}
        windows["action"] = torch.rand(size, HORIZON, ACTIONS)
        seconds = []
        for _ in range(steps + 2):
            processes.any(False)  # as the trainer asks at every step
            begin = time.perf_counter()
            training.update(dict(windows))
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[2:])


def measured(processes: int, threads: int, options: list[str]) -> float:
    """`step_seconds` of the main one of so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
    around = {**os.environ, "MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in shared.items()}}
    begun = [
        subprocess.Popen(
            [sys.executable, __file__, "--measure", str(threads), *options],
            env={**around, "RANK": str(index), "LOCAL_RANK": str(index)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    told = [process.communicate()[0] for process in begun]
    if any(process.returncode for process in begun):
        sys.exit("a process failed; its own message is above")
    return float(told[0].split()[-1])


def main() -> None:
    """Measure and write; with --measure, be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", type=int, metavar="THREADS", help="for the processes that are begun")
    arguments = parser.parse_args()
    if arguments.measure:
        torch.set_num_threads(arguments.measure)
        print(step_seconds(arguments.batch, arguments.steps))
        return
    options = ["--batch", str(arguments.batch), "--steps", str(arguments.steps)]
    seconds = dict.fromkeys(WAYS, float("inf"))
    for _ in range(arguments.rounds):
        for name, way in WAYS.items():
            seconds[name] = min(seconds[name], measured(*way, options))
    parameters = sum(parameter.numel() for parameter in make_planner().parameters())
    ratios = {name: seconds["one"] / value for name, value in seconds.items()}
    found = {"parameters": parameters, "seconds_per_step": seconds, "times_faster_than_one": ratios}
    given = {name: value for name, value in vars(arguments).items() if name != "measure"}
    write("processes", {**given, **found, "steps_per_second": {name: 1 / value for name, value in seconds.items()}})


if __name__ == "__main__":
    main()
