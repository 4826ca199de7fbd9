"""Windows against a naive reference, selection of episodes, provenance."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from toy_store import ATTRIBUTES, SPECIFICATION, episode, make_store, metadata

from sodp3d.core.errors import InputError
from sodp3d.data.dataset import WindowDataset, select_episodes
from sodp3d.data.store import EpisodeStore


def naive_window(number: int, step: int, horizon: int, n_obs_steps: int, key: str, length: int) -> np.ndarray:
    """One window of one key, step by step, as the rule is written."""
    values, rows = episode(number, length)[key], []
    for offset in range(horizon if key == "action" else n_obs_steps):
        wanted = step - (n_obs_steps - 1) + offset
        if wanted < 0:
            wanted = 0
        if wanted > length - 1:
            wanted = length - 1
        rows.append(values[wanted])
    return np.stack(rows)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=0, max_size=3), min_size=1, max_size=2),
    n_obs_steps=st.integers(1, 4),
    n_action_steps=st.integers(1, 4),
    extra=st.integers(0, 5),
)
def test_windows_equal_a_naive_reference(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[list[int]],
    n_obs_steps: int,
    n_action_steps: int,
    extra: int,
) -> None:
    horizon = n_obs_steps - 1 + n_action_steps + extra
    folder, stores, numbers = tmp_path_factory.mktemp("windows"), [], []
    for store_number, parts in enumerate(lengths):
        with EpisodeStore.create(folder / f"{store_number}.zarr", ATTRIBUTES, SPECIFICATION) as store:
            for length in parts:
                numbers.append((len(numbers), length))
                store.append(episode(*numbers[-1]), metadata(numbers[-1][0]))
        stores.append(EpisodeStore.open(folder / f"{store_number}.zarr"))
    if not numbers:
        with pytest.raises(InputError, match="no episodes"):
            WindowDataset(stores, ["state"], horizon, n_obs_steps, n_action_steps)
        return
    dataset = WindowDataset(stores, ["state", "agent_pos"], horizon, n_obs_steps, n_action_steps)
    # Every step of every episode is the current step of exactly one window, in order.
    expected = [(number, step, length) for number, length in numbers for step in range(length)]
    assert len(dataset) == len(expected)
    windows = dataset.windows(np.arange(len(dataset)))
    for row, (number, step, length) in enumerate(expected):
        for key, values in windows.items():
            np.testing.assert_array_equal(values[row], naive_window(number, step, horizon, n_obs_steps, key, length))
        current = windows["state"][row, -1]
        np.testing.assert_array_equal(current, episode(number, length)["state"][step])
        # DP3: the action that was taken at the current step opens the executed slice.
        np.testing.assert_array_equal(windows["action"][row, n_obs_steps - 1], episode(number, length)["action"][step])


def test_equals_diffusion_policy_where_that_has_windows() -> None:
    """With Tp = To + Ta - 1, DP's padding (To-1 before, Ta-1 after) yields one window per step too."""
    horizon, n_obs_steps, n_action_steps = 4, 2, 3
    for length in range(horizon, 12):
        starts = range(-(n_obs_steps - 1), length - horizon + (n_action_steps - 1) + 1)
        assert [start + n_obs_steps - 1 for start in starts] == list(range(length))


def test_sampling_is_uniform_and_follows_the_generator(tmp_path: Path) -> None:
    dataset = WindowDataset([make_store(tmp_path / "a.zarr", range(6))], ["state"], 4, 2, 3)
    first, second = (dataset.sample(64, np.random.default_rng(5)) for _ in range(2))
    other = dataset.sample(64, np.random.default_rng(6))
    np.testing.assert_array_equal(first["action"], second["action"])
    assert (first["action"] != other["action"]).any()
    assert first["action"].shape == (64, 4, 3) and first["state"].shape == (64, 2, 5)
    assert {values.dtype for values in first.values()} == {np.dtype(np.float32)}

    class Recorder(WindowDataset):
        def windows(self, current: np.ndarray) -> dict[str, np.ndarray]:
            return {"current": current}

    dataset.__class__ = Recorder
    drawn = dataset.sample(20_000, np.random.default_rng(0))["current"]
    counts = np.bincount(drawn, minlength=len(dataset))
    assert stats.chisquare(counts).pvalue > 1e-3


def test_chosen_episodes_only(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", range(8), length=3)
    dataset = WindowDataset([store], ["state"], 4, 2, 3, episodes=[np.array([1, 2, 6])])
    assert len(dataset) == 9
    expected = np.concatenate([episode(number, 3)["action"] for number in (1, 2, 6)])
    np.testing.assert_array_equal(dataset.arrays["action"], expected)
    assert dataset.sizes == {"action": 3, "state": 5}


def test_selection(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", [4, 2, 0, 1, 3, 5, 6, 7, 8, 9], length=3)  # agent order: 0 .. 9
    assert select_episodes(store).tolist() == list(range(10))
    assert sorted(store.metadata["seed"][select_episodes(store, fraction=0.3)]) == [0, 1, 2]
    assert sorted(store.metadata["seed"][select_episodes(store, fraction=0.31)]) == [0, 1, 2, 3]
    assert sorted(store.metadata["seed"][select_episodes(store, success="count")]) == [0, 3, 6, 9]
    assert sorted(store.metadata["seed"][select_episodes(store, max_episodes=2, success="final")]) == [0, 2]
    assert len(select_episodes(store, fraction=1e-9)) == 1
    assert sorted(store.metadata["seed"][select_episodes(store, 0.3, quality="nearoptimal")]) == [7, 8, 9]
    assert select_episodes(store, 0.3, quality="all").tolist() == list(range(10))
    assert sorted(store.metadata["seed"][select_episodes(store, 0.5, 2, quality="nearoptimal")]) == [8, 9]
    weak = select_episodes(store, successes_at_most=0.5)  # in the agent's order: 0, 3, 6, 9 succeed
    assert sorted(store.metadata["seed"][weak]) == list(range(10))
    weak = select_episodes(store, successes_at_most=0.35)
    assert sorted(store.metadata["seed"][weak]) == list(range(9))
    with pytest.raises(InputError, match=r"no episode of 10 is left by .*successes_at_most=0\.1"):
        select_episodes(store, successes_at_most=0.1)
    with pytest.raises(InputError, match="suboptimal, nearoptimal, all"):
        select_episodes(store, quality="expert")
    with pytest.raises(InputError, match="fraction"):
        select_episodes(store, fraction=0)
    with pytest.raises(InputError, match="final, count, any"):
        select_episodes(store, success="sometimes")
    with pytest.raises(InputError, match="max_episodes: expected a whole number of at least 1, got -3"):
        select_episodes(store, max_episodes=-3)


def test_windows_beyond_the_memory_are_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", range(4))
    with pytest.raises(InputError, match="most of it data/state"):
        WindowDataset([store], ["state"], 4, 2, 3, memory_limit=100)


def test_wrong_input_is_named(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", range(2))
    with pytest.raises(InputError, match=r"data/point_cloud holds 0 of 2 episodes.*convert\.py env=toy"):
        WindowDataset([store], ["point_cloud"], 4, 2, 3)
    with pytest.raises(InputError, match="3 steps do not hold 1 past and 3 executed"):
        WindowDataset([store], ["state"], 3, 2, 3)
    other = {**SPECIFICATION, "state": ((6,), "float32")}
    with EpisodeStore.create(tmp_path / "b.zarr", ATTRIBUTES, other) as different:
        different.append({**episode(0, 2), "state": np.zeros((2, 6), np.float32)}, metadata(0))
        with pytest.raises(InputError, match=r"data/state: \(5,\) per step in .* but \(6,\)"):
            WindowDataset([store, different], ["state"], 4, 2, 3)
