"""What is drawn again from simulator states, and obs=image from end to end at the smallest size."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_env import config
from toy_store import make_store

from sodp3d.collection.convert import main as convert_command
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CHECKOUT
from sodp3d.data import redraw as rendering
from sodp3d.data.redraw import add_depth, render_depth, render_images
from sodp3d.data.schema import step_specification
from sodp3d.data.store import EpisodeStore
from sodp3d.envs import make_env
from sodp3d.envs.wrappers import ChunkedEnv
from sodp3d.learning.lookup import as_data_was_seen, as_planner_was_trained
from sodp3d.tools.card import write_card

STEPS = 5
DOOR = replace(
    config("adroit_door"),
    episode_steps=STEPS,
    camera=replace(config("adroit_door").camera, height=32, width=32),
)
SMALL = (
    "env=adroit_door preset=quick threads=1 workers=1 device=cpu "
    f"env.camera.height=32 env.camera.width=32 env.episode_steps={STEPS}"
).split()
TRAIN = ["obs=image", "pretrain.steps=2", "pretrain.batch_size=4"]
TRAIN += ["evaluation.episodes=1", "evaluation.environments=1", "evaluation.videos=0"]


@pytest.fixture(scope="module")
def live() -> dict[str, Any]:
    """Two episodes as they were seen while they happened, the images among it, and who drew them."""
    env = make_env(DOOR)
    generator = np.random.default_rng(0)
    episodes, images = [], []
    for seed in range(2):
        observation, _ = env.reset(seed=seed)
        steps: dict[str, list[Any]] = {}
        for _ in range(STEPS):
            action = generator.uniform(-1, 1, env.task.action_size).astype(np.float32)
            seen = {**observation, "depth": env.render_depth(), "sim_state": env.get_state(), "action": action}
            image = env.render_rgb().transpose(2, 0, 1)
            observation, reward, _, _, info = env.step(action)
            seen |= {"reward": np.float32(reward), "success": np.uint8(info["goal_steps"]), "image": image}
            for key, value in seen.items():
                steps.setdefault(key, []).append(value)
        stacked = {key: np.stack(values) for key, values in steps.items()}
        images.append(stacked.pop("image"))
        episodes.append(stacked)
    camera = env.camera_parameters().to_dict()
    return {"episodes": episodes, "images": images, "renderer": env.renderer_name, "camera": camera}


@pytest.fixture(scope="module")
def collected(live: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with root/data/adroit_door/episodes.zarr holding the live episodes' depth; copy before changing it."""
    folder = tmp_path_factory.mktemp("collected")
    first = live["episodes"][0]
    sizes = [first[key].shape[1] for key in ("action", "state", "agent_pos", "sim_state")]
    attributes = {
        "env": DOOR.name,
        "env_config": asdict(DOOR),
        "camera": live["camera"],
        "renderer": live["renderer"],
        "agent": {"name": "random"},
    }
    path = folder / "root/data/adroit_door/episodes.zarr"
    with EpisodeStore.create(path, attributes, step_specification(*sizes, 32, 32)) as store:
        for index, episode in enumerate(live["episodes"]):
            values = {
                "seed": index,
                "agent_step": STEPS * (index + 1),
                "episode_return": float(episode["reward"].sum()),
            }
            store.append(episode, {**values, "success_final": False, "success_count": False, "success_any": index == 1})
    return folder


@pytest.fixture
def store_path(collected: Path, tmp_path: Path) -> Path:
    shutil.copytree(collected / "root", tmp_path / "root")
    return tmp_path / "root/data/adroit_door/episodes.zarr"


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


class _StoppedError(Exception):
    pass


def stop_after(episodes: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done == episodes:
            raise _StoppedError

    return progress


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Episodes drawn from now on."""
    indices: list[int] = []
    original = rendering.EpisodeRenderer.make

    def noted(self: Any, index: int) -> Any:
        indices.append(index)
        return original(self, index)

    monkeypatch.setattr(rendering.EpisodeRenderer, "make", noted)
    return indices


def test_images_are_what_the_live_episodes_looked_like(live: dict[str, Any], store_path: Path) -> None:
    assert render_images(store_path, DOOR, workers=1) == {"frames": 2 * STEPS}
    store = EpisodeStore.open(store_path)
    assert store.verify() == [] and store.field("image").dtype == "uint8"
    for index, images in enumerate(live["images"]):
        assert len(np.unique(images)) > 10  # something is to be seen
        np.testing.assert_array_equal(store.read("image", index, index + 1), images)
    assert store.conversions["image"]["parameters"] == {"renderer": live["renderer"], "height": 32, "width": 32}
    # Roll-outs see the very same picture.
    observation, _ = ChunkedEnv(make_env(DOOR), "image").reset(seed=1)
    np.testing.assert_array_equal(observation["image"][-1], store.read("image", 1, 2)[0])


def test_stopped_drawing_goes_on_where_it_was(live: dict[str, Any], store_path: Path, drawn: list[int]) -> None:
    with pytest.raises(_StoppedError):
        render_images(store_path, DOOR, progress=stop_after(1))
    assert EpisodeStore.open(store_path).readable("image") == 1
    with pytest.raises(InputError, match=r"image holds 1 of 2 episodes.*convert\.py env=adroit_door again=image"):
        EpisodeStore.open(store_path).read("image")
    render_images(store_path, DOOR)
    render_images(store_path, DOOR)
    assert drawn == [0, 1]
    np.testing.assert_array_equal(EpisodeStore.open(store_path).read("image"), np.concatenate(live["images"]))


def test_images_of_another_renderer_or_camera_are_refused(live: dict[str, Any], store_path: Path) -> None:
    with pytest.raises(InputError, match=r"env\.camera\.height = 32, but 48 came.*again=depth"):
        render_images(store_path, replace(DOOR, camera=replace(DOOR.camera, height=48)))
    render_images(store_path, DOOR)
    other = "raycast" if live["renderer"] != "raycast" else "egl"
    with pytest.raises(InputError, match=f"renderer = {live['renderer']}, now renderer = {other}"):
        render_images(store_path, DOOR, renderer=other)
    with pytest.raises(InputError, match="'adroit_door', not of env 'adroit_pen'"):
        render_images(store_path, config("adroit_pen"))


def test_training_and_rollouts_need_the_recorded_renderer(live: dict[str, Any], store_path: Path) -> None:
    root = store_path.parents[2]
    settings = compose("train", [*SMALL, "obs=image", f"root={root}"])
    with pytest.raises(InputError, match=r"no data/image.*convert\.py env=adroit_door again=image"):
        as_data_was_seen(settings, [DOOR])
    render_images(store_path, DOOR)
    assert as_data_was_seen(settings, [DOOR])["render"] == live["renderer"]
    other = "raycast" if live["renderer"] != "raycast" else "egl"
    with pytest.raises(InputError, match=f"drawn by {live['renderer']}, but render={other} came"):
        as_data_was_seen({**settings, "render": other}, [DOOR])
    with pytest.raises(InputError, match=r"env\.camera\.fovy"):
        as_data_was_seen(settings, [replace(DOOR, camera=replace(DOOR.camera, fovy=60.0))])
    assert as_data_was_seen({**settings, "obs": {"name": "state"}}, [DOOR])["render"] == "auto"
    text = write_card(store_path.parent).read_text()
    assert f"RGB of 2 of 2 episodes, 32 x 32 px, by {live['renderer']}" in text and "(card/image.png)" in text
    assert "again=image" not in text


def test_depth_drawn_again_by_the_same_camera_is_the_stored_depth(store_path: Path, tmp_path: Path) -> None:
    before, source = contents(store_path), EpisodeStore.open(store_path)
    render_depth(store_path, tmp_path / "same/episodes.zarr", DOOR, workers=1)
    copy = EpisodeStore.open(tmp_path / "same/episodes.zarr")
    for key in source.specification:
        np.testing.assert_array_equal(copy.read(key), source.read(key), err_msg=key)
    for key in ("camera", "renderer", "env_config", "agent"):
        assert copy.attributes[key] == source.attributes[key]
    for name, column in source.metadata.items():
        np.testing.assert_array_equal(copy.metadata[name], column)
    assert contents(store_path) == before


def test_depth_of_another_size_resumes_and_is_what_that_camera_sees(
    live: dict[str, Any], store_path: Path, tmp_path: Path, drawn: list[int]
) -> None:
    wide = replace(DOOR, camera=replace(DOOR.camera, height=40, width=48, fovy=60.0))
    target, before = tmp_path / "wide/episodes.zarr", contents(store_path)
    with pytest.raises(_StoppedError):
        render_depth(store_path, target, wide, progress=stop_after(1))
    assert len(EpisodeStore.open(target)) == 1
    render_depth(store_path, target, wide)
    assert drawn == [0, 1] and contents(store_path) == before
    store, env = EpisodeStore.open(target), make_env(wide)
    assert store.verify() == [] and store.attributes["camera"] == env.camera_parameters().to_dict()
    assert store.attributes["env_config"]["camera"]["width"] == 48 and store.conversions == {}
    for index, state in enumerate(np.concatenate([episode["sim_state"] for episode in live["episodes"]])):
        env.set_state(state)
        np.testing.assert_array_equal(store.read("depth")[index], env.render_depth())
    assert "collected at 32 x 32 px" in write_card(target.parent).read_text()
    with pytest.raises(InputError, match=r"camera.*fovy"):
        render_depth(store_path, target, replace(wide, camera=replace(wide.camera, fovy=50.0)))


def test_depth_goes_neither_into_its_source_nor_into_other_episodes(store_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is the source itself"):
        render_depth(store_path, store_path, DOOR)
    target = tmp_path / "target/episodes.zarr"
    render_depth(store_path, target, DOOR)
    with EpisodeStore.open(target, "a") as store:
        values = {name: column[0].item() for name, column in store.metadata.items()}
        store.append(store.episode(0), {**values, "seed": 99})
    with pytest.raises(InputError, match="holds 3 episodes that are not the first"):
        render_depth(store_path, target, DOOR)
    with pytest.raises(InputError, match="output_data: names the new store's folder"):
        add_depth(store_path, DOOR)
    toy = make_store(tmp_path / "toy.zarr", range(1)).path
    with pytest.raises(InputError, match="'toy', not of env 'adroit_door'"):
        render_depth(toy, tmp_path / "new.zarr", DOOR)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["again=colour"], "again: expected one of clouds, image, depth, or null"),
        (["output_data=x"], "output_data: names"),
        (["again=depth", "output=depth2"], "output: again=depth always makes data/depth, got depth2"),
    ],
)
def test_wrong_options_are_named(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["convert.py", *arguments])
    with pytest.raises(SystemExit):
        convert_command()
    assert words in capsys.readouterr().err


def run(script: str, *arguments: str, folder: Path) -> str:
    """Run a command from `folder`; returns what it said."""
    command = [sys.executable, str(CHECKOUT / script), *SMALL, f"root={folder}/root", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.mark.slow
def test_a_planner_learns_from_images_and_is_evaluated_on_them(live: dict[str, Any], store_path: Path) -> None:
    folder = store_path.parents[3]
    run("data_collection/convert.py", "again=image", folder=folder)
    wide = ["again=depth", "env.camera.fovy=60", f"output_data={folder}/wide"]
    assert "episode 2/2" in run("data_collection/convert.py", *wide, folder=folder)
    assert len(EpisodeStore.open(folder / "wide/episodes.zarr")) == 2
    run("train.py", "mode=pretrain", *TRAIN, folder=folder)
    planner = next((folder / "root/outputs/pretrain").glob("adroit_door-image/*/config.yaml")).parent
    reported = json.loads((planner / "evaluation/adroit_door/evaluation.json").read_text())
    assert "on 1 episodes" in run("train.py", "mode=eval", f"run_dir={folder}/again", *TRAIN, folder=folder)
    assert json.loads((folder / "again/evaluation/adroit_door/evaluation.json").read_text()) == reported
    open_settings = {"evaluation": {"eta": None, "sigma_floor": 0.1}, "model": {"sampling_steps": None}}
    seen = as_planner_was_trained({"render": "auto", **open_settings}, planner)
    sampler = {"evaluation": {"eta": 1.0, "sigma_floor": 0.1}, "model": {"sampling_steps": 10}}
    assert seen == {"render": live["renderer"], **sampler}
    other = "raycast" if live["renderer"] != "raycast" else "egl"
    with pytest.raises(InputError, match=f"drawn by {live['renderer']}, but render={other}"):
        as_planner_was_trained({**seen, "render": other}, planner)
