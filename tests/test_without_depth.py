"""Stores that are collected without depth: whole for all that needs none, and drawn later as if it had been then."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_cameras import ACTIONS, FIXED, STEPS, WRIST
from test_conversion import CONFIG
from toy_env import config as adroit
from toy_store import ATTRIBUTES, episode, metadata

from sodp3d.collection.collect import build_agent, open_store
from sodp3d.collection.environments import CollectionGroup
from sodp3d.collection.loop import metadata as kept
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CHECKOUT
from sodp3d.data.conversion import convert_store
from sodp3d.data.dataset import WindowDataset
from sodp3d.data.merge import merge
from sodp3d.data.redraw import add_depth, render_depth, render_images
from sodp3d.data.schema import step_specification
from sodp3d.data.store import EpisodeStore
from sodp3d.data.views import require_same_view
from sodp3d.envs.config import EnvConfig
from sodp3d.tools.card import write_card
from sodp3d.tools.extract import extract
from sodp3d.tools.view import write_view
from sodp3d.vision.camera import POSE
from sodp3d.vision.renderer import Renderer
from sodp3d.vision.sensors import sensor

BARE = step_specification(3, 5, 2, 4, 12, 12, depth=False)


def collected(folder: Path, task: EnvConfig, depth: bool, seeds: tuple[int, ...] = (5,)) -> Path:
    """Episodes as the command collects them."""
    group = CollectionGroup(task, "raycast", depth)
    with open_store(folder, task, group.describe(), compose("collect", ["env=metaworld"]), depth) as store:
        for seed in seeds:
            group.reset([seed], record=True)
            for action in ACTIONS:
                _, (finished,) = group.step(action[None])
            assert finished is not None
            store.append(finished.steps, kept(finished, STEPS))
    return folder / "episodes.zarr"


def bare_store(path: Path, numbers: range) -> EpisodeStore:
    with EpisodeStore.create(path, {**ATTRIBUTES, "renderer": "none"}, BARE) as store:
        for number in numbers:
            steps = episode(number)
            store.append({key: steps[key] for key in BARE}, metadata(number))
    return EpisodeStore.open(path)


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("task", [FIXED, WRIST], ids=["a fixed camera", "one that moves"])
def test_depth_drawn_later_is_what_would_have_been_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: EnvConfig
) -> None:
    expected = collected(tmp_path / "with", task, depth=True)
    with monkeypatch.context() as patch:
        patch.setattr(Renderer, "__init__", None)  # nothing is drawn, so no renderer is needed
        path = collected(tmp_path / "without", task, depth=False)
    store = EpisodeStore.open(path)
    assert not {"depth", POSE} & set(store.keys) and store.attributes["renderer"] == "none" and store.verify() == []
    for key in store.specification:
        np.testing.assert_array_equal(store.read(key), EpisodeStore.open(expected).read(key))
    told = r"collected without depth .*0 of 1 episodes.*again=depth"
    with pytest.raises(InputError, match=told):
        convert_store(path, task)
    with pytest.raises(InputError, match=told):
        require_same_view(store, sensor("pointcloud"), task)
    assert add_depth(path, task, "raycast") == {"frames": STEPS}
    for made in (expected, path):
        convert_store(made, task)
    drawn, whole = EpisodeStore.open(path), EpisodeStore.open(expected)
    for key in ("depth", "point_cloud", *([POSE] if POSE in whole.keys else [])):
        np.testing.assert_array_equal(drawn.read(key), whole.read(key))
    assert set(drawn.keys) == set(whole.keys) and drawn.verify() == []
    require_same_view(drawn, sensor("pointcloud"), task)


def test_what_is_collected_afterwards_is_drawn_with_the_next_command(tmp_path: Path) -> None:
    path = collected(tmp_path, FIXED, depth=False)
    add_depth(path, FIXED, "raycast")
    collected(tmp_path, FIXED, depth=False, seeds=(6,))
    with pytest.raises(InputError, match=r"1 of 2 episodes have it by now"):
        convert_store(path, FIXED)
    add_depth(path, FIXED)  # by the renderer of the first
    store = EpisodeStore.open(path)
    assert store.readable("depth") == 2 and store.conversions["depth"]["parameters"]["renderer"] == "raycast"
    assert (store.read("depth", 1, 2) > 0).any() and store.verify() == []
    with pytest.raises(InputError, match="not overwritten"):
        add_depth(path, FIXED, "egl")  # as other tests of this process draw: it holds one GL backend


def test_a_new_store_of_another_camera_and_images_come_from_it_too(tmp_path: Path) -> None:
    path = collected(tmp_path / "without", FIXED, depth=False)
    render_depth(path, tmp_path / "wrist.zarr", WRIST, "raycast")
    made = EpisodeStore.open(tmp_path / "wrist.zarr")
    assert made.attributes["renderer"] == "raycast" and {"depth", POSE} <= set(made.specification)
    render_images(path, FIXED, "raycast")
    assert EpisodeStore.open(path).readable("image") == 1


def test_a_store_keeps_to_how_it_was_begun(tmp_path: Path) -> None:
    path = collected(tmp_path, FIXED, depth=False)
    with pytest.raises(InputError, match=r"collect\.depth: .* was begun with collect\.depth=false"):
        collected(tmp_path, FIXED, depth=True)
    other = collected(tmp_path / "with", FIXED, depth=True)
    with pytest.raises(InputError, match=r"begun with collect\.depth=true"):
        collected(tmp_path / "with", FIXED, depth=False)
    with pytest.raises(InputError, match=r"output_data: names the new store's folder\. .* collected with depth"):
        add_depth(other, FIXED)
    assert len(EpisodeStore.open(path)) == len(EpisodeStore.open(other)) == 1


def test_an_agent_that_sees_images_is_refused() -> None:
    config = compose("collect", ["env=adroit_door", "agent.encoder=pixels"])
    facts = {"state_size": 39, "action_size": 28, "proprioception_size": 24, "renderer": "none"}
    with pytest.raises(InputError, match=r"collect\.depth=false: this agent learns from images"):
        build_agent(config["agent"], adroit("adroit_door"), facts, 0, "cpu", fresh=False)


def test_cards_pages_merges_and_extracts_need_no_depth(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    store = bare_store(folder / "episodes.zarr", range(6))
    card = write_card(folder).read_text()
    assert "| depth image | none: collected without; `" in card and "again=depth` draws it |" in card
    assert not list((folder / "card").glob("*")) if (folder / "card").exists() else True
    page = write_view(folder, episodes=2).read_text()
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert data["episodes"][0]["frames"][0]["depth"] is None and data["width"] == 12
    shards = [bare_store(tmp_path / f"{part.start}.zarr", part).path for part in (range(3), range(3, 6))]
    with merge(shards, tmp_path / "m.zarr") as whole:
        assert len(whole) == 6 and "depth" not in whole.specification and whole.verify() == []
    with extract(store.path, tmp_path / "e.zarr", max_episodes=2) as some:
        assert len(some) == 2 and some.verify() == []
    with pytest.raises(InputError, match=r"data/depth holds 0 of 6 episodes.*again=depth"):
        store.read("depth")
    assert len(WindowDataset([store], ["agent_pos", "state"], 4, 2, 3)) == store.steps
    with pytest.raises(InputError, match="collected without depth"):
        convert_store(store.path, CONFIG)


@pytest.mark.slow
def test_the_commands_from_collection_without_depth_to_clouds(tmp_path: Path) -> None:
    task = "env=metaworld env.task=reach env.episode_steps=10 env.camera.height=24 env.camera.width=24 env.points=16"
    common = [*task.split(), "render=raycast", "threads=1", "workers=1", "device=cpu", f"root={tmp_path}"]

    def run(script: str, *arguments: str, fails: bool = False) -> str:
        command = [sys.executable, str(CHECKOUT / script), *common, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr

    run("data_collection/collect.py", "agent=scripted", "collect.depth=false", "collect.agent_steps=40")
    small = ["mode=pretrain", "preset=quick", "pretrain.steps=2", "pretrain.batch_size=4", "model.unet=simple_dp3"]
    small += ["evaluation.episodes=1", "evaluation.environments=1", "evaluation.videos=0", "pretrain.memory=mapped"]
    run("train.py", "obs=state", *small)
    assert "again=depth" in run("train.py", "obs=pointcloud", *small, fails=True)
    assert "again=depth" in run("data_collection/convert.py", fails=True)
    run("data_collection/convert.py", "again=depth")
    run("data_collection/convert.py")
    run("train.py", "obs=pointcloud", *small)
    names = {path.name for path in (tmp_path / "data/metaworld_reach").glob("*.safetensors")}
    assert names == {f"episodes.zarr.action-agent_pos-{key}.safetensors" for key in ("state", "point_cloud")}
