"""Collection, and roll-outs, of an environment in which an episode follows from its seed and its actions alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np
from toy_env import Slider, slider_env

from sodp3d.collection.environments import CollectionGroup
from sodp3d.envs.base import RobotEnv
from sodp3d.envs.wrappers import ChunkedEnv
from sodp3d.rollouts.group import EnvironmentGroup
from sodp3d.vision.pointcloud import CropConfig

if TYPE_CHECKING:  # workers import this module, and need neither
    import pytest

    from sodp3d.rollouts.rollout import Rollouts

STEPS = 8
EPISODES = 12
AT_ONCE = 4
CROP = CropConfig((-np.inf,) * 3, (np.inf,) * 3)


class SeededSlider(Slider):
    """Starts where the seed says."""

    def reset(self, seed: int) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[0] = np.random.default_rng(seed).uniform(-0.3, 0.3)
        self.forward()


def make_slider() -> RobotEnv:
    """With ray casting, and frames that show the slider wherever it may go."""
    config = slider_env(episode_steps=STEPS, points=12, crop=CROP).config
    return RobotEnv(config, SeededSlider(), "raycast")


class SliderGroup(CollectionGroup):
    """What a collection worker holds."""

    def __init__(self) -> None:
        super().__init__(make_slider().config, "raycast")

    def _environment(self, slot: int) -> RobotEnv:
        while len(self._environments) <= slot:
            self._environments.append(make_slider())
        return self._environments[slot]


class SliderChunks(EnvironmentGroup):
    """What a roll-out worker holds."""

    def _first(self, count: int) -> list[ChunkedEnv]:
        while len(self._environments) < count:
            environment = RobotEnv(self._config, SeededSlider(), "raycast")
            self._environments.append(ChunkedEnv(environment, "state", "torch"))
        return super()._first(count)


@contextmanager
def slider_rollouts(monkeypatch: "pytest.MonkeyPatch", environments: int, workers: int = 1) -> "Iterator[Rollouts]":
    """Roll-outs of it, seen as states."""
    from sodp3d.rollouts import rollout

    monkeypatch.setattr(rollout, "EnvironmentGroup", SliderChunks)
    with rollout.Rollouts(make_slider().config, "state", "raycast", "torch", workers, environments) as made:
        yield made


class Policy:
    """Depends on the state alone; `at_call(n)` is called before its n-th action."""

    def __init__(self, at_call: Callable[[int], None]) -> None:
        self.calls, self.at_call = 0, at_call

    def get_action(self, state: np.ndarray) -> np.ndarray:
        self.calls += 1
        self.at_call(self.calls)
        return np.sin(17 * state)


def collect(folder: Path, workers: Any, at_call: Callable[[int], None] = lambda number: None) -> Path:
    """What the command does, as far as workers go; returns the store."""
    from sodp3d.collection.agents.scripted import Scripted
    from sodp3d.collection.collect import open_store
    from sodp3d.collection.loop import Collection
    from sodp3d.core.run import Run
    from sodp3d.parallel import make_workers
    from sodp3d.settings import CollectSettings

    settings = CollectSettings(
        agent_steps=STEPS * EPISODES, fraction=1.0, environments=AT_ONCE, checkpoint_every=10**6, evaluate_every=0,
        evaluation_episodes=0,
    )  # fmt: skip
    with make_workers(workers, SliderGroup, (), at_most=AT_ONCE) as pool:
        (facts,) = pool.call("describe", [()])
        agent = Scripted(Policy(at_call), facts["action_size"], noise=0.0, seed=0)
        run = Run(folder / "agent", {"agent": "toy"})
        with open_store(folder, make_slider().config, facts, {"seed": 3, "agent": {"name": "toy"}}) as store, run:
            Collection(agent, store, run, pool, settings, seed=3).run_all()
            assert store.steps >= settings.steps
    return folder / "episodes.zarr"


def assert_same(one: Path, other: Path, *derived: str) -> None:
    """Two stores hold the same, byte for byte: episodes, what is known of them, and the `derived` keys."""
    from sodp3d.data.store import EpisodeStore

    first, second = EpisodeStore.open(one), EpisodeStore.open(other)
    assert first.verify() == second.verify() == []
    np.testing.assert_array_equal(first.episode_ends, second.episode_ends)
    for key, values in first.metadata.items():
        np.testing.assert_array_equal(values, second.metadata[key], err_msg=key)
    for key in (*first.specification, *derived):
        assert first.read(key).tobytes() == second.read(key).tobytes(), key
