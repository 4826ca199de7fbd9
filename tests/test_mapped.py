"""Windows from a mapped file: those of memory, bit for bit; made once; and nothing damaged is ever learned from."""

import errno
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from test_conversion import CONFIG
from toy_clouds import CLOUDS, KEYS, all_windows, cloud_store, dataset, values
from toy_store import ATTRIBUTES, episode, make_store, metadata

from sodp3d.core.errors import InputError
from sodp3d.data import dataset as windows
from sodp3d.data import mapped, mapping
from sodp3d.data.conversion import convert_store
from sodp3d.data.dataset import choose_memory
from sodp3d.data.hashing import identify
from sodp3d.data.store import EpisodeStore


def files(folder: Path) -> list[str]:
    """Names of all that lies beside stores, without locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith((".zarr", ".lock")))


NAME = "a.zarr.action-agent_pos-image-point_cloud.safetensors"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[EpisodeStore]:
    folder = tmp_path_factory.mktemp("mapped")
    return [cloud_store(folder / f"{place}.zarr", range(4 * place, 4 * place + 4)) for place in range(3)]


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.integers(0, 2**12 - 1), count=st.integers(1, 3), block=st.sampled_from([1, 100, 32_768]))
def test_windows_are_those_of_memory_bit_for_bit(
    stores: list[EpisodeStore], chosen: int, count: int, block: int
) -> None:
    bits = [np.flatnonzero([chosen >> (4 * place + index) & 1 for index in range(4)]) for place in range(count)]
    episodes = [taken if len(taken) or place else np.array([2]) for place, taken in enumerate(bits)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped, "BLOCK_BYTES", block)
        one, other = (dataset(stores[:count], memory, episodes=episodes) for memory in ("ram", "mapped"))
        found, expected = all_windows(other), all_windows(one)
    assert len(one) == len(other) and one.shapes == other.shapes and one.sizes == other.sizes
    for key in ("action", *KEYS):
        np.testing.assert_array_equal(found[key], expected[key])
        assert found[key].dtype == expected[key].dtype == (np.uint8 if key == "image" else np.float32)
    for key in ("action", "agent_pos", "point_cloud"):
        np.testing.assert_array_equal(one.ranges[key], other.ranges[key])
    assert other.data == identify(stores[:count], KEYS) and one.data is None


def test_clouds_are_rounded_as_float16_and_nothing_else_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = cloud_store(tmp_path / "a.zarr", range(3), 5)
    with caplog.at_level(logging.INFO):
        found = dataset([store]).windows(np.arange(15))
    assert "data/point_cloud is held as float16, rounded by at most 0.00024" in caplog.text
    clouds = np.concatenate([values(number, 5)["point_cloud"] for number in range(3)])
    assert (
        0 < np.abs(found["point_cloud"][:, -1] - clouds).max() <= 2.0**-12
    )  # within a metre a quarter of a millimetre
    np.testing.assert_array_equal(found["agent_pos"][:, -1], store.read("agent_pos"))
    np.testing.assert_array_equal(found["image"][:, -1], store.read("image"))


@pytest.mark.parametrize("memory", ["ram", "mapped"])
def test_clouds_far_from_the_origin_are_told_or_refused(
    tmp_path: Path, memory: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name, offset in (("near", 0), ("far", 3000), ("beyond", 70_000)):
        shifted = values(0, 5)
        shifted["point_cloud"] += np.float32(offset)
        with EpisodeStore.create(tmp_path / f"{name}.zarr", ATTRIBUTES, CLOUDS) as store:
            store.append(shifted, metadata(0))
    near, far, beyond = (EpisodeStore.open(tmp_path / f"{name}.zarr") for name in ("near", "far", "beyond"))
    dataset([near], memory)
    assert "much of its span" not in caplog.text
    dataset([far], memory)
    assert "float16 rounds by 1, much of its span" in caplog.text
    with pytest.raises(InputError, match=r"beyond\.zarr: data/point_cloud: reaches 7000\d.*at most 65504"):
        dataset([beyond], memory)
    assert not [name for name in files(tmp_path) if "beyond" in name or "partial" in name]


def test_auto_takes_memory_where_windows_fit_comfortably(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_memory("auto", 50, 100) == "ram" and choose_memory("auto", 51, 100) == "mapped"
    assert choose_memory("ram", 51, 100) == "ram" and choose_memory("mapped", 1, 100) == "mapped"
    store = cloud_store(tmp_path / "a.zarr", range(3))
    with caplog.at_level(logging.INFO):
        assert dataset([store], "auto").memory == "ram" and files(tmp_path) == []
        monkeypatch.setattr(windows, "free_bytes", lambda: 1000)  # what a container leaves
        assert dataset([store], "auto").memory == "mapped"
    assert "memory=auto takes ram" in caplog.text and "memory=auto takes mapped" in caplog.text
    with pytest.raises(InputError, match=r"pretrain\.memory=mapped"):
        dataset([store], "ram")


def test_the_file_is_made_once_and_others_can_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = cloud_store(tmp_path / "a.zarr", range(4))
    expected = all_windows(dataset([store]))
    assert files(tmp_path) == [NAME]
    read = load_file(tmp_path / NAME)
    np.testing.assert_array_equal(read["point_cloud"], store.read("point_cloud").astype(np.float16))
    np.testing.assert_array_equal(read["action"], store.read("action"))
    with monkeypatch.context() as patch:  # neither made again, nor is anything of the store decoded
        patch.setattr(mapping, "_make", None)
        patch.setattr(EpisodeStore, "read", None)
        found = all_windows(dataset([EpisodeStore.open(store.path)], episodes=[np.arange(4)]))
    assert all((found[key] == expected[key]).all() for key in found)


def test_a_store_that_grew_is_mapped_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = cloud_store(tmp_path / "a.zarr", range(3)).path
    before = dataset([EpisodeStore.open(path)])
    with EpisodeStore.open(path, "a") as store:
        store.append(values(3), metadata(3))
    grown = dataset([EpisodeStore.open(path)])
    assert "a.zarr.action-agent_pos-image-point_cloud.safetensors: was made of other data" in caplog.text
    assert len(grown) == len(before) + len(values(3)["action"]) and grown.data != before.data
    current = np.arange(len(before))
    assert (before.windows(current)["point_cloud"] == grown.windows(current)["point_cloud"]).all()  # both go on
    assert files(tmp_path) == [NAME]


@pytest.mark.parametrize("checksums", [True, False], ids=["by its checksums", "of an earlier release"])
def test_a_store_that_was_converted_again_is_mapped_again(tmp_path: Path, checksums: bool) -> None:
    path = make_store(tmp_path / "a.zarr", range(3), length=4).path

    def converted(low: float) -> EpisodeStore:
        with EpisodeStore.open(path, "a") as store:
            store.update_attributes({"conversion": {}})
            for key in ("point_cloud", "point_cloud_kept"):
                shutil.rmtree(store.path / "data" / key, ignore_errors=True)
        crop = replace(CONFIG.crop, low=(-np.inf, -np.inf, low))
        convert_store(path, replace(CONFIG, crop=crop))
        if not checksums:
            with EpisodeStore.open(path, "a") as store:
                states = {key: {**state, "checked": None} for key, state in store.conversions.items()}
                store.update_attributes({"conversion": states})
        return EpisodeStore.open(path)

    for low in (0.001, 0.1):
        store = converted(low)
        assert (mapping.fingerprint(store, ["point_cloud"]) is not None) == checksums
        found = dataset([store], keys=["agent_pos", "point_cloud"])
        expected = dataset([store], "ram", ["agent_pos", "point_cloud"])
        assert (all_windows(found)["point_cloud"] == all_windows(expected)["point_cloud"]).all()
        assert found.data == identify([store], ["agent_pos", "point_cloud"])


def test_a_file_that_is_cut_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = cloud_store(tmp_path / "a.zarr", range(4))
    expected, path = all_windows(dataset([store])), tmp_path / NAME
    whole = path.read_bytes()
    for length in (0, 5, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        found = all_windows(dataset([store]))
        assert all((found[key] == expected[key]).all() for key in found) and path.read_bytes() == whole
    path.write_bytes(whole + b"x")
    dataset([store])
    assert path.read_bytes() == whole and caplog.text.count("so it is made again") == 6


def test_a_changed_byte_anywhere_is_never_learned_from(tmp_path: Path) -> None:
    store = cloud_store(tmp_path / "a.zarr", range(4), 3)
    expected, path = all_windows(dataset([store])), tmp_path / NAME
    whole, refused = path.read_bytes(), 0
    first_row = len(whole) - sum(read.nbytes for key, read in load_file(path).items() if "." not in key)
    places = [*np.random.default_rng(0).integers(len(whole), size=60).tolist(), 0, 7, 8, len(whole) - 1]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        try:
            found = all_windows(dataset([store]))
        except InputError as error:
            told = "is not what was written" if place >= first_row else "was not made by sodp3d"  # not even our mark
            assert told in str(error), place
            refused += place >= first_row
            continue
        assert all((found[key] == expected[key]).all() for key in found), place
    assert refused > 10
    path.unlink()
    found = all_windows(dataset([store]))
    assert all((found[key] == expected[key]).all() for key in found)


def test_another_programs_file_is_left_alone(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    store, path = cloud_store(tmp_path / "a.zarr", range(2)), tmp_path / NAME
    save_file({"weights": np.zeros(3)}, path)
    content = path.read_bytes()
    with pytest.raises(InputError, match="was not made by sodp3d and is not overwritten"):
        dataset([store])
    assert path.read_bytes() == content
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        dataset([store])


def test_episodes_that_are_not_converted_are_named(tmp_path: Path) -> None:
    path = make_store(tmp_path / "a.zarr", range(2), length=4).path
    convert_store(path, CONFIG)
    with EpisodeStore.open(path, "a") as store:
        store.append(episode(2), metadata(2))
    store, keys = EpisodeStore.open(path), ["agent_pos", "point_cloud"]
    with pytest.raises(InputError, match=r"data/point_cloud holds 2 of 3 episodes.*convert\.py env=toy"):
        dataset([store], keys=keys)
    assert len(dataset([store], keys=keys, episodes=[np.array([1])])) == 4
    assert files(tmp_path) == ["a.zarr.action-agent_pos-point_cloud.safetensors"]


@pytest.mark.parametrize("how", ["too small", "fills up", "fills up at the end"])
def test_a_full_disk_is_one_message_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    store = cloud_store(tmp_path / "a.zarr", range(5), 9)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if how == "too small":
            usage = type("Usage", (), {"free": 1000})
            patch.setattr("shutil.disk_usage", lambda _: usage)
        elif how == "fills up at the end":
            patch.setattr(os, "fsync", full)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
        try:
            with pytest.raises(InputError, match=r"nothing (was written|of it was left).*run the same command again"):
                dataset([store])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == []
    assert dataset([store]).memory == "mapped" and files(tmp_path) == [NAME]


KILLED = """
import sys, time
from pathlib import Path
from toy_clouds import dataset
from sodp3d.data import mapping
from sodp3d.data.store import EpisodeStore
def stop(*_):
    print("there", flush=True)
    time.sleep(60)
if sys.argv[2] == "rows":
    mapping.tables_digest = stop
else:
    mapping.Path.replace = stop
dataset([EpisodeStore.open(sys.argv[1])])
"""
AT_ONCE = """
import sys
from toy_clouds import dataset
from sodp3d.data import mapping
from sodp3d.data.store import EpisodeStore
made, make = [], mapping._make
mapping._make = lambda *arguments: (made.append(1), make(*arguments))
sys.stdin.readline()
found = dataset([EpisodeStore.open(sys.argv[1])])
print(len(made), found.data.current, flush=True)
"""


def start(script: str, *arguments: str) -> "subprocess.Popen[str]":
    root = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_file_whose_maker_was_killed_is_made_anew_and_no_litter_stays(tmp_path: Path) -> None:
    store = cloud_store(tmp_path / "a.zarr", range(4))
    with start(KILLED, str(store.path), "rows") as one, start(KILLED, str(store.path), "end") as other:
        for process in (one, other):  # the second one waits for the first, and takes over
            assert process.stdout is not None
            told = process.stdout.readline()
            assert told == "there\n"
            process.send_signal(signal.SIGKILL)
            process.wait(10)
    assert [name for name in files(tmp_path) if name.endswith(".partial")] and NAME not in files(tmp_path)
    found, expected = all_windows(dataset([store])), all_windows(dataset([store], "ram"))
    assert all((found[key] == expected[key]).all() for key in found) and files(tmp_path) == [NAME]


def test_of_several_processes_at_once_one_makes_the_file(tmp_path: Path) -> None:
    store = cloud_store(tmp_path / "a.zarr", range(9))
    processes = [start(AT_ONCE, str(store.path)) for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate(timeout=120)[0].split() for process in processes]
    assert sorted(made for made, _ in told) == ["0", "1"] and files(tmp_path) == [NAME]
    assert {current for _, current in told} == {identify([store], KEYS).current}
