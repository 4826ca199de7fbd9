"""Fine-tuning's own state and updates, on made-up episodes of a small state planner."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_planner import STATE, make_observation, make_planner

from sodp3d.core import checkpoint
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CONFIGS
from sodp3d.core.run import Run
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.checks import START
from sodp3d.learning.finetune import find_proficient, validation_due
from sodp3d.learning.keeper import Keeper
from sodp3d.learning.learner import RATE_STEP, Learner, check_likelihood, together
from sodp3d.learning.recorded import recorded_episodes
from sodp3d.learning.stages import _recorded, run_finetune, run_pretrain
from sodp3d.learning.tuning import Finetuning
from sodp3d.models.loading import planner_state
from sodp3d.models.planner import Planner
from sodp3d.rollouts.evaluate import Evaluation
from sodp3d.rollouts.rollout import Episode
from sodp3d.settings import FinetuneSettings, LargeStepSettings, RegularizerSettings, TrainSettings

ALGORITHMS = sorted(file.stem for file in (CONFIGS / "algorithm").glob("*.yaml"))
TASK = EnvConfig.from_config(compose("train")["env"])


def settings(**changes: Any) -> FinetuneSettings:
    return FinetuneSettings(**{**compose("train", ["algorithm=sodp_chunk"])["finetune"], "batch_size": 16, **changes})


def regularized(name: str = "bc") -> RegularizerSettings:
    return RegularizerSettings(name=name, weight=1.0)


def episode(planner: Planner, tuning: Finetuning, seed: int, success: bool, chunks: int = 5) -> Episode:
    """A roll-out as `Rollouts` would return it, with made-up observations and rewards."""
    generator = torch.Generator().manual_seed(seed)
    made = Episode(seed, success={"final": success, "count": success, "any": success})
    for chunk in range(chunks):
        seen = make_observation(planner.config, 1, seed=seed * 100 + chunk)
        with torch.no_grad():
            features = planner.encode(seen)
            chain = planner.sample_chain(features, planner.noise(1, generator), tuning.learner.options)
        made.observations.append({key: value[0].numpy() for key, value in seen.items()})
        made.features.append(features[0])
        made.latents.append(chain.latents[0])
        made.means.append(chain.means[0])
        made.actions.append(np.zeros((3, 2), np.float32))
        made.rewards.append(np.random.default_rng(seed + chunk).normal(size=3))
    after = make_observation(planner.config, 1, seed=seed * 100 + chunks)
    made.final_observation = {key: value[0].numpy() for key, value in after.items()}
    made.final_features = planner.encode(after)[0].detach()
    return made


def prepare(regularizer: str = "bc", **changes: Any) -> Finetuning:
    planner = make_planner(STATE)
    tuning = Finetuning(planner, settings(**changes), regularized(regularizer), seed=0)
    tuning.remember([episode(planner, tuning, seed, success=seed % 2 == 0) for seed in range(4)], TASK)
    return tuning


@pytest.mark.parametrize("encoder", ["frozen", "tuned"])
@pytest.mark.parametrize("floor_steps", ["all", "all_but_last"])
def test_the_ratio_is_one_before_the_first_update(encoder: str, floor_steps: str) -> None:
    sampler = dataclasses.replace(settings().sampler, floor_steps=floor_steps)
    tuning = prepare(encoder=encoder, sampler=sampler)
    batch = tuning.memory.replay.sample(64, tuning.learner.batches)
    _, metrics = tuning.learner.importance(batch, torch.randn(64))
    assert float(metrics["ratio_max"]) == pytest.approx(1, abs=1e-5)
    assert float(metrics["kl"]) == pytest.approx(0, abs=1e-7)
    assert float(metrics["clip_fraction"]) == 0


def test_the_planner_that_learns_is_as_when_it_acts() -> None:
    """Or dropout and moving statistics, of an encoder of one's own, would change ratios and frozen features."""
    planner = make_planner(STATE)
    planner.encoder.sensor.layers.append(torch.nn.Dropout(0.5))
    tuning = Finetuning(planner.train(), settings(), regularized(), seed=0)
    seen = make_observation(planner.config, 3)
    assert torch.equal(tuning.planner.encode(seen), tuning.planner.encode(seen))
    tuning.remember([episode(tuning.planner, tuning, seed, success=True) for seed in range(4)], TASK)
    tuning.learn(2)
    assert torch.equal(tuning.planner.encode(seen), tuning.planner.encode(seen))


def test_metrics_of_a_batch_in_parts_are_those_of_the_whole() -> None:
    values = torch.tensor([1.0, 4.0, 2.0, 3.0, 8.0])
    parts = [{"kl": part.mean(), "ratio_max": part.max()} for part in values.split(2)]
    found = together(parts, torch.tensor([0.4, 0.4, 0.2]))
    assert float(found["kl"]) == pytest.approx(float(values.mean())) and float(found["ratio_max"]) == 8


@pytest.mark.parametrize(("bound", "steps"), [(None, 3), (1e-9, 1)])
def test_large_steps_are_counted_where_the_bound_ends_them(bound: float | None, steps: int) -> None:
    tuning = prepare(large_steps=LargeStepSettings(updates=3, batch_size=8), target_kl=bound)
    assert tuning.learn(1)["train/importance_updates"] == steps


@pytest.mark.parametrize("cloned_until", ["success", "end"])
def test_what_began_when_the_task_was_achieved_is_not_cloned(cloned_until: str) -> None:
    tuning = prepare(cloned_until=cloned_until)
    known = len(tuning.memory.target.facts["episode_return"])
    later = episode(tuning.planner, tuning, 11, success=True)
    later.achieved = dict.fromkeys(("count", "any"), 0)
    tuning.remember([later], TASK)
    assert len(tuning.memory.target.facts["episode_return"]) == known


@pytest.mark.parametrize("regularizer", ["bc", "none", "kl", "pl"])
@pytest.mark.parametrize("credit", [("chunk", "none"), ("return_to_go", "time"), ("gae", "mean"), ("chunk", "value")])
def test_updates_change_the_denoiser_and_leave_a_frozen_encoder(regularizer: str, credit: tuple[str, str]) -> None:
    tuning = prepare(regularizer, credit=credit[0], baseline=credit[1])
    before = {name: value.clone() for name, value in tuning.planner.state_dict().items()}
    metrics = tuning.learn(2)
    changed = {name for name, value in tuning.planner.state_dict().items() if not torch.equal(value, before[name])}
    assert metrics["train/updates"] == 2 and any(name.startswith("unet") for name in changed)
    assert not any(name.startswith(("encoder", "normalizer")) for name in changed)


@pytest.mark.parametrize("credit", [("gae", "none"), ("return_to_go", "value")])
def test_a_value_head_learns_beside_a_tuned_encoder(credit: tuple[str, str]) -> None:
    tuning = prepare(credit=credit[0], baseline=credit[1], encoder="tuned", batch_size=7)
    before = {name: value.clone() for name, value in tuning.credit.value.state_dict().items()}
    features = tuning.credit.features(tuning.memory, tuning.planner)
    torch.testing.assert_close(features, tuning.planner.encode(tuning.memory.replay.rows))
    tuning.learn(1)
    assert any(not torch.equal(value, before[name]) for name, value in tuning.credit.value.state_dict().items())


@pytest.mark.parametrize("encoder", ["frozen", "tuned"])
def test_beyond_a_time_limit_the_value_head_tells_what_would_follow(encoder: str) -> None:
    planner, tuning = make_planner(STATE), prepare(credit="gae", discount=0.9, encoder=encoder)
    ended = episode(planner, tuning, 9, success=True)
    ended.terminated = True
    tuning.remember([ended], TASK)
    seen = [planner.encode(make_observation(STATE, 1, seed=seed * 100 + 5)) for seed in range(4)]
    expected = [*tuning.credit.value(torch.cat(seen), torch.zeros(4)).tolist(), 0.0]
    remembered = tuning.memory, tuning.planner
    features = tuning.credit.features(*remembered)
    assert tuning.credit.values(features, *remembered)[1] == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 5
    tuning.credit.settings = dataclasses.replace(tuning.settings, discount=1.0)
    assert tuning.credit.values(features, *remembered)[1] == [0.0] * 5


def test_only_successes_are_cloned_and_old_episodes_are_forgotten() -> None:
    tuning = prepare(replay_episodes=3)
    assert len(tuning.memory.target) == 2 and len(tuning.memory.replay) == 3
    assert bool(tuning.memory.target.facts["success"].all())


@pytest.mark.parametrize(
    ("reg", "learning_rate", "target_kl", "weighed", "updates"),
    [
        ("bc", 1e-6, 0.02, 10, 10),
        ("bc", 0.1, None, 10, 10),
        ("bc", 0.1, 0.02, 2, 10),  # old plans are weighed no more, and successes are cloned on
        ("none", 0.1, 0.02, 2, 2),
        ("kl", 0.1, 0.02, 2, 2),  # alone it would only lead back
    ],
)
def test_the_kl_bound_ends_the_importance_term_of_a_runaway_iteration(
    reg: str, learning_rate: float, target_kl: float | None, weighed: int, updates: int
) -> None:
    tuning = prepare(reg, learning_rate=learning_rate, clip=10.0, target_kl=target_kl)
    metrics = tuning.learn(10)
    assert (metrics["train/importance_updates"], metrics["train/updates"]) == (weighed, updates)
    assert (metrics["train/kl"] > 0.02) == (learning_rate == 0.1)


def test_without_an_importance_term_no_bound_ends_the_cloning() -> None:
    metrics = prepare(importance_weight=0.0, learning_rate=0.1).learn(10)
    assert metrics["train/updates"] == 10 and "train/importance_updates" not in metrics


def test_each_plan_is_weighed_with_its_own_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = prepare(baseline="none", scale_reward=False, target_kl=None)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    real = Learner.importance

    def watched(self: Learner, batch: dict[str, torch.Tensor], credit: torch.Tensor) -> Any:
        seen.append((batch["reward"], credit))
        return real(self, batch, credit)

    monkeypatch.setattr(Learner, "importance", watched)
    tuning.learn(3)
    assert len(seen) == 3
    for reward, credit in seen:
        assert len(reward.unique()) > 3
        torch.testing.assert_close(credit, reward, rtol=0, atol=0)


def test_direct_cloning_never_looks_at_rewards() -> None:
    tuning = prepare(importance_weight=0)
    other = prepare(importance_weight=0)
    other.memory.replay.rows["reward"] += 5
    tuning.learn(3), other.learn(3)
    for name, value in tuning.planner.state_dict().items():
        assert torch.equal(value, other.planner.state_dict()[name]), name


@pytest.mark.parametrize("changes", [{}, {"large_steps": LargeStepSettings(updates=1, batch_size=8)}])
def test_saved_and_loaded_it_goes_on_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    straight, stopped = prepare(**changes), prepare(**changes)
    for tuning in (straight, stopped):
        tuning.learn(2)
    with Run(tmp_path, {}) as run:
        stopped.save(run, {"format": 1})
        resumed = Finetuning(make_planner(STATE), settings(**changes), regularized(), seed=9)
        assert resumed.load(run, "of the planner")
    assert resumed.environment_steps == stopped.environment_steps > 0
    straight.learn(2), resumed.learn(2)
    for name, value in straight.planner.state_dict().items():
        assert torch.equal(value, resumed.planner.state_dict()[name]), name


def test_a_large_step_is_one_gradient_of_the_importance_term_over_all_of_its_plans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In parts, so that memory is bounded; and cloning's own steps are then cloning alone."""
    gradients = {}
    for part in (3, 1000):
        monkeypatch.setattr("sodp3d.learning.learner.PART", part)
        tuning = prepare(large_steps=LargeStepSettings(updates=1, batch_size=8), target_kl=None, gradient_norm=1e6)
        lesson, _ = tuning._lesson(0)
        tuning.learner.learn(lesson, 0, 0.0, "here")
        gradients[part] = [x.grad.clone() for x in tuning.learner.parameters if x.grad is not None]
        batch = lesson.plans.sample(8, torch.Generator().manual_seed(0))
        loss, _ = tuning.learner.importance(batch, lesson.credits[batch["index"]])
        assert loss.isfinite()
    assert any(float(x.abs().max()) > 0 for x in gradients[3])
    for one, other in zip(gradients[3], gradients[1000], strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    metrics = tuning.learner.learn(lesson, 1, 0.0, "here")
    assert {"train/imp_loss", "train/large_gradient_norm", "train/regularizer"} <= metrics.keys()


def test_large_steps_learn_alone_where_nothing_regularizes() -> None:
    tuning = prepare(large_steps=LargeStepSettings(updates=2, batch_size=8), target_kl=None, regularizer="none")
    before = [parameter.clone() for parameter in tuning.learner.parameters]
    metrics = tuning.learn(3)
    assert metrics["train/updates"] == 0 and "train/large_gradient_norm" in metrics
    assert any(not torch.equal(a, b) for a, b in zip(before, tuning.learner.parameters, strict=True))


def test_large_steps_need_the_importance_term() -> None:
    with pytest.raises(InputError, match=r"finetune\.large_steps\.updates: 2 steps .* finetune.importance_weight=0"):
        settings(large_steps=LargeStepSettings(updates=2), importance_weight=0.0)


def test_the_large_steps_rate_follows_their_kl_and_collapses_and_leaves_clonings_alone() -> None:
    large = LargeStepSettings(updates=2, batch_size=8, learning_rate=1e-3)
    tuning = prepare(large_steps=large, target_kl=1e-9, adaptive_learning_rate=True, final_learning_rate=1.0)
    learner, rate = tuning.learner, settings().learning_rate
    tuning.learn(2)  # the large steps' KL is far beyond the target
    tuning.keeper.slowed = 0.5
    tuning.learn(2)
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * rate)
    assert learner.large.param_groups[0]["lr"] == pytest.approx(0.5 * 1e-3 / RATE_STEP)


def test_a_collapse_goes_back_to_the_best_planner(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuning = prepare(collapse=0.5)

    def validation(successes: int) -> Evaluation:
        flags = [seed < successes for seed in range(10)]
        made = [
            Episode(seed, success=dict.fromkeys(("final", "count", "any"), flag)) for seed, flag in enumerate(flags)
        ]
        return Evaluation(TASK, made)

    with Run(tmp_path / "run", {}) as run:
        tuning.learn(2)
        tuning.compare(validation(8), run, {})
        tuning.learn(2)
        tuning.environment_steps += 100
        tuning.compare(validation(8), run, {})  # of equals, the later
        best = {name: value.clone() for name, value in tuning.planner.state_dict().items()}
        tuning.learn(2)
        tuning.compare(validation(5), run, {})  # worse, but no collapse
        assert any(not torch.equal(value, best[name]) for name, value in tuning.planner.state_dict().items())
        assert tuning.keeper.slowed == 1 and "collapsed" not in caplog.text
        tuning.keeper.recent = [False] * 24  # of the planner that is given up: no setback of the one that comes back
        tuning.compare(validation(3), run, {})
        assert tuning.keeper.recent == []
        assert all(torch.equal(value, best[name]) for name, value in tuning.planner.state_dict().items())
        assert tuning.keeper.slowed == 0.5 and "fell to 30 % from 80 %" in caplog.text
        rate = tuning.settings.learning_rate
        tuning.learn(1)
        assert tuning.learner.optimizer.param_groups[0]["lr"] == pytest.approx(rate / 2)
        tuning.save(run, {})
        resumed = prepare(collapse=0.5)
        assert resumed.load(run, "of the planner") and resumed.keeper.slowed == 0.5


@pytest.mark.parametrize("validated", [False, True])
def test_a_setback_in_roll_outs_goes_back(validated: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """To the first planner, or, where there were validations, to the best of them."""
    pretrained = make_planner(STATE)
    tuning = prepare(setback=1.0)
    tuning.keeper.first = [True, False] * 10
    with Run(tmp_path / "run", {}) as run:
        tuning.learn(2)
        if validated:
            tuning.compare(
                Evaluation(TASK, [Episode(0, success=dict.fromkeys(("final", "count", "any"), True))]), run, {}
            )
        best = {name: value.clone() for name, value in tuning.planner.state_dict().items()}
        tuning.learn(2)
        learned = {name: value.clone() for name, value in tuning.planner.state_dict().items()}
        for successes in ([True] * 12, [False] * 12):  # too few, so far, to tell
            tuning.guard(successes, run, pretrained)
        assert same(tuning.planner.state_dict(), learned) and tuning.keeper.slowed == 1
        tuning.save(run, {})
        tuning = prepare(setback=1.0)
        assert tuning.load(run, "of the planner") and len(tuning.keeper.recent) == 24  # a resumed run remembers
        tuning.guard([False] * 8, run, pretrained)  # 12 of 32, beside 10 of 20: within a standard deviation
        assert same(tuning.planner.state_dict(), learned) and "set back" not in caplog.text
        tuning.guard([False] * 8, run, pretrained)  # 4 of 32
        assert same(tuning.planner.state_dict(), best if validated else pretrained.state_dict())
        assert "4 of the newest 32 roll-outs succeeded, of the 20 before learning 10" in caplog.text
        assert tuning.keeper.slowed == 0.5 and tuning.keeper.recent == []


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(("setback", "first"), [(None, [True] * 20), (1.0, [])])
def test_without_a_bound_or_anything_to_compare_with_nothing_goes_back(
    setback: float | None, first: list[bool]
) -> None:
    keeper = Keeper(0.5, setback)
    keeper.first = first
    assert not keeper.set_back([False] * 100)


@pytest.mark.parametrize(("later", "least", "most"), [(0.5, 0.0, 0.25), (0.25, 0.8, 1.0)])
def test_chance_alone_seldom_sends_a_planner_back_and_a_halved_success_does(
    later: float, least: float, most: float
) -> None:
    """As the default algorithm rolls out: until ten succeed, then 200 episodes in waves of eight."""
    random, setback = np.random.default_rng(0), compose("train")["finetune"]["setback"]
    sent_back = []
    for _ in range(400):
        keeper = Keeper(0.5, setback)
        while sum(keeper.first) < 10:
            keeper.first += (random.random(8) < 0.5).tolist()
        sent_back.append(any(keeper.set_back((random.random(8) < later).tolist()) for _ in range(25)))
    assert least <= np.mean(sent_back) <= most


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    tuning = prepare()
    tuning.memory.replay.rows["features"][:] = float("nan")
    before = [parameter.clone() for parameter in tuning.learner.parameters]
    with pytest.raises(FloatingPointError, match="after 0 episodes"):
        tuning.learn(1)
    assert all(torch.equal(a, b) for a, b in zip(before, tuning.learner.parameters, strict=True))


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change() -> None:
    tuning = prepare()
    before = [parameter.detach().clone() for parameter in tuning.learner.parameters]
    tuning.learner.parameters[0].register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match=r"gradient norm (nan|inf).*last checkpoint is whole"):
        tuning.learn(1)
    assert all(torch.equal(a, b) for a, b in zip(before, tuning.learner.parameters, strict=True))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoder": "tune"}, r"finetune\.encoder: expected frozen or tuned, got 'tune'"),
        ({"updates_per_episode": 0}, r"finetune\.updates_per_episode: .* at least 1, got 0"),
        ({"importance_weight": -1}, r"finetune\.importance_weight: .* at least 0, got -1"),
        ({"target_kl": 0}, r"finetune\.target_kl: .* or null for no bound, got 0"),
        ({"importance_weight": 0, "regularizer": "none"}, "leaves nothing to learn from"),
        ({"offline": "a-run", "critic": {"members": 2}}, r"finetune\.offline: .* use algorithm=sodp_chunk"),
        (
            {"chosen_share": 0.5, "critic": {"members": 2}, "regularizer": "kl"},
            r"finetune\.chosen_share: .* reg\.name=kl",
        ),
        ({"value_learning_rate": -1}, r"finetune\.value_learning_rate: .* at least 0, got -1"),
        ({"final_learning_rate": -0.1}, r"finetune\.final_learning_rate: .* above 0, up to 1, got -0.1"),
        ({"discount": 1.5}, r"finetune\.discount: .* up to 1, got 1.5"),
        ({"sampler": {"noise_clip": -1}}, r"finetune\.sampler\.noise_clip: .* above 0, or null, got -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        prepare(**changes)


@pytest.mark.parametrize(
    ("changes", "regularizer", "needing"),
    [
        ({"sampler": {"eta": 0, "sigma_floor": 0}}, "bc", r"finetune\.importance_weight"),
        ({"sampler": {"eta": 0, "sigma_floor": 0}, "importance_weight": 0}, "kl", r"reg\.name=kl"),
        ({"sampler": {"eta": 0, "sigma_floor": 0.1, "floor_steps": "last"}}, "bc", None),
        ({"sampler": {"eta": 0, "sigma_floor": 0}, "importance_weight": 0}, "bc", None),
    ],
)
def test_a_chain_without_noise_has_no_likelihood(
    changes: dict[str, Any], regularizer: str, needing: str | None
) -> None:
    asked = settings(**changes), regularized(regularizer)
    if needing is None:
        check_likelihood(make_planner(), *asked)
        return
    with pytest.raises(InputError, match=rf"finetune\.sampler: {needing} needs steps that draw noise, but eta=0"):
        check_likelihood(make_planner(), *asked)


def test_a_planner_that_never_succeeds_is_told_and_its_best_returns_stand_in(caplog: pytest.LogCaptureFixture) -> None:
    planner = make_planner(STATE)
    tuning = Finetuning(planner, settings(best_returns=3, initial_attempts=6), regularized(), seed=0)

    class Failing:
        def run(self, planner: Planner, seeds: list[int], *_: Any, **__: Any) -> list[Episode]:
            return [episode(planner, tuning, seed % 1000, success=False) for seed in seeds]

    with caplog.at_level(logging.WARNING):
        found = find_proficient(planner, tuning, Failing(), TASK, 0, lambda: False)  # type: ignore[arg-type]
    assert len(found) == 6 and "never succeeds" in caplog.text and "initial_attempts=6" in caplog.text
    tuning.remember(found, TASK)
    kept = tuning.memory.target.facts["episode_return"]
    assert find_proficient(planner, tuning, Failing(), TASK, 0, lambda: True) is None  # type: ignore[arg-type]
    assert len(kept) == 3 and kept.min() >= sorted(e.episode_return for e in found)[-3] - 1e-5


def recorded_run(folder: Path, tuning: Finetuning) -> Path:
    """A run directory that holds the state of `tuning`."""
    with Run(folder / "run", {"finetune": dataclasses.asdict(tuning.settings)}) as run:
        tuning.save(run, planner_state(tuning.planner, [TASK], "0123"))
    return folder / "run"


def test_recorded_episodes_stand_in_for_rollouts(tmp_path: Path) -> None:
    tuning = prepare()
    tuning.learn(2)  # the planner they came from is the one it began with, not the one it became
    path = recorded_run(tmp_path, tuning)
    records = recorded_episodes(path, make_planner(STATE), settings(), regularized(), TASK)
    assert [record.success for record in records] == [True, True]
    offline = Finetuning(make_planner(STATE), settings(), regularized(), seed=0)
    offline.memory.take(records)
    assert len(offline.memory.target) == 2 and offline.environment_steps == 0
    torch.testing.assert_close(
        offline.memory.target.rows["latents"], tuning.memory.target.rows["latents"], rtol=0, atol=0
    )
    assert offline.learn(2)["train/updates"] == 2


def test_recorded_episodes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    planner = make_planner(STATE)
    with pytest.raises(InputError, match=r"finetune\.offline: .* is no fine-tuning run"):
        recorded_episodes(tmp_path, planner, settings(), regularized(), TASK)
    with Run(tmp_path / "pretrain", {}) as run:
        checkpoint.save(run.checkpoints, 1, {"planner.x": torch.ones(1)}, {"format": 1})
    with pytest.raises(InputError, match=r"finetune\.offline: .* is no fine-tuning run"):
        recorded_episodes(tmp_path / "pretrain", planner, settings(), regularized(), TASK)
    path = recorded_run(tmp_path, prepare())
    with pytest.raises(InputError, match=r"hold features, which does not suit finetune\.encoder=tuned"):
        recorded_episodes(path, planner, settings(encoder="tuned"), regularized(), TASK)
    with pytest.raises(InputError, match=r"is of adroit_door, not of env=adroit_pen"):
        recorded_episodes(path, planner, settings(), regularized(), dataclasses.replace(TASK, name="adroit_pen"))
    longer = make_planner(dataclasses.replace(STATE, inference_steps=20))
    with pytest.raises(InputError, match=r"sampled in 10 steps, which does not suit model\.sampling_steps=20"):
        recorded_episodes(path, longer, settings(), regularized(), TASK)
    noisier = dataclasses.replace(settings().sampler, floor_steps="all")
    with pytest.raises(InputError, match=r"floor_steps=all_but_last, but all came, .* finetune\.importance_weight"):
        recorded_episodes(path, planner, settings(sampler=noisier), regularized(), TASK)
    assert recorded_episodes(path, planner, settings(sampler=noisier, importance_weight=0.0), regularized(), TASK)
    cut = recorded_run(tmp_path / "cut", prepare(cloned_until="success"))
    assert recorded_episodes(cut, planner, settings(), regularized(), TASK)
    with pytest.raises(InputError, match=r"finetune\.cloned_until=success\), so finetune\.credit=gae would"):
        recorded_episodes(cut, planner, settings(credit="gae", baseline="none"), regularized(), TASK)
    for part in ("encoder", "normalizer"):
        other = make_planner(STATE)
        for name, value in other.state_dict().items():
            if name.startswith(part) and value.is_floating_point():
                value += 0.1
        with pytest.raises(InputError, match=r"fine-tuned from another planner, whose normalizer and encoder"):
            recorded_episodes(path, other, settings(), regularized(), TASK)


def test_episodes_of_a_run_that_goes_on_are_not_taken(tmp_path: Path) -> None:
    path = recorded_run(tmp_path, prepare())
    options = ["mode=finetune", "algorithm=sodp_chunk", f"finetune.offline={path}", f"root={tmp_path}"]
    read = TrainSettings.from_config(compose("train", options))
    with pytest.raises(InputError, match=r"finetune\.offline: .* is not finished, .* let it end first"):
        _recorded(read, make_planner(STATE), TASK)
    (path / "result.json").write_text("{}")
    assert _recorded(read, make_planner(STATE), TASK)


def test_a_run_goes_on_with_the_planner_that_it_began_with_alone(tmp_path: Path) -> None:
    with Run(tmp_path / "run", {}) as run:
        prepare().save(run, {START: "one"})
        assert prepare().load(run, "one")
        with pytest.raises(
            InputError, match=r"^planner: .* began with another .* \(start one, but other came\); bring"
        ):
            prepare().load(run, "other")


def test_how_many_plans_a_test_chooses_among_is_an_option_of_fine_tuning(tmp_path: Path) -> None:
    options = ["mode=finetune", "evaluation.best_of=1", "device=cpu", f"root={tmp_path}"]
    with pytest.raises(InputError, match=r"evaluation\.best_of: .* got 1; use finetune\.tested_best_of=1"):
        run_finetune(compose("train", options))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("changes", [{}, {"episodes": 20}])
def test_the_planner_that_learned_from_all_episodes_is_validated(algorithm: str, changes: dict[str, Any]) -> None:
    options = dataclasses.replace(
        FinetuneSettings(**compose("train", [f"algorithm={algorithm}"])["finetune"]), **changes
    )
    done, looked = 0, False
    while done < options.episodes:
        new = min(options.episodes_per_iteration, options.episodes - done)
        done += new
        looked = validation_due(done, new, options)
    assert looked
    assert not validation_due(done, new, dataclasses.replace(options, evaluate_every=0))


def test_validations_come_every_so_many_episodes() -> None:
    options = settings(episodes=100, evaluate_every=24)
    assert [done for done in range(8, 101, 8) if validation_due(done, 8, options)] == [24, 48, 72, 96]


def test_pre_training_refuses_a_choice_that_it_cannot_make(tmp_path: Path) -> None:
    for env in ("adroit_door", "mt10"):
        options = ["mode=pretrain", f"env={env}", "evaluation.best_of=8", "device=cpu", f"root={tmp_path}"]
        with pytest.raises(InputError, match=r"evaluation\.best_of: mode=pretrain has no critic .* got 8; leave"):
            run_pretrain(compose("train", options))


def test_from_scratch_needs_a_tuned_encoder_and_no_bound_on_kl() -> None:
    for changes in ({}, {"encoder": "tuned"}, {"target_kl": None}):
        with pytest.raises(
            InputError, match=r"use algorithm=sodp_scratch, or finetune\.encoder=tuned finetune\.target_kl=null"
        ):
            prepare(from_scratch=True, **changes)
    prepare(from_scratch=True, encoder="tuned", target_kl=None).learner.begin_anew(seed=1)


def test_normalized_credit_has_unit_deviation() -> None:
    tuning = prepare(credit="return_to_go", baseline="time", normalize_credit=True)
    credit = tuning.credit.weights(tuning.memory, tuning.planner)
    assert float(credit.std(correction=0)) == pytest.approx(1, abs=1e-5)
