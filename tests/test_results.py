"""The results command: numbers checked by hand, every gap shown, and nothing that depends on how it was called."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_store import ATTRIBUTES, SPECIFICATION, episode, make_store, metadata

from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.core.run import Run
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig
from sodp3d.results.__main__ import main, make_results, make_tables
from sodp3d.results.groups import distinguishing, estimate, estimate_top5, group_runs
from sodp3d.results.scan import Score, portable, scan, seconds, shown
from sodp3d.results.tables import Record, evaluation_table, settings_table, table8, table9
from sodp3d.results.write import markdown
from sodp3d.rollouts.evaluate import Evaluation

TASKS = ("adroit_hammer", "adroit_door", "adroit_pen")


def summary(successes: int, episodes: int = 10, env: str = "adroit_door") -> dict[str, Any]:
    """As training notes it: by the class that training uses."""
    config = SimpleNamespace(name=env, success_metric="count")
    flags = [index < successes for index in range(episodes)]
    done = [
        SimpleNamespace(success={"final": False, "count": flag, "any": True}, seed=100 + index, episode_return=0.0)
        for index, flag in enumerate(flags)
    ]
    return Evaluation(config, done).summary()  # type: ignore[arg-type]


def make_run(
    root: Path, mode: str, successes: int | None, seed: int = 0, env: str = "adroit_door", **more: Any
) -> Path:
    """A run directory whose planner succeeds in so many of 10 test episodes; None: not finished."""
    reg, best, day, data_hash = more.get("reg", "bc"), more.get("best"), more.get("day", 1), more.get("data_hash", "d")
    config: dict[str, Any] = {
        "seed": seed,
        "mode": mode,
        "env": {"name": env, "success_metric": "count", "unet": "simple_dp3"},
        "obs": {"name": more.get("obs", "pointcloud")},
        "model": {"prediction": "epsilon", "unet": "simple_dp3", "sampling_steps": more.get("sampling_steps", 10)},
        "evaluation": {"episodes": 10, "eta": 1.0, "sigma_floor": 0.0},
    }
    if mode == "pretrain":
        config |= {
            "pretrain": {
                "steps": more.get("steps", 100),
                "successful_only": more.get("only", False),
                "quality": more.get("quality", "suboptimal"),
                "fraction": more.get("fraction", 1.0),
            },
            "data": None,
        }
    if mode == "finetune":
        tuning = {"importance_weight": more.get("weight", 0.1), "episodes": more.get("episodes", 8)}
        tuning |= {key: more[key] for key in ("from_scratch", "offline") if key in more}
        config |= {"finetune": tuning, "reg": {"name": reg, "weight": 0.0 if reg == "none" else 1.0}}
        config |= {"planner": str(more["planner"]) if "planner" in more else None}
    directory = root / "outputs" / mode / f"{env}-{config['obs']['name']}-{reg}" / f"202601{day:02d}-000000-000-s{seed}"
    with Run(directory, config) as run:
        for step, rate in enumerate(more.get("validations", []), start=1):
            run.log(100 * step, {"train/loss": 1.0, "rollout/success_count": rate, "validation/success_count": rate})
        checkpoint.save(run.checkpoints, 1, {}, {"data_hash": data_hash})
        if successes is not None:
            result = {"evaluation": summary(successes, env=env)}
            run.finish(result | ({"best": summary(best, env=env)} if best is not None else {}))
    return directory


def cells(rows: Sequence[Record], method: str, measure: str | None) -> list[str]:
    """Hammer, door, pen as text, of our row of `method`."""
    (row,) = [row for row in rows if (row["who"], row["method"], row["measure"]) == ("ours", method, measure)]
    return [str(row[task]) for task in TASKS]


def test_intervals_of_one_seed_are_wilson_s(tmp_path: Path) -> None:
    # Wilson's 95 % intervals of 5 of 10 and 0 of 10, from published tables: 0.2366 .. 0.7634 and 0 .. 0.2775.
    make_run(tmp_path, "pretrain", 5)
    make_run(tmp_path, "finetune", 0, env="adroit_pen")
    groups = group_runs(scan([tmp_path]).runs)
    found = estimate(groups[0].scores("last"))
    assert found is not None and (found.low, found.high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert cells(table8(groups), "pre-trained", "last") == ["None", "50 [24, 76]", "None"]
    assert cells(table9(groups), "fine-tuned with BC", "last") == ["None", "None", "0 [0, 28]"]
    final = estimate(groups[0].scores("last"), "final"), estimate(groups[0].scores("last"), "any")
    assert [str(value) for value in final] == ["0 [0, 28]", "100 [72, 100]"]


def test_several_seeds_give_mean_and_deviation_and_three_tasks_an_average(tmp_path: Path) -> None:
    for seed, successes in enumerate([6, 7, 8]):
        make_run(tmp_path, "finetune", 1, seed, best=successes)
    make_run(tmp_path, "finetune", 1, best=9, env="adroit_hammer")
    rows = table9(group_runs(scan([tmp_path]).runs))
    assert cells(rows, "fine-tuned with BC", "best") == ["90 [60, 98]", "70 ± 10 [52, 83]", "None"]
    assert [row["average"] for row in rows if row["measure"] == "best"] == [None]
    for seed in range(3):
        make_run(tmp_path, "finetune", 1, seed, best=2, env="adroit_pen")
    (row,) = [row for row in table9(group_runs(scan([tmp_path]).runs)) if row["measure"] == "best"]
    assert row["average"] == pytest.approx((0.9 + 0.7 + 0.2) / 3)
    assert str(row["adroit_pen"]) == "20 ± 0 [10, 37]"
    assert row["measured on"] == "1 x 10 episodes, 3 x 10 episodes" and row["settings"] == "S2, S1, S3"


def test_table9_compares_what_came_from_one_planner(tmp_path: Path) -> None:
    first, second = (
        make_run(tmp_path, "pretrain", 3, day=1),
        make_run(tmp_path, "pretrain", 5, day=2, data_hash="other"),
    )
    for seed in range(3):
        make_run(tmp_path, "finetune", 9, seed, planner=first, day=3)
    make_run(tmp_path, "finetune", 9, planner=first, day=7, from_scratch=True)  # these two are no rows of that table
    make_run(tmp_path, "finetune", 9, planner=first, day=8, offline="a run")
    make_run(tmp_path, "finetune", 6, planner=second, day=4, data_hash="other")
    make_run(tmp_path, "finetune", 2, reg="none", planner=second, day=5, data_hash="other")
    longer = {"planner": second, "data_hash": "other", "episodes": 16}  # no other method's length
    make_run(tmp_path, "finetune", 10, day=6, **longer)
    groups = group_runs(scan([tmp_path]).runs)
    nine, eight = table9(groups), table8(groups)
    told = ("pre-trained", "fine-tuned with BC", "fine-tuned without BC")
    assert [cells(nine, method, "last")[1][:2] for method in told] == ["50", "60", "20"]
    assert cells(eight, "fine-tuned with BC", "last")[1].startswith("90 ± 0")  # there, the one with the most seeds


def test_the_paper_s_rows_are_the_paper_s() -> None:
    rows = table9([])
    assert [str(rows[2][task]) for task in TASKS] == ["67 ± 6", "96 ± 1", "59 ± 4"] and rows[2]["average"] == 0.739
    assert all(row["who"] == "ours" and row["average"] is None for row in rows[3:])
    assert {row["method"] for row in rows[3:]} >= {"pre-trained", "direct BC", "fine-tuned without BC"}


def test_top5_is_the_mean_of_the_five_highest_validations(tmp_path: Path) -> None:
    make_run(tmp_path, "finetune", 1, best=1, validations=[0.1, 0.5, 0.3, 0.9, 0.2, 0.6])
    (group,) = group_runs(scan([tmp_path]).runs)
    top = estimate_top5(group)
    assert top is not None and top.rate == pytest.approx((0.5 + 0.3 + 0.9 + 0.2 + 0.6) / 5)
    assert (str(top), top.basis) == ("50", "1 x 5 validations")


def test_validations_that_earlier_runs_logged_as_evaluations(tmp_path: Path) -> None:
    path = make_run(tmp_path, "finetune", 1)
    records = [
        {"step": 0, "evaluation/success_count": 0.1},  # test, before
        {"step": 5, "evaluation/success_count": 0.4, "train/loss": 1.0},
        {"step": 5, "evaluation/success_count": 0.2},  # test, after
    ]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    assert scan([tmp_path]).runs[0].validations == [(5, 0.4)]


def test_what_is_a_method_and_what_a_setting(tmp_path: Path) -> None:
    planner = make_run(tmp_path, "pretrain", 1)
    near = make_run(tmp_path, "pretrain", 1, only=True, day=2)
    make_run(tmp_path, "finetune", 1, reg="none", planner=planner)
    make_run(tmp_path, "finetune", 1, weight=0, planner=planner / "checkpoints" / "00000001")
    make_run(tmp_path, "finetune", 1, planner=near, day=2)
    make_run(tmp_path, "finetune", 1, planner=planner, day=3, episodes=16)
    groups = group_runs(scan([tmp_path]).runs)
    assert [group.label for group in groups] == [
        "pre-trained",
        "pre-trained, successful episodes only",
        "fine-tuned without BC",
        "fine-tuned with BC",
        "fine-tuned with BC, successful episodes only",
        "direct BC",
    ]
    assert "episodes 16, importance_weight 0.1" in distinguishing(groups)[3]
    assert "episodes 8, importance_weight 0" in distinguishing(groups)[5]


def test_what_begins_with_a_fine_tuned_planner_is_no_plain_method(tmp_path: Path) -> None:
    tuned = make_run(tmp_path, "finetune", 5, planner=make_run(tmp_path, "pretrain", 3))
    make_run(tmp_path, "finetune", 7, reg="none", planner=tuned / "checkpoints" / "00000001")
    labels = [group.label for group in group_runs(scan([tmp_path]).runs)]
    assert labels == ["pre-trained", "fine-tuned without BC, from a fine-tuned planner", "fine-tuned with BC"]


def test_a_second_fine_tuning_keeps_what_its_planner_went_through(tmp_path: Path) -> None:
    few = make_run(tmp_path, "pretrain", 3, fraction=0.3)
    once = make_run(tmp_path, "finetune", 5, planner=few)
    longer = make_run(tmp_path, "finetune", 6, planner=few, episodes=16, day=2)
    for seed, planner in enumerate((once, longer)):
        make_run(tmp_path, "finetune", 7, reg="none", seed=seed, planner=planner)
    groups = [group for group in group_runs(scan([tmp_path]).runs) if "fine-tuned planner" in group.label]
    label = "fine-tuned without BC, from a fine-tuned planner, first 30 % of the data"
    assert [group.label for group in groups] == 2 * [label]  # one for each planner, not two seeds of one
    assert [group.settings["planner.finetune.episodes"] for group in groups] == [8, 16]
    assert {group.settings["pretrain.fraction"] for group in groups} == {0.3}
    told = distinguishing(group_runs(scan([tmp_path]).runs))
    assert sum("planner.finetune.episodes" in text for text in told) == 2


def test_a_number_is_the_same_with_and_without_a_point(tmp_path: Path) -> None:
    for seed, weight in enumerate((1, 1.0)):
        make_run(tmp_path, "finetune", 5, seed, weight=weight)
    (group,) = group_runs(scan([tmp_path]).runs)
    assert [run.seed for run in group.runs] == [0, 1]


def test_another_number_of_sampling_steps_is_no_plain_method(tmp_path: Path) -> None:
    planner = make_run(tmp_path, "pretrain", 3)
    make_run(tmp_path, "finetune", 5, planner=planner)
    for seed in range(3):
        make_run(tmp_path, "finetune", 9, seed, planner=planner, sampling_steps=5, day=2)
    groups = group_runs(scan([tmp_path]).runs)
    labels = ["pre-trained", "fine-tuned with BC", "fine-tuned with BC, sampled in 5 steps"]
    assert [group.label for group in groups] == labels
    assert cells(table9(groups), "fine-tuned with BC", "last")[1].startswith("50")


def test_a_slice_of_the_data_is_no_plain_method(tmp_path: Path) -> None:
    make_run(tmp_path, "pretrain", 5)
    make_run(tmp_path, "pretrain", 1, fraction=0.3, day=2)
    late = make_run(tmp_path, "pretrain", 2, fraction=0.3, quality="nearoptimal", day=3)
    make_run(tmp_path, "finetune", 3, planner=late)
    groups = group_runs(scan([tmp_path]).runs)
    assert [group.label for group in groups] == [
        "pre-trained",
        "pre-trained, first 30 % of the data",
        "pre-trained, last 30 % of the data",
        "fine-tuned with BC, last 30 % of the data",
    ]
    assert cells(table8(groups), "pre-trained", "last")[1].startswith("50")


def test_only_seeds_of_one_configuration_and_one_data_set_are_pooled(tmp_path: Path) -> None:
    make_run(tmp_path, "finetune", 2, seed=0, day=1)
    make_run(tmp_path, "finetune", 4, seed=0, day=2)  # the same again: the newest counts
    make_run(tmp_path, "finetune", 6, seed=1)
    make_run(tmp_path, "finetune", 9, seed=2, data_hash="other")
    make_run(tmp_path, "finetune", 9, seed=3, episodes=80, day=9)
    groups = group_runs(scan([tmp_path]).runs)
    pooled = [([run.seed for run in group.runs], str(estimate(group.scores("last")))) for group in groups]
    assert ([0, 1], "50 ± 14.1 [30, 70]") in pooled and len(pooled) == 3
    assert [len(group.repeated) for group in groups if len(group.runs) == 2] == [1]
    # The table shows the one with the most seeds, though others are newer and better.
    assert cells(table9(groups), "fine-tuned with BC", "last")[1] == "50 ± 14.1 [30, 70]"


def test_one_seed_without_a_best_checkpoint_makes_all_report_the_last(tmp_path: Path) -> None:
    make_run(tmp_path, "finetune", 2, seed=0, best=9)
    make_run(tmp_path, "finetune", 4, seed=1)
    (group,) = group_runs(scan([tmp_path]).runs)
    assert group.reported[0] == "last" and str(estimate(group.reported[1])) == "30 ± 14.1 [15, 52]"


def test_evaluations_tell_the_sampler(tmp_path: Path) -> None:
    planner = make_run(tmp_path, "pretrain", 5)
    config = yaml.safe_load((planner / "config.yaml").read_text())
    config |= {"mode": "eval", "planner": str(planner), "evaluation": {"eta": 0.0, "sigma_floor": 0.1}}
    with Run(tmp_path / "outputs" / "eval" / "x" / "1-s0", config) as run:
        run.finish({"planner": str(planner), "tasks": {"adroit_door": summary(3)}})
    found = scan([tmp_path])
    (row,) = evaluation_table(found.runs, {str(record.path): record.name for record in found.runs})
    assert (row["eta"], row["sigma_floor"], str(row["count"]), row["metric"]) == (0.0, 0.1, "30 [11, 60]", "count")
    assert row["planner"] == shown(planner) == "outputs/pretrain/adroit_door-pointcloud-bc/20260101-000000-000-s0"
    assert len(group_runs(found.runs)) == 1, "an evaluation is no training run"


def break_runs(root: Path) -> None:
    """One unfinished run and six that cannot be read."""
    make_run(root, "finetune", None, day=10, validations=[0.5])
    for day, (file, content) in enumerate(
        [
            ("result.json", "{"),
            ("result.json", '{"evaluation": {"episodes": 3}}'),
            ("result.json", "[]"),
            ("config.yaml", "mode: [finetune"),
            ("config.yaml", "mode: finetune"),
            ("wall_time.json", "{}"),
        ],
        start=11,
    ):
        (make_run(root, "finetune", 5, day=day) / file).write_text(content)


def test_unfinished_and_broken_runs_are_listed_and_in_no_table(tmp_path: Path) -> None:
    good = make_run(tmp_path, "finetune", 5, validations=[0.2])
    with (good / "metrics.jsonl").open("a") as file:
        file.write('{"step": 900, "train/lo')  # torn by a kill
    break_runs(tmp_path)
    found = scan([tmp_path])
    assert [run.path for run in found.runs] == [good] and len(found.unfinished) == 1 and len(found.broken) == 6
    make_results([tmp_path], tmp_path / "made")
    page = (tmp_path / "made" / "tables.md").read_text()
    left_out = page.split("## Left out")[1]
    assert "not finished: 100 steps" in left_out and all(f"202601{day}-" in left_out for day in range(10, 17))
    assert "202601" not in page.split("## Runs")[0] and "50 [24, 76]" in page
    assert str(tmp_path) not in page


def test_nothing_at_all_still_makes_the_tables(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    paths = make_results([tmp_path / "outputs"], tmp_path / "made")
    page = (tmp_path / "made" / "tables.md").read_text()
    assert "| ours | pre-trained | - | - | - | - |" in page and [path.name for path in paths] == [
        "tables.md",
        "results.json",
    ]


@pytest.fixture(scope="module")
def three_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs and a store in folders of their own, with the same names of runs in two of them."""
    folders = [tmp_path_factory.mktemp("part") for _ in range(3)]
    for number, folder in enumerate(folders):
        for seed in range(2):
            make_run(folder, "finetune", number + seed, seed, best=5, validations=[0.1, 0.2], data_hash=str(number))
    break_runs(folders[0])
    make_toy_collection(folders[1])
    return folders


def page_of(folders: Sequence[Path], output: Path) -> dict[str, bytes]:
    """Every file that the command makes."""
    make_results(folders, output)
    return {path.name: path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}


def test_the_same_bytes_twice(three_folders: list[Path], tmp_path: Path) -> None:
    first, second = page_of(three_folders, tmp_path / "1"), page_of(three_folders, tmp_path / "2")
    assert first == second and len(first) > 5


@given(st.permutations([0, 1, 2, 0]), st.booleans())
@settings(max_examples=10, deadline=None)
def test_tables_do_not_depend_on_the_order_of_folders(
    three_folders: list[Path], order: list[int], nested: bool
) -> None:
    folders = [three_folders[index] for index in order] + ([three_folders[2] / "outputs"] if nested else [])
    assert markdown(make_tables(scan(folders))[0], []) == markdown(make_tables(scan(three_folders))[0], [])


def test_commands_name_no_machine() -> None:
    recorded = (
        "/home/me/p/data_collection/collect.py env=adroit_door root=/home/me/x demos=/home/me/minari/door/expert-v0"
        " data=[/home/me/data/a,/home/me/data/b] planner=/home/me/x/outputs/pretrain/p/1-s0 run_dir=/tmp/r seed=1"
    )
    made = portable(recorded)
    assert made == (
        "python data_collection/collect.py env=adroit_door demos=minari/door/expert-v0 'data=[data/a,data/b]' "
        "planner=outputs/pretrain/p/1-s0 seed=1"
    )
    assert portable(made) == made
    assert portable("train.py run=it's").startswith("python train.py")


def make_toy_collection(root: Path) -> Path:
    """A store of 12 episodes of 9 steps, its agent's metrics, and 54 s of work."""
    folder = root / "data" / "toy"
    config = ATTRIBUTES["env_config"] | {"success_metric": "count"}
    recorded = {"command": "data_collection/collect.py env=toy root=/x", "git_commit": "c" * 12}
    attributes = ATTRIBUTES | {"env_config": config, "versions": recorded}
    with EpisodeStore.create(folder / "episodes.zarr", attributes, SPECIFICATION) as store:
        for number in range(12):
            store.append(episode(number, 9), metadata(number) | {"agent_step": 9 * (number + 1)})
    with Run(folder / "agent", {"agent": {"name": "toy"}, "seed": 7}) as run:
        run.log(-10, {"offline/loss": 1.0})
        for step, rate in ((0, 0.5), (54, 0.9), (108, 0.8)):
            run.log(step, {"train/success_count": rate / 2, "train/return": 1.0})
            run.log(step, {"evaluation/success_count": rate})
    (folder / "agent" / "wall_time.json").write_text('{"seconds": 54.0}')
    return folder


def test_collection_is_told_from_store_and_agent(tmp_path: Path) -> None:
    folder = make_toy_collection(tmp_path)
    make_results([tmp_path], tmp_path / "made")
    (row,) = json.loads((tmp_path / "made" / "results.json").read_text())["collection"]
    assert (row["transitions"], row["episodes"], row["wall time"], row["frames/s"]) == (108, 12, 54.0, 2.0)
    # Of 12 episodes every second, every third, and those of either succeed.
    assert [row[f"kept {metric}"] for metric in ("final", "count", "any")] == pytest.approx([6 / 12, 4 / 12, 8 / 12])
    assert (row["agent, last"], row["agent, best"], row["agent"], row["commit"]) == (0.8, 0.9, "toy", "c" * 12)
    assert row["command"] == "python data_collection/collect.py env=toy"
    files = [path for path in (folder / "episodes.zarr").rglob("*") if path.is_file()]
    assert row["megabytes"] * 1e6 == pytest.approx(sum(path.stat().st_size for path in files))
    page = (tmp_path / "made" / "tables.md").read_text()
    assert "(figures/collection_toy.png)" in page and "| 54.0 |" not in page and "0.9 min" in page


def test_kept_records_make_the_same_tables_when_runs_and_stores_are_gone(tmp_path: Path) -> None:
    work, records = tmp_path / "work", tmp_path / "records"
    planner = make_run(work, "pretrain", 5)
    make_run(work, "finetune", 6, best=7, validations=[0.1, 0.2], planner=planner)
    card = make_toy_collection(work) / "README.md"
    row = f"| versions command | {tmp_path}/data_collection/collect.py env=toy"
    card.write_text(f"# toy\n\n{row} |\n\n## Samples\n\n![depth](card/depth.png)\n")
    made = page_of([work], tmp_path / "made")
    make_results([work], tmp_path / "again", keep=records)
    assert page_of([records], tmp_path / "kept") == made
    assert page_of([records, work], tmp_path / "both") == made, "nothing is counted twice"
    kept = [path for path in records.rglob("*") if path.is_file()]
    (copy,) = [path for path in kept if path.name == "card.md"]
    assert copy.read_text() == "# toy\n\n| versions command | python data_collection/collect.py env=toy |\n"
    assert sum(path.stat().st_size for path in kept) < 20_000
    assert not [path for path in kept if str(tmp_path) in path.read_text()], "no path of the machine"
    make_results([work], tmp_path / "again", keep=records)
    assert sorted(path for path in records.rglob("*") if path.is_file()) == sorted(kept), "refreshed in place"


def test_a_record_of_other_data_of_the_same_name_is_not_overwritten(tmp_path: Path) -> None:
    make_toy_collection(tmp_path)
    records = tmp_path / "records"
    make_results([tmp_path], tmp_path / "made", keep=records)
    kept = next(records.rglob("store.json"))
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"data_hash": "0" * 16}))
    before = kept.read_text()
    with pytest.raises(InputError, match=r"--keep: .*record of data 0{16}, not of .*rename"):
        make_results([tmp_path / "data"], tmp_path / "made", keep=records)
    assert kept.read_text() == before
    with pytest.raises(InputError, match=r"--keep: .*record of data .*, not of .*rename"):
        make_results([tmp_path], tmp_path / "made", keep=tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_empty_and_damaged_stores_are_listed(tmp_path: Path) -> None:
    make_store(tmp_path / "data" / "empty" / "episodes.zarr", [])
    damaged = make_toy_collection(tmp_path)
    next((damaged / "episodes.zarr" / "data" / "action").glob("0*")).unlink()
    make_results([tmp_path], tmp_path / "made")
    tables = json.loads((tmp_path / "made" / "results.json").read_text())
    assert tables["collection"] == [] and [row["directory"] for row in tables["unfinished"]] == [
        "data/empty",
        "data/toy",
    ]


def test_figures_are_small_and_drawn(three_folders: list[Path], tmp_path: Path) -> None:
    paths = [path for path in make_results(three_folders, tmp_path) if path.suffix == ".png"]
    assert [path.name for path in paths] == ["curves_adroit_door_pointcloud.png", "collection_toy.png"]
    for path in paths:
        assert path.stat().st_size < 150_000
        pixels = matplotlib.image.imread(path)
        colours = {tuple(colour) for colour in np.round(255 * pixels[..., :3]).astype(int).reshape(-1, 3)}
        assert (0, 0x72, 0xB2) in colours, "the line of fine-tuning with BC, or of the agent's evaluations"


def test_wall_time_of_runs_that_did_not_note_it(tmp_path: Path) -> None:
    path = make_run(tmp_path, "finetune", 1, validations=[0.1, 0.2])
    (path / "wall_time.json").unlink()
    assert seconds(path) == pytest.approx(0, abs=5)
    (events,) = (path / "tensorboard").iterdir()
    events.write_bytes(events.read_bytes()[:-7])  # torn
    assert seconds(path) is not None and len(scan([tmp_path]).runs) == 1
    events.unlink()
    assert seconds(path) is None


def test_rows_lead_to_their_runs(tmp_path: Path) -> None:
    directory = make_run(tmp_path, "finetune", 5, best=6)
    found = scan([tmp_path])
    (row,) = settings_table(group_runs(found.runs), {str(directory): "R1"})
    assert (row["runs"], row["seeds"], row["metric"]) == ("R1", "0", "count")
    assert [str(row[f"{which} count"]) for which in ("last", "best")] == ["50 [24, 76]", "60 [31, 83]"]
    make_results([tmp_path], tmp_path / "made")
    lines = (tmp_path / "made" / "runs.csv").read_text().splitlines()
    values = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert (values["best count"], values["data_hash"], values["directory"]) == ("0.6", "d", found.runs[0].name)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "pretrain", 5)
    assert main([str(tmp_path), "--output", str(tmp_path / "made")]) == 0
    assert str(tmp_path / "made" / "tables.md") in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert "no such folder" in error and "Traceback" not in error
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path), "--output", str(tmp_path / "file")]) == 2


def test_every_score_survives_its_summary() -> None:
    for successes, episodes in itertools.product(range(4), (3, 7, 50)):
        score = Score.from_summary(summary(successes, episodes))
        assert (score.successes["count"], score.episodes, score.seeds) == (successes, episodes, (100, 99 + episodes))
        assert score.rate() == successes / episodes
    assert "success_metric" in EnvConfig.__dataclass_fields__
