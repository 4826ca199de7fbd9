"""The second lesson of pre-training: features that tell the simulator's state."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_clouds import CLOUDS, values
from toy_planner import STATE, make_planner
from toy_store import ATTRIBUTES, metadata

from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.run import Run
from sodp3d.data.dataset import WindowDataset
from sodp3d.data.hashing import Identity
from sodp3d.data.schema import Field
from sodp3d.data.store import EpisodeStore
from sodp3d.learning.pretrain import Pretraining
from sodp3d.learning.telling import StateTelling, require_states
from sodp3d.learning.windows import to_device
from sodp3d.settings import PretrainSettings, TrainSettings

SEEING = replace(STATE, observation="pointcloud", sensor_shape=(7, 3), proprioception_size=2, action_size=3)
SETTINGS = PretrainSettings(batch_size=32, warmup_steps=0, schedule="constant", learning_rate=3e-3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> WindowDataset:
    """Clouds with a state that follows from them: the highest coordinates, and a number that never changes."""
    path = tmp_path_factory.mktemp("data") / "episodes.zarr"
    with EpisodeStore.create(path, ATTRIBUTES, {**CLOUDS, "state": Field((4,), "float32")}) as store:
        for number in range(8):
            steps = values(number, length=12)
            highest = steps["point_cloud"].max(axis=1)
            store.append(
                {**steps, "state": np.append(highest, np.full((12, 1), 5, np.float32), axis=1)}, metadata(number)
            )
    return WindowDataset([EpisodeStore.open(path)], ["agent_pos", "point_cloud", "state"], 4, 2, 3)


def make_training(dataset: WindowDataset, weight: float = 1.0) -> Pretraining:
    planner = make_planner(SEEING)
    return Pretraining(planner, SETTINGS, 0, telling=StateTelling(planner, dataset, weight))


def learn(training: Pretraining, dataset: WindowDataset, steps: int) -> None:
    for _ in range(steps):
        batch = dataset.sample(SETTINGS.batch_size, training.batches)
        training.update(to_device(batch, torch.device("cpu")))


def test_the_loss_is_the_planner_s_own_and_the_weighted_error_of_states(dataset: WindowDataset) -> None:
    planner, batch = make_planner(SEEING), to_device(dataset.windows(np.arange(5)), torch.device("cpu"))
    telling = StateTelling(planner, dataset, 0.5)
    found = telling.losses(batch, torch.Generator().manual_seed(0))
    own = planner.losses(batch, torch.Generator().manual_seed(0))
    states = torch.from_numpy(dataset.steps("state", np.arange(len(dataset)))[:, :3])
    scaled = (batch["state"][..., :3] - states.mean(0)) / states.std(0)
    told = telling.head(planner.encode(batch).view(5, 2, 128))[..., :3]
    error = (told - scaled).abs()
    missed = torch.where(error < 0.1, error.square() / 0.2, error - 0.05).mean((1, 2))
    torch.testing.assert_close(found, own + 0.5 * missed)


def test_the_encoder_learns_where_things_are(dataset: WindowDataset) -> None:
    """By a head that is made anew, of features that stay as they are: with the lesson they say more."""
    errors = {}
    for weight in (0.0, 1.0):
        training = make_training(dataset, weight)
        learn(training, dataset, 150)
        windows = to_device(dataset.windows(np.arange(len(dataset))), torch.device("cpu"))
        features = training.planner.encode(windows).detach()
        known = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
        wanted = windows["state"][:, -1, :3].double()
        fitted = torch.linalg.lstsq(known[::2], wanted[::2], driver="gelsd").solution
        errors[weight] = float((known[1::2] @ fitted - wanted[1::2]).square().mean())
    assert errors[1.0] < errors[0.0] / 2


def test_a_resumed_training_is_as_if_it_had_never_stopped(dataset: WindowDataset, tmp_path: Path) -> None:
    straight = make_training(dataset)
    learn(straight, dataset, 4)
    data = Identity("v2-0", "0")
    with Run(tmp_path / "run", {}) as run:
        first = make_training(dataset)
        learn(first, dataset, 2)
        first.save(run, {"data_hash": data.current})
        second = make_training(dataset)
        second.load(run, data)
    learn(second, dataset, 2)
    for mine, other in ((straight.planner, second.planner), (straight.telling, second.telling)):
        assert mine is not None and other is not None
        for name, value in mine.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["obs=state"], "obs=state sees it; use 0, or obs=pointcloud"),
        (["method=bcrnn"], "method=bcrnn makes none"),
        (["pretrain.augment.rotation=5"], "rotation turns what it would be told of"),
    ],
)
def test_what_cannot_tell_states_is_refused(options: list[str], told: str) -> None:
    chosen: Any = compose("train", ["pretrain.state_weight=0.5", *options])
    with pytest.raises(InputError, match=rf"^pretrain\.state_weight: 0\.5 teaches .* but .*{told}"):
        require_states(TrainSettings.from_config(chosen))
    require_states(TrainSettings.from_config(compose("train", options)))
