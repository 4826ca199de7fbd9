"""Parts of the benchmarks that would otherwise break unseen: what they build, and how they compare."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sodp3d.core.cli import compose
from sodp3d.core.paths import CHECKOUT
from sodp3d.core.run import Run
from sodp3d.envs.config import SUCCESS_METRICS, task_configs
from sodp3d.learning.lookup import with_sampler
from sodp3d.rollouts.kept import KeptRollouts

pytestmark = pytest.mark.skipif(CHECKOUT is None, reason="benchmarks belong to a checkout")


@pytest.fixture
def benchmark_named(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports one of them, as the script that it is."""
    assert CHECKOUT is not None
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))
    return importlib.import_module


def test_a_fresh_planner_plans_for_its_task(benchmark_named: Any) -> None:
    config = with_sampler(compose("train", ["mode=eval", "obs=state", "env=adroit_door", "model.unet=small"]))
    (task,) = task_configs(config)
    planner = benchmark_named("evaluation").fresh_planner(config, task)
    shapes = planner.config.observation_shapes()
    plan = planner.plan({key: np.zeros((2, *shape), np.float32) for key, shape in shapes.items()})
    assert plan.shape == (2, task.horizon, 28)
    assert np.isfinite(plan).all()


def rows(algorithm: str, *runs: str) -> list[dict[str, Any]]:
    """Of one task, a run for each seed."""
    return [
        {
            "task": "door",
            "algorithm": algorithm,
            "agent": 0,
            "seed": seed,
            "before": 0.25,
            "after": 0.5,
            "episodes": outcomes,
        }
        for seed, outcomes in enumerate(runs)
    ]


def test_algorithms_are_compared_by_pairs_of_episodes_of_the_same_agent_and_seed(benchmark_named: Any) -> None:
    weak: ModuleType = benchmark_named("weak")
    mine, other = rows("sodp", "1111110", "1100"), rows("clone", "0000001")
    line = weak.compare(mine + other)[0]
    assert "2 runs   25.0 ->  50.0 %" in line
    assert "6 won, 1 lost of 7 episodes, p = 0.12" in line


def test_what_was_made_with_other_options_is_not_taken(benchmark_named: Any, tmp_path: Path) -> None:
    weak: ModuleType = benchmark_named("weak")
    wanted = {"pretrain.steps": 3, **weak.given_values(["finetune.learning_rate=3e-4", "reg.name=pl"])}
    assert weak.result(tmp_path, wanted) is None
    config = {"pretrain": {"steps": 3}, "finetune": {"learning_rate": 3e-4}, "reg": {"name": "pl"}}
    with Run(tmp_path / "run", config) as run:
        run.finish({"steps": 3})
    assert weak.result(tmp_path / "run", wanted)["steps"] == 3
    with pytest.raises(SystemExit, match=r"was made with pretrain\.steps=3, but 4 is wanted"):
        weak.result(tmp_path / "run", wanted | {"pretrain.steps": 4})
    assert weak.result(tmp_path / "run", wanted | {"tracker": "none"}), "which runs do not record"
    with pytest.raises(SystemExit, match=r"^preset: expected single options"):
        weak.given_values(["preset=quick"])


def test_curves_begin_after_the_first_roll_outs_and_end_with_all(benchmark_named: Any) -> None:
    weak: ModuleType = benchmark_named("weak")
    assert weak.by_episodes([0.0, 1.0], weak.initial_of("sodp"), 300) == [(32 + 134, 0.0), (300, 1.0)]


def test_rows_of_other_numbers_of_episodes_are_no_part_of_a_table(
    benchmark_named: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak: ModuleType = benchmark_named("weak")
    monkeypatch.setattr(weak, "RESULTS", tmp_path)
    assert weak.rows_of("mine", {"test": 500, "episodes": 300}) == []
    (tmp_path / "mine.json").write_text('{"test": 500, "episodes": 300, "rows": [{"after": 0.5}]}')
    assert weak.rows_of("mine", {"test": 500, "episodes": 300}) == [{"after": 0.5}]
    with pytest.raises(SystemExit, match=r"was made with --episodes 300, but 1440 came"):
        weak.rows_of("mine", {"test": 500, "episodes": 1440})


def test_practice_is_told_by_tasks_seeds_and_pairs(benchmark_named: Any) -> None:
    practice: ModuleType = benchmark_named("practice")

    def outcomes(text: str) -> np.ndarray:
        return np.array([letter == "1" for letter in text])

    before = {"mt_a": outcomes("1000"), "mt_b": outcomes("1110")}
    rollouts = [(8.0, 0.5), (16.0, 1.0)]
    after = [
        practice.Practised("mt_a", "sodp", seed, outcomes(text), rollouts) for seed, text in enumerate(("1111", "1100"))
    ]
    clone = practice.Practised("mt_a", "clone", 1, outcomes("0111"), [])
    lines = practice.table(before, [*after, clone], {"mt_a": 0.5, "mt_b": None})
    assert lines[2].startswith("| a | 50 | 25 [5, 70] | 75 [41, 93] |") and lines[3].endswith("| - | - |")
    assert "| - | **50.0** [" in lines[4] and "| **75.0** [" in lines[4], "a task without practice is as it was"
    assert "sodp against before: 4 won, 0 lost" in lines, "both seeds have one test before: no p"
    assert "clone against before: 3 won, 1 lost, p = 0.62" in lines
    assert "  sodp against clone: 1 won, 2 lost, p = 1" in lines, "runs of the same seed alone"
    assert len(practice.task_bars(before, after, {"mt_a": 0.5, "mt_b": None}).axes[0].patches) == 1 + 2 + 1
    assert sum(panel.axison for panel in practice.curves(before, after).axes) == 1


def kept_rollouts(actions: list[np.ndarray]) -> KeptRollouts:
    """Episodes of these actions, all of them successes."""
    return KeptRollouts(
        seeds=np.arange(len(actions)),
        ends=np.cumsum([len(steps) for steps in actions]),
        actions=np.concatenate(actions).astype(np.float32),
        success=np.ones((len(actions), len(SUCCESS_METRICS)), bool),
        returns=None,
        planner=None,
    )


def test_an_episode_is_the_same_point_however_long_it_takes(benchmark_named: Any) -> None:
    trajectories: ModuleType = benchmark_named("trajectories")
    lines = [np.linspace([0.0, 1.0], [1.0, -1.0], steps) for steps in (1000, 20)]
    long, short = trajectories.vectors_of(kept_rollouts(lines))
    assert long.shape == (trajectories.MOMENTS * 2,)
    np.testing.assert_allclose(long, short, atol=1e-5)


def test_distances_are_multiples_of_the_pretrained_planners_own_and_know_no_units(benchmark_named: Any) -> None:
    trajectories: ModuleType = benchmark_named("trajectories")
    random = np.random.default_rng(0)
    units = np.array([1.0, 1000.0])

    def episodes(shift: float) -> np.ndarray:
        return trajectories.vectors_of(
            kept_rollouts([units * (shift + random.normal(size=(1, 2)).repeat(10, axis=0)) for _ in range(200)])
        )

    vectors = {trajectories.PRETRAINED: episodes(0), "near": episodes(0), "far": episodes(20)}
    rows = trajectories.table_of(trajectories.scaled(vectors), {label: np.ones(200, bool) for label in vectors})
    before, near, far = rows
    assert before["to_pretrained"] == before["among_themselves"] == 1
    assert near["to_pretrained"] == pytest.approx(1, abs=0.3)
    assert far["to_pretrained"] > 50 and far["among_themselves"] == pytest.approx(1, abs=0.3)
