"""Episodes for Rerun's viewer, read back with Rerun's own reader: every number is the store's, or the simulator's."""

import importlib.util
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_conversion import CONFIG
from toy_env import slider_env
from toy_exchange import FACTS, steps_of, write
from toy_recorded import POSE, depth_episode, make_recorded_store, recorded_episode
from toy_slider import SeededSlider, make_slider
from toy_store import ATTRIBUTES, SPECIFICATION, episode, make_store, metadata

from sodp3d.core import registry
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.files import write_text
from sodp3d.core.mappings import plain
from sodp3d.data.conversion import convert_store
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig
from sodp3d.settings import ReplaySettings
from sodp3d.tools import import_recording, recordings, video
from sodp3d.tools.recordings import rollout_steps, write_recording, write_store_recordings
from sodp3d.tools.replay import replay_run, replay_store
from sodp3d.tools.view import main
from sodp3d.vision.pointcloud import CropConfig

needs_rerun = pytest.mark.skipif(not importlib.util.find_spec("rerun"), reason="needs the extra rerun")
Columns = dict[str, list[Any]]


def read(path: Path) -> dict[str, Columns]:
    """Entity to its columns by name, rows in order; those of one row for what stays as it is."""
    from rerun.chunk import RrdReader

    reader = RrdReader(path)
    (recording,) = reader.recordings()
    assert (recording.application_id, recording.recording_id) == ("sodp3d", path.stem) and reader.blueprints()
    found: dict[str, Columns] = {}
    for chunk in reader.stream(store=recording):
        columns = chunk.to_record_batch().to_pydict()
        entity = found.setdefault(chunk.entity_path, {})
        for name, values in columns.items():
            entity[name] = entity.get(name, []) + values
    return found


def column(entity: Columns, name: str) -> list[Any]:
    """Values of the component whose name ends so, the single one of each row."""
    (values,) = (values for key, values in entity.items() if key.endswith(f":{name}"))
    return [value[0] if len(value) == 1 else value for value in values if value is not None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_store(folder / "episodes.zarr", range(3), length=7)
    convert_store(folder / "episodes.zarr", CONFIG, workers=0)
    return folder


@needs_rerun
def test_holds_the_store_s_own_numbers(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--viewer", "rerun", "--episodes", "2", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"2 episodes: rerun {tmp_path}/*.rrd\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy-episode00000.rrd", "toy-episode00002.rrd"]
    found, values = read(tmp_path / "toy-episode00002.rrd"), episode(2, 7)
    clouds = EpisodeStore.open(folder / "episodes.zarr").read("point_cloud", 2, 3)
    camera = found["/world/camera"]
    np.testing.assert_allclose(np.reshape(column(camera, "image_from_camera")[0], (3, 3)).T, [
        [50, 0, 5.5], [0, 50, 5.5], [0, 0, 1]
    ])  # fmt: skip
    np.testing.assert_allclose(column(camera, "translation"), [[0, 0, 1]] * 7)
    np.testing.assert_allclose(np.reshape(column(camera, "mat3x3")[0], (3, 3)).T, np.diag([1, -1, -1]))
    for number in range(3):
        shown = found[f"/action/action\\ {number}"]
        assert column(shown, "scalars") == values["action"][:, number].tolist() and shown["step"] == list(range(7))
    assert column(found["/reward"], "scalars") == values["reward"].tolist()
    assert column(found["/goal"], "scalars") == values["success"].tolist()
    depth = [
        np.frombuffer(bytes(image), "<u2").reshape(12, 12) for image in column(found["/world/camera/depth"], "buffer")
    ]
    np.testing.assert_array_equal(depth, values["depth"])
    assert column(found["/world/camera/depth"], "meter") == [1000.0] * 7
    np.testing.assert_array_equal(found["/world/cloud"]["Points3D:positions"], clouds)
    assert "/world/camera/colour" not in found and "seconds" not in found["/reward"], (
        "a store that was recorded elsewhere"
    )


@needs_rerun
def test_of_a_camera_that_moves_each_step_has_its_pose_and_images_their_colours(tmp_path: Path) -> None:
    attributes = {**ATTRIBUTES, "camera": {**ATTRIBUTES["camera"], "pose": None}, "action_names": ["x", "y/z", "grip"]}
    specification = {**SPECIFICATION, "camera_pose": ((4, 4), "float64"), "image": ((3, 12, 12), "uint8")}
    random = np.random.default_rng(0)
    poses, images = np.tile(np.eye(4), (5, 1, 1)), random.integers(0, 255, (5, 3, 12, 12)).astype(np.uint8)
    poses[:, 0, 3] = np.arange(5)
    with EpisodeStore.create(tmp_path / "episodes.zarr", attributes, specification) as store:
        store.append({**episode(0, 5), "camera_pose": poses, "image": images}, metadata(0))
        (path,) = write_store_recordings(store, [0], tmp_path / "out")
    found = read(path)
    assert [pose[0] for pose in column(found["/world/camera"], "translation")] == [0, 1, 2, 3, 4]
    buffers = column(found["/world/camera/colour"], "buffer")
    colours = [np.frombuffer(bytes(buffer), np.uint8).reshape(12, 12, 3) for buffer in buffers]
    np.testing.assert_array_equal(colours, images.transpose(0, 2, 3, 1))
    assert {"/action/x", "/action/y\\/z", "/action/grip"} <= found.keys()


@needs_rerun
def test_roll_outs_are_made_again_with_seconds_and_what_the_planner_saw(tmp_path: Path) -> None:
    env = slider_env(points=8, crop=CropConfig((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)))
    actions = np.array([[0.5], [1.0], [0.0]], np.float32)
    steps = list(rollout_steps(env, 3, actions))
    path = write_recording(tmp_path / "slider.rrd", steps, env.recorded_camera(), ["x"], 50)
    found = read(path)
    assert column(found["/action/x"], "scalars") == [0.5, 1.0, 0.0]
    np.testing.assert_allclose(column(found["/reward"], "scalars"), [0.05 + 0.1, 0.2 + 0.3, 0.3 + 0.3])
    assert column(found["/goal"], "scalars") == [0.0, 1.0, 2.0]
    seconds = [
        value.total_seconds() if hasattr(value, "total_seconds") else value / 1e9
        for value in found["/reward"]["seconds"]
    ]
    assert seconds == [0.0, 0.02, 0.04]
    centres = [np.mean(cloud, axis=0)[0] for cloud in found["/world/cloud"]["Points3D:positions"]]
    np.testing.assert_allclose(centres, [0.0, 0.1, 0.3], atol=0.05)  # of the ball, before each action
    assert "/world/camera/colour" not in found, "ray casting has no colours"


def seeded(config: EnvConfig) -> SeededSlider:
    return SeededSlider()


@needs_rerun
def test_replay_shows_the_roll_outs_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.FAMILIES, "slider", f"{__name__}:seeded")
    task = replace(make_slider().config, family="slider")
    write_text(tmp_path / "config.yaml", yaml.safe_dump({"env": plain(asdict(task))}))
    kept, ends = tmp_path / "evaluation/slider", np.array([2, 5])
    kept.mkdir(parents=True)
    actions = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    outcomes = np.array([[False] * 3, [True] * 3])
    np.savez(kept / "rollouts.npz", seeds=np.array([100_000, 100_001]), ends=ends, actions=actions, success=outcomes)
    settings = ReplaySettings(run=str(tmp_path), viewer="rerun", seeds=[100_001])
    (path,) = replay_run(settings, "raycast")
    assert path == tmp_path / "rerun/slider-seed100001-success.rrd"
    np.testing.assert_array_equal(column(read(path)["/action/action\\ 0"], "scalars"), actions[2:, 0])


def test_a_store_does_not_say_where_files_land(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "require_rerun", lambda: None)
    monkeypatch.setattr(recordings, "write_recording", lambda path, *_: path)
    shutil.copytree(folder, tmp_path / "toy")
    file = tmp_path / "toy/episodes.zarr/.zattrs"
    attributes = json.loads(file.read_text())
    for name in (str(tmp_path / "evil"), "../evil", "a/b", ".hidden", "a b"):
        file.write_text(json.dumps({**attributes, "env": name}))
        (path,) = write_store_recordings(EpisodeStore.open(file.parent), [0], tmp_path / "output")
        assert path.parent == tmp_path / "output" and path.name[0] != "."


def test_output_may_begin_with_the_home_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(video, "write_store_videos", lambda store, renderer, episodes, output: [output])
    assert replay_store(ReplaySettings(data=str(folder), output="~/films"), "raycast") == [tmp_path / "films"]
    (tmp_path / "run").mkdir()
    write_text(tmp_path / "run/config.yaml", yaml.safe_dump({"env": plain(asdict(make_slider().config))}))
    monkeypatch.setattr(video, "write_rollout_videos", lambda *arguments: [arguments[4]])
    assert replay_run(ReplaySettings(run="~/run", output="~/films"), "raycast") == [tmp_path / "films"]


def test_an_import_into_the_home_folder_has_its_card_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sodp3d.tools.card_figures.draw_figures", lambda *_: [])  # which takes seconds
    write("folder", tmp_path / "cup", [steps_of(0, 4, None)], FACTS)
    monkeypatch.setattr("sys.argv", ["sodp3d import", "folder", "~/cup", "~/arm"])
    import_recording.main()
    told = f"{tmp_path}/arm: 1 episodes, 4 steps (card: {tmp_path}/arm/README.md)\n"
    assert capsys.readouterr().out.startswith(told) and (tmp_path / "arm/README.md").is_file()


@needs_rerun
def test_what_is_not_ours_is_not_replaced_and_ours_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EpisodeStore.open(folder / "episodes.zarr")
    (path,) = write_store_recordings(store, [1], tmp_path)
    before = path.read_bytes()
    assert write_store_recordings(store, [1], tmp_path) == [path] and len(path.read_bytes()) == pytest.approx(
        len(before), abs=2000
    )
    for content in (b"mine", before.replace(b"sodp3d", b"others")):
        path.write_bytes(content)
        with pytest.raises(InputError, match="was not made by sodp3d and is not replaced"):
            write_store_recordings(store, [1], tmp_path)
        assert path.read_bytes() == content
    with pytest.raises(InputError, match="episodes: 3 is not in the store, which holds episodes 0 to 2"):
        write_store_recordings(store, [0, 3], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_without_rerun_the_extra_is_named_and_nothing_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recordings.importlib.util, "find_spec", lambda name: None)
    assert main([str(folder), "--viewer", "rerun"]) == 2
    assert "viewer: rerun needs rerun-sdk" in (told := capsys.readouterr().err) and "(the extra rerun)" in told
    assert not (folder / "rerun").exists()


def test_replay_takes_its_options_or_says_what_is_wrong() -> None:
    options = {key: compose("replay")[key] for key in ("seeds", "episodes", "count", "viewer", "output", "run", "data")}
    assert ReplaySettings(**{**options, "data": "there"}) == ReplaySettings(data="there")
    assert (
        ReplaySettings(run="there", viewer="rerun").folder == "rerun" and ReplaySettings(run="there").folder == "videos"
    )
    for wrong, told in (
        ({"viewer": "foxglove"}, "viewer: expected video or rerun, got 'foxglove'"),
        ({"count": 0}, "count: expected a whole number of at least 1, got 0"),
        ({"episodes": "3"}, "episodes: expected a list of whole numbers of at least 0, or null, got '3'"),
        ({"seeds": [1, -1]}, "seeds: expected a list of whole numbers of at least 0, or null, got -1"),
        ({"run": "too"}, "replay: give one of run=<run dir> and data=<store>"),
        ({"seeds": [1]}, "seeds: of a run's roll-outs, but data= came"),
        ({"data": None, "run": "there", "episodes": [1]}, "episodes: of a store, but run= came"),
        ({"data": None}, "replay: give one of run=<run dir> and data=<store>"),
    ):
        with pytest.raises(InputError) as caught:
            ReplaySettings(**{"data": "there", **wrong})  # type: ignore[arg-type]
        assert str(caught.value).startswith(told)


def test_steps_of_a_robots_recording_have_what_it_recorded(tmp_path: Path) -> None:
    clouds = make_recorded_store(tmp_path / "clouds.zarr", [recorded_episode(0)])
    seen = list(recordings.stored_steps(clouds, 0))
    assert len(seen) == 9 and all(step.cloud is not None for step in seen)
    assert {(step.reward, step.goal, step.depth is None, step.pose is None) for step in seen} == {
        (None, None, True, True)
    }
    drawn = next(iter(recordings.stored_steps(make_recorded_store(tmp_path / "depth.zarr", [depth_episode(0)]), 0)))
    assert drawn.depth is not None and drawn.colour is not None and np.array_equal(drawn.pose, POSE)


@needs_rerun
def test_a_recording_without_camera_or_rewards_is_written(tmp_path: Path) -> None:
    store = make_recorded_store(tmp_path / "clouds.zarr", [recorded_episode(0)])
    (path,) = write_store_recordings(store, [0], tmp_path / "made")
    entities = read(path)
    assert "/action/grip" in entities and "/world/cloud" in entities
    assert not {"/reward", "/goal", "/world/camera"} & set(entities)


def test_a_run_without_roll_outs_tells_how_to_make_them(tmp_path: Path) -> None:
    config = compose("train", ["env=adroit_door", "obs=state", "env.points=64"])
    (tmp_path / "run").mkdir()
    write_text(tmp_path / "run/config.yaml", yaml.safe_dump(config))
    task = EnvConfig.from_config(config["env"])
    told = r"is missing; evaluate first, .* mode=eval env=adroit_door obs=state env\.points=64 planner=.*run$"
    with pytest.raises(InputError, match=told):
        video.chosen_rollouts(tmp_path / "run/evaluation" / task.name, task, 1)
