"""Branches: plans executed from one stored simulator state, and what they tell of each other."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_finetune import prepare, regularized, settings
from toy_planner import SLIDER, STATE, make_planner
from toy_slider import STEPS, SliderChunks, make_slider, slider_rollouts

from sodp3d.core.errors import InputError
from sodp3d.core.run import Run
from sodp3d.learning.branching import Branches, Group, branch, interactions, trunks_within
from sodp3d.learning.memory import Memory, to_record
from sodp3d.learning.tuning import Finetuning
from sodp3d.models.planner import ChainOptions, Planner
from sodp3d.rollouts.rollout import Episode, Rollouts
from sodp3d.settings import BranchSettings

TASK = make_slider().config
OPTIONS = ChainOptions(eta=1.0, sigma_floor=0.1)
SETTINGS = BranchSettings(group=3, states=2, capacity=100)


@pytest.fixture(scope="module")
def planner() -> Planner:
    return make_planner(SLIDER)


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rollouts]:
    with slider_rollouts(monkeypatch, 6) as made:
        yield made


def test_a_restored_state_goes_on_as_the_episode_did(planner: Planner, rollouts: Rollouts) -> None:
    (trunk,) = rollouts.run(planner, [7], OPTIONS, keep_chains=True)
    assert trunk.length == STEPS and len(trunk.states) == len(trunk.rewards) == 3
    group = SliderChunks(TASK, "state", "raycast", "torch")
    group.restore([trunk.states[0]])
    for chunk in (1, 2):
        plan = np.zeros((1, 3, 1), np.float32)
        plan[0, : len(trunk.actions[chunk])] = trunk.actions[chunk]
        answer = group.step([0], plan)
        np.testing.assert_array_equal(answer["rewards"][0, : len(trunk.rewards[chunk])], trunk.rewards[chunk])
        np.testing.assert_array_equal(answer["simulator_state"][0], trunk.states[chunk])
    assert bool(answer["truncated"][0]) and bool(answer["success_count"][0]) == trunk.success["count"]


def test_groups_begin_where_their_trunk_was_and_are_drawn_again_alike(planner: Planner, rollouts: Rollouts) -> None:
    trunks = rollouts.run(planner, [7, 8], OPTIONS, keep_chains=True)
    groups = branch(planner, trunks, rollouts, OPTIONS, SETTINGS, seed=0, index=4)
    assert [(group.trunk.seed, group.chunk) for group in groups] == [(7, 1), (7, 2), (8, 1), (8, 2)]
    for group in groups:
        assert len(group.others) == 2 and group.others[0].seed != group.others[1].seed
        for other in group.others:
            assert other.begun == 3 * group.chunk and other.begun + other.length == STEPS
            torch.testing.assert_close(other.features[0], group.trunk.features[group.chunk])
            assert not torch.equal(other.latents[0], group.trunk.latents[group.chunk])
            elapsed = to_record(other, TASK, frozen=True).elapsed
            assert elapsed[0] == 3 * group.chunk / STEPS
    again = branch(planner, trunks, rollouts, OPTIONS, SETTINGS, seed=0, index=4)
    apart = branch(planner, trunks, rollouts, OPTIONS, SETTINGS, seed=0, index=6)
    assert [o.seed for g in again for o in g.others] == [o.seed for g in groups for o in g.others]
    assert not {o.seed for g in apart for o in g.others} & {o.seed for g in groups for o in g.others}
    steps = sum(other.length for group in groups for other in group.others)
    everything = [*trunks, *(other for group in groups for other in group.others)]
    assert steps == 2 * 2 * (5 + 2) and interactions(everything, TASK) == 2 + -(-steps // STEPS)


def test_a_branch_of_what_is_achieved_already_shows_nobody_how(planner: Planner, rollouts: Rollouts) -> None:
    """Where successes are cut, it is not cloned; nor does it push out those that show something."""
    (trunk,) = rollouts.run(planner, [7], OPTIONS, keep_chains=True)
    trunk.success["count"], trunk.achieved = True, {"count": 2}
    groups = branch(planner, [trunk], rollouts, OPTIONS, SETTINGS, seed=0, index=0)
    assert [group.chunk for group in groups] == [1, 2]
    memory = Memory(settings(cloned_until="success"))
    for group in groups:
        for other in group.others:
            assert (other.achieved.get("count") == 0) == (group.chunk == 2)
            record = to_record(other, dataclasses.replace(TASK, success_metric="count"), frozen=True)
            memory.take([dataclasses.replace(record, success=True)])
    assert len(memory.replay) == 4 and len(memory.target) == 2


def test_a_groups_advantages_are_returns_against_their_mean_and_sum_to_zero(
    planner: Planner, rollouts: Rollouts
) -> None:
    trunks = rollouts.run(planner, [7, 8], OPTIONS, keep_chains=True)
    groups = branch(planner, trunks, rollouts, OPTIONS, SETTINGS, seed=0, index=0)
    branches = Branches(capacity=9)

    def record(episode: Episode) -> Any:
        return to_record(episode, TASK, frozen=True)

    for group in groups[:3]:
        branches.add(group, record)
    first = groups[0]
    returns = [sum(r.sum() for r in first.trunk.rewards[first.chunk :]), *(o.episode_return for o in first.others)]
    np.testing.assert_allclose(branches.credit[:3], np.array(returns) - np.mean(returns), atol=1e-6)
    np.testing.assert_allclose(branches.credit.view(3, 3).sum(1), 0, atol=1e-6)
    assert torch.equal(branches.rows["latents"][0], first.trunk.latents[first.chunk])
    assert torch.equal(branches.rows["latents"][1], first.others[0].latents[0])
    branches.add(groups[3], record)
    assert len(branches) == 9, "the oldest are forgotten"
    diverged = Group(first.trunk, first.chunk, [dataclasses.replace(first.others[0], diverged=True)])
    branches.add(diverged, record)
    assert len(branches) == 9 and torch.equal(branches.rows["latents"][-1], groups[3].others[-1].latents[0])


def test_trunks_and_their_branches_make_about_as_many_episodes_as_asked_for() -> None:
    assert trunks_within(16, BranchSettings(group=4, states=2)) == 4
    assert trunks_within(1, BranchSettings(group=4, states=2)) == 1


def compared(**changes: Any) -> Finetuning:
    """Four made-up episodes, each plan of the third chunk compared with another episode's."""
    tuning = prepare(credit="branch", target_kl=None, importance_batch_size=8, **changes)
    records = tuning.memory.replay.records()
    assert tuning.branches is not None
    for index in range(3):
        group = Group(Episode(index), 2, [Episode(index + 1)])
        tuning.branches.add(group, lambda episode: records[episode.seed])
    return tuning


def test_the_importance_term_learns_from_branches_alone() -> None:
    tuning = compared()
    lesson, _ = tuning._lesson(2)
    assert lesson.plans is tuning.branches and len(lesson.credits) == 6
    assert {"imp_loss", "regularizer"} <= {key.removeprefix("train/") for key in tuning.learn(2)}
    without = prepare(credit="branch", target_kl=None, importance_batch_size=8)
    assert not without._lesson(2)[0].credits.any(), "nothing was compared yet"


def test_with_branches_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    straight, stopped = compared(), compared()
    straight.learn(2), stopped.learn(2)
    with Run(tmp_path, {}) as run:
        stopped.save(run, {"format": 1})
        resumed = Finetuning(
            make_planner(STATE), settings(credit="branch", target_kl=None, importance_batch_size=8), regularized(), 9
        )
        assert resumed.load(run, "of the planner")
    straight.learn(2), resumed.learn(2)
    for name, value in straight.planner.state_dict().items():
        assert torch.equal(value, resumed.planner.state_dict()[name]), name
    assert straight.branches is not None and resumed.branches is not None
    assert torch.equal(straight.branches.credit, resumed.branches.credit)


@pytest.mark.parametrize("scale_reward", [True, False])
def test_a_branch_is_weighed_in_rewards_of_the_scale_of_all_others(scale_reward: bool) -> None:
    tuning = compared(scale_reward=scale_reward, normalize_credit=False)
    assert tuning.branches is not None and tuning.memory.scale.deviation != pytest.approx(1, abs=0.01)
    factor = tuning.memory.scale.deviation if scale_reward else 1
    torch.testing.assert_close(tuning._lesson(2)[0].credits, tuning.branches.credit / factor)


def test_branches_sum_rewards_without_a_discount() -> None:
    with pytest.raises(InputError, match=r"finetune\.discount: .* got 0.9; use finetune\.discount=1"):
        settings(credit="branch", discount=0.9)


@pytest.mark.parametrize("changes", [{"offline": "runs/one"}, {"importance_weight": 0.0}])
def test_what_branches_cannot_be_used_for_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"finetune\.credit: branch compares plans"):
        settings(credit="branch", **changes)
