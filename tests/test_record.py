"""Recorded demonstrations: what is written is what collection loads."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from sodp3d.collection import demos
from sodp3d.collection.agents import Agent
from sodp3d.collection.collect import check_demonstrations
from sodp3d.collection.environments import Finished
from sodp3d.collection.record import Kept, _began, _shown_by, folder_of, record, save
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.envs.config import EnvConfig
from sodp3d.settings import DemonstrationSettings

ENV = EnvConfig.from_config(compose("collect", ["agent=vrl3"])["env"])


def finished(seed: int) -> Finished:
    random = np.random.default_rng(seed)
    states = random.normal(size=(101, 39)).astype(np.float32)
    actions = random.uniform(-1, 1, (100, 28)).astype(np.float32)
    return Finished(
        seed, {}, states, actions, np.ones(100, np.float32), False, dict.fromkeys(("final", "count", "any"), True)
    )


def test_recorded_episodes_load_as_demonstrations_and_the_card_says_how_they_were_made(tmp_path: Path) -> None:
    episodes = [finished(seed) for seed in (5, 6)]
    config = {"agent": {"name": "vrl3"}, "demos": "/some/where/door-expert-v0", "demo_episodes": 25, "seed": 3}
    (tmp_path / ".mine.partial/data").mkdir(parents=True)  # left by a recording that was killed
    agent = SimpleNamespace(needs_demonstrations=True, scripted_episodes=0)
    began = _began(cast(Agent, agent), config, ENV)
    save(tmp_path / "mine", ENV, Kept(episodes, attempts=7, steps=1234, config=config, began=began))
    loaded = demos.load(ENV, str(tmp_path / "mine"), (39, 28), 25, 25)
    assert len(loaded.trajectories) == 2
    for trajectory, episode in zip(loaded.trajectories, episodes, strict=True):
        np.testing.assert_array_equal(trajectory.actions, episode.actions)
        np.testing.assert_array_equal(trajectory.states, episode.states)
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "of 7 roll-outs" in card and "1234 control steps with seed 3" in card and "(door-expert-v0)" in card
    everything = card + (tmp_path / "mine" / "data" / "metadata.json").read_text()
    assert "/some/where" not in everything
    assert {path.name for path in tmp_path.iterdir()} == {".mine.partial", "mine"}


def test_what_an_agent_began_with_is_told_as_it_was() -> None:
    trained = {"demos": None, "demo_episodes": None}
    for needs, scripted, told in (
        (True, 0, "from all demonstrations"),
        (False, 25, "after 25 episodes"),
        (False, 0, ""),
    ):
        agent = SimpleNamespace(needs_demonstrations=needs, scripted_episodes=scripted)
        began = _began(cast(Agent, agent), trained, ENV)
        assert told in began and bool(told) == bool(began)


def test_the_command_names_an_agent_that_takes_demonstrations() -> None:
    push = EnvConfig.from_config(compose("collect", ["env=metaworld", "env.task=push"])["env"])
    assert "env.task=push agent=rlpd agent.prior=demonstrations demos=/d" in _shown_by(push, "/d")
    assert _shown_by(ENV, "/d").endswith("env=adroit_door demos=/d data=<new folder>")


def test_demonstrations_that_an_agent_would_never_look_at_are_refused() -> None:
    shown = DemonstrationSettings(demos="/mine")
    ignoring, learning = (cast(Agent, SimpleNamespace(needs_demonstrations=needs)) for needs in (False, True))
    with pytest.raises(InputError, match=r"demos: agent=sac takes none .* got /mine\. Use agent=rlpd agent\.prior"):
        check_demonstrations(shown, ignoring, "sac")
    check_demonstrations(shown, learning, "vrl3")
    check_demonstrations(DemonstrationSettings(), ignoring, "sac")  # none are named


def test_it_goes_beside_the_tasks_data_and_over_nothing(tmp_path: Path) -> None:
    usual = tmp_path / "data" / "adroit_door" / "demonstrations"
    assert folder_of(compose("record", ["env=adroit_door", f"root={tmp_path}"]), ENV) == usual
    usual.mkdir(parents=True)
    for options in ([], [f"output={tmp_path}"]):
        with pytest.raises(InputError, match="exists already and is never overwritten; move it away or name another"):
            folder_of(compose("record", ["env=adroit_door", f"root={tmp_path}", *options]), ENV)


def test_only_an_agents_run_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mode: pretrain\n")
    config = compose("record", ["env=adroit_door", f"run={tmp_path}"])
    with pytest.raises(InputError, match=r"run: .* is no agent's; name the folder of one that was trained"):
        record(config, ENV)


def test_the_shipped_demonstrations_load_and_are_small() -> None:
    for env, sizes in (("adroit_door", (39, 28)), ("adroit_hammer", (46, 26))):
        config = EnvConfig.from_config(compose("collect", ["agent=vrl3", f"env={env}"])["env"])
        shown = demos.load(config, None, sizes, 25, 25)
        assert len(shown.trajectories) == 25
        assert all(np.isfinite(t.states).all() and np.abs(t.actions).max() <= 1 for t in shown.trajectories)
        files = [path for path in (demos.SHIPPED / env).rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < 1_000_000
