"""Planners of sets in the results: rows of their own, beside those of single tasks."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure
from toy_results import make_run, summary

from sodp3d.core.cli import compose
from sodp3d.core.files import write_text
from sodp3d.core.run import Run, read_config, read_result
from sodp3d.results.__main__ import make_results
from sodp3d.results.estimates import Estimate
from sodp3d.results.groups import group_runs
from sodp3d.results.scan import scan
from sodp3d.results.sets import legend, set_bars
from sodp3d.results.tables import evaluation_table, set_table
from sodp3d.rollouts.evaluate import mean_summary
from sodp3d.tools.runs import newest_runs
from sodp3d.tools.summary import before_and_after, stage_lines

DOOR, PEN = "adroit_door", "adroit_pen"


def of_set(root: Path, mode: str, result: dict[str, Any], **more: Any) -> Path:
    """A finished run of the set `both`."""
    like = make_run(root / "like", mode, 0, **more)
    config = read_config(like)
    config["env"] = {**compose("train")["env"], "name": "both", "task": "", "tasks": ["door", "pen"]}
    with Run(root / "outputs" / mode / "both-pointcloud" / like.name, config) as run:
        run.finish(result)
    return run.directory


def told(door: int, pen: int, suffix: str = "") -> dict[str, Any]:
    tasks = {DOOR: summary(door), PEN: summary(pen, env=PEN)}
    return {f"tasks{suffix}": tasks, f"mean{suffix}": mean_summary(list(tasks.values()))}


def note(run: Path, **more: Any) -> None:
    (run / "result.json").write_text(json.dumps(read_result(run) | more))


def make_all(root: Path) -> Path:
    """outputs/ with a set's planner and its fine-tuning; door's from both kinds of planner; a task that was unseen."""
    alone = make_run(root, "pretrain", 3)
    make_run(root, "finetune", 9, planner=alone, algorithm="sodp", day=2)
    whole = of_set(root, "pretrain", told(1, 2), day=3)
    each = make_run(root, "finetune", 5, planner=whole, algorithm="sodp", day=4, data_hash="set")
    new = make_run(root, "finetune", 4, env="adroit_hammer", planner=whole, algorithm="sodp", day=5, data_hash="set")
    note(each, trained_on=[DOOR, PEN])
    write_text(
        new / "config.yaml", yaml.safe_dump({**read_config(new), "env": compose("train", ["env=adroit_hammer"])["env"]})
    )
    note(new, trained_on=[DOOR, PEN], unseen=["adroit_hammer"])
    result = {**told(5, 7), **told(1, 2, "_before"), "interactions": {"training": 16}, "runs": {DOOR: "a", PEN: "b"}}
    of_set(root, "finetune", result, planner=whole, algorithm="sodp", day=6)
    return root / "outputs"


def test_single_planners_and_those_of_a_set_are_different_rows(tmp_path: Path) -> None:
    groups = group_runs(scan([make_all(tmp_path)]).runs)
    assert sorted((group.task, group.stage, group.label) for group in groups) == [
        ("adroit_door", "finetune", "SODP"),
        ("adroit_door", "finetune", "SODP, pre-trained on both"),
        ("adroit_door", "pretrain", "pre-trained"),
        ("adroit_hammer", "finetune", "SODP, pre-trained on both, unseen"),
        ("both", "finetune", "SODP"),
        ("both", "pretrain", "pre-trained"),
    ]


def test_where_the_set_s_own_run_is_gone_the_number_of_its_tasks_tells(tmp_path: Path) -> None:
    run = make_run(tmp_path, "finetune", 5, algorithm="sodp", planner="outputs/pretrain/gone/1")
    note(run, trained_on=[DOOR, PEN])
    (group,) = group_runs(scan([tmp_path]).runs)
    assert group.label == "SODP, pre-trained on 2 tasks"


def test_a_set_has_its_mean_and_a_row_for_each_task(tmp_path: Path) -> None:
    outputs, kept = make_all(tmp_path), tmp_path / "records.tar.xz"
    rows = [row for row in set_table(group_runs(scan([outputs]).runs)) if row["method"] == "SODP"]
    assert [(row["task"], str(row["before"]), str(row["success"])) for row in rows] == [
        ("mean of 2", "15 [5, 36]", "60 [39, 78]"),
        (DOOR, "10 [2, 40]", "50 [24, 76]"),
        (PEN, "20 [6, 51]", "70 [40, 89]"),
    ]
    make_results([outputs], tmp_path / "made", kept)
    make_results([kept], tmp_path / "again")
    for output in (tmp_path / "made", tmp_path / "again"):
        page = (output / "tables.md").read_text()
        assert "## Sets of tasks" in page and "| both |" in page
        assert "(figures/set_both_pointcloud.png)" in page and (output / "figures/set_both_pointcloud.png").is_file()
        with (output / "sets.csv").open() as file:
            found = [row["success"] for row in csv.DictReader(file) if row["method"] == "SODP"]
        assert found == ["0.6", "0.5", "0.7"]


def test_bars_of_a_set_stand_by_task_and_method(tmp_path: Path) -> None:
    rows = set_table(group_runs(scan([make_all(tmp_path)]).runs))
    figure = set_bars(rows)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["mean of 2", "door", "pen"]
    bars = {(round(bar.get_x() + bar.get_width() / 2), bar.get_facecolor()): bar.get_height() for bar in axes.patches}
    told = {text.get_text(): patch.get_facecolor() for text, patch in _legend(figure)}
    assert set(told) == {"SODP", "pre-trained"}
    assert [bars[place, told["SODP"]] for place in range(3)] == pytest.approx([60, 50, 70])
    assert [bars[place, told["pre-trained"]] for place in range(3)] == pytest.approx([15, 10, 20])


def test_bars_of_many_tasks_fill_several_panels() -> None:
    names = ["mean of 50", *(f"metaworld_task-{index}" for index in range(50))]
    made = {"method": "pre-trained", "differs by": "", "success": Estimate(0.5, 0.4, 0.6, None, 1, (20,))}
    figure = set_bars([{**made, "task": name} for name in names])
    shown = [[label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes]
    assert [len(some) for some in shown] == [17, 17, 17] and [name for some in shown for name in some] == [
        name.split("_")[-1] for name in names
    ]
    assert [len(axes.patches) for axes in figure.axes] == [17, 17, 17]
    assert figure.get_figwidth() < 20


def _legend(figure: Figure) -> list[tuple[Any, Any]]:
    (legend,) = figure.legends
    return list(zip(legend.get_texts(), legend.get_patches(), strict=True))


def test_a_legend_tells_methods_apart_by_what_the_others_do_not_have() -> None:
    shared = "model.prediction sample, model.unet narrow"
    made = [
        ("pre-trained", f"{shared}, pretrain.steps 12000"),
        ("pre-trained", f"{shared}, pretrain.steps 10000"),
        ("SODP", f"{shared}, episodes 64"),
        *(("DP3", f"data {'x' * 200}{number}") for number in range(3)),
    ]
    rows = [{"method": method, "differs by": differs, "task": task} for task in "ab" for method, differs in made]
    first, second, third, *long = legend(rows)
    assert (first, second) == ("pre-trained, pretrain.steps 12000", "pre-trained, pretrain.steps 10000")
    assert third == "SODP", "alone it needs no more"
    assert len(set(long)) == 3 and max(map(len, long)) < 120


def test_without_sets_nothing_is_said_of_them(tmp_path: Path) -> None:
    make_run(tmp_path, "pretrain", 3)
    make_results([tmp_path], tmp_path / "made")
    assert not (tmp_path / "made/sets.csv").exists() and "Sets" not in (tmp_path / "made/tables.md").read_text()


def test_an_evaluation_of_a_set_has_its_mean_first_and_tells_the_unseen(tmp_path: Path) -> None:
    of_set(tmp_path, "eval", {**told(3, 5), "planner": "outputs/p/1", "unseen": [PEN]})
    rows = evaluation_table(scan([tmp_path / "outputs"]).runs, [])
    assert [(row["task"], str(row["count"]).split()[0], row.get("unseen")) for row in rows] == [
        ("both, mean of 2", "40", None),
        (DOOR, "30", None),
        (PEN, "50", True),
    ]


def test_the_summary_tells_a_set_by_its_mean_and_an_unseen_task(tmp_path: Path) -> None:
    outputs = make_all(tmp_path)
    runs = newest_runs(outputs, "both")
    before, after = before_and_after(runs, "both")
    assert before.startswith("before fine-tuning, mean of 2 tasks") and before.endswith("15 % [5, 36] of 20 episodes")
    assert after.startswith("after fine-tuning, mean of 2 tasks") and after.endswith("60 % [39, 78] of 20 episodes")
    assert sum(line.startswith("adroit_") for line in stage_lines(runs["finetune"])) == 2
    unseen = newest_runs(outputs, "adroit_hammer")
    (line,) = before_and_after(unseen, "adroit_hammer")
    assert line.startswith("after fine-tuning, unseen ") and "40 %" in line
    assert unseen["pretrain"].parent.name == "both-pointcloud", "the set's planner is where it began"


def test_a_damaged_set_is_left_out_with_its_reason(tmp_path: Path) -> None:
    outputs = make_all(tmp_path)
    (record,) = (outputs / "finetune/both-pointcloud").iterdir()
    note(record, tasks_before={DOOR: 3})
    assert "finetune" not in newest_runs(outputs, "both")
    assert [name for name, _ in scan([outputs]).broken] == [f"outputs/finetune/both-pointcloud/{record.name}"]
