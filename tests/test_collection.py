"""The collection loop: what is committed, exact resumption, and that a kill loses at most the wave in flight."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_collection import ATTRIBUTES, SPECIFICATION, STEPS, ToyWorkers, demonstrations

from sodp3d.collection import agents
from sodp3d.collection.agents.scripted import Scripted
from sodp3d.collection.agents.vrl3 import VRL3
from sodp3d.collection.agents.vrl3_config import VRL3Config
from sodp3d.collection.collect import with_default_agent
from sodp3d.collection.loop import Collection
from sodp3d.core import checkpoint
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CHECKOUT
from sodp3d.core.run import Run
from sodp3d.core.seeds import FIRST_SEED, episode_seed
from sodp3d.data.store import EpisodeStore
from sodp3d.settings import CollectSettings

torch.set_num_threads(1)
AGENT = VRL3Config(hidden=8, features=4, batch_size=16, conservative_actions=2, offline_updates=250, online_std=0.3)
SETTINGS = CollectSettings(
    agent_steps=STEPS * 20, fraction=1.0, environments=4, checkpoint_every=STEPS * 8, evaluate_every=STEPS * 8,
    evaluation_episodes=5,
)  # fmt: skip


def make_agent() -> VRL3:
    return VRL3(AGENT, 2, 2, seed=5)


def open_store(folder: Path) -> EpisodeStore:
    path = folder / "episodes.zarr"
    if path.exists():
        return EpisodeStore.open(path, "a", ATTRIBUTES, SPECIFICATION)
    return EpisodeStore.create(path, ATTRIBUTES, SPECIFICATION)


def collect(
    folder: Path,
    workers: ToyWorkers,
    settings: CollectSettings = SETTINGS,
    stop_after: int | None = None,
    agent: agents.Agent | None = None,
) -> Collection:
    """What the command does; `stop_after`: ask to stop, as SIGTERM does, once so many episodes are committed."""
    run = Run(folder / "agent", {"agent": "toy"})
    agent = agent or make_agent()
    if not checkpoint.steps(run.checkpoints):
        agent.demonstrate(demonstrations())
    with open_store(folder) as store, run:
        if stop_after is not None:
            append = store.append

            def counted(*values: Any) -> int:
                index = append(*values)
                run.stop_requested = run.stop_requested or len(store) >= stop_after
                return index

            store.append = counted  # type: ignore[method-assign]
        collection = Collection(agent, store, run, workers, settings, seed=3)  # type: ignore[arg-type]
        collection.run_all()
    return collection


def contents(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    store = EpisodeStore.open(folder / "episodes.zarr")
    arrays = {key: store.read(key) for key in store.keys} | store.metadata | {"ends": store.episode_ends}
    metrics = [json.loads(line) for line in (folder / "agent" / "metrics.jsonl").read_text().splitlines()]
    return arrays, metrics


def test_every_finished_episode_is_committed_with_what_is_known_of_it(tmp_path: Path) -> None:
    workers = ToyWorkers()
    collect(tmp_path, workers)
    arrays, metrics = contents(tmp_path)
    store = EpisodeStore.open(tmp_path / "episodes.zarr")
    assert store.verify() == [] and store.steps >= SETTINGS.steps
    assert arrays["seed"].tolist() == workers.seeds == [episode_seed(3, 0, index) for index in range(len(store))]
    np.testing.assert_array_equal(arrays["agent_step"], arrays["ends"])
    np.testing.assert_allclose(arrays["episode_return"][0], arrays["reward"][: arrays["ends"][0]].sum(), rtol=1e-6)
    steps = [record["step"] for record in metrics]
    assert steps == sorted(steps) and steps[0] < 0 and steps[-1] == store.steps
    assert [r["step"] for r in metrics if "evaluation/return" in r] == [0, STEPS * 8, STEPS * 16, STEPS * 20]


def test_collection_never_uses_evaluation_seeds() -> None:
    drawn = [episode_seed(0, stream, index) for stream in (0, 1) for index in range(500)]
    assert len(set(drawn)) == 1000 and min(drawn) >= FIRST_SEED and max(drawn) < 2**31
    with pytest.raises(InputError, match=r"collect\.evaluation_seed: .* among 200000 to 299999"):
        replace(SETTINGS, evaluation_seed=FIRST_SEED)


def test_stopping_and_continuing_equals_never_having_stopped(tmp_path: Path) -> None:
    whole = collect(tmp_path / "whole", ToyWorkers())
    for stop_after in (3, 10):  # in the first wave, and between two checkpoints
        collect(tmp_path / "parts", ToyWorkers(workers=1), stop_after=stop_after)
    parts = collect(tmp_path / "parts", ToyWorkers())
    one, other = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    for key, values in one[0].items():
        np.testing.assert_array_equal(values, other[0][key], err_msg=key)
    assert one[1] == other[1]
    for name, value in whole.agent.state()[0].items():
        assert torch.equal(value, parts.agent.state()[0][name]), name


@pytest.mark.parametrize("fail_at", [1, 30, 95])
def test_a_kill_loses_at_most_the_wave_in_flight(tmp_path: Path, fail_at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path, ToyWorkers(fail_at=fail_at))
    before = EpisodeStore.open(tmp_path / "episodes.zarr")
    kept = before.metadata["seed"].tolist()
    collection = collect(tmp_path, ToyWorkers())
    after = EpisodeStore.open(tmp_path / "episodes.zarr")
    seeds = after.metadata["seed"].tolist()
    assert seeds[: len(kept)] == kept and len(set(seeds)) == len(seeds) and after.steps >= SETTINGS.steps
    agent = collection.agent
    assert isinstance(agent, VRL3) and agent.offline_done == AGENT.offline_updates  # stage 2 was not repeated
    # All committed steps are in the replay, but for the last ones of recovered episodes (their next state is unknown).
    assert after.steps - 8 <= agent.replay.online <= after.steps
    steps = [record["step"] for record in contents(tmp_path)[1]]
    assert steps == sorted(steps)


def test_an_evaluation_that_a_kill_prevented_is_made_when_it_goes_on(tmp_path: Path) -> None:
    workers = ToyWorkers()
    collect(tmp_path / "whole", workers)
    whole = [record for record in contents(tmp_path / "whole")[1] if "evaluation/return" in record]
    for fail_at in (1, workers.step_calls):  # in the first one, after stage 2, and in the last one
        folder = tmp_path / str(fail_at)
        with pytest.raises(KeyboardInterrupt):
            collect(folder, ToyWorkers(fail_at=fail_at))
        collect(folder, ToyWorkers())
        found = [record for record in contents(folder)[1] if "evaluation/return" in record]
        assert [record["step"] for record in found] == [record["step"] for record in whole], fail_at


def test_an_evaluation_that_is_asked_for_when_all_is_collected_is_made_once(tmp_path: Path) -> None:
    for every in (0, STEPS * 8, STEPS * 8):
        collect(tmp_path, ToyWorkers(), replace(SETTINGS, evaluate_every=every))
    assert [record["step"] for record in contents(tmp_path)[1] if "evaluation/return" in record] == [STEPS * 20]


def test_what_is_explored_after_a_kill_is_new(tmp_path: Path) -> None:
    """The stream of random actions goes neither back to the checkpoint nor on from it."""
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "killed", ToyWorkers(fail_at=30), agent=Scripted(None, 2, 0.0, seed=0))
    for name in ("killed", "whole"):
        collect(tmp_path / name, ToyWorkers(), agent=Scripted(None, 2, 0.0, seed=0))
    killed, whole = contents(tmp_path / "killed")[0], contents(tmp_path / "whole")[0]
    np.testing.assert_array_equal(killed["action"], whole["action"])
    episodes = np.split(killed["action"], killed["ends"][:-1])
    assert len({episode.tobytes() for episode in episodes}) == len(episodes)


def test_asking_for_more_continues_and_asking_again_does_nothing(tmp_path: Path) -> None:
    collect(tmp_path, ToyWorkers())
    workers = ToyWorkers()
    collect(tmp_path, workers)
    assert workers.seeds == []
    collect(tmp_path, workers, replace(SETTINGS, agent_steps=SETTINGS.steps + STEPS * 4))
    assert len(workers.seeds) == 4


def test_a_store_that_lost_episodes_is_refused(tmp_path: Path) -> None:
    collect(tmp_path, ToyWorkers())
    (tmp_path / "episodes.zarr").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"its checkpoint knows 20 episodes, but .* holds only 0"):
        collect(tmp_path, ToyWorkers())


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match=r"collect\.environments: expected a whole number of at least 1, got 0"):
        replace(SETTINGS, environments=0)
    with pytest.raises(InputError, match=r"collect\.evaluation_seed: expected all of 20 .* got 100000 as the first"):
        CollectSettings(evaluation_seed=100_000)  # the test's
    with pytest.raises(InputError, match=r"collect\.evaluation_episodes: .* with collect\.evaluate_every=10000, got 0"):
        CollectSettings(evaluation_episodes=0)


@pytest.mark.parametrize(("quality", "steps"), [("suboptimal", 90_000), ("nearoptimal", 300_000), ("all", 300_000)])
def test_quality_decides_how_far_the_agent_runs(quality: str, steps: int) -> None:
    config = compose("collect", ["env=adroit_door", f"collect.quality={quality}"])
    assert CollectSettings(**config["collect"]).steps == steps


def test_quality_is_checked() -> None:
    with pytest.raises(InputError, match=r"collect\.quality: expected one of suboptimal, nearoptimal, all, got 'best'"):
        CollectSettings(**compose("collect", ["collect.quality=best"])["collect"])


@pytest.mark.slow
def test_killed_command_continues(tmp_path: Path) -> None:
    options = [
        "env=adroit_door", "agent=scripted", "agent.policy=random", "env.episode_steps=8", "env.camera.height=16",
        "env.camera.width=16", "render=raycast", "workers=2", "threads=1", f"root={tmp_path}", "collect.fraction=1",
        "collect.agent_steps=96", "collect.environments=2", "collect.checkpoint_every=32", "collect.evaluate_every=0",
    ]  # fmt: skip
    command = [sys.executable, str(CHECKOUT / "data_collection" / "collect.py"), *options]
    path = tmp_path / "data" / "adroit_door" / "episodes.zarr"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not (path / ".zattrs").exists() or len(EpisodeStore.open(path)) < 3):
            time.sleep(0.02)
        assert process.poll() is None, "it ended before it could be killed"
        process.kill()
    kept = EpisodeStore.open(path).metadata["seed"].tolist()
    refused = subprocess.run([*command, "seed=1"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "seed: 0 there, 1 here" in refused.stderr and "data=<folder>" in refused.stderr
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    store = EpisodeStore.open(path)
    seeds = store.metadata["seed"].tolist()
    assert store.verify() == [] and store.steps == 96
    assert seeds == [episode_seed(0, 0, index) for index in range(12)] and seeds[: len(kept)] == kept


@pytest.mark.slow
def test_a_set_is_collected_task_by_task_and_finished_tasks_are_left_alone(tmp_path: Path) -> None:
    options = [
        "env=mt10_paper", "agent=scripted", "env.episode_steps=6", "env.camera.height=16", "env.camera.width=16",
        "render=raycast", "workers=1", "threads=1", f"root={tmp_path}", "collect.fraction=1", "collect.agent_steps=24",
        "collect.environments=2", "collect.evaluate_every=0",
    ]  # fmt: skip
    changed = []
    for tasks in ("[drawer-close]", "[drawer-close,reach]"):
        command = [sys.executable, str(CHECKOUT / "data_collection" / "collect.py"), *options, f"env.tasks={tasks}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        first = tmp_path / "data" / "metaworld_drawer-close"
        changed.append((first / "episodes.zarr" / "meta" / "episode_ends" / "0").stat().st_mtime_ns)
    assert changed[0] == changed[1]
    for task in ("drawer-close", "reach"):
        assert EpisodeStore.open(tmp_path / "data" / f"metaworld_{task}" / "episodes.zarr").steps == 24


@pytest.mark.parametrize("damage", ["loop", "agent", "tensors"])
def test_a_damaged_checkpoint_is_one_message(tmp_path: Path, damage: str) -> None:
    collect(tmp_path, ToyWorkers(), stop_after=9)
    newest = max((tmp_path / "agent/checkpoints").iterdir())
    if damage == "tensors":
        (newest / checkpoint.TENSORS).write_bytes(b"nothing")
    else:
        state = json.loads((newest / checkpoint.STATE).read_text())
        del state[damage]
        (newest / checkpoint.STATE).write_text(json.dumps(state))
    with pytest.raises(InputError, match="agent/checkpoints/"):
        collect(tmp_path, ToyWorkers())


def test_a_sweep_over_envs_of_different_agents_needs_one_named() -> None:
    assert with_default_agent(["-m", "env=adroit_door,adroit_pen"])[0] == "agent=vrl3"
    assert with_default_agent(["env=metaworld", "env.task=push"])[0] == "agent=sac"
    assert with_default_agent(["-m", "env=adroit_door,metaworld", "agent=rlpd"])[-1] == "agent=rlpd"
    with pytest.raises(InputError, match=r"agent: these envs .* \(sac, vrl3\); sweep them one by one, or give agent="):
        with_default_agent(["-m", "env=adroit_door,metaworld"])
