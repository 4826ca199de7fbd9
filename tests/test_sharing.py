"""What is pushed is what is pulled; nothing else is taken, nothing is overwritten, and a kill leaves no half of it."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_hub import folder_server
from toy_planner import make_observation
from toy_recorded import depth_episode, make_recorded_store, recorded_episode
from toy_run import make_run
from toy_store import ATTRIBUTES, SPECIFICATION, assert_holds, episode, make_store, metadata

from sodp3d.core import checkpoint
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json, write_json
from sodp3d.core.mappings import plain
from sodp3d.core.paths import CHECKOUT
from sodp3d.core.run import read_config, read_versions
from sodp3d.data.recording import as_recorded
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig
from sodp3d.models.loading import (
    checkpoint_of,
    chosen_from,
    load_choice,
    load_planner,
    planner_state,
    require_fitting,
)
from sodp3d.rollouts.kept import KeptRollouts, recall
from sodp3d.sharing import cards, release
from sodp3d.sharing.contents import without_folders
from sodp3d.sharing.fetching import bring
from sodp3d.sharing.manifest import MANIFEST, Entry, Manifest
from sodp3d.sharing.pull import main as pull_main
from sodp3d.sharing.pull import pull, what_now
from sodp3d.sharing.push import push
from sodp3d.sharing.sources import Folder
from sodp3d.tools.card import find_card


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run", best_of=3)


@pytest.fixture(scope="module")
def pushed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pushed") / "door"
    push(run, str(folder), licence="mit")
    return folder


@pytest.fixture
def package(pushed: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(pushed, tmp_path / "package")


def relist(package: Path, **changes: Any) -> None:
    """Change the manifest of a package: None takes a file out."""
    content = json.loads((package / MANIFEST).read_text())
    files = {**content["files"], **changes}
    content["files"] = {name: entry for name, entry in files.items() if entry is not None}
    (package / MANIFEST).write_text(json.dumps(content))


def listed(path: Path) -> dict[str, Any]:
    """What a manifest says of a file as it is now."""
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}


def test_a_pulled_planner_acts_and_chooses_as_the_run_does(run: Path, pushed: Path, tmp_path: Path) -> None:
    where, manifest = pull(str(pushed), tmp_path / "new" / "door")
    assert manifest.kind == "planner" and where == tmp_path / "new" / "door"
    observation, noise = make_observation(), torch.randn(4, 3, 3, 4, 2)
    plans = [
        load_planner(path).plan(observation, noise, choice=load_choice(path), elapsed=torch.full((4,), 0.5))
        for path in (run, where)
    ]
    assert torch.equal(*plans)


def test_a_planner_is_its_weights_its_record_and_its_test_episodes(run: Path, pushed: Path) -> None:
    names = {path.relative_to(pushed).as_posix() for path in pushed.rglob("*") if path.is_file()}
    step, place = "checkpoints/00000012", "evaluation/adroit_door"
    assert names == {
        MANIFEST, "README.md", "config.yaml", "versions.json", "result.json", f"{step}/tensors.safetensors",
        f"{step}/state.json", f"{place}/rollouts.npz", f"{place}/evaluation.json",
    }  # fmt: skip
    tensors, state = checkpoint.load(checkpoint_of(pushed))
    assert {name.partition(".")[0] for name in tensors} == {"ema", "critic"} and "counters" not in state
    # Its episodes are known as those of the pulled weights, so that nothing is measured twice.
    digest = checkpoint.digest_of(checkpoint_of(pushed))
    kept = KeptRollouts.read(pushed / place / "rollouts.npz")
    assert (
        kept.planner
        == f"{digest}, best of 3"
        != KeptRollouts.read(run / "evaluation/best/adroit_door/rollouts.npz").planner
    )
    found = recall(digest, None, range(100000, 100003), pushed / place, chosen_from(pushed))  # type: ignore[arg-type]
    assert found is not None and [episode.success["any"] for episode in found.episodes] == [True, True, False]


def test_what_a_planner_is_held_to_comes_along(run: Path, tmp_path: Path) -> None:
    copy, planner = shutil.copytree(run, tmp_path / "run"), load_planner(run)
    config, path = read_config(run), checkpoint_of(copy) / checkpoint.STATE
    task = EnvConfig.from_config(config["env"])
    told = planner_state(planner, [task], "v2-1234")
    write_json(path, plain({**read_json(path), **told}))
    push(copy, str(tmp_path / "package"))
    where, _ = pull(str(tmp_path / "package"), tmp_path / "planner")
    state = checkpoint.load_state(checkpoint_of(where))
    assert {key: state.get(key) for key in told} == plain(told)
    require_fitting(state, planner, config, task)
    with pytest.raises(InputError, match=r"trained with env\.action_repeat=2, but 1 came"):
        require_fitting(state, planner, config, replace(task, action_repeat=1))


def test_a_planner_of_a_plug_in_that_is_not_loaded_is_pushed_and_pulled(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    config = read_config(copy)
    config["env"] |= {"name": "my_robot", "family": "mine", "task": "press"}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    push(copy, str(tmp_path / "package"))
    where, manifest = pull(str(tmp_path / "package"), tmp_path / "planner")
    assert "eval env=my_robot obs=state planner=" in what_now(where, manifest.kind).replace("python train.py mode=", "")
    assert "sodp3d eval env=my_robot obs=state planner=planner" in (where / "README.md").read_text()


def test_no_path_of_the_machine_is_pushed(pushed: Path) -> None:
    for path in pushed.rglob("*"):
        assert path.is_dir() or b"alice" not in path.read_bytes(), path
    assert read_config(pushed)["planner"] == "x"
    assert read_versions(pushed)["command"] == "train.py mode=finetune planner=x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/alice/x", "x"), ("~/x/y", "y"), ("~alice/x", "x"), ("outputs/a/b", "outputs/a/b"), ("/x", "x"),
        ("ws://127.0.0.1:8000/a", "ws://127.0.0.1:8000/a"), ("data=[/a/b,/a b/c]", "data=[b,c]"), ("1/2", "1/2"),
        ("/a/train.py mode=eval 'planner=/a/b c/d'", "train.py mode=eval 'planner=d'"), ("", ""),
        ("press 1 / 2, then 3", "press 1 / 2, then 3"), ("https&#58;//example.org/a/b", "https&#58;//example.org/a/b"),
        ("`data=/tmp/a/arm`", "`data=arm`"),
    ],
)  # fmt: skip
def test_absolute_paths_are_cut(text: str, expected: str) -> None:
    assert without_folders({"a": [text, 1, None]}) == {"a": [expected, 1, None]}


def test_the_card_says_what_it_is_how_good_and_how_to_use_it(pushed: Path) -> None:
    text = (pushed / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["license"] == "mit" and {"adroit_door", "state", "sodp"} <= set(facts["tags"])
    (metric,) = facts["model-index"][0]["results"][0]["metrics"]
    assert metric["type"] == "success_rate" and metric["value"] == 66.7
    assert "| adroit_door | count | 66.7 % | 10.0 to 90.0 % | 3 | 100000 to 100002 | 1.5 |" in body
    assert "| before fine-tuning | count | 33.3 % |" in body and "| plans of which its critic chooses | 3 |" in body
    assert (
        "sodp3d eval env=adroit_door obs=state env.points=64 planner=planner" in body and "| git commit | abc |" in body
    )


def test_a_planner_of_recordings_is_served_and_loaded(run: Path, tmp_path: Path) -> None:
    """Nothing simulates these, so evaluating and fine-tuning it would be refused."""
    make_recorded_store(tmp_path / "data/arm/episodes.zarr", [recorded_episode(0)])
    chosen = ["mode=pretrain", "env=recorded", f"data={tmp_path}/data/arm", "obs=pointcloud"]
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "config.yaml").write_text(yaml.safe_dump(as_recorded(compose("train", chosen))))
    shutil.rmtree(copy / "evaluation")
    push(copy, str(tmp_path / "package"))
    where, manifest = pull(str(tmp_path / "package"), tmp_path / "planner")
    told = what_now(where, manifest.kind)
    for text in ((where / "README.md").read_text().partition("## How to use it")[2], told):
        assert not re.search("sodp3d (eval|train|replay)|(train|replay)[.]py|env=recorded", text)
        assert "sodp3d serve run=" in text and "load_policy(" in text


def test_a_store_comes_back_whole_with_its_card(tmp_path: Path) -> None:
    make_store(tmp_path / "toy/episodes.zarr", range(3))
    (tmp_path / "toy/episodes.zarr/mine.txt").write_text("stays here")
    push(tmp_path / "toy", str(tmp_path / "toy.zip"))
    where, manifest = pull(str(tmp_path / "toy.zip"), tmp_path / "data/toy")
    assert manifest.kind == "store" and find_card(where) == where / "README.md"
    store = EpisodeStore.open(where / "episodes.zarr", "a")
    assert_holds(store, [0, 1, 2])
    assert store.verify() == [] and not (where / "episodes.zarr/mine.txt").exists()
    store.close()
    assert not (tmp_path / "toy/README.md").exists()  # nothing is written where the store is


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards of stores draw none, which would take seconds."""
    monkeypatch.setattr(cards, "draw_figures", lambda store, folder: [])


@pytest.mark.usefixtures("without_pictures")
def test_an_array_that_is_a_link_to_another_disk_comes_along(tmp_path: Path) -> None:
    make_store(tmp_path / "toy/episodes.zarr", range(3))
    data, disk = tmp_path / "toy/episodes.zarr/data", tmp_path / "large_disk"
    (data / "depth").rename(disk)
    (data / "depth").symlink_to(disk)
    (data / "round").symlink_to(data)
    push(tmp_path / "toy", str(tmp_path / "toy.zip"))
    where, _ = pull(str(tmp_path / "toy.zip"), tmp_path / "data/toy")
    store = EpisodeStore.open(where / "episodes.zarr")
    assert_holds(store, [0, 1, 2])
    assert store.verify() == [] and not (where / "episodes.zarr/data/depth").is_symlink()


@pytest.mark.usefixtures("without_pictures")
def test_a_store_is_not_pushed_without_one_of_its_arrays(tmp_path: Path) -> None:
    make_store(tmp_path / "empty/episodes.zarr", [])
    shutil.rmtree(tmp_path / "empty/episodes.zarr/data/depth")
    unusual = {**SPECIFICATION, "größe": SPECIFICATION["reward"]}
    with EpisodeStore.create(tmp_path / "unusual/episodes.zarr", ATTRIBUTES, unusual) as store:
        store.append({**episode(0), "größe": episode(0)["reward"]}, metadata(0))
    for name, key in (("empty", "depth"), ("unusual", "größe")):
        with pytest.raises(InputError, match=f"data/{key} cannot be pushed: expected a folder with"):
            push(tmp_path / name, str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(("recorded", "converts"), [(depth_episode, True), (recorded_episode, False)])
def test_the_card_of_a_recording_works_elsewhere(tmp_path: Path, recorded: Any, converts: bool) -> None:
    make_recorded_store(tmp_path / "mine/episodes.zarr", [recorded(0)], source={"address": "https://example.org/a/b"})
    push(tmp_path / "mine", str(tmp_path / "package"))
    text = (tmp_path / "package/README.md").read_text()
    assert ("1 episodes with depth" in text) == converts and "pretty_name: 'arm: 1 episodes" in text
    assert str(tmp_path) not in text and "mine" not in text and "https&#58;//example.org/a/b" in text
    assert "\nsodp3d pull <address> data/arm\n" in text
    assert ("\nsodp3d convert env=recorded data=data/arm\n" in text) == ("convert" in text) == converts


def test_pushing_and_pulling_again_changes_nothing(run: Path, pushed: Path, tmp_path: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in pushed.rglob("*")}
    push(run, str(pushed), licence="mit")
    pull(str(pushed), pushed)
    assert stamps == {path: path.stat().st_mtime_ns for path in pushed.rglob("*")}
    for _ in range(2):
        push(run, str(tmp_path / "door.zip"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["door.zip"]


def test_nothing_is_overwritten(run: Path, pushed: Path, package: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("mine")
    for target in (mine, mine / "file", package.parent):
        with pytest.raises(InputError, match="not overwritten"):
            pull(str(pushed), target)
    (package / "README.md").write_text("changed")
    with pytest.raises(InputError, match=r"README\.md: is missing or was changed since"):
        pull(str(pushed), package)
    (tmp_path / "door.zip").write_text("mine")
    with pytest.raises(InputError, match=r"door\.zip: exists and is not overwritten"):
        push(run, str(tmp_path / "door.zip"))
    assert (mine / "file").read_text() == "mine" and (tmp_path / "door.zip").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["door.zip", "mine", "package"]


def test_a_changed_file_is_refused(package: Path, tmp_path: Path) -> None:
    path = package / "result.json"
    path.write_text(path.read_text().replace("1.5", "9.5"))
    with pytest.raises(InputError, match=r"result\.json: its sha256 is not the one of sodp3d\.json"):
        pull(str(package), tmp_path / "door")
    path.write_text(path.read_text() + " ")
    with pytest.raises(InputError, match=r"result\.json: its \d+ bytes are not the \d+"):
        pull(str(package), tmp_path / "door")
    path.unlink()
    with pytest.raises(InputError, match=r"result\.json is missing, though"):
        pull(str(package), tmp_path / "door")
    assert not (tmp_path / "door").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../evil", "/etc/passwd", "evaluation/../../evil", "~/evil", "C:\\evil", "evaluation\\..\\evil", "a//b", "",
        "./README.md", "setup.py", "checkpoints/00000012/model.pkl", "config.yaml/x", "README.md\n", ".bashrc",
        "evaluation/.x/rollouts.npz", "episodes.zarr/.zattrs",
    ],
)  # fmt: skip
def test_names_that_no_planner_has_are_refused(package: Path, tmp_path: Path, name: str) -> None:
    relist(package, **{name: {"sha256": "0" * 64, "size": 1}})
    with pytest.raises(InputError, match=r"leads out of the package|is no file that a planner consists of"):
        pull(str(package), tmp_path / "door")
    assert not (tmp_path / "door").exists() and not (tmp_path / ".door.unfinished").exists()


@given(st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_a_name_that_is_taken_stays_below_the_package(name: str) -> None:
    content = json.dumps({"format": 1, "kind": "store", "files": {name: {"sha256": "0" * 64, "size": 1}}})
    try:
        manifest = Manifest.read(content.encode(), "here")
    except InputError:
        return
    (found,) = manifest.files
    assert Path(os.path.normpath(Path("/package") / found)) == Path("/package") / found


@given(st.binary(max_size=60) | st.from_type(dict).map(lambda value: json.dumps(str(value)).encode()))
@settings(max_examples=100, deadline=None)
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(InputError):
        Manifest.read(content, "here")


@pytest.mark.parametrize(
    "values",
    [
        {"format": 2, "kind": "planner"}, {"format": 1, "kind": ["planner"]},
        {"format": 1, "kind": "planner", "files": {}},
        {"format": 1, "kind": "planner", "files": {"README.md": {"sha256": "x", "size": 1}}},
        {"format": 1, "kind": "planner", "files": {"README.md": {"sha256": "0" * 64, "size": -1}}},
        {"format": 1, "kind": "planner", "files": {"README.md": {"sha256": "0" * 64, "size": True}}},
    ],
)  # fmt: skip
def test_a_manifest_of_another_form_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Manifest.read(json.dumps(values).encode(), "here")


def test_a_manifest_comes_back() -> None:
    manifest = Manifest("planner", {"README.md": Entry("0" * 64, 3)})
    assert Manifest.read(manifest.content(), "here") == manifest


def test_links_are_refused(package: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (package / "evaluation").rename(outside)
    (package / "evaluation").symlink_to(outside)
    with pytest.raises(InputError, match="evaluation: a link, which a package has none of"):
        pull(str(package), tmp_path / "door")


def test_too_much_is_refused_before_a_byte_is_fetched(package: Path, tmp_path: Path) -> None:
    relist(package, **{"evaluation/x/rollouts.npz": {"sha256": "0" * 64, "size": 10**14}})
    with pytest.raises(InputError, match="GB, and at most 20 GB are taken"):
        pull(str(package), tmp_path / "door")
    with pytest.raises(InputError, match="MB are needed but only"):
        pull(str(package), tmp_path / "door", most_gigabytes=10**6)
    assert not (tmp_path / "door").exists()


def test_files_that_are_as_listed_but_no_planner_are_refused(package: Path, tmp_path: Path) -> None:
    path = package / "checkpoints/00000012/tensors.safetensors"
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle
    relist(package, **{"checkpoints/00000012/tensors.safetensors": listed(path)})
    with pytest.raises(InputError, match=r"damaged, its sha256 is not the one in state\.json"):
        pull(str(package), tmp_path / "door")
    assert not (tmp_path / "door").exists()


def test_yaml_that_unpacks_itself_is_refused(package: Path, tmp_path: Path) -> None:
    path = package / "config.yaml"
    path.write_text(path.read_text() + "a: &a [x]\nb: [*a, *a]\n")
    relist(package, **{"config.yaml": listed(path)})
    with pytest.raises(InputError, match=r"config\.yaml: holds aliases"):
        pull(str(package), tmp_path / "door")


def repacked(package: Path, path: Path, *more: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in package.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(package).as_posix())
        for name, content in more:
            archive.writestr(name, content)
    return path


def test_an_archive_holds_what_its_manifest_names_and_no_more(package: Path, tmp_path: Path) -> None:
    pull(str(repacked(package, tmp_path / "good.zip")), tmp_path / "good")
    with pytest.raises(InputError, match=r"holds '\.\./evil', which sodp3d\.json does not name"):
        pull(str(repacked(package, tmp_path / "more.zip", ("../evil", b"x"))), tmp_path / "door")
    with pytest.warns(UserWarning, match="Duplicate name"):
        repacked(package, tmp_path / "twice.zip", ("README.md", b"x"))
    with pytest.raises(InputError, match="holds a name twice"):
        pull(str(tmp_path / "twice.zip"), tmp_path / "door")
    (tmp_path / "bad.zip").write_bytes((tmp_path / "good.zip").read_bytes()[:-50])
    with pytest.raises(InputError, match="no archive that can be read"):
        pull(str(tmp_path / "bad.zip"), tmp_path / "door")
    (package / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"sodp3d\.json cannot be read"):
        pull(str(repacked(package, tmp_path / "none.zip")), tmp_path / "door")
    assert not (tmp_path / "door").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_with_one_changed_byte_is_refused(package: Path, tmp_path: Path, method: int) -> None:
    path = tmp_path / "door.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in package.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(package).as_posix())
        begins = {member.filename: member.header_offset + 30 + len(member.filename) for member in archive.infolist()}
        sizes = {member.filename: member.compress_size for member in archive.infolist()}
    sound = path.read_bytes()
    for name in (MANIFEST, "config.yaml"):
        for place in (40, sizes[name] // 2):
            damaged = bytearray(sound)
            damaged[begins[name] + place] ^= 0xFF
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=rf"door\.zip: {re.escape(name)} cannot be read"):
                pull(str(path), tmp_path / "door")
    assert not (tmp_path / "door").exists()


@pytest.mark.parametrize("name", ["door.zip", f"door/{MANIFEST}", "door/config.yaml"])
def test_a_connection_that_breaks_is_told_as_that(pushed: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(pushed, tmp_path / "served/door")
    size = repacked(pushed, tmp_path / "served/door.zip").parent.joinpath(name).stat().st_size
    address = "door.zip" if name == "door.zip" else "door"
    told = rf"{re.escape(name)}: broke off after {size // 2} of {size} bytes; run it again"
    with folder_server(tmp_path / "served", breaking=name) as url, pytest.raises(InputError, match=told):
        pull(f"{url}/{address}", tmp_path / "pulled")
    with folder_server(tmp_path / "served") as url:
        pull(f"{url}/{address}", tmp_path / "pulled")


def test_a_web_address_gives_folders_and_archives(pushed: Path, tmp_path: Path) -> None:
    shutil.copytree(pushed, tmp_path / "served/door")
    repacked(pushed, tmp_path / "served/door.zip")
    with folder_server(tmp_path / "served") as url:
        for number, address in enumerate((f"{url}/door", f"{url}/door/", f"{url}/door.zip")):
            where, _ = pull(address, tmp_path / f"door{number}")
            assert (where / "README.md").read_bytes() == (pushed / "README.md").read_bytes()
        with pytest.raises(InputError, match="the server answers 404"):
            pull(f"{url}/nothing", tmp_path / "nothing")
        (tmp_path / "served/door/config.yaml").write_text("x" * 10**5)
        with pytest.raises(InputError, match=r"config\.yaml: its \d+ bytes are not the"):
            pull(f"{url}/door", tmp_path / "changed")
    with pytest.raises(InputError, match="no answer"):
        pull(f"{url}/door", tmp_path / "gone")
    for unsafe in ("http://example.org/door", "ftp://example.org/door", "file:///etc"):
        with pytest.raises(InputError, match="expected an https address"):
            pull(unsafe, tmp_path / "unsafe")


def test_a_release_is_pulled_by_its_list(
    pushed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SODP3D_ROOT", raising=False)
    monkeypatch.delenv(release.VARIABLE, raising=False)
    with pytest.raises(InputError, match="the project has no public releases yet"):
        pull("release")
    for folder in ("latest/download", "download/v1.2.0"):
        (tmp_path / "releases" / folder).mkdir(parents=True)
        for name in ("adroit_pen", "adroit_door"):
            repacked(pushed, tmp_path / "releases" / folder / f"{name}.zip")
        assert release.main([str(tmp_path / "releases" / folder), "adroit_door"]) == 0
    with folder_server(tmp_path / "releases") as url:
        monkeypatch.setenv(release.VARIABLE, url)
        assert pull("release")[0] == tmp_path / "outputs/pulled/adroit_door"
        assert pull_main(["v1.2.0/adroit_pen"]) == 0
        told = capsys.readouterr().out
        assert "sodp3d eval env=adroit_door obs=state env.points=64 planner=" in told and "pulled/adroit_pen" in told
        assert "replay.py run=" in told or "sodp3d replay run=" in told
        with pytest.raises(InputError, match="expected one of adroit_door, adroit_pen, got 'hammer'"):
            pull("release/hammer")
        with pytest.raises(InputError, match="the server answers 404"):
            pull("v9.9.9")
        (tmp_path / "releases/latest/download/adroit_door.zip").write_bytes(b"another")
        with pytest.raises(InputError, match="is not the file that the release lists"):
            pull("release", tmp_path / "again")


class Interrupted(Folder):
    """Is stopped at one of its files; counts what it gives."""

    def __init__(self, path: Path, stop: int) -> None:
        super().__init__(path)
        self.stop, self.given = stop, list[str]()

    def fetch(self, name: str, entry: Entry, path: Path) -> None:
        if len(self.given) == self.stop:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        self.given.append(name)
        super().fetch(name, entry, path)


@pytest.mark.parametrize("stop", range(8))
def test_a_pull_that_was_stopped_goes_on(pushed: Path, tmp_path: Path, stop: int) -> None:
    source, target = Interrupted(pushed, stop), tmp_path / "door"
    total = len(json.loads((pushed / MANIFEST).read_text())["files"])
    with pytest.raises(KeyboardInterrupt):
        bring(source, target, 10**9)
    assert not target.exists()
    (tmp_path / ".door.unfinished" / "foreign.py").write_text("x")
    again = Interrupted(pushed, total)
    bring(again, target, 10**9)
    assert len(again.given) == total - stop
    assert {path.name for path in target.iterdir()} == {path.name for path in pushed.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["door"]


@pytest.mark.parametrize(
    ("what", "where", "told"),
    [
        ("nothing", "there", "neither a run directory with checkpoints nor a checkpoint"),
        ("run/best/00000012", "there", "a planner is pushed with its record"),
        ("run", "https://example.org/door", "can be pulled from only"),
        ("run", "hf://door", "expected hf://<owner>/<name>"),
    ],
)
def test_what_cannot_be_pushed_is_told(run: Path, tmp_path: Path, what: str, where: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        push(run.parent / what, where if "://" in where else str(tmp_path / where))
    assert not list(tmp_path.iterdir())


def test_an_evaluation_of_another_planner_is_refused(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other")
    shutil.move(other / "evaluation/best/adroit_door", other / "evaluation/adroit_door")
    with pytest.raises(InputError, match="holds no episodes of adroit_door by the planner"):
        push(run, str(tmp_path / "there"), evaluation=other)
    push(other, str(tmp_path / "there"), evaluation=other)
    assert (tmp_path / "there/evaluation/adroit_door/rollouts.npz").is_file()


@pytest.mark.slow
def test_a_killed_pull_leaves_nothing_that_looks_whole(pushed: Path, tmp_path: Path) -> None:
    with folder_server(pushed) as url:
        command = [sys.executable, "-m", "sodp3d", "pull", url, str(tmp_path / "door")]
        around = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        process = subprocess.Popen(command, env=around, stderr=subprocess.DEVNULL)
        while not (tmp_path / ".door.unfinished").exists() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not (tmp_path / "door").exists():
            assert (tmp_path / ".door.unfinished").exists()
        done = subprocess.run(command, env=around, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    Manifest.read((tmp_path / "door" / MANIFEST).read_bytes(), "door")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["door"]
