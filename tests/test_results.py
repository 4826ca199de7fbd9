"""The results command: numbers checked by hand, every gap shown, names that tell methods from settings."""

import itertools
import json
from pathlib import Path

import pytest
import yaml
from toy_results import TASKS, cells, make_run, summary

from sodp3d.core.run import Run
from sodp3d.envs.config import EnvConfig
from sodp3d.results.differences import distinguishing, usual_settings
from sodp3d.results.estimates import estimate, estimate_top5
from sodp3d.results.groups import group_runs
from sodp3d.results.pages import settings_page
from sodp3d.results.scan import Score, portable, scan, seconds, shown
from sodp3d.results.tables import evaluation_table, fine_tuned, settings_table, table8, table9


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
    assert row["measured on"] == "1 x 10 episodes, 3 x 10 episodes"


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
    ours, theirs = rows[:-3], rows[-3:]
    assert [str(theirs[0][task]) for task in TASKS] == ["67 ± 6", "96 ± 1", "59 ± 4"] and theirs[0]["average"] == 0.739
    assert [row["method"] for row in theirs] == ["fine-tuned with BC", "fine-tuned without BC", "pre-trained"]
    assert all(row["who"] == "ours" and row["average"] is None for row in ours)
    assert ours[0]["method"] == "fine-tuned with BC", "the headline stands first"
    assert {row["method"] for row in ours} >= {"pre-trained", "direct BC", "fine-tuned without BC"}


def test_the_headline_is_of_sodp_by_the_name_with_the_most_tasks() -> None:
    def row(method: str, *measured: str) -> dict[str, object]:
        return {"who": "ours", "method": method, **{task: 0.5 if task in measured else None for task in TASKS}}

    assert fine_tuned([row("fine-tuned with BC", *TASKS), row("SODP", TASKS[0])]) == "fine-tuned with BC"
    assert fine_tuned([row("fine-tuned with BC", *TASKS), row("SODP", *TASKS)]) == "SODP"
    assert fine_tuned([row("fine-tuned with BC"), row("SODP without a critic", TASKS[0])]) == "SODP without a critic"
    assert fine_tuned([row("fine-tuned with BC"), row("direct BC", *TASKS)]) == "fine-tuned with BC"


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
    told = distinguishing(groups)
    assert (told[0], told[3]) == ("", ""), "the usual ones"
    assert told[1] == "pretrain.successful_only True" and "episodes 8, importance_weight 0" in told[5]
    assert usual_settings(groups[2:])["episodes"] == "16" and len(set(told[2:])) == 4


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


def test_a_distilled_planner_is_told_by_its_steps_and_its_teacher(tmp_path: Path) -> None:
    planner = make_run(tmp_path, "pretrain", 3)
    tuned = make_run(tmp_path, "finetune", 5, planner=planner, algorithm="sodp", day=2)
    make_run(tmp_path, "distill", 4, planner=planner, steps=2, day=3)
    student = make_run(tmp_path, "distill", 6, planner=tuned, day=4)
    make_run(tmp_path, "finetune", 7, planner=student, algorithm="sodp", day=5)
    groups = group_runs(scan([tmp_path]).runs)
    assert [group.label for group in groups] == [
        "pre-trained",
        "SODP",
        "SODP, from a fine-tuned planner, from a distilled planner",
        "distilled, 1 step, of SODP",
        "distilled, 2 steps",
    ]
    assert groups[3].settings["planner.finetune.episodes"] == 8 and groups[3].settings["pretrain.steps"] == 100
    assert cells(table8(groups), "distilled, 1 step, of SODP", "last")[1].startswith("60")
    page = settings_page({"settings": settings_table(groups, {}), "evaluations": []}, groups)
    assert "seen as point clouds: distillation" in page


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


def test_planners_of_several_seeds_tuned_with_one_seed_are_several_runs(tmp_path: Path) -> None:
    for seed, successes in enumerate((2, 5, 8)):
        planner = make_run(tmp_path, "pretrain", 1, seed, day=1 + seed)
        make_run(tmp_path, "finetune", successes, seed=0, day=10 + seed, planner=planner)
        make_run(tmp_path, "finetune", 0, seed=0, day=5 + seed, planner=planner)  # older, of the same planner
    pretrained, tuned = group_runs(scan([tmp_path]).runs)
    assert len(pretrained.runs) == 3 and len(tuned.runs) == 3 and len(tuned.repeated) == 3
    assert str(estimate(tuned.scores("last"))) == "50 ± 30 [33, 67]"


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
    (row,) = evaluation_table(found.runs, group_runs(found.runs))
    assert (row["eta"], row["sigma_floor"], str(row["count"]), row["metric"]) == (0.0, 0.1, "30 [11, 60]", "count")
    assert row["planner"] == shown(planner) == "outputs/pretrain/adroit_door-pointcloud-bc/20260101-000000-000-s0"
    assert (row["method"], row["seed"]) == ("pre-trained", 0)
    assert len(group_runs(found.runs)) == 1, "an evaluation is no training run"


@pytest.mark.parametrize(
    ("asked", "told", "shown_as"), [(8, None, 8), (None, {"adroit_door": 4}, 4), (None, None, None)]
)
def test_evaluations_tell_of_how_many_plans_the_best_was_taken(
    asked: int | None, told: dict[str, int] | None, shown_as: int | None, tmp_path: Path
) -> None:
    planner = make_run(tmp_path, "pretrain", 5)
    config = yaml.safe_load((planner / "config.yaml").read_text())
    config |= {"mode": "eval", "planner": str(planner), "evaluation": {"eta": 1.0, "best_of": asked}}
    with Run(tmp_path / "outputs" / "eval" / "x" / "1-s0", config) as run:
        run.finish(
            {"planner": str(planner), "tasks": {"adroit_door": summary(3)}, **({"best_of": told} if told else {})}
        )
    found = scan([tmp_path])
    (row,) = evaluation_table(found.runs, group_runs(found.runs))
    assert row["best_of"] == shown_as


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
    installed = "sodp3d train mode=finetune planner=outputs/pretrain/p/1-s0"
    for told in ("sodp3d train root=/x mode=finetune planner=/home/me/outputs/pretrain/p/1-s0", f"python {installed}"):
        assert portable(told) == portable(installed) == installed


def test_wall_time_of_runs_that_did_not_note_it(tmp_path: Path) -> None:
    path = make_run(tmp_path, "finetune", 1, validations=[0.1, 0.2])
    (path / "wall_time.json").unlink()
    assert seconds(path) == pytest.approx(0, abs=5)
    (events,) = (path / "tensorboard").iterdir()
    events.write_bytes(events.read_bytes()[:-7])  # torn
    assert seconds(path) is not None and len(scan([tmp_path]).runs) == 1
    events.unlink()
    assert seconds(path) is None


def test_every_score_survives_its_summary() -> None:
    for successes, episodes in itertools.product(range(4), (3, 7, 50)):
        score = Score.from_summary(summary(successes, episodes))
        assert (score.successes["count"], score.episodes, score.seeds) == (successes, episodes, (100, 99 + episodes))
        assert score.rate() == successes / episodes
    assert "success_metric" in EnvConfig.__dataclass_fields__


def test_a_pre_trained_planner_is_reported_by_its_larger_test(tmp_path: Path) -> None:
    planner = make_run(tmp_path, "pretrain", 3)
    tuned = make_run(tmp_path, "finetune", 5, planner=planner, day=2)
    result = json.loads((tuned / "result.json").read_text())
    (tuned / "result.json").write_text(json.dumps(result | {"before": summary(16, 40)}))
    groups = group_runs(scan([tmp_path]).runs)
    assert cells(table9(groups), "pre-trained", "last")[1] == "40 [26, 55]"
    for name, value in (("sampling_steps", 5), ("sampling_steps", 10)):  # another sampler tells nothing of it
        config = yaml.safe_load((tuned / "config.yaml").read_text())
        (tuned / "config.yaml").write_text(yaml.safe_dump(config | {"model": config["model"] | {name: value}}))
        found = cells(table9(group_runs(scan([tmp_path]).runs)), "pre-trained", "last")[1]
        assert found == ("30 [11, 60]" if value == 5 else "40 [26, 55]")
    (tuned / "result.json").write_text(json.dumps(result | {"before": summary(4, 5)}))
    groups = group_runs(scan([tmp_path]).runs)
    assert cells(table9(groups), "pre-trained", "last")[1] == "30 [11, 60]"


def test_runs_of_old_and_new_data_hashes_are_not_pooled(tmp_path: Path) -> None:
    for seed, name in enumerate(("a" * 16, "v2-" + "a" * 32)):
        make_run(tmp_path, "finetune", 5, seed, data_hash=name)
    groups = group_runs(scan([tmp_path]).runs)
    assert len(groups) == 2 and sorted(distinguishing(groups)) in (["", "data aaaaaaaa"], ["", "data v2-aaaaaaaa"])


def test_a_run_that_names_its_algorithm_is_called_after_it(tmp_path: Path) -> None:
    planner = make_run(tmp_path, "pretrain", 3)
    make_run(tmp_path, "finetune", 5, planner=planner)  # from before algorithms had names
    for day, (algorithm, more) in enumerate(
        [
            ("sodp", {}),
            ("sodp", {"reg": "kl"}),
            ("sodp", {"weight": 0}),
            ("clone", {"weight": 0}),
            ("dppo", {"reg": "none"}),
            ("sodp_scratch", {"from_scratch": True}),
            ("anchored", {"reg": "anchored"}),
        ],
        start=2,
    ):
        make_run(tmp_path, "finetune", 6, day=day, planner=planner, algorithm=algorithm, **more)
    groups = group_runs(scan([tmp_path]).runs)
    told = {
        group.runs[0].time[:8]: (group.label, text) for group, text in zip(groups, distinguishing(groups), strict=True)
    }
    day = {int(time[6:]): words for time, words in told.items() if time != "20260101"}
    assert [label for label, _ in day.values()].count("SODP") == 2 and len(groups) == 9, "not two seeds of one"
    assert [day[number][0] for number in range(2, 9)] == [
        "SODP", "SODP", "SODP, no importance term", "direct BC", "DPPO", "SODP from scratch", "anchored"
    ]  # fmt: skip
    assert "reg.name kl" in day[3][1] and "reg.name kl" not in day[2][1]
    shown = [row["method"] for row in table9(groups) if row["who"] == "ours"]
    assert "DPPO" in shown and "SODP" in shown and "SODP with KL" not in shown and "fine-tuned with BC" in shown


def test_a_second_fine_tuning_keeps_which_algorithm_its_planner_went_through(tmp_path: Path) -> None:
    planner = make_run(tmp_path, "pretrain", 3)
    first = make_run(tmp_path, "finetune", 5, planner=planner, algorithm="sodp_kl", reg="kl")
    second = make_run(tmp_path, "finetune", 6, planner=first, algorithm="sodp", day=2)
    (group,) = [group for group in group_runs(scan([tmp_path]).runs) if group.runs[0].path == second]
    assert group.label == "SODP, from a fine-tuned planner"
    assert (group.settings["planner.algorithm"], group.settings["planner.reg.name"]) == ("sodp_kl", "kl")
    assert "algorithm" not in group.settings
