"""A point to be pushed to the origin, as collection workers see it, without processes or a simulator."""

from typing import Any

import numpy as np

from sodp3d.collection.agents.memory import Trajectory
from sodp3d.collection.environments import Finished
from sodp3d.data.schema import step_specification
from sodp3d.vision.camera import Camera, intrinsics

STEPS = 12
ENV_CONFIG = {"family": "toy", "task": "point", "action_repeat": 1, "episode_steps": STEPS, "camera": {}}
CAMERA = Camera(intrinsics(45.0, 3, 4), np.eye(4), 3, 4).to_dict()
ATTRIBUTES = {"env": "toy_point", "env_config": ENV_CONFIG, "camera": CAMERA, "renderer": "none"}
SPECIFICATION = step_specification(2, 2, 2, 2, 3, 4)


class Point:
    """Position x in the plane, x' = x + action / 5, reward -|x'|; ends early, as terminated, beyond |x| = 3."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.states = [np.random.default_rng(seed).uniform(-1, 1, 2).astype(np.float32)]
        self.actions: list[Any] = []
        self.rewards: list[Any] = []

    def step(self, action: Any) -> Finished | None:
        action = np.clip(action, -1, 1).astype(np.float32)
        self.states.append(self.states[-1] + action / 5)
        self.actions.append(action)
        distance = np.linalg.norm(self.states[-1])
        self.rewards.append(np.float32(-distance))
        if len(self.actions) < STEPS and distance < 3:
            return None
        states, actions, rewards = np.stack(self.states), np.stack(self.actions), np.stack(self.rewards)
        length = len(actions)
        steps = {
            "action": actions,
            "state": states[:-1],
            "agent_pos": states[:-1],
            "reward": rewards,
            "success": np.zeros(length, np.uint8),
            "depth": np.full((length, 3, 4), 7, np.uint16),
            "sim_state": states[:-1].astype(np.float64),
        }
        success = dict.fromkeys(("final", "count", "any"), bool(distance < 0.2))
        return Finished(self.seed, steps, states, actions, rewards, bool(distance >= 3), success)


class ToyWorkers:
    """Has the methods of sodp3d.parallel.Workers that collection uses; `fail_at` makes the n-th step raise."""

    def __init__(self, workers: int = 2, fail_at: int | None = None) -> None:
        self.fail_at, self.step_calls = fail_at, 0
        self.groups: list[list[Point]] = [[] for _ in range(workers)]
        self.answers: dict[int, Any] = {}
        self.seeds: list[int] = []

    def __len__(self) -> int:
        return len(self.groups)

    def call(self, method: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        for worker, values in enumerate(arguments):
            self.start(worker, method, *values)
        return [self.result(worker) for worker in range(len(arguments))]

    def start(self, worker: int, method: str, *arguments: Any) -> None:
        self.answers[worker] = getattr(self, f"_{method}")(worker, *arguments)

    def result(self, worker: int) -> Any:
        return self.answers.pop(worker)

    def _reset(self, worker: int, seeds: list[int], record: bool, image_size: int | None) -> Any:
        self.groups[worker] = [Point(seed) for seed in seeds]
        if record:
            self.seeds += seeds
        return np.stack([point.states[-1] for point in self.groups[worker]])

    def _step(self, worker: int, actions: Any) -> Any:
        self.step_calls += 1
        if self.step_calls == self.fail_at:
            raise KeyboardInterrupt
        running = list(self.groups[worker])
        finished = [point.step(action) for point, action in zip(running, actions, strict=True)]
        self.groups[worker] = [point for point, end in zip(running, finished, strict=True) if end is None]
        return np.stack([point.states[-1] for point in running]), finished


def demonstrations(count: int = 3) -> list[Trajectory]:
    """Points that go straight home."""
    shown = []
    for seed in range(count):
        point, finished = Point(seed), None
        while finished is None:
            finished = point.step(np.clip(-5 * point.states[-1], -1, 1))
        shown.append(Trajectory(finished.states, finished.actions, finished.rewards))
    return shown
