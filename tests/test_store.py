"""Stores: layout, refusals, damage, merging."""

import errno
import json
import multiprocessing
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from toy_store import ATTRIBUTES, SPECIFICATION, assert_holds, episode, make_store, metadata

from sodp3d.core.errors import InputError
from sodp3d.core.mappings import plain
from sodp3d.data import arrays, columns
from sodp3d.data.dataset import select_episodes
from sodp3d.data.hashing import data_hash
from sodp3d.data.merge import merge
from sodp3d.data.store import CorruptEpisode, EpisodeStore
from sodp3d.tools.extract import extract
from sodp3d.tools.extract import main as extract_command
from sodp3d.vision.pointcloud import CropConfig


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "toy" / "episodes.zarr"


def test_layout_is_what_replay_buffer_checks(path: Path) -> None:
    """diffusion_policy's ReplayBuffer: groups data and meta, Zarr 2, episode_ends int64, every data array that long."""
    make_store(path, range(5))
    root = zarr.open_group(path, mode="r")
    assert root.metadata.zarr_format == 2
    assert {"data", "meta"} <= set(root.group_keys())
    ends = root["meta/episode_ends"][:]
    assert ends.dtype == np.int64 and (np.diff(ends) > 0).all()
    for name, array in root["data"].arrays():
        assert array.shape[0] == ends[-1], name
        assert json.loads((path / "data" / name / ".zarray").read_text())["filters"] is None
    np.testing.assert_array_equal(root["data/action"][ends[2] : ends[3]], episode(3)["action"])
    for name in ("state", "agent_pos", "depth"):
        assert name in root["data"]
    # The store is plain JSON and chunks: nothing a strict parser chokes on.
    json.loads((path / ".zattrs").read_text(), parse_constant=lambda value: pytest.fail(f"{value} is not JSON"))


def test_reads_back_what_was_appended(path: Path) -> None:
    store = make_store(path, range(20))
    assert_holds(store, list(range(20)))
    assert store.verify() == []
    np.testing.assert_array_equal(store.read("state", 3, 8), np.concatenate([episode(n)["state"] for n in range(3, 8)]))
    crop = store.attributes["env_config"]["crop"]
    assert CropConfig.from_config(crop).low[0] == float("-inf")
    with pytest.raises(IndexError):
        store.bounds(20)


def test_several_chunks_of_episode_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_ROWS_PER_CHUNK", 4)
    monkeypatch.setattr(arrays, "_CHUNK_STEPS", 5)
    store = make_store(path, range(9))
    assert_holds(store, list(range(9)))
    assert sorted(file.name for file in (path / "meta/episode_ends").glob("[0-9]*")) == ["0", "1", "2"]
    np.testing.assert_array_equal(zarr.open_group(path, mode="r")["meta/episode_ends"][:], store.episode_ends)


def test_readers_see_only_what_was_committed_when_they_opened(path: Path) -> None:
    with EpisodeStore.create(path, ATTRIBUTES, SPECIFICATION) as writer:
        writer.append(episode(0), metadata(0))
        early = EpisodeStore.open(path)
        writer.append(episode(1), metadata(1))
        assert_holds(early, [0])
        assert_holds(EpisodeStore.open(path), [0, 1])


def test_never_overwrites(path: Path) -> None:
    make_store(path, [0])
    with pytest.raises(InputError, match="exists already"):
        EpisodeStore.create(path, ATTRIBUTES, SPECIFICATION)
    with EpisodeStore.open(path, "a") as store:
        with pytest.raises(InputError, match="cannot change"):
            store.update_attributes({"env": "other"})
        with pytest.raises(InputError, match="not overwritten"):
            store.write_rows("depth", 0, episode(0)["depth"])
    assert_holds(EpisodeStore.open(path), [0])


def _break(arrays: dict[str, Any], how: str) -> None:
    if how == "nan":
        arrays["state"][-1, 2] = np.nan
    if how == "infinity":
        arrays["reward"][0] = np.inf
    if how == "length":
        arrays["depth"] = arrays["depth"][:-1]
    if how == "type":
        arrays["action"] = arrays["action"].astype(np.float64)
    if how == "missing":
        del arrays["depth"]
    if how == "unknown":
        arrays["colour"] = arrays["depth"]
    if how == "empty":
        arrays.update({key: values[:0] for key, values in arrays.items()})
    if how == "shape":
        arrays["agent_pos"] = arrays["agent_pos"][:, :1]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("nan", "episode.state: NaN or infinity at step 4"),
        ("infinity", "episode.reward: NaN"),
        ("length", r"episode.depth: expected shape \(5, 12, 12\), got \(4, 12, 12\)"),
        ("type", "episode.action: expected type float32, got float64"),
        ("missing", r"missing \['depth'\]"),
        ("unknown", r"unknown \['colour'\]"),
        ("empty", "no steps"),
        ("shape", "episode.agent_pos"),
    ],
)
def test_unsound_episodes_are_refused_and_cost_nothing(path: Path, how: str, words: str) -> None:
    with EpisodeStore.create(path, ATTRIBUTES, SPECIFICATION) as store:
        store.append(episode(0), metadata(0))
        before = _files(path)
        broken = episode(1, 5)
        _break(broken, how)
        with pytest.raises(InputError, match=words):
            store.append(broken, metadata(1))
        assert _files(path) == before
        for wrong in ({"seed": 1}, {**metadata(1), "episode_return": float("nan")}):
            with pytest.raises(InputError, match="metadata"):
                store.append(episode(1), wrong)
        store.append(episode(1), metadata(1))
    assert_holds(EpisodeStore.open(path), [0, 1])


def _files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"renderer": "egl"}, "renderer = 'raycast', but 'egl'"),
        ({"env": "door"}, "env = 'toy', but 'door'"),
        ({"env_config": {**ATTRIBUTES["env_config"], "action_repeat": 1}}, "env_config.action_repeat = 2, but 1"),
        ({"camera": {**ATTRIBUTES["camera"], "height": 84}}, "camera.height = 12, but 84"),
    ],
)
def test_another_environment_camera_or_renderer_is_refused(path: Path, changes: dict[str, Any], words: str) -> None:
    make_store(path, [0])
    with pytest.raises(InputError, match=words):
        EpisodeStore.open(path, "a", {**ATTRIBUTES, **changes}, SPECIFICATION)
    # What later stages only need may change, and so may the last bits of a pose.
    harmless = {
        "env_config": {**ATTRIBUTES["env_config"], "crop": None, "horizon": 16},
        "camera": {**ATTRIBUTES["camera"], "pose": (np.array(ATTRIBUTES["camera"]["pose"]) + 1e-12).tolist()},
    }
    EpisodeStore.open(path, "a", {**ATTRIBUTES, **harmless}, SPECIFICATION).close()


def test_another_specification_is_refused(path: Path) -> None:
    make_store(path, [0])
    other = {**SPECIFICATION, "depth": ((84, 84), "uint16")}
    with pytest.raises(InputError, match=r"data/depth is uint16 \(12, 12\) in this store, but uint16 \(84, 84\)"):
        EpisodeStore.open(path, "a", ATTRIBUTES, other)
    with pytest.raises(InputError, match="object"):
        EpisodeStore.create(path.with_name("other.zarr"), ATTRIBUTES, {**SPECIFICATION, "names": ((), "object")})


def test_another_schema_version_is_refused(path: Path) -> None:
    make_store(path, [0])
    attributes = json.loads((path / ".zattrs").read_text())
    (path / ".zattrs").write_text(json.dumps({**attributes, "schema_version": 99}))
    with pytest.raises(InputError, match="expected schema_version 1, got 99"):
        EpisodeStore.open(path)
    (path / ".zattrs").write_text("{}")
    with pytest.raises(InputError, match="schema_version"):
        EpisodeStore.open(path)


def test_missing_store_names_the_command(path: Path) -> None:
    with pytest.raises(InputError, match=r"collect\.py"):
        EpisodeStore.open(path)
    with pytest.raises(InputError, match="attribute camera: expected an object, got nothing"):
        EpisodeStore.create(path, {key: value for key, value in ATTRIBUTES.items() if key != "camera"}, SPECIFICATION)


def test_two_writers_are_refused(path: Path) -> None:
    make_store(path, [0])
    with EpisodeStore.open(path, "a"):
        with pytest.raises(InputError, match=f"process {os.getpid()} on .* is writing"):
            EpisodeStore.open(path, "a")
        assert len(EpisodeStore.open(path)) == 1  # readers are welcome
    EpisodeStore.open(path, "a").close()
    with pytest.raises(InputError, match="reading only"):
        EpisodeStore.open(path).append(episode(1), metadata(1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_does_not_keep_the_lock(path: Path) -> None:
    store = EpisodeStore.create(path, ATTRIBUTES, SPECIFICATION)
    context = multiprocessing.get_context("fork")
    running, stop = context.Event(), context.Event()
    child = context.Process(target=lambda: (running.set(), stop.wait()))
    child.start()
    try:
        assert running.wait(10)
        # As the kernel does it when the process is killed: the file is closed, nothing is unlocked by hand.
        assert store._lock is not None
        store._lock.forget()
        EpisodeStore.open(path, "a").close()
    finally:
        stop.set()
        child.join()


@pytest.mark.parametrize("at", [0, 5, 13, 20])
def test_full_disk_commits_nothing_and_mends(path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    with EpisodeStore.create(path, ATTRIBUTES, SPECIFICATION) as store:
        store.append(episode(0), metadata(0))
        count = 0

        def full(source: Any, destination: Any) -> None:
            nonlocal count
            count += 1
            if count > at:
                raise OSError(errno.ENOSPC, "No space left on device")
            os.rename(source, destination)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(InputError, match=r"No space left on device.*the 1 before it are safe"):
                store.append(episode(1, 9), metadata(1))
        assert count > at
        assert_holds(EpisodeStore.open(path), [0])
        store.append(episode(2), metadata(2))
    store = EpisodeStore.open(path)
    assert_holds(store, [0, 2])
    assert store.verify() == []
    assert not list(path.rglob("*.partial"))


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "halved", "longer", "garbled"])
def test_damaged_chunks_are_named(path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_CHUNK_STEPS", 6)
    make_store(path, range(6), length=4)  # chunks hold 6 steps, so chunk 1 holds the end of episode 1 and episode 2
    chunk = path / "data" / "depth" / "1.0.0"
    content = chunk.read_bytes()
    if damage == "missing":
        chunk.unlink()
    elif damage == "garbled":  # a sound length, and stuff that is no Blosc frame inside
        chunk.write_bytes(content[:16] + bytes(255 - byte for byte in content[16:]))
    else:
        new = {"empty": b"", "cut": content[:-1], "halved": content[: len(content) // 2], "longer": content + b"x"}
        chunk.write_bytes(new[damage])
    store = EpisodeStore.open(path)
    problems = store.verify()
    assert [problem.split("episodes.zarr: ")[1].split(" cannot")[0] for problem in problems] == [
        "episode 1: data/depth",
        "episode 2: data/depth",
    ]
    with pytest.raises(CorruptEpisode) as caught:
        store.episode(2)
    assert (caught.value.index, caught.value.key) == (2, "depth")
    with pytest.raises(CorruptEpisode, match="episode 1: data/depth"):
        store.read("depth")
    for index in (0, 3, 4, 5):
        np.testing.assert_array_equal(store.episode(index)["depth"], episode(index, 4)["depth"])


def test_chunks_of_zeros_are_written_so_that_missing_ones_show(path: Path) -> None:
    zeros = {key: np.zeros_like(values) for key, values in episode(0, 5).items()}
    with EpisodeStore.create(path, ATTRIBUTES, SPECIFICATION) as store:
        store.append(zeros, metadata(0))
    with EpisodeStore.open(path, "a") as store:
        store.append(zeros, metadata(1))
        assert store.verify() == []
    (path / "data" / "success" / "0").unlink()
    assert len(EpisodeStore.open(path).verify()) == 2


def test_damaged_episode_ends_are_refused(path: Path) -> None:
    make_store(path, range(3))
    chunk = path / "meta" / "episode_ends" / "0"
    chunk.write_bytes(struct.pack("<3q", 5, 4, 9).ljust(chunk.stat().st_size, b"\0"))
    with pytest.raises(InputError, match="does not increase"):
        EpisodeStore.open(path)
    chunk.write_bytes(b"")
    with pytest.raises(InputError, match="episode_ends: chunk 0 holds 0 bytes"):
        EpisodeStore.open(path)
    chunk.unlink()
    with pytest.raises(InputError, match="episode_ends"):
        EpisodeStore.open(path)


class _Bomb:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sentinel,)


def test_foreign_headers_run_no_code(path: Path, tmp_path: Path) -> None:
    """Zarr would unpickle a chunk whose header names numcodecs' pickle filter."""
    make_store(path, [0])
    sentinel = tmp_path / "ran"
    header = json.loads((path / "data/action/.zarray").read_text())
    header.update(dtype="|O", filters=[{"id": "pickle", "protocol": 5}], compressor=None)
    (path / "data/action/.zarray").write_text(json.dumps(header))
    (path / "data/action/0.0").write_bytes(pickle.dumps(_Bomb(sentinel)))
    with pytest.raises(InputError, match="not written by sodp3d"):
        EpisodeStore.open(path).verify()
    assert not sentinel.exists()


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from([*ATTRIBUTES, "schema_version", "specification", "conversion"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
)
def test_odd_attributes_raise_only_input_errors(path: Path, key: str, value: Any) -> None:
    if not path.exists():
        make_store(path, [])
    attributes = plain({**ATTRIBUTES, **_attributes_of_toy_store()})
    (path / ".zattrs").write_text(json.dumps({**attributes, key: value}))
    try:
        store = EpisodeStore.open(path, "a", ATTRIBUTES, SPECIFICATION)
        store.close()
        store.verify()
    except InputError as error:
        assert len(str(error)) > 20


def _attributes_of_toy_store() -> dict[str, Any]:
    fields = {key: field._asdict() for key, field in SPECIFICATION.items()}
    return {"schema_version": 1, "specification": fields}


# -- merging -----------------------------------------------------------------------------------------------------------


@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])
@given(assignment=st.lists(st.integers(0, 2), min_size=2, max_size=6), twice=st.integers(0, 5))
def test_merge_does_not_depend_on_the_shards(tmp_path_factory: Any, assignment: list[int], twice: int) -> None:
    folder = tmp_path_factory.mktemp("merge")
    shards = []
    for shard in range(3):
        numbers = [number for number, owner in enumerate(assignment) if owner == shard]
        if shard == 0 and twice < len(assignment):
            numbers = [*numbers, twice] if twice not in numbers else numbers  # done again after a worker died
        make_store(folder / f"shard{shard}.zarr", numbers)
        shards.append(folder / f"shard{shard}.zarr")
    merge(shards, folder / "merged.zarr").close()
    single = make_store(folder / "single.zarr", range(len(assignment)))
    assert_holds(EpisodeStore.open(folder / "merged.zarr"), list(range(len(assignment))))
    assert _files(folder / "merged.zarr") == _files(single.path)
    merge(shards, folder / "merged.zarr").close()  # complete: does nothing
    assert _files(folder / "merged.zarr") == _files(single.path)


def test_merge_continues_after_a_kill(tmp_path: Path) -> None:
    make_store(tmp_path / "a.zarr", [0, 2, 4])
    make_store(tmp_path / "b.zarr", [1, 3])
    make_store(tmp_path / "target.zarr", [0, 1, 2])  # as a killed merge left it
    with merge([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "target.zarr") as merged:
        assert_holds(merged, [0, 1, 2, 3, 4])
    make_store(tmp_path / "other.zarr", [1])
    with pytest.raises(InputError, match="not the first of those asked for"):
        merge([tmp_path / "a.zarr"], tmp_path / "other.zarr")


def test_merge_refuses_shards_that_contradict(tmp_path: Path) -> None:
    make_store(tmp_path / "a.zarr", [0])
    with EpisodeStore.create(tmp_path / "b.zarr", {**ATTRIBUTES, "renderer": "egl"}, SPECIFICATION) as store:
        store.append(episode(1), metadata(1))
    with pytest.raises(InputError, match="renderer"):
        merge([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "target.zarr")
    with EpisodeStore.create(tmp_path / "c.zarr", ATTRIBUTES, SPECIFICATION) as store:
        store.append(episode(5), metadata(0))
    with pytest.raises(InputError, match="both claim agent step 0 and seed 0"):
        merge([tmp_path / "a.zarr", tmp_path / "c.zarr"], tmp_path / "target.zarr")
    assert not (tmp_path / "target.zarr").exists()


@pytest.mark.parametrize("spelled", ["a.zarr", "other/../a.zarr"])
def test_merge_never_changes_a_shard(tmp_path: Path, spelled: str) -> None:
    make_store(tmp_path / "a.zarr", [0])
    make_store(tmp_path / "b.zarr", [1])
    (tmp_path / "other").mkdir()
    before = _files(tmp_path / "a.zarr")
    with pytest.raises(InputError, match=r"a\.zarr is the source itself, or one of them, and stays as it is"):
        merge([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / spelled)
    assert _files(tmp_path / "a.zarr") == before


def test_merge_does_not_go_on_with_what_came_to_be_otherwise(tmp_path: Path) -> None:
    with EpisodeStore.create(tmp_path / "a.zarr", {**ATTRIBUTES, "seed": 3}, SPECIFICATION) as store:
        store.append(episode(0), metadata(0))
        store.append(episode(1), metadata(1))
    make_store(tmp_path / "target.zarr", [0])
    with pytest.raises(InputError, match="was begun with seed = 7, but 3 came"):
        merge([tmp_path / "a.zarr"], tmp_path / "target.zarr")
    assert_holds(EpisodeStore.open(tmp_path / "target.zarr"), [0])


# -- extracting --------------------------------------------------------------------------------------------------------


def test_extracted_are_the_episodes_that_imitation_selects(tmp_path: Path) -> None:
    source = make_store(tmp_path / "source.zarr", range(12))
    with extract(source.path, tmp_path / "target.zarr", 1.0, 2, "count", "nearoptimal") as target:
        assert_holds(target, [6, 9])  # the last two of 0, 3, 6, 9, which succeed by `count`
        asked = {"quality": "nearoptimal", "fraction": 1.0, "success": "count", "max_episodes": 2}
        assert target.attributes["extracted"] == {"data_hash": data_hash(source), "episodes": 12, **asked}
    chosen = select_episodes(source, 1.0, 2, "count", "nearoptimal")
    again = EpisodeStore.open(tmp_path / "target.zarr")
    np.testing.assert_array_equal(source.metadata["seed"][chosen], again.metadata["seed"])
    assert len(select_episodes(again, 1.0, 2, "count", "nearoptimal")) == 2


def test_extracting_continues_after_a_kill_and_refuses_other_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_store(tmp_path / "source.zarr", range(12))
    append, left = EpisodeStore.append, iter(range(2))

    def until_killed(*arguments: Any) -> int:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return append(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(EpisodeStore, "append", until_killed)
        extract(source.path, tmp_path / "target.zarr", success="count")
    assert_holds(EpisodeStore.open(tmp_path / "target.zarr"), [0, 3])
    for _ in range(2):  # the second finds it complete
        with extract(source.path, tmp_path / "target.zarr", success="count") as target:
            assert_holds(target, [0, 3, 6, 9])
    with pytest.raises(InputError, match="not the first of those asked for"):
        extract(source.path, tmp_path / "target.zarr", success="final")
    with pytest.raises(InputError, match="is the source itself"):
        extract(source.path, source.path)


def test_an_extract_is_not_gone_on_with_by_another_question_or_of_other_data(tmp_path: Path) -> None:
    """Its attribute `extracted` would be wrong of what is added, even where its episodes begin alike."""
    source = make_store(tmp_path / "source.zarr", range(6))
    extract(source.path, tmp_path / "target.zarr", max_episodes=3).close()
    before = _files(tmp_path / "target.zarr")
    with pytest.raises(InputError, match=r"was begun with extracted\.max_episodes = 3, but 5 came.*name a new folder"):
        extract(source.path, tmp_path / "target.zarr", max_episodes=5)
    with EpisodeStore.open(source.path, "a") as grown:
        grown.append(episode(6), metadata(6))
    with pytest.raises(InputError, match=r"was begun with extracted\.data_hash = v2-"):
        extract(source.path, tmp_path / "target.zarr", max_episodes=3)
    assert _files(tmp_path / "target.zarr") == before


def test_extract_command_writes_a_card_and_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "toy" / "episodes.zarr", range(6))
    source, target = str(tmp_path / "toy"), str(tmp_path / "few")
    assert extract_command([source, target, "--quality", "nearoptimal", "--max-episodes", "2"]) == 0
    assert_holds(EpisodeStore.open(tmp_path / "few" / "episodes.zarr"), [4, 5])
    assert "of 6 episodes" in (tmp_path / "few" / "README.md").read_text()
    assert capsys.readouterr().out.startswith("2 episodes, ")
    assert extract_command([str(tmp_path / "nothing"), target]) == 2
    assert "no episode store here" in capsys.readouterr().err
    assert extract_command([source, str(tmp_path / "none"), "--max-episodes", "0"]) == 2
    assert not (tmp_path / "none").exists()
