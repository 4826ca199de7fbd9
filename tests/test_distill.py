"""Distillation: what its score says, what a student becomes, and that a run goes on as if it had not stopped."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_planner import SLIDER, STATE, make_planner
from toy_sets import TASKS, Looks
from toy_slider import STEPS, make_slider, slider_rollouts

from sodp3d.core import checkpoint
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.run import Run
from sodp3d.learning.distill import Distillation, Teacher, distill, drafts, energy_scores, new_student, observed_by
from sodp3d.learning.stages import STAGES
from sodp3d.models.critic import Choice, Critic, CriticConfig
from sodp3d.models.loading import load_planner, load_planner_and_state, planner_state
from sodp3d.models.planner import Planner
from sodp3d.rollouts.rollout import Episode, Rollouts
from sodp3d.settings import TrainSettings

TASK = make_slider().config


def told(*options: str) -> TrainSettings:
    return TrainSettings.from_config(compose("train", ["mode=distill", "distill.batch_size=8", *options]))


def random_batch(size: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {"features": torch.randn(size, STATE.feature_size, generator=generator), "elapsed": torch.rand(size)}


# ---- the score ---------------------------------------------------------------------------------------------------


def test_the_score_in_numbers() -> None:
    plans = torch.tensor([0.0, 1.0, 3.0]).view(1, 3, 1, 1)
    targets = torch.tensor([2.0, 2.0]).view(1, 2, 1, 1)
    assert energy_scores(plans, targets).tolist() == pytest.approx([4 / 3 - 2 / 2])
    wide = plans.expand(1, 3, 4, 7)
    assert energy_scores(wide, targets.expand(1, 2, 4, 7)).tolist() == pytest.approx([4 / 3 - 2 / 2])


@given(st.floats(0.1, 3), st.floats(0.1, 3), st.floats(-2, 2))
@settings(max_examples=20, deadline=None)
def test_it_is_that_of_normals_and_least_for_the_right_one(mine: float, wanted: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 40, 1, 300, 1, 1, generator=generator)
    scores = energy_scores((mine * first + shift)[:, 0], (wanted * second)[:, 0])

    def distance(deviation: float, mean: float = 0.0) -> float:
        """E|X| of a normal."""
        ratio = mean / deviation
        return deviation * math.sqrt(2 / math.pi) * math.exp(-(ratio**2) / 2) + mean * math.erf(ratio / math.sqrt(2))

    expected = distance(math.hypot(mine, wanted), shift) - distance(math.sqrt(2) * mine) / 2
    assert float(scores.mean()) == pytest.approx(expected, abs=0.06)
    assert expected >= distance(math.sqrt(2) * wanted) / 2 - 1e-9


def test_plans_that_coincide_have_a_gradient() -> None:
    plans = torch.zeros(2, 3, 4, 2, requires_grad=True)
    energy_scores(plans, torch.ones(2, 1, 4, 2)).sum().backward()
    assert plans.grad is not None and plans.grad.isfinite().all() and (plans.grad < 0).all()


# ---- the student -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
def test_drafts_are_what_the_student_s_own_sampler_makes(steps: int) -> None:
    student = new_student(make_planner(), steps)
    features = random_batch()["features"]
    noise = student.noise(12, torch.Generator().manual_seed(0))
    found = drafts(student, features, noise.unflatten(0, (6, 2)))
    chain = student.sample_chain(features.repeat_interleave(2, dim=0), noise, student.sampler)
    assert len(found) == steps and found[0].shape == (6, 2, STATE.horizon, STATE.action_size)
    torch.testing.assert_close(found[-1].flatten(0, 1).clamp(-1, 1), chain.latents[:, -1], atol=1e-5, rtol=1e-4)


def test_the_second_step_begins_with_the_first_draft_and_fresh_noise() -> None:
    student = new_student(make_planner(), 2)
    alpha = float(student.diffusion.alpha_bar[49])
    mean, sigma = student.diffusion.ddim_moments(
        torch.full((1, 4, 2), 0.5), torch.randn(1, 4, 2), torch.tensor([0]), 1.0
    )
    torch.testing.assert_close(mean, torch.full((1, 4, 2), 0.5 * alpha**0.5), atol=2e-3, rtol=0)
    assert float(sigma) ** 2 == pytest.approx(1 - alpha, abs=1e-3)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_student_learns_plans_of_two_modes_and_not_their_mean(steps: int) -> None:
    torch.manual_seed(0)
    student = new_student(make_planner(), steps)
    optimizer = torch.optim.Adam(student.unet.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    features = random_batch(1)["features"].expand(32, -1)
    for _ in range(120):
        side = torch.randint(2, (32, 1, 1, 1), generator=generator) * 1.4 - 0.7
        noise = student.noise(128, generator).unflatten(0, (32, 4))
        found = drafts(student, features, noise)
        loss = sum(energy_scores(draft, side.expand(-1, 1, 4, 2)).mean() for draft in found)
        optimizer.zero_grad()
        torch.as_tensor(loss).backward()
        optimizer.step()
    with torch.no_grad():
        plans = student.sample_chain(features.repeat(8, 1), student.noise(256, generator), student.sampler).latents
    middles = plans[:, -1].mean((1, 2))
    assert 0.3 < float((middles > 0).float().mean()) < 0.7
    assert float((middles.abs() > 0.4).float().mean()) > 0.8


def test_the_teacher_plans_by_its_own_sampler_and_choice() -> None:
    planner = make_planner(replace(STATE, inference_steps=5, eta=0.0))
    batch, generator = random_batch(), torch.Generator().manual_seed(1)
    alone = Teacher(planner).plans(batch["features"], batch["elapsed"], generator)
    chain = planner.sample_chain(batch["features"], planner.noise(6, generator.manual_seed(1)), planner.sampler)
    torch.testing.assert_close(alone, chain.latents[:, -1].clamp(-1, 1))
    critic = Critic(CriticConfig(STATE.feature_size, 3 * STATE.action_size, members=2, width=8))
    chosen = Teacher(planner, Choice(critic, 4)).plans(batch["features"], batch["elapsed"], generator.manual_seed(1))
    several = planner.sample_chain(
        batch["features"].repeat_interleave(4, dim=0), planner.noise(24, generator.manual_seed(1)), planner.sampler
    )
    plans = several.latents[:, -1].clamp(-1, 1).unflatten(0, (6, 4))
    values = critic(batch["features"], batch["elapsed"], planner.executed(plans)).mean(0)
    torch.testing.assert_close(chosen, plans[torch.arange(6), values.argmax(1)])


# ---- a run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_that_goes_on_is_the_same_bit_for_bit(tmp_path: Path, steps: int) -> None:
    settings, teacher = told(f"distill.steps={steps}"), Teacher(make_planner())
    whole, first = Distillation(teacher, settings), Distillation(teacher, settings)
    batches = [random_batch(size) for size in (3, 4, 5, 6)]
    for batch in batches:
        whole.update(batch)
    with Run(tmp_path, {}) as run:
        for batch in batches[:2]:
            first.update(batch)
        first.save(run, {"data_hash": "d"})
        second = Distillation(teacher, settings)
        second._restore(*checkpoint.load(checkpoint.path_of(run.checkpoints, 2)))
        second.step = 2
        second.ema.step = 2
    for batch in batches[2:]:
        second.update(batch)
    for name, value in whole.ema.planner.state_dict().items():
        assert torch.equal(value, second.ema.planner.state_dict()[name]), name
    before = teacher.planner.state_dict()
    changed = {name for name, value in whole.planner.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("unet") for name in changed)


def test_it_loads_as_any_planner_and_knows_no_more_steps(tmp_path: Path) -> None:
    training = Distillation(Teacher(make_planner()), told())
    training.update(random_batch())
    with Run(tmp_path, {}) as run:
        training.save(run, planner_state(training.student, TASKS[:1], "d"))
    planner = load_planner(tmp_path)
    assert planner.config.sampling == {"sampling_steps": 1, "eta": 1.0, "sigma_floor": 0.0}
    shown = {key: np.zeros(shape, np.float32) for key, shape in STATE.observation_shapes().items()}
    assert planner.plan(shown).shape == (STATE.horizon, STATE.action_size)
    with pytest.raises(InputError, match=r"model\.sampling_steps: this planner was distilled to plan in 1, but 10"):
        planner.config.sampled(sampling_steps=10)
    assert new_student(planner, 1).config == planner.config, "a student may teach"


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rollouts]:
    with slider_rollouts(monkeypatch, 2) as made:
        yield made


def test_what_a_teacher_sees_is_kept_wave_by_wave(tmp_path: Path, rollouts: Rollouts) -> None:
    teacher = Teacher(make_planner(SLIDER))
    episodes = rollouts.run(teacher.planner, [7, 8, 9], keep_chains=True)
    expected = torch.cat([torch.stack(episode.features) for episode in episodes])
    stops = iter([False, True])
    assert observed_by(teacher, TASK, rollouts, [7, 8, 9], tmp_path, lambda: next(stops)) is None
    assert checkpoint.steps(tmp_path) == [2], "two of them are kept"
    for _ in range(2):  # it goes on, and then finds all
        found = observed_by(teacher, TASK, rollouts, [7, 8, 9], tmp_path, lambda: False)
        assert found is not None and checkpoint.steps(tmp_path) == [3]
        torch.testing.assert_close(found["features"], expected)
        assert found["elapsed"].tolist() == pytest.approx([0, 3 / STEPS, 6 / STEPS] * 3)
    with pytest.raises(InputError, match="began with another planner than is there now"):
        other = Teacher(teacher.planner, digest="another")
        observed_by(other, TASK, rollouts, [7, 8, 9], tmp_path, lambda: False)


def test_a_teacher_that_sees_nothing_but_diverging_simulations_is_told(
    tmp_path: Path, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(self: Rollouts, policy: Planner, seeds: list[int], **_: Any) -> list[Episode]:
        return [Episode(seed, diverged=True) for seed in seeds]

    monkeypatch.setattr(Rollouts, "run", diverged)
    with pytest.raises(InputError, match=r"distill: the simulation diverged in all of the teacher's first 2 episodes"):
        observed_by(Teacher(make_planner(SLIDER)), TASK, rollouts, [7, 8, 9], tmp_path, lambda: False)


class Found(Looks):
    """Measurements that are made up, of one task."""

    def test(self, planner: Planner, run: Run) -> tuple[dict[str, float], dict[str, Any]]:
        return {"evaluation/success_any": 1.0}, {"evaluation": {"episodes": 1}}


def test_a_whole_run_and_its_result(tmp_path: Path, rollouts: Rollouts) -> None:
    settings = told("distill.episodes=3", "distill.updates=3", "distill.steps=2")
    with Run(tmp_path / "run", {}) as run:
        result = distill(settings, run, Teacher(make_planner(SLIDER)), "hash", TASK, rollouts, Found())
        logged = run.metrics()
    assert result is not None and result["steps"] == 3 and result["evaluation"] == {"episodes": 1}
    assert result["interactions"] == {"training": 3}
    seconds = result["plan_seconds"]
    assert {name: set(found) for name, found in seconds.items()} == {"before": {"1", "50"}, "after": {"1", "50"}}
    assert all(value > 0 for found in seconds.values() for value in found.values())
    assert any("train/loss" in record for record in logged)
    planner, state = load_planner_and_state(tmp_path / "run", torch.device("cpu"))
    assert planner.config.distilled == 2 and state["data_hash"] == "hash"


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("distill.steps=3", "distill.steps: expected 1 or 2, got 3."),
        ("distill.steps=0", "distill.steps: expected 1 or 2, got 0."),
        ("distill.plans=1", "distill.plans: expected a whole number of at least 2, got 1."),
        ("method=bcrnn", "method: distillation shortens the denoising steps of a planner, and method=bcrnn has none"),
        ("env=mt10", "env: a planner is distilled on one task, but 10 came; choose one: env=metaworld env.task="),
        ("env=adroit_door", "planner: no finished finetune or pretrain run of adroit_door-pointcloud under"),
        ("planner=/nowhere", "planner: /nowhere is neither a run directory with checkpoints nor a checkpoint."),
    ],
)
def test_what_cannot_be_distilled_is_told_before_anything_begins(tmp_path: Path, option: str, words: str) -> None:
    config = compose("train", ["mode=distill", "device=cpu", "threads=1", f"root={tmp_path}", option])
    with pytest.raises(InputError) as caught:
        STAGES["distill"](config)
    assert str(caught.value).startswith(words) and not list(tmp_path.iterdir())
