"""Learning from recordings, which nothing simulates: what is held out, measured offline, and refused."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_recorded import NAMES, depth_episode, make_recorded_store, recorded_episode

from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CHECKOUT
from sodp3d.core.run import read_metrics, read_result
from sodp3d.data.conversion import convert_store
from sodp3d.data.dataset import WindowDataset, hold_out
from sodp3d.data.recording import as_recorded
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import task_configs
from sodp3d.learning import offline
from sodp3d.learning.offline import Offline, planned_actions
from sodp3d.learning.stages import STAGES
from sodp3d.models.loading import load_policy_and_state
from sodp3d.tools import report, summary

SMALL = (
    "env=recorded env.horizon=4 env.n_action_steps=2 device=cpu threads=1 workers=1 model.denoising_steps=4 "
    "model.sampling_steps=2 model.unet=small pretrain.steps=4 pretrain.batch_size=4 pretrain.log_every=2 "
    "pretrain.checkpoint_every=2 pretrain.evaluate_every=2 pretrain.held_out=0.3"
).split()

ALL_OF_THEM = ["pretrain.successful_only=false", "pretrain.max_episodes=null"]  # methods of imitation take successes


def configured(root: Path, data: Path, *options: str) -> dict[str, Any]:
    return compose("train", [*SMALL, f"root={root}", f"data={data}", *options])


def pretrain(root: Path, data: Path, *options: str) -> Path:
    """The directory of a run, which is finished."""
    STAGES["pretrain"](as_recorded(configured(root, data, *options)))
    (result,) = (root / "outputs" / "pretrain").glob("*/*/result.json")
    return result.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five recordings of clouds; neither depth, camera, reward, success nor seed."""
    path = tmp_path_factory.mktemp("recorded") / "data" / "arm" / "episodes.zarr"
    make_recorded_store(path, [recorded_episode(number, 5 + number) for number in range(5)])
    return path.parent


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    """The run of learning from them."""
    return pretrain(data.parents[1], data)


# -- what is held out ----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.floats(0.01, 1))
def test_some_are_held_out_and_the_others_learned_from(counts: list[int], share: float) -> None:
    chosen = [np.arange(count) * 2 for count in counts]
    total = sum(counts)
    if max(1, round(share * total)) >= total:
        with pytest.raises(InputError, match=r"^pretrain\.held_out: .* none be left"):
            hold_out(chosen, share, "pretrain.held_out")
        return
    learned, held = hold_out(chosen, share, "pretrain.held_out")
    assert sum(map(len, held)) == max(1, round(share * total))
    for rows, one, other in zip(chosen, learned, held, strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate([one, other])), rows)
    again = hold_out(chosen, share, "pretrain.held_out")[1]
    assert all((one == other).all() for one, other in zip(held, again, strict=True))


# -- what is measured ----------------------------------------------------------------------------------------------


class Parrot:
    """Plans what is written in the hand's first number: the step, times 10 in the second number of the plan."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.beside: list[int] = []  # how many episodes it was asked for at once

    def begin(self, task: Any, seed: int) -> list[int]:
        return []

    def act(self, observation: dict[str, np.ndarray], memories: list[list[int]]) -> np.ndarray:
        self.beside.append(len(memories))
        now = observation["agent_pos"][:, -1, 0]
        for memory, step, before in zip(memories, now, observation["agent_pos"][:, 0, 0], strict=True):
            assert before == max(step - 1, 0)  # the step before, or the first one again
            memory.append(int(step))
        return np.stack([np.stack([now + ahead, 10 * now], axis=-1) for ahead in range(3)], axis=1)


def test_a_policy_is_shown_what_was_recorded_whenever_it_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [7, 2, 3]
    episodes = []
    for length in lengths:
        steps = np.arange(length, dtype=float)
        episodes.append(recorded_episode(0, length, action=np.zeros((length, 2)), agent_pos=steps[:, None], beside={}))
    path = tmp_path / "episodes.zarr"
    make_recorded_store(path, episodes, action_names=["a", "b"], agent_pos_names=["step"])
    task = task_configs(as_recorded(configured(tmp_path, path, "env.n_action_steps=3")))[0]
    dataset = WindowDataset([EpisodeStore.open(path)], ["agent_pos"], 4, 2, 3)
    planned = planned_actions(Parrot(), dataset, task)  # type: ignore[arg-type]
    np.testing.assert_array_equal(planned[:, 0], [*range(7), *range(2), *range(3)])
    np.testing.assert_array_equal(planned[:, 1] / 10, [0, 0, 0, 3, 3, 3, 6, 0, 0, 0, 0, 0])
    monkeypatch.setattr(offline, "_BATCH", 2)
    parrot = Parrot()
    np.testing.assert_array_equal(planned_actions(parrot, dataset, task), planned)  # type: ignore[arg-type]
    assert max(parrot.beside) == 2, "never more at once, however many episodes there are"


def test_a_number_that_never_changes_has_no_share(tmp_path: Path) -> None:
    still = np.stack([np.arange(6.0), np.ones(6)], axis=1)
    path = tmp_path / "episodes.zarr"
    make_recorded_store(
        path, [recorded_episode(number, 6, action=still) for number in range(3)], action_names=["a", "b"]
    )
    config = as_recorded(configured(tmp_path, path))
    offline = Offline(config, task_configs(config))
    assert offline._share(np.array([1.0, 5.0])) == pytest.approx(0.2)


def test_a_run_ends_with_what_was_measured_offline(trained: Path, data: Path) -> None:
    result = read_result(trained)
    found = json.loads((trained / "offline.json").read_text())
    assert result["steps"] == 4 and result["offline"]["numbers"] == "offline.json"
    assert {key: value for key, value in found.items() if key in result["offline"]} == {
        key: value for key, value in result["offline"].items() if key in found
    }
    store = EpisodeStore.open(data / "episodes.zarr")
    learned, held = hold_out([np.arange(5)], 0.3, "")
    assert [one["episode"] for one in found["by_episode"]] == held[0].tolist() and found["episodes"] == 2
    assert found["shown"] in found["by_episode"]
    assert found["steps"] == sum(len(store.read("action", index, index + 1)) for index in held[0])
    taught = np.concatenate([store.read("action", index, index + 1) for index in learned[0]])
    asked = [store.read("action", index, index + 1) for index in held[0]]
    mean = np.abs(np.concatenate(asked) - taught.mean(axis=0)).mean(axis=0)
    last = [np.abs(actions - actions[[max(step // 2 * 2 - 1, 0) for step in range(len(actions))]]) for actions in asked]
    for episode, actions in zip(last, asked, strict=True):
        episode[:2] = np.abs(actions[:2] - taught.mean(axis=0))  # before the first plan there is no last action
    assert [number["name"] for number in found["by_action"]] == NAMES["action_names"]
    for place, number in enumerate(found["by_action"]):
        assert number["mean_action"] == pytest.approx(mean[place], rel=1e-5)
        assert number["hold_last"] == pytest.approx(np.concatenate(last).mean(axis=0)[place], rel=1e-5)
        assert number["policy"] > 0 and number["low"] == taught.min(axis=0)[place]
    metrics = read_metrics(trained)
    (looked,) = [record for record in metrics if "validation/loss" in record]
    (ended,) = [record for record in metrics if "evaluation/loss" in record]
    assert looked["step"] == 2 and ended["evaluation/action_error"] == pytest.approx(found["error"]["policy"])
    picture = matplotlib.image.imread(trained / "offline.png")
    assert np.ptp(picture[..., :3], axis=-1).max() > 0.5  # something is drawn in colour
    assert (trained / "curve.png").is_file()
    planner, state = load_policy_and_state(trained)
    assert state["tasks"] == ["arm"] and state["view"] == {"points": 16} and planner.config.renderer is None


def test_numbers_are_those_of_the_planner_that_is_loaded(trained: Path, data: Path) -> None:
    config = as_recorded(configured(data.parents[1], data))
    planner, _ = load_policy_and_state(trained)
    metrics, _ = Offline(config, task_configs(config)).test(planner, type("There", (), {"directory": trained})())
    recorded = json.loads((trained / "result.json").read_text())["offline"]
    assert metrics["evaluation/loss"] == pytest.approx(recorded["loss"], rel=1e-5)
    assert metrics["evaluation/action_error"] == pytest.approx(recorded["error"]["policy"], rel=1e-4)


def test_a_method_with_dropout_is_measured_as_it_acts_and_looks_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data" / "arm" / "episodes.zarr"
    make_recorded_store(path, [depth_episode(number, state=np.ones((9, 4))) for number in range(4)])
    weights = []
    for every in (0, 2):
        root = tmp_path / str(every)
        options = "obs=state method=ibc model.sampling_steps=null env.n_action_steps=1 model.width=8".split()
        options += [
            "model.dropout=0.5",
            "model.negatives=4",
            "model.samples=8",
            f"pretrain.evaluate_every={every}",
            *ALL_OF_THEM,
        ]
        run = pretrain(root, path, *options)
        policy, _ = load_policy_and_state(run)
        weights.append(policy.state_dict())
        config = as_recorded(configured(root, path, *options))
        metrics, _ = Offline(config, task_configs(config)).test(policy, type("There", (), {"directory": run})())
        recorded = read_result(run)["offline"]
        assert metrics["evaluation/loss"] == pytest.approx(recorded["loss"], rel=1e-5)
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_summary_and_report_show_it(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = data.parents[1]
    assert summary.main(["arm", "--root", str(root)]) == 0
    said = capsys.readouterr().out
    assert "on 2 held-out episodes actions are off by" in said and "offline.png" in said
    assert "mode=finetune" not in said and "no planner" not in said
    page = root / "arm.html"
    assert report.main(["arm", "--data", str(data), "--outputs", str(root / "outputs"), "--output", str(page)]) == 0
    text = re.sub(r"<script>.*?</script>", "", page.read_text(), flags=re.S)
    assert "Actions on held-out recordings" in text and "<th>grip</th>" in text and "data:image/png;base64," in text
    assert "mode=finetune" not in text and "Success before" not in text and "not recorded" in text


@pytest.mark.parametrize("obs", ["image", "state"])
def test_other_sensors_and_other_methods_learn_too(tmp_path: Path, obs: str) -> None:
    path = tmp_path / "data" / "arm" / "episodes.zarr"
    state = {"state": np.ones((9, 4))} if obs == "state" else {}
    make_recorded_store(path, [depth_episode(number, **state) for number in range(4)])
    method = {"image": [], "state": ["method=bcrnn", "model.width=8", "model.sampling_steps=null"]}[obs]
    drop = {"image": 0, "state": len("model.unet=small")}[obs]
    options = [f"obs={obs}", *method, *(["env.n_action_steps=1", "env.n_obs_steps=1"] if drop else [])]
    options += ALL_OF_THEM
    found = read_result(pretrain(tmp_path, path, *options))["offline"]
    assert found["episodes"] == 1 and np.isfinite(found["loss"])


def test_depth_becomes_clouds_and_its_crop_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "data" / "arm" / "episodes.zarr"
    make_recorded_store(path, [depth_episode(number) for number in range(3)])
    with pytest.raises(InputError, match=r"env=recorded data=.*"):
        pretrain(tmp_path, path)
    convert_store(path, task_configs(as_recorded(configured(tmp_path, path, "env.points=20")))[0])
    state = load_policy_and_state(pretrain(tmp_path, path))[1]
    assert state["view"]["points"] == 20 and state["view"]["crop"]["low"] == ["-inf"] * 3


# -- what is refused before anything is made -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["finetune", "eval"])
@pytest.mark.parametrize("name", ["null", "arm"])
def test_what_acts_needs_a_simulator(tmp_path: Path, mode: str, name: str) -> None:
    options = [f"mode={mode}", f"root={tmp_path}", "env=recorded", f"env.name={name}", "planner=x"]
    if name == "arm":
        options += ["env.episode_steps=9", "env.points=9", "env.crop.low=[0,0,0]", "env.crop.high=[1,1,1]"]
    with pytest.raises(InputError, match=r"recordings cannot be reset or stepped.*docs/extending\.md"):
        STAGES[mode](compose("train", options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["pretrain", "finetune", "eval"])
def test_an_unknown_family_is_refused_before_anything(tmp_path: Path, data: Path, mode: str) -> None:
    options = [f"mode={mode}", f"root={tmp_path}", "env.family=my_robot", f"data={data}"]
    with pytest.raises(InputError, match=r"env\.family: expected one of adroit, metaworld, recorded.*'my_robot'"):
        STAGES[mode](compose("train", options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["obs=state"], "data/state was not recorded"),
        (["obs=image"], "data/image was not recorded"),
        (
            ["pretrain.successful_only=true"],
            r"pretrain\.successful_only: .* does not say which episodes succeeded by 'any'",
        ),
        (["pretrain.held_out=1"], r"pretrain\.held_out: 5 of 5 episodes"),
        (["pretrain.held_out=0"], r"pretrain\.held_out: expected a share above 0"),
        (["method=mtdiff", "model.width=8"], "has no rewards"),
    ],
)
def test_what_recordings_lack_is_told_before_a_run_begins(
    tmp_path: Path, data: Path, options: list[str], told: str
) -> None:
    config = as_recorded(configured(tmp_path, data, *options))
    with pytest.raises(InputError, match=told):
        STAGES["pretrain"](config)
    assert not (tmp_path / "outputs").exists()


# -- the page ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Constant")  # of Meta-World's experts
def test_the_example_of_the_page(tmp_path: Path) -> None:
    """docs/robot.md, at the smallest size: a simulated arm is recorded, learned from and measured."""
    assert CHECKOUT is not None
    blocks = re.findall(r"```python\n(.*?)```", (CHECKOUT / "docs" / "robot.md").read_text(), re.S)
    (block,) = [block for block in blocks if "def record(" in block]
    names: dict[str, Any] = {}
    exec(block.replace('record("data', '0 and record("data'), names)
    path = tmp_path / "data" / "table_top" / "episodes.zarr"
    camera = ("env.camera.height=24", "env.camera.width=24")
    for _ in range(2):  # the second time all is there
        names["record"](path, episodes=3, steps=8, points=16, options=camera)
    store = EpisodeStore.open(path)
    assert len(store) == 3 and store.verify() == [] and "reward" not in store.keys and not store.metadata
    found = read_result(pretrain(tmp_path, path))["offline"]
    assert [number["name"] for number in found["by_action"]] == store.attributes["action_names"]
    assert found["steps"] == 8
