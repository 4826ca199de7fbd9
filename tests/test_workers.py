import logging
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from toy_planner import SLIDER, make_planner
from toy_slider import EPISODES, assert_same, collect, slider_rollouts
from toy_workers import Counter, MortalMaker, assert_errors_are_told

from sodp3d.collection.agents.scripted import Scripted
from sodp3d.collection.waves import Waves
from sodp3d.core.errors import InputError
from sodp3d.core.seeds import COLLECTION, episode_seed
from sodp3d.data.derived import in_order
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig
from sodp3d.models.planner import ChainOptions
from sodp3d.parallel import ATTEMPTS, Answer, WorkerDiedError, Workers, make_workers

torch.set_num_threads(1)


def kill_one_worker() -> None:
    """As the kernel does when memory runs out."""
    multiprocessing.active_children()[-1].kill()


def test_each_worker_keeps_its_own_object_in_its_own_process() -> None:
    with Workers(Counter, [(0,), (100,)]) as workers:
        assert workers.call("add", [(1,), (2,)]) == [1, 102]
        assert workers.call("add", [(1,), (2,)]) == [2, 104]
        processes = workers.call("process", [(), ()])
        assert len({*processes, os.getpid()}) == 3


def test_errors_and_deaths_are_told_and_others_go_on() -> None:
    with Workers(Counter, [(0,), (0,)]) as workers:
        assert_errors_are_told(workers)
        workers.start(1, "die")
        with pytest.raises(WorkerDiedError, match="died with exit code -9"):
            workers.result(1)
        workers.start(1, "add", 1)
        with pytest.raises(WorkerDiedError, match="died with exit code -9"):
            workers.result(1)
        workers.start(0, "add", 5)
        assert workers.result(0) == 5
        workers.revive(1)
        workers.start(1, "add", 7)
        assert workers.result(1) == 7


def test_a_call_whose_worker_dies_is_made_by_a_fresh_one_but_not_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Workers(Counter, [(5,)]) as workers, caplog.at_level(logging.WARNING):
        assert workers.call("die_unless", [(str(tmp_path / "died"),)]) == [5]
        assert "exit code -9). A fresh one takes over (attempt 2 of 4)" in caplog.text
        caplog.clear()
        with pytest.raises(WorkerDiedError, match=r"worker 0 .*exit code -9"):
            workers.call("die", [()])
        assert len(caplog.messages) == 3


def test_a_worker_killed_during_collection_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def at_call(number: int) -> None:
        if number in (10, 60):  # in the first wave and in the second
            kill_one_worker()

    with caplog.at_level(logging.WARNING):
        killed = collect(tmp_path / "killed", 2, at_call)
    assert caplog.text.count("2 unfinished episodes start anew") == 2
    seeds = EpisodeStore.open(killed).metadata["seed"].tolist()
    assert seeds == [episode_seed(3, COLLECTION, index) for index in range(len(seeds))] and len(seeds) >= EPISODES
    assert_same(collect(tmp_path / "alone", 1), killed)


class DyingWorker:
    """Begins every episode, in this process, and finishes none."""

    began: ClassVar[list[int]] = []

    def __init__(self, *_: Any) -> None:
        self.method, self.arguments = "", ()

    def start(self, method: str, arguments: tuple[Any, ...]) -> None:
        self.method, self.arguments = method, arguments

    def answer(self) -> Answer:
        if self.method == "step":
            raise WorkerDiedError("it died")
        self.began.extend(self.arguments[0])
        return "value", np.zeros((len(self.arguments[0]), 2), np.float32)

    def stop(self) -> None:
        pass

    wait = stop


def test_collection_gives_up_when_workers_keep_dying() -> None:
    DyingWorker.began.clear()
    agent = Scripted(None, action_size=2, noise=0.0, seed=0)
    with pytest.raises(WorkerDiedError, match=r"worker 0 \(it died\)\."):
        Waves(Workers(DyingWorker, [()], kind=DyingWorker)).run(agent, [1, 2], explore=True, record=True)
    assert DyingWorker.began == [1, 2] * ATTEMPTS


def test_a_dead_workers_episode_is_made_by_a_fresh_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = [values[0].item() for values in in_order(MortalMaker, (str(tmp_path),), range(2, 7), 2)]
    assert made == [2, 3, 4, 5, 6]
    assert caplog.text.count("A fresh one takes over") == 2  # for episodes 3 and 6


def test_a_worker_killed_during_rollouts_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = make_planner(SLIDER)
    encode, calls = planner.encode, []

    def killing(observation: dict[str, torch.Tensor]) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            kill_one_worker()
        return encode(observation)

    with slider_rollouts(monkeypatch, 3, workers=2) as rollouts:
        expected = rollouts.run(planner, [7, 8, 9], ChainOptions(), keep_chains=True)
        monkeypatch.setattr(planner, "encode", killing)
        found = rollouts.run(planner, [7, 8, 9], ChainOptions(), keep_chains=True)
    assert len(calls) > len(expected[0].actions)
    for one, other in zip(expected, found, strict=True):
        assert one.seed == other.seed and one.length == other.length and one.success == other.success
        np.testing.assert_allclose(np.concatenate(one.actions), np.concatenate(other.actions), atol=1e-4)
        torch.testing.assert_close(torch.stack(one.latents), torch.stack(other.latents), atol=1e-4, rtol=0)


class Pusher:
    """Moves the slider by +0.1 m a raw frame."""

    def begin(self, task: EnvConfig, seed: int) -> None: ...

    def act(self, observation: dict[str, np.ndarray], memories: list[None]) -> np.ndarray:
        return np.ones((len(memories), 3, 1), np.float32)


def test_an_episode_knows_after_which_chunk_each_metric_was_achieved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are of 3 steps of 2 raw frames; the goal is x > 0.25, and `count` asks for more than 2 such frames."""
    with slider_rollouts(monkeypatch, 5) as rollouts:
        episodes = rollouts.run(Pusher(), [3, 4, 5, 6, 7])
    for episode in episodes:
        start = np.random.default_rng(episode.seed).uniform(-0.3, 0.3)
        first = next(frame for frame in range(1, 20) if start + 0.1 * frame > 0.25)
        assert episode.achieved["any"] == -(-first // 6)
        assert episode.achieved["count"] == -(-(first + 2) // 6)
        assert all(episode.success.values()) and len(episode.actions) >= max(episode.achieved.values())
    assert len({episode.achieved["count"] for episode in episodes}) > 1


@pytest.mark.parametrize("value", ["rays", "ray:", "ray:0", -1, 2.5, True])
def test_anything_else_than_a_number_or_ray_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="workers: expected a number of processes, null, ray or ray:<number>, got"):
        make_workers(value, Counter, (0,), at_most=2)  # type: ignore[arg-type]


def test_ray_is_asked_for_but_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "sodp3d.parallel.ray", raising=False)
    with pytest.raises(InputError, match=r"workers: ray:2 needs Ray.*pip install 'ray>=2\.60,<3'"):
        make_workers("ray:2", Counter, (0,), at_most=2)
