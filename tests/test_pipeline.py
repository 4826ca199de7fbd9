"""The README's commands at the smallest size, through the real command line, from another folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sodp3d.core.paths import CHECKOUT
from sodp3d.core.run import read_config
from sodp3d.results.groups import group_runs
from sodp3d.results.scan import scan
from sodp3d.serving.planning import load_served
from sodp3d.sharing.pull import pull
from sodp3d.sharing.push import push

SMALL = (
    "env=adroit_door preset=quick threads=1 workers=1 device=cpu "
    "env.camera.height=32 env.camera.width=32 env.points=64 env.episode_steps=9"
).split()
COLLECT = (
    "agent=scripted agent.policy=random collect.agent_steps=90 collect.environments=2 collect.evaluate_every=0".split()
)
TRAIN = (
    "model.sampling_steps=null pretrain.steps=4 pretrain.batch_size=8 pretrain.log_every=1 pretrain.checkpoint_every=2 "
    "finetune.episodes=4 finetune.episodes_per_iteration=2 finetune.updates_per_episode=1 finetune.batch_size=8 "
    "finetune.critic.first_updates=2 finetune.initial_attempts=2 finetune.evaluate_every=2 finetune.checkpoint_every=2 "
    "evaluation.episodes=2 evaluation.environments=2 evaluation.validation_episodes=2 evaluation.videos=1"
).split()


def run(script: str, *arguments: str, folder: Path, fails: bool = False) -> str:
    """Run a command from `folder`; returns what it said."""
    command = [sys.executable, str(CHECKOUT / script), *SMALL, f"root={folder}/root", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    words = ("Traceback", "Error executing job")  # Python's and Hydra's own
    assert not fails or (done.returncode == 2 and not any(word in done.stderr for word in words)), done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where collect, convert and pretrain have run."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run("data_collection/collect.py", *COLLECT, folder=folder)
    run("data_collection/convert.py", folder=folder)
    run("train.py", "mode=pretrain", *TRAIN, "evaluation.eta=0.5", "model.sampling_steps=4", folder=folder)
    return folder


@pytest.fixture(scope="module")
def finetuned(folder: Path) -> Path:
    """A finished fine-tuning run."""
    run("train.py", "mode=finetune", *TRAIN, folder=folder)
    return runs(folder, "finetune")[0].parent


def runs(folder: Path, mode: str) -> list[Path]:
    return sorted((folder / "root" / "outputs" / mode).glob("*/*/config.yaml"))


def test_every_stage_leaves_what_the_readme_promises(folder: Path, finetuned: Path) -> None:
    said = run("train.py", "mode=eval", *TRAIN, folder=folder)
    assert "success (count)" in said and "on 2 episodes" in said
    subprocess.run(
        [sys.executable, str(CHECKOUT / "replay.py"), f"data={folder}/root/data/adroit_door", "count=1"],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=200,
    )
    assert list((folder / "root/data/adroit_door/videos").glob("*.mp4"))
    for mode in ("pretrain", "finetune"):
        directory = runs(folder, mode)[0].parent
        for name in ("metrics.jsonl", "curve.png", "result.json", "versions.json", "tensorboard"):
            assert (directory / name).exists(), f"{mode}: {name}"
        assert list((directory / "videos").glob("*.mp4"))
    records = {mode: read_config(runs(folder, mode)[0].parent) for mode in ("pretrain", "finetune", "eval")}
    assert {mode: record.get("algorithm") for mode, record in records.items()} == {
        "pretrain": None, "finetune": "sodp", "eval": None
    }  # fmt: skip
    assert finetuned.parent.name == "adroit_door-pointcloud-sodp"
    result = json.loads((finetuned / "result.json").read_text())
    assert {"before", "evaluation", "best"} <= set(result)


@pytest.mark.slow
def test_a_planner_from_scratch_starts_with_the_roll_outs_of_another(folder: Path) -> None:
    options = ("algorithm=sodp_scratch", f"run_dir={folder}/scratch")
    run("train.py", "mode=finetune", *TRAIN, *options, folder=folder)
    result = json.loads((folder / "scratch/result.json").read_text())
    before = json.loads((runs(folder, "pretrain")[0].parent / "result.json").read_text())
    assert result["before"] == before["evaluation"] and result["episodes"] == 4


@pytest.mark.slow
def test_one_evaluated_episode_can_be_watched(folder: Path) -> None:
    directory = runs(folder, "pretrain")[0].parent
    replay = [sys.executable, str(CHECKOUT / "replay.py"), f"run={directory}", f"output={folder}/watched"]
    subprocess.run([*replay, "seeds=[100001]"], cwd=folder, check=True, capture_output=True, timeout=200)
    (video,) = (folder / "watched").glob("*.mp4")
    assert "seed100001" in video.name
    refused = subprocess.run([*replay, "seeds=[7]"], cwd=folder, capture_output=True, text=True, timeout=200)
    assert refused.returncode == 2 and "holds seeds 100000 to 100001" in refused.stderr


@pytest.mark.parametrize(
    "which", [pytest.param("pretrain", marks=pytest.mark.slow), "last", pytest.param("best", marks=pytest.mark.slow)]
)
def test_evaluation_repeats_the_number_that_training_reported(folder: Path, finetuned: Path, which: str) -> None:
    directory = runs(folder, "pretrain")[0].parent if which == "pretrain" else finetuned
    newest = sorted((directory / "checkpoints").iterdir())[-1]
    planner = newest if which == "last" else directory
    again = folder / f"again-{which}"
    run("train.py", "mode=eval", f"planner={planner}", *TRAIN, f"run_dir={again}", folder=folder)
    reported = json.loads((directory / "result.json").read_text())["best" if which == "best" else "evaluation"]
    assert json.loads((again / "evaluation/adroit_door/evaluation.json").read_text()) == reported
    state = json.loads((newest / "state.json").read_text())
    sampler = {key: state["planner"][key] for key in ("eta", "sigma_floor", "inference_steps")}
    own = {"eta": 0.5, "sigma_floor": 0.0, "inference_steps": 4}
    assert sampler == own, "training and evaluation should not agree by the defaults alone"


@pytest.mark.slow
def test_a_fine_tuned_planner_is_distilled_evaluated_and_named_in_the_results(folder: Path, finetuned: Path) -> None:
    options = ("distill.updates=3", "distill.batch_size=4", "distill.checkpoint_every=2", "distill.evaluate_every=2")
    said = run("train.py", "mode=distill", *TRAIN, *options, folder=folder)
    assert "10 steps" not in said and "4 steps there, 1 here" in said
    (directory,) = [path.parent for path in runs(folder, "distill")]
    assert directory.parent.name == "adroit_door-pointcloud-one-step"
    result = json.loads((directory / "result.json").read_text())
    tuned = json.loads((finetuned / "result.json").read_text())
    assert result["before"] == tuned["best"] and result["plan_seconds"]["after"]["1"] > 0
    assert list((directory / "videos").glob("*.mp4")) and (directory / "curve.png").is_file()
    run("train.py", "mode=eval", f"planner={directory}", *TRAIN, f"run_dir={folder}/one-step", folder=folder)
    again = json.loads((folder / "one-step/evaluation/adroit_door/evaluation.json").read_text())
    assert again == result["evaluation"]
    said = run(
        "train.py", "mode=eval", f"planner={directory}", *TRAIN, "model.sampling_steps=10", folder=folder, fails=True
    )
    assert "this planner was distilled to plan in 1, but 10 came" in said
    labels = {group.stage: group.label for group in group_runs(scan([folder / "root/outputs"]).runs)}
    assert labels["distill"] == "distilled, 1 step, of SODP"


def test_the_readme_s_one_line_plans(finetuned: Path) -> None:
    line = next(line for line in (CHECKOUT / "README.md").read_text().splitlines() if line.startswith("python -c"))
    code = line.removeprefix('python -c "').removesuffix('"').replace("<run>", str(finetuned))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.count("]") > 3, done.stdout


@pytest.mark.slow
def test_missing_stages_name_the_command_that_makes_them(tmp_path: Path) -> None:
    assert "data_collection/collect.py env=adroit_door" in run(
        "data_collection/convert.py", folder=tmp_path, fails=True
    )
    assert "data_collection/collect.py env=adroit_door" in run("train.py", "mode=pretrain", folder=tmp_path, fails=True)
    assert "train.py mode=pretrain" in run("train.py", "mode=finetune", folder=tmp_path, fails=True)


@pytest.mark.slow
def test_wrong_planners_and_devices_are_refused(folder: Path) -> None:
    planner = runs(folder, "pretrain")[0].parent
    said = run("train.py", "mode=eval", "obs=state", f"planner={planner}", folder=folder, fails=True)
    assert "obs=pointcloud" in said and "obs=state" in said
    said = run("train.py", "mode=finetune", "env=adroit_pen", f"planner={planner}", folder=folder, fails=True)
    assert "adroit_door" in said and "adroit_pen" in said
    for option, told in (
        ("env.crop.low=[0,0,0]", r"env.crop.low[0]='-inf', but 0.0 came"),
        ("env.camera.fovy=60", "45.0"),
        ("env.points=32", "env.points=64, but 32 came"),
    ):
        said = run("train.py", "mode=eval", option, f"planner={planner}", folder=folder, fails=True)
        assert told in said and "trained with" in said
    assert "device" in run("train.py", "mode=pretrain", "device=tpu", folder=folder, fails=True)
    there = sorted((folder / "root/outputs").rglob("config.yaml"))
    assert "frozen or tuned" in run("train.py", "mode=finetune", "finetune.encoder=tune", folder=folder, fails=True)
    assert sorted((folder / "root/outputs").rglob("config.yaml")) == there, "nothing is begun that cannot work"


@pytest.mark.slow
def test_what_was_pushed_and_pulled_goes_through_every_stage(folder: Path, finetuned: Path) -> None:
    for what, name in ((finetuned, "planner"), (folder / "root/data/adroit_door", "store")):
        push(what, str(folder / f"{name}.zip"))
        pull(str(folder / f"{name}.zip"), folder / "pulled" / name)
    planner, told = folder / "pulled/planner", json.loads((finetuned / "result.json").read_text())["best"]
    run("train.py", "mode=eval", *TRAIN, f"planner={planner}", f"run_dir={folder}/evaluated", folder=folder)
    assert json.loads((folder / "evaluated/result.json").read_text())["tasks"] == {"adroit_door": told}
    replay = [sys.executable, str(CHECKOUT / "replay.py"), f"run={planner}", f"output={folder}/replayed", "count=1"]
    subprocess.run(replay, cwd=folder, check=True, capture_output=True, timeout=200)
    assert len(list((folder / "replayed").glob("*.mp4"))) == 1
    assert load_served(planner).metadata()["tasks"] == ["adroit_door"]
    more = (f"planner={planner}", f"run_dir={folder}/tuned")
    assert "before: adroit_door: success" in run("train.py", "mode=finetune", *TRAIN, *more, folder=folder)
    assert json.loads((folder / "tuned/result.json").read_text())["before"] == told
    more = (f"data={folder}/pulled/store", f"run_dir={folder}/pretrained")
    run("train.py", "mode=pretrain", *TRAIN, *more, folder=folder)
    assert (folder / "pretrained/result.json").exists()
