"""Whether the critic chooses: what roll-outs with and without its choice came to decides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta
from test_critic import SMALL, prepare
from test_finetune import TASK

from sodp3d.core.errors import InputError
from sodp3d.core.run import Run
from sodp3d.learning.arms import MEMORY, Arms
from sodp3d.learning.finetune import act_by_arms
from sodp3d.models.loading import load_choice, planner_state

EARNED = {"critic": SMALL, "best_of": 4, "tested_best_of": 4, "choice": "earned"}
ENDS = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40)


def told(ends: list[tuple[bool, bool]]) -> Arms:
    arms = Arms()
    arms.add([chosen for chosen, _ in ends], [success for _, success in ends])
    return arms


@given(ENDS)
def test_outcomes_fade_with_each_later_episode(ends: list[tuple[bool, bool]]) -> None:
    arms, expected = told(ends), np.zeros((2, 2))
    for age, (chosen, success) in enumerate(reversed(ends)):
        expected[int(chosen), 0 if success else 1] += (1 - 1 / MEMORY) ** age
    np.testing.assert_allclose(arms.outcomes, expected, atol=1e-12)


@given(ENDS)
def test_the_gain_is_antisymmetric_and_nothing_without_outcomes(ends: list[tuple[bool, bool]]) -> None:
    assert told(ends).gain == pytest.approx(-told([(not chosen, success) for chosen, success in ends]).gain)
    assert Arms().gain == 0 and not Arms().misleads


@given(ENDS)
def test_it_misleads_where_it_does_worse_by_more_than_a_standard_deviation(ends: list[tuple[bool, bool]]) -> None:
    arms = told(ends)
    (won, lost), (more, fewer) = np.array(arms.outcomes)
    rate = (won + more + 1) / (won + lost + more + fewer + 2)
    first, chosen = beta(won + 2 * rate, lost + 2 * (1 - rate)), beta(more + 2 * rate, fewer + 2 * (1 - rate))
    deviation = np.sqrt(first.var() + chosen.var())
    assert arms.misleads == bool(chosen.mean() - first.mean() < -deviation)


def test_an_arm_is_drawn_as_often_as_its_posterior_is_the_better() -> None:
    arms = told([(True, True)] * 6 + [(True, False)] * 4 + [(False, True)] * 4 + [(False, False)] * 6)
    drawn = np.mean([arms.draw((0, place)) for place in range(4000)])
    (won, lost), (more, fewer) = np.array(arms.outcomes)
    rate = (won + more + 1) / (won + lost + more + fewer + 2)
    grid = (np.arange(4000) + 0.5) / 4000
    chosen = beta.pdf(grid, more + 2 * rate, fewer + 2 * (1 - rate))
    first = beta.cdf(grid, won + 2 * rate, lost + 2 * (1 - rate))
    assert drawn == pytest.approx((chosen * first).mean(), abs=0.03)
    assert arms.draw((0, 7)) == arms.draw((0, 7))


@pytest.mark.parametrize("better", [False, True])
def test_the_better_arm_acts_nearly_always_in_the_end(better: bool) -> None:
    arms, random, acted = Arms(), np.random.default_rng(0), []
    for episode in range(300):
        chosen = arms.draw((1, episode))
        arms.add([chosen], [bool(random.random() < (0.8 if chosen == better else 0.3))])
        acted.append(chosen == better)
    assert np.mean(acted[-200:]) > 0.85
    assert (arms.gain > 0) == better and arms.misleads == (not better)


def test_the_critic_chooses_always_or_where_its_choice_has_paid() -> None:
    always, earned, none = prepare(**{**EARNED, "choice": "always"}), prepare(**EARNED), prepare()
    assert always.choosing(0, 5) == [False] * 5, "it has not learned yet"
    assert always.tested_best_of == earned.tested_best_of == 1, "nor has a planner that is best from the start on"
    for tuning in (always, earned, none):
        tuning.learn(2)
    assert always.choosing(0, 5) == [True] * 5 and always.judge_choice([True], [False]) == {}
    assert none.choosing(0, 5) == [False] * 5 and none.judge_choice([False], [True]) == {}
    assert earned.tested_best_of == 4, "as long as nothing is known of it"
    metrics = earned.judge_choice([True] * 20 + [False] * 20, [False] * 20 + [True] * 20)
    assert metrics["critic/chose"] == 0.5 and metrics["critic/gain"] < -0.5
    assert earned.tested_best_of == 1 and sum(earned.choosing(0, 100)) < 5
    earned.judge_choice([True] * 40, [True] * 40)
    assert earned.choosing(0, 100) == earned.choosing(0, 100) != earned.choosing(1, 100)


def test_a_choice_is_not_earned_where_roll_outs_leave_the_critic_none() -> None:
    with pytest.raises(InputError, match=r"finetune\.best_of=1 leaves it none; use finetune\.best_of=4, or .*always"):
        prepare(**{**EARNED, "best_of": 1})


def test_each_episode_is_acted_by_its_arm_and_they_come_in_their_order() -> None:
    tuning, asked = prepare(**EARNED), []

    class Recording:
        def run(self, planner: Any, seeds: list[int], options: Any, keep_chains: bool, choice: Any) -> list[str]:
            asked.append((seeds, None if choice is None else choice.count))
            return [f"episode {seed}" for seed in seeds]

    tuning.learn(2)
    recording: Any = Recording()
    found: Any = act_by_arms(tuning, recording, [5, 6, 7, 8], [True, False, False, True])
    assert found == ["episode 5", "episode 6", "episode 7", "episode 8"]
    assert asked == [([6, 7], None), ([5, 8], 4)]


def test_a_choice_that_does_not_pay_is_saved_as_such_and_remembered(tmp_path: Path) -> None:
    tuning = prepare(**EARNED)
    tuning.learn(2)
    tuning.judge_choice([True] * 4 + [False] * 4, [False] * 4 + [True] * 4)
    with Run(tmp_path, {}) as run:
        tuning.save(run, planner_state(tuning.planner, [TASK], "0123"))
        resumed = prepare(**EARNED)
        assert resumed.load(run, "of the planner")
    assert resumed.arms.outcomes == tuning.arms.outcomes and resumed.tested_best_of == 1
    assert load_choice(tmp_path, "cpu") is None
    choice = load_choice(tmp_path, "cpu", best_of=4)
    assert choice is not None and choice.count == 4, "its critic is there for who asks for it"
