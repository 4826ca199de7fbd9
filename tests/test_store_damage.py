"""Stores that something else than our writer has changed: refused, told by `verify`, or right; and nothing is lost."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_conversion import CONFIG
from toy_store import ATTRIBUTES, SPECIFICATION, assert_holds, episode, make_store, metadata

from sodp3d.core.errors import InputError
from sodp3d.core.mappings import plain
from sodp3d.data import columns
from sodp3d.data.completeness import note_asked, require_complete
from sodp3d.data.conversion import convert_store
from sodp3d.data.merge import merge
from sodp3d.data.store import EpisodeStore
from sodp3d.data.views import renderer_of, require_same_rate, require_same_view
from sodp3d.results.stores import StoreRecord
from sodp3d.tools import report
from sodp3d.tools.card import card_text
from sodp3d.tools.extract import extract
from sodp3d.tools.frames import store_frames
from sodp3d.vision.pointcloud import CropConfig
from sodp3d.vision.sensors import sensor


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_store(tmp_path / "toy" / "episodes.zarr", range(6), length=4).path


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refused(path: Path, words: str, mode: Any = "a") -> None:
    """Opening stops with these words and changes nothing."""
    before = files(path)
    with pytest.raises(InputError, match=words):
        EpisodeStore.open(path, mode)
    assert files(path) == before


# -- what the specification names --------------------------------------------------------------------------------------


def test_a_collected_array_that_is_gone_is_told_and_nothing_is_appended(path: Path) -> None:
    shutil.rmtree(path / "data/action")
    refused(path, r"data/action: is missing or has no \.zarray, so no episode can be appended")
    store = EpisodeStore.open(path)
    assert len([line for line in store.verify() if "data/action cannot be read (the array is missing)" in line]) == 6
    np.testing.assert_array_equal(store.read("state", 5, 6), episode(5, 4)["state"])


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "<f8"},
        {"dtype": "nonsense"},
        {"dtype": ["<f4"]},
        {"shape": [0, 3]},
        {"shape": [24]},
        {"shape": "many"},
        {"shape": [-1, 3]},
        {"shape": [24, 4]},
        {"chunks": [0, 3]},
        {"chunks": [7, 3]},
        {"chunks": [1000, 1]},
        {"chunks": [10**12, 3]},
        {"chunks": None},
        {"zarr_format": 3},
        {"compressor": "blosc"},
        {"compressor": None},
        {"compressor": {"id": "blosc", "cname": 5}},
        {"filters": [{"id": "delta"}]},
        {"order": "Z"},
        {"dimension_separator": "/"},
        {"fill_value": {}},
    ],
    ids=str,
)
def test_a_header_that_says_something_else_is_refused_or_told(path: Path, changes: dict[str, Any]) -> None:
    edit(path / "data/action/.zarray", **changes)
    try:
        assert len(EpisodeStore.open(path).verify()) == 6
    except InputError as error:
        assert "data/action" in str(error)
    refused(path, "data/action")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe\x00", b"[" * 100_000, b"null"])
@pytest.mark.parametrize("name", ["data/action/.zarray", "meta/seed/.zarray", "meta/.zattrs", ".zattrs"])
def test_a_file_that_is_no_json_object_is_one_message(path: Path, name: str, content: bytes) -> None:
    (path / name).write_bytes(content)
    refused(path, f"{name}: ", "r")
    (path / name).unlink()
    (path / name).mkdir()
    refused(path, f"{name}: cannot read", "r")


def test_a_header_that_claims_too_many_rows_is_cut_at_once(path: Path) -> None:
    edit(path / "data/action/.zarray", shape=[10**15, 3])
    EpisodeStore.open(path, "a").close()
    assert_holds(EpisodeStore.open(path), list(range(6)), length=4)
    assert zarr.open_group(path, mode="r")["data/action"].shape == (24, 3)


def test_arrays_of_somebody_else_are_left_alone(path: Path) -> None:
    zarr.open_group(path / "data", mode="r+", zarr_format=2).create_array("labels", data=np.arange(40))
    before = files(path / "data/labels")
    with EpisodeStore.open(path, "a") as store:
        store.append(episode(6, 4), metadata(6))
        assert store.verify() == [] and "labels" not in store.keys
    with pytest.raises(InputError, match="data/labels was not made as output=labels and is not overwritten"):
        convert_store(path, CONFIG, output="labels")
    assert files(path / "data/labels") == before


# -- what was committed ------------------------------------------------------------------------------------------------


def test_a_stale_header_of_episode_ends_cuts_nothing(path: Path) -> None:
    header = (path / "meta/episode_ends/.zarray").read_bytes()
    with EpisodeStore.open(path, "a") as store:
        for number in range(6, 9):
            store.append(episode(number, 4), metadata(number))
    (path / "meta/episode_ends/.zarray").write_bytes(header)
    words = r'counts 6 episodes, but 9 \(36 steps\) were committed.*set "shape" in it to \[9\]'
    refused(path, words, "r")
    refused(path, words)
    edit(path / "meta/episode_ends/.zarray", shape=[9])
    EpisodeStore.open(path, "a").close()
    assert_holds(EpisodeStore.open(path), list(range(9)), length=4)


def test_a_stale_header_in_a_store_without_the_record_cuts_nothing_either(path: Path) -> None:
    (path / "meta/.zattrs").unlink()  # as releases before the record left it
    edit(path / "meta/episode_ends/.zarray", shape=[4])
    refused(path, "counts 4 episodes, but meta/seed holds 6 values, while a killed writer leaves one more at most")
    edit(path / "meta/episode_ends/.zarray", shape=[6])
    EpisodeStore.open(path, "a").close()
    assert_holds(EpisodeStore.open(path), list(range(6)), length=4)


def test_stores_of_releases_without_the_record_are_read_and_grow(path: Path) -> None:
    record = (path / "meta/.zattrs").read_bytes()
    (path / "meta/.zattrs").unlink()
    assert_holds(EpisodeStore.open(path), list(range(6)), length=4)
    with EpisodeStore.open(path, "a") as store:
        assert (path / "meta/.zattrs").read_bytes() == record, "from now on it has one"
        store.append(episode(6, 4), metadata(6))
    (path / "meta/.zattrs").write_bytes(record)  # as if such a release had appended
    assert_holds(EpisodeStore.open(path), list(range(7)), length=4)
    EpisodeStore.open(path, "a").close()
    assert json.loads((path / "meta/.zattrs").read_text())["committed"]["episodes"] == 7


def test_another_value_of_a_step_is_told(path: Path) -> None:
    for key, row in (("depth", 5), ("reward", 20)):
        array = zarr.open_array(path / "data" / key, mode="r+", zarr_format=2)
        array[row] = array[row] + 1
    told = [line.split("episodes.zarr: ")[1] for line in EpisodeStore.open(path).verify()]
    assert [line.split(". ")[0] for line in told] == [
        f"episode {index}: its values are not those that were committed" for index in (1, 5)
    ]


def test_checksums_of_a_store_that_had_none_begin_with_the_next_episode(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_ROWS_PER_CHUNK", 4)
    (path / "meta/.zattrs").unlink()
    shutil.rmtree(path / "meta/checksum")
    assert not EpisodeStore.open(path).checksums.any()
    with EpisodeStore.open(path, "a") as store:
        store.append(episode(6, 4), metadata(6))
    assert (EpisodeStore.open(path).checksums != 0).tolist() == [False] * 6 + [True]
    store = EpisodeStore.open(path)
    assert_holds(store, list(range(7)), length=4)
    assert store.verify() == []


def test_a_record_that_could_not_be_written_costs_no_episode(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with EpisodeStore.open(path, "a") as store, monkeypatch.context() as patch:
        patch.setattr(columns, "record_commit", full)
        assert store.append(episode(6, 4), metadata(6)) == 6
    assert_holds(EpisodeStore.open(path), list(range(7)), length=4)


def test_columns_that_other_software_compressed_are_read_right(path: Path, tmp_path: Path) -> None:
    seeds = EpisodeStore.open(path).metadata["seed"]
    shutil.rmtree(path / "meta/seed")
    zarr.open_group(path / "meta", mode="r+", zarr_format=2).create_array("seed", data=seeds, chunks=(5,))
    store = EpisodeStore.open(path)
    np.testing.assert_array_equal(store.metadata["seed"], seeds)
    assert store.verify() == []
    refused(path, "meta/seed: was compressed by other software.*sodp3d merge")
    with merge([path], tmp_path / "copy.zarr") as copy:
        assert_holds(copy, list(range(6)), length=4)


@pytest.mark.parametrize("name", ["episode_ends", "seed", "episode_return", "success_any", "checksum"])
def test_another_value_of_a_column_is_refused(path: Path, name: str) -> None:
    chunk = path / "meta" / name / "0"
    content = bytearray(chunk.read_bytes())
    content[1] ^= 1
    chunk.write_bytes(content)
    refused(path, f"meta/{name}: (its first 6 values are not those that were committed|does not increase)", "r")
    chunk.unlink()
    refused(path, f"meta/{name}: chunk 0: No such file", "r")


def test_readers_beside_a_writer_are_never_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer commits after a reader has read the record, and after it has read the ends."""
    with EpisodeStore.open(path, "a") as writer:
        read, number = columns.read_column, 6

        def meanwhile(folder: Path, dtype: str) -> Any:
            nonlocal number
            values = read(folder, dtype)
            if number < 9:
                number += 1
                writer.append(episode(number - 1, 4), metadata(number - 1))
            return values

        monkeypatch.setattr(columns, "read_column", meanwhile)
        assert_holds(EpisodeStore.open(path), list(range(6)), length=4)
    assert number == 9


# -- attributes --------------------------------------------------------------------------------------------------------


MORE = {
    "versions": {"sodp3d": "0", "command": "collect.py", "git_commit": "0" * 12},
    "rendered_again": {"camera": {"height": 12, "width": 12}, "renderer": "egl"},
    "extracted": {"data_hash": "v2-0", "episodes": 6, "quality": "all", "fraction": 1.0},
    "action_names": ["a", "b", "c"],
}


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something can be changed: every key at every depth, and the first entry of every list."""
    for key, inner in value.items() if isinstance(value, dict) else list(enumerate(value))[:1]:
        yield (*above, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*above, key))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with clouds and all attributes that a store may have."""
    path = tmp_path_factory.mktemp("whole") / "toy/episodes.zarr"
    with EpisodeStore.create(path, {**ATTRIBUTES, **MORE}, SPECIFICATION) as store:
        for number in range(2):
            store.append(episode(number, 4), metadata(number))
    convert_store(path, CONFIG)
    return path


def append(path: Path) -> None:
    with EpisodeStore.open(path, "a") as store:
        store.append(episode(2, 4), metadata(2))


def see(path: Path) -> None:
    store, clouds = EpisodeStore.open(path), sensor("pointcloud")
    assert isinstance(renderer_of(store, clouds), str)
    require_same_view(store, clouds, CONFIG)


def test_clouds_of_another_crop_come_with_the_command_that_makes_them_again(whole: Path) -> None:
    store, clouds = EpisodeStore.open(whole), sensor("pointcloud")
    with pytest.raises(InputError, match=r"made with env\.points = \d+, .* data=\S+ again=clouds env\.points=\d+$"):
        require_same_view(store, clouds, replace(CONFIG, points=CONFIG.points + 1))
    moved = replace(CONFIG, camera=replace(CONFIG.camera, fovy=77.0))
    with pytest.raises(InputError, match=r"env\.camera\.fovy = .* output_data=<new folder> env\.camera\.fovy=77\.0$"):
        require_same_view(store, clouds, moved)
    higher = replace(CONFIG, crop=CropConfig((*CONFIG.crop.low[:2], 0.125), CONFIG.crop.high))
    with pytest.raises(InputError, match=r"again=clouds 'env\.crop\.low=\[\S+,0\.125\]'$"):  # the list as a whole
        require_same_view(store, clouds, higher)


def test_another_control_rate_is_refused(path: Path) -> None:
    store = EpisodeStore.open(path)
    stored = store.attributes["env_config"]["action_repeat"]
    require_same_rate(store, replace(CONFIG, action_repeat=stored))
    with pytest.raises(InputError, match=rf"collected with env\.action_repeat={stored}, but {stored + 1} came"):
        require_same_rate(store, replace(CONFIG, action_repeat=stored + 1))


def test_messages_name_the_store_itself_wherever_it_lies(path: Path, tmp_path: Path) -> None:
    name = str(EpisodeStore.open(path).attributes["env"])
    usual = make_store(tmp_path / "data" / name / "episodes.zarr", range(1), length=4).path
    assert EpisodeStore.open(usual).typed == [f"env={name}"]
    assert EpisodeStore.open(path).typed == [f"env={name}", f"data={path.parent}"]


def merged(path: Path) -> None:
    other = make_store(path.with_name("other.zarr"), [5], length=4)
    merge([path, other.path], path.with_name("merged.zarr")).close()
    card_text(EpisodeStore.open(path.with_name("merged.zarr")), [])


USES: dict[str, Callable[[Path], Any]] = {
    "verify": lambda path: EpisodeStore.open(path).verify(),
    "append": append,
    "convert": lambda path: convert_store(path, CONFIG),
    "card": lambda path: card_text(EpisodeStore.open(path), []),
    "extract": lambda path: extract(path, path.with_name("extracted.zarr")).close(),
    "merge": merged,
    "frames": lambda path: store_frames(EpisodeStore.open(path), 2, 10**6, 3),
    "see": see,
    "results": lambda path: StoreRecord.read(path.parent).facts,
    "report": lambda path: report._facts(EpisodeStore.open(path)),
}
_WHOLE = plain({**ATTRIBUTES, **MORE, "schema_version": 1})
_STATE = {"keys": ["point_cloud", "point_cloud_kept"], "episodes": 2, "parameters": {"points": 20}, "statistics": {}}
PLACES = [*places({**_WHOLE, "conversion": {"point_cloud": _STATE}}), ("specification", "depth", "shape", 0)]
REMOVED = "removed"
ODD = [REMOVED, None, 7, -1, 0, 1.5, True, "x", "", [], [None], [[]], {}, {"a": None}, 10**30, "<img src=x>"]


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.sampled_from(PLACES), value=st.sampled_from(ODD), use=st.sampled_from(sorted(USES)))
def test_any_odd_attribute_is_one_message_or_harmless(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], value: Any, use: str
) -> None:
    path = tmp_path_factory.mktemp("odd") / "toy/episodes.zarr"
    shutil.copytree(whole, path)
    change(path / ".zattrs", place, value)
    try:
        USES[use](path)
    except InputError as error:
        assert len(str(error)) > 20
    finally:
        shutil.rmtree(path.parent.parent)


def change(file: Path, place: tuple[Any, ...], value: Any) -> None:
    attributes = json.loads(file.read_text())
    holder = attributes
    for key in place[:-1]:
        holder = holder[key]
    if value == REMOVED:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    file.write_text(json.dumps(attributes))


@pytest.mark.parametrize("name", ["env", "env_config", "camera", "renderer"])
@pytest.mark.parametrize("value", [REMOVED, None, 7, []])
def test_what_a_store_needs_is_checked_on_opening(whole: Path, tmp_path: Path, name: str, value: Any) -> None:
    shutil.copytree(whole, tmp_path / "a.zarr")
    change(tmp_path / "a.zarr/.zattrs", (name,), value)
    with pytest.raises(InputError, match=f"attribute {name}: expected .*, got .* restore .zattrs from a copy"):
        EpisodeStore.open(tmp_path / "a.zarr")


def test_merged_stores_with_differing_provenance_have_cards_and_records(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        own = {"versions": {"command": name}, "rendered_again": {"camera": {"height": 9, "width": 9}, "renderer": name}}
        with EpisodeStore.create(tmp_path / f"{name}.zarr", {**ATTRIBUTES, **own}, SPECIFICATION) as store:
            store.append(episode(number), metadata(number))
    merge([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "ab.zarr").close()
    merge([tmp_path / "ab.zarr", tmp_path / "c.zarr"], tmp_path / "toy/episodes.zarr").close()
    store = EpisodeStore.open(tmp_path / "toy/episodes.zarr")
    assert [versions["command"] for versions in store.attributes["versions"]] == ["a", "b", "c"]
    assert card_text(store, []).count("| depth drawn again |") == 3
    assert StoreRecord.read(tmp_path / "toy").command == "python a"


@pytest.mark.parametrize("versions", [None, {"command": "a"}])
def test_a_merged_store_that_is_half_collected_is_told(tmp_path: Path, versions: dict[str, str] | None) -> None:
    for number, own in enumerate((versions, {"command": "b"})):
        attributes = {**ATTRIBUTES, "versions": own}
        with EpisodeStore.create(tmp_path / f"{number}.zarr", attributes, SPECIFICATION) as store:
            store.append(episode(number), metadata(number))
    merge([tmp_path / "0.zarr", tmp_path / "1.zarr"], tmp_path / "toy/episodes.zarr").close()
    for folder in (tmp_path / "toy", tmp_path):
        (folder / "agent").mkdir()
        note_asked(folder, 1000)
    whole = EpisodeStore.open(tmp_path / "toy/episodes.zarr")
    alone = EpisodeStore.open(tmp_path / "0.zarr")
    with pytest.raises(InputError, match=r"2 of 2 stores are half collected.*\n.*of 1000 steps; .* with: ") as refused:
        require_complete([whole, alone], partial=False)
    assert f"with: {'python a' if versions else 'python b'}" in str(refused.value)


# -- what is derived ---------------------------------------------------------------------------------------------------


def test_clouds_that_are_gone_are_told_and_made_again(path: Path) -> None:
    convert_store(path, CONFIG)
    shutil.rmtree(path / "data/point_cloud")
    store = EpisodeStore.open(path)
    assert [line.split("episodes.zarr: ")[1] for line in store.verify()] == [
        "data/point_cloud is missing, of which 6 episodes were made; convert again"
    ]
    with pytest.raises(InputError, match="point_cloud holds 0 of 6 episodes"):
        store.read("point_cloud")
    convert_store(path, CONFIG)
    assert EpisodeStore.open(path).read("point_cloud").shape == (24, 20, 3)
    assert EpisodeStore.open(path).verify() == []


def test_other_values_of_clouds_are_told_unless_an_earlier_release_made_some(path: Path) -> None:
    convert_store(path, CONFIG)
    clouds = zarr.open_array(path / "data/point_cloud", mode="r+", zarr_format=2)
    clouds[7] = clouds[7] + 1
    (told,) = EpisodeStore.open(path).verify()
    assert told.endswith("data/point_cloud: its values are not those that were made; remove it, and convert again")
    with EpisodeStore.open(path, "a") as store:
        store.append(episode(6, 4), metadata(6))
    assert len(EpisodeStore.open(path).verify()) == 1
    change(path / ".zattrs", ("conversion", "point_cloud", "episodes"), 5)  # as a release without checksums has it
    assert EpisodeStore.open(path).verify() == []
    convert_store(path, CONFIG)
    assert EpisodeStore.open(path).readable("point_cloud") == 7 and EpisodeStore.open(path).verify() == []


def test_clouds_of_another_size_are_refused(path: Path) -> None:
    convert_store(path, CONFIG)
    edit(path / "data/point_cloud_kept/.zarray", dtype="<u4")
    with pytest.raises(InputError, match=r"point_cloud_kept holds uint32 \(\) per step instead of int32 \(\)"):
        convert_store(path, CONFIG)


@pytest.mark.parametrize("output", ["../meta", "..", "a/b", "", "action", ".hidden", "x.partial"])
def test_an_output_is_a_name_of_its_own(path: Path, output: str) -> None:
    before = files(path)
    with pytest.raises(InputError, match="output: "):
        convert_store(path, CONFIG, output=output)
    assert files(path) == before


def test_values_are_on_the_disk_before_they_count_as_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync = [], os.fsync

    def note(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).relative_to(path.resolve()).as_posix())
        sync(handle)

    monkeypatch.setattr(os, "fsync", note)
    convert_store(path, CONFIG)
    counted = [place for place, name in enumerate(synced) if name.startswith(".zattrs")]
    assert len(counted) == 8, "the beginning, six episodes, the statistics"
    for before, after in pairwise(counted[:7]):
        for key, chunk in (("point_cloud", "0.0.0"), ("point_cloud_kept", "0")):
            assert {f"data/{key}", f"data/{key}/{chunk}", f"data/{key}/.zarray"} <= set(synced[before:after])
    assert EpisodeStore.open(path).readable("point_cloud") == 6


# -- leftovers ---------------------------------------------------------------------------------------------------------


def test_what_killed_writers_left_goes_with_the_next_one(path: Path) -> None:
    name = "0" * 32
    beside = [path.with_name(f"{dot}{path.name}.{name}.partial") for dot in (".", "")]
    for folder in beside:
        shutil.copytree(path, folder)
    inside = [path / f".zattrs.{name}.partial", path / f"meta/.zattrs.{name}.partial"]
    inside += [path / f"meta/seed/0.{name}.partial", path / f"data/action/0.{name}.partial"]
    for file in inside:
        file.write_text("half")
    (path / f"{name}.partial").mkdir()
    foreign = path.with_name("mine.partial")
    foreign.write_text("mine")
    EpisodeStore.open(path, "a").close()
    assert list(path.parent.rglob("*.partial")) == [foreign]
    assert_holds(EpisodeStore.open(path), list(range(6)), length=4)


def test_and_with_the_next_one_who_makes_the_store(tmp_path: Path) -> None:
    left = tmp_path / f"a.zarr.{'0' * 32}.partial"
    left.mkdir()
    (left / ".zgroup").write_text("{}")
    EpisodeStore.create(tmp_path / "a.zarr", ATTRIBUTES, SPECIFICATION).close()
    assert not left.exists()
