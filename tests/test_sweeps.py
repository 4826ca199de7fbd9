"""Sweeps: one command for several values, one after the other or, by Hydra's submitit launcher, as jobs."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_processes import COLLECT, TRAIN, Place

from sodp3d.core.arguments import switches_first
from sodp3d.core.files import claim_folder
from sodp3d.core.run import open_run

TRAINED = [*TRAIN, "pretrain.steps=2"]
JOBS = ["-m", "hydra/launcher=submitit_local", "seed=1,2"]


def test_folders_of_runs_that_begin_in_the_same_moment_are_each_ones_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        claimed = list(pool.map(lambda _: claim_folder(tmp_path / "runs" / "20260101-s0"), range(8)))
    expected = ["20260101-s0", *(f"20260101-s0-{number}" for number in range(2, 9))]
    assert sorted(path.name for path in claimed) == expected
    runs = [open_run(tmp_path / "sweep", {"seed": 0, "batch": size}, 0) for size in (1, 2)]
    assert runs[0].directory != runs[1].directory and all(run.directory.is_dir() for run in runs)


def test_a_sweep_may_be_asked_for_anywhere_on_the_line() -> None:
    assert switches_first(["mode=pretrain", "-m", "seed=1,2"]) == ["-m", "mode=pretrain", "seed=1,2"]
    assert switches_first(["b=1", "a=2", "--multirun"]) == ["--multirun", "b=1", "a=2"]
    assert switches_first(["b=1", "--cfg", "job"]) == ["b=1", "--cfg", "job"]


@pytest.mark.slow
def test_jobs_of_a_sweep_run_side_by_side_and_their_mistakes_are_told(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    place = Place(tmp_path)
    status, said = place.run([], "train", *JOBS, *TRAINED)
    assert status == 2 and "error: data: no store at" in said and "Traceback" not in said, said
    for verb, options in (("collect", COLLECT.split()), ("convert", [])):
        assert place.run([], verb, *options)[0] == 0
    status, said = place.run([], "train", *JOBS, *TRAINED)
    assert status == 0, said
    results = sorted((tmp_path / "outputs" / "pretrain" / "puck-pointcloud").glob("*/result.json"))
    assert sorted(path.parent.name[-3:] for path in results) == ["-s1", "-s2"]
    assert all(json.loads(path.read_text())["steps"] == 2 for path in results)
    assert list((tmp_path / "outputs" / "sweeps").glob("*/multirun.yaml")) and not (tmp_path / "multirun.yaml").exists()
