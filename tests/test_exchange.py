"""`sodp3d import` and `sodp3d export`: recordings into stores and out again, with what goes wrong on the way."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from toy_exchange import ALONE, FACTS, FORMATS, JOINTS, SPECIFICATION, outcomes_of, steps_of, write

from sodp3d.__main__ import main
from sodp3d.core import registry
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CHECKOUT, CONFIGS
from sodp3d.data.merge import merge
from sodp3d.data.store import EpisodeStore
from sodp3d.exchange import formats, importing
from sodp3d.exchange.episodes import Facts
from sodp3d.exchange.exporting import Exported, export_recording
from sodp3d.exchange.fingerprint import fingerprints
from sodp3d.exchange.importing import Imported, import_recording
from sodp3d.settings import ExportSettings, ImportSettings
from sodp3d.tools.extract import extract

LENGTHS = (4, 7, 1)


def taken(name: str, path: Path, store: Path, **options: Any) -> Imported:
    return import_recording(ImportSettings(format=name, path=str(path), store=str(store), **options), lambda *_: None)


def given(store: Path, name: str, path: Path, **options: Any) -> Exported:
    return export_recording(ExportSettings(store=str(store), format=name, path=str(path), **options), lambda *_: None)


def store_of(folder: Path) -> EpisodeStore:
    return EpisodeStore.open(folder / "episodes.zarr")


def recorded(path: Path, keys: Any = None, facts: Facts = FACTS) -> Path:
    write("folder", path, [steps_of(number, length, keys) for number, length in enumerate(LENGTHS)], facts)
    return path


def assert_same(one: EpisodeStore, other: EpisodeStore) -> None:
    """The same episodes, to the last bit, and the same said of them."""
    assert one.specification == other.specification and one.episode_ends.tolist() == other.episode_ends.tolist()
    for index in range(len(one)):
        for key, values in one.episode(index).items():
            np.testing.assert_array_equal(other.episode(index)[key], values, err_msg=key)
    assert {key: values.tolist() for key, values in one.metadata.items()} == {
        key: values.tolist() for key, values in other.metadata.items()
    }
    for key in ("camera", "rate", "action_names", "agent_pos_names", "env_config"):
        found, expected = other.attributes.get(key), one.attributes.get(key)
        assert found == expected or key == "env_config", key


def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, and what `sodp3d <words>` prints on both streams."""
    monkeypatch.setattr("sys.argv", ["sodp3d", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


# ---- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [None, ALONE], ids=["all", "least"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_store_becomes_a_recording_and_a_store_again(name: str, keys: Any, tmp_path: Path) -> None:
    recording = recorded(tmp_path / "rec", keys, FACTS if keys is None else Facts(rate=10.0))
    first = taken("folder", recording, tmp_path / "one")
    assert (first.episodes, first.steps, first.lost, first.left_out) == (3, sum(LENGTHS), {}, [])
    path = tmp_path / f"out{formats.choose(name).suffix}"
    exported = given(tmp_path / "one", name, path)
    assert set(exported.kept) == set(SPECIFICATION if keys is None else ALONE)
    taken(name, path, tmp_path / "two")
    one, two = store_of(tmp_path / "one"), store_of(tmp_path / "two")
    assert_same(one, two)
    assert one.verify() == two.verify() == []
    for number, length in enumerate(LENGTHS):
        for key, values in steps_of(number, length, keys).items():
            np.testing.assert_array_equal(one.episode(number)[key], values)
    if keys is not None:
        assert set(one.metadata) == {"seed", "success_final"} and not {"reward", "depth"} & set(two.keys)


def test_force_and_gripper_go_beside_the_joints_with_their_names(tmp_path: Path) -> None:
    """As a robot's own program writes a recording: text, PNG, nothing of ours."""
    for episode in ("cup_2", "cup_10"):
        (tmp_path / "rec" / episode).mkdir(parents=True)
        rows = [f"{step},{step}.5,-1,{step + 0.25},closed,{step / 10}" for step in range(3)]
        head = "agent_pos.base,agent_pos.arm,action.0,force,word,timestamp"
        (tmp_path / "rec" / episode / "steps.csv").write_text("\n".join([head, *rows]) + "\n")
    made = taken("folder", tmp_path / "rec", tmp_path / "cup", keys=["force"])
    store = store_of(tmp_path / "cup")
    assert store.attributes["agent_pos_names"] == ["base", "arm", "force"]
    assert store.episode(0)["agent_pos"].tolist() == [[0, 0.5, 0.25], [1, 1.5, 1.25], [2, 2.5, 2.25]]
    assert made.kept == {"action": "action", "agent_pos": "agent_pos, force"}
    assert made.lost == {
        "word": "a column of words",
        "timestamp": "no place for it unless told: keys=[...] puts it beside the joints",
    }
    assert set(store.metadata) == set() and store.keys == ("action", "agent_pos")


def test_a_moving_camera_and_a_camera_of_another_file(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "rec", [*ALONE, "depth"])
    (tmp_path / "elsewhere.json").write_text((recording / "episode_000000/camera.json").read_text())
    for episode in recording.iterdir():
        (episode / "camera.json").unlink()
    with pytest.raises(InputError, match=r"camera: the recording has depth, but does not say where its camera was"):
        taken("folder", recording, tmp_path / "cup")
    taken("folder", recording, tmp_path / "cup", camera=str(tmp_path / "elsewhere.json"))
    assert store_of(tmp_path / "cup").attributes["camera"]["pose"][2][3] == 1
    for episode in recording.iterdir():  # the pose of each step, in sixteen columns
        rows = (episode / "steps.csv").read_text().splitlines()
        pose = "0,-1,0,1,1,0,0,2,0,0,1,3,0,0,0,1"
        heads = ",".join(f"camera_pose.{place}" for place in range(16))
        lines = [f"{row},{pose if at else heads}" for at, row in enumerate(rows)]
        (episode / "steps.csv").write_text("\n".join(lines) + "\n")
    taken("folder", recording, tmp_path / "moving", camera=str(tmp_path / "elsewhere.json"))
    moving = store_of(tmp_path / "moving")
    assert moving.attributes["camera"]["pose"] is None
    turned = [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]]
    np.testing.assert_array_equal(moving.episode(0)["camera_pose"], [turned] * LENGTHS[0])
    given(tmp_path / "moving", "folder", tmp_path / "again")
    taken("folder", tmp_path / "again", tmp_path / "back")
    assert_same(moving, store_of(tmp_path / "back"))


def test_some_arrays_and_episodes_are_exported_when_asked(tmp_path: Path) -> None:
    taken("folder", recorded(tmp_path / "rec"), tmp_path / "cup")
    made = given(tmp_path / "cup", "robomimic", tmp_path / "out.hdf5", keys=["agent_pos"], episodes=2)
    assert made.episodes == 2 and set(made.kept) == {"action", "agent_pos"}
    assert made.lost["depth"] == "not among keys=" and "dataset_keys" in made.lost["reward"]
    with pytest.raises(InputError, match=r"keys: expected some of action, .*, got 'force'"):
        given(tmp_path / "cup", "folder", tmp_path / "none", keys=["force"])
    with pytest.raises(InputError, match=r"path: robomimic is one file; name it <name>\.hdf5"):
        given(tmp_path / "cup", "robomimic", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_lerobot_asks_for_the_rate_that_a_store_does_not_have(tmp_path: Path) -> None:
    taken("folder", recorded(tmp_path / "rec", ALONE, Facts()), tmp_path / "cup")
    with pytest.raises(InputError, match=r"rate: the store does not say how many steps a second it has"):
        given(tmp_path / "cup", "lerobot", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cup", "rec"]
    given(tmp_path / "cup", "lerobot", tmp_path / "out", rate=12.5, task="lift")
    taken("lerobot", tmp_path / "out", tmp_path / "back")
    assert store_of(tmp_path / "back").attributes["rate"] == 12.5


@pytest.mark.parametrize(("verb", "kind"), [("import", ImportSettings), ("export", ExportSettings)])
def test_defaults_are_those_of_the_configuration_file(verb: str, kind: Any) -> None:
    written = yaml.safe_load((CONFIGS / f"{verb}.yaml").read_text())
    del written["defaults"]
    assert written == {field.name: field.default for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("name", FORMATS)
def test_the_farthest_depth_comes_back(name: str, tmp_path: Path) -> None:
    """65.535 m are a little more as float32, which robomimic's files hold."""
    episode = steps_of(0, 2, [*ALONE, "depth"])
    episode["depth"][:] = 65_535
    write("folder", tmp_path / "rec", [episode])
    taken("folder", tmp_path / "rec", tmp_path / "one")
    path = tmp_path / f"out{formats.choose(name).suffix}"
    given(tmp_path / "one", name, path)
    taken(name, path, tmp_path / "two")
    np.testing.assert_array_equal(store_of(tmp_path / "two").episode(0)["depth"], episode["depth"])


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_the_commands_say_what_was_kept_and_lost(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    recorded(tmp_path / "my rec's", ["action", "agent_pos", "state", "depth"])
    monkeypatch.setattr("sys.argv", ["sodp3d", "import", "folder", "my rec's", "data/cup", "leave_out=[state]"])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    assert not stopped.value.code, captured.err
    assert "data/cup: 3 episodes, 12 steps (card: data/cup/README.md)" in captured.out
    assert "kept  depth " in captured.out and "lost  state " in captured.out and "left out, as asked" in captured.out
    assert "data/cup: episode 3/3" in caplog.text
    code, out, _ = say(monkeypatch, capsys, "export", "data/cup", "lerobot", "out", "keys=[depth,agent_pos]")
    assert code == 0 and "out: 3 episodes, 12 steps\nkept  action" in out and "observation.state" in out
    assert (tmp_path / "out/meta/info.json").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["import"], "format: name it: sodp3d import <format> <path> <store>; for instance"),
        (
            ["import", "hdf5", "rec", "new"],
            "format: expected one of folder, dp3, robomimic, minari, lerobot, got 'hdf5'",
        ),
        (["import", "folder", "nowhere", "new"], "nowhere: no folder there"),
        (["import", "folder", "rec", "cup", "episodes=2"], "cup/episodes.zarr exists already and is never overwritten"),
        (["import", "folder", "rec", "new", "more"], "expected <format> <path> <store> and options as name=value"),
        (["import", "folder", "rec", "new", "skip_bat=true"], "Did you mean skip_bad"),
        (["import", "folder", "rec", "new", "episodes=0"], "episodes: expected a whole number of at least 1, or null"),
        (["export", "cup", "folder", "rec"], "path: rec exists already and is never overwritten"),
        (["export", "nowhere", "folder", "new"], "no episode store here"),
        (["export", "cup", "zip", "new"], "format: expected one of folder, dp3"),
    ],
)
def test_mistakes_are_one_message_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    taken("folder", recorded(tmp_path / "rec", ALONE), tmp_path / "cup")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = say(monkeypatch, capsys, *words)
    assert code == 2 and told in err and "Traceback" not in err and out == ""
    assert sorted(tmp_path.rglob("*")) == before


# ---- bad episodes, and what is left of a stopped import ------------------------------------------------------------


def test_a_bad_episode_ends_an_import_unless_it_is_to_be_left_out(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "rec")
    (recording / "episode_000001/depth/000003.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"episode_000001/depth/000003\.png: is no image.*skip_bad=true leaves"):
        taken("folder", recording, tmp_path / "cup")
    assert (tmp_path / "cup" / importing.UNFINISHED).exists() and not (tmp_path / "cup/episodes.zarr").exists()
    made = taken("folder", recording, tmp_path / "cup", skip_bad=True)
    assert made.episodes == 2 and [name for name, _ in made.left_out] == ["episode_000001"]
    assert "000003.png" in made.left_out[0][1]
    store = store_of(tmp_path / "cup")
    assert store.metadata["seed"].tolist() == [0, 2] and store.attributes["imported"]["left_out"]
    np.testing.assert_array_equal(store.episode(1)["action"], steps_of(2, 1)["action"])
    assert not (tmp_path / "cup" / importing.UNFINISHED).exists()


def test_an_episode_of_other_sizes_is_a_bad_one(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "rec", [*ALONE, "image"])
    for image in (recording / "episode_000001/color").iterdir():
        Image.new("RGB", (4, 4)).save(image)
    with pytest.raises(InputError, match=r"episode_000001: image: has \(3, 4, 4\) at each step, but the first one"):
        taken("folder", recording, tmp_path / "cup")
    assert taken("folder", recording, tmp_path / "cup", skip_bad=True).episodes == 2


def test_when_no_episode_can_be_read_there_is_no_store(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "rec", ALONE)
    for episode in recording.iterdir():
        (episode / "steps.csv").write_text("action.0,agent_pos.0\n1,nan\n")
    with pytest.raises(InputError, match=r"no episode can be read; the first: .*NaN or infinity at step 0"):
        taken("folder", recording, tmp_path / "cup", skip_bad=True)
    assert not (tmp_path / "cup/episodes.zarr").exists()


def test_the_same_import_again_does_nothing(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "rec", ALONE)
    (recording / "episode_000001/steps.csv").unlink()
    first = taken("folder", recording, tmp_path / "cup", skip_bad=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cup/episodes.zarr").rglob("*")}
    assert taken("folder", recording, tmp_path / "cup", skip_bad=True) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cup/episodes.zarr").rglob("*")} == before


def test_a_part_of_an_import_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    """An extract or a merge of what was imported has its `source`; so has a store that was changed since."""
    recording = recorded(tmp_path / "rec", ALONE)
    taken("folder", recording, tmp_path / "cup")
    whole = tmp_path / "cup/episodes.zarr"
    extract(whole, tmp_path / "part/episodes.zarr", max_episodes=2).close()
    merge([tmp_path / "part/episodes.zarr"], tmp_path / "merged/episodes.zarr").close()
    shutil.copytree(whole, tmp_path / "grown/episodes.zarr")
    with EpisodeStore.open(tmp_path / "grown/episodes.zarr", "a") as grown:
        grown.append(steps_of(9, keys=ALONE), outcomes_of(9))
    shutil.copytree(whole, tmp_path / "several/episodes.zarr")
    with EpisodeStore.open(tmp_path / "several/episodes.zarr", "a") as several:  # as merges of earlier releases told it
        several.update_attributes({"imported": [several.attributes["imported"]] * 2})
    for name in ("part", "merged", "grown", "several"):
        assert name in ("grown", "several") or "imported" not in store_of(tmp_path / name).attributes
        with pytest.raises(InputError, match=rf"{name}/episodes\.zarr exists already and is never overwritten"):
            taken("folder", recording, tmp_path / name)
    assert taken("folder", recording, tmp_path / "cup").episodes == 3


def test_another_import_is_refused_where_one_was_stopped(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "rec")
    (recording / "episode_000002/steps.csv").unlink()
    with pytest.raises(InputError):
        taken("folder", recording, tmp_path / "cup")
    unfinished = tmp_path / "cup" / importing.UNFINISHED
    before = {path: path.stat().st_mtime_ns for path in unfinished.rglob("*")}
    write("dp3", tmp_path / "other.zarr", [steps_of(9)])
    for name, path, options in (("dp3", "other.zarr", {}), ("folder", "rec", {"leave_out": ["state"]})):
        with pytest.raises(InputError, match=r"store: .*importing\.zarr is an unfinished import of something else"):
            taken(name, tmp_path / path, tmp_path / "cup", **options)
    assert {path: path.stat().st_mtime_ns for path in unfinished.rglob("*")} == before
    shutil.rmtree(unfinished)
    assert taken("dp3", tmp_path / "other.zarr", tmp_path / "cup").episodes == 1
    np.testing.assert_array_equal(store_of(tmp_path / "cup").episode(0)["action"], steps_of(9)["action"])


@pytest.mark.parametrize("finished", [True, False])
def test_a_recording_that_was_made_again_is_another(tmp_path: Path, finished: bool) -> None:
    """Of the same name, as many episodes and as long ones: the store would keep old data, or mix old and new."""
    recording = recorded(tmp_path / "rec", ALONE)
    last = recording / "episode_000002/steps.csv"
    whole = last.read_text()
    if not finished:
        last.write_text("cut")
        with pytest.raises(InputError, match="expected a row of names"):
            taken("folder", recording, tmp_path / "cup")
        last.write_text(whole)
    else:
        taken("folder", recording, tmp_path / "cup")
    first = recording / "episode_000000/steps.csv"
    head, *rows = first.read_text().splitlines()
    first.write_text("\n".join([head, *rows[::-1]]) + "\n")
    os.utime(first, ns=(0, 0))
    told = "exists already and is never overwritten" if finished else "is an unfinished import of something else"
    with pytest.raises(InputError, match=f"store: .*{told}.*files that changed since.*name a new folder"):
        taken("folder", recording, tmp_path / "cup")


def test_a_recording_is_the_same_however_its_path_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = recorded(tmp_path / "rec", ALONE)
    last = recording / "episode_000002/steps.csv"
    whole = last.read_text()
    last.write_text("cut")
    settings = ImportSettings(format="folder", path=f"{recording}/", store=str(tmp_path / "cup"))
    with pytest.raises(InputError):
        import_recording(settings, lambda *_: None)
    last.write_text(whole)  # mended: what was imported until then did not change
    monkeypatch.chdir(tmp_path)
    again = ImportSettings(format="folder", path="../" + tmp_path.name + "/rec/.", store="cup")
    assert count_calls(EpisodeStore, "append", lambda: import_recording(again, lambda *_: None)) == 1
    assert import_recording(settings, lambda *_: None).episodes == 3


def test_a_store_inside_the_recording_is_no_part_of_it(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "rec", ALONE)
    (recording / "episode_000001/steps.csv").rename(tmp_path / "kept")
    with pytest.raises(InputError):
        taken("folder", recording, recording / "stores/cup")
    (tmp_path / "kept").rename(recording / "episode_000001/steps.csv")
    assert taken("folder", recording, recording / "stores/cup") == taken("folder", recording, recording / "stores/cup")


def test_fingerprints_tell_what_changed_up_to_an_episode(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "rec" / name).mkdir(parents=True)
        (tmp_path / "rec" / name / "steps.csv").write_text(name)
    (tmp_path / "rec/b/round").symlink_to(tmp_path / "rec/b")
    (tmp_path / "camera.json").write_text("{}")

    def told() -> list[str]:
        return fingerprints(tmp_path / "rec", ["a", "b"], tmp_path / "camera.json", tmp_path / "rec/store")

    first = told()
    for name in ("store", ".cache"):
        (tmp_path / "rec" / name).mkdir()
        (tmp_path / "rec" / name / "file").write_text("of somebody else")
    assert told() == first and len(set(first)) == 3
    (tmp_path / "rec/b/steps.csv").write_text("longer")
    second = told()
    assert second[:2] == first[:2] and second[2] != first[2]
    (tmp_path / "camera.json").write_text("{  }")
    assert not set(told()) & {*first, *second}


KILLED = """
import os, signal
from sodp3d.data.store import EpisodeStore
from sodp3d.exchange import {module} as module
from sodp3d.settings import ExportSettings, ImportSettings
calls, real = [], {target}
def killed(*arguments, **options):
    calls.append(1)
    if len(calls) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)
{target} = killed
module.{call}, lambda *_: None)
"""


def kill(module: str, target: str, at: int, call: str) -> None:
    """Run it in a process that kills itself before the `at`-th call of a function."""
    around = {**os.environ, "PYTHONPATH": f"{CHECKOUT}"}
    script = KILLED.format(module=module, target=target, at=at, call=call)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, env=around)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(("target", "at"), [("EpisodeStore.append", 2), ("module._note", 2), ("module.remove", 1)])
def test_a_killed_import_leaves_no_store_and_goes_on(tmp_path: Path, target: str, at: int) -> None:
    """Before an episode is written, between it and its note, and when all is there but for the last tidying."""
    recording = recorded(tmp_path / "rec", [*ALONE, "depth"])
    settings = (
        f'import_recording(ImportSettings(format="folder", path={str(recording)!r}, store={str(tmp_path / "cup")!r})'
    )
    kill("importing", target, at, settings)
    finished = target == "module.remove"
    assert (tmp_path / "cup/episodes.zarr").exists() == finished
    if not finished:
        partly = EpisodeStore.open(tmp_path / "cup" / importing.UNFINISHED)
        assert len(partly) == (1 if target == "EpisodeStore.append" else 2)
        appended = count_calls(EpisodeStore, "append", lambda: taken("folder", recording, tmp_path / "cup"))
        assert appended == len(LENGTHS) - len(partly)
    assert taken("folder", recording, tmp_path / "cup").episodes == len(LENGTHS)
    taken("folder", recording, tmp_path / "whole")
    assert_same(store_of(tmp_path / "whole"), store_of(tmp_path / "cup"))


def test_an_import_killed_at_its_first_episode_begins_anew(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "rec", ALONE)
    settings = (
        f'import_recording(ImportSettings(format="folder", path={str(recording)!r}, store={str(tmp_path / "cup")!r})'
    )
    kill("importing", "module._note", 1, settings)
    assert len(EpisodeStore.open(tmp_path / "cup" / importing.UNFINISHED)) == 1
    for steps in recording.glob("*/steps.csv"):
        steps.write_text(steps.read_text().replace(JOINTS[0], "base"))
    assert taken("folder", recording, tmp_path / "cup").episodes == 3
    assert store_of(tmp_path / "cup").attributes["agent_pos_names"][0] == "base"


def test_an_episode_without_its_note_must_be_the_same(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "rec", ALONE)
    settings = (
        f'import_recording(ImportSettings(format="folder", path={str(recording)!r}, store={str(tmp_path / "cup")!r})'
    )
    kill("importing", "module._note", 2, settings)
    steps = recording / "episode_000001/steps.csv"
    head, *rows = steps.read_text().splitlines()
    steps.write_text("\n".join([head, *rows[::-1]]) + "\n")
    with pytest.raises(InputError, match="is an unfinished import of something else, or of files that changed since"):
        taken("folder", recording, tmp_path / "cup")


def count_calls(owner: Any, name: str, job: Callable[[], Any]) -> int:
    calls: list[int] = []
    real = getattr(owner, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        job()
    return len(calls)


@pytest.mark.parametrize("name", ["folder", "robomimic"])
def test_a_killed_export_leaves_nothing_by_its_name_and_is_made_again(tmp_path: Path, name: str) -> None:
    taken("folder", recorded(tmp_path / "rec", ALONE), tmp_path / "cup")
    path = tmp_path / f"out/of{formats.choose(name).suffix}"
    settings = f"ExportSettings(store={str(tmp_path / 'cup')!r}, format={name!r}, path={str(path)!r})"
    kill("exporting", "EpisodeStore.episode", 3, f"export_recording({settings}")
    assert not path.exists() and len(list(path.parent.iterdir())) == 1
    given(tmp_path / "cup", name, path)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    taken(name, path, tmp_path / "back")
    assert_same(store_of(tmp_path / "cup"), store_of(tmp_path / "back"))


def test_names_of_the_joints_are_those_of_the_recording(tmp_path: Path) -> None:
    taken("folder", recorded(tmp_path / "rec", ALONE), tmp_path / "cup")
    assert store_of(tmp_path / "cup").attributes["agent_pos_names"] == list(JOINTS)
    assert store_of(tmp_path / "cup").metadata["seed"].tolist() == [outcomes_of(number)["seed"] for number in range(3)]


def test_a_format_of_ones_own_is_chosen_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.FORMATS, "bags", "toy_exchange:BAGS")
    (tmp_path / "rec.bag").write_text("1 2 3\n4\n")
    made = taken("bags", tmp_path / "rec.bag", tmp_path / "cup", keys=["felt"])
    assert made.kept == {"action": "command", "agent_pos": "felt", "seed of each episode": "seed"}
    assert store_of(tmp_path / "cup").episode(0)["action"].tolist() == [[1], [2], [3]]
    assert store_of(tmp_path / "cup").attributes["rate"] == 2
    with pytest.raises(InputError, match="bags are not written"):
        given(tmp_path / "cup", "bags", tmp_path / "out.bag")
    assert not (tmp_path / "out.bag").exists()


def test_the_robot_s_client_reads_a_folder_that_was_exported(tmp_path: Path) -> None:
    pytest.importorskip("msgpack")
    pytest.importorskip("websockets")
    assert CHECKOUT is not None
    specification = util.spec_from_file_location("realsense_client", CHECKOUT / "examples" / "realsense_client.py")
    assert specification is not None and specification.loader is not None
    client = util.module_from_spec(specification)
    specification.loader.exec_module(client)
    taken("folder", recorded(tmp_path / "rec", [*ALONE, "depth"]), tmp_path / "cup")
    given(tmp_path / "cup", "folder", tmp_path / "out")
    frames = list(client.folder_frames(tmp_path / "out/episode_000001"))
    for key in ("depth", "agent_pos"):
        np.testing.assert_array_equal([frame[key] for frame in frames], steps_of(1, 7)[key])
    assert FACTS.camera is not None and FACTS.camera.pose is not None
    np.testing.assert_array_equal(frames[0]["camera_pose"], FACTS.camera.pose)
    np.testing.assert_array_equal(frames[0]["intrinsics"], FACTS.camera.intrinsics)
