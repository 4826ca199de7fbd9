import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from sodp3d.core import files
from sodp3d.core.cli import exit_status
from sodp3d.core.errors import InputError
from sodp3d.core.progress import shown
from sodp3d.core.run import Run, begun, is_finished, open_run, seconds_spent

CONFIG = {"seed": 1, "pretrain": {"steps": 10}}


def test_a_run_records_its_configuration_versions_and_metrics(tmp_path: Path) -> None:
    with open_run(tmp_path, CONFIG, 1) as run:
        run.log(1, {"train/loss": 0.5})
        run.log(2, {"train/loss": float("nan")})
    assert run.metrics() == [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": None}]
    assert json.loads((run.directory / "versions.json").read_text())["mujoco"] == "3.3.0"
    assert list((run.directory / "tensorboard").iterdir())


def test_a_line_tells_of_many_tasks_only_the_least_and_the_most() -> None:
    few = {"train/loss": 0.5, "train_loss/push": 0.25, "train_loss/reach": 0.75}
    assert shown(few) == "loss 0.5  push 0.25  reach 0.75"
    many = {"train/loss": 0.5, **{f"train_loss/task_{index}": (index - 20) ** 2 for index in range(50)}}
    assert shown(many) == "loss 0.5  of 50 tasks task_20 0  to task_49 841"
    assert shown({"train/kl": 1, **{f"train/{index}": index for index in range(9)}}).count("  ") == 9


def test_an_unfinished_run_of_the_same_configuration_is_continued_and_others_are_not(tmp_path: Path) -> None:
    with open_run(tmp_path, CONFIG, 1) as first:
        pass
    with open_run(tmp_path, CONFIG, 1) as again:
        assert again.directory == first.directory
        again.finish({"done": True})
    with open_run(tmp_path, CONFIG, 1) as fresh:
        assert fresh.directory != first.directory
    assert open_run(tmp_path, {**CONFIG, "seed": 2}, 2).directory not in (first.directory, fresh.directory)
    assert is_finished(first.directory) and not is_finished(fresh.directory)


def test_runs_of_any_name_are_sorted_by_their_start(tmp_path: Path) -> None:
    """A folder that the user named is as old as its configuration, however its name sorts."""
    for name, day in (("3", 2), ("final", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
        written = datetime(2026, 1, day).timestamp()
        os.utime(tmp_path / name / "config.yaml", (written, written))
    for name in ("20251231-000000-000-s0", "20260103-000000-000-s1"):
        (tmp_path / name).mkdir()
    found = [path.name for path in sorted(tmp_path.iterdir(), key=begun)]
    assert found == ["20251231-000000-000-s0", "final", "3", "20260103-000000-000-s1"]


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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_asks_to_stop_and_the_command_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals, status: int
) -> None:
    before = signal.getsignal(number)
    reached = []

    def job() -> None:
        with Run(tmp_path, CONFIG) as run:
            signal.raise_signal(number)
            assert run.stop_requested
            reached.append("the end of its step")
        reached.append("the next task of a set")

    assert exit_status(job) == status and reached == ["the end of its step"]
    assert f"stopped by {number.name}" in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_the_second_signal_stops_at_once_and_so_does_the_first_without_a_run(tmp_path: Path) -> None:
    def twice() -> None:
        with Run(tmp_path, CONFIG):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("it went on")

    def once() -> None:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it went on")

    assert exit_status(twice) == exit_status(once) == 143
    assert exit_status(lambda: None) == 0


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


@pytest.mark.parametrize("name", ["versions.json", "metrics.jsonl", "checkpoints/.partial-mine", "notes.txt"])
def test_a_folder_with_files_that_are_no_run_s_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine\n")
    with pytest.raises(InputError, match=r"holds files that are no run's .*name a new folder"):
        open_run(tmp_path, CONFIG, 1, tmp_path)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine\n"]


def test_another_project_s_config_and_a_file_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: mine\n")
    with pytest.raises(InputError, match="another configuration"):
        open_run(tmp_path, CONFIG, 1, tmp_path)
    with pytest.raises(InputError, match="is a file"):
        open_run(tmp_path, CONFIG, 1, tmp_path / "config.yaml")


def test_an_empty_folder_and_one_that_a_killed_run_left_are_begun(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    died = subprocess.Popen(["true"])
    died.wait()
    ours = files.partial_path(tmp_path / "config.yaml").name
    litter = tmp_path / ours.replace(f"-{os.getpid()}-", f"-{died.pid}-")
    litter.write_text("seed:")
    with open_run(tmp_path, CONFIG, 1, tmp_path):
        assert not litter.exists() and (tmp_path / "config.yaml").exists()


def test_what_ends_a_run_is_logged_once_however_often_it_is_made(tmp_path: Path) -> None:
    for _ in range(2):
        with Run(tmp_path, CONFIG) as run:
            run.log_once(3, {"evaluation/return": 1.0})
            run.log_once(4, {"evaluation/return": 1.0})
    assert [record["step"] for record in run.metrics()] == [3, 4]


@pytest.mark.parametrize(
    ("full", "write"),
    [
        ("metrics.jsonl", lambda run: run.log(2, {"train/loss": 0.25})),
        ("wall_time.json", lambda run: run._note_time()),
        ("result.json", lambda run: run.finish({"done": True})),
    ],
)
def test_a_full_disk_is_one_message_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], full: str, write: Callable[[Run], None]
) -> None:
    def job() -> None:
        with Run(tmp_path, CONFIG) as run:
            run.log(1, {"train/loss": 0.5})
            grown = sum(path.stat().st_size for path in tmp_path.glob(full) if path.suffix != ".json")
            with full_disk(grown + 3):
                write(run)

    assert exit_status(job) == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 1 and "cannot write" in said and "the same command again" in said
    assert not list(tmp_path.glob("*.partial")) and not is_finished(tmp_path)
    with Run(tmp_path, CONFIG) as run:
        run.rewind(1)
        run.log(2, {"train/loss": 0.25})
    assert [record["step"] for record in run.metrics()] == [1, 2]


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file of this process grow past `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("text", ["{}", "[]", '{"seconds": null}', '{"seconds": -1}', "x", '{"seconds": NaN}'])
def test_a_broken_note_of_the_time_stops_no_run(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "wall_time.json").write_text(text)
    with pytest.raises(InputError, match=r"wall_time\.json"):
        seconds_spent(tmp_path)
    with Run(tmp_path, CONFIG):
        pass
    assert "is taken as 0" in caplog.text and seconds_spent(tmp_path) is not None
