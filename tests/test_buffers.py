"""Replay and target buffers: what stays, what is drawn, what is restored."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sodp3d.core.errors import InputError
from sodp3d.learning.buffers import EpisodeRecord, ReplayBuffer, TargetBuffer


def make_episode(number: int, length: int = 3, success: bool = False, reward: float | None = None) -> EpisodeRecord:
    """Every chunk carries `number` in its features, so that its episode can be told."""
    value = float(number if reward is None else reward)
    return EpisodeRecord(
        observation={"features": torch.full((length, 4), float(number))},
        latents=torch.zeros(length, 11, 4, 2),
        means=torch.zeros(length, 10, 4, 2),
        reward=torch.full((length,), value / max(length, 1)),
        executed=torch.full((length,), 3),
        elapsed=torch.arange(length) / 10,
        success=success,
        terminated=success,
        final={"features": torch.full((4,), number + 0.5)},
    )


def test_a_success_is_cut_after_the_chunk_that_achieved_it() -> None:
    """Of an episode the rest shows nobody how; a failure, and what was achieved at the very end, stay whole."""
    counted = {
        "observation": {"features": torch.arange(5.0)[:, None].expand(5, 4)},
        "reward": torch.arange(5.0),
        "elapsed": torch.arange(5) / 5,
    }
    whole = dataclasses.replace(make_episode(0, 5, success=True), **counted, terminated=True, achieved=2)
    cut = whole.until_success()
    assert cut is not None
    assert {len(value) for value in cut.rows().values()} == {2}
    assert cut.observation["features"][:, 0].tolist() == [0, 1] and cut.reward.tolist() == [0, 1]
    assert cut.final["features"].tolist() == [2] * 4  # what was seen after the second chunk
    assert cut.success and not cut.terminated
    for kept in (
        dataclasses.replace(whole, success=False),
        dataclasses.replace(whole, achieved=5),
        dataclasses.replace(whole, achieved=None),
    ):
        assert kept.until_success() is kept
    assert dataclasses.replace(whole, achieved=0).until_success() is None, "a branch that began as a success"


def test_a_table_remembers_when_its_episodes_achieved_the_task() -> None:
    """So another run's whole episodes, learned from offline, can be cut as one's own are."""
    table = TargetBuffer(4)
    for seed, achieved in enumerate((2, None)):
        table.add(dataclasses.replace(make_episode(seed, 5, success=True), achieved=achieved))
    later = TargetBuffer(4)
    later.load_state_dict(table.state_dict())
    assert [record.achieved for record in later.records()] == [2, None]
    earlier = {key: value for key, value in table.state_dict().items() if key != "facts.achieved"}
    later.load_state_dict(earlier)  # of a release that did not note it
    later.add(dataclasses.replace(make_episode(2, 5, success=True), achieved=3))
    assert [record.achieved for record in later.records()] == [None, None, 3]


def numbers(buffer: ReplayBuffer | TargetBuffer) -> list[int]:
    found = [int(rows[0, 0]) for rows in buffer.per_episode(buffer.rows["features"])]
    assert buffer.finals["features"][:, 0].tolist() == [number + 0.5 for number in found]
    return found


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=12), capacity=st.integers(1, 6))
def test_replay_keeps_the_newest_episodes(lengths: list[int], capacity: int) -> None:
    buffer = ReplayBuffer(capacity)
    for number, length in enumerate(lengths):
        buffer.add(make_episode(number, length))
    assert numbers(buffer) == list(range(len(lengths)))[-capacity:]
    assert buffer.chunks == sum(lengths[-capacity:]) == len(buffer.rows["latents"])
    assert [len(reward) for reward in buffer.rewards()] == lengths[-capacity:]


@settings(deadline=None, max_examples=50)
@given(
    outcomes=st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=15),
    capacity=st.integers(1, 5),
    best=st.integers(1, 5),
)
def test_target_holds_successes_or_the_best_returns(outcomes: list[tuple[bool, int]], capacity: int, best: int) -> None:
    buffer = TargetBuffer(capacity, best)
    for number, (success, reward) in enumerate(outcomes):
        kept = buffer.add(make_episode(number, success=success, reward=float(reward)))
        assert kept == (number in numbers(buffer))
    successes = [number for number, (success, _) in enumerate(outcomes) if success]
    assert buffer.has_success == bool(successes)
    if successes:
        assert numbers(buffer) == successes[-capacity:]
    else:
        highest = sorted((reward for _, reward in outcomes), reverse=True)[: min(best, capacity)]
        assert sorted((outcomes[n][1] for n in numbers(buffer)), reverse=True) == highest


def test_samples_are_uniform_over_chunks_and_decided_by_the_generator() -> None:
    buffer = ReplayBuffer(5)
    buffer.add(make_episode(0, length=1))
    buffer.add(make_episode(1, length=3))
    batch = buffer.sample(4000, torch.Generator().manual_seed(0))
    assert batch["latents"].shape == (4000, 11, 4, 2)
    counts = torch.bincount(batch["index"], minlength=4)
    assert (counts - 1000).abs().max() < 150  # more than five standard deviations
    assert torch.equal(batch["features"][:, 0] == 1, batch["index"] > 0)
    again = buffer.sample(4000, torch.Generator().manual_seed(0))
    assert torch.equal(batch["index"], again["index"])


@pytest.mark.parametrize("kind", [ReplayBuffer, TargetBuffer])
def test_restored_buffer_goes_on_exactly(kind: type[ReplayBuffer] | type[TargetBuffer]) -> None:
    buffer, restored = kind(3), kind(3)
    for number in range(5):
        buffer.add(make_episode(number, length=1 + number % 3, success=number in (1, 3)))
    restored.load_state_dict({key: value.clone() for key, value in buffer.state_dict().items()})
    for number in range(5, 8):
        for each in (buffer, restored):
            each.add(make_episode(number, success=True))
        ours, theirs = (each.sample(16, torch.Generator().manual_seed(number)) for each in (buffer, restored))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert all(value.is_contiguous() for value in buffer.state_dict().values())


def test_empty_state_restores() -> None:
    restored = TargetBuffer(2)
    restored.load_state_dict(TargetBuffer(2).state_dict())
    assert len(restored) == 0 and restored.add(make_episode(0))


def test_bad_episodes_are_refused_and_change_nothing() -> None:
    buffer = ReplayBuffer(2)
    buffer.add(make_episode(0))
    bad = make_episode(1)
    bad.means[1, 2] = float("nan")
    with pytest.raises(InputError, match="means has values that are not finite"):
        buffer.add(bad)
    with pytest.raises(InputError, match="at least one chunk"):
        buffer.add(make_episode(1, length=0))
    wider = dataclasses.replace(make_episode(1), observation={"features": torch.zeros(3, 5)})
    with pytest.raises(InputError, match=r"expected .* per chunk, got"):
        buffer.add(wider)
    assert numbers(buffer) == [0]


def test_empty_and_useless_buffers_are_refused() -> None:
    with pytest.raises(InputError, match="holds no episode yet"):
        ReplayBuffer(2).sample(1, torch.Generator())
    with pytest.raises(InputError, match="at least 1 episode"):
        ReplayBuffer(0)
    with pytest.raises(InputError, match="at least 1 episode"):
        TargetBuffer(2, best=0)


def test_a_part_of_an_episode_is_cloned_for_its_success_alone() -> None:
    buffer, whole = TargetBuffer(5, best=1), make_episode(1, reward=-10)
    branch = dataclasses.replace(make_episode(2, reward=-1), elapsed=torch.tensor([0.5, 0.6, 0.7]))
    assert buffer.add(whole) and not buffer.add(branch), "what came before it is not in its return"
    assert numbers(buffer) == [1]
    assert buffer.add(dataclasses.replace(branch, success=True)) and numbers(buffer) == [2]
