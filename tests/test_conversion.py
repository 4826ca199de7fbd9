"""Point clouds of whole stores: values, resuming after any death, refusals, statistics."""

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from toy_store import ATTRIBUTES, SPECIFICATION, episode, make_store, metadata

from sodp3d.core.errors import InputError
from sodp3d.data import arrays
from sodp3d.data.conversion import convert_store
from sodp3d.data.dataset import WindowDataset
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig
from sodp3d.vision.camera import Camera, CameraConfig
from sodp3d.vision.pointcloud import Converter, CropConfig

POINTS = 20
CONFIG = EnvConfig(
    name="toy",
    family="toy",
    task="reach",
    tasks=(),
    action_repeat=2,
    episode_steps=9,
    camera=CameraConfig("top", (0.0, 0.0, 1.0), None, 45.0, 12, 12),
    crop=CropConfig((-np.inf, -np.inf, 0.001), (np.inf,) * 3),
    points=POINTS,
    horizon=4,
    n_obs_steps=2,
    n_action_steps=3,
    success_metric="any",
    unet="simple_dp3",
)
CONVERTER = Converter(Camera.from_dict(ATTRIBUTES["camera"]), CONFIG.crop, POINTS)


def assert_converted(path: Path, numbers: range) -> None:
    store = EpisodeStore.open(path)
    assert store.verify() == []
    for index, number in enumerate(numbers):
        clouds, kept = CONVERTER.convert(episode(number)["depth"])
        np.testing.assert_array_equal(store.read("point_cloud", index, index + 1), clouds)
        np.testing.assert_array_equal(store.read("point_cloud_kept", index, index + 1), kept)
    root = zarr.open_group(path, mode="r")
    assert {array.shape[0] for _, array in root["data"].arrays()} == {store.steps}


@pytest.mark.parametrize(("backend", "workers"), [("open3d", 0), ("torch", 0), ("open3d", 2)])
def test_converts_every_episode(tmp_path: Path, backend: str, workers: int) -> None:
    path, seen = make_store(tmp_path / "a.zarr", range(5)).path, []
    statistics = convert_store(path, CONFIG, backend, workers=workers, progress=lambda *counts: seen.append(counts))
    assert seen == [(done, 5) for done in range(6)]
    assert_converted(path, range(5))
    store = EpisodeStore.open(path)
    kept = np.concatenate([CONVERTER.convert(episode(number)["depth"])[1] for number in range(5)])
    assert store.conversions["point_cloud"]["parameters"]["points"] == POINTS
    assert store.conversions["point_cloud"]["statistics"] == statistics
    assert (statistics["minimum"], statistics["maximum"]) == (kept.min(), kept.max())
    assert statistics["p50"] == np.round(np.percentile(kept, 50), 1) and statistics["frames"] == len(kept)
    windows = WindowDataset([store], ["point_cloud", "agent_pos"], 4, 2, 3).sample(3, np.random.default_rng(0))
    assert windows["point_cloud"].shape == (3, 2, POINTS, 3)
    for key, values in episode(2).items():  # nothing collected was touched
        np.testing.assert_array_equal(store.episode(2)[key], values)


def test_appended_episodes_wait_for_conversion(tmp_path: Path) -> None:
    path = make_store(tmp_path / "a.zarr", range(3)).path
    convert_store(path, CONFIG)
    with EpisodeStore.open(path, "a", ATTRIBUTES, SPECIFICATION) as store:
        store.append(episode(3), metadata(3))
        store.append(episode(4), metadata(4))
    store = EpisodeStore.open(path)
    root = zarr.open_group(path, mode="r")
    assert root["data/point_cloud"].shape[0] == store.steps
    assert not root["data/point_cloud"][store.bounds(3)[0] :].any()
    assert store.read("point_cloud", 0, 3).shape[1:] == (POINTS, 3)
    with pytest.raises(InputError, match=r"point_cloud holds 3 of 5 episodes.*convert\.py env=toy"):
        store.read("point_cloud")
    convert_store(path, CONFIG)
    assert_converted(path, range(5))


class _DiedError(BaseException):
    pass


@pytest.mark.slow
def test_death_at_every_file_of_a_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_CHUNK_STEPS", 4)
    original = make_store(tmp_path / "original.zarr", range(2)).path
    converted: list[int] = []
    for after in range(100):
        path, left = tmp_path / f"{after}.zarr", after
        shutil.copytree(original, path)

        def die(source: Any, destination: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise _DiedError
            os.rename(source, destination)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", die)
            try:
                convert_store(path, CONFIG)
                died = False
            except _DiedError:
                died = True
        store = EpisodeStore.open(path)
        done = store.readable("point_cloud")
        converted.append(done)
        for index in range(done):
            expected = CONVERTER.convert(episode(index)["depth"])[0]
            np.testing.assert_array_equal(store.read("point_cloud", index, index + 1), expected)
        with EpisodeStore.open(path, "a") as again:  # collection may go on at any time
            again.append(episode(2), metadata(2))
        convert_store(path, CONFIG)
        assert_converted(path, range(3))
        shutil.rmtree(path)
        if not died:
            break
    assert converted == sorted(converted) and set(converted) == {0, 1, 2}


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"points": 30}, "points = 20, now points = 30"), ({"crop": CropConfig((0.0,) * 3, (1.0,) * 3)}, "low = ")],
)
def test_other_parameters_are_refused_or_go_elsewhere(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = make_store(tmp_path / "a.zarr", range(2)).path
    convert_store(path, CONFIG)
    other = replace(CONFIG, **changes)
    with pytest.raises(InputError, match=f"{words}.*again=clouds replaces it, output="):
        convert_store(path, other)
    convert_store(path, CONFIG, backend="torch")  # the same points: welcome
    convert_store(path, replace(CONFIG, points=8), output="small_cloud")
    store = EpisodeStore.open(path)
    assert store.read("small_cloud").shape == (store.steps, 8, 3)
    assert_converted(path, range(2))


def test_asked_for_clouds_of_another_crop_and_number_replace_the_finished_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_store(tmp_path / "a.zarr", range(3)).path
    convert_store(path, replace(CONFIG, points=8, crop=CropConfig((-1.0,) * 3, (1.0,) * 3)))
    convert_store(path, CONFIG, replaces=True)
    assert_converted(path, range(3))
    assert "the conversion with another low is made anew" in caplog.text
    seen: list[tuple[int, int]] = []
    convert_store(path, CONFIG, replaces=True, progress=lambda *counts: seen.append(counts))
    assert seen == [(3, 3)], "what is as asked for stays"


def test_clouds_that_cannot_be_made_again_stay_as_they_are(tmp_path: Path) -> None:
    path = make_store(tmp_path / "a.zarr", range(2)).path
    convert_store(path, CONFIG)
    with pytest.raises(InputError, match="no point"):
        convert_store(path, replace(CONFIG, crop=CropConfig((5.0,) * 3, (6.0,) * 3)), replaces=True)
    with pytest.raises(InputError, match="device"):
        convert_store(path, replace(CONFIG, points=8), device="cuda", replaces=True)
    assert_converted(path, range(2))


def test_unfinished_conversion_may_start_over_with_another_crop(tmp_path: Path) -> None:
    """A crop that empties a late frame shows only after hours; the mended one must not need another key."""
    high = {**episode(1), "depth": np.full_like(episode(1)["depth"], 900)}  # all its points at z = 0.1
    with EpisodeStore.create(tmp_path / "a.zarr", ATTRIBUTES, SPECIFICATION) as store:
        store.append(episode(0), metadata(0))
        store.append(high, metadata(1))
    narrow = replace(CONFIG, crop=CropConfig((-np.inf, -np.inf, 0.2), (np.inf,) * 3), points=5)
    with pytest.raises(InputError, match=r"episode 1: env\.crop"):
        convert_store(store.path, narrow)
    assert EpisodeStore.open(store.path).readable("point_cloud") == 1
    convert_store(store.path, CONFIG)
    reader = EpisodeStore.open(store.path)
    np.testing.assert_array_equal(reader.read("point_cloud", 1, 2), CONVERTER.convert(high["depth"])[0])
    np.testing.assert_array_equal(reader.read("point_cloud", 0, 1), CONVERTER.convert(episode(0)["depth"])[0])
    assert not list(store.path.rglob("*.partial"))


def test_wrong_input_is_named(tmp_path: Path) -> None:
    path = make_store(tmp_path / "a.zarr", range(2)).path
    with pytest.raises(InputError, match="episodes of 'toy', not of env 'door'"):
        convert_store(path, replace(CONFIG, name="door"))
    with pytest.raises(InputError, match="'depth' is a collected key"):
        convert_store(path, CONFIG, output="depth")
    nowhere = replace(CONFIG, crop=CropConfig((5.0,) * 3, (6.0,) * 3))
    for workers in (0, 2):
        with pytest.raises(InputError, match=r"episode 0: env\.crop: no point of frame 0"):
            convert_store(path, nowhere, workers=workers, output=f"nowhere{workers}")
    with EpisodeStore.open(path, "a"), pytest.raises(InputError, match="is writing"):
        convert_store(path, CONFIG)
    with pytest.raises(InputError, match=r"collect\.py"):
        convert_store(tmp_path / "nothing.zarr", CONFIG)


def test_too_few_points_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_store(tmp_path / "a.zarr", range(3)).path
    with caplog.at_level(logging.WARNING):
        convert_store(path, CONFIG)
        assert not caplog.messages
        convert_store(path, replace(CONFIG, points=1000), output="too_many")
    assert "100.0 % of the frames keep fewer than env.points=1000" in caplog.text


@pytest.mark.parametrize(("moves", "told"), [(True, False), (False, True)])
def test_points_that_never_move_are_told(
    moves: bool, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EpisodeStore.create(tmp_path / "a.zarr", ATTRIBUTES, SPECIFICATION) as store:
        for number in range(8):
            made = episode(number)
            store.append(made if moves else {**made, "depth": np.full_like(made["depth"], 950)}, metadata(number))
    with caplog.at_level(logging.WARNING):
        statistics = convert_store(tmp_path / "a.zarr", CONFIG)
    assert statistics["still"] == (1 if told else pytest.approx(0, abs=0.3))
    assert (statistics["moves_within"] is None) is told
    assert ("100 % of the points lie where nearly every frame has one" in caplog.text) is told
    assert ("A tighter env.crop leaves more points" in caplog.text) is told


def test_of_few_episodes_nobody_can_say_what_never_moves(tmp_path: Path) -> None:
    assert "still" not in convert_store(make_store(tmp_path / "a.zarr", range(7)).path, CONFIG)


def test_an_empty_store_converts_to_nothing(tmp_path: Path) -> None:
    path = make_store(tmp_path / "a.zarr", []).path
    assert convert_store(path, CONFIG, workers=2) == {}
    with EpisodeStore.open(path, "a") as store:
        store.append(episode(0), metadata(0))
    convert_store(path, CONFIG)
    assert_converted(path, range(1))
