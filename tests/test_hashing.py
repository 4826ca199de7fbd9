"""Data hashes: any value that is learned from changes them, how it is stored does not."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_conversion import CONFIG
from toy_planner import STATE, make_planner
from toy_store import make_store

from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.run import Run
from sodp3d.data import hashing
from sodp3d.data.columns import write_column
from sodp3d.data.conversion import convert_store
from sodp3d.data.hashing import data_hash, earlier_data_hash, identify, short_hash
from sodp3d.data.store import EpisodeStore
from sodp3d.learning.pretrain import Pretraining
from sodp3d.settings import PretrainSettings

CLOUDS = ("agent_pos", "point_cloud")


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Four episodes with point clouds."""
    path = make_store(tmp_path_factory.mktemp("clouds") / "a.zarr", range(4)).path
    convert_store(path, CONFIG, "torch", workers=0)
    return EpisodeStore.open(path)


def changed(store: EpisodeStore, key: str, position: float, target: Path) -> EpisodeStore:
    """A copy in which one value of `key` is the next larger one; position: 0..1, where."""
    shutil.copytree(store.path, target)
    array = zarr.open_array(target / "data" / key, mode="r+", zarr_format=2)
    values = np.asarray(array[:])
    index = np.unravel_index(int(position * (values.size - 1)), values.shape)
    values[index] = np.nextafter(values[index], np.float32(np.inf))
    array[:] = values
    return EpisodeStore.open(target)


@given(st.sampled_from([*CLOUDS, "action", "reward"]), st.floats(0, 1))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_that_is_learned_from_changes_it(
    clouds: EpisodeStore, tmp_path_factory: pytest.TempPathFactory, key: str, position: float
) -> None:
    other = changed(clouds, key, position, tmp_path_factory.mktemp("changed") / "b.zarr")
    assert data_hash(other, CLOUDS) != data_hash(clouds, CLOUDS)


@pytest.mark.parametrize("name", ["seed", "agent_step", "episode_return", "success_final", "success_any"])
def test_so_does_any_value_of_an_episode(clouds: EpisodeStore, tmp_path: Path, name: str) -> None:
    shutil.copytree(clouds.path, tmp_path / "b.zarr")
    values = clouds.metadata[name]
    (tmp_path / "b.zarr/meta/.zattrs").unlink()  # which knows the values that were committed
    write_column(tmp_path / "b.zarr/meta" / name, values[:-1])
    write_column(tmp_path / "b.zarr/meta" / name, np.append(values[:-1], values.dtype.type(not values[-1])))
    other = EpisodeStore.open(tmp_path / "b.zarr")
    assert (other.metadata[name] != values).sum() == 1 and data_hash(other, CLOUDS) != data_hash(clouds, CLOUDS)


def test_what_is_not_learned_from_does_not(clouds: EpisodeStore, tmp_path: Path) -> None:
    other = changed(clouds, "state", 0.5, tmp_path / "b.zarr")
    assert data_hash(other, CLOUDS) == data_hash(clouds, CLOUDS)
    assert data_hash(other) != data_hash(clouds) and data_hash(other, ["state"]) != data_hash(clouds, ["state"])


@given(st.integers(1, 20), st.integers(1, 4000))
@settings(max_examples=10, deadline=None)
def test_storing_it_otherwise_changes_nothing(
    clouds: EpisodeStore, tmp_path_factory: pytest.TempPathFactory, rows: int, block: int
) -> None:
    path = tmp_path_factory.mktemp("stored") / "b.zarr"
    shutil.copytree(clouds.path, path)
    for key in (*CLOUDS, "action", "reward"):
        values = clouds.read(key)
        shutil.rmtree(path / "data" / key)
        shape = (rows, *values.shape[1:])
        zarr.open_group(path / "data", mode="r+", zarr_format=2).create_array(key, data=values, chunks=shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "_BLOCK_BYTES", block)
        assert data_hash(EpisodeStore.open(path), CLOUDS) == data_hash(clouds, CLOUDS)


def test_it_names_the_data(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", range(3))
    assert data_hash(store) == data_hash(make_store(tmp_path / "same.zarr", range(3)))
    assert data_hash(store) != data_hash(make_store(tmp_path / "order.zarr", [0, 2, 1]))
    assert data_hash(store) != data_hash(make_store(tmp_path / "more.zarr", range(4)))
    assert len(data_hash(make_store(tmp_path / "empty.zarr", []))) == 35
    with pytest.raises(InputError, match="data/point_cloud holds 0 of 3"):
        data_hash(store, CLOUDS)


def test_old_and_new_hashes_are_told_apart(clouds: EpisodeStore, tmp_path: Path) -> None:
    both = identify([clouds, clouds], CLOUDS)
    assert both.current == "+".join(2 * [data_hash(clouds, CLOUDS)]) and both.current.startswith("v2-")
    assert both.earlier == "+".join(2 * [earlier_data_hash(clouds)[:16]]) and "v2-" not in both.earlier
    assert short_hash(both.earlier) == "+".join(2 * [earlier_data_hash(clouds)[:8]])
    assert short_hash(data_hash(clouds)) == data_hash(clouds)[:11]
    shifted = changed(clouds, "point_cloud", 0.5, tmp_path / "b.zarr")
    assert identify([shifted], CLOUDS).earlier == identify([clouds], CLOUDS).earlier, "as releases before had it"


def test_pretraining_goes_on_under_the_hash_that_it_began_with(clouds: EpisodeStore, tmp_path: Path) -> None:
    data = identify([clouds], CLOUDS)
    for recorded in data:
        training = Pretraining(make_planner(STATE), PretrainSettings(**compose("train")["pretrain"]), 0)
        with Run(tmp_path / recorded, {}) as run:
            assert training.load(run, data) == data.current, "nothing to go on with"
            training.step = 3
            training.save(run, {"data_hash": recorded})
            assert Pretraining(make_planner(STATE), training.settings, 0).load(run, data) == recorded
            with pytest.raises(InputError, match=f"began with data {recorded}, but now there is v2-0"):
                training.load(run, data._replace(current="v2-0", earlier="0"))
