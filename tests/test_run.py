import json
import os
import signal
from pathlib import Path

import pytest

from sodp3d.core.errors import InputError
from sodp3d.core.run import Run, is_finished, newest_finished, open_run, seconds_spent

CONFIG = {"seed": 1, "pretrain": {"steps": 10}}


def test_a_run_records_its_configuration_versions_and_metrics(tmp_path: Path) -> None:
    with open_run(tmp_path, CONFIG, 1) as run:
        run.log(1, {"train/loss": 0.5})
        run.log(2, {"train/loss": float("nan")})
    assert run.metrics() == [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": None}]
    assert json.loads((run.directory / "versions.json").read_text())["mujoco"] == "3.3.0"
    assert list((run.directory / "tensorboard").iterdir())


def test_an_unfinished_run_of_the_same_configuration_is_continued_and_others_are_not(tmp_path: Path) -> None:
    with open_run(tmp_path, CONFIG, 1) as first:
        pass
    with open_run(tmp_path, CONFIG, 1) as again:
        assert again.directory == first.directory
        again.finish({"done": True})
    with open_run(tmp_path, CONFIG, 1) as fresh:
        assert fresh.directory != first.directory
    assert open_run(tmp_path, {**CONFIG, "seed": 2}, 2).directory not in (first.directory, fresh.directory)
    assert newest_finished(tmp_path) == first.directory and is_finished(first.directory)


def test_a_named_directory_of_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    with open_run(tmp_path, CONFIG, 1, tmp_path / "mine"):
        pass
    with pytest.raises(InputError, match=r"pretrain\.steps: 10 there, 20 here"):
        open_run(tmp_path, {"seed": 1, "pretrain": {"steps": 20}}, 1, tmp_path / "mine")


def test_rewinding_drops_later_metrics_and_a_torn_line(tmp_path: Path) -> None:
    with Run(tmp_path, CONFIG) as run:
        for step in range(1, 6):
            run.log(step, {"train/loss": step})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 6, "train/lo')
        run.rewind(3)
        assert [record["step"] for record in run.metrics()] == [1, 2, 3]


def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    with (
        Run(tmp_path, CONFIG),
        pytest.raises(InputError, match=f"in use by process {os.getpid()}"),
        Run(tmp_path, CONFIG),
    ):
        pass


def test_the_first_signal_asks_to_stop_and_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Run(tmp_path, CONFIG) as run:
        os.kill(os.getpid(), signal.SIGTERM)
        assert run.stop_requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_wall_time_adds_up_over_the_processes_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("sodp3d.core.run.time.monotonic", lambda: now)
    assert seconds_spent(tmp_path) is None
    with Run(tmp_path, CONFIG):
        now += 7
    assert seconds_spent(tmp_path) == 7
    now += 1000  # nobody works
    with Run(tmp_path, CONFIG) as run:
        for step in range(1, 4):
            now += 20
            run.log(step, {"train/loss": 1.0})
        assert seconds_spent(tmp_path) == 7 + 60, "a run killed now would have lost this"
