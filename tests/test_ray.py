"""Workers on a real Ray cluster of two nodes, one of which is killed in mid-work."""

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_cluster import ENVIRONMENT, Cluster

os.environ.update(ENVIRONMENT)  # read when Ray is imported
ray = pytest.importorskip("ray", reason="the optional extra `scale` is not installed")

from toy_slider import assert_same, collect, make_slider  # noqa: E402
from toy_tasks import on_ray  # noqa: E402
from toy_workers import Counter, assert_errors_are_told  # noqa: E402

from sodp3d.data.conversion import convert_store  # noqa: E402
from sodp3d.data.merge import merge  # noqa: E402
from sodp3d.data.store import EpisodeStore  # noqa: E402
from sodp3d.parallel import WorkerDiedError, make_workers  # noqa: E402
from sodp3d.parallel.tasks import Job, run_side_by_side, share_of  # noqa: E402


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # pytest's own would be too long for sockets
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent)]))  # workers import what tests define
    try:
        started = Cluster(folder)
        try:
            monkeypatch.setenv("RAY_ADDRESS", started.address)
            started.grow()
            yield started
        finally:
            ray.shutdown()
            started.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_gives_what_one_local_worker_gives(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In one test, because a cluster takes seconds to start."""
    caplog.set_level(logging.INFO)
    handler = signal.getsignal(signal.SIGTERM)
    check_interface(tmp_path)
    check_tasks(tmp_path)
    assert "Ray cluster of 2 machines with 3 CPUs" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is handler

    alone = collect(tmp_path / "alone", 1)
    spread = collect(tmp_path / "spread", "ray:3", lambda number: cluster.shrink() if number == 10 else None)
    assert "unfinished episodes start anew" in caplog.text and len(cluster.nodes) == 1
    assert_same(alone, spread)
    check_merge(spread, tmp_path)

    caplog.clear()
    cluster.grow()
    config = make_slider().config
    convert_store(alone, config)
    convert_store(spread, config, workers="ray:4", progress=lambda done, total: cluster.shrink() if done == 3 else None)
    assert "A fresh one takes over" in caplog.text and len(cluster.nodes) == 1
    assert_same(alone, spread, "point_cloud", "point_cloud_kept")


def check_interface(folder: Path) -> None:
    """What test_workers.py asks of local processes."""
    with make_workers("ray", Counter, (5,), at_most=2, threads=3) as workers:
        assert len(workers) == 2
        assert workers.call("add", [(1,), (2,)]) == [6, 7]
        assert workers.call("threads", [(), ()]) == ["3", "3"]
        processes = workers.call("process", [(), ()])
        assert len({*processes, os.getpid()}) == 3
        array = workers.call("array", [(100_000,)])[0]
        assert array.flags.writeable and array[-1] == 99_999
        assert_errors_are_told(workers)
        workers.start(0, "die")
        with pytest.raises(WorkerDiedError, match=r"worker 0 \(ActorDiedError"):
            workers.result(0)
        assert workers.call("die_unless", [(str(folder / "died"),)]) == [5]
        workers.start(1, "add", 1)
        assert workers.result(1) == 8


def check_tasks(folder: Path) -> None:
    """Tasks that run side by side join one cluster, each with its part of the three CPUs."""
    part = share_of({"workers": "ray", "threads": None}, 2)
    assert part == {"workers": "ray:1", "threads": 1}
    run_side_by_side([Job(name, on_ray, (folder, name, part["workers"])) for name in ("a", "b")], 2)
    assert [(folder / name).read_text() for name in ("a", "b")] == ["[6]", "[6]"]


def check_merge(path: Path, folder: Path) -> None:
    """Shards of the collection, one episode in two of them, merge into the same store."""
    store = EpisodeStore.open(path)
    metadata = store.metadata
    shards = [folder / "first.zarr", folder / "second.zarr"]
    for number, shard in enumerate(shards):
        with EpisodeStore.create(shard, store.attributes, store.specification) as target:
            for index in range(len(store)):
                if index % 2 == number or index == 4:
                    values = {name: column[index].item() for name, column in metadata.items()}
                    target.append(store.episode(index), values)
    merge(shards, folder / "merged.zarr").close()
    assert_same(path, folder / "merged.zarr")
