"""A writer that dies at any moment loses no committed episode, and the next one goes on."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from toy_store import ATTRIBUTES, SPECIFICATION, assert_holds, episode, make_store, metadata

from sodp3d.data import arrays
from sodp3d.data.store import EpisodeStore

Kill = Callable[[Path, float], None]


@pytest.fixture(scope="module")
def kill_writer() -> Iterator[Kill]:
    """Let a process append to a store for so many milliseconds, then SIGKILL it."""
    root = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root.parent}", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(root / "crash_writer.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def kill(path: Path, milliseconds: float) -> None:
            process.stdin.write(f"{path} {milliseconds}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "killed\n"

        yield kill
        process.stdin.close()
        process.wait(10)


def _check_whole(path: Path) -> int:
    """Every committed episode is the right one, byte for byte; their number."""
    store = EpisodeStore.open(path)
    assert store.verify() == []
    assert_holds(store, list(range(len(store))))
    return len(store)


def test_sigkill_at_random_moments_loses_nothing(tmp_path: Path, kill_writer: Kill) -> None:
    path, moments = tmp_path / "episodes.zarr", np.random.default_rng(0)
    committed, ragged = 0, 0
    while not path.exists():
        kill_writer(path, 400)
    for _ in range(25):
        kill_writer(path, moments.uniform(30, 300))
        now = len(EpisodeStore.open(path))
        assert now >= committed, "a committed episode was lost"
        committed = now
        root = zarr.open_group(path, mode="r")
        ragged += any(array.shape[0] != EpisodeStore.open(path).steps for _, array in root["data"].arrays())
    assert _check_whole(path) == committed > 0
    assert ragged > 0, "no kill came in the middle of an append: the test proves nothing"
    with EpisodeStore.open(path, "a", ATTRIBUTES, SPECIFICATION) as store:
        store.append(episode(committed), metadata(committed))
    assert _check_whole(path) == committed + 1
    root = zarr.open_group(path, mode="r")
    assert {array.shape[0] for _, array in root["data"].arrays()} == {EpisodeStore.open(path).steps}
    assert not list(path.rglob("*.partial"))


def test_sigkill_while_a_store_is_made(tmp_path: Path, kill_writer: Kill) -> None:
    for trial in range(6):
        path = tmp_path / f"{trial}.zarr"
        kill_writer(path, 10 + 25 * trial)
        if path.exists():
            _check_whole(path)
        else:
            EpisodeStore.create(path, ATTRIBUTES, SPECIFICATION).close()


class _DiedError(BaseException):
    """The process is dead: nothing catches this."""


class _Death:
    """Replaces os.replace: dead from the n-th file on, so no clean-up reaches the disk either."""

    def __init__(self, after: int) -> None:
        self.left, self.rename = after, os.rename

    def __call__(self, source: Any, destination: Any) -> None:
        if self.left <= 0:
            raise _DiedError
        self.left -= 1
        self.rename(source, destination)


@pytest.mark.slow
def test_death_at_every_single_file_of_an_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exhaustive where SIGKILL is random: before each file replacement of one append, across chunk borders."""
    monkeypatch.setattr(arrays, "_CHUNK_STEPS", 6)
    original = make_store(tmp_path / "original.zarr", range(2)).path
    outcomes = []
    for after in range(200):
        path = tmp_path / f"{after}.zarr"
        shutil.copytree(original, path)
        store = EpisodeStore.open(path, "a")
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", _Death(after))
            try:
                store.append(episode(2), metadata(2))
                died = False
            except _DiedError:
                died = True
        store.close()
        outcomes.append(_check_whole(path))
        with EpisodeStore.open(path, "a") as again:
            again.append(episode(outcomes[-1]), metadata(outcomes[-1]))
        assert_holds(EpisodeStore.open(path), list(range(outcomes[-1] + 1)))
        shutil.rmtree(path)
        if not died:
            break
    assert len(outcomes) > 20
    committed = outcomes.index(3)
    assert outcomes == [2] * committed + [3] * (len(outcomes) - committed)
    assert len(outcomes) - committed == 2, "after the commit comes its record alone"


class StoreMachine(RuleBasedStateMachine):
    """Appends, re-opens and deaths in any order, against a plain list of episode numbers."""

    @initialize()
    def create(self) -> None:
        self.folder = Path(os.environ["SODP3D_STATEFUL_FOLDER"]) / os.urandom(8).hex()
        self.store = EpisodeStore.create(self.folder / "episodes.zarr", ATTRIBUTES, SPECIFICATION)
        self.model: list[int] = []

    @rule(number=st.integers(0, 10**6))
    def append(self, number: int) -> None:
        self.store.append(episode(number), metadata(number))
        self.model.append(number)

    @rule(number=st.integers(0, 10**6), after=st.integers(0, 30))
    def die_in_append(self, number: int, after: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", _Death(after))
            try:
                self.store.append(episode(number), metadata(number))
                self.model.append(number)
            except _DiedError:
                pass
        self.reopen()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = EpisodeStore.open(self.store.path, "a", ATTRIBUTES, SPECIFICATION)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def read_some(self, data: Any) -> None:
        index = data.draw(st.integers(0, len(self.model) - 1))
        np.testing.assert_array_equal(self.store.read("depth", index, index + 1), episode(self.model[index])["depth"])

    @invariant()
    def holds_the_model(self) -> None:
        if hasattr(self, "store"):
            assert_holds(EpisodeStore.open(self.store.path), self.model)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


def test_any_order_of_appends_and_deaths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setenv("SODP3D_STATEFUL_FOLDER", str(tmp_path))
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(max_examples=8, stateful_step_count=10, deadline=None, derandomize=True),
    )
