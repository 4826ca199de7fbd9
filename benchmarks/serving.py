"""A served planner under load: clients that ask without a pause, beside others that die and that send garbage.

The server runs in this process, the clients in one of their own. Latency is a client's: from before it packs an
observation to after it has unpacked the actions. python benchmarks/serving.py [--clients 8] [--minutes 10]
[--rate 0] [--depth] [--planner <run>] [options of train.py: env=adroit_hammer ...] -> results/benchmarks/serving.json
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import resource
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from evaluation import fresh_planner
from timing import write

from sodp3d.core.cli import compose
from sodp3d.core.device import prepare_torch
from sodp3d.core.errors import InputError
from sodp3d.envs.config import task_configs
from sodp3d.learning.lookup import with_sampler
from sodp3d.models.loading import planner_state
from sodp3d.serving.client import PolicyClient
from sodp3d.serving.planning import ServedPlanner, load_served
from sodp3d.serving.server import serve_in_background
from sodp3d.settings import ServeSettings
from sodp3d.vision.camera import camera_pose, intrinsics


def observation(metadata: dict[str, Any], depth: bool, chance: np.random.Generator) -> dict[str, Any]:
    """A message of random numbers: depth that lies inside the crop, or what the planner sees."""
    planner = metadata["planner"]
    seen = {"agent_pos": chance.uniform(-1, 1, planner["proprioception_size"]).astype(np.float32)}
    if not depth:
        shape = tuple(planner["sensor_shape"])
        if planner["observation"] == "image":
            return {**seen, "image": chance.integers(0, 256, shape).astype(np.uint8)}
        key = "point_cloud" if planner["observation"] == "pointcloud" else planner["observation"]
        return {**seen, key: chance.uniform(-0.3, 0.3, shape).astype(np.float32)}
    camera = metadata["view"]["camera"]
    size = camera["height"], camera["width"]
    # Adroit's camera looks down from 1.5 m, so these depths lie above its ground.
    pose = camera_pose(np.array([0.0, 0.0, 1.5]), np.eye(3).ravel())
    return {
        **seen,
        "depth": chance.integers(800, 1400, size).astype(np.uint16),
        "intrinsics": intrinsics(camera["fovy"], *size),
        "camera_pose": pose,
    }


def ask(url: str, end: float, period: float, depth: bool, seed: int, found: list[float]) -> None:
    """One client until `end`; adds the seconds of each answer to `found`."""
    chance = np.random.default_rng(seed)
    with PolicyClient(url) as client:
        client.reset(seed)
        shown = [observation(client.metadata, depth, chance) for _ in range(20)]
        step = 0
        while time.time() < end:
            begin = time.perf_counter()
            client.infer(shown[step % len(shown)])
            found.append(time.perf_counter() - begin)
            step += 1
            time.sleep(max(0.0, period - found[-1]))


def disturb(url: str, end: float, seed: int) -> None:
    """Clients that die in the middle of a plan, or send garbage, twice a second."""
    chance = random.Random(seed)
    while time.time() < end:
        with contextlib.suppress(InputError, OSError), PolicyClient(url) as client:
            client._connection.send(chance.randbytes(chance.randrange(1, 100_000)))
            with contextlib.suppress(InputError):
                client._receive()
            client._connection.send(chance.randbytes(100))
            client._connection.socket.close()
        time.sleep(0.5)


def clients(url: str, count: int, end: float, period: float, depth: bool, answers: Any) -> None:
    """What the clients' process does."""
    found: list[list[float]] = [[] for _ in range(count)]
    jobs = [threading.Thread(target=ask, args=(url, end, period, depth, seed, found[seed])) for seed in range(count)]
    jobs.append(threading.Thread(target=disturb, args=(url, end, 0)))
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    answers.put(found)


def memory() -> float:
    """MiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(served: ServedPlanner, arguments: argparse.Namespace) -> dict[str, Any]:
    """Latencies in milliseconds, rates, and memory after a tenth of the time and at the end."""
    period, seconds = (1 / arguments.rate if arguments.rate else 0.0), 60 * arguments.minutes
    served.warm_up()
    with serve_in_background(served, ServeSettings(port=0, max_clients=arguments.clients + 4)) as server:
        context = multiprocessing.get_context("spawn")
        answers = context.Queue()
        end = time.time() + seconds + 10  # the clients import what they need meanwhile
        process = context.Process(
            target=clients, args=(server.url, arguments.clients, end, period, arguments.depth, answers)
        )
        process.start()
        time.sleep(10 + seconds / 10)
        early, begun = memory(), (server.metrics.requests["planned"], time.time())
        time.sleep(max(0.0, end - 2 - time.time()))
        late, done = memory(), (server.metrics.requests["planned"], time.time())
        found = answers.get()
        process.join()
        requests, calls = dict(server.metrics.requests), server.metrics.plans
        rows = server.metrics.rows
    latency = 1000 * np.concatenate(found)
    return {
        "requests": requests,
        "actions_per_second": (done[0] - begun[0]) / (done[1] - begun[1]),
        "latency_ms": {f"p{p}": float(np.percentile(latency, p)) for p in (50, 90, 99)} | {"max": float(latency.max())},
        "observations_per_call": rows / calls,
        "fewest_and_most_of_a_client": [min(map(len, found)), max(map(len, found))],
        "memory_mib": {"after_a_tenth": early, "at_the_end": late},
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=0, help="of each client, observations a second; 0: no pause")
    parser.add_argument("--depth", action="store_true", help="send depth images instead of clouds")
    parser.add_argument("--planner", type=Path, help="a run directory or checkpoint; an untrained planner by default")
    parser.add_argument("options", nargs="*", help="of train.py")
    arguments = parser.parse_args()
    config = compose("train", ["mode=eval", *arguments.options])
    (task,), device = task_configs(config), prepare_torch(config)
    if arguments.planner:
        served = load_served(arguments.planner, device)
    else:
        planner = fresh_planner(with_sampler(config), task).to(device)
        served = ServedPlanner(planner, planner_state(planner, [task], "none"), "none")
    described = {
        "env": task.name,
        "observation": served.config.observation,
        "sent": "depth" if arguments.depth else served.config.sensor_key,
        "planner": str(arguments.planner or "untrained"),
        "sampling_steps": served.config.inference_steps,
        "cores": os.cpu_count(),
        "clients": arguments.clients,
        "minutes": arguments.minutes,
        "rate": arguments.rate,
    }
    write("serving_depth" if arguments.depth else "serving", described | measure(served, arguments))


if __name__ == "__main__":
    main()
