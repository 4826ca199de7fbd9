"""Evaluations that are kept: a stop loses no wave, and nothing is measured twice or taken from another planner."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_planner import make_planner

from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json
from sodp3d.envs.config import EnvConfig
from sodp3d.models.critic import Choice, Critic, CriticConfig
from sodp3d.rollouts.evaluate import Evaluation
from sodp3d.rollouts.kept import ROLLOUTS, KeptRollouts, evaluate_and_keep, keep_evaluation, recall
from sodp3d.rollouts.rollout import Episode
from sodp3d.settings import measured_alike

TASK = EnvConfig.from_config(compose("train")["env"])
SEEDS = range(100, 105)


class Rollouts:
    """Made-up episodes, each following from its seed; two at once. Counts what it was asked for."""

    environments = 2

    def __init__(self) -> None:
        self.asked: list[int] = []

    def run(self, planner: Any, seeds: list[int], options: Any, choice: Any) -> list[Episode]:
        self.asked += seeds
        return [self.episode(seed) for seed in seeds]

    def episode(self, seed: int) -> Episode:
        random = np.random.default_rng(seed)
        made = Episode(
            seed, success=dict(zip(("final", "count", "any"), (random.random(3) < 0.5).tolist(), strict=True))
        )
        made.actions = [random.random((steps, 2)).astype(np.float32) for steps in (3, 3, 1)]
        made.rewards = [random.normal(size=3), random.normal(size=3), random.normal(size=1)]
        return made


def evaluate(folder: Path, waves: int = 9, digest: str = "one") -> tuple[Evaluation | None, list[int]]:
    """The evaluation, stopped after so many waves; and the seeds that were rolled out."""
    rollouts = Rollouts()
    found = evaluate_and_keep(
        make_planner(), digest, TASK, SEEDS, folder, lambda: rollouts, lambda: len(rollouts.asked) >= 2 * waves
    )  # type: ignore[arg-type]
    return found, rollouts.asked


def test_stopped_between_waves_it_goes_on_with_the_next_one(tmp_path: Path) -> None:
    whole, asked = evaluate(tmp_path / "whole")
    assert whole is not None and asked == list(SEEDS)
    assert evaluate(tmp_path / "parts", waves=1) == (None, [100, 101])
    assert not (tmp_path / "parts/evaluation.json").exists(), "no number of a part is told as a whole one"
    parts, asked = evaluate(tmp_path / "parts")
    assert parts is not None and asked == [102, 103, 104] and parts.summary() == whole.summary()
    for name in (ROLLOUTS, "evaluation.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    again, asked = evaluate(tmp_path / "whole")
    assert again is not None and asked == [] and again.summary() == read_json(tmp_path / "whole/evaluation.json")


def test_what_another_planner_did_or_what_is_damaged_is_measured_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(tmp_path)
    assert evaluate(tmp_path, digest="two")[1] == list(SEEDS)
    (tmp_path / ROLLOUTS).write_bytes((tmp_path / ROLLOUTS).read_bytes()[:-30])
    assert evaluate(tmp_path, digest="two")[1] == list(SEEDS) and "damaged" in caplog.text


def test_a_test_is_recalled_only_whole_and_of_that_planner_and_those_seeds(tmp_path: Path) -> None:
    evaluate(tmp_path, waves=1)
    assert recall("one", TASK, SEEDS, tmp_path) is None
    found, _ = evaluate(tmp_path)
    recalled = recall("one", TASK, SEEDS, tmp_path)
    assert found is not None and recalled is not None and recalled.metrics() == found.metrics()
    fewer = recall("one", TASK, SEEDS[:3], tmp_path)
    assert fewer is not None and [episode.seed for episode in fewer.episodes] == list(SEEDS[:3])
    assert recall("two", TASK, SEEDS, tmp_path) is None and recall("one", TASK, range(101, 106), tmp_path) is None


@pytest.mark.parametrize(
    ("override", "alike"),
    [
        ("evaluation.eta=0.5", False),
        ("model.sampling_steps=5", False),
        ("env.points=128", False),
        ("evaluation.validation_episodes=3", True),
        ("finetune.episodes=3", True),
        ("threads=1", True),
    ],
)
def test_what_decides_an_evaluation(override: str, alike: bool) -> None:
    assert measured_alike(compose("train"), compose("train", [override])) is alike


@pytest.mark.parametrize("position", range(0, 1100, 50))
def test_damaged_roll_outs_are_one_message_or_what_they_were(tmp_path: Path, position: int) -> None:
    evaluate(tmp_path)
    path = tmp_path / ROLLOUTS
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 0xFF
    path.write_bytes(content)
    expected = Rollouts().episode(101)
    try:
        kept = KeptRollouts.read(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        np.testing.assert_array_equal(kept.actions_of(1), np.concatenate(expected.actions))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seeds", np.zeros((2, 2), np.int64)),
        ("ends", np.array([7, 7, 14, 21, 35])),
        ("ends", np.array([7, 14, 21, 28, 36])),
        ("actions", np.zeros(35)),
        ("success", np.zeros((5, 2), bool)),
        ("success", np.array(["x"] * 5)),
        ("returns", np.zeros(4)),
        ("actions", None),
    ],
)
def test_roll_outs_that_do_not_fit_together_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    evaluate(tmp_path)
    with np.load(tmp_path / ROLLOUTS) as data:
        arrays = {name: data[name] for name in data}
    arrays |= {key: value}
    np.savez(tmp_path / ROLLOUTS, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=r"rollouts\.npz: damaged"):
        KeptRollouts.read(tmp_path / ROLLOUTS)


def test_what_a_critic_chose_is_another_evaluation(tmp_path: Path) -> None:
    """The same weights, tested with several plans to choose from, are measured again, and recalled as such alone."""
    choice = Choice(Critic(CriticConfig(256, 6)), 4)
    evaluate(tmp_path)
    rollouts = Rollouts()
    given = make_planner(), "one", TASK, SEEDS, tmp_path, lambda: rollouts, lambda: False
    assert evaluate_and_keep(*given, choice) is not None and rollouts.asked == list(SEEDS)  # type: ignore[arg-type]
    assert recall("one", TASK, SEEDS, tmp_path, choice.count) is not None
    assert recall("one", TASK, SEEDS, tmp_path) is None
    assert recall("one", TASK, SEEDS, tmp_path, 8) is None


def test_two_checkpoints_of_the_same_weights_share_one_test(tmp_path: Path) -> None:
    found, _ = evaluate(tmp_path / "last")
    assert found is not None
    keep_evaluation(found, "two", tmp_path / "best")
    assert evaluate(tmp_path / "best", digest="two")[1] == [], "nothing is rolled out again"
    assert (tmp_path / "best/evaluation.json").read_bytes() == (tmp_path / "last/evaluation.json").read_bytes()
